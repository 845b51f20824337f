"""DyCheck's iPhone captures: the moving phone (camera 0) with its lidar depth."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np

from four_d.errors import UserError
from four_d.protocols import decode, files
from four_d.protocols.sequence import Sequence, Task
from four_d.types import Cameras

LAYOUT = "apple/{rgb/1x/0_00000.png,depth/1x/0_00000.npy,camera/0_00000.json} and so on"
NAMES = (
    *("apple", "backpack", "block", "handwavy", "haru-sit", "mochi-high-five", "paper-windmill", "pillow"),
    *("space-out", "spin", "sriracha-tree", "teddy", "wheel"),
)
"""Thirteen of the set's fourteen: published code leaves out creeper."""
DEPTH_FRAMES = 120
POSE_STRIDE = 10
FPS = 30.0
"""Where extra.json says none."""


def read(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """Two entries for each capture, as PAGE-4D runs them: its first 120 frames for depth, every tenth for the rest."""
    inner = root / "iphone"
    base = inner if inner.is_dir() else root
    return [entry for name in files.chosen(NAMES, only) for entry in _capture(base / name)]


def _capture(where: Path) -> list[Sequence]:
    pictures = files.listed(where / "rgb" / "1x", "0_*.png", LAYOUT, key=files.number)
    rate = _rate(where / "extra.json")
    first, tenth = pictures[:DEPTH_FRAMES], pictures[::POSE_STRIDE]
    parts: list[tuple[list[Path], tuple[Task, ...]]] = [(first, ("video_depth", "depth")), (tenth, ("pose", "points"))]
    result: list[Sequence] = []
    for chosen, tasks in parts:
        maps = [files.file(where / "depth" / "1x" / f"{path.stem}.npy", LAYOUT) for path in chosen]
        stored = [files.file(where / "camera" / f"{path.stem}.json", LAYOUT) for path in chosen]
        result.append(
            Sequence(
                name=where.name,
                frames=len(chosen),
                times=tuple((files.number(path) - files.number(chosen[0])) / rate for path in chosen),
                tasks=tasks,
                images=partial(files.images, chosen),
                cameras=partial(_cameras, stored, chosen[0]),
                depth=partial(files.depth, maps, decode.depth_npy),
            )
        )
    return result


def _cameras(stored: list[Path], picture: Path) -> Cameras:
    """Pixels count from the corner already; intrinsics are for ``image_size`` and follow the pictures' own."""
    height, width = decode.image_size(picture)
    found = [decode.camera_nerfies(path) for path in stored]
    scales = np.array([[[width / size[1]], [height / size[0]], [1.0]] for _, _, size in found])
    return files.cameras(np.stack([pose for pose, _, _ in found]), np.stack([k for _, k, _ in found]) * scales)


def _rate(extra: Path) -> float:
    if not extra.is_file():
        return FPS
    try:
        return float(json.loads(extra.read_text())["fps"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{extra} says no fps ({error!r}); unpack it again") from error
