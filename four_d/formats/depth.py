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
    """Write ``000000.png`` … (16 bit, 0 = invalid) and ``depth.json`` with the size of one count.

    Args:
        folder: created.
        depth: f h w z-depths, read twice, a frame at a time; values that are not finite or not positive become 0.
        unit_name: name of the unit of depth, as "metres".

    """
    folder.mkdir(parents=True, exist_ok=True)
    largest = max((float(_sound(frame).max(initial=0.0)) for frame in depth), default=0.0)
    count = max(largest, 1e-12) / COUNTS
    for index, frame in enumerate(map(_sound, depth)):
        # valid depths stay valid: the smallest round up to one count
        counts = np.where(frame > 0, np.clip(np.rint(frame / count), 1, COUNTS), 0).astype(np.uint16)
        Image.fromarray(counts).save(folder / f"{index:06d}.png")
    note = f"value = PNG value × count; 0 = invalid; depth is z-depth; unit: {unit_name}"
    text = json.dumps({"format": 1, "count": count, "unit": unit_name, "frames": len(depth), "note": note}, indent=1)
    (folder / "depth.json").write_text(text + "\n")


def _sound(frame: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.where(np.isfinite(frame) & (frame > 0), frame, 0)


def read_depth(folder: Path) -> NDArray[np.float32]:
    """Read `write_depth`'s folder, to within half a count: f h w, 0 = invalid.

    Raises:
        UserError: not such a folder, or its images were changed: of another bit depth, or of several sizes.

    """
    try:
        content = json.loads((folder / "depth.json").read_text())
        count, frames = float(content["count"]), int(content["frames"])
        maps = [_read(folder / f"{i:06d}.png") for i in range(frames)]
        if not maps or len({depth_map.shape for depth_map in maps}) > 1:
            raise ValueError(
                f"it has {frames} maps of sizes {', '.join(sorted({str(depth_map.shape) for depth_map in maps}))}"
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is not a depth folder of four_d ({error}); run four-d infer again") from error
    return (np.stack(maps).astype(np.float64) * count).astype(np.float32)


def _read(file: Path) -> NDArray[np.generic]:
    """Read counts. ValueError unless it is a 16-bit grey image: saved again with 8 bits, depths would be too small."""
    with Image.open(file) as image:
        if not image.mode.startswith("I"):
            raise ValueError(f"{file.name} is not a 16-bit greyscale image (its mode is {image.mode})")
        return np.asarray(image)
