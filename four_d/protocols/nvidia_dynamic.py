"""NVIDIA Dynamic Scenes (Yoon et al. 2020): twelve cameras that stand still, of which a moving one is made.

Frame t of the video is camera t mod 12's picture at time t. Two protocols hold out different pictures:

- **NSFF** (Li et al. 2021, its evaluation.py): 24 times; at each the eleven cameras that the video is not of, 288 rows.
- **DynamicNeRF** (Gao et al. 2021; RoDynRF, MoSca): 12 times; the first camera at each of them, 480 × 270.

Both lay cameras down as LLFF's poses_bounds.npy: 3 × 5 numbers and two bounds per frame; axes down, right, backwards,
and a last column of height, width and focal length in pixels; the principal point is the picture's middle.
The world's unit is COLMAP's.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from four_d.errors import UserError
from four_d.protocols import decode, files
from four_d.protocols.sequence import Sequence, ViewTruth
from four_d.types import Cameras

CAMERAS = 12
RATE = 30.0
"""Frames per second; nominal, the sets say none."""

NSFF_LAYOUT = (
    "Balloon1-2/dense/{images/*.png,poses_bounds.npy,mv_images/00000/cam01.jpg,mv_masks/00000/cam01.png} and so on"
)
NSFF = ("Balloon1-2", "Balloon2-2", "DynamicFace-2", "Jumping", "Playground", "Skating-2", "Truck-2", "Umbrella")
NSFF_FRAMES, NSFF_ROWS = 24, 288

FIRST_LAYOUT = "data/Balloon1/{images/*.png,poses_bounds.npy} and results/gt/Balloon1/v000_t000.png and so on"
FIRST = ("Balloon1", "Balloon2", "Jumping", "Playground", "Skating", "Truck", "Umbrella")

Size = tuple[int, int]


def read_nsff(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """Eight scenes of 24 frames. The cameras of the first twelve frames are those of all."""
    return [_nsff(root / name / "dense", name) for name in files.chosen(NSFF, only)]


def _nsff(where: Path, name: str) -> Sequence:
    pictures = _pictures(where / "images", NSFF_LAYOUT)[:NSFF_FRAMES]
    poses = files.file(where / "poses_bounds.npy", NSFF_LAYOUT)
    held = [(t, c) for t in range(len(pictures)) for c in range(CAMERAS) if c != t % CAMERAS]
    stems = [f"{t:05d}/cam{c + 1:02d}" for t, c in held]
    others = [files.file(where / "mv_images" / f"{stem}.jpg", NSFF_LAYOUT) for stem in stems]
    masks = [files.file(where / "mv_masks" / f"{stem}.png", NSFF_LAYOUT) for stem in stems]
    return Sequence(
        name=name,
        frames=len(pictures),
        times=files.frame_times(len(pictures), RATE),
        tasks=("views",),
        images=partial(_nsff_images, pictures, pictures[0]),
        cameras=partial(_nsff_cameras, poses, pictures[0], list(range(len(pictures)))),
        bounds=partial(_bounds, poses, len(pictures)),
        views=partial(_nsff_views, poses, pictures[0], held, others, masks),
    )


def _pictures(where: Path, layout: str) -> list[Path]:
    found = [path for path in files.listed(where, "*", layout) if path.suffix.lower() in files.PICTURES]
    if not found:
        raise files.missing(where / "*.png", layout)
    return found


def _nsff_size(first: Path) -> Size:
    """288 rows, and columns in proportion."""
    height, width = decode.image_size(first)
    return NSFF_ROWS, round(width * NSFF_ROWS / height)


def _nsff_images(paths: list[Path], first: Path) -> NDArray[np.uint8]:
    size = _nsff_size(first)
    return np.stack([shrink(decode.image(path), size) for path in paths])


def _nsff_cameras(poses: Path, first: Path, frames: list[int]) -> Cameras:
    return _cameras(poses, frames, decode.image_size(first)[0], _nsff_size(first))


def _nsff_views(
    poses: Path, first: Path, held: list[tuple[int, int]], paths: list[Path], masks: list[Path]
) -> ViewTruth:
    size = _nsff_size(first)
    moving = [Image.fromarray(decode.mask(path)).resize((size[1], size[0]), Image.Resampling.NEAREST) for path in masks]
    return ViewTruth(
        images=_nsff_images(paths, first),
        times=tuple(t / RATE for t, _ in held),
        camera_ids=tuple(camera for _, camera in held),
        cameras=_nsff_cameras(poses, first, [camera for _, camera in held]),
        dynamic=np.stack([np.asarray(mask) for mask in moving]),
    )


def read_first_camera(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """Seven scenes of 12 frames; held out are the first camera's pictures at their times, the first frame among them.

    ``root`` is where DynamicNeRF's data.zip and results.zip were unpacked.
    """
    return [_first_camera(root, name) for name in files.chosen(FIRST, only)]


def _first_camera(root: Path, name: str) -> Sequence:
    where = root / "data" / name
    pictures = _pictures(where / "images", FIRST_LAYOUT)[:CAMERAS]
    poses = files.file(where / "poses_bounds.npy", FIRST_LAYOUT)
    truth = root / "results" / "gt" / name
    held = [files.file(truth / f"v000_t{t:03d}.png", FIRST_LAYOUT) for t in range(len(pictures))]
    times = files.frame_times(len(pictures), RATE)
    return Sequence(
        name=name,
        frames=len(pictures),
        times=times,
        tasks=("views",),
        images=partial(_first_images, pictures, held[0]),
        cameras=partial(_first_cameras, poses, pictures[0], held[0], list(range(len(pictures)))),
        bounds=partial(_bounds, poses, len(pictures)),
        views=partial(_first_views, poses, pictures[0], held, times),
    )


def _first_images(paths: list[Path], like: Path) -> NDArray[np.uint8]:
    return np.stack([shrink(decode.image(path), decode.image_size(like)) for path in paths])


def _first_cameras(poses: Path, first: Path, like: Path, frames: list[int]) -> Cameras:
    return _cameras(poses, frames, decode.image_size(first)[0], decode.image_size(like))


def _first_views(poses: Path, first: Path, held: list[Path], times: tuple[float, ...]) -> ViewTruth:
    return ViewTruth(
        images=files.images(held),
        times=times,
        camera_ids=(0,) * len(held),
        cameras=_first_cameras(poses, first, held[0], [0] * len(held)),
    )


def shrink(picture: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """At (rows, columns), each the mean of what it covers."""
    if picture.shape[:2] == size:
        return picture
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BOX))


def _cameras(path: Path, frames: list[int], height: int, size: Size) -> Cameras:
    """Those of ``frames``; ``height`` is of the pictures that focal lengths are for, ``size`` of those."""
    poses, focal = poses_bounds(path)
    if max(frames) >= len(poses):
        raise UserError(f"{path} has {len(poses)} poses, none for frame {max(frames)}; unpack the scene again")
    k = [
        files.pinhole(f * size[0] / height, f * size[0] / height, size[1] / 2, size[0] / 2, centre_origin=False)
        for f in focal[frames]
    ]
    return files.cameras(poses[frames], np.stack(k))


def _bounds(path: Path, frames: int) -> NDArray[np.float64]:
    """Those of the first so many frames."""
    bounds = _rows(path)[:frames, 15:]
    if len(bounds) < frames or (bounds[:, 0] <= 0).any() or (bounds[:, 1] <= bounds[:, 0]).any():
        raise UserError(f"{path} holds no bounds 0 < near < far for {frames} frames; unpack or download it again")
    return bounds


def poses_bounds(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """LLFF's cameras: world_from_camera f 4 4 with OpenCV's axes, and focal lengths f in pixels of full pictures."""
    rows = _rows(path)
    stored = rows[:, :15].reshape(-1, 3, 5)
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    down, right, backwards, centre = (stored[..., i] for i in range(4))
    poses[:, :3] = np.stack([right, down, -backwards, centre], axis=-1)
    return poses, stored[:, 2, 4]


def _rows(path: Path) -> NDArray[np.float64]:
    """What the file holds: 17 numbers for each frame."""
    try:
        rows = np.load(path, allow_pickle=False).astype(np.float64)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is no readable .npy ({error}); unpack or download it again") from error
    if rows.ndim != 2 or rows.shape[1] != 17 or not np.isfinite(rows).all():
        raise UserError(f"{path} holds {rows.shape}, not 17 finite numbers per frame; unpack or download it again")
    return rows
