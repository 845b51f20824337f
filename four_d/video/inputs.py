"""Video inputs of a model: one camera, or several synchronised cameras."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from four_d.errors import UserError
from four_d.video.fit import Size, shape_between, sizes_of
from four_d.video.footage import IMAGE_RATE, Choice, Selection, Stream, Video, footage, held, read, stream
from four_d.video.images import as_arrays

LOGGER = logging.getLogger(__name__)

OneVideo = str | Path | UInt8[np.ndarray, "_f _h _w 3"] | Float[Tensor, "_f 3 _h _w"] | Sequence[Image.Image] | Video
"""Video file or folder of images, uint8 or float frames, PIL images, or frames in memory with their own times."""
Frames = OneVideo | Sequence[OneVideo]
"""Video, or list of the videos of synchronised cameras, which start at the same time."""
_T = TypeVar("_T")
LITTLE = 0.005
"""Fraction of an image up to which cropping is not reported."""


def open_stream(frames: Frames, selection: Selection | None, most: int) -> Stream:
    """Open the frames of one or several cameras, as `gather` does.

    If more than ``most`` frames of a single file or folder are chosen, they are read on demand instead of held in
    memory. Frames of several cameras are always held.
    """
    cameras = _cameras(frames)
    if len(cameras) == 1 and isinstance(cameras[0], str | Path):
        found = footage(Path(cameras[0]))
        if len((selection or Selection()).indices(found.times)) > most:
            return stream(found, selection)
        return held(found, selection).stream()
    return gather(frames, selection).stream()


def gather(frames: Frames, selection: Selection | None = None) -> Video:
    """Read the frames of one or several cameras into memory.

    For several, ``selection`` chooses times of the first camera within the shortest video, with the nearest frame of
    every other camera; frames are ordered by time, then by camera. Reports on stderr if videos differ in length or
    shape.

    Raises:
        UserError: no video, or a ``selection`` for arrays or images.

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
    """One entry per camera: a list is one of cameras unless it holds images."""
    if isinstance(frames, str | Path) or not isinstance(frames, Sequence):
        return [cast(OneVideo, frames)]
    whole = (str, Path, np.ndarray, Tensor, list, tuple)
    if frames and all(isinstance(each, whole) for each in frames):
        return cast(Sequence[OneVideo], frames)
    return [cast(OneVideo, frames)]


def _one(frames: OneVideo, selection: Selection | None) -> Video:
    if isinstance(frames, str | Path):
        return read(Path(frames), selection)
    if selection is not None:
        raise UserError("selection chooses frames of a file; slice an array or list yourself")
    if isinstance(frames, Video):
        return frames
    array, floats = as_frames(frames)
    times = np.arange(len(array)) / IMAGE_RATE
    given = None if floats is None else list(floats)
    return Video(frames=list(array), times=times, total=len(array), floats=given)


@dataclass(frozen=True, kw_only=True)
class _Within:
    """Choice among the frames up to ``end`` seconds after the first."""

    choice: Choice
    end: float

    def indices(self, times: Sequence[float]) -> list[int]:
        return self.choice.indices([time for time in times if time - times[0] <= self.end])


@dataclass(frozen=True, kw_only=True)
class _Nearest:
    """Choice of the frames nearest to given times, in seconds after the first frame."""

    seconds: NDArray[np.float64]

    def indices(self, times: Sequence[float]) -> list[int]:
        since = np.asarray(times) - times[0]
        return np.abs(since - self.seconds[:, None]).argmin(1).tolist()


def _together(files: list[Path], selection: Selection | None) -> list[Video]:
    """Read all files at the times that are chosen from the first one."""
    cameras = [footage(file) for file in files]
    for camera in cameras:
        camera.survey()
    if all(len(camera.times) == 1 for camera in cameras):
        told = f"{len(files)} pictures are taken as those of {len(files)} cameras at one moment"
        LOGGER.warning(f"{told}; for a video of them, give their folder")
    lengths = [(times[-1], times[-1] / max(len(times) - 1, 1)) for times in (camera.times for camera in cameras)]
    end = min(last + interval / 2 for last, interval in lengths)
    first = held(cameras[0], _Within(choice=selection or Selection(), end=end))
    others = [held(camera, _Nearest(seconds=first.times)) for camera in cameras[1:]]
    shortest = min(range(len(files)), key=lambda i: lengths[i][0])
    longest = max(range(len(files)), key=lambda i: lengths[i][0] + lengths[i][1])
    if lengths[longest][0] > end:
        told = f"{files[shortest]} lasts {lengths[shortest][0]:.2f} s and {files[longest]} {lengths[longest][0]:.2f} s"
        LOGGER.warning(f"{told}: taking what all cameras have")
    return [first, *others]


def _join(videos: list[Video], names: list[str]) -> Video:
    """Join the videos of all cameras, frames ordered by time, cut to the length of the shortest."""
    counts = [len(video.frames) for video in videos]
    count = min(counts)
    if max(counts) > count:
        told = f"{names[counts.index(count)]} has {count} frames and {names[counts.index(max(counts))]} {max(counts)}"
        LOGGER.warning(f"{told}: taking the first {count} of every camera")
    _tell_shapes(sizes_of([video.frames[0] for video in videos]), names)
    times = np.repeat(videos[0].times[:count], len(videos))
    floats = [video.floats for video in videos if video.floats is not None]
    return Video(
        frames=_in_turn([video.frames for video in videos], count),
        times=times,
        total=len(times),
        cameras=len(videos),
        floats=_in_turn(floats, count) if len(floats) == len(videos) else None,
    )


def _in_turn(cameras: Sequence[Sequence[_T]], count: int) -> list[_T]:
    return [frames[time] for time in range(count) for frames in cameras]


def _tell_shapes(sizes: list[Size], names: list[str]) -> None:
    """Report in one line how much of each camera's images is cropped, if their shapes differ."""
    height, width = shape_between(sizes)
    ratios = [(columns / rows) / (width / height) for rows, columns in sizes]
    lost = [1 - min(ratio, 1 / ratio) for ratio in ratios]
    if max(lost) < LITTLE:
        return
    each = [f"{n} is {w}×{h} ({cut:.0%} unseen)" for n, (h, w), cut in zip(names, sizes, lost, strict=True)]
    LOGGER.warning(f"{', '.join(each)}: the model sees one shape, the middle of each camera's pictures")


def as_frames(frames: object) -> tuple[NDArray[np.uint8], Tensor | None]:
    """Convert frames to uint8 (f h w 3); float frames are returned too, at full precision.

    Raises:
        UserError: neither uint8 (f, h, w, 3), floats in [0, 1] (f, 3, h, w) nor images of one size; names what it is.

    """
    if isinstance(frames, Tensor):
        _check_floats(frames)
        array = np.empty((len(frames), *frames.shape[2:], 3), np.uint8)
        for frame, given in zip(array, frames, strict=True):
            frame[:] = (given.detach().permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()
        return array, frames
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
    arrays = as_arrays(pictures)
    sizes = {(array.shape[1], array.shape[0]) for array in arrays}
    if len(sizes) > 1:
        raise UserError(f"pictures are of sizes {sorted(sizes)}; make all one size")
    return np.stack(arrays)
