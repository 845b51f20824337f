"""Real excerpts of ``../shared/samples`` as clips of shards, by the conventions that were checked there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from four_d import geometry
from four_d.data.contract import ClipInfo, RawClip
from four_d.types import Cameras, Clip
from four_d.video.footage import footage

SAMPLES = Path(__file__).parents[3] / "shared" / "samples"
HALF = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
"""Between a principal point that counts from the first pixel's centre and one from its corner."""
FLIP = np.diag([1.0, -1, -1, 1])
ARIA = SAMPLES / "aria_digital_twin" / "pinhole"
STIRRED = {"WoodenFork": 0.021, "WoodenSpoon": 0.022}
"""Moving things of `stirring` → metres between its two times, 33 ms apart; everything else is still."""


def _images(paths: list[Path], size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    opened = (Image.open(path).convert("RGB") for path in paths)
    return np.stack([np.asarray(i if size is None else i.resize(size, Image.Resampling.LANCZOS)) for i in opened])


def _millimetres(paths: list[Path]) -> NDArray[np.float32]:
    return np.stack([np.asarray(Image.open(path)).astype(np.float32) * np.float32(1e-3) for path in paths])


def _clip(
    name: str,
    images: NDArray[np.uint8],
    *,
    poses: NDArray[np.float64] | None = None,
    intrinsics: NDArray[np.float64] | None = None,
    depth: NDArray[np.float32] | None = None,
    camera_ids: list[int] | None = None,
    times: list[float] | None = None,
    depth_unit: float = 1e-3,
    depth_tolerance: float | None = None,
    metric: bool = True,
) -> RawClip:
    count, height, width = images.shape[:3]
    info = ClipInfo(
        source=name,
        licence="see SOURCE.md",
        metric=metric,
        width=width,
        height=height,
        times=times or [i / 30 for i in range(count)],
        camera_ids=camera_ids or [0] * count,
        depth_unit=None if depth is None else depth_unit,
        depth_tolerance=depth_tolerance,
    )
    if intrinsics is not None:
        intrinsics = np.broadcast_to(intrinsics, (count, 3, 3)).copy()
    return RawClip(key=name, info=info, images=images, world_from_camera=poses, intrinsics=intrinsics, depth=depth)


def hololens() -> RawClip:
    """Twelve frames of a walk through an office, with a depth sensor; nothing moves."""
    root = SAMPLES / "hololens_rgbd"
    poses = np.loadtxt(root / "poses.txt").reshape(-1, 4, 4)
    return _clip(
        "hololens",
        _images(sorted((root / "images").iterdir())),
        poses=poses,
        intrinsics=np.loadtxt(root / "K.txt") + HALF,
        depth=_millimetres(sorted((root / "depth").iterdir())),
        depth_tolerance=0.05,
    )


def threedmatch() -> RawClip:
    """Four frames of a Kinect in a room, of which two are neighbours; its poses drift."""
    root = SAMPLES / "rgbd_3dmatch"
    names = [path.name.split(".")[0] for path in sorted((root / "seq-01").glob("*.color.png"))]
    paths = {part: [root / "seq-01" / f"{name}.{part}" for name in names] for part in ("color.png", "depth.png")}
    return _clip(
        "threedmatch",
        _images(paths["color.png"]),
        poses=np.stack([np.loadtxt(root / "seq-01" / f"{name}.pose.txt") for name in names]),
        intrinsics=np.loadtxt(root / "camera-intrinsics.txt") + HALF,
        depth=_millimetres(paths["depth.png"]),
        times=[int(name[6:]) / 30 for name in names],
        depth_tolerance=0.1,
    )


def aria(cameras: tuple[str, ...] = ("slam_left", "slam_right")) -> RawClip:
    """Wide cameras on a head at two times, with the depth of a model of the room; hands and cutlery move."""
    meta = json.loads((ARIA / "meta.json").read_text())
    frames = [frame for name in cameras for frame in meta["frames"] if frame["camera"] == name]
    stems = [Path(frame["image"]).stem for frame in frames]
    return _clip(
        "aria-" + "-".join(cameras),
        _images([ARIA / frame["image"] for frame in frames]),
        poses=np.array([frame["c2w"] for frame in frames]),
        intrinsics=np.array([meta["cameras"][frame["camera"]]["K"] for frame in frames]) + HALF,
        depth=_millimetres([ARIA / f"{stem}_depth.png" for stem in stems]),
        camera_ids=[cameras.index(frame["camera"]) for frame in frames],
        times=[int(stem[:2]) / 30 for stem in stems],
        depth_tolerance=0.05,
    )


def aria_colour() -> RawClip:
    """The colour camera of `aria` at its two times."""
    return aria(("rgb",))


@dataclass(frozen=True, kw_only=True)
class Recording:
    """The colour camera's two frames with exact motion, in the first one's camera coordinates, metres, float64."""

    targets: Clip
    points: Tensor
    """f h w 3"""
    instances: Tensor
    """f h w: index into ``names``."""
    names: dict[int, str]

    @property
    def stirred(self) -> Tensor:
        """f h w: pixels of fork and spoon with depth."""
        chosen = [index for index, name in self.names.items() if name in STIRRED]
        assert self.targets.valid is not None
        return torch.isin(self.instances, torch.tensor(chosen)) & self.targets.valid


def stirring() -> Recording:
    """A person stirs with a fork and a spoon of measured poses; a rigid object's motion is truth for all its pixels."""
    meta = json.loads((ARIA / "meta.json").read_text())
    frames = [frame for frame in meta["frames"] if frame["camera"] == "rgb"]
    intrinsics = torch.tensor(meta["cameras"]["rgb"]["K"], dtype=torch.float64) + torch.from_numpy(HALF)
    stored = torch.tensor([frame["c2w"] for frame in frames], dtype=torch.float64)
    first_from_world = geometry.invert_pose(stored[0])
    cameras = Cameras(world_from_camera=first_from_world @ stored, intrinsics=intrinsics.expand(2, 3, 3))
    depth = torch.from_numpy(np.stack([_aria_png(frame["depth"]) for frame in frames]).astype(np.float64)) / 1000
    instances = torch.from_numpy(np.stack([_aria_png(frame["instance"]) for frame in frames]).astype(np.int64))
    points = geometry.unproject(depth, cameras)
    moves = {
        int(index): first_from_world @ torch.tensor(value["T_world_object"], dtype=torch.float64)
        for index, value in meta["instances"].items()
        if value["motion_type"] == "dynamic"
    }
    there = torch.stack([_carried(points, instances, moves, time) for time in (0, 1)])
    pictures = np.stack([_aria_png(frame["image"]) for frame in frames])
    valid = depth > 0
    targets = Clip(
        images=torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255,
        times=torch.tensor([0.0, (frames[1]["timestamp_ns"] - frames[0]["timestamp_ns"]) / 1e9]),
        camera_ids=torch.zeros(2, dtype=torch.long),
        cameras=cameras,
        depth=depth,
        valid=valid,
        motion=(there - points).float(),
        motion_valid=valid.expand(2, -1, -1, -1),
    )
    names = {int(index): value["name"] for index, value in meta["instances"].items()}
    return Recording(
        targets=replace(targets, query_times=targets.times), points=points, instances=instances, names=names
    )


def _aria_png(name: str) -> NDArray[np.generic]:
    return np.asarray(Image.open(ARIA / name))


def _carried(points: Tensor, instances: Tensor, moves: dict[int, Tensor], time: int) -> Tensor:
    """Place of every pixel's point at a time, f h w 3: it goes with its object."""
    there = points.clone()
    for index, poses in moves.items():
        for frame in (0, 1):
            chosen = instances[frame] == index
            step = poses[time] @ geometry.invert_pose(poses[frame])
            there[frame][chosen] = geometry.transform(step, points[frame][chosen])
    return there


def motorcycle() -> RawClip:
    """A rectified stereo pair: two cameras at one time, the depth of the left one."""
    root = SAMPLES / "middlebury_motorcycle"
    disparity = np.load(root / "motorcycle_disp.npz")["arr_0"]
    left = np.array([[994.978, 0, 311.193], [0, 994.978, 254.877], [0, 0, 1]])
    right = left + np.array([[0, 0, 31.086], [0, 0, 0], [0, 0, 0]])
    with np.errstate(invalid="ignore"):
        depth = np.where(np.isfinite(disparity), 0.193001 * 994.978 / (disparity + 31.086), 0)
    poses = np.stack([np.eye(4), np.eye(4)])
    poses[1, 0, 3] = 0.193001
    return _clip(
        "motorcycle",
        _images([root / "motorcycle_left.png", root / "motorcycle_right.png"]),
        poses=poses,
        intrinsics=np.stack([left, right]) + HALF,
        depth=np.stack([depth, np.zeros_like(depth)]).astype(np.float32),
        camera_ids=[0, 1],
        times=[0.0, 0.0],
        depth_unit=1e-4,
    )


def kitti() -> RawClip:
    """One frame with projected lidar."""
    root = SAMPLES / "kitti_nyu_depth" / "kitti"
    k = np.array([[707.0493, 0, 604.0814], [0, 707.0493, 180.5066], [0, 0, 1]])
    depth = np.asarray(Image.open(next((root / "depth").iterdir()))).astype(np.float32) / 256
    images = _images(list((root / "rgb").iterdir()))
    return _clip("kitti", images, poses=np.eye(4)[None], intrinsics=k + HALF, depth=depth[None], depth_unit=1 / 256)


def nyu() -> RawClip:
    """One frame of a Kinect."""
    root = SAMPLES / "kitti_nyu_depth" / "nyu"
    k = np.array([[518.8579, 0, 325.5824], [0, 519.4696, 253.7362], [0, 0, 1]])
    depth = _millimetres(list((root / "depth").iterdir()))
    return _clip(
        "nyu", _images(list((root / "rgb").iterdir())), poses=np.eye(4)[None], intrinsics=k + HALF, depth=depth
    )


def fox() -> RawClip:
    """Three photographs around a toy, at a third of their size, without depth; a little distortion is left in."""
    root = SAMPLES / "nerf_fox"
    said = json.loads((root / "transforms.json").read_text())
    frames = sorted(said["frames"], key=lambda frame: frame["file_path"])
    frames = [frame for frame in frames if (root / frame["file_path"]).is_file()]
    k = np.array([[said["fl_x"], 0, said["cx"]], [0, said["fl_y"], said["cy"]], [0, 0, 3.0]]) / 3
    poses = np.stack([np.array(frame["transform_matrix"]) @ FLIP for frame in frames])
    images = _images([root / frame["file_path"] for frame in frames], (360, 640))
    return _clip("fox", images, poses=poses, intrinsics=k, metric=False)


def driving() -> RawClip:
    """Three cameras of a car at three times, a second apart, at a quarter of their size, without depth."""
    root = SAMPLES / "dgp_driving" / "scene_01"
    scene = json.loads(next(root.glob("scene_*.json")).read_text())
    data = {item["key"]: item for item in scene["data"]}
    rows = []
    for time, sample in enumerate(scene["samples"]):
        calibration = json.loads((root / "calibration" / f"{sample['calibration_key']}.json").read_text())
        pictures = (data[key] for key in sample["datum_keys"] if "image" in data[key]["datum"])
        rows += [(item["id"]["name"], time, item["datum"]["image"], calibration) for item in pictures]
    rows.sort(key=lambda row: row[:2])
    names = sorted({row[0] for row in rows})
    poses, intrinsics = [], []
    for name, _, image, calibration in rows:
        said = calibration["intrinsics"][calibration["names"].index(name)]
        intrinsics.append([[said["fx"], 0, said["cx"]], [0, said["fy"], said["cy"]], [0, 0, 4]])
        poses.append(_pose(image["pose"]))
    return _clip(
        "driving",
        _images([root / row[2]["filename"] for row in rows], (484, 304)),
        poses=np.stack(poses),
        intrinsics=np.array(intrinsics) / 4,
        camera_ids=[names.index(row[0]) for row in rows],
        times=[float(row[1]) for row in rows],
    )


def _pose(said: dict[str, dict[str, float]]) -> NDArray[np.float64]:
    w, x, y, z = (said["rotation"][name] for name in ("qw", "qx", "qy", "qz"))
    pose = np.eye(4)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = [said["translation"][name] for name in "xyz"]
    return pose


EXCERPTS: dict[str, Callable[[], RawClip]] = {
    f.__name__: f for f in (hololens, threedmatch, aria, aria_colour, motorcycle, kitti, nyu, fox, driving)
}


def tartanair() -> RawClip:
    """Two frames of a street, with their depth and without poses."""
    root = SAMPLES / "tartanair_pair"
    depth = np.stack([np.load(root / f"depth{i}.npy") for i in (1, 2)])
    k = np.array([[320.0, 0, 320], [0, 320, 240], [0, 0, 1]])
    images = _images([root / f"image{i}.png" for i in (1, 2)])
    return _clip("tartanair", images, intrinsics=k, depth=depth.astype(np.float32))


def sintel() -> RawClip:
    """Four frames of the film, without any truth."""
    root = SAMPLES / "sintel_alley_1"
    return _clip("sintel", _images(sorted(root.glob("*.png"))), times=[i / 24 for i in range(4)], metric=False)


def davis() -> RawClip:
    """Thirty frames of a rider among trees, with masks of what moves."""
    root = SAMPLES / "davis_bmx-trees"
    masks = [np.asarray(Image.open(path)) > 127 for path in sorted((root / "masks").iterdir())]
    images = _images(sorted((root / "frames").iterdir()))
    clip = _clip("davis", images, times=[i / 24 for i in range(len(images))], metric=False)
    return replace(clip, dynamic=np.stack(masks))


def bikes() -> RawClip:
    """A video as it is."""
    video = footage(SAMPLES / "videos" / "bikes.mp4", silent=True)
    return _clip("bikes", np.stack(list(video.frames(range(0, 250, 50)))), times=[2.0 * i for i in range(5)])


SHOWN: dict[str, Callable[[], RawClip]] = {f.__name__: f for f in (hololens, aria, driving, tartanair, sintel, bikes)}
"""Excerpts whose licences (MIT, Apache-2.0, MIT, CC BY 4.0, CC BY 3.0, BSD) allow pictures of them in docs."""
