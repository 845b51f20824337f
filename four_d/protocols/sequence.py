"""One video of a published evaluation set, as its reader gives it: listed at once, loaded when asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from four_d.types import Cameras

Task = Literal["pose", "video_depth", "depth", "points", "mask", "tracks", "views"]
"""``depth`` is of single frames, each aligned alone; ``video_depth`` has one alignment per sequence; ``views`` are
pictures that the model does not see, of other cameras or times."""

Depth = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""z-depths f h w in metres (0 where invalid), and where they are valid (finite and > 0). No cap is applied."""


@dataclass(frozen=True, kw_only=True)
class TrackTruth:
    """Points that were followed, and the pixels that they are asked for by."""

    queries: NDArray[np.float64]
    """n 3: frame and (x, y) in pixels of the sequence's images, corner origin, inside the picture."""
    points: NDArray[np.float64]
    """t n 3 in the coordinates of each frame's camera, metres; 0 where not ``known``."""
    known: NDArray[np.bool_]
    """t n: where ``points`` mean something, seen or not."""
    visible: NDArray[np.bool_]
    """t n: seen in that frame; only where ``known``."""


@dataclass(frozen=True, kw_only=True)
class ViewTruth:
    """Held-out pictures of the same scene: v of them, each with its own camera and time."""

    images: NDArray[np.uint8]
    """v h w 3, RGB."""
    times: tuple[float, ...]
    """Seconds on the sequence's clock."""
    camera_ids: tuple[int, ...]
    cameras: Cameras
    """As the sequence's own, in the same world, for pixels of ``images``; v of them."""
    covisible: NDArray[np.bool_] | None = None
    """v h w: pixels that enough frames of the sequence see too."""
    dynamic: NDArray[np.bool_] | None = None
    """v h w: what moves."""


@dataclass(frozen=True, kw_only=True)
class Keypoints:
    """Points that were marked by hand in some frames of the sequence; a column is one point."""

    frames: tuple[int, ...]
    """k of the sequence's frames."""
    points: NDArray[np.float64]
    """k n 2: (x, y) in pixels of the sequence's images, corner origin; 0 where not ``visible``."""
    visible: NDArray[np.bool_]
    """k n."""


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """One video with its truth. What is a function reads files when it is called; nothing is read before.

    The functions raise `UserError` with the file's name where one is missing, damaged or of a wrong size.
    """

    name: str
    frames: int
    times: tuple[float, ...]
    """Seconds from the first frame; where a set says no rate, that of its publication."""
    tasks: tuple[Task, ...]
    """What this sequence counts for; a part of its protocol's tasks."""
    images: Callable[[], NDArray[np.uint8]]
    """f h w 3, RGB."""
    cameras: Callable[[], Cameras] | None = None
    """world_from_camera f 4 4 (OpenCV axes, metres), intrinsics f 3 3 in pixels of ``images`` with corner origin, and
    known f: False where the set has no pose of a frame. All of float64."""
    depth: Callable[[], Depth] | None = None
    """May have another size than ``images``; both show the same field of view."""
    bounds: Callable[[], NDArray[np.float64]] | None = None
    """f 2: nearest and farthest depth in each frame, in the cameras' unit, of a set that has no depth."""
    masks: Callable[[], NDArray[np.bool_]] | None = None
    """f h w: annotated foreground, or what moves in the world."""
    mask_frames: int | None = None
    """How many frames, counted from the first, ``masks`` has a truth for; None = all. The others are False."""
    tracks: Callable[[], TrackTruth] | None = None
    views: Callable[[], ViewTruth] | None = None
    keypoints: Callable[[], Keypoints] | None = None
    weight: float = 1.0
    """In the mean over sequences, of ``tracks``: 1 / clips of its source where each source counts alike."""
