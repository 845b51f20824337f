"""Kubric's MOVi-A to F (and panning MOVi-E) as TFDS ships them: TFRecord files of some ten scenes each.

Facts: google-research/kubric at commit 0ee21e2, challenges/movi/movi_{a…f}.py (features, subsampling, depth), README.md
(A to E are rendered at 256 × 256, F at 512 × 512) and challenges/point_tracking/dataset.py (cameras; object coordinates
of a box's corners); tensorflow/datasets, core/example_serializer.py (names of nested features, images as PNG).

Maps of the smaller variants are every n-th pixel of the rendered ones, images are means of n × n: so a map's value is
that of a place up to a quarter of a pixel left of and above the pixel's centre, which rays here account for.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence as Several
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from four_d.datasets import decode, files, tfrecord
from four_d.datasets.facts import DataSet
from four_d.datasets.kubric import FARTHEST, KUBRIC_LICENCES, RATE, poses_of, stretch
from four_d.datasets.png import png16
from four_d.datasets.rigid_tracks import NEAR, QUERIES, View, chosen, spread, visible
from four_d.datasets.sequence import Depth, PerFrame, Sequence, WorldTracks
from four_d.errors import UserError
from four_d.ordering import in_order
from four_d.surface import DYNAMIC_SPEED
from four_d.types import Cameras

LAYOUT = "[movi_f/512x512/1.0.0/]{movi_f-train.tfrecord-00000-of-01024,…[,dataset_info.json]}, movi_a to movi_f"
INFO = "dataset_info.json"
NAME = re.compile(r"((?:panning_)?movi_[a-f])-(\w+)\.tfrecord-(\d+)-of-(\d+)$")
DEPTHS = 4
"""Most folders between the root and the files."""
RENDERED = {"movi_f": 512}
"""Width and height of the rendered pictures; of the other sets `SMALL`."""
SMALL = 256
COUNTS = 65535
AGREEING = 0.5
"""Least share of an object's pixels at which depth and object coordinates tell the same point."""


class Record(NamedTuple):
    """A scene: a record of a file."""

    path: Path
    place: tfrecord.Place
    name: str
    """Name for messages."""
    rendered: int
    """Width of the rendered pictures."""
    frames: int


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """Properties that all frames of a scene share."""

    size: tuple[int, int]
    k: NDArray[np.float64]
    """Intrinsics 3 3, corner origin."""
    poses: NDArray[np.float64]
    """world_from_camera f 4 4, OpenCV axes."""
    span: tuple[float, float]
    """Distances of the first and the last count of depth."""
    boxes: NDArray[np.float64]
    """n f 3 4: world position of the corner of an object's box, and of its three edges, as columns."""
    sampled: float
    """Place of a map's value in its pixel, from the pixel's corner."""

    @property
    def rays(self) -> NDArray[np.float64]:
        """Directions h w 3 of the maps' values, of depth 1."""
        y, x = np.mgrid[: self.size[0], : self.size[1]] + self.sampled
        return np.stack(
            [(x - self.k[0, 2]) / self.k[0, 0], (y - self.k[1, 2]) / self.k[1, 1], np.ones(self.size)], axis=-1
        )


def read_movi(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List every scene of every file that is there, as ``train/00000/3``: split, file, record.

    Of each folder's first scene all is read, of the others the place. UserError for a damaged or incomplete file.
    """
    files.folder(root, LAYOUT)
    found = [path for depth in range(DEPTHS) for path in in_order(root.glob("*/" * depth + "*.tfrecord-*"))]
    scenes: dict[str, tuple[Path, int, str]] = {}
    listed: dict[Path, list[tfrecord.Place]] = {}
    for path in found:
        if (match := NAME.search(path.name)) is None:
            continue
        listed[path] = tfrecord.places(path)
        _require_whole(path, match[2], int(match[3]), len(listed[path]))
        above = path.parent.relative_to(root).as_posix()
        prefix = f"{'' if above == '.' else f'{above}/'}{match[2]}/{match[3]}"
        scenes.update({f"{prefix}/{index}": (path, index, match[1]) for index in range(len(listed[path]))})
    if not scenes:
        raise files.missing(root / "movi_f-train.tfrecord-*", LAYOUT)
    frames: dict[Path, int] = {}
    sequences: list[Sequence] = []
    for name in files.chosen(scenes, only):
        path, index, of = scenes[name]
        told = f"{path}, record {index}"
        if path.parent not in frames:
            first = tfrecord.read(path, listed[path][index], told)
            frames[path.parent] = first.count("video")
        record = Record(path, listed[path][index], told, RENDERED.get(of, SMALL), frames[path.parent])
        sequences.append(_sequence(name, record))
    return sequences


def _require_whole(path: Path, split: str, shard: int, count: int) -> None:
    """Raise UserError if a file has another number of records than ``dataset_info.json``, where there is one, says."""
    info = path.parent / INFO
    if not info.is_file():
        return
    splits = decode.json_object(info).get("splits")
    for each in cast(list[dict[str, object]], splits if isinstance(splits, list) else []):
        lengths = cast(list[object], each.get("shardLengths") or [])
        if each.get("name") == split and shard < len(lengths) and int(cast(str, lengths[shard])) != count:
            raise UserError(f"{path} has {count} records, by {INFO} it should have {lengths[shard]}; {tfrecord.AGAIN}")


def _sequence(name: str, record: Record) -> Sequence:
    items = [(record, frame) for frame in range(record.frames)]
    return Sequence(
        name=name,
        frames=record.frames,
        times=files.frame_times(record.frames, RATE),
        images=PerFrame(_images, items),
        cameras=partial(_cameras, record),
        depth=PerFrame(_depths, items),
        masks=PerFrame(_moving, items),
        world_tracks=partial(_tracks, record),
    )


@lru_cache(maxsize=1)
def _kept(record: Record, changed: int) -> tfrecord.Example:  # noqa: ARG001  a changed file is read again
    _kept.cache_clear()  # so that the last record goes before this one comes: they have up to some 100 MB
    return tfrecord.read(record.path, record.place, record.name)


def _example(record: Record) -> tfrecord.Example:
    """Read the record, or take it if it was the last one that was read."""
    try:
        example = _kept(record, record.path.stat().st_mtime_ns)
    except OSError as error:
        raise UserError(f"{record.path} cannot be read ({error.strerror or error}); {tfrecord.AGAIN}") from error
    if (count := example.count("video")) != record.frames:
        raise UserError(f"{record.name} has {count} frames, others {record.frames}; {tfrecord.AGAIN}")
    return example


def _scene(record: Record) -> _Scene:
    example, frames = _example(record), record.frames
    size = int(example.numbers("metadata/height", 1)[0]), int(example.numbers("metadata/width", 1)[0])
    step = record.rendered // max(size[1], 1)
    if size[0] != size[1] or step < 1 or step * size[1] != record.rendered:
        raise UserError(
            f"{record.name} is {size[1]} × {size[0]}, no variant of pictures of {record.rendered} × {record.rendered}"
        )
    focal = example.numbers("camera/focal_length", 1)[0] / example.numbers("camera/sensor_width", 1)[0] * size[1]
    nearest, farthest = example.numbers("metadata/depth_range", 2)
    corners = example.numbers("instances/bboxes_3d", -1, frames, 2, 2, 2, 3)
    edges = [(corners.take(1, axis) - corners.take(0, axis)).mean((2, 3)) for axis in (2, 3, 4)]
    return _Scene(
        size=size,
        k=files.pinhole(focal, focal, size[1] / 2, size[0] / 2, centre_origin=False),
        poses=poses_of(
            example.numbers("camera/positions", frames, 3), example.numbers("camera/quaternions", frames, 4)
        ),
        span=(nearest, farthest),
        boxes=np.stack([*edges, corners.mean((2, 3, 4)) - sum(edges) / 2], axis=-1),
        sampled=((step - 1) // 2 + 0.5) / step,
    )


def _cameras(record: Record) -> Cameras:
    scene = _scene(record)
    return files.cameras(scene.poses, scene.k)


def _maps(record: Record, name: str, frames: Several[int], mode: tuple[str, ...]) -> NDArray[np.generic]:
    """Decode PNGs of some frames, f h w or f h w c, which Pillow must open in one of these modes."""
    pictures: list[NDArray[np.generic]] = []
    for data in _example(record).strings(name, list(frames)):
        try:
            with Image.open(io.BytesIO(data), formats=["PNG"]) as opened:
                if opened.mode not in mode:
                    raise ValueError(f"mode {opened.mode}")
                pictures.append(np.array(opened))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"{record.name} has no readable picture as {name} ({error}); {tfrecord.AGAIN}") from error
    sizes = {each.shape[:2] for each in pictures}
    if sizes != {_scene(record).size}:
        raise UserError(f"{record.name} has pictures of {sorted(sizes)} as {name}; {tfrecord.AGAIN}")
    return np.stack(pictures)


def _images(items: list[tuple[Record, int]]) -> NDArray[np.uint8]:
    return _maps(items[0][0], "video", [frame for _, frame in items], ("RGB",)).astype(np.uint8)


def _depths(items: list[tuple[Record, int]]) -> Depth:
    """Read counts from the nearest to the farthest distance to the camera's centre, and convert them to z-depth."""
    record, scene = items[0][0], _scene(items[0][0])
    counts = _maps(record, "depth", [frame for _, frame in items], ("I;16", "I;16B", "I")).astype(np.float64)
    distances = counts / COUNTS * (scene.span[1] - scene.span[0]) + scene.span[0]
    valid = np.isfinite(distances) & (distances > 0) & (distances < FARTHEST)
    depth = distances / stretch(*scene.size, scene.k, scene.sampled)
    return np.where(valid, depth, 0).astype(np.float32), np.asarray(valid)


def _instances(record: Record, frames: Several[int], count: int) -> NDArray[np.int64]:
    """Read the object that each pixel shows, f h w; −1 is the surroundings."""
    found = _maps(record, "segmentations", frames, ("L", "P")).astype(np.int64) - 1
    if found.max() >= count:
        raise UserError(f"{record.name} shows object {found.max() + 1} and has {count} objects; {tfrecord.AGAIN}")
    return found


def _moving(items: list[tuple[Record, int]]) -> NDArray[np.bool_]:
    """Pixels whose point moves, as shards define it: faster than `DYNAMIC_SPEED` to a neighbouring frame, f h w."""
    record, scene, frames = items[0][0], _scene(items[0][0]), [frame for _, frame in items]
    shown = _instances(record, frames, len(scene.boxes))
    depth, valid = _depths(items)
    moving = np.zeros(shown.shape, bool)
    for at, frame in enumerate(frames):
        pixels = (shown[at] >= 0) & valid[at]
        objects = shown[at][pixels]
        local = _local(scene, objects, frame, _seen(scene, depth[at], frame)[pixels])
        for other in {max(frame - 1, 0), min(frame + 1, record.frames - 1)} - {frame}:
            way = _placed(scene, objects, other, local) - _placed(scene, objects, frame, local)
            moving[at][pixels] |= np.linalg.norm(way, axis=-1) * RATE > DYNAMIC_SPEED
    return moving


def _seen(scene: _Scene, depth: NDArray[np.float32], frame: int) -> NDArray[np.float64]:
    """World positions h w 3 of what the maps of a frame show."""
    pose = scene.poses[frame]
    return (scene.rays * depth[..., None]) @ pose[:3, :3].T + pose[:3, 3]


def _placed(scene: _Scene, objects: NDArray[np.int64], frame: int, local: NDArray[np.float64]) -> NDArray[np.float64]:
    """World positions n 3 of points in coordinates of their objects' boxes, from 0 to 1."""
    boxes = scene.boxes[objects, frame]
    return np.einsum("nij,nj->ni", boxes[..., :3], local) + boxes[..., 3]


def _local(scene: _Scene, objects: NDArray[np.int64], frame: int, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coordinates in the objects' boxes of points n 3 of the world."""
    boxes = scene.boxes[:, frame]
    inverse = np.linalg.pinv(boxes[..., :3])
    return np.einsum("nij,nj->ni", inverse[objects], points - boxes[objects, :, 3])


def _tracks(record: Record) -> WorldTracks:
    """Track points of the surface through all frames.

    Of an object's pixel the object coordinates tell which point of its box it is, and the box's corners where that is
    at each time. The surroundings stand still: depth tells where.
    """
    scene, frames = _scene(record), record.frames
    start = [_queries(record, scene, frame) for frame in spread(frames, QUERIES)]
    objects, local = (np.concatenate(each) for each in zip(*start, strict=True))
    still = objects < 0
    points = np.empty((len(objects), frames, 3))
    seen = np.zeros(points.shape[:2], bool)
    for frame in range(frames):
        points[still, frame] = local[still]
        points[~still, frame] = _placed(scene, objects[~still], frame, local[~still])
        seen[:, frame] = visible(_view(record, scene, frame), objects, points[:, frame])
    return WorldTracks(
        points=points, known=np.ones(seen.shape, bool), visible=seen, times=files.frame_times(frames, RATE)
    )


def _view(record: Record, scene: _Scene, frame: int) -> View:
    depth, valid = _depths([(record, frame)])
    return View(
        shown=_instances(record, [frame], len(scene.boxes))[0],
        surface=_seen(scene, depth[0], frame),
        valid=valid[0],
        pose=scene.poses[frame],
        k=scene.k,
        sampled=scene.sampled,
    )


def _queries(record: Record, scene: _Scene, frame: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Objects n of tracked pixels of a frame, and their points n 3: of objects in their boxes, of others in the world.

    Pixels at which depth and object coordinates tell two points are left out: they are of edges. UserError if most are.
    """
    view = _view(record, scene, frame)
    data = _example(record).strings("object_coordinates", [frame])[0]
    try:
        local = png16(data).astype(np.float64) / COUNTS
    except ValueError as error:
        raise UserError(
            f"{record.name} has no readable picture as object_coordinates ({error}); {tfrecord.AGAIN}"
        ) from error
    if local.shape != (*scene.size, 3):
        raise UserError(f"{record.name} has object_coordinates of {local.shape}; {tfrecord.AGAIN}")
    things = (view.shown >= 0) & view.valid
    off = np.linalg.norm(_placed(scene, view.shown[things], frame, local[things]) - view.surface[things], axis=-1)
    distance = np.linalg.norm(view.surface[things] - view.pose[:3, 3], axis=-1)
    agree = off <= NEAR * distance / scene.k[0, 0]
    if len(agree) and agree.mean() < AGREEING:
        raise UserError(
            f"{record.name}: in frame {frame} depth and object coordinates agree in {agree.mean():.0%} of the objects' "
            f"pixels only; {tfrecord.AGAIN}, or leave the scene out with --sequences"
        )
    things[things] = agree
    pixels = chosen(view, things)
    objects = view.shown.ravel()[pixels]
    return objects, np.where(objects[:, None] >= 0, local.reshape(-1, 3)[pixels], view.surface.reshape(-1, 3)[pixels])


MOVI_TFDS = DataSet(
    name="movi_tfds",
    title="Kubric's MOVi-A to F as TFDS ships them",
    home="gs://kubric-public/tfds; github.com/google-research/kubric, challenges/movi",
    licences=KUBRIC_LICENCES,
    layout=LAYOUT,
    reader=read_movi,
    notes="distances to the camera become z-depth; tracks are of object coordinates and boxes, or of still "
    "surroundings; of the 128 and 256 variants maps are up to a quarter of a pixel beside their images; flow and "
    "normals are not read",
)
