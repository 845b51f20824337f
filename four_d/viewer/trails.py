"""Followed points as the page draws them (`trails.js`): where they are in every frame, in the picture and in space."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from four_d.formats.tracks import TrackTable
from four_d.pictures import colour_map

SEEN = 0.5
"""Probability from which a point counts as seen."""
LIGHT = 0.08, 0.95
"""Part of the colour map that shows on dark pictures."""
SHADES = 24
"""Colours of trails; the page draws those of one colour at a stroke."""

Box = tuple[int, int, int, int]
"""Left, top, width, height in original pixels."""


def trails(table: TrackTable, box: Box, unit: float, selected: Sequence[int]) -> dict[str, object]:
    """The page's data of n points over f frames; arrays are base64 of little-endian numbers in row-major order.

    Args:
        table: two frames or more.
        box: the part of the original pictures that the page shows.
        unit: what lengths in the scene are divided by.
        selected: points picked out from the start.

    Returns:
        ``moving`` n (bool), ``selected``, ``cameras`` f (ids), ``colours`` n 3 and ``seen`` n f (bytes), ``starts`` n 3
        (frame, x, y), ``pixels`` n f 2 in shares of the picture and ``points`` n f 3 in scene units (float32, or None).

    Raises:
        IndexError: a selected point that is not there.

    """
    if any(index not in range(len(table)) for index in selected):
        raise IndexError(f"selected points {list(selected)} of {len(table)}")
    frames = table.frame_indices
    left, top, width, height = box
    pixels = None if table.pixels is None else (table.pixels - (left, top)) / (width, height)
    points = None if table.points is None else table.points[:, frames] / unit
    return {
        "moving": table.moving.tolist(),
        "selected": list(selected),
        "cameras": table.frame_cameras.tolist(),
        "colours": _base64(colours(table), "u1"),
        "seen": _base64(table.visible[:, frames] > SEEN, "u1"),
        "starts": _base64(table.queries, "<f4"),
        "pixels": None if pixels is None else _base64(pixels, "<f4"),
        "points": None if points is None else _base64(points, "<f4"),
    }


def colours(table: TrackTable) -> NDArray[np.uint8]:
    """RGB n 3: by start from left to right, those that move and those that rest each over the whole range."""
    place = np.zeros(len(table))
    for group in (table.moving, ~table.moving):
        x, y = table.queries[group, 1], table.queries[group, 2]
        ranks = np.argsort(np.lexsort((y, x)))
        place[group] = ranks / max(len(ranks) - 1, 1)
    low, high = LIGHT
    return colour_map(low + (high - low) * np.rint(place * (SHADES - 1)) / (SHADES - 1))


def _base64(values: NDArray[np.generic], kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values.astype(kind)).tobytes()).decode("ascii")
