"""Small copies of the sets that peers train on, in their own layout, written from a world that is known exactly."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import roma
import torch
from numpy.typing import NDArray
from PIL import Image

from tests.protocols.written import HEIGHT, WIDTH, World, picture, png16, rows, text, world

FLIP = np.diag([1.0, -1, -1, 1])
HALF = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
POINTS = np.array([[0.5, 0.25, 3.0], [-0.5, 0.0, 2.0], [0.0, 0.0, 4.0]])
"""Three points of the world; the second walks a tenth along x a frame, the third is unknown in the last frame."""


def jpeg(path: Path, image: NDArray[np.uint8]) -> Path:
    return picture(path, image, quality=100, subsampling=0)


def npy(path: Path, values: NDArray[np.generic]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)


def npz(path: Path, **arrays: NDArray[np.generic]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)


def paths(frames: int) -> NDArray[np.float64]:
    """t n 3."""
    moved = np.tile(POINTS, (frames, 1, 1))
    moved[:, 1, 0] += np.arange(frames) / 10
    return moved


def with_sky(depth: NDArray[np.float32], sky: float) -> NDArray[np.float32]:
    """The first two pixels are the sky."""
    changed = depth.copy()
    changed[0, :2] = sky
    return changed


def family_a(root: Path, scene: str, *, sky: float = np.inf, poses: bool = True) -> None:
    known = world()
    for i in range(len(known)):
        jpeg(root / scene / "rgb" / f"{i:05d}.jpg", known.images[i])
        npy(root / scene / "depth" / f"{i:05d}.npy", with_sky(known.depth[i], sky))
        pose = known.poses[i] if poses else np.eye(4)
        npz(root / scene / "cam" / f"{i:05d}.npz", pose=pose.astype(np.float32), intrinsics=known.intrinsics)


def family_b(root: Path, scene: str, *, png: bool, centre: bool = False) -> None:
    known = world()
    for i in range(len(known)):
        stem = root / scene / f"{i:05d}"
        image = stem.with_name(f"{stem.name}_rgb.{'jpg' if png else 'png'}")
        jpeg(image, known.images[i]) if png else picture(image, known.images[i])
        if png:
            png16(stem.with_name(f"{stem.name}_depth.png"), with_sky(known.depth[i], 655.35), 100)
        else:
            npy(stem.with_name(f"{stem.name}_depth.npy"), with_sky(known.depth[i], 10000.0))
        k = known.intrinsics - (HALF if centre else 0)
        npz(stem.with_name(f"{stem.name}_cam.npz"), camera_pose=known.poses[i], camera_intrinsics=k)


def exr(path: Path, values: NDArray[np.float32], *, compression: int = 3) -> None:
    """Two channels of floats, of which the second, Z, has the values, after OpenEXR's description."""
    height, width = values.shape
    channels = b"".join(name + b"\0" + struct.pack("<iIii", 2, 0, 1, 1) for name in (b"A", b"Z")) + b"\0"
    window = struct.pack("<4i", 0, 0, width - 1, height - 1)
    attributes = {"channels": ("chlist", channels), "compression": ("compression", bytes([compression]))}
    attributes |= {"dataWindow": ("box2i", window)}
    head = struct.pack("<iI", 20000630, 2)
    for name, (kind, data) in attributes.items():
        head += name.encode() + b"\0" + kind.encode() + b"\0" + struct.pack("<i", len(data)) + data
    head += b"\0"
    lines = {0: 1, 2: 1, 3: 16}[compression]
    blocks = []
    for y in range(0, height, lines):
        other = np.full(width, 3, "<f4").tobytes()
        raw = b"".join(other + line.astype("<f4").tobytes() for line in values[y : y + lines])
        if compression:
            order = np.frombuffer(raw, np.uint8)
            order = np.concatenate([order[::2], order[1::2]]).astype(int)
            steps = np.concatenate([order[:1], (np.diff(order) + 128) % 256]).astype(np.uint8)
            packed = zlib.compress(steps.tobytes())
            raw = packed if len(packed) < len(raw) else raw
        blocks.append(struct.pack("<ii", y, len(raw)) + raw)
    starts = np.cumsum([len(head) + 8 * len(blocks), *map(len, blocks[:-1])])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + starts.astype("<u8").tobytes() + b"".join(blocks))


def waymo(root: Path) -> None:
    """Camera 1, of which frame 9 is listed as invalid."""
    import h5py

    known = world()
    for i in (*range(4), 9):
        stem = root / "segment-1" / f"{i:05d}_1"
        jpeg(stem.with_suffix(".jpg"), known.images[i % 4])
        exr(stem.with_suffix(".exr"), with_sky(known.depth[i % 4], 0.0), compression=(0, 2, 3)[i % 3])
        npz(stem.with_suffix(".npz"), cam2world=known.poses[i % 4], intrinsics=known.intrinsics - HALF)
    with h5py.File(root / "invalid_files.h5", "w") as file:
        file["segment-1/invalid_pairs"] = np.array([b"1_00009"])


def pointodyssey(root: Path) -> None:
    known, scene = world(), root / "train" / "ani"
    for i in range(len(known)):
        jpeg(scene / "rgbs" / f"rgb_{i:05d}.jpg", known.images[i])
        png16(scene / "depths" / f"depth_{i:05d}.png", with_sky(known.depth[i], 1000.0), 65.535)
    frames = len(known)
    valid = np.ones((frames, 3))
    valid[-1, 2] = 0
    seen = np.ones((frames, 3))
    seen[1] = 0
    npz(
        scene / "anno.npz",
        trajs_2d=np.zeros((frames, 3, 2)),
        trajs_3d=paths(frames),
        visibs=seen,
        valids=valid,
        intrinsics=np.stack([known.intrinsics] * frames),
        extrinsics=np.linalg.inv(known.poses),
    )


def tartanair(root: Path) -> None:
    """Poses of the body: x forward, y right, z down."""
    known, flight = world(), root / "office" / "Easy" / "P000"
    camera_from_body = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    lines = []
    for i in range(len(known)):
        picture(flight / "image_left" / f"{i:06d}_left.png", known.images[i])
        npy(flight / "depth_left" / f"{i:06d}_left_depth.npy", with_sky(known.depth[i], 10000.0))
        pose = known.poses[i] @ camera_from_body
        turn = roma.rotmat_to_unitquat(torch.from_numpy(pose[:3, :3])).tolist()
        lines.append(" ".join(map(repr, [*pose[:3, 3].tolist(), *turn])))
    text(flight / "pose_left.txt", "\n".join(lines) + "\n")


def vkitti2(root: Path) -> None:
    """Two cameras of two frames each: the world's four."""
    known, drive = world(), root / "Scene01" / "clone"
    k = known.intrinsics - HALF
    lenses, poses = ["frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]"], ["frame cameraID r1,1 …"]
    for frame in range(2):
        for camera in range(2):
            i = 2 * camera + frame
            jpeg(drive / "frames" / "rgb" / f"Camera_{camera}" / f"rgb_{frame:05d}.jpg", known.images[i])
            depth = with_sky(known.depth[i], 655.35)
            png16(drive / "frames" / "depth" / f"Camera_{camera}" / f"depth_{frame:05d}.png", depth, 100)
            lenses.append(f"{frame} {camera} " + " ".join(map(repr, [k[0, 0], k[1, 1], k[0, 2], k[1, 2]])))
            pose = np.linalg.inv(known.poses[i]).ravel().tolist()
            poses.append(f"{frame} {camera} " + " ".join(map(repr, pose)))
    text(drive / "intrinsic.txt", "\n".join(lenses).replace("np.float64(", "").replace(")", "") + "\n")
    text(drive / "extrinsic.txt", "\n".join(poses) + "\n")


def spring(root: Path) -> None:
    """Disparities have twice the images' size; the pixels between are wrong on purpose."""
    import h5py

    known, sequence = world(), root / "train" / "0001"
    k = known.intrinsics
    for i in range(len(known)):
        picture(sequence / "frame_left" / f"frame_left_{i + 1:04d}.png", known.images[i])
        disparity = np.full((2 * HEIGHT, 2 * WIDTH), 7, np.float32)
        disparity[::2, ::2] = 0.065 * k[0, 0] / known.depth[i]
        disparity[0, 0], disparity[0, 2] = np.nan, 0
        path = sequence / "disp1_left" / f"disp1_left_{i + 1:04d}.dsp5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["disparity"] = disparity
    line = [k[0, 0], k[1, 1], k[0, 2], k[1, 2]]
    text(sequence / "cam_data" / "intrinsics.txt", rows(np.array([line] * len(known))))
    text(sequence / "cam_data" / "extrinsics.txt", rows(np.linalg.inv(known.poses).reshape(-1, 16)))


def _distance(known: World, i: int) -> NDArray[np.float32]:
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    k = known.intrinsics
    rays = np.stack([(x - k[0, 2]) / k[0, 0], (y - k[1, 2]) / k[1, 1], np.ones((HEIGHT, WIDTH))])
    return (known.depth[i] * np.linalg.norm(rays, axis=0)).astype(np.float32)


def kubric(root: Path, *, views: int = 2, tracks: bool = True) -> None:
    """Each view films two of the world's frames; a point is seen by the second view alone."""
    known, scene = world(), root / "7"
    for view in range(views):
        where = scene / f"view_{view}" if views > 1 else scene
        frames = [2 * view, 2 * view + 1]
        for at, i in enumerate(frames):
            picture(where / f"rgba_{at:05d}.png", np.dstack([known.images[i], np.full((HEIGHT, WIDTH), 9, np.uint8)]))
            tiff = where / f"depth_{at:05d}.tiff"
            Image.fromarray(with_sky(_distance(known, i), 1e10)).save(tiff)
        poses = known.poses[frames] @ FLIP
        turns = roma.quat_xyzw_to_wxyz(roma.rotmat_to_unitquat(torch.from_numpy(poses[:, :3, :3])))
        k = np.diag([1 / WIDTH, 1 / HEIGHT, 1]) @ known.intrinsics @ FLIP[:3, :3]
        camera = {"positions": poses[:, :3, 3].tolist(), "quaternions": turns.tolist(), "K": k.tolist()}
        text(where / "metadata.json", json.dumps({"camera": camera, "metadata": {"frame_rate": 12}}))
        if tracks:
            occluded = np.ones((3, 2), bool)
            occluded[view] = False
            npz(where / "tracks_2d.npz", tracks_2d=np.zeros((3, 2, 2)), occlusion=occluded)
    if tracks:
        npz(scene / "tracks_3d.npz", tracks_3d=paths(2))


SETS: dict[str, Callable[[Path], None]] = {
    "cut3r_pointodyssey": lambda root: family_a(root, "train/ani", sky=2000.0),
    "cut3r_dynamic_replica": lambda root: family_a(root, "train/apartment/left"),
    "cut3r_spring": lambda root: family_a(root, "0001"),
    "cut3r_bedlam": lambda root: family_a(root, "seq_000001", sky=201.0),
    "cut3r_mvs_synth": lambda root: family_a(root, "0000", sky=np.nan),
    "cut3r_hoi4d": lambda root: family_a(root, "ZY1", poses=False),
    "cut3r_tartanair": lambda root: family_b(root, "office/Easy/P000", png=False),
    "cut3r_vkitti2": lambda root: family_b(root, "Scene01/clone/Camera_0", png=True, centre=True),
    "cut3r_waymo": waymo,
    "pointodyssey": pointodyssey,
    "tartanair": tartanair,
    "vkitti2": vkitti2,
    "spring": spring,
    "kubric": kubric,
}
"""Set → what writes one sequence of it, of the world's four frames."""
