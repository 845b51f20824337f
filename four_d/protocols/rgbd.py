"""TUM RGB-D (dynamic sequences of freiburg3) and Bonn RGB-D Dynamic: folders of time-stamped images."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from four_d.errors import UserError
from four_d.metrics.pose import read_tum
from four_d.protocols import decode, files
from four_d.protocols.sequence import Depth, Sequence
from four_d.types import Cameras

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
"""fx fy cx cy as calibrated; OpenCV counts from pixel centres. The images are not rectified (k1 = 0.04)."""
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


def _tum(directory: Path) -> Sequence:
    files.folder(directory, TUM_LAYOUT)
    times, names = decode.stamped(files.file(directory / "rgb.txt", TUM_LAYOUT))
    pose_times, poses = read_tum(files.file(directory / "groundtruth.txt", TUM_LAYOUT))
    frames, matched = decode.associate(times, pose_times.numpy(), WITHIN)
    frames, matched = (index[::TUM_STRIDE][:TUM_FRAMES] for index in (frames, matched))
    if not len(frames):
        raise UserError(f"no image of {directory / 'rgb.txt'} has a pose within {WITHIN} s; unpack the sequence again")
    paths = [directory / names[i] for i in frames]
    return Sequence(
        name=directory.name,
        frames=len(paths),
        times=tuple((times[frames] - times[frames[0]]).tolist()),
        tasks=("pose",),
        images=partial(files.images, paths),
        cameras=partial(files.cameras, poses.numpy()[matched], files.pinhole(*FREIBURG3, centre_origin=True)),
    )


def read_bonn(root: Path, only: tuple[str, ...] | None = None, *, by_time: bool = False) -> list[Sequence]:
    """List five sequences, frames 30 to 139 of the images in the order of their names.

    Args:
        root: holds ``rgbd_bonn_balloon2`` …, or ``rgbd_bonn_dataset`` that holds them.
        only: names to list, as ``balloon2``; None = all.
        by_time: False: depth files and lines of groundtruth.txt 30 to 139 whatever their times, as published code
            cuts them; poses are the tracked body's. True: depth and pose nearest in time (within 0.02 s; else the
            frame's is unknown), poses those of the camera by the set's calibration of the markers.

    """
    inner = root / "rgbd_bonn_dataset"
    base = inner if inner.is_dir() else root
    return [_bonn(base / f"rgbd_bonn_{name}", name, by_time) for name in files.chosen(BONN, only)]


def _bonn(directory: Path, name: str, by_time: bool) -> Sequence:
    image_paths = files.listed(directory / "rgb", "*.png", BONN_LAYOUT)[BONN_FRAMES]
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
        images=partial(files.images, image_paths),
        cameras=partial(_bonn_matched_cameras, truth, times) if by_time else partial(_bonn_cameras, truth, len(times)),
        depth=partial(_bonn_matched_depth, depth, times) if by_time else partial(files.depth, depth, _bonn_depth),
    )


def _bonn_depth(path: Path) -> NDArray[np.float32]:
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


def _bonn_matched_depth(paths: list[Path], times: NDArray[np.float64]) -> Depth:
    frames, matched = decode.associate(times, _stamps(paths), WITHIN)
    if not len(frames):
        raise UserError(f"{paths[0].parent} has no depth within {WITHIN} s of an image; unpack the sequence again")
    matched_values, matched_valid = files.depth([paths[i] for i in matched], _bonn_depth)
    values = np.zeros((len(times), *matched_values.shape[1:]), np.float32)
    valid = np.zeros(values.shape, bool)
    values[frames], valid[frames] = matched_values, matched_valid
    return values, valid
