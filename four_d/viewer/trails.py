"""Point tracks for the page (`trails.js`): positions in every frame, in the image and in space."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from four_d.drawing import colour_map
from four_d.formats.tracks import TrackTable
from four_d.types import LIKELY

LIGHT = 0.08, 0.95
"""Range of the colour map that is visible on dark images."""
SHADES = 24
"""Number of trail colours; the page draws the trails of one colour together."""

Box = tuple[int, int, int, int]
"""Left, top, width, height in original pixels."""


def trails(table: TrackTable, boxes: Sequence[Box], unit: float, selected: Sequence[int]) -> dict[str, object]:
    """Page data of n points over f frames; arrays are base64 of little-endian numbers in row-major order.

    Args:
        table: two frames or more.
        boxes: the part of each frame's original image that the page shows.
        unit: divisor of lengths in the scene.
        selected: indices of points selected at first.

    Returns:
        ``moving`` n (bool), ``selected``, ``cameras`` f (ids), ``colours`` n 3 and ``seen`` n f (bytes), ``starts`` n 3
        (frame, x, y), ``pixels`` n f 2 as image fractions and ``points`` n f 3 in scene units (float32, or None).

    Raises:
        IndexError: a selected point that does not exist.

    """
    if any(index not in range(len(table)) for index in selected):
        raise IndexError(f"selected points {list(selected)} of {len(table)}")
    frames = table.frame_indices
    box_array = np.array(boxes)
    pixels = None if table.pixels is None else (table.pixels - box_array[:, :2]) / box_array[:, 2:]
    points = None if table.points is None else table.points[:, frames] / unit
    return {
        "moving": table.moving.tolist(),
        "selected": list(selected),
        "cameras": table.frame_cameras.tolist(),
        "colours": packed(colours(table), "u1"),
        "seen": packed(table.visible[:, frames] > LIKELY, "u1"),
        "starts": packed(table.queries, "<f4"),
        "pixels": None if pixels is None else packed(pixels, "<f4"),
        "points": None if points is None else packed(points, "<f4"),
    }


def colours(table: TrackTable) -> NDArray[np.uint8]:
    """Colours n 3 by start from left to right, with moving and static points each over the whole range."""
    rank = np.zeros(len(table))
    for group in (table.moving, ~table.moving):
        x, y = table.queries[group, 1], table.queries[group, 2]
        ranks = np.argsort(np.lexsort((y, x)))
        rank[group] = ranks / max(len(ranks) - 1, 1)
    low, high = LIGHT
    return colour_map(low + (high - low) * np.rint(rank * (SHADES - 1)) / (SHADES - 1))


def packed(values: NDArray[np.generic], kind: str) -> str:
    """Base64 of numbers of a kind, such as ``"<f4"``, in row-major order."""
    return base64.b64encode(np.ascontiguousarray(values.astype(kind)).tobytes()).decode("ascii")
