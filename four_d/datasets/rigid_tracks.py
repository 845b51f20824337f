"""Tracks of a scene of rigid things: pixels chosen in some frames, carried by what they are of, and seen or hidden.

For sets that say which thing a pixel shows, where every thing is at every time, and how far a pixel's surface is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

QUERIES = 4
"""Frames, evenly spread, whose pixels are tracked."""
OF_THINGS, OF_SURROUNDINGS = 640, 384
"""Most tracked pixels of each of these frames, evenly chosen of those that show things and of the others."""
NEAR, FAR = 2.0, 16.0
"""Distance, in pixels' widths at the point, within which two points of one thing always and never are one surface."""


@dataclass(frozen=True, kw_only=True)
class View:
    """One frame's maps."""

    shown: NDArray[np.int64]
    """h w: the thing that a pixel shows; −1 is the surroundings, which stand still."""
    surface: NDArray[np.float64]
    """h w 3: where in the world that is."""
    valid: NDArray[np.bool_]
    """h w: both are known."""
    pose: NDArray[np.float64]
    """world_from_camera 4 4, OpenCV axes."""
    k: NDArray[np.float64]
    """Intrinsics 3 3, corner origin."""
    sampled: float = 0.5
    """Place of a map's value in its pixel, from the pixel's corner."""


def spread(count: int, most: int) -> list[int]:
    """Indices below ``count``, evenly spread, at most ``most``."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int)).tolist() if count else []


def chosen(view: View, things: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Choose pixels to be tracked, as indices of the flat picture: of ``things`` (h w), and of the surroundings."""
    found = (np.flatnonzero(things & view.valid), np.flatnonzero((view.shown < 0) & view.valid))
    parts = [part[spread(len(part), most)] for part, most in zip(found, (OF_THINGS, OF_SURROUNDINGS), strict=True)]
    return np.concatenate(parts)


def visible(view: View, things: NDArray[np.int64], points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell whether points (n 3, in the world) of ``things`` (n) are on the surface that the frame shows, n.

    A point is seen if the pixel nearest to where it lands shows its own thing, no farther from it than the neighbouring
    pixels' points are from each other.
    """
    local = (points - view.pose[:3, 3]) @ view.pose[:3, :3]
    ahead = local[:, 2] > 0
    z = np.where(ahead, local[:, 2], 1.0)
    pixel = local[:, :2] / z[:, None] * view.k[[0, 1], [0, 1]] + view.k[:2, 2]
    size = np.array(view.shown.shape[::-1])
    inside = ahead & (pixel >= 0).all(-1) & (pixel < size).all(-1)
    pixel = np.where(inside[:, None], pixel, 0.0)
    low = np.floor(pixel - view.sampled).astype(int)
    x, y = np.clip(np.rint(pixel - view.sampled).astype(int), 0, size - 1).T
    own = (view.shown[y, x] == things) & view.valid[y, x]
    there = view.surface[y, x]
    step = np.zeros(len(points))
    for offset in ((0, 0), (0, 1), (1, 0), (1, 1)):
        x, y = np.clip(low + offset, 0, size - 1).T
        same = (view.shown[y, x] == things) & view.valid[y, x]
        step = np.maximum(step, np.where(same, np.linalg.norm(view.surface[y, x] - there, axis=-1), 0.0))
    width = z / view.k[0, 0]
    reach = np.clip(step, NEAR * width, FAR * width)
    return np.asarray(inside & own & (np.linalg.norm(there - points, axis=-1) <= reach))
