"""Plain folder of a user's own data: images, and optional depth, poses, intrinsics and masks."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import numpy as np

from four_d.errors import UserError
from four_d.metrics.pose import read_tum
from four_d.ordering import in_order
from four_d.protocols import decode, files
from four_d.protocols.sequence import Depth, Sequence, Task
from four_d.types import Cameras

LOGGER = logging.getLogger(__name__)

LAYOUT = (
    "images/*.{png,jpg} and, each optional, depth/NAME.{png,npy} (z-depth; PNG of 16 bits in millimetres, or metres), "
    "masks/NAME.png, poses.txt (world_from_camera, OpenCV axes, metres: 16 numbers a line, or 'time tx ty tz qx qy qz "
    "qw', one line per image) with intrinsics.txt (3 × 3, pixels from the top-left corner); or folders of such folders"
)
FPS = 30.0
"""Frame rate where poses.txt has no times."""


def read_folder(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List ``root`` as one sequence if it has ``images``, else each of its folders that has."""
    files.folder(root, LAYOUT)
    if (root / "images").is_dir():
        directories = {root.name: root}
    else:
        directories = {path.parent.name: path.parent for path in in_order(root.glob("*/images"))}
    if not directories:
        raise files.missing(root / "images", LAYOUT)
    return [_sequence(directories[name]) for name in files.chosen(directories, only)]


def _sequence(directory: Path) -> Sequence:
    image_paths = [
        path for path in files.listed(directory / "images", "*", LAYOUT) if path.suffix.lower() in files.IMAGE_SUFFIXES
    ]
    if not image_paths:
        raise files.missing(directory / "images" / "*.png", LAYOUT)
    depth = _matching_files(directory / "depth", image_paths, (".png", ".npy"), allow_missing=True)
    masks = _matching_files(directory / "masks", image_paths, (".png",))
    posed = (directory / "poses.txt").is_file()
    intrinsics = files.file(directory / "intrinsics.txt", LAYOUT) if posed else None
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
        name=directory.name,
        frames=len(image_paths),
        times=_times(directory / "poses.txt", len(image_paths)),
        tasks=tuple(tasks),
        images=partial(files.images, image_paths),
        cameras=partial(_read_cameras, directory / "poses.txt", intrinsics, len(image_paths))
        if intrinsics is not None
        else None,
        depth=partial(_depths, depth) if depth is not None else None,
        masks=partial(files.masks, masks) if masks is not None else None,
    )


def _matching_files(
    directory: Path, image_paths: list[Path], kinds: tuple[str, ...], *, allow_missing: bool = False
) -> list[Path] | None:
    """List the files of another folder that are named as the images; None if there is no such folder.

    UserError if an image has none; with ``allow_missing`` only if all have none.
    """
    if not directory.is_dir():
        return None
    matching: list[Path] = []
    for image_path in image_paths:
        options = [directory / f"{image_path.stem}{kind}" for kind in kinds]
        matching.append(next((path for path in options if path.is_file()), options[0]))
    absent = [path.stem for path in matching if not path.is_file()]
    if not allow_missing or len(absent) == len(matching):
        for path in matching:
            files.file(path, LAYOUT)
    elif absent:
        message = f"{directory} has no file for {len(absent)} of {len(matching)} images ({',  '.join(absent[:3])}"
        LOGGER.warning(f"{message}{' …' if len(absent) > 3 else ''}): these are not scored")
    return matching


def _depths(paths: list[Path]) -> Depth:
    """Read depth of all images; invalid where there is no file."""
    present = [index for index, path in enumerate(paths) if path.is_file()]
    values, valid = files.depth([paths[index] for index in present], files.npy_or_millimetres)
    shape = len(paths), *values.shape[1:]
    all_values, all_valid = np.zeros(shape, np.float32), np.zeros(shape, np.bool_)
    all_values[present], all_valid[present] = values, valid
    return all_values, all_valid


def _stamped(path: Path) -> bool:
    """True if a trajectory has lines of eight numbers."""
    lines = (
        line for line in path.read_text(errors="replace").splitlines() if line.strip() and not line.startswith("#")
    )
    return len(next(lines, "").split()) == 8


def _times(path: Path, frames: int) -> tuple[float, ...]:
    if not path.is_file() or not _stamped(path):
        return files.frame_times(frames, FPS)
    times, _ = read_tum(path)
    _check_count(path, len(times), frames)
    return tuple((times - times[0]).tolist())


def _read_cameras(path: Path, intrinsics: Path, frames: int) -> Cameras:
    poses = read_tum(path)[1].numpy() if _stamped(path) else decode.matrices(path, 4, 4)
    _check_count(path, len(poses), frames)
    return files.cameras(poses, decode.matrix(intrinsics, 3, 3))


def _check_count(path: Path, poses: int, frames: int) -> None:
    if poses != frames:
        raise UserError(f"{path} has {poses} poses for {frames} images; write one line for each, in their order")
