"""TUM RGB-D (dynamic sequences of freiburg3) and Bonn RGB-D Dynamic: folders of time-stamped images."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from four_d.datasets import decode, files
from four_d.datasets.facts import DataSet, Licence
from four_d.datasets.lens import Lens
from four_d.datasets.sequence import Depth, PerFrame, Sequence
from four_d.errors import UserError
from four_d.metrics.pose import read_tum
from four_d.ordering import in_order
from four_d.types import Cameras

LOGGER = logging.getLogger(__name__)

_Files = PerFrame[Path, Any]
WITHIN = 0.02
"""Maximum seconds between an image and its pose."""
COUNTS = 5000.0
"""PNG counts per metre, in both sets."""

TUM_LAYOUT = "rgbd_dataset_freiburg3_walking_xyz/{rgb.txt,groundtruth.txt,rgb/} and so on"
TUM = tuple(
    f"rgbd_dataset_freiburg3_{who}_{camera}"
    for who in ("sitting", "walking")
    for camera in ("halfsphere", "rpy", "static", "xyz")
)
TUM_STRIDE, TUM_FRAMES = 3, 90
FREIBURG3 = (535.4, 539.2, 320.1, 247.6)
"""fx fy cx cy as calibrated; OpenCV counts from pixel centres."""

BONN_LAYOUT = "rgbd_bonn_balloon2/{rgb/,depth/,groundtruth.txt} and so on"
BONN = ("balloon2", "crowd2", "crowd3", "person_tracking2", "synchronous")
BONN_FRAMES = slice(30, 140)
BONN_CAMERA = (542.822841, 542.576870, 315.593520, 237.756098)
"""fx fy cx cy as calibrated; OpenCV counts from pixel centres. The images are not rectified."""
BONN_DISTORTION = (0.039903, -0.099343, -0.000730, -0.000144, 0.0)
"""k1 k2 p1 p2 k3 as calibrated, of the images and of the depth, which is registered to them."""
_AXES = np.array([[-1.0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
_MARKERS = np.array(
    [
        [1.0157, 0.1828, -0.2389, 0.0113],
        [0.0009, -0.8431, -0.6413, -0.0098],
        [-0.3009, 0.6147, -0.8085, 0.0111],
        [0.0, 0.0, 0.0, 1.0],
    ]
)


def read_tum_dynamics(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List eight sequences: images with a pose within 0.02 s, then every third, at most 90."""
    return [_tum(root / name) for name in files.chosen(TUM, only)]


def read_all_tum(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List every sequence of freiburg3 with all images that have a pose and depth within 0.02 s.

    Those of freiburg1 and freiburg2 are refused: their images are distorted.
    """
    present = [path.parent.name for path in in_order(root.glob("*/rgb.txt"))]
    if not present:
        raise files.missing(root / "*" / "rgb.txt", TUM_LAYOUT)
    chosen = files.chosen(present, only)
    if wrong := [name for name in chosen if "freiburg3" not in name]:
        raise UserError(
            f"{root / wrong[0]} is not of freiburg3, so its images are distorted; undistort them, or move the sequence "
            "away"
        )
    return [_tum(root / name, stride=1, most=None, deep=True) for name in chosen]


def _tum(directory: Path, *, stride: int = TUM_STRIDE, most: int | None = TUM_FRAMES, deep: bool = False) -> Sequence:
    """List every ``stride``-th image with a pose (``deep``: and with depth), at most ``most``."""
    files.folder(directory, TUM_LAYOUT)
    lists = [directory / name for name in ("rgb.txt", "groundtruth.txt", *(("depth.txt",) if deep else ()))]
    times, names = decode.stamped(files.file(directory / "rgb.txt", TUM_LAYOUT))
    pose_times, poses = read_tum(files.file(directory / "groundtruth.txt", TUM_LAYOUT))
    frames, matched = decode.associate(times, pose_times.numpy(), WITHIN)
    maps: list[Path] = []
    if deep and not (directory / "depth.txt").is_file():
        LOGGER.warning(f"{directory} has no depth.txt: only images and poses are read")
    elif deep:
        depth_times, depth_names = decode.stamped(directory / "depth.txt")
        near, at = decode.associate(times[frames], depth_times, WITHIN)
        frames, matched = frames[near], matched[near]
        maps = [directory / depth_names[i] for i in at]
    frames, matched = (index[::stride][:most] for index in (frames, matched))
    if not len(frames):
        raise UserError(f"no image of {directory / 'rgb.txt'} has a pose within {WITHIN} s; unpack the sequence again")
    paths = [directory / names[i] for i in frames]
    return Sequence(
        name=directory.name,
        frames=len(paths),
        times=tuple((times[frames] - times[frames[0]]).tolist()),
        tasks=("pose",),
        images=files.image_loader(paths),
        cameras=partial(files.cameras, poses.numpy()[matched], files.pinhole(*FREIBURG3, centre_origin=True)),
        depth=files.depth_loader(maps[::stride][:most], _counted) if maps else None,
        listing=tuple(path for path in lists if path.is_file()),
    )


def read_all_bonn(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List all images of every sequence that is there, undistorted, with depth and poses nearest in time."""
    base = _bonn_base(root)
    present = [path.name.removeprefix("rgbd_bonn_") for path in in_order(base.glob("rgbd_bonn_*")) if path.is_dir()]
    if not present:
        raise files.missing(base / "rgbd_bonn_*", BONN_LAYOUT)
    chosen = files.chosen(present, only)
    return [_straightened(_bonn(base / f"rgbd_bonn_{name}", name, by_time=True, frames=slice(None))) for name in chosen]


def _straightened(sequence: Sequence) -> Sequence:
    """Sequence without the lens's distortion in images and depth; what no ray reached is black, and has no depth."""
    images, depth = cast(_Files, sequence.images), cast(_Files, sequence.depth)
    return replace(
        sequence, images=PerFrame(_straight_images, images.items), depth=PerFrame(_straight_depth, depth.items)
    )


def _bonn_lens() -> Lens:
    return Lens.of(files.pinhole(*BONN_CAMERA, centre_origin=False), BONN_DISTORTION, "Bonn's camera")


def _straight_images(paths: list[Path]) -> NDArray[np.uint8]:
    return _bonn_lens().undistort_images(list(files.images(paths)))


def _straight_depth(paths: list[Path]) -> Depth:
    values, valid = files.depth(paths, _counted)
    if valid.shape[1:] != (1, 1):  # which stands for no depth at all
        values, valid = _bonn_lens().undistort_maps(values), _bonn_lens().undistort_maps(valid)
    return values, valid


def _bonn_base(root: Path) -> Path:
    inner = root / "rgbd_bonn_dataset"
    return inner if inner.is_dir() else root


def read_bonn(root: Path, only: tuple[str, ...] | None = None, *, by_time: bool = False) -> list[Sequence]:
    """List five sequences, frames 30 to 139 of the images in the order of their names.

    Args:
        root: holds ``rgbd_bonn_balloon2`` …, or ``rgbd_bonn_dataset`` that holds them.
        only: names to list, as ``balloon2``; None = all.
        by_time: False: depth files and lines of groundtruth.txt 30 to 139 whatever their times, as published code
            cuts them; poses are the tracked body's. True: depth and pose nearest in time (within 0.02 s; else the
            frame's is unknown), poses those of the camera by the set's calibration of the markers.

    """
    base = _bonn_base(root)
    return [_bonn(base / f"rgbd_bonn_{name}", name, by_time=by_time) for name in files.chosen(BONN, only)]


def _bonn(directory: Path, name: str, *, by_time: bool, frames: slice = BONN_FRAMES) -> Sequence:
    image_paths = files.listed(directory / "rgb", "*.png", BONN_LAYOUT)[frames]
    depth = files.listed(directory / "depth", "*.png", BONN_LAYOUT)
    truth = files.file(directory / "groundtruth.txt", BONN_LAYOUT)
    if not image_paths:
        raise UserError(f"{directory / 'rgb'} has no frame {BONN_FRAMES.start}; unpack the sequence again")
    times = _stamps(image_paths)
    if not by_time:
        depth = depth[BONN_FRAMES]
        files.same_length(image_paths, depth)
    return Sequence(
        name=name,
        frames=len(image_paths),
        times=tuple((times - times[0]).tolist()),
        tasks=("pose", "video_depth", "depth"),
        images=files.image_loader(image_paths),
        cameras=partial(_bonn_matched_cameras, truth, times) if by_time else partial(_bonn_cameras, truth, len(times)),
        depth=files.depth_loader(_bonn_matched_depth(depth, times) if by_time else depth, _counted),
    )


def _counted(path: Path) -> NDArray[np.float32]:
    return decode.depth_png(path, COUNTS)


def _stamps(paths: list[Path]) -> NDArray[np.float64]:
    try:
        return np.array([float(path.stem) for path in paths])
    except ValueError as error:
        raise UserError(
            f"{paths[0].parent} has a file whose name is not a time ({error}); unpack the sequence again"
        ) from error


def _bonn_cameras(truth: Path, frames: int) -> Cameras:
    _, poses = read_tum(truth)
    poses = poses.numpy()[BONN_FRAMES][:frames]
    if len(poses) < frames:
        raise UserError(f"{truth} has fewer than {BONN_FRAMES.start + frames} poses; unpack the sequence again")
    return files.cameras(poses, files.pinhole(*BONN_CAMERA, centre_origin=True))


def _bonn_matched_cameras(truth: Path, times: NDArray[np.float64]) -> Cameras:
    pose_times, poses = read_tum(truth)
    frames, matched = decode.associate(times, pose_times.numpy(), WITHIN)
    chosen = np.full((len(times), 4, 4), np.nan)
    chosen[frames] = poses.numpy()[matched] @ body_from_camera()
    return files.cameras(chosen, files.pinhole(*BONN_CAMERA, centre_origin=True))


def body_from_camera() -> NDArray[np.float64]:
    """Pose 4 4 of the camera (OpenCV axes) in Bonn's tracked body: the published matrix with its nearest rotation.

    The set's page maps camera points to its laser scan by axes · pose · axes · markers; the factors left of the pose
    only choose the world. ``markers`` was fitted with a scale (1.06), which a pose cannot have.
    """
    pose = _AXES @ _MARKERS
    left, _, right = np.linalg.svd(pose[:3, :3])
    pose[:3, :3] = left @ right
    return pose


def _bonn_matched_depth(paths: list[Path], times: NDArray[np.float64]) -> list[Path]:
    """Depth file of each image: the nearest in time, or a name without a file."""
    frames, matched = decode.associate(times, _stamps(paths), WITHIN)
    if not len(frames):
        raise UserError(f"{paths[0].parent} has no depth within {WITHIN} s of an image; unpack the sequence again")
    pairs = dict(zip(frames.tolist(), matched.tolist(), strict=True))
    return [paths[pairs[i]] if i in pairs else files.NO_FILE for i in range(len(times))]


TUM_RGBD = DataSet(
    name="tum",
    title="TUM RGB-D, freiburg3",
    home="cvg.cit.tum.de/data/datasets/rgbd-dataset, freiburg3 sitting and walking",
    licences=(Licence(text="CC BY 4.0"),),
    layout=TUM_LAYOUT,
    reader=read_all_tum,
    depth_tolerance=0.05,
    notes="images with a pose and depth within 0.02 s; freiburg1 and freiburg2 are distorted and refused",
)
BONN_DYNAMIC = DataSet(
    name="bonn",
    title="Bonn RGB-D Dynamic",
    home="www.ipb.uni-bonn.de/data/rgbd-dynamic-dataset",
    licences=(Licence(text="see there"),),
    layout=BONN_LAYOUT,
    reader=read_all_bonn,
    depth_tolerance=0.05,
    notes="matched in time as bonn_matched; images and depth are undistorted",
)
