"""TartanAir (V1), left camera: photo-realistic flights."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import roma
import torch

from four_d.datasets import decode, files
from four_d.datasets.cut3r import TARTANAIR_LICENCES
from four_d.datasets.facts import DataSet
from four_d.datasets.sequence import Sequence
from four_d.errors import UserError
from four_d.ordering import in_order
from four_d.types import Cameras

LAYOUT = "ENV/[ENV/]{Easy,Hard}/P000/{image_left/000000_left.png,depth_left/000000_left_depth.npy,pose_left.txt}"
CAMERA = (320.0, 320.0, 320.0, 240.0)
"""fx fy cx cy of all images, 640 × 480 with 90 degrees; corner origin."""
RATE = 10.0
"""Frames per second; nominal, since the set gives none."""
FARTHEST = 1000.0
"""Largest valid depth (m); the sky is 10000."""
BODY_FROM_CAMERA = np.array([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
"""The set's axes are x forward, y right, z down."""


def read_tartanair(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List every flight, as ``abandonedfactory/Easy/P000``."""
    files.folder(root, LAYOUT)
    found = [path for depth in range(1, 5) for path in in_order(root.glob("*/" * depth + "pose_left.txt"))]
    places = {path.parent.relative_to(root).as_posix(): path.parent for path in found}
    if not places:
        raise files.missing(root / "*" / "Easy" / "P000" / "pose_left.txt", LAYOUT)
    return [_flight(name, places[name]) for name in files.chosen(places, only)]


def _flight(name: str, directory: Path) -> Sequence:
    images = files.listed(directory / "image_left", "*_left.png", LAYOUT)
    maps = [files.file(directory / "depth_left" / f"{path.stem}_depth.npy", LAYOUT) for path in images]
    return Sequence(
        name=name,
        frames=len(images),
        times=files.frame_times(len(images), RATE),
        images=files.image_loader(images),
        cameras=partial(_cameras, directory / "pose_left.txt", len(images)),
        depth=files.depth_loader(maps, decode.depth_npy, FARTHEST),
    )


def _cameras(path: Path, frames: int) -> Cameras:
    """Read lines of tx ty tz qx qy qz qw: the body in the world, both north-east-down."""
    rows = decode.matrices(path, 1, 7)[:, 0]
    if len(rows) != frames:
        raise UserError(f"{path} has {len(rows)} poses for {frames} images; unpack both again")
    poses = np.tile(np.eye(4), (frames, 1, 1))
    turns = torch.from_numpy(rows[:, 3:] / np.linalg.norm(rows[:, 3:], axis=-1, keepdims=True))
    poses[:, :3, :3], poses[:, :3, 3] = roma.unitquat_to_rotmat(turns).numpy(), rows[:, :3]
    return files.cameras(poses @ BODY_FROM_CAMERA, files.pinhole(*CAMERA, centre_origin=False))


TARTANAIR = DataSet(
    name="tartanair",
    title="TartanAir V1, left camera",
    home="theairlab.org/tartanair-dataset",
    licences=TARTANAIR_LICENCES,
    layout=LAYOUT,
    reader=read_tartanair,
    notes="10 frames a second are nominal; depth of 1000 m and beyond, the sky, is invalid",
)
