"""Video of a data set, as listed by its reader; its data is loaded on demand."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Indices
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from four_d import fields
from four_d.types import Cameras

Item = TypeVar("Item")
T = TypeVar("T")
Task = Literal["pose", "video_depth", "depth", "points", "mask", "tracks", "pixel_tracks", "rig_tracks", "views"]
"""``depth`` is of single frames, each aligned alone; ``video_depth`` has one alignment per sequence; ``views`` are
images held out from the model, of other cameras or times."""

Depth = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""z-depths f h w in metres (0 where invalid), and their validity (finite and > 0). No cap is applied."""


@dataclass(frozen=True)
class PerFrame(Generic[Item, T]):
    """Loader of one item per frame, such as a file, which can be cut to some frames without reading the others."""

    read: Callable[[list[Item]], T]
    items: list[Item]

    def __call__(self) -> T:
        """Read all items."""
        return self.read(self.items)

    def of(self, frames: Indices[int]) -> PerFrame[Item, T]:
        """Loader of these frames."""
        return PerFrame(self.read, [self.items[frame] for frame in frames])


@dataclass(frozen=True, kw_only=True)
class WorldTracks:
    """Paths of points in the sequence's world, for sets that store them so."""

    points: NDArray[np.float64]
    """n t 3, in the cameras' unit; 0 where not ``known``."""
    known: NDArray[np.bool_]
    """n t: validity of ``points``, visible or not."""
    visible: NDArray[np.bool_]
    """n t: seen at that time by a camera of the sequence; only where ``known``."""
    times: tuple[float, ...]
    """Seconds on the sequence's clock."""


@dataclass(frozen=True, kw_only=True)
class RigTracks:
    """Ground-truth tracks in the world of several synchronised cameras, and the times at which they are asked for."""

    queries: NDArray[np.int64]
    """n: index of each track's query among the times; a camera sees the point then."""
    points: NDArray[np.float64]
    """n t 3 in the cameras' world and unit; any value where no camera sees the point."""
    visible: NDArray[np.bool_]
    """v n t: whether the camera sees it then."""


@dataclass(frozen=True, kw_only=True)
class TrackTruth:
    """Ground-truth tracks of points, and their query pixels."""

    queries: NDArray[np.float64]
    """n 3: frame and (x, y) in pixels of the sequence's images, corner origin, inside the image."""
    points: NDArray[np.float64]
    """t n 3 in the coordinates of each frame's camera, metres; 0 where not ``known``."""
    known: NDArray[np.bool_]
    """t n: validity of ``points``, visible or not."""
    visible: NDArray[np.bool_]
    """t n: visibility in that frame; only where ``known``."""


@dataclass(frozen=True, kw_only=True)
class ViewTruth:
    """Held-out images of the same scene: v of them, each with its own camera and time."""

    images: NDArray[np.uint8]
    """v h w 3, RGB."""
    times: tuple[float, ...]
    """Seconds on the sequence's clock."""
    camera_ids: tuple[int, ...]
    cameras: Cameras
    """Cameras of the v ``images``, in the sequence's world, in pixels of ``images``."""
    covisible: NDArray[np.bool_] | None = None
    """v h w: pixels that enough frames of the sequence see too."""
    dynamic: NDArray[np.bool_] | None = None
    """v h w: moving pixels."""


@dataclass(frozen=True, kw_only=True)
class PixelTrackTruth:
    """Ground-truth tracks of points in the image, as fractions of its width and height from its corner."""

    queries: NDArray[np.float64]
    """n 3: frame, x and y."""
    points: NDArray[np.float64]
    """n t 2; 0 where not ``visible``."""
    visible: NDArray[np.bool_]
    """n t."""
    counted: NDArray[np.bool_]
    """n t: frames in which the protocol scores the track."""


@dataclass(frozen=True, kw_only=True)
class Keypoints:
    """Points annotated by hand in some frames of the sequence; a column is one point."""

    frames: tuple[int, ...]
    """k of the sequence's frames."""
    points: NDArray[np.float64]
    """k n 2: (x, y) in pixels of the sequence's images, corner origin; 0 where not ``visible``."""
    visible: NDArray[np.bool_]
    """k n."""


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """One video with its ground truth. Fields that are functions read files when called; nothing is read before.

    The functions raise `UserError` with the file's name where one is missing, damaged or of a wrong size.
    """

    name: str
    frames: int
    times: tuple[float, ...]
    """Seconds from the first frame; at the publication's rate where the set gives none."""
    tasks: tuple[Task, ...] = ()
    """Tasks in which this sequence counts, a subset of its protocol's."""
    camera_ids: tuple[int, ...] | None = None
    """Camera of each frame, of several synchronised ones, frames camera by camera; None: one camera."""
    images: Callable[[], NDArray[np.uint8]]
    """f h w 3, RGB."""
    cameras: Callable[[], Cameras] | None = None
    """world_from_camera f 4 4 (OpenCV axes, metres), intrinsics f 3 3 in pixels of ``images`` with corner origin, and
    known f: False where the set has no pose of a frame; its intrinsics hold all the same. All of float64."""
    depth: Callable[[], Depth] | None = None
    """Depth, possibly of another size than ``images``, with the same field of view."""
    bounds: Callable[[], NDArray[np.float64]] | None = None
    """f 2: nearest and farthest depth in each frame, in the cameras' unit, for a set without depth."""
    masks: Callable[[], NDArray[np.bool_]] | None = None
    """f h w: annotated foreground, or pixels that move in the world."""
    mask_frames: int | None = None
    """Number of frames, from the first, with ground truth in ``masks``; None = all. The others are False."""
    tracks: Callable[[], TrackTruth] | None = None
    pixel_tracks: Callable[[], PixelTrackTruth] | None = None
    world_tracks: Callable[[], WorldTracks] | None = None
    rig_tracks: Callable[[], RigTracks] | None = None
    views: Callable[[], ViewTruth] | None = None
    keypoints: Callable[[], Keypoints] | None = None
    metric: bool | None = None
    """True if lengths are metres; None: as the set says."""
    listing: tuple[Path, ...] = ()
    """Files that were read when the sequence was listed, which its loaders do not read again."""
    weight: float = 1.0
    """Weight in the mean of ``tracks`` over sequences: 1 / clips of its source where sources count equally."""

    def take(self, frames: Indices[int]) -> Sequence:
        """Sequence of some of its frames, whose times stay on its clock. What is of no frame stays as it is."""
        cut = {
            name: _cut(load, frames)
            for name in ("images", "depth", "bounds", "masks")
            if (load := getattr(self, name)) is not None
        }
        cameras, ids = self.cameras, self.camera_ids
        return replace(
            self,
            frames=len(frames),
            times=tuple(self.times[frame] for frame in frames),
            camera_ids=None if ids is None else tuple(ids[frame] for frame in frames),
            cameras=None if cameras is None else _cut_cameras(cameras, frames),
            mask_frames=None,
            tracks=None,
            **cut,
        )


def _cut_cameras(load: Callable[[], Cameras], frames: Indices[int]) -> Callable[[], Cameras]:
    return load.of(frames) if isinstance(load, PerFrame) else lambda: fields.take(load(), "b", list(frames))


def _cut(load: Callable[[], T], frames: Indices[int]) -> Callable[[], T]:
    """Loader of some frames: of what has a file per frame reads only theirs."""
    return load.of(frames) if isinstance(load, PerFrame) else lambda: _rows(load(), frames)


def _rows(value: T, frames: Indices[int]) -> T:
    """Rows of an array, or of each array of a tuple."""
    if isinstance(value, tuple):
        return tuple(_rows(each, frames) for each in value)  # pyright: ignore[reportReturnType]
    return value[list(frames)]  # pyright: ignore
