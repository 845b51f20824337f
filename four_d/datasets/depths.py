"""KITTI (video depth) and NYU Depth v2 (single frames)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from four_d.datasets import decode, files
from four_d.datasets.facts import DataSet, Licence
from four_d.datasets.sequence import Sequence
from four_d.errors import UserError
from four_d.ordering import in_order
from four_d.types import Cameras

KITTI_LAYOUT = (
    "val/2011_09_26_drive_0002_sync/proj_depth/groundtruth/image_02/*.png with "
    "2011_09_26/2011_09_26_drive_0002_sync/image_02/data/*.png; or, gathered, "
    "depth_selection/val_selection_cropped/{groundtruth_depth_gathered,image_gathered}/2011_09_26_drive_0002_sync_02/"
)
KITTI_FRAMES = 110
KITTI_FPS = 10.0
KITTI_COUNTS = 256.0

NYU_LAYOUT = (
    "{nyu_images,nyu_depths}/NAME.{png,npy} (metres), "
    "or official_splits/test/SCENE/{rgb_00045.jpg,sync_depth_00045.png} (millimetres)"
)


def read_kitti(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List the first 110 frames with depth of each drive of the validation split, camera 02; drives by name."""
    gathered = root / "depth_selection" / "val_selection_cropped"
    pairs = _gathered(gathered) if (gathered / "image_gathered").is_dir() else _drives(root)
    return [_kitti(name, pairs[name]) for name in files.chosen(pairs, only)]


def read_all_kitti(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List all frames with depth of each drive of both splits, camera 02; with intrinsics where the calibration is."""
    splits = [split for split in ("train", "val") if (root / split).is_dir()] or ["val"]
    pairs = {name: depth for split in splits for name, depth in _drives(root, split).items()}
    return [_kitti(name, pairs[name], root) for name in files.chosen(pairs, only)]


def _gathered(directory: Path) -> dict[str, list[Path]]:
    """Depth files of each drive in the tree that published preparation scripts make."""
    depth = files.folder(directory / "groundtruth_depth_gathered", KITTI_LAYOUT)
    names = [path.name for path in in_order(depth.iterdir()) if path.is_dir()]
    if not names:
        raise files.missing(depth / "*", KITTI_LAYOUT)
    return {name: files.listed(depth / name, "*.png", KITTI_LAYOUT) for name in names}


def _drives(root: Path, split: str = "val") -> dict[str, list[Path]]:
    """Depth files of each drive in the set's own tree."""
    drives = in_order(files.folder(root / split, KITTI_LAYOUT).glob("*/proj_depth/groundtruth/image_02"))
    if not drives:
        raise files.missing(root / split / "*" / "proj_depth" / "groundtruth" / "image_02", KITTI_LAYOUT)
    return {f"{path.parents[2].name}_02": files.listed(path, "*.png", KITTI_LAYOUT) for path in drives}


def _kitti(name: str, depth: list[Path], calibrated: Path | None = None) -> Sequence:
    """List a drive; with the folder of the raw set, ``calibrated``, all its frames and their intrinsics."""
    depth = depth[:KITTI_FRAMES] if calibrated is None else depth
    calibration = None if calibrated is None else calibrated / name[:10] / "calib_cam_to_cam.txt"
    image_paths = [files.file(_kitti_image(path), KITTI_LAYOUT) for path in depth]
    first = files.number(depth[0])
    return Sequence(
        name=name,
        frames=len(depth),
        times=tuple((files.number(path) - first) / KITTI_FPS for path in depth),
        tasks=("video_depth", "depth"),
        images=files.image_loader(image_paths),
        cameras=partial(_kitti_cameras, calibration, len(depth)) if calibration and calibration.is_file() else None,
        depth=files.depth_loader(depth, partial(decode.depth_png, per_metre=KITTI_COUNTS)),
    )


def _kitti_cameras(calibration: Path, frames: int) -> Cameras:
    """Read the rectified camera 02: intrinsics, which count from pixel centres, and no poses."""
    for line in calibration.read_text(errors="replace").splitlines():
        key, _, values = line.partition(":")
        if key == "P_rect_02":
            p = np.array([float(value) for value in values.split()]).reshape(3, 4)
            intrinsics = files.pinhole(p[0, 0], p[1, 1], p[0, 2], p[1, 2], centre_origin=True)
            return files.cameras(np.full((frames, 4, 4), np.nan), intrinsics)
    raise UserError(f"{calibration} has no P_rect_02; unpack the calibration of its day again")


def _kitti_image(depth: Path) -> Path:
    """Image that belongs to a depth file, in either tree."""
    if depth.parents[1].name == "groundtruth_depth_gathered":
        return depth.parents[2] / "image_gathered" / depth.parent.name / depth.name
    drive = depth.parents[3].name
    return depth.parents[5] / "_".join(drive.split("_")[:3]) / drive / "image_02" / "data" / depth.name


def read_nyu(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List every image of the test split as a sequence of one frame."""
    val = root / "val" if (root / "val" / "nyu_images").is_dir() else root
    pairs = _prepared(val) if (val / "nyu_images").is_dir() else _splits(root)
    return [_nyu(name, *pairs[name]) for name in files.chosen(pairs, only)]


def _prepared(directory: Path) -> dict[str, tuple[Path, Path]]:
    image_paths = files.listed(directory / "nyu_images", "*.png", NYU_LAYOUT)
    return {p.stem: (p, files.file(directory / "nyu_depths" / f"{p.stem}.npy", NYU_LAYOUT)) for p in image_paths}


def _splits(root: Path) -> dict[str, tuple[Path, Path]]:
    inner = root / "official_splits" / "test"
    base = inner if inner.is_dir() else root
    image_paths = files.listed(base, "*/rgb_*.jpg", NYU_LAYOUT)
    return {
        f"{p.parent.name}/{p.stem}": (
            p,
            files.file(p.with_name(p.stem.replace("rgb", "sync_depth") + ".png"), NYU_LAYOUT),
        )
        for p in image_paths
    }


def _nyu(name: str, image_path: Path, depth: Path) -> Sequence:
    return Sequence(
        name=name,
        frames=1,
        times=(0.0,),
        tasks=("depth",),
        images=files.image_loader([image_path]),
        depth=files.depth_loader([depth], files.npy_or_millimetres),
    )


KITTI = DataSet(
    name="kitti",
    title="KITTI depth, camera 02",
    home="www.cvlibs.net/datasets/kitti: annotated depth (train, val), the raw drives and their days' calibration",
    licences=(Licence(text="CC BY-NC-SA 3.0"),),
    layout="{train,val}/DRIVE/proj_depth/groundtruth/image_02/*.png with "
    "DATE/{calib_cam_to_cam.txt,DRIVE/image_02/data/*.png}",
    reader=read_all_kitti,
    notes="sparse depth of the lidar, and intrinsics without poses",
)
NYU = DataSet(
    name="nyu",
    title="NYU Depth v2, test split",
    home="cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html, test split as exported by others",
    licences=(Licence(text="research"),),
    layout=NYU_LAYOUT,
    reader=read_nyu,
    depth_tolerance=0.05,
    notes="single frames, without cameras",
)
