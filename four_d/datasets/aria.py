"""Aria Digital Twin as published: VRS recordings of a head-set's cameras, with depth, instances and poses of objects.

Facts: facebookresearch/projectaria_tools at commit 90f70ff (its ADT tools and its test recording, on which this is
tested) and its page of the data format. VRS files are read by the package projectaria-tools, which this reader imports
when it is used. Poses are world_from_device and device_from_camera, axes OpenCV's; depth is z-depth in millimetres.
"""

from __future__ import annotations

import csv
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import roma
import torch
from numpy.typing import NDArray

from four_d.datasets import decode, files
from four_d.datasets.facts import DataSet, Licence
from four_d.datasets.rigid_tracks import QUERIES, View, chosen, spread, visible
from four_d.datasets.sequence import Depth, PerFrame, Sequence, WorldTracks
from four_d.errors import UserError
from four_d.ordering import in_order
from four_d.types import Cameras

LAYOUT = (
    "[SEQ/]{video.vrs,depth_images[_with_skeleton].vrs,segmentations[_with_skeleton].vrs,aria_trajectory.csv,"
    "scene_objects.csv,instances.json}"
)
PACKAGE = "pip install projectaria-tools"
STREAMS = {"video": "214-1", "depth_images": "345-1", "segmentations": "400-1"}
"""Streams of the colour camera."""
LABEL = "camera-rgb"
SIZE, FOCAL = 512, 280.0
"""Width and height of the pinhole pictures that are made of the fisheye ones, and their focal length in pixels."""
UPRIGHT = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
"""Axes of the upright picture in the sensor's, which is mounted a quarter turn off."""
STEP = 4
"""Pixels between those whose place in the fisheye picture is computed; the others' are interpolated."""
TOGETHER = 1_000_000
"""Most nanoseconds between a depth map and the image and poses that belong to it."""
LENGTH = 96
"""Frames of a sequence; recordings of minutes are cut into such."""
STILL = -1
"""Time stamp of an object that never moves."""

T = TypeVar("T")


class Frame(NamedTuple):
    """A moment of a recording: where it lies in the files."""

    folder: Path
    time: int
    """Time stamp of the depth map (ns)."""


@dataclass(frozen=True, kw_only=True)
class Objects:
    """Things of a recording that move, and people."""

    numbers: dict[int, int]
    """Index of each moving thing, by its uid."""
    still: frozenset[int]
    """uids of things that never move."""
    times: NDArray[np.int64]
    poses: NDArray[np.float64]
    """n t 4 4: world_from_object; NaN where there is none."""


def read_adt(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List all recordings under ``root``, cut into stretches of up to `LENGTH` frames, as ``SEQ/000000``."""
    files.folder(root, LAYOUT)
    found = [root] if (root / "video.vrs").is_file() else [path.parent for path in in_order(root.glob("*/video.vrs"))]
    if not found:
        raise files.missing(root / "SEQ" / "video.vrs", LAYOUT)
    stretches: dict[str, list[Frame]] = {}
    for folder in found:
        for name in ("aria_trajectory.csv", "scene_objects.csv", "instances.json"):
            files.file(folder / name, LAYOUT)
        frames = _frames(folder)
        stretches.update({f"{folder.name}/{at:06d}": frames[at : at + LENGTH] for at in range(0, len(frames), LENGTH)})
    return [_sequence(name, stretches[name]) for name in files.chosen(stretches, only)]


def _frames(folder: Path) -> list[Frame]:
    """List moments that have a depth map, and an image at its time."""
    times = _times(_file(folder, "depth_images"), STREAMS["depth_images"])
    images = np.array(_times(_file(folder, "video"), STREAMS["video"]))
    kept = [time for time in times if len(images) and np.abs(images - time).min() <= TOGETHER]
    if not kept:
        raise UserError(f"{folder} has no depth map at the time of an image of the colour camera; download it again")
    return [Frame(folder, time) for time in kept]


def _sequence(name: str, frames: list[Frame]) -> Sequence:
    folder = frames[0].folder
    maps = [_file(folder, kind) for kind in STREAMS]
    stamps = tuple((frame.time - frames[0].time) / 1e9 for frame in frames)
    tables = [folder / name for name in ("aria_trajectory.csv", "scene_objects.csv", "instances.json")]
    return Sequence(
        name=name,
        frames=len(frames),
        times=stamps,
        images=PerFrame(_images, frames),
        cameras=partial(_cameras, frames),
        depth=PerFrame(_depths, frames),
        world_tracks=partial(_tracks, tuple(frames)),
        listing=(*maps, *tables),
    )


def _file(folder: Path, kind: str) -> Path:
    """VRS file of a kind; the one that shows people too, where there is one."""
    whole = folder / f"{kind}_with_skeleton.vrs"
    return whole if whole.is_file() else files.file(folder / f"{kind}.vrs", LAYOUT)


@lru_cache(maxsize=6)
def _provider(path: Path, changed: int) -> Any:  # noqa: ANN401, ARG001  has no types; a changed file is opened again
    try:
        module = importlib.import_module("projectaria_tools.core.data_provider")
    except ImportError as error:
        raise UserError(f"reading {path} takes projectaria-tools; install it with: {PACKAGE}") from error
    provider = _asked(path, lambda: module.create_vrs_data_provider(str(path)))
    if provider is None:
        raise UserError(f"{path} is not a readable VRS file; download it again")
    return provider


def _asked(path: Path, ask: Callable[[], T]) -> T:
    """Ask the package, whose errors become UserError with the file's name."""
    try:
        return ask()
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); download it again") from error


def _opened(path: Path) -> Any:  # noqa: ANN401
    return _provider(path, path.stat().st_mtime_ns)


def _domain(name: str) -> Any:  # noqa: ANN401
    return importlib.import_module("projectaria_tools.core.sensor_data").TimeDomain.__members__[name]


def _stream(name: str) -> Any:  # noqa: ANN401
    return importlib.import_module("projectaria_tools.core.stream_id").StreamId(name)


def _times(path: Path, stream: str) -> list[int]:
    provider = _opened(path)
    return _asked(path, lambda: list(provider.get_timestamps_ns(_stream(stream), _domain("DEVICE_TIME"))))


def _picture(frame: Frame, kind: str) -> NDArray[np.generic]:
    """Picture of a kind, as recorded, at a moment."""
    path = _file(frame.folder, kind)
    times = np.array(_times(path, STREAMS[kind]))
    at = int(np.abs(times - frame.time).argmin()) if len(times) else 0
    if not len(times) or abs(int(times[at]) - frame.time) > TOGETHER:
        raise UserError(f"{path} has no picture at {frame.time} ns; download it again")
    provider = _opened(path)
    return _asked(path, lambda: provider.get_image_data_by_index(_stream(STREAMS[kind]), at)[0].to_numpy_array())


@lru_cache(maxsize=2)
def _lens(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """device_from_camera of the upright pinhole camera (4 4), and of its pixels the place in the fisheye picture.

    Places are h w 2 (x, y), counted from the first pixel's centre; which of them are inside, h w.
    """
    provider = _opened(path)
    lens = _asked(path, lambda: provider.get_device_calibration().get_camera_calib(LABEL))
    if lens is None:
        raise UserError(f"{path} has no calibration of {LABEL}; download it again")
    grid = np.arange(-(SIZE // 2), SIZE // 2 + STEP, STEP) / FOCAL
    x, y = np.meshgrid(grid, grid)
    rays = np.stack([x, y, np.ones(x.shape)], -1) @ UPRIGHT.T
    coarse = np.array(
        [_asked(path, lambda ray=ray: lens.project_no_checks(ray)) for ray in rays.reshape(-1, 3)], np.float64
    ).reshape(*x.shape, 2)
    at = (np.arange(SIZE) + 0.5) / STEP
    low = at.astype(int)
    part = (at - low)[:, None]
    rows = coarse[low] * (1 - part[..., None]) + coarse[low + 1] * part[..., None]
    places = rows[:, low] * (1 - part) + rows[:, low + 1] * part
    width, height = (int(side) for side in lens.get_image_size())
    inside = np.all((places >= 0) & (places <= [width - 1, height - 1]), axis=-1)
    pose = np.array(lens.get_transform_device_camera().to_matrix(), np.float64).reshape(4, 4)
    pose[:3, :3] = pose[:3, :3] @ UPRIGHT
    return pose, np.where(inside[..., None], places, 0.0), np.asarray(inside)


def _nearest(frame: Frame, kind: str) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """Values of a map at the pinhole picture's pixels, of the nearest pixel, and whether there is one."""
    _, places, inside = _lens(_file(frame.folder, "video"))
    values = _picture(frame, kind)
    x, y = np.rint(places).astype(int).transpose(2, 0, 1)
    if values.ndim != 2 or y.max() >= values.shape[0] or x.max() >= values.shape[1]:
        raise UserError(f"{_file(frame.folder, kind)} has maps of {values.shape}, not those of the colour camera")
    return values[y, x], inside


def _images(frames: list[Frame]) -> NDArray[np.uint8]:
    return np.stack([_image(frame) for frame in frames])


def _image(frame: Frame) -> NDArray[np.uint8]:
    """Read an image, interpolated between pixels; black where the lens shows nothing."""
    _, places, inside = _lens(_file(frame.folder, "video"))
    values = _picture(frame, "video").astype(np.float32)
    if values.ndim != 3 or values.shape[2] != 3:
        raise UserError(f"{_file(frame.folder, 'video')} has pictures of {values.shape}, not of colour")
    low = np.minimum(places.astype(int), np.array(values.shape[1::-1]) - 2)
    x, y = low.transpose(2, 0, 1)
    dx, dy = (places - low).astype(np.float32).transpose(2, 0, 1)[..., None]
    upper = values[y, x] * (1 - dx) + values[y, x + 1] * dx
    lower = values[y + 1, x] * (1 - dx) + values[y + 1, x + 1] * dx
    mixed = np.rint(upper * (1 - dy) + lower * dy)
    return np.where(inside[..., None], mixed, 0).astype(np.uint8)


def _depths(frames: list[Frame]) -> Depth:
    """Read depth of the scene in metres."""
    found = [_nearest(frame, "depth_images") for frame in frames]
    values = np.stack([each.astype(np.float32) / 1000 for each, _ in found])
    valid = np.stack([inside for _, inside in found]) & (values > 0)
    return np.where(valid, values, 0).astype(np.float32), valid


def _intrinsics() -> NDArray[np.float64]:
    return files.pinhole(FOCAL, FOCAL, SIZE / 2, SIZE / 2, centre_origin=False)


def _cameras(frames: list[Frame]) -> Cameras:
    """Cameras of the frames; without a pose where the trajectory has none at their time."""
    times, poses = _trajectory(frames[0].folder / "aria_trajectory.csv")
    camera, _, _ = _lens(_file(frames[0].folder, "video"))
    stamps = np.array([frame.time for frame in frames])
    at = np.abs(np.subtract.outer(stamps, times)).argmin(-1)
    lost = np.abs(times[at] - stamps) > TOGETHER
    found = poses[at] @ camera
    found[lost] = np.nan
    return files.cameras(found, _intrinsics())


def _rows(path: Path, columns: tuple[str, ...]) -> list[list[str]]:
    """Read columns of a table by their names."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            return [[row[column] for column in columns] for row in rows]
    except (OSError, KeyError, csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} has no readable column {error}; download it again") from error


def _poses(path: Path, rows: list[list[str]]) -> NDArray[np.float64]:
    """Poses n 4 4 of rows of three places and a quaternion (x y z w)."""
    try:
        values = np.array(rows, np.float64).reshape(-1, 7)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} has something that is not a number ({error}); download it again") from error
    poses = np.tile(np.eye(4), (len(values), 1, 1))
    turns = torch.from_numpy(values[:, 3:] / np.linalg.norm(values[:, 3:], axis=-1, keepdims=True))
    poses[:, :3, :3] = roma.unitquat_to_rotmat(turns).numpy()
    poses[:, :3, 3] = values[:, :3]
    return poses


def _integers(path: Path, values: list[str]) -> NDArray[np.int64]:
    try:
        return np.array([int(value) for value in values], np.int64)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} has something that is no whole number ({error}); download it again") from error


@lru_cache(maxsize=2)
def _trajectory(path: Path) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Read times (ns) and world_from_device n 4 4."""
    axes = ("tx", "ty", "tz", "qx", "qy", "qz", "qw")
    rows = _rows(path, ("tracking_timestamp_us", *(f"{axis}_world_device" for axis in axes)))
    if not rows:
        raise UserError(f"{path} is empty; download it again")
    return _integers(path, [row[0] for row in rows]) * 1000, _poses(path, [row[1:] for row in rows])


@lru_cache(maxsize=2)
def _objects(folder: Path) -> Objects:
    """Read what moves, and where it is at each time."""
    path = folder / "scene_objects.csv"
    axes = ("t_wo_x[m]", "t_wo_y[m]", "t_wo_z[m]", "q_wo_x", "q_wo_y", "q_wo_z", "q_wo_w")
    rows = _rows(path, ("object_uid", "timestamp[ns]", *axes))
    uids, times = (_integers(path, [row[column] for row in rows]) for column in (0, 1))
    poses = _poses(path, [row[2:] for row in rows])
    about = decode.json_object(folder / "instances.json", "download it again")
    people = {
        int(uid)
        for uid, each in about.items()
        if isinstance(each, dict) and cast(dict[str, object], each).get("instance_type") == "human"
    }
    moves = times != STILL
    numbers = {int(uid): index for index, uid in enumerate(np.unique(uids[moves]))}
    moments = np.unique(times[moves])
    placed = np.full((len(numbers), len(moments), 4, 4), np.nan)
    placed[[numbers[int(uid)] for uid in uids[moves]], np.searchsorted(moments, times[moves])] = poses[moves]
    still = frozenset(int(uid) for uid in np.unique(uids[~moves]) if int(uid) not in numbers.keys() | people)
    return Objects(numbers=numbers, still=still, times=moments, poses=placed)


def _at(objects: Objects, time: int) -> NDArray[np.float64]:
    """world_from_object of all moving things at a time, n 4 4; NaN where unknown."""
    if not len(objects.times):
        return np.zeros((0, 4, 4))
    at = int(np.abs(objects.times - time).argmin())
    near = abs(int(objects.times[at]) - time) <= TOGETHER
    return objects.poses[:, at] if near else np.full_like(objects.poses[:, at], np.nan)


def _view(frame: Frame, objects: Objects, camera: Cameras, at: int) -> View:
    """Maps of a frame. Only what moves as its poses say, or stands still, is valid: people and the unknown are not."""
    depth, valid = _depths([frame])
    uids, _ = _nearest(frame, "segmentations")
    there, inverse = np.unique(uids, return_inverse=True)
    things = np.array([objects.numbers.get(int(uid), -1) for uid in there])
    known = np.array([int(uid) in objects.numbers or int(uid) in objects.still for uid in there])
    pose, k = camera.world_from_camera[at].numpy(), camera.intrinsics[at].numpy()
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    rays = np.stack([(x - k[0, 2]) / k[0, 0], (y - k[1, 2]) / k[1, 1], np.ones(x.shape)], -1)
    return View(
        shown=things[inverse].reshape(uids.shape),
        surface=(rays * depth[0][..., None]) @ pose[:3, :3].T + pose[:3, 3],
        valid=valid[0] & known[inverse].reshape(uids.shape),
        pose=pose,
        k=k,
    )


@lru_cache(maxsize=1)
def _tracks(frames: tuple[Frame, ...]) -> WorldTracks:
    """Track points: of things that move by their poses, of those that do not as standing still."""
    objects, cameras = _objects(frames[0].folder), _cameras(list(frames))
    posed = np.ones(len(frames), bool) if cameras.known is None else cameras.known.numpy()
    placed = np.stack([_at(objects, frame.time) for frame in frames])
    things, local = np.zeros(0, np.int64), np.zeros((0, 3))
    usable = np.flatnonzero(posed)
    for at in usable[spread(len(usable), QUERIES)].tolist():
        view = _view(frames[at], objects, cameras, at)
        pixels = chosen(view, view.shown >= 0)
        own, points = view.shown.ravel()[pixels], view.surface.reshape(-1, 3)[pixels]
        moving = own >= 0
        inverse = files.inverted(placed[at, own[moving]])
        points[moving] = np.einsum("nij,nj->ni", inverse[:, :3, :3], points[moving]) + inverse[:, :3, 3]
        kept = np.isfinite(points).all(-1)
        things, local = np.concatenate([things, own[kept]]), np.concatenate([local, points[kept]])
    points, seen = np.empty((len(things), len(frames), 3)), np.zeros((len(things), len(frames)), bool)
    moving = things >= 0
    for at, frame in enumerate(frames):
        pose = placed[at, things[moving]]
        points[~moving, at] = local[~moving]
        points[moving, at] = np.einsum("nij,nj->ni", pose[:, :3, :3], local[moving]) + pose[:, :3, 3]
        if posed[at]:
            known = np.isfinite(points[:, at]).all(-1)
            view = _view(frame, objects, cameras, at)
            seen[known, at] = visible(view, things[known], points[known, at])
    known = np.asarray(np.isfinite(points).all(-1))
    times = tuple((frame.time - frames[0].time) / 1e9 for frame in frames)
    return WorldTracks(points=np.where(known[..., None], points, 0), known=known, visible=seen, times=times)


ADT = DataSet(
    name="adt",
    title="Aria Digital Twin, its colour camera made a pinhole one",
    home="projectaria.com/datasets/adt",
    licences=(
        Licence(text="terms of its own, not checked; others list them as non-commercial", said_by="the set"),
        Licence(text="Apache-2.0", said_by="the repository of its test recording"),
    ),
    layout=LAYOUT,
    reader=read_adt,
    depth_tolerance=0.05,
    notes="takes the package projectaria-tools; the colour camera alone, upright, 512 × 512; without files "
    "_with_skeleton depth and tracks are of the scene without its wearer, whose hands the images show",
)
