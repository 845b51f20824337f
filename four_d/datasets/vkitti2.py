"""Virtual KITTI 2: rendered drives, two cameras each, in ten conditions."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from four_d.datasets import decode, files
from four_d.datasets.cut3r import VKITTI2_LICENCES
from four_d.datasets.facts import DataSet
from four_d.datasets.sequence import Sequence
from four_d.errors import UserError
from four_d.ordering import in_order
from four_d.types import Cameras

LAYOUT = (
    "Scene01/clone/{frames/{rgb/Camera_0/rgb_00000.jpg,depth/Camera_0/depth_00000.png},intrinsic.txt,extrinsic.txt} "
    "and so on"
)
CAMERAS = ("Camera_0", "Camera_1")
RATE = 10.0
COUNTS = 100.0
FARTHEST = (65535 - 1) / COUNTS
"""Largest valid depth (m): the last count that 16 bits hold, 65535 cm, is the sky."""


def read_vkitti2(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List every drive in every condition, as ``Scene01/clone``; the cameras that are there are synchronised."""
    paths = in_order(files.folder(root, LAYOUT).glob("Scene*/*/intrinsic.txt"))
    places = {path.parent.relative_to(root).as_posix(): path.parent for path in paths}
    if not places:
        raise files.missing(root / "Scene01" / "clone" / "intrinsic.txt", LAYOUT)
    return [_drive(name, places[name]) for name in files.chosen(places, only)]


def _drive(name: str, directory: Path) -> Sequence:
    images, rows = list[Path](), list[tuple[int, int]]()
    for camera, folder in enumerate(CAMERAS):
        if (directory / "frames" / "rgb" / folder).is_dir():
            paths = files.listed(directory / "frames" / "rgb" / folder, "rgb_*.jpg", LAYOUT, key=files.number)
            images += paths
            rows += [(files.number(path), camera) for path in paths]
    if not images:
        raise files.missing(directory / "frames" / "rgb" / "Camera_0", LAYOUT)
    depth = directory / "frames" / "depth"
    maps = [files.file(depth / path.parent.name / f"depth_{path.stem[4:]}.png", LAYOUT) for path in images]
    first = min(frame for frame, _ in rows)
    several = len({camera for _, camera in rows}) > 1
    return Sequence(
        name=name,
        frames=len(images),
        times=tuple((frame - first) / RATE for frame, _ in rows),
        camera_ids=tuple(camera for _, camera in rows) if several else None,
        images=files.image_loader(images),
        cameras=partial(_cameras, directory / "intrinsic.txt", directory / "extrinsic.txt", rows),
        depth=files.depth_loader(maps, partial(decode.depth_png, per_metre=COUNTS), FARTHEST),
    )


def _cameras(inside: Path, outside: Path, rows: list[tuple[int, int]]) -> Cameras:
    """Read cameras: camera_from_world; the principal point, 620.5 of 1242, counts from pixel centres."""
    lenses = _table(inside, 4, rows)
    poses = _table(outside, 16, rows).reshape(-1, 4, 4)
    intrinsics = np.stack([files.pinhole(*row, centre_origin=True) for row in lenses.tolist()])
    return files.cameras(files.inverted(poses), intrinsics)


def _table(path: Path, values: int, rows: list[tuple[int, int]]) -> NDArray[np.float64]:
    """Read the values of each frame and camera from a table with one line of headings."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()[1:] if line.strip()]
        table = {(int(line[0]), int(line[1])): [float(v) for v in line[2:]] for line in lines}
        found = np.array([table[row] for row in rows])
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"{path} is not a readable table of frames and cameras ({error}); unpack it again") from error
    except KeyError as error:
        raise UserError(f"{path} has no line of frame and camera {error}; unpack it again") from error
    if found.ndim != 2 or found.shape[1] != values:
        raise UserError(f"{path} has {found.shape[-1]} values a line, not {values}; unpack it again")
    return found


VKITTI2 = DataSet(
    name="vkitti2",
    title="Virtual KITTI 2",
    home="europe.naverlabs.com, Virtual KITTI 2: rgb, depth and textgt",
    licences=VKITTI2_LICENCES,
    layout=LAYOUT,
    reader=read_vkitti2,
    notes="both cameras; 65535, the sky, is invalid",
)
