"""Cameras as JSON and as COLMAP text.

COLMAP's conventions: axes as ours (x right, y down, z forward); pixel (0, 0) is the corner of the top-left pixel, as
ours; a pose is camera_from_world as quaternion (w, x, y, z) and translation.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import roma
import torch
from torch import Tensor

from four_d.errors import UserError
from four_d.formats.clouds import PointCloud
from four_d.geometry import invert_pose, make_pose
from four_d.types import Cameras

FORMAT = 1
CONVENTIONS = (
    "world_from_camera is 4x4; camera axes x right, y down, z forward; the world is the first frame's camera "
    "(as the model sees it: its own pose is near the identity, not exactly it); "
    "pixel (0, 0) is the corner of the top-left pixel; intrinsics in pixels; times in seconds"
)


@dataclass(frozen=True, kw_only=True)
class CameraTable:
    """The content of ``cameras.json``: f cameras, at the model's and at the original resolution."""

    times: list[float]
    """Seconds from the video's start."""
    images: list[str]
    """Name of each frame's picture in the COLMAP folders."""
    model: Cameras
    model_size: tuple[int, int]
    """Height, width."""
    original: Cameras
    """Same poses; intrinsics in pixels of the original video."""
    original_size: tuple[int, int]
    unit: str
    """What one unit of translation is."""
    camera_ids: list[int] | None = None
    """Which of several cameras each frame is of; None: all of one."""


def write_cameras(path: Path, table: CameraTable) -> None:
    """Write ``cameras.json``."""
    poses = table.model.world_from_camera.double().tolist()
    at_model = table.model.intrinsics.double().tolist()
    at_original = table.original.intrinsics.double().tolist()
    ids = table.camera_ids or [0] * len(poses)
    frames = [
        {"time": t, "camera": c, "image": n, "world_from_camera": p, "intrinsics_model": m, "intrinsics_original": o}
        for t, c, n, p, m, o in zip(table.times, ids, table.images, poses, at_model, at_original, strict=True)
    ]
    content = {
        "format": FORMAT,
        "conventions": CONVENTIONS,
        "unit": table.unit,
        "size_model": {"height": table.model_size[0], "width": table.model_size[1]},
        "size_original": {"height": table.original_size[0], "width": table.original_size[1]},
        "frames": frames,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def read_cameras(path: Path) -> CameraTable:
    """The inverse of `write_cameras`, in float64."""
    try:
        content = json.loads(path.read_text())
        frames = content["frames"]
        poses = _matrices([f["world_from_camera"] for f in frames], 4)
        at_model, at_original = (
            Cameras(world_from_camera=poses, intrinsics=_matrices([f[key] for f in frames], 3))
            for key in ("intrinsics_model", "intrinsics_original")
        )
        ids = [int(f.get("camera", 0)) for f in frames]
        return CameraTable(
            times=[float(f["time"]) for f in frames],
            images=[f["image"] for f in frames],
            model=at_model,
            model_size=(content["size_model"]["height"], content["size_model"]["width"]),
            original=at_original,
            original_size=(content["size_original"]["height"], content["size_original"]["width"]),
            unit=content["unit"],
            camera_ids=ids if any(ids) else None,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a cameras.json of four_d ({error}); run four-d infer again") from error


def _matrices(rows: list[object], size: int) -> Tensor:
    """Float64 f size size. ValueError for other shapes."""
    found = torch.tensor(rows, dtype=torch.float64)
    if found.shape != (len(rows), size, size):
        raise ValueError(f"matrices are {tuple(found.shape[1:])} instead of {(size, size)}")
    return found


def write_colmap(
    folder: Path, cameras: Cameras, size: tuple[int, int], images: list[str], cloud: PointCloud | None = None
) -> None:
    """Write ``cameras.txt``, ``images.txt`` and ``points3D.txt``: one PINHOLE camera per frame, points without tracks.

    Args:
        folder: is made, with its parents.
        cameras: of f frames, any world frame.
        size: height and width in pixels.
        images: f file names, relative to COLMAP's image folder.
        cloud: the points; none = an empty ``points3D.txt``.

    """
    folder.mkdir(parents=True, exist_ok=True)
    height, width = size
    intrinsics = cameras.intrinsics.double().tolist()
    (folder / "cameras.txt").write_text(
        "# CAMERA_ID MODEL WIDTH HEIGHT FX FY CX CY\n"
        + "".join(
            f"{i} PINHOLE {width} {height} {_numbers([k[0][0], k[1][1], k[0][2], k[1][2]])}\n"
            for i, k in enumerate(intrinsics, start=1)
        )
    )
    camera_from_world = invert_pose(cameras.world_from_camera.double())
    turns = roma.quat_xyzw_to_wxyz(roma.rotmat_to_unitquat(camera_from_world[:, :3, :3]))
    quaternions = torch.where(turns[:, :1] < 0, -turns, turns).tolist()
    translations = camera_from_world[:, :3, 3].tolist()
    (folder / "images.txt").write_text(
        "# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, then a line of POINTS2D (empty)\n"
        + "".join(
            f"{i} {_numbers([*q, *t])} {i} {name}\n\n"
            for i, (q, t, name) in enumerate(zip(quaternions, translations, images, strict=True), start=1)
        )
    )
    (folder / "points3D.txt").write_text("# POINT3D_ID X Y Z R G B ERROR TRACK[]\n" + _points(cloud))


def read_colmap(folder: Path) -> tuple[Cameras, list[tuple[int, int]], list[str]]:
    """PINHOLE cameras of a COLMAP text model in the order of its images: cameras (float64), sizes (h, w), names."""
    intrinsics: dict[str, tuple[Tensor, tuple[int, int]]] = {}
    for line in _lines(folder / "cameras.txt"):
        identity, model, width, height, *values = line.split()
        if model != "PINHOLE":
            raise UserError(f"{folder / 'cameras.txt'}: camera {identity} is {model}; undistort to PINHOLE first")
        fx, fy, cx, cy = map(float, values)
        matrix = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float64)
        intrinsics[identity] = matrix, (int(height), int(width))
    records = [line.split(maxsplit=9) for line in _lines(folder / "images.txt", every=2)]
    numbers = torch.tensor([[float(v) for v in record[1:8]] for record in records], dtype=torch.float64)
    rotation = roma.unitquat_to_rotmat(roma.quat_wxyz_to_xyzw(numbers[:, :4]))
    poses = invert_pose(make_pose(rotation, numbers[:, 4:]))
    chosen = [intrinsics[record[8]] for record in records]
    cameras = Cameras(world_from_camera=poses, intrinsics=torch.stack([matrix for matrix, _ in chosen]))
    return cameras, [size for _, size in chosen], [record[9] for record in records]


def _lines(path: Path, every: int = 1) -> list[str]:
    """The lines after the comments at the head; of images.txt only each second, the other lists 2D points."""
    lines = path.read_text().splitlines()
    head = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line for line in lines[head::every] if line.strip()]


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.12g}" for value in values)


def _points(cloud: PointCloud | None) -> str:
    if cloud is None:
        return ""
    rows = zip(cloud.points.tolist(), cloud.colours.tolist(), strict=True)
    return "".join(f"{i} {x:.6g} {y:.6g} {z:.6g} {r} {g} {b} 0\n" for i, ((x, y, z), (r, g, b)) in enumerate(rows, 1))
