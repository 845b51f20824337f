"""Small copies of published sets in their own layout, written from a world that is known exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import roma
import torch
from numpy.typing import NDArray
from PIL import Image

from four_d import geometry, surface
from tests.helpers import box_clip, torch_cameras, without_surface

HEIGHT, WIDTH = 24, 32


@dataclass(frozen=True, kw_only=True)
class World:
    images: NDArray[np.uint8]
    poses: NDArray[np.float64]
    """world_from_camera, OpenCV axes."""
    intrinsics: NDArray[np.float64]
    """3 3, corner origin."""
    depth: NDArray[np.float32]
    dynamic: NDArray[np.bool_]
    flow: NDArray[np.float32]
    """To the next frame; one less than frames."""

    def __len__(self) -> int:
        return len(self.images)


@cache
def world(frames: int = 4) -> World:
    clip = box_clip(seed=3, frames=frames, cameras=1, size=(HEIGHT, WIDTH))
    plain = without_surface(clip)
    assert clip.surface is not None
    assert clip.world_from_camera is not None
    assert clip.intrinsics is not None
    assert plain.depth is not None
    assert plain.dynamic is not None
    return World(
        images=clip.images,
        poses=clip.world_from_camera,
        intrinsics=clip.intrinsics[0],
        depth=plain.depth.astype(np.float32),
        dynamic=plain.dynamic,
        flow=_flow(clip),
    )


def _flow(clip: object) -> NDArray[np.float32]:
    """Where each pixel's surface point is in the next frame, minus where it is."""
    decoded, cameras = surface.decode(clip.surface, clip.info), torch_cameras(clip)
    times = torch.tensor(clip.info.times)
    pixels = geometry.pixel_centres(HEIGHT, WIDTH, torch.zeros(())).reshape(-1, 2)
    result = []
    for frame in range(len(times) - 1):
        found = surface.tracks(decoded, cameras, times, torch.full((len(pixels),), frame), pixels)
        there = geometry.Cameras(
            world_from_camera=cameras.world_from_camera[frame + 1], intrinsics=cameras.intrinsics[frame + 1]
        )
        projected, _ = geometry.project(found.points[:, frame + 1], there)
        result.append((projected - pixels).reshape(HEIGHT, WIDTH, 2).numpy())
    return np.stack(result)


def picture(path: Path, values: NDArray[np.generic], **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


def binary(path: Path, *parts: NDArray[np.generic]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(part.tobytes() for part in parts))
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def png16(path: Path, depth: NDArray[np.float32], counts: float) -> Path:
    return picture(path, np.rint(depth * counts).astype(np.uint16))


def tagged(path: Path, values: NDArray[np.float32]) -> Path:
    """A .dpt (h w) or .flo (h w 2)."""
    height, width = values.shape[:2]
    return binary(path, np.float32([202021.25]), np.int32([width, height]), values.astype("<f4"))


def tum_line(time: float, pose: NDArray[np.float64]) -> str:
    quaternion = roma.rotmat_to_unitquat(torch.from_numpy(pose[:3, :3])).tolist()
    return f"{time:.6f} " + " ".join(f"{v:.12g}" for v in [*pose[:3, 3], *quaternion]) + "\n"


def rows(values: NDArray[np.float64]) -> str:
    return "\n".join(" ".join(repr(float(v)) for v in row) for row in values) + "\n"


def sintel(root: Path, name: str = "alley_2", **_: object) -> None:
    known = world()
    from_centre = known.intrinsics - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
    for i in range(len(known)):
        stem = f"frame_{i + 1:04d}"
        training = root / "training"
        picture(training / "final" / name / f"{stem}.png", known.images[i])
        tagged(training / "depth" / name / f"{stem}.dpt", known.depth[i])
        pose = np.linalg.inv(known.poses[i])[:3]
        binary(training / "camdata_left" / name / f"{stem}.cam", np.float32([202021.25]), from_centre, pose)
        if i < len(known) - 1:
            tagged(training / "flow" / name / f"{stem}.flo", known.flow[i])


def tum(root: Path, name: str = "rgbd_dataset_freiburg3_walking_xyz", frames: int = 8) -> None:
    """Picture 4 has no pose near it; poses come at other times than pictures."""
    known = world()
    stamps = 1341846313.5 + np.arange(frames) * 0.0333
    names = [f"rgb/{t:.6f}.png" for t in stamps]
    lines = [f"{t:.6f} {n}\n" for t, n in zip(stamps, names)]
    text(root / name / "rgb.txt", "# color images\n# file: 'x.bag'\n# timestamp filename\n" + "".join(lines))
    truth = [tum_line(t + 0.004, known.poses[i % len(known)]) for i, t in enumerate(stamps) if i != 4]
    text(root / name / "groundtruth.txt", "# ground truth trajectory\n" + "".join(truth))
    for i, n in enumerate(names):
        picture(root / name / n, known.images[i % len(known)])


def bonn(root: Path, name: str = "balloon2", frames: int = 36) -> None:
    known = world()
    base = root / f"rgbd_bonn_{name}"
    stamps = 1548265900.25 + np.arange(frames) / 30
    for i, t in enumerate(stamps):
        picture(base / "rgb" / f"{t:.5f}.png", known.images[i % len(known)])
        png16(base / "depth" / f"{t + 0.01:.5f}.png", known.depth[i % len(known)], 5000)
    poses = [tum_line(t + 0.001, known.poses[i % len(known)]) for i, t in enumerate(stamps)]
    text(base / "groundtruth.txt", "".join(poses))


def scannet(root: Path, name: str = "scene0707_00", frames: int = 12) -> None:
    known = world()
    k = np.eye(4)
    k[:3, :3] = known.intrinsics - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
    text(root / name / "intrinsic" / "intrinsic_color.txt", rows(k))
    for i in range(frames):
        picture(root / name / "color" / f"{i}.jpg", known.images[i % len(known)], quality=100, subsampling=0)
        pose = known.poses[i % len(known)] if i != 3 else np.full((4, 4), -np.inf)
        text(root / name / "pose" / f"{i}.txt", rows(pose))


def scannet_depth(root: Path, name: str = "scene0707_00", frames: int = 12) -> None:
    """As `scannet`, with depth; what is nearer than 1 mm or beyond 10 m is no truth."""
    scannet(root, name, frames)
    for i in range(frames):
        png16(root / name / "depth" / f"{i}.png", world().depth[i % 4], 1000)


def kitti(root: Path, drive: str = "2011_09_26_drive_0002_sync", frames: int = 3) -> None:
    known = world()
    for i in range(frames):
        stem = f"{i + 5:010d}.png"
        depth = root / "val" / drive / "proj_depth" / "groundtruth" / "image_02" / stem
        png16(depth, known.depth[i % len(known)] * (np.arange(WIDTH) % 3 > 0), 256)
        picture(root / "2011_09_26" / drive / "image_02" / "data" / stem, known.images[i % len(known)])


def kitti_gathered(root: Path, drive: str = "2011_09_26_drive_0002_sync_02") -> None:
    known = world()
    where = root / "depth_selection" / "val_selection_cropped"
    for i in range(3):
        stem = f"{i + 5:010d}.png"
        png16(where / "groundtruth_depth_gathered" / drive / stem, known.depth[i], 256)
        picture(where / "image_gathered" / drive / stem, known.images[i])


def nyu(root: Path, **_: object) -> None:
    known = world()
    for i in range(2):
        picture(root / "val" / "nyu_images" / f"{i:05d}.png", known.images[i])
        path = root / "val" / "nyu_depths" / f"{i:05d}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, known.depth[i])


def nyu_splits(root: Path) -> None:
    known = world()
    scene = root / "official_splits" / "test" / "bathroom"
    for i in range(2):
        picture(scene / f"rgb_{i:05d}.jpg", known.images[i], quality=100, subsampling=0)
        png16(scene / f"sync_depth_{i:05d}.png", known.depth[i], 1000)


def dycheck(root: Path, name: str = "apple", frames: int = 22) -> None:
    """Cameras are for pictures of twice the size; camera 1 is another phone."""
    known = world()
    for i in range(frames):
        at = i % len(known)
        stem = f"0_{i:05d}"
        rgba = np.dstack([known.images[at], np.full((HEIGHT, WIDTH), 7, np.uint8)])
        picture(root / name / "rgb" / "1x" / f"{stem}.png", rgba)
        depth = root / name / "depth" / "1x" / f"{stem}.npy"
        depth.parent.mkdir(parents=True, exist_ok=True)
        np.save(depth, known.depth[at][..., None])
        text(root / name / "camera" / f"{stem}.json", json.dumps(_nerfies(known, at)))
    picture(root / name / "rgb" / "1x" / "1_00000.png", known.images[0])
    text(root / name / "extra.json", json.dumps({"fps": 60.0, "factor": 2}))


def _nerfies(known: World, at: int) -> dict[str, object]:
    k = known.intrinsics
    return {
        "orientation": known.poses[at][:3, :3].T.tolist(),
        "position": known.poses[at][:3, 3].tolist(),
        "focal_length": 2 * k[0, 0],
        "pixel_aspect_ratio": k[1, 1] / k[0, 0],
        "principal_point": (2 * k[:2, 2]).tolist(),
        "skew": 0.0,
        "radial_distortion": [0.0, 0.0, 0.0],
        "tangential_distortion": [0.0, 0.0],
        "image_size": [2 * WIDTH, 2 * HEIGHT],
    }


def seven_scenes(root: Path, frames: int = 402, depth: str = "depth.proj.png", every: int = 200) -> None:
    """Key frames are ``every`` so many, three in all; the others are empty files, which nothing may read."""
    known = world()
    text(root / "chess" / "TestSplit.txt", "sequence3\n")
    where = root / "chess" / "seq-03"
    where.mkdir(parents=True)
    for i in range(frames):
        (where / f"frame-{i:06d}.color.png").touch()
    for at, i in enumerate(range(0, frames, every)):
        picture(where / f"frame-{i:06d}.color.png", known.images[at])
        counts = np.rint(known.depth[at] * 1000).astype(np.uint16)
        counts[0, :3] = 65535, 10001, 0
        picture(where / f"frame-{i:06d}.{depth}", counts)
        text(where / f"frame-{i:06d}.pose.txt", rows(known.poses[at]))


def nrgbd(root: Path, frames: int = 11, scene: str = "kitchen") -> None:
    known = world()
    lines = []
    for i in range(frames):
        picture(root / scene / "images" / f"img{i}.png", known.images[i % len(known)])
        png16(root / scene / "depth" / f"depth{i}.png", known.depth[i % len(known)], 1000)
        opengl = known.poses[i % len(known)] @ np.diag([1.0, -1, -1, 1])
        lines.append(rows(opengl) if i != 5 else "nan nan nan nan\n" * 4)
    text(root / scene / "poses.txt", "".join(lines))


def davis(root: Path, name: str = "blackswan", **_: object) -> None:
    """Two objects and a void pixel in the palette."""
    known = world()
    for i in range(len(known)):
        picture(root / "JPEGImages" / "480p" / name / f"{i:05d}.jpg", known.images[i], quality=100, subsampling=0)
        index = known.dynamic[i].astype(np.uint8)
        index[:, WIDTH // 2 :] *= 2
        index[0, 0] = 255
        path = root / "Annotations" / "480p" / name / f"{i:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        marked = Image.fromarray(index, mode="P")
        marked.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [255] * 759)
        marked.save(path)


def folder(root: Path, stamped: bool = False) -> None:
    known = world()
    for i in range(len(known)):
        picture(root / "images" / f"{i:03d}.png", known.images[i])
        png16(root / "depth" / f"{i:03d}.png", known.depth[i], 1000)
        picture(root / "masks" / f"{i:03d}.png", known.dynamic[i].astype(np.uint8) * 255)
    text(root / "intrinsics.txt", rows(known.intrinsics))
    lines = [tum_line(5 + i / 10, pose) if stamped else rows(pose.reshape(1, 16)) for i, pose in enumerate(known.poses)]
    text(root / "poses.txt", "".join(lines))


WRITERS: dict[str, tuple[Callable[[Path], None], str | None]] = {
    "sintel": (sintel, "alley_2"),
    "sintel_14": (sintel, "alley_2"),
    "sintel_page4d": (sintel, "alley_2"),
    "tum": (tum, "rgbd_dataset_freiburg3_walking_xyz"),
    "bonn": (bonn, "balloon2"),
    "bonn_matched": (bonn, "balloon2"),
    "scannet": (scannet, None),
    "scannet_depth": (scannet_depth, None),
    "kitti": (kitti, None),
    "nyu": (nyu, None),
    "dycheck": (dycheck, "apple"),
    "seven_scenes": (seven_scenes, None),
    "seven_scenes_raw": (lambda root: seven_scenes(root, depth="depth.png"), None),
    "seven_scenes_depth": (lambda root: seven_scenes(root, frames=21, every=10), None),
    "nrgbd": (nrgbd, None),
    "davis16": (davis, "blackswan"),
    "davis17": (davis, "blackswan"),
    "davis_all": (davis, None),
    "folder": (folder, None),
}
"""Protocol → what writes one sequence of it, and that sequence's name where all of a list are expected."""
