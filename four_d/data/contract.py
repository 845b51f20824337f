"""Shard layout as code (`docs/data.md` describes it): one clip as arrays, and the names of its members."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from four_d.data.crops import Crop
from four_d.keypoints import check_skeleton
from four_d.types import SAME_TIME

VERSION = 1

MOST_TOLERANCE = 0.2
"""Largest relative error of depth that a source may state: beyond it nothing is checked."""
MOST_PIXELS = 64.0
"""Largest distance in pixels that a source may state."""
KEY = re.compile(r"[A-Za-z0-9_-]{1,60}")
"""Pattern of a sample's name: no dot, so that WebDataset's key is ours."""


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """One instance of a scene; ``motion`` is a word such as static, thrown, dropped, slid."""

    name: str
    motion: str = "static"


@dataclass(frozen=True, kw_only=True)
class KeypointInfo:
    """Names and bones of a clip's n keypoints (`keypoints.check_skeleton` says what makes them sound)."""

    names: list[str]
    instances: list[int]
    """Thing that each point belongs to, any number; of a clip with a surface its instance there."""
    edges: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """Bones: indices of two points, from 0."""
    rigid: list[bool] = field(default_factory=list[bool])
    """One per bone: true if its length is constant."""


@dataclass(frozen=True, kw_only=True)
class ClipInfo:
    """The content of ``clip.json``. One entry of ``times`` and ``camera_ids`` per frame."""

    source: str
    licence: str
    metric: bool
    width: int
    height: int
    times: list[float]
    camera_ids: list[int]
    surface_times: list[float] | None = None
    track_times: list[float] | None = None
    depth_unit: float | None = None
    """Source units per count of the depth PNGs; None in a clip to be written: chosen by `encoding.fitting_unit`."""
    depth_tolerance: float | None = None
    """Relative error of the depth that the source states, of a sensor or a model; None: exact."""
    pixel_tolerance: float | None = None
    """Pixels by which surface points may miss, by a frame's pose, the pixels that saw them, as with a rolling shutter;
    None: exact."""
    objects: list[ObjectInfo] = field(default_factory=list[ObjectInfo])
    seed: int | None = None
    generator: dict[str, object] | None = None
    keypoints: KeypointInfo | None = None
    home: str | None = None
    """Place where the source is published."""
    version: int = VERSION


@dataclass(frozen=True, kw_only=True)
class SurfaceArrays:
    """Ground-truth correspondence of a clip: each pixel's mesh face, and the mesh at every time."""

    faces: NDArray[np.int32]
    """f h w; -1 = nothing hit."""
    barycentric: NDArray[np.uint16]
    """f 2 h w; 65535 = 1."""
    triangles: NDArray[np.int32]
    """m 3"""
    instances: NDArray[np.int32]
    """m; 0 = static surroundings."""
    vertices: NDArray[np.float32]
    """v 3, at the first time."""
    moving: NDArray[np.int32]
    """k; indices of the vertices that ever move."""
    moving_vertices: NDArray[np.float32]
    """t k 3"""


@dataclass(frozen=True, kw_only=True)
class TrackArrays:
    """Sparse tracks of sources without a surface."""

    points: NDArray[np.float32]
    """n t 3, world."""
    visible: NDArray[np.bool_]
    valid: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class KeypointArrays:
    """Keypoints of a clip in every frame, in the order of `KeypointInfo`. Unknown positions and pixels are 0."""

    points: NDArray[np.float32]
    """f n 3, world."""
    valid: NDArray[np.bool_]
    """f n; the position is known, seen or not."""
    pixels: NDArray[np.float32]
    """f n 2; (x, y), corner origin: the projection of ``points`` where camera and position are known."""
    pixels_valid: NDArray[np.bool_]
    """f n"""
    visible: NDArray[np.bool_]
    """f n; pixel known and inside the image, and nothing hides the point."""


@dataclass(frozen=True, kw_only=True)
class RawClip:
    """One sample of a shard, decoded, in the source's own units and world frame."""

    key: str
    info: ClipInfo
    images: NDArray[np.uint8]
    """f h w 3; with ``crop`` of its size."""
    world_from_camera: NDArray[np.float64] | None = None
    """f 4 4"""
    intrinsics: NDArray[np.float64] | None = None
    """f 3 3, pixels, corner origin; may be known without poses."""
    depth: NDArray[np.float32] | None = None
    """f h w, source units; 0 = invalid."""
    dynamic: NDArray[np.bool_] | None = None
    """f h w"""
    surface: SurfaceArrays | None = None
    tracks: TrackArrays | None = None
    keypoints: KeypointArrays | None = None
    crop: Crop | None = None
    """Window to which images were cropped as they were read; all else is of whole images. None in what is written."""


def modalities(clip: RawClip) -> list[str]:
    """Modalities of a clip beyond images and times, in alphabetical order."""
    names = ("cameras", "depth", "dynamic", "intrinsics", "keypoints", "surface", "tracks")
    lenses = clip.intrinsics if clip.world_from_camera is None else None  # beside poses they are part of the cameras
    values = (clip.world_from_camera, clip.depth, clip.dynamic, lenses, clip.keypoints, clip.surface, clip.tracks)
    return [name for name, value in zip(names, values) if value is not None]


def truths(modalities: Collection[str]) -> frozenset[str]:
    """Ground truth for losses in a clip of these modalities, stored or derived."""
    available = set(modalities)
    if "cameras" in available:
        available.add("views")  # renders are compared where cameras are known
        available |= (
            {"depth", "dynamic", "motion"} if "surface" in available else {"motion"} if "tracks" in available else set()
        )
    return frozenset(available)


def problems(clip: RawClip) -> list[str]:
    """Violations of the layout by a clip, one line each; empty if it conforms. Geometry is not checked."""
    return [*order_problems(clip.info), *_problems(clip)]


def damage(clip: RawClip) -> str | None:
    """Violation of the layout by some frames of a clip, in whatever order they were read; None if they conform."""
    for text in _problems(clip):
        return text
    for name, axis in (("surface_times", clip.info.surface_times), ("track_times", clip.info.track_times)):
        if axis and np.abs(np.subtract.outer(clip.info.times, axis)).min(-1).max() > SAME_TIME:
            return f"a frame's time is not in {name}"
    return None


def _problems(clip: RawClip) -> Iterator[str]:
    info, f = clip.info, len(clip.info.times)
    h, w = info.height, info.width
    if not KEY.fullmatch(clip.key):
        yield f"key {clip.key!r} must be 1 to 60 ASCII letters, digits, '-' or '_'"
    if f == 0:
        yield "clip.json: times is empty"
    if info.depth_tolerance is not None and not 0 < info.depth_tolerance <= MOST_TOLERANCE:
        allowed = f"a share above 0 and up to {MOST_TOLERANCE:g}"
        yield f"clip.json: depth_tolerance is {info.depth_tolerance:g}; it is {allowed}"
    if info.pixel_tolerance is not None and not 0 < info.pixel_tolerance <= MOST_PIXELS:
        yield f"clip.json: pixel_tolerance is {info.pixel_tolerance:g}; it is above 0 and up to {MOST_PIXELS:g}"
    if len(info.camera_ids) != f:
        yield f"clip.json: {len(info.camera_ids)} camera_ids for {f} times"
    for name, times in (("surface_times", info.surface_times), ("track_times", info.track_times)):
        if times is not None and not times:
            yield f"clip.json: {name} is empty; leave it out"
        if times is not None and any(b <= a for a, b in pairwise(times)):
            yield f"clip.json: {name} is not in ascending order"
    size = (h, w) if clip.crop is None else clip.crop.size
    yield from _array("images", clip.images, "uint8", (f, *size, 3))
    if clip.world_from_camera is not None and clip.intrinsics is None:
        yield "world_from_camera comes with intrinsics; intrinsics may come alone"
    yield from _array("world_from_camera", clip.world_from_camera, "float64", (f, 4, 4))
    yield from _array("intrinsics", clip.intrinsics, "float64", (f, 3, 3))
    if (
        clip.intrinsics is not None
        and clip.intrinsics.ndim == 3
        and clip.intrinsics[:, (0, 1), (0, 1)].min(initial=1) <= 0
    ):
        yield "intrinsics: focal lengths must be positive"
    yield from _array("depth", clip.depth, "float32", (f, h, w))
    if clip.depth is not None and clip.depth.min(initial=0) < 0:
        yield "depth is negative; invalid values are 0"
    yield from _array("dynamic", clip.dynamic, "bool", (f, h, w))
    if clip.surface is not None:
        yield from _surface_problems(clip.surface, info)
        if any(value is not None for value in (clip.depth, clip.dynamic, clip.tracks)):
            yield "depth, dynamic and tracks are derived where there is a surface; leave them out"
    if clip.tracks is not None:
        yield from _track_problems(clip.tracks, info)
    yield from _keypoint_problems(clip.keypoints, info)


def order_problems(info: ClipInfo) -> Iterator[str]:
    """Find the first frame that is out of order, in one line."""
    previous: tuple[int, float] | None = None
    for frame, current in enumerate(zip(info.camera_ids, info.times)):
        if previous is not None and current <= previous:
            yield f"clip.json: frame {frame} is out of order; frames go camera by camera, each in order of time"
            return
        previous = current


def _surface_problems(surface: SurfaceArrays, info: ClipInfo) -> Iterator[str]:
    f, h, w, t = len(info.times), info.height, info.width, len(info.surface_times or [])
    m, v, k = len(surface.triangles), len(surface.vertices), len(surface.moving)
    if not info.surface_times:
        yield "clip.json: surface_times is missing but there is a surface"
    if m == 0:
        yield "triangles is empty; a source without meshes stores depth and tracks instead"
    yield from _array("faces", surface.faces, "int32", (f, h, w))
    yield from _array("barycentric", surface.barycentric, "uint16", (f, 2, h, w))
    yield from _array("triangles", surface.triangles, "int32", (m, 3))
    yield from _array("instances", surface.instances, "int32", (m,))
    yield from _array("vertices", surface.vertices, "float32", (v, 3))
    yield from _array("moving", surface.moving, "int32", (k,))
    yield from _array("moving_vertices", surface.moving_vertices, "float32", (t, k, 3))
    yield from _range("faces", surface.faces, -1, m - 1)
    yield from _range("triangles", surface.triangles, 0, v - 1)
    yield from _range("moving", surface.moving, 0, v - 1)
    yield from _range("instances", surface.instances, 0, max(len(info.objects), 1) - 1)


def _track_problems(tracks: TrackArrays, info: ClipInfo) -> Iterator[str]:
    n, t = len(tracks.points), len(info.track_times or [])
    if not info.track_times:
        yield "clip.json: track_times is missing but there are tracks"
    yield from _array("tracks", tracks.points, "float32", (n, t, 3))
    yield from _array("tracks_visible", tracks.visible, "bool", (n, t))
    yield from _array("tracks_valid", tracks.valid, "bool", (n, t))


def _keypoint_problems(keypoints: KeypointArrays | None, info: ClipInfo) -> Iterator[str]:
    if keypoints is None or info.keypoints is None:
        if (keypoints is None) != (info.keypoints is None):
            yield "clip.json: keypoints (their names and bones) and keypoints.npy come together or not at all"
        return
    said = info.keypoints
    try:
        check_skeleton(said.names, said.instances, said.edges, said.rigid)
    except ValueError as error:
        yield f"clip.json: keypoints: {error}"
    shape = (len(info.times), len(said.names))
    arrays = {
        "keypoints": (keypoints.points, "float32", (*shape, 3)),
        "keypoints_valid": (keypoints.valid, "bool", shape),
        "keypoints_pixels": (keypoints.pixels, "float32", (*shape, 2)),
        "keypoints_pixels_valid": (keypoints.pixels_valid, "bool", shape),
        "keypoints_visible": (keypoints.visible, "bool", shape),
    }
    wrong = [text for name, each in arrays.items() for text in _array(name, *each)]
    yield from wrong
    if wrong:
        return
    size = np.array([info.width, info.height])
    inside = ((keypoints.pixels >= 0) & (keypoints.pixels < size)).all(-1) & keypoints.pixels_valid
    for frame, point in np.argwhere(keypoints.visible & ~inside)[:1].tolist():
        name = said.names[point]
        yield (
            f"keypoints_visible: frame {frame} sees {name!r}, whose pixel is unknown or outside the image; "
            "a point that is visible has its pixel in the image"
        )


def _array(name: str, value: NDArray[np.generic] | None, dtype: str, shape: tuple[int, ...]) -> Iterator[str]:
    if value is None:
        return
    if value.dtype != np.dtype(dtype) or value.shape != shape:
        yield f"{name} is {value.dtype} {value.shape}, not {dtype} {shape}"
    elif value.dtype.kind == "f" and not np.isfinite(value).all():
        yield f"{name} holds NaN or infinity; invalid values are 0"


def _range(name: str, value: NDArray[np.int32], low: int, high: int) -> Iterator[str]:
    if value.size and (value.min() < low or value.max() > high):
        yield f"{name} goes from {value.min()} to {value.max()}, outside {low} to {high}"
