"""Depth maps as 16-bit PNG with a stated unit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from four_d.errors import UserError

COUNTS = 65535


def write_depth(folder: Path, depth: NDArray[np.float32] | Sequence[NDArray[np.float32]], unit_name: str) -> None:
    """Write ``000000.png`` … (16 bit, 0 = invalid) and ``depth.json``, which says what one count is.

    Args:
        folder: is made.
        depth: f h w z-depths, gone through twice, a frame at a time; what is not finite or not positive becomes 0.
        unit_name: what depth 1.0 is, as "metres".

    """
    folder.mkdir(parents=True, exist_ok=True)
    largest = max((float(_sound(frame).max(initial=0.0)) for frame in depth), default=0.0)
    count = max(largest, 1e-12) / COUNTS
    for index, frame in enumerate(map(_sound, depth)):
        # what is valid stays valid: the smallest depths round up to one count
        counts = np.where(frame > 0, np.clip(np.rint(frame / count), 1, COUNTS), 0).astype(np.uint16)
        Image.fromarray(counts).save(folder / f"{index:06d}.png")
    note = f"z-depth = PNG value × count; 0 = invalid; unit: {unit_name}"
    text = json.dumps({"format": 1, "count": count, "unit": unit_name, "frames": len(depth), "note": note}, indent=1)
    (folder / "depth.json").write_text(text + "\n")


def _sound(frame: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.where(np.isfinite(frame) & (frame > 0), frame, 0)


def read_depth(folder: Path) -> NDArray[np.float32]:
    """The inverse of `write_depth` to within half a count: f h w, 0 = invalid."""
    try:
        content = json.loads((folder / "depth.json").read_text())
        count, frames = float(content["count"]), int(content["frames"])
        maps = [np.asarray(Image.open(folder / f"{i:06d}.png")) for i in range(frames)]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is not a depth folder of four_d ({error}); run four-d infer again") from error
    return (np.stack(maps).astype(np.float64) * count).astype(np.float32)
