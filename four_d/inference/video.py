"""Reading: a video file or a folder of images becomes frames with times."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from four_d.errors import UserError
from four_d.progress import Bar, progress

if TYPE_CHECKING:
    import av

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
IMAGE_RATE = 25.0
"""Frames per second that a folder of images is taken to have."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which frames of a video to take."""

    max_frames: int = 24
    """At most so many, spread evenly."""
    start: float = 0.0
    """Seconds to skip."""
    fps: float | None = None
    """Frames per second to take, from ``start`` on until there are ``max_frames``; None = spread over the rest."""

    def __post_init__(self) -> None:
        """Refuse what selects nothing."""
        if self.max_frames < 1:
            raise UserError(f"max_frames is {self.max_frames}; take at least 1")
        if not (self.start >= 0 and (self.fps is None or self.fps > 0)):
            raise UserError(f"start is {self.start} and fps {self.fps}; start must be ≥ 0 and fps > 0")

    def indices(self, times: Sequence[float]) -> list[int]:
        """Indices into ``times`` (seconds, ascending)."""
        if not times:
            return []
        usable = [i for i, t in enumerate(times) if t - times[0] >= self.start - 1e-9]
        if self.fps is None:
            spread = np.linspace(0, len(usable) - 1, min(self.max_frames, len(usable)))
            return [usable[int(i)] for i in np.rint(spread)]
        taken: list[int] = []
        for index in usable:
            if not taken or times[index] - times[taken[0]] >= len(taken) / self.fps - 1e-3:
                taken.append(index)
            if len(taken) == self.max_frames:
                break
        return taken


@runtime_checkable
class Choice(Protocol):
    """Says which frames of a video to take: `Selection` is one."""

    def indices(self, times: Sequence[float]) -> list[int]:
        """Indices into ``times`` (seconds, ascending)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Video:
    """Frames that were read, upright, at their original size."""

    frames: NDArray[np.uint8]
    """f h w 3, RGB."""
    times: NDArray[np.float64]
    """f seconds from the video's first frame."""
    total: int
    """Frames the source has."""
    indices: tuple[int, ...] | None = None
    """Which of them these are; None: all, or not from a source."""
    cameras: int = 1
    """Synchronised cameras; the frames stand time by time, at each time one of every camera in turn."""
    part: tuple[Sequence[int], int] | None = None
    """Of a part of a video: which of the frames that were taken these are, and how many were taken. One may stand there
    more than once."""

    def rows_of(self, count: int, what: str) -> list[int]:
        """Which of ``count`` things belong to the frames that were taken, one for each; [0] where one is for all.

        UserError if they are not one, one for each frame, or one for each that the source has.
        """
        which, taken = self.part or (range(len(self.frames)), len(self.frames))
        if count == 1:
            return [0]
        if count == taken:
            return list(which)
        if count == self.total and self.indices is not None:
            return list(self.indices)
        frames = f"{taken} frames were taken" + (f" of {self.total}" if self.total != taken else "")
        raise UserError(f"there are {count} {what}, and {frames}; give one for all, or one for each")


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Frames that are read one after the other and not held; what `Video` says of them."""

    frames: Callable[[], Iterator[NDArray[np.uint8]]]
    """Begins anew: each h w 3, RGB, upright, at its original size, which is that of all. UserError as `read`."""
    times: NDArray[np.float64]
    total: int
    indices: tuple[int, ...] | None = None
    cameras: int = 1
    floats: Float[Tensor, "f 3 h w"] | None = None
    """The same frames where they came as floats."""

    def __len__(self) -> int:
        return len(self.times)

    def windows(self, plan: Sequence[range]) -> Iterator[Video]:
        """The frames of overlapping windows, whose starts and stops ascend; holds one window at a time."""
        held: list[NDArray[np.uint8]] = []
        frames, start = self.frames(), 0
        for part in plan:
            del held[: part.start - start]
            start = part.start
            held += itertools.islice(frames, len(part) - len(held))
            yield Video(
                frames=np.stack(held),
                times=self.times[part.start : part.stop],
                total=self.total,
                indices=None if self.indices is None else self.indices[part.start : part.stop],
                cameras=self.cameras,
                part=(part, len(self)),
            )


def stream(path: Path, selection: Choice | None = None) -> Stream:
    """The frames that `read` would give, to be read bit by bit; no picture is decoded yet. UserError as `read`."""
    selection = selection or Selection()
    check_there(path)
    if path.is_dir():
        files = _images(path)
        times = [i / IMAGE_RATE for i in range(len(files))]
        chosen = _some(selection.indices(times), path, times)
        return _stream(lambda: _images_in_turn(files, chosen), times, chosen)
    with _readable(path):
        times = _packet_times(path, told=False)
    chosen = _some(selection.indices(times), path, times)
    return _stream(lambda: _pictures_in_turn(path, chosen), times, chosen)


def counted(path: Path, selection: Choice | None = None) -> Stream:
    """Likewise, sure to give as many frames as it says: a video file is decoded once to count. Says as much as `read`.

    Some packets of a file may hold no frame to show.
    """
    found = stream(path, selection)
    if path.is_file():
        with _readable(path):
            _packet_times(path)
            last = (found.indices or (0,))[-1]
            with progress(f"counting frames of {path.name}", last + 1, "frame") as bar:
                count = sum(1 for _ in itertools.islice(_advancing(bar, _decode(path)), last + 1))
            if count <= last:
                times = _decoded_times(path)
                chosen = _some((selection or Selection()).indices(times), path, times)
                found = _stream(lambda: _pictures_in_turn(path, chosen), times, chosen)
    if len(found) < found.total:
        print(_taken(path, found.times, found.total), file=sys.stderr)
    return found


def _stream(frames: Callable[[], Iterator[NDArray[np.uint8]]], times: list[float], chosen: list[int]) -> Stream:
    stamps = np.array([times[i] - times[0] for i in chosen])
    return Stream(frames=frames, times=stamps, total=len(times), indices=tuple(chosen))


T = TypeVar("T")


def _advancing(bar: Bar, values: Iterator[T]) -> Iterator[T]:
    for value in values:
        bar.advance()
        yield value


def _images_in_turn(files: list[Path], chosen: list[int]) -> Iterator[NDArray[np.uint8]]:
    first: tuple[int, ...] | None = None
    for index in chosen:
        frame = _read_image(files[index])
        first = first or frame.shape
        _check_size(files[index], frame.shape, files[chosen[0]], first)
        yield frame


def _pictures_in_turn(path: Path, chosen: list[int]) -> Iterator[NDArray[np.uint8]]:
    wanted = set(chosen)
    shape: tuple[int, ...] | None = None
    with _readable(path):
        for index, frame in enumerate(itertools.islice(_decode(path), chosen[-1] + 1)):
            if index in wanted:
                picture = _upright(frame)
                shape = shape or picture.shape
                _check_sizes(path, {picture.shape, shape})
                yield picture


def _check_size(file: Path, shape: tuple[int, ...], first: Path, expected: tuple[int, ...]) -> None:
    if shape != expected:
        sizes = f"{file} is {shape[1]}×{shape[0]}, {first.name} is {expected[1]}×{expected[0]}"
        raise UserError(f"{sizes}; make all one size")


def _check_sizes(path: Path, shapes: set[tuple[int, ...]]) -> None:
    if len(shapes) > 1:
        raise UserError(f"{path} changes its picture size on the way; convert it to one size")


def _taken(path: Path, times: NDArray[np.float64], total: int) -> str:
    taken = f"{len(times)} of {total} frames, {times[0]:.2f} s to {times[-1]:.2f} s"
    return f"{path}: taking {taken} (max_frames, start and fps choose others)"


def read(path: Path, selection: Choice | None = None) -> Video:
    """Read a video file (extra `video`) or a folder of images in the order of their names.

    Greyscale becomes RGB, transparency is dropped, rotation marked in the file is applied, 16-bit greyscale images
    keep their upper 8 bits. Says on stderr when it takes only some of the frames, or when there is only one.

    Raises:
        UserError: nothing there, nothing decodes, images of several sizes, or no frame after ``start``.

    """
    selection = selection or Selection()
    check_there(path)
    video = _read_folder(path, selection) if path.is_dir() else _read_file(path, selection)
    if len(video.frames) == 1:
        print(f"{path} gives one frame: depth and points are meaningful, motion is not", file=sys.stderr)
    elif len(video.frames) < video.total:
        print(_taken(path, video.times, video.total), file=sys.stderr)
    return video


def check_there(path: Path) -> None:
    """UserError unless it is a folder or a file."""
    if not (path.is_dir() or path.is_file()):
        raise UserError(f"{path} does not exist; give a video file or a folder of images")


def source_times(path: Path) -> list[float]:
    """Seconds of every frame of a file or folder from its first on, without decoding a picture. UserError as `read`."""
    check_there(path)
    if path.is_dir():
        return [i / IMAGE_RATE for i in range(len(_images(path)))]
    with _readable(path):
        times = _packet_times(path)
    return [time - times[0] for time in times]


def _images(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    if not files:
        kinds = " ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"{folder} holds no images; put some there ({kinds}) or give a video file")
    return files


def _read_folder(folder: Path, selection: Choice) -> Video:
    files = _images(folder)
    times = [i / IMAGE_RATE for i in range(len(files))]
    chosen = _some(selection.indices(times), folder, times)
    with progress("reading images", len(chosen), "image") as bar:
        frames = list(_advancing(bar, _images_in_turn(files, chosen)))
    return Video(
        frames=np.stack(frames), times=np.array([times[i] for i in chosen]), total=len(files), indices=tuple(chosen)
    )


def _read_image(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):
                return np.repeat(_upper_bits(np.asarray(image))[..., None], 3, axis=-1)
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} does not decode as an image ({error}); remove it or save it again") from error


def _upper_bits(counts: NDArray[np.integer]) -> NDArray[np.uint8]:
    """16-bit grey to 8 bits."""
    return (np.clip(counts, 0, 65535).astype(np.uint32) >> 8).astype(np.uint8)


@contextmanager
def _readable(path: Path) -> Generator[None]:
    """What goes wrong in decoding as one clear UserError."""
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty (0 bytes); copy or record the video again")
    try:
        from av.error import FFmpegError
    except ImportError as error:
        raise UserError(f"reading {path} takes PyAV; install it with: pip install 'four_d[video]'") from error
    try:
        yield
    except (FFmpegError, IndexError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path} does not decode as a video ({reason}); convert it to H.264 MP4 or images") from error


def _read_file(path: Path, selection: Choice) -> Video:
    with _readable(path):
        times = _packet_times(path)
        chosen = _some(selection.indices(times), path, times)
        frames = _pick(path, chosen)
        if len(frames) < len(chosen):
            # some packets hold no frame to show: count what decodes, which takes longer
            times = _decoded_times(path)
            chosen = _some(selection.indices(times), path, times)
            frames = _pick(path, chosen)
    _check_sizes(path, {frame.shape for frame in frames})
    stamps = np.array([times[i] - times[0] for i in chosen])
    return Video(frames=np.stack(frames), times=stamps, total=len(times), indices=tuple(chosen))


def _some(chosen: list[int], path: Path, times: list[float]) -> list[int]:
    if not times:
        raise UserError(f"{path} holds no picture that decodes; convert it to H.264 MP4 or images")
    if not chosen:
        raise UserError(f"{path} has no frame there (it lasts {times[-1] - times[0]:.2f} s); choose an earlier start")
    return chosen


def _pick(path: Path, chosen: list[int]) -> list[NDArray[np.uint8]]:
    """The frames of these ascending indices in the order shown; fewer if the video ends before."""
    wanted = set(chosen)
    frames: list[NDArray[np.uint8]] = []
    with progress(f"decoding {path.name}", chosen[-1] + 1, "frame") as bar:
        for index, frame in enumerate(_decode(path)):
            if index in wanted:
                frames.append(_upright(frame))
            bar.advance()
            if index == chosen[-1]:
                break
    return frames


def _decode(path: Path) -> Iterator[av.VideoFrame]:
    import av

    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        yield from container.decode(video=0)


def _packet_times(path: Path, *, told: bool = True) -> list[float]:
    """Seconds of every frame in the order shown, without decoding. Says on stderr when some are missing, if told to."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stamps = [packet.pts for packet in container.demux(stream) if packet.size]
        if told and stream.frames > len(stamps):
            print(f"{path} is cut short: only {len(stamps)} of its {stream.frames} frames are there", file=sys.stderr)
        rate = float(stream.average_rate or IMAGE_RATE)
        known = [pts for pts in stamps if pts is not None]
        if len(known) < len(stamps) or stream.time_base is None:
            return [i / rate for i in range(len(stamps))]
        return [float(pts * stream.time_base) for pts in sorted(known)]


def _decoded_times(path: Path) -> list[float]:
    """Seconds of every frame that decodes, in the order shown."""
    times: list[float] = []
    for index, frame in enumerate(_decode(path)):
        times.append(index / IMAGE_RATE if frame.pts is None else frame.time)
    return times


def _upright(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """RGB, turned as the file's rotation mark says (degrees anticlockwise)."""
    array = cast(NDArray[np.uint8], frame.to_ndarray(format="rgb24"))
    return np.ascontiguousarray(np.rot90(array, k=round(frame.rotation / 90) % 4))
