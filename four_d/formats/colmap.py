"""COLMAP's reconstructions, text and binary: cameras of any model, poses, and the points that images observe.

Conventions: axes as ours; a pose is camera_from_world as quaternion (w, x, y, z) and translation; pixel (0, 0) is the
corner of the top-left pixel. Layouts: colmap.github.io/format.html.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import roma
import torch
from numpy.typing import NDArray

from four_d.errors import UserError
from four_d.ordering import in_order

MODELS = (
    ("SIMPLE_PINHOLE", 3),
    ("PINHOLE", 4),
    ("SIMPLE_RADIAL", 4),
    ("RADIAL", 5),
    ("OPENCV", 8),
    ("OPENCV_FISHEYE", 8),
    ("FULL_OPENCV", 12),
    ("FOV", 5),
    ("SIMPLE_RADIAL_FISHEYE", 4),
    ("RADIAL_FISHEYE", 5),
    ("THIN_PRISM_FISHEYE", 12),
    ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
    ("SIMPLE_DIVISION", 4),
    ("DIVISION", 5),
    ("SIMPLE_FISHEYE", 3),
    ("FISHEYE", 4),
    ("EUCM", 6),
    ("EQUIRECTANGULAR", 2),
)
"""Names of camera models and counts of their parameters; the index is the number in binary files."""
ONE_FOCAL = (
    *("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "SIMPLE_DIVISION"),
    "SIMPLE_FISHEYE",
)
"""Models that begin with f cx cy; the others with fx fy cx cy."""
NAMES = ("cameras", "images", "points3D")
MOST = 2**31
"""Largest plausible count in a file; larger ones are damage."""


@dataclass(frozen=True, kw_only=True)
class Camera:
    """One calibrated camera."""

    model: str
    size: tuple[int, int]
    """Height, width."""
    params: tuple[float, ...]

    @property
    def intrinsics(self) -> NDArray[np.float64]:
        """Matrix 3 3 of the pinhole part, corner origin."""
        one = self.model in ONE_FOCAL
        fx, fy, cx, cy = (self.params[0], *self.params[:3]) if one else self.params[:4]
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])

    @property
    def distortion(self) -> tuple[float, ...]:
        """Parameters after the pinhole part, in the model's own order."""
        return self.params[3 if self.model in ONE_FOCAL else 4 :]


@dataclass(frozen=True, kw_only=True)
class View:
    """One registered image."""

    name: str
    """Path below COLMAP's image folder."""
    camera: int
    world_from_camera: NDArray[np.float64]
    """4 4"""
    observed: NDArray[np.int64]
    """Ids of the points that it observes."""


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """A model folder."""

    cameras: dict[int, Camera]
    views: list[View]
    """In the file's order."""
    points: dict[int, NDArray[np.float64]]
    """Id → position 3 in the world."""


def model_folder(root: Path) -> Path | None:
    """Folder at or below ``root`` that holds a model, in the places where COLMAP and its users put it."""
    places = (".", "sparse/0", "sparse", "colmap/sparse/0", "colmap/sparse", "dense/sparse", "dense/0/sparse")
    for place in places:
        if _is_model(root / place):
            return root / place
    return None


def other_models(folder: Path) -> list[Path]:
    """Models beside one that COLMAP numbered: it makes one for each part of the images that it could not join."""
    if not folder.name.isdigit():
        return []
    return [
        path
        for path in in_order(folder.parent.iterdir())
        if path.name.isdigit() and _is_model(path) and path.name != folder.name
    ]


def _is_model(folder: Path) -> bool:
    return any((folder / f"cameras.{kind}").is_file() for kind in ("bin", "txt"))


def read_model(folder: Path) -> Reconstruction:
    """Read a model, binary where it is, else text. UserError for missing or damaged files."""
    kind = "bin" if (folder / "cameras.bin").is_file() else "txt"
    paths = [folder / f"{name}.{kind}" for name in NAMES]
    for path in paths[:2]:
        if not path.is_file():
            raise UserError(f"{path} is missing; give a folder with cameras, images and points3D of COLMAP")
    try:
        if kind == "bin":
            cameras, views = _binary_cameras(paths[0]), _binary_views(paths[1])
            points = _binary_points(paths[2]) if paths[2].is_file() else {}
        else:
            cameras, views = _text_cameras(paths[0]), _text_views(paths[1])
            points = _text_points(paths[2]) if paths[2].is_file() else {}
    except (ValueError, IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise UserError(f"{folder} is not a readable model of COLMAP ({error}); export it again") from error
    for view in views:
        if view.camera not in cameras:
            raise UserError(f"{paths[1]}: {view.name} has camera {view.camera}, which {paths[0].name} lacks")
    return Reconstruction(cameras=cameras, views=views, points=points)


def _camera(model: str, width: int, height: int, params: Sequence[float]) -> Camera:
    counts = dict(MODELS)
    if model not in counts:
        raise ValueError(f"camera model {model} is not known")
    if len(params) != counts[model]:
        raise ValueError(f"a camera of {model} has {len(params)} parameters, not {counts[model]}")
    if not np.isfinite(params).all() or min(width, height) < 1 or params[0] <= 0:
        raise ValueError(f"a camera of {model} has implausible values")
    return Camera(model=model, size=(height, width), params=tuple(params))


def _view(numbers: Sequence[float], camera: int, name: str, observed: NDArray[np.int64]) -> View:
    quaternion, translation = np.array(numbers[:4]), np.array(numbers[4:7])
    length = np.linalg.norm(quaternion)
    if not np.isfinite(numbers).all() or length < 1e-6:
        raise ValueError(f"{name} has no pose")
    turned = roma.unitquat_to_rotmat(roma.quat_wxyz_to_xyzw(torch.from_numpy(quaternion / length))).numpy()
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turned.T, -turned.T @ translation
    return View(name=name, camera=camera, world_from_camera=pose, observed=observed)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8-sig").splitlines()  # Windows' editors begin with a mark


def _says(line: str) -> bool:
    """False for empty lines and comments, which COLMAP passes over wherever an entry may begin."""
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _text_cameras(path: Path) -> dict[int, Camera]:
    rows = [line.split() for line in _lines(path) if _says(line)]
    return {int(row[0]): _camera(row[1], int(row[2]), int(row[3]), [float(v) for v in row[4:]]) for row in rows}


def _text_views(path: Path) -> list[View]:
    """Each image has two lines, of which the second, of 2D points, may be empty."""
    lines = iter(_lines(path))
    views: list[View] = []
    for line in filter(_says, lines):
        row = line.split(maxsplit=9)
        observed = np.array(next(lines, "").split()[2::3], np.int64)
        views.append(_view([float(v) for v in row[1:8]], int(row[8]), row[9].strip(), observed[observed >= 0]))
    return views


def _text_points(path: Path) -> dict[int, NDArray[np.float64]]:
    rows = (line.split(maxsplit=4) for line in _lines(path) if _says(line))
    return {int(row[0]): np.array(row[1:4], np.float64) for row in rows}


class _Bytes:
    """Reader of a binary file from front to back. ValueError where it ends too early."""

    def __init__(self, path: Path) -> None:
        self._content, self._at, self._name = path.read_bytes(), 0, path.name

    def take(self, form: str) -> tuple[int | float, ...]:
        size = struct.calcsize(f"<{form}")
        return struct.unpack(f"<{form}", self._next(size))

    def count(self) -> int:
        """A count, which what is left of the file must allow."""
        (number,) = struct.unpack("<Q", self._next(8))
        if number > min(MOST, len(self._content)):
            raise ValueError(f"{self._name} declares {number} entries")
        return number

    def third(self, count: int) -> NDArray[np.int64]:
        """Third of three numbers of 8 bytes each, of ``count`` records."""
        return np.frombuffer(self._next(24 * count), "<i8").reshape(-1, 3)[:, 2].astype(np.int64)

    def name(self) -> str:
        end = self._content.index(b"\0", self._at)
        return self._next(end + 1 - self._at)[:-1].decode()

    def skip(self, size: int) -> None:
        self._next(size)

    def _next(self, size: int) -> bytes:
        if self._at + size > len(self._content):
            raise ValueError(f"{self._name} ends too early")
        self._at += size
        return self._content[self._at - size : self._at]


def _binary_cameras(path: Path) -> dict[int, Camera]:
    file, cameras = _Bytes(path), dict[int, Camera]()
    for _ in range(file.count()):
        identity, number, width, height = (int(value) for value in file.take("iiQQ"))
        if not 0 <= number < len(MODELS):
            raise ValueError(f"camera model number {number} is not known")
        name, count = MODELS[number]
        cameras[identity] = _camera(name, width, height, file.take(f"{count}d"))
    return cameras


def _binary_views(path: Path) -> list[View]:
    return list(_each_binary_view(_Bytes(path)))


def _each_binary_view(file: _Bytes) -> Iterator[View]:
    for _ in range(file.count()):
        _, *numbers, camera = file.take("I7dI")
        name = file.name()
        observed = file.third(file.count())
        yield _view(numbers, int(camera), name, observed[observed >= 0])


def _binary_points(path: Path) -> dict[int, NDArray[np.float64]]:
    file, points = _Bytes(path), dict[int, NDArray[np.float64]]()
    for _ in range(file.count()):
        identity, x, y, z = file.take("Q3d")
        file.skip(3 + 8)  # colour and error
        file.skip(8 * file.count())
        points[int(identity)] = np.array([x, y, z])
    return points
