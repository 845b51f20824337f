"""Reading of a video file, an image file or a folder of images as frames with times."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from four_d.errors import UserError
from four_d.progress import progress
from four_d.video import foreign
from four_d.video.decoding import UnlikeIndex, VideoFile
from four_d.video.fit import Pictures
from four_d.video.images import IMAGE_RATE, IMAGE_SUFFIXES, ImageFolder, PictureFile
from four_d.video.remarks import Remarks

LOGGER = logging.getLogger(__name__)

__all__ = [
    "IMAGE_RATE",
    "VIDEO_SUFFIXES",
    "Choice",
    "Footage",
    "Selection",
    "Stream",
    "Video",
    "footage",
    "held",
    "read",
    "stream",
]


VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v"})
"""Suffixes by which a folder's files count as videos; a file that is named may have any."""
DARK = 24
"""Maximum pixel value below which frames are reported as nearly black."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Choice of frames of a video."""

    max_frames: int = 24
    """Maximum number of frames, evenly spaced."""
    start: float = 0.0
    """Seconds to skip at the start."""
    fps: float | None = None
    """Frames per second to take, from ``start`` on, up to ``max_frames``; None: evenly spaced over the rest."""

    def __post_init__(self) -> None:
        """Raise UserError for values that select nothing."""
        if self.max_frames < 1:
            raise UserError(f"max_frames is {self.max_frames}; take at least 1")
        if not (self.start >= 0 and (self.fps is None or self.fps > 0)):
            raise UserError(f"start is {self.start} and fps {self.fps}; start must be ≥ 0 and fps > 0")

    def indices(self, times: Sequence[float]) -> list[int]:
        """Indices of the chosen frames, given the ``times`` of all (seconds, ascending)."""
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
    """Interface of a choice of frames, such as `Selection`."""

    def indices(self, times: Sequence[float]) -> list[int]:
        """Indices of the chosen frames, given the ``times`` of all (seconds, ascending)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Video:
    """Decoded frames in memory, upright, at their original size."""

    frames: Pictures
    """f frames, of one size per camera."""
    times: NDArray[np.float64]
    """Seconds (f) since the video's first frame."""
    total: int
    """Number of frames of the source."""
    indices: tuple[int, ...] | None = None
    """Indices of the frames in the source; None: all, or no source."""
    cameras: int = 1
    """Number of synchronised cameras; frames are ordered by time, then by camera."""
    part: tuple[Sequence[int], int] | None = None
    """Indices of a part's frames among those chosen (they may repeat), and number of those chosen; None: no part."""
    floats: Sequence[Float[Tensor, "3 _h _w"]] | None = None
    """Frames at full precision if the input is float; else None."""

    def __post_init__(self) -> None:
        """Raise ValueError unless each frame has a time (and index), or later ones would pair wrongly."""
        if len(self.frames) != len(self.times) or (self.indices is not None and len(self.indices) != len(self.times)):
            raise ValueError(f"there are {len(self.frames)} frames and {len(self.times)} times; give one of each")

    @property
    def whole(self) -> bool:
        """True if these are all of the chosen frames, in order."""
        return self.part is None or list(self.part[0]) == list(range(self.part[1]))

    def stream(self) -> Stream:
        """Convert to a `Stream`."""
        return Stream(
            frames=lambda: iter(self.frames),
            times=self.times,
            total=self.total,
            indices=self.indices,
            cameras=self.cameras,
            floats=self.floats,
        )

    def rows_of(self, count: int, what: str) -> list[int]:
        """Indices of the frames' items among ``count`` items (masks, depth maps); [0] if one serves all frames.

        UserError unless ``count`` is 1, the number of chosen frames, or that of the source.
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
    """Frames to be read one after the other instead of held in memory; other fields as in `Video`."""

    frames: Callable[[], Iterator[NDArray[np.uint8]]]
    """Start reading from the first frame: each (h w 3) RGB, upright, at its original size. UserError as `read`."""
    times: NDArray[np.float64]
    total: int
    indices: tuple[int, ...] | None = None
    cameras: int = 1
    floats: Sequence[Float[Tensor, "3 _h _w"]] | None = None
    """Frames at full precision if the input is float; else None."""

    def __post_init__(self) -> None:
        """Raise ValueError unless each time has an index."""
        if self.indices is not None and len(self.indices) != len(self.times):
            raise ValueError(f"there are {len(self.indices)} indices and {len(self.times)} times; give one of each")

    def __len__(self) -> int:
        return len(self.times)

    def windows(self, plan: Sequence[range]) -> Iterator[Video]:
        """Yield overlapping windows with ascending starts and stops, holding one window at a time."""
        kept: list[NDArray[np.uint8]] = []
        frames, start = self.frames(), 0
        for part in plan:
            del kept[: part.start - start]
            start = part.start
            kept += itertools.islice(frames, len(part) - len(kept))
            yield Video(
                frames=list(kept),
                times=self.times[part.start : part.stop],
                total=self.total,
                indices=None if self.indices is None else self.indices[part.start : part.stop],
                cameras=self.cameras,
                part=(part, len(self)),
                floats=None if self.floats is None else self.floats[part.start : part.stop],
            )


Footage = VideoFile | PictureFile | ImageFolder
"""Frames of one camera on disk. Each has ``times``; ``exact``, True if these are the times of the frames that decode;
``survey``, which makes them exact; and ``frames`` of ascending indices (h w 3: RGB, upright, square pixels)."""


def footage(path: Path, *, silent: bool = False) -> Footage:
    """Open a video file (extra `video`), an image file or a folder of images, without decoding.

    All reading of frames passes through here, with the same corrections (order, stream, orientation, pixel shape,
    colours, bit depth, times), each reported on stderr once unless ``silent``.

    Raises:
        UserError: nothing there, or neither video nor images; the message names what it is.

    """
    foreign.check_there(path, "a video file or a folder of images")
    said = Remarks(path, silent=silent)
    if path.is_dir():
        return ImageFolder.open(path, said)
    named = foreign.by_name(path)
    if named is not None:
        raise UserError(f"{path} {named}")
    if foreign.is_picture(path) or path.suffix.lower() in IMAGE_SUFFIXES:
        return PictureFile.open(path, said)
    return VideoFile.open(path, said)


def check_footage(path: Path, selection: Choice | None = None) -> None:
    """Raise UserError if a path is no footage or ``selection`` chooses none of its frames; silent, without decoding."""
    _some(footage(path, silent=True), selection or Selection())


def held(source: Footage, selection: Choice | None = None) -> Video:
    """Read the frames that ``selection`` chooses into memory; reports on stderr if there are others, or only one.

    Raises:
        UserError: a frame that does not decode, images of several sizes, or no frame after ``start``.

    """
    selection = selection or Selection()
    chosen = _some(source, selection)
    try:
        frames = _collected(source, chosen)
    except UnlikeIndex:
        source.survey()
        chosen = _some(source, selection)
        frames = _collected(source, chosen)
    times = np.array([source.times[index] for index in chosen])
    _tell(source, times)
    if (brightest := int(frames.max())) < DARK:
        source.said.say(f"is nearly black: its brightest value is {brightest} of 255; brighten it if it should not be")
    return Video(frames=list(frames), times=times, total=len(source.times), indices=tuple(chosen))


def stream(source: Footage, selection: Choice | None = None) -> Stream:
    """`Stream` of the frames that ``selection`` chooses; a video file is decoded once first, so that they are exact."""
    source.survey()
    chosen = _some(source, selection or Selection())
    times = np.array([source.times[index] for index in chosen])
    _tell(source, times)
    return Stream(frames=lambda: source.frames(chosen), times=times, total=len(source.times), indices=tuple(chosen))


def read(path: Path, selection: Choice | None = None) -> Video:
    """Open a path and read frames into memory: `held` of `footage`."""
    return held(footage(path), selection)


def _some(source: Footage, selection: Choice) -> list[int]:
    chosen = selection.indices(source.times)
    if not chosen:
        raise UserError(
            f"{source.path} has no frame there (it lasts {source.times[-1]:.2f} s); choose an earlier start"
        )
    return chosen


def _collected(source: Footage, chosen: list[int]) -> NDArray[np.uint8]:
    """Frames in one array, filled while decoding, so that none is held twice."""
    frames: NDArray[np.uint8] | None = None
    with progress(f"reading {source.path.name}", len(chosen), "frame") as bar:
        for place, frame in enumerate(source.frames(chosen)):
            if frames is None:
                frames = np.empty((len(chosen), *frame.shape), np.uint8)
            frames[place] = frame
            bar.advance()
    assert frames is not None
    return frames


def _tell(source: Footage, times: NDArray[np.float64]) -> None:
    if len(times) == 1:
        LOGGER.warning(f"{source.path} gives one frame: depth and points are meaningful, motion is not")
    elif len(times) < len(source.times):
        # the number of frames is exact only after a full decode
        count = f"of {len(source.times)} frames" if source.exact else f"frames of {source.times[-1]:.2f} s"
        taken = f"taking {len(times)} {count}, {times[0]:.2f} s to {times[-1]:.2f} s"
        LOGGER.warning(f"{source.path}: {taken} (max_frames, start and fps choose others)")
