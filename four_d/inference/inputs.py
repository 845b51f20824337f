"""What a model can be called on: a video of one camera, or one each of several synchronised cameras."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from four_d.errors import UserError
from four_d.inference.video import IMAGE_RATE, Choice, Selection, Video, read, source_times

OneVideo = str | Path | UInt8[np.ndarray, "_f _h _w 3"] | Float[Tensor, "_f 3 _h _w"] | Sequence[Image.Image]
"""A video file or folder of images, uint8 or float frames, pictures."""
Frames = OneVideo | Sequence[OneVideo]
"""A video, or a list of those of synchronised cameras, which begin at the same moment."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Frames as they came."""

    video: Video
    floats: Float[Tensor, "f 3 h w"] | None = None
    """The same frames where they came as floats, so that none of their precision is lost."""


def gather(frames: Frames, selection: Selection | None = None) -> Source:
    """The frames of one camera or of several.

    Of several, ``selection`` chooses times of the first camera within the shortest video, for each the nearest frame of
    every other camera is taken, and the frames stand time by time. Says on stderr when videos differ in length.

    Raises:
        UserError: no video, cameras of different picture sizes, ``selection`` for what is not a file.

    """
    cameras = _cameras(frames)
    if len(cameras) == 1:
        return _one(cameras[0], selection)
    files = [Path(camera) for camera in cameras if isinstance(camera, str | Path)]
    if not files:
        return _join([_one(camera, selection) for camera in cameras], [f"camera {i}" for i in range(len(cameras))])
    if len(files) < len(cameras):
        raise UserError("some of the cameras are files and some are arrays; give all as files or all as arrays")
    return _join(_together(files, selection), [str(file) for file in files])


def _cameras(frames: Frames) -> Sequence[OneVideo]:
    """A list of anything but pictures is one of cameras."""
    if isinstance(frames, str | Path) or not isinstance(frames, Sequence):
        return [cast(OneVideo, frames)]
    whole = (str, Path, np.ndarray, Tensor, list, tuple)
    if frames and all(isinstance(each, whole) for each in frames):
        return cast(Sequence[OneVideo], frames)
    return [cast(OneVideo, frames)]


def _one(frames: OneVideo, selection: Selection | None) -> Source:
    if isinstance(frames, str | Path):
        return Source(video=read(Path(frames), selection))
    if selection is not None:
        raise UserError("selection chooses frames of a file; slice an array or list yourself")
    array, floats = as_frames(frames)
    times = np.arange(len(array)) / IMAGE_RATE
    return Source(video=Video(frames=array, times=times, total=len(array)), floats=floats)


@dataclass(frozen=True, kw_only=True)
class _Within:
    """A choice among the frames that are no later than ``end`` seconds after the first."""

    choice: Choice
    end: float

    def indices(self, times: Sequence[float]) -> list[int]:
        return self.choice.indices([time for time in times if time - times[0] <= self.end])


@dataclass(frozen=True, kw_only=True)
class _Nearest:
    """The frames nearest to some seconds after the first."""

    seconds: NDArray[np.float64]

    def indices(self, times: Sequence[float]) -> list[int]:
        since = np.asarray(times) - times[0]
        return np.abs(since - self.seconds[:, None]).argmin(1).tolist()


def _together(files: list[Path], selection: Selection | None) -> list[Source]:
    """Frames of all files at the times chosen of the first one."""
    lengths = [(times[-1], times[-1] / max(len(times) - 1, 1)) for times in map(source_times, files)]
    end = min(last + interval / 2 for last, interval in lengths)
    first = read(files[0], _Within(choice=selection or Selection(), end=end))
    others = [read(file, _Nearest(seconds=first.times)) for file in files[1:]]
    shortest = min(range(len(files)), key=lambda i: lengths[i][0])
    longest = max(range(len(files)), key=lambda i: lengths[i][0] + lengths[i][1])
    if lengths[longest][0] > end:
        told = f"{files[shortest]} lasts {lengths[shortest][0]:.2f} s and {files[longest]} {lengths[longest][0]:.2f} s"
        print(f"{told}: taking what all cameras have", file=sys.stderr)
    return [Source(video=video) for video in (first, *others)]


def _join(sources: list[Source], names: list[str]) -> Source:
    """One video of all cameras: their frames time by time, as many times as the shortest has."""
    videos = [source.video for source in sources]
    for video, name in zip(videos[1:], names[1:], strict=True):
        if video.frames.shape[1:] != videos[0].frames.shape[1:]:
            sizes = (f"{one.frames.shape[2]}×{one.frames.shape[1]}" for one in (videos[0], video))
            first, other = (f"{label} is {size}" for label, size in zip((names[0], name), sizes, strict=True))
            raise UserError(f"{first}, {other}; synchronised cameras must have one picture size: resize or crop them")
    counts = [len(video.frames) for video in videos]
    count = min(counts)
    if max(counts) > count:
        told = f"{names[counts.index(count)]} has {count} frames and {names[counts.index(max(counts))]} {max(counts)}"
        print(f"{told}: taking the first {count} of every camera", file=sys.stderr)
    frames = np.stack([video.frames[:count] for video in videos], axis=1)
    times = np.repeat(videos[0].times[:count], len(videos))
    floats = [source.floats[:count] for source in sources if source.floats is not None]
    return Source(
        video=Video(frames=frames.reshape(-1, *frames.shape[2:]), times=times, total=len(times), cameras=len(videos)),
        floats=torch.stack(floats, dim=1).flatten(0, 1) if len(floats) == len(sources) else None,
    )


def as_frames(frames: object) -> tuple[NDArray[np.uint8], Tensor | None]:
    """Frames as uint8 ``f h w 3``, and floats as they came, so that none of their precision is lost.

    Raises:
        UserError: what it is instead of uint8 (f, h, w, 3), floats in [0, 1] (f, 3, h, w) or pictures of one size.

    """
    if isinstance(frames, Tensor):
        _check_floats(frames)
        return (frames.detach().cpu().permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy(), frames
    if isinstance(frames, Sequence):
        return _from_pictures(cast(Sequence[object], frames)), None
    if not isinstance(frames, np.ndarray):
        raise UserError(f"frames are a {type(frames).__name__}; give a path, an array, a tensor or a list of pictures")
    array = cast(NDArray[np.uint8], frames)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise UserError(f"frames are {array.dtype} {array.shape}; give uint8 (frames, height, width, 3)")
    return array, None


def _check_floats(frames: Tensor) -> None:
    if not frames.is_floating_point() or frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise UserError(
            f"frames are {frames.dtype} {tuple(frames.shape)}; give floats in [0, 1], (frames, 3, height, width)"
        )
    if not (frames.isfinite().all() and frames.min() >= 0 and frames.max() <= 1):
        raise UserError("frames hold values outside [0, 1]; divide by 255, or give uint8 (frames, height, width, 3)")


def _from_pictures(frames: Sequence[object]) -> NDArray[np.uint8]:
    pictures = [frame for frame in frames if isinstance(frame, Image.Image)]
    if not pictures or len(pictures) < len(frames):
        raise UserError("frames are a list of something else than PIL images, or empty; give pictures")
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1:
        raise UserError(f"pictures are of sizes {sorted(sizes)}; make all one size")
    return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
