"""NVIDIA Dynamic Scenes (Yoon et al. 2020): twelve static cameras, from which a moving one is simulated.

Frame t of the video is camera t mod 12's image at time t. Two protocols hold out different images:

- **NSFF** (Li et al. 2021, its evaluation.py): 24 times; at each the eleven cameras not in the video, 288 rows.
- **DynamicNeRF** (Gao et al. 2021; RoDynRF, MoSca): 12 times; the first camera at each of them, 480 × 270.

Both store cameras as LLFF's poses_bounds.npy: 3 × 5 numbers and two bounds per frame; axes down, right, backwards,
and a last column of height, width and focal length in pixels; the principal point is the image's middle.
The world's unit is COLMAP's.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from four_d.datasets import decode, files
from four_d.datasets.facts import DataSet, Licence
from four_d.datasets.sequence import Sequence, ViewTruth
from four_d.errors import UserError
from four_d.types import Cameras

CAMERAS = 12
RATE = 30.0
"""Frames per second; nominal, since the sets give none."""

NSFF_LAYOUT = (
    "Balloon1-2/dense/{images/*.png,poses_bounds.npy,mv_images/00000/cam01.jpg,mv_masks/00000/cam01.png} and so on"
)
NSFF = ("Balloon1-2", "Balloon2-2", "DynamicFace-2", "Jumping", "Playground", "Skating-2", "Truck-2", "Umbrella")
NSFF_FRAMES, NSFF_ROWS = 24, 288

FIRST_LAYOUT = "data/Balloon1/{images/*.png,poses_bounds.npy} and results/gt/Balloon1/v000_t000.png and so on"
FIRST = ("Balloon1", "Balloon2", "Jumping", "Playground", "Skating", "Truck", "Umbrella")

Size = tuple[int, int]


def read_nsff(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List eight scenes of 24 frames. The cameras of the first twelve frames repeat."""
    return [_nsff(root / name / "dense", name) for name in files.chosen(NSFF, only)]


def read_all(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List the scenes of `read_nsff` that are there."""
    present = [name for name in NSFF if (root / name / "dense").is_dir()] or list(NSFF)
    return read_nsff(root, tuple(files.chosen(present, only)))


def _nsff(directory: Path, name: str) -> Sequence:
    image_paths = _image_paths(directory / "images", NSFF_LAYOUT)[:NSFF_FRAMES]
    poses = files.file(directory / "poses_bounds.npy", NSFF_LAYOUT)
    held = [(t, c) for t in range(len(image_paths)) for c in range(CAMERAS) if c != t % CAMERAS]
    stems = [f"{t:05d}/cam{c + 1:02d}" for t, c in held]
    held_images = [files.file(directory / "mv_images" / f"{stem}.jpg", NSFF_LAYOUT) for stem in stems]
    masks = [files.file(directory / "mv_masks" / f"{stem}.png", NSFF_LAYOUT) for stem in stems]
    return Sequence(
        name=name,
        frames=len(image_paths),
        times=files.frame_times(len(image_paths), RATE),
        tasks=("views",),
        images=partial(_nsff_images, image_paths, image_paths[0]),
        cameras=partial(_nsff_cameras, poses, image_paths[0], list(range(len(image_paths)))),
        bounds=partial(_bounds, poses, len(image_paths)),
        views=partial(_nsff_views, poses, image_paths[0], held, held_images, masks),
    )


def _image_paths(directory: Path, layout: str) -> list[Path]:
    image_paths = [path for path in files.listed(directory, "*", layout) if files.is_image(path)]
    if not image_paths:
        raise files.missing(directory / "*.png", layout)
    return image_paths


def _nsff_size(first: Path) -> Size:
    """Size with 288 rows, and columns in proportion."""
    height, width = decode.image_size(first)
    return NSFF_ROWS, round(width * NSFF_ROWS / height)


def _nsff_images(paths: list[Path], first: Path) -> NDArray[np.uint8]:
    size = _nsff_size(first)
    return np.stack([shrink(decode.image(path), size) for path in paths])


def _nsff_cameras(poses: Path, first: Path, frames: list[int]) -> Cameras:
    return _scaled_cameras(poses, frames, decode.image_size(first)[0], _nsff_size(first))


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
    """List seven scenes of 12 frames; held out are the first camera's images at their times, the first frame included.

    ``root`` holds DynamicNeRF's unpacked data.zip and results.zip.
    """
    return [_first_camera(root, name) for name in files.chosen(FIRST, only)]


def _first_camera(root: Path, name: str) -> Sequence:
    directory = root / "data" / name
    image_paths = _image_paths(directory / "images", FIRST_LAYOUT)[:CAMERAS]
    poses = files.file(directory / "poses_bounds.npy", FIRST_LAYOUT)
    truth = root / "results" / "gt" / name
    held = [files.file(truth / f"v000_t{t:03d}.png", FIRST_LAYOUT) for t in range(len(image_paths))]
    times = files.frame_times(len(image_paths), RATE)
    return Sequence(
        name=name,
        frames=len(image_paths),
        times=times,
        tasks=("views",),
        images=partial(_first_images, image_paths, held[0]),
        cameras=partial(_first_cameras, poses, image_paths[0], held[0], list(range(len(image_paths)))),
        bounds=partial(_bounds, poses, len(image_paths)),
        views=partial(_first_views, poses, image_paths[0], held, times),
    )


def _first_images(paths: list[Path], reference: Path) -> NDArray[np.uint8]:
    return np.stack([shrink(decode.image(path), decode.image_size(reference)) for path in paths])


def _first_cameras(poses: Path, first: Path, reference: Path, frames: list[int]) -> Cameras:
    return _scaled_cameras(poses, frames, decode.image_size(first)[0], decode.image_size(reference))


def _first_views(poses: Path, first: Path, held: list[Path], times: tuple[float, ...]) -> ViewTruth:
    return ViewTruth(
        images=files.images(held),
        times=times,
        camera_ids=(0,) * len(held),
        cameras=_first_cameras(poses, first, held[0], [0] * len(held)),
    )


def shrink(image: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Resize to (rows, columns) by averaging the covered area."""
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BOX))


def _scaled_cameras(path: Path, frames: list[int], height: int, size: Size) -> Cameras:
    """Cameras of ``frames`` for images of ``size``; focal lengths are stored for images of ``height`` rows."""
    poses, focal = poses_bounds(path)
    if max(frames) >= len(poses):
        raise UserError(f"{path} has {len(poses)} poses, none for frame {max(frames)}; unpack the scene again")
    k = [
        files.pinhole(f * size[0] / height, f * size[0] / height, size[1] / 2, size[0] / 2, centre_origin=False)
        for f in focal[frames]
    ]
    return files.cameras(poses[frames], np.stack(k))


def _bounds(path: Path, frames: int) -> NDArray[np.float64]:
    """Depth bounds of the first ``frames`` frames."""
    bounds = _rows(path)[:frames, 15:]
    if len(bounds) < frames or (bounds[:, 0] <= 0).any() or (bounds[:, 1] <= bounds[:, 0]).any():
        raise UserError(f"{path} holds no bounds 0 < near < far for {frames} frames; unpack or download it again")
    return bounds


def poses_bounds(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read LLFF's cameras: world_from_camera f 4 4 with OpenCV's axes, and focal lengths f in pixels of full images."""
    rows = _rows(path)
    stored = rows[:, :15].reshape(-1, 3, 5)
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    down, right, backwards, centre = (stored[..., i] for i in range(4))
    poses[:, :3] = np.stack([right, down, -backwards, centre], axis=-1)
    return poses, stored[:, 2, 4]


def _rows(path: Path) -> NDArray[np.float64]:
    """Read the file's 17 numbers for each frame."""
    try:
        rows = np.load(path, allow_pickle=False).astype(np.float64)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is not a readable .npy ({error}); unpack or download it again") from error
    if rows.ndim != 2 or rows.shape[1] != 17 or not np.isfinite(rows).all():
        raise UserError(f"{path} holds {rows.shape}, not 17 finite numbers per frame; unpack or download it again")
    return rows


NVIDIA_DYNAMIC = DataSet(
    name="nvidia_dynamic",
    title="NVIDIA Dynamic Scenes, videos of NSFF's preparation",
    home="dynamic_scene_data_full.zip, github.com/zhengqili/Neural-Scene-Flow-Fields",
    licences=(Licence(text="code MIT; images: none stated (Yoon et al. 2020)"),),
    layout=NSFF_LAYOUT,
    reader=read_all,
    metric=False,
    notes="the video that moves from camera to camera, not the held-out images; COLMAP's unit, no depth",
)
