"""KITTI (video depth) and NYU Depth v2 (single frames)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from four_d.ordering import in_order
from four_d.protocols import decode, files
from four_d.protocols.sequence import Sequence

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


def _gathered(directory: Path) -> dict[str, list[Path]]:
    """Depth files of each drive in the tree that published preparation scripts make."""
    depth = files.folder(directory / "groundtruth_depth_gathered", KITTI_LAYOUT)
    names = [path.name for path in in_order(depth.iterdir()) if path.is_dir()]
    if not names:
        raise files.missing(depth / "*", KITTI_LAYOUT)
    return {name: files.listed(depth / name, "*.png", KITTI_LAYOUT) for name in names}


def _drives(root: Path) -> dict[str, list[Path]]:
    """Depth files of each drive in the set's own tree."""
    drives = in_order(files.folder(root / "val", KITTI_LAYOUT).glob("*/proj_depth/groundtruth/image_02"))
    if not drives:
        raise files.missing(root / "val" / "*" / "proj_depth" / "groundtruth" / "image_02", KITTI_LAYOUT)
    return {f"{path.parents[2].name}_02": files.listed(path, "*.png", KITTI_LAYOUT) for path in drives}


def _kitti(name: str, depth: list[Path]) -> Sequence:
    depth = depth[:KITTI_FRAMES]
    image_paths = [files.file(_kitti_image(path), KITTI_LAYOUT) for path in depth]
    first = files.number(depth[0])
    return Sequence(
        name=name,
        frames=len(depth),
        times=tuple((files.number(path) - first) / KITTI_FPS for path in depth),
        tasks=("video_depth", "depth"),
        images=partial(files.images, image_paths),
        depth=partial(files.depth, depth, partial(decode.depth_png, per_metre=KITTI_COUNTS)),
    )


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
        images=partial(files.images, [image_path]),
        depth=partial(files.depth, [depth], files.npy_or_millimetres),
    )
