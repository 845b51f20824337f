"""Cameras as JSON and as COLMAP text.

COLMAP's conventions: axes as ours (x right, y down, z forward); pixel (0, 0) is the corner of the top-left pixel, as
ours; a pose is camera_from_world as quaternion (w, x, y, z) and translation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import roma
import torch
from numpy.typing import NDArray
from torch import Tensor

from four_d.errors import UserError
from four_d.formats.clouds import PointCloud
from four_d.formats.colmap import read_model
from four_d.formats.observations import Observations
from four_d.geometry import invert_pose, project
from four_d.outputs import read_whole
from four_d.types import Cameras

FORMAT = 2
CONVENTIONS = (
    "world_from_camera is 4x4; camera axes x right, y down, z forward; the world is the first frame's camera "
    "(as the model sees it: its own pose is near the identity, not exactly it); "
    "pixel (0, 0) is the corner of the top-left pixel; intrinsics in pixels; times in seconds"
)

_NO_OBSERVATIONS = Observations(frames=np.zeros(0, np.int64), points=np.zeros(0, np.int64), pixels=np.zeros((0, 2)))


@dataclass(frozen=True, kw_only=True)
class CameraTable:
    """Content of ``cameras.json``: f cameras, at the model's and at the original resolution."""

    times: list[float]
    """Seconds from the video's start."""
    images: list[str]
    """Name of each frame's image in the COLMAP folders."""
    model: Cameras
    model_size: tuple[int, int]
    """Height, width."""
    original: Cameras
    """Cameras with these poses, and intrinsics in pixels of the original video."""
    original_sizes: list[tuple[int, int]]
    """Height and width of each original frame; those of several cameras may differ."""
    unit: str
    """Unit of translations, in words."""
    camera_ids: list[int] | None = None
    """Camera id of each frame; None: all frames of one camera."""


def write_cameras(path: Path, table: CameraTable) -> None:
    """Write ``cameras.json``."""
    poses = table.model.world_from_camera.double().tolist()
    at_model = table.model.intrinsics.double().tolist()
    at_original = table.original.intrinsics.double().tolist()
    ids = table.camera_ids or [0] * len(poses)
    frames = [
        {
            "time": time,
            "camera": ids[i],
            "image": table.images[i],
            "size_original": {"height": table.original_sizes[i][0], "width": table.original_sizes[i][1]},
            "world_from_camera": poses[i],
            "intrinsics_model": at_model[i],
            "intrinsics_original": at_original[i],
        }
        for i, time in enumerate(table.times)
    ]
    content = {
        "format": FORMAT,
        "conventions": CONVENTIONS,
        "unit": table.unit,
        "size_model": {"height": table.model_size[0], "width": table.model_size[1]},
        "frames": frames,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def read_cameras(path: Path) -> CameraTable:
    """Read `write_cameras`' file in float64. UserError for a missing or foreign file."""
    text = read_whole(path)
    try:
        content = json.loads(text)
        frames = content["frames"]
        poses = _matrices([f["world_from_camera"] for f in frames], 4)
        at_model, at_original = (
            Cameras(world_from_camera=poses, intrinsics=_matrices([f[key] for f in frames], 3))
            for key in ("intrinsics_model", "intrinsics_original")
        )
        # files of one camera written before cameras had ids lack the key
        ids = [int(f.get("camera", 0)) for f in frames]
        return CameraTable(
            times=[float(f["time"]) for f in frames],
            images=[f["image"] for f in frames],
            model=at_model,
            model_size=(content["size_model"]["height"], content["size_model"]["width"]),
            original=at_original,
            original_sizes=[(f["size_original"]["height"], f["size_original"]["width"]) for f in frames],
            unit=content["unit"],
            camera_ids=ids if any(ids) else None,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a cameras.json of four_d ({error}); give one as four-d infer writes it"
        ) from error


def _matrices(rows: list[object], size: int) -> Tensor:
    """Convert to float64 f size size. ValueError for other shapes."""
    matrices = torch.tensor(rows, dtype=torch.float64)
    if matrices.shape != (len(rows), size, size):
        raise ValueError(f"matrices are {tuple(matrices.shape[1:])} instead of {(size, size)}")
    return matrices


def write_colmap(
    folder: Path,
    cameras: Cameras,
    sizes: Sequence[tuple[int, int]],
    images: list[str],
    cloud: PointCloud | None = None,
    seen: Observations | None = None,
) -> None:
    """Write ``cameras.txt``, ``images.txt`` and ``points3D.txt``: one PINHOLE camera per frame.

    Args:
        folder: created with its parents.
        cameras: cameras of f frames, in any world frame.
        sizes: height and width of each frame's image in pixels.
        images: f file names, relative to COLMAP's image folder.
        cloud: the points; none = an empty ``points3D.txt``.
        seen: observations of the points by frames, in pixels of their images; None: the points have no tracks.

    """
    folder.mkdir(parents=True, exist_ok=True)
    intrinsics = cameras.intrinsics.double().tolist()
    (folder / "cameras.txt").write_text(
        "# CAMERA_ID MODEL WIDTH HEIGHT FX FY CX CY\n"
        + "".join(
            f"{i} PINHOLE {width} {height} {_numbers([k[0][0], k[1][1], k[0][2], k[1][2]])}\n"
            for i, (k, (height, width)) in enumerate(zip(intrinsics, sizes, strict=True), start=1)
        )
    )
    seen = seen if cloud is not None and seen is not None else _NO_OBSERVATIONS
    _write_images(folder / "images.txt", cameras, images, seen)
    _write_points(folder / "points3D.txt", cameras, cloud, seen)


def _write_images(path: Path, cameras: Cameras, images: list[str], observations: Observations) -> None:
    camera_from_world = invert_pose(cameras.world_from_camera.double())
    turns = roma.quat_xyzw_to_wxyz(roma.rotmat_to_unitquat(camera_from_world[:, :3, :3]))
    quaternions = torch.where(turns[:, :1] < 0, -turns, turns).tolist()
    translations = camera_from_world[:, :3, 3].tolist()
    ends = np.searchsorted(observations.frames, np.arange(len(images) + 1)).tolist()
    with path.open("w") as file:
        file.write("# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, then a line of POINTS2D[] as X Y POINT3D_ID\n")
        for i, (q, t, name) in enumerate(zip(quaternions, translations, images, strict=True)):
            rows = slice(ends[i], ends[i + 1])
            x, y = observations.pixels[rows].T.tolist()
            file.write(f"{i + 1} {_numbers([*q, *t])} {i + 1} {name}\n")
            file.write(_repeated("%.3f %.3f %d", x, y, (observations.points[rows] + 1).tolist()) + "\n")


def _write_points(path: Path, cameras: Cameras, cloud: PointCloud | None, observations: Observations) -> None:
    """Write ``points3D.txt``; a point's error is its mean reprojection error in pixels, -1 without observations."""
    with path.open("w") as file:
        file.write("# POINT3D_ID X Y Z R G B ERROR TRACK[] as IMAGE_ID POINT2D_IDX\n")
        if cloud is None:
            return
        counts = np.bincount(observations.points, minlength=len(cloud))
        total = np.bincount(
            observations.points, _reprojection_errors(cameras, cloud, observations), minlength=len(cloud)
        )
        errors = np.where(counts > 0, total / np.maximum(counts, 1), -1).tolist()
        # an observation's number within its image, and the observations by point instead of by frame
        number = np.arange(len(observations.frames)) - np.searchsorted(observations.frames, observations.frames)
        order, ends = np.argsort(observations.points, kind="stable"), [0, *np.cumsum(counts).tolist()]
        frames, numbers = (observations.frames[order] + 1).tolist(), number[order].tolist()
        for i, (position, colour) in enumerate(zip(cloud.points.tolist(), cloud.colours.tolist(), strict=True)):
            rows = slice(ends[i], ends[i + 1])
            x, y, z = position
            words = [f"{i + 1} {x:.9g} {y:.9g} {z:.9g}", *map(str, colour), f"{errors[i]:.4g}"]
            track = [_repeated("%d %d", frames[rows], numbers[rows])] if ends[i] < ends[i + 1] else []
            file.write(" ".join([*words, *track]) + "\n")


def _reprojection_errors(cameras: Cameras, cloud: PointCloud, observations: Observations) -> NDArray[np.float64]:
    """Reprojection error in pixels of each observation, frame by frame."""
    errors = np.zeros(len(observations.frames))
    for frame, camera in enumerate(zip(cameras.world_from_camera.double(), cameras.intrinsics.double(), strict=True)):
        rows = slice(*np.searchsorted(observations.frames, [frame, frame + 1]).tolist())
        points = torch.from_numpy(cloud.points[observations.points[rows]]).double()
        pixels, _ = project(points, Cameras(world_from_camera=camera[0], intrinsics=camera[1]))
        errors[rows] = np.linalg.norm(pixels.numpy() - observations.pixels[rows], axis=-1)
    return errors


def read_colmap(folder: Path) -> tuple[Cameras, list[tuple[int, int]], list[str]]:
    """Read the PINHOLE cameras of a COLMAP model in its images' order: float64 cameras, sizes (h, w), names."""
    model = read_model(folder)
    for identity, camera in model.cameras.items():
        if camera.model != "PINHOLE":
            raise UserError(f"{folder}: camera {identity} is {camera.model}; undistort to PINHOLE first")
    chosen = [model.cameras[view.camera] for view in model.views]
    poses = torch.from_numpy(np.stack([view.world_from_camera for view in model.views]))
    intrinsics = torch.from_numpy(np.stack([camera.intrinsics for camera in chosen]))
    cameras = Cameras(world_from_camera=poses, intrinsics=intrinsics)
    return cameras, [camera.size for camera in chosen], [view.name for view in model.views]


def _repeated(form: str, *columns: Sequence[int] | Sequence[float]) -> str:
    """Rows of several columns in this form, in one line; one operation, since there are millions of rows."""
    flat = [0.0] * (len(columns) * len(columns[0]))
    for index, column in enumerate(columns):
        flat[index :: len(columns)] = column
    return " ".join([form] * len(columns[0])) % tuple(flat)


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.12g}" for value in values)
