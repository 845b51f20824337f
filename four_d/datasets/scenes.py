"""Static rooms: ScanNet (pose), 7-Scenes and Neural RGB-D (point maps)."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from four_d.datasets import decode, files
from four_d.datasets.facts import DataSet, Licence
from four_d.datasets.sequence import Depth, PerFrame, Sequence, Task
from four_d.errors import UserError
from four_d.ordering import in_order
from four_d.types import Cameras

N = TypeVar("N", bound=np.generic)
LOGGER = logging.getLogger(__name__)

SCANNET_LAYOUT = "scene0707_00/{color/0.jpg,pose/0.txt,intrinsic/intrinsic_color.txt} and so on (unpacked .sens)"
SCANNET_DEPTH_LAYOUT = "scene0707_00/{color/0.jpg,depth/0.png} and so on (unpacked .sens)"
SCANNET_BORDER = (8 / 480, 11 / 640)
"""Fractions of rows and columns, on each side, without depth or colour."""
SCANNET_STRIDE, SCANNET_FRAMES, SCANNET_FPS = 3, 90, 30.0

SEVEN_SCENES_LAYOUT = "chess/{TestSplit.txt,seq-03/frame-000000.{color.png,depth.proj.png,pose.txt}} and so on"
SEVEN_SCENES_CAMERA = (525.0, 525.0, 320.0, 240.0)
"""fx fy cx cy that published evaluations take; nominal, with the image's middle as centre, so corner origin."""

NRGBD_LAYOUT = "breakfast_room/{images/img0.png,depth/depth0.png,poses.txt} and so on"
NRGBD_CAMERA = (554.2562584220408, 554.2562584220408, 320.0, 240.0)
"""Intrinsics of the renderer, corner origin."""

FARTHEST = 10.0
"""Largest valid depth (m) in both sets."""
_POINTS: tuple[Task, ...] = ("points",)


def read_all_scannet(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List every scene with all its frames, and depth where it is exported (it has the colour camera's view)."""
    return read_scannet(root, only, frames=slice(None))


def read_scannet(
    root: Path,
    only: tuple[str, ...] | None = None,
    *,
    frames: slice = slice(0, SCANNET_STRIDE * SCANNET_FRAMES, SCANNET_STRIDE),
) -> list[Sequence]:
    """List every scene in the folder: frames 0, 3, …, 267. Frames with a lost pose (-inf) have unknown cameras."""
    scenes = [path.name for path in in_order(files.folder(root, SCANNET_LAYOUT).glob("scene*")) if path.is_dir()]
    if not scenes:
        raise files.missing(root / "scene*", SCANNET_LAYOUT)
    return [_scannet(root / name, frames) for name in files.chosen(scenes, only)]


def _scannet(directory: Path, frames: slice) -> Sequence:
    image_paths = files.listed(directory / "color", "*.jpg", SCANNET_LAYOUT, key=files.number)
    image_paths = image_paths[frames]
    poses = [files.file(directory / "pose" / f"{path.stem}.txt", SCANNET_LAYOUT) for path in image_paths]
    maps = files.partly(directory / "depth", [directory / "depth" / f"{path.stem}.png" for path in image_paths])
    intrinsics = files.file(directory / "intrinsic" / "intrinsic_color.txt", SCANNET_LAYOUT)
    return Sequence(
        name=directory.name,
        frames=len(image_paths),
        times=files.numbered_times([files.number(path) for path in image_paths], SCANNET_FPS),
        tasks=("pose",),
        images=files.image_loader(image_paths),
        cameras=PerFrame(partial(_scannet_cameras, intrinsics=intrinsics), poses),
        depth=files.depth_loader(maps, files.millimetres()) if maps else None,
    )


def read_scannet_depth(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List the frames of `read_scannet` with their depth, both without the border that published code cuts off."""
    scenes = [path for path in in_order(files.folder(root, SCANNET_DEPTH_LAYOUT).glob("scene*")) if path.is_dir()]
    if not scenes:
        raise files.missing(root / "scene*", SCANNET_DEPTH_LAYOUT)
    places = {path.name: path for path in scenes}
    return [_scannet_depth(places[name]) for name in files.chosen(places, only)]


def _scannet_depth(directory: Path) -> Sequence:
    every = files.listed(directory / "color", "*.jpg", SCANNET_DEPTH_LAYOUT, key=files.number)
    paths = every[: SCANNET_STRIDE * SCANNET_FRAMES : SCANNET_STRIDE]
    maps = [files.file(directory / "depth" / f"{path.stem}.png", SCANNET_DEPTH_LAYOUT) for path in paths]
    return Sequence(
        name=directory.name,
        frames=len(paths),
        times=files.numbered_times([files.number(path) for path in paths], SCANNET_FPS),
        tasks=("video_depth",),
        images=PerFrame(lambda chosen: _without_border(files.images(chosen)), paths),
        depth=PerFrame(_inner_depth, maps),
    )


def _inner_depth(paths: list[Path]) -> Depth:
    values, valid = files.depth(paths, files.millimetres())
    return _without_border(values), _without_border(valid)


def _without_border(maps: NDArray[N]) -> NDArray[N]:
    """Cut off the same part of images and depth, whose sizes differ: `SCANNET_BORDER` of a depth map."""
    height, width = maps.shape[1:3]
    top, left = (int(share * side) for share, side in zip(SCANNET_BORDER, (height, width), strict=True))
    return np.ascontiguousarray(maps[:, top : height - top, left : width - left])


def _scannet_cameras(poses: list[Path], intrinsics: Path) -> Cameras:
    """Read cameras; the calibration is OpenCV's, so its principal point counts from pixel centres."""
    k = decode.matrix(intrinsics, 4, 4)[:3, :3].copy()
    k[:2, 2] += 0.5
    return files.cameras(np.stack([decode.matrix(path, 4, 4) for path in poses]), k)


def read_all_seven_scenes(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List all frames of both splits, with registered depth where every scene has it."""
    registered = next(root.glob("*/seq-*/*.depth.proj.png"), None) is not None
    if not registered:
        LOGGER.warning(
            f"{root} has no depth.proj.png, so depth is depth.png as downloaded, of the depth camera: some centimetres "
            "off the colour images; the scripts of relocalisation projects register it"
        )
    return read_seven_scenes(root, only, every=1, registered=registered, splits="*Split.txt")


def read_all_nrgbd(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List all frames of every scene."""
    return read_nrgbd(root, only, every=1)


def read_seven_scenes(
    root: Path,
    only: tuple[str, ...] | None = None,
    *,
    every: int = 200,
    registered: bool = True,
    splits: str = "TestSplit.txt",
    tasks: tuple[Task, ...] = _POINTS,
) -> list[Sequence]:
    """List the test sequences of every scene in the folder, a key frame every ``every``; named ``chess/seq-03``.

    Args:
        root: holds the scenes' folders.
        only: names to list; None = all.
        every: frames from one key frame to the next.
        registered: read ``depth.proj.png``, depth registered to the colour camera (made by scripts of several
            relocalisation projects), as published code does. False: ``depth.png`` as downloaded, which is another
            camera's; figures on it are not comparable.
        splits: names of the lists of sequences.
        tasks: tasks in which the sequences count.

    """
    lists = files.listed(root, f"*/{splits}", SEVEN_SCENES_LAYOUT)
    names = [f"{path.parent.name}/{name}" for path in lists for name in _split(path)]
    depth = "depth.proj.png" if registered else "depth.png"
    return [_seven_scenes(root / name, name, every, depth, tasks) for name in files.chosen(names, only)]


def _split(path: Path) -> list[str]:
    """Read a split: ``sequence3`` in a line → ``seq-03``."""
    try:
        lines = path.read_text().split()
        return [f"seq-{int(''.join(filter(str.isdigit, line))):02d}" for line in lines]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a list like 'sequence3' ({error}); unpack it again") from error


def _seven_scenes(directory: Path, name: str, every: int, depth: str, tasks: tuple[Task, ...]) -> Sequence:
    image_paths = files.listed(directory, "frame-*.color.png", SEVEN_SCENES_LAYOUT, key=files.number)[::every]
    stems = [path.name.removesuffix(".color.png") for path in image_paths]
    layout = SEVEN_SCENES_LAYOUT + "; with depth.png alone use protocol=seven_scenes_raw"
    maps = [files.file(directory / f"{stem}.{depth}", layout) for stem in stems]
    poses = [files.file(directory / f"{stem}.pose.txt", SEVEN_SCENES_LAYOUT) for stem in stems]
    return Sequence(
        name=name,
        frames=len(image_paths),
        times=files.numbered_times([files.number(path) for path in image_paths], 30.0),
        tasks=tasks,
        images=files.image_loader(image_paths),
        cameras=PerFrame(_seven_scenes_cameras, poses),
        depth=files.depth_loader(maps, files.millimetres(), FARTHEST),
    )


def _seven_scenes_cameras(poses: list[Path]) -> Cameras:
    k = files.pinhole(*SEVEN_SCENES_CAMERA, centre_origin=False)
    return files.cameras(np.stack([decode.matrix(path, 4, 4) for path in poses]), k)


def read_nrgbd(root: Path, only: tuple[str, ...] | None = None, *, every: int = 500) -> list[Sequence]:
    """List every scene in the folder, a key frame every ``every``, or every half of its frames if that is less."""
    scenes = files.listed(root, "*/poses.txt", NRGBD_LAYOUT)
    names = [path.parent.name for path in scenes]
    return [_nrgbd(root / name, every) for name in files.chosen(names, only)]


def _nrgbd(directory: Path, every: int) -> Sequence:
    image_paths = files.listed(directory / "images", "img*.png", NRGBD_LAYOUT, key=files.number)
    stride = max(1, min(every, len(image_paths) // 2))
    image_paths = image_paths[::stride]
    numbers = [files.number(path) for path in image_paths]
    maps = [files.file(directory / "depth" / f"depth{n}.png", NRGBD_LAYOUT) for n in numbers]
    return Sequence(
        name=directory.name,
        frames=len(image_paths),
        times=files.numbered_times(numbers, 30.0),
        tasks=_POINTS,
        images=files.image_loader(image_paths),
        cameras=partial(_nrgbd_cameras, directory / "poses.txt", numbers),
        depth=files.depth_loader(maps, files.millimetres(), FARTHEST),
    )


def _nrgbd_cameras(path: Path, numbers: list[int]) -> Cameras:
    """Read poses.txt: world_from_camera with OpenGL's axes, four lines a frame; nan where lost."""
    poses = decode.matrices(path, 4, 4)
    if len(poses) <= max(numbers):
        raise UserError(f"{path} has {len(poses)} poses, none for img{max(numbers)}; unpack the scene again")
    k = files.pinhole(*NRGBD_CAMERA, centre_origin=False)
    return files.cameras(poses[numbers] @ files.OPENGL, k)


SCANNET = DataSet(
    name="scannet",
    title="ScanNet",
    home="www.scan-net.org (agreement), `.sens` unpacked by its own reader",
    licences=(Licence(text="ScanNet terms, non-commercial"),),
    layout=SCANNET_LAYOUT + "; depth/0.png where it is exported",
    reader=read_all_scannet,
    depth_tolerance=0.05,
    notes="frames whose pose was lost are left out",
)
SEVEN_SCENES = DataSet(
    name="seven_scenes",
    title="7-Scenes",
    home="microsoft.com/en-us/research/project/rgb-d-dataset-7-scenes; registered depth by the scripts of "
    "relocalisation projects",
    licences=(Licence(text="Microsoft research licence, non-commercial"),),
    layout=SEVEN_SCENES_LAYOUT,
    reader=read_all_seven_scenes,
    depth_tolerance=0.05,
    notes="without depth.proj.png the depth as downloaded, which is another camera's: some centimetres off",
)
NRGBD = DataSet(
    name="nrgbd",
    title="Neural RGB-D",
    home="github.com/dazinovic/neural-rgbd-surface-reconstruction",
    licences=(Licence(text="see there"),),
    layout=NRGBD_LAYOUT,
    reader=read_all_nrgbd,
    notes="frames whose pose was lost are left out",
)
