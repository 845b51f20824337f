"""A plain folder of one's own: pictures, and whatever of depth, poses, intrinsics and masks there is."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from four_d.errors import UserError
from four_d.metrics.pose import read_tum
from four_d.protocols import decode, files
from four_d.protocols.sequence import Sequence, Task
from four_d.types import Cameras

LAYOUT = (
    "images/*.{png,jpg} and, each optional, depth/NAME.{png,npy} (z-depth; PNG of 16 bits in millimetres, or metres), "
    "masks/NAME.png, poses.txt (world_from_camera, OpenCV axes, metres: 16 numbers a line, or 'time tx ty tz qx qy qz "
    "qw', a line per picture) with intrinsics.txt (3 × 3, pixels from the top-left corner); or folders of such folders"
)
FPS = 30.0
"""Where poses.txt has no times."""


def read(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """``root`` as one sequence if it has ``images``, else each of its folders that has."""
    files.folder(root, LAYOUT)
    if (root / "images").is_dir():
        found = {root.name: root}
    else:
        found = {path.parent.name: path.parent for path in sorted(root.glob("*/images"))}
    if not found:
        raise files.missing(root / "images", LAYOUT)
    return [_sequence(found[name]) for name in files.chosen(found, only)]


def _sequence(where: Path) -> Sequence:
    pictures = [path for path in files.listed(where / "images", "*", LAYOUT) if path.suffix.lower() in files.PICTURES]
    if not pictures:
        raise files.missing(where / "images" / "*.png", LAYOUT)
    depth = _beside(where / "depth", pictures, (".png", ".npy"))
    masks = _beside(where / "masks", pictures, (".png",))
    posed = (where / "poses.txt").is_file()
    intrinsics = files.file(where / "intrinsics.txt", LAYOUT) if posed else None
    tasks: list[Task] = []
    if posed:
        tasks.append("pose")
    if depth is not None:
        tasks.extend(("video_depth", "depth"))
    if posed and depth is not None:
        tasks.append("points")
    if masks is not None:
        tasks.append("mask")
    return Sequence(
        name=where.name,
        frames=len(pictures),
        times=_times(where / "poses.txt", len(pictures)),
        tasks=tuple(tasks),
        images=partial(files.images, pictures),
        cameras=partial(_cameras, where / "poses.txt", intrinsics, len(pictures)) if intrinsics is not None else None,
        depth=partial(files.depth, depth, _depth) if depth is not None else None,
        masks=partial(files.masks, masks) if masks is not None else None,
    )


def _beside(where: Path, pictures: list[Path], kinds: tuple[str, ...]) -> list[Path] | None:
    """The file of each picture's name in another folder; None if there is no such folder."""
    if not where.is_dir():
        return None
    found: list[Path] = []
    for picture in pictures:
        options = [where / f"{picture.stem}{kind}" for kind in kinds]
        found.append(next((path for path in options if path.is_file()), options[0]))
        files.file(found[-1], LAYOUT)
    return found


def _depth(path: Path) -> NDArray[np.float32]:
    return decode.depth_npy(path) if path.suffix == ".npy" else files.millimetres()(path)


def _stamped(path: Path) -> bool:
    """Whether a trajectory has lines of eight numbers."""
    lines = (
        line for line in path.read_text(errors="replace").splitlines() if line.strip() and not line.startswith("#")
    )
    return len(next(lines, "").split()) == 8


def _times(path: Path, frames: int) -> tuple[float, ...]:
    if not path.is_file() or not _stamped(path):
        return files.frame_times(frames, FPS)
    times, _ = read_tum(path)
    _counted(path, len(times), frames)
    return tuple((times - times[0]).tolist())


def _cameras(path: Path, intrinsics: Path, frames: int) -> Cameras:
    poses = read_tum(path)[1].numpy() if _stamped(path) else decode.matrices(path, 4, 4)
    _counted(path, len(poses), frames)
    return files.cameras(poses, decode.matrix(intrinsics, 3, 3))


def _counted(path: Path, poses: int, frames: int) -> None:
    if poses != frames:
        raise UserError(f"{path} has {poses} poses for {frames} pictures; write one line for each, in their order")
