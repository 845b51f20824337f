"""Small copies of multi-view sets in their own layout: two still cameras film the world's first and third frame."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import roma
import torch
from numpy.typing import NDArray

from tests.protocols.built import FLIP, HALF, jpeg, npy, npz, paths
from tests.protocols.written import HEIGHT, WIDTH, picture, png16, world

STILL = (0, 0, 2, 2)
"""Frames of `world` behind the two frames of each camera, which stands still and films a still picture."""
SEEN = np.array([[[True, True, False]] * 2, [[False, True, False]] * 2])
"""v t n: the second point is seen by both cameras, the third by none."""


def _still(view: int) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float64]]:
    """Image, depth and camera_from_world of a view."""
    known = world()
    return known.images[2 * view], known.depth[2 * view], np.linalg.inv(known.poses[2 * view])


def panoptic(root: Path) -> None:
    """Views 0 and 10 of eleven cameras; the second point's query is at the second frame."""
    scene = root / "boxes"
    poses = np.tile(np.eye(4), (11, 1, 1))
    for view, number in enumerate((0, 10)):
        image, depth, poses[number] = _still(view)
        for at in range(2):
            jpeg(scene / "ims" / str(number) / f"{at:06d}.jpg", image)
        npy(scene / "dynamic3dgs_depth" / f"depths_{number:02d}.npy", np.stack([depth, depth]))
    tracks = paths(2)
    tracks[1, 0] = np.nan
    seen = np.zeros((11, 2, 3), bool)
    seen[[0, 10]] = SEEN
    npz(
        scene / "tapvid3d_annotations.npz",
        trajectories=tracks,
        trajectories_pixelspace=np.zeros((11, 2, 3, 2)),
        per_view_visibilities=seen,
        intrinsics=np.stack([world().intrinsics] * 11),
        extrinsics=poses,
        query_points_3d=np.array([[0.0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]),
    )


def dexycb(root: Path) -> None:
    """Intrinsics are 4 × 4 and count from pixel centres; names of objects are pickled, which nothing may read."""
    scene = root / "boxes"
    for view in range(2):
        image, depth, pose = _still(view)
        place = scene / f"view_{view:02d}"
        for at in range(2):
            jpeg(place / "rgb" / f"{at:05d}.jpg", image)
            png16(place / "depth" / f"{at:05d}.png", depth, 1000)
        k = np.eye(4)
        k[:3, :3] = world().intrinsics - HALF
        npz(place / "intrinsics_extrinsics.npz", intrinsics=k, extrinsics=pose[:3])
    np.savez(
        scene / "tracks_3d.npz",
        tracks_3d=paths(2),
        tracks_2d=np.zeros((2, 2, 3, 2)),
        tracks_2d_z=np.zeros((2, 2, 3)),
        tracks_2d_visibilities=SEEN,
        object_ids=np.zeros(3, int),
        object_id_to_name=np.array({0: "mano-right-hand"}, object),
    )


def rig(name: str, root: Path) -> None:
    """Two frames of many views in the form of Panoptic Studio or DexYCB; view i stands at x = i."""
    image, depth, _ = _still(0)
    scene, numbers = root / "boxes", (1, 7, 8, 14, 20) if name == "panoptic" else range(8)
    poses = np.tile(np.eye(4), (21, 1, 1))
    poses[:, 0, 3] = -np.arange(21)
    for number in numbers:
        place = scene / ("ims" if name == "panoptic" else f"view_{number:02d}/rgb")
        for at in range(2):
            jpeg((place / str(number) if name == "panoptic" else place) / f"{at:06d}.jpg", image)
        if name == "panoptic":
            npy(scene / "dynamic3dgs_depth" / f"depths_{number:02d}.npy", np.stack([depth, depth]))
        else:
            for at in range(2):
                png16(place.parent / "depth" / f"{at:06d}.png", depth, 1000)
            lens = place.parent / "intrinsics_extrinsics.npz"
            npz(lens, intrinsics=world().intrinsics, extrinsics=poses[number])
    if name == "panoptic":
        intrinsics = np.stack([world().intrinsics] * 21)
        npz(scene / "tapvid3d_annotations.npz", intrinsics=intrinsics, extrinsics=poses)


def dynamic_replica(root: Path, form: str = "ndc_isotropic") -> None:
    """PyTorch3D's conventions: rows times R, axes left and up, lengths in halves of the shorter side."""
    entries = []
    half = np.array([WIDTH, HEIGHT]) / 2
    unit = np.full(2, half.min()) if form == "ndc_isotropic" else half
    for view, eye in enumerate(("left", "right")):
        image, depth, pose = _still(view)
        folder = root / "valid" / f"3-3_obj_source_{eye}"
        for at in range(2):
            stem = f"{folder.name}_{at:04d}"
            picture(folder / "images" / f"{folder.name}-{at:04d}.png", image)
            picture(folder / "depths" / f"{stem}.geometric.png", depth.astype(np.float16).view(np.uint16))
            trajectory = folder / "trajectories" / f"{at:06d}.pth"
            trajectory.parent.mkdir(exist_ok=True)
            stored = {"traj_3d_world": torch.from_numpy(paths(2)[at]).float(), "traj_2d": torch.zeros(3, 3)}
            torch.save({**stored, "verts_inds_vis": torch.from_numpy(SEEN[view, at])}, trajectory)
            turned = np.diag([-1.0, -1, 1, 1]) @ pose
            k = world().intrinsics
            viewpoint = {
                "R": turned[:3, :3].T.tolist(),
                "T": turned[:3, 3].tolist(),
                "focal_length": (k[[0, 1], [0, 1]] / unit).tolist(),
                "principal_point": ((half - k[:2, 2]) / unit).tolist(),
                "intrinsics_format": form,
            }
            place = Path(folder.name)
            entries.append(
                {
                    "sequence_name": "3-3_obj",
                    "camera_name": eye,
                    "frame_number": at,
                    "frame_timestamp": at / 30,
                    "image": {"path": str(place / "images" / f"{folder.name}-{at:04d}.png"), "size": [HEIGHT, WIDTH]},
                    "depth": {"path": str(place / "depths" / f"{stem}.geometric.png")},
                    "trajectories": {"path": str(place / "trajectories" / trajectory.name)},
                    "viewpoint": viewpoint,
                }
            )
    with gzip.open(root / "valid" / "frame_annotations_valid.jgz", "wt") as file:
        json.dump(entries, file)


def movi(root: Path) -> None:
    """The world's four frames; counts of distance from 0.5 m to 20 m, pixels square and the principal point central.

    The focal length is the world's fx: rays differ from the world's, so depth is that along OpenD4RT's rays.
    """
    known, scene = world(), root / "train" / "scene_000000"
    scene.mkdir(parents=True)
    focal = known.intrinsics[0, 0]
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    stretched = np.sqrt(((x - WIDTH / 2) / focal) ** 2 + ((y - HEIGHT / 2) / focal) ** 2 + 1)
    counts = np.rint((known.depth * stretched - 0.5) / 19.5 * 65535).astype(np.uint16)
    np.save(scene / "rgb.npy", known.images)
    np.save(scene / "depth_uint16.npy", counts[..., None])
    poses = known.poses @ FLIP
    turns = roma.quat_xyzw_to_wxyz(roma.rotmat_to_unitquat(torch.from_numpy(poses[:, :3, :3])))
    np.save(scene / "camera_positions.npy", poses[:, :3, 3].astype(np.float32))
    np.save(scene / "camera_quaternions.npy", turns.numpy().astype(np.float32))
    meta = {
        "format": "kubric_full_process_v1",
        "num_frames": 4,
        "height": HEIGHT,
        "width": WIDTH,
        "depth_range": [0.5, 20.0],
        "camera_field_of_view": 2 * np.arctan(WIDTH / 2 / focal),
    }
    (scene / "meta.json").write_text(json.dumps(meta))


SETS = {"panoptic": panoptic, "dexycb": dexycb, "dynamic_replica": dynamic_replica}
