"""Spring, training split, left camera: frames of a film with depth from true disparity."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from four_d.datasets import decode, files
from four_d.datasets.cut3r import SPRING_LICENCES
from four_d.datasets.facts import DataSet
from four_d.datasets.sequence import Depth, PerFrame, Sequence
from four_d.errors import UserError
from four_d.ordering import in_order
from four_d.types import Cameras

LAYOUT = (
    "[train/]0001/{frame_left/frame_left_0001.png,disp1_left/disp1_left_0001.dsp5,cam_data/{intrinsics,extrinsics}.txt}"
)
RATE = 24.0
BASELINE = 0.065
"""Metres between the eyes."""


def read_spring(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List every sequence with cameras (the test split has none)."""
    base = root / "train" if (root / "train").is_dir() else root
    paths = in_order(files.folder(base, LAYOUT).glob("*/cam_data/intrinsics.txt"))
    if not paths:
        raise files.missing(base / "*" / "cam_data" / "intrinsics.txt", LAYOUT)
    return [_sequence(base / name) for name in files.chosen([path.parents[1].name for path in paths], only)]


def _sequence(directory: Path) -> Sequence:
    images = files.listed(directory / "frame_left", "frame_left_*.png", LAYOUT, key=files.number)
    maps = [
        files.file(directory / "disp1_left" / f"disp1_left_{path.stem.rpartition('_')[2]}.dsp5", LAYOUT)
        for path in images
    ]
    focal = decode.matrices(files.file(directory / "cam_data" / "intrinsics.txt", LAYOUT), 1, 4)[:, 0]
    if len(focal) != len(images):
        raise UserError(f"{directory / 'cam_data'} is of {len(focal)} frames, frame_left of {len(images)}; unpack both")
    return Sequence(
        name=directory.name,
        frames=len(images),
        times=files.frame_times(len(images), RATE),
        images=files.image_loader(images),
        cameras=partial(_cameras, directory / "cam_data" / "extrinsics.txt", focal),
        depth=PerFrame(_depths, list(zip(maps, focal[:, 0].tolist(), strict=True))),
        listing=(directory / "cam_data" / "intrinsics.txt",),
    )


def _cameras(path: Path, focal: NDArray[np.float64]) -> Cameras:
    """Read camera_from_world, 16 numbers a line; the principal point is the renderer's, from the corner."""
    poses = decode.matrices(path, 4, 4)
    if len(poses) != len(focal):
        raise UserError(f"{path} has {len(poses)} poses for {len(focal)} intrinsics; unpack it again")
    intrinsics = np.stack([files.pinhole(*row, centre_origin=False) for row in focal.tolist()])
    return files.cameras(files.inverted(poses), intrinsics)


def _depths(items: list[tuple[Path, float]]) -> Depth:
    """Read depth: focal length · baseline / disparity, at every second pixel of the files' doubled size."""
    maps = ((_disparity(path), focal) for path, focal in items)
    values = np.stack([focal * BASELINE / np.where(disparity > 0, disparity, np.inf) for disparity, focal in maps])
    valid = np.isfinite(values) & (values > 0)
    return np.where(valid, values, 0).astype(np.float32), valid


def _disparity(path: Path) -> NDArray[np.float32]:
    with decode.hdf5(path) as content:
        try:
            return np.asarray(content["disparity"][()], np.float32)[::2, ::2]
        except (OSError, KeyError, ValueError) as error:
            raise UserError(f"{path} has no readable disparity ({error}); unpack or download it again") from error


SPRING = DataSet(
    name="spring",
    title="Spring, training split, left camera",
    home="spring-benchmark.org",
    licences=SPRING_LICENCES,
    layout=LAYOUT,
    reader=read_spring,
    notes="depth from disparity, whose maps have twice the images' size",
)
