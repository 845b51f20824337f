"""The shard layout as code (`docs/data.md` is the text): one clip as arrays, and what its members are called."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """One instance of a scene; ``motion`` is a word such as static, thrown, dropped, slid."""

    name: str
    motion: str = "static"


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
    """Source units per count of the depth PNGs."""
    objects: list[ObjectInfo] = field(default_factory=list[ObjectInfo])
    seed: int | None = None
    generator: dict[str, object] | None = None
    version: int = VERSION


@dataclass(frozen=True, kw_only=True)
class SurfaceArrays:
    """Correspondence truth of a clip: what every pixel saw, and where its mesh was at every time."""

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
    """k: which vertices ever move."""
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
class RawClip:
    """One sample of a shard, decoded, in the source's own units and world frame."""

    key: str
    info: ClipInfo
    images: NDArray[np.uint8]
    """f h w 3"""
    world_from_camera: NDArray[np.float64] | None = None
    """f 4 4"""
    intrinsics: NDArray[np.float64] | None = None
    """f 3 3, pixels, corner origin."""
    depth: NDArray[np.float32] | None = None
    """f h w, source units; 0 = invalid."""
    dynamic: NDArray[np.bool_] | None = None
    """f h w"""
    surface: SurfaceArrays | None = None
    tracks: TrackArrays | None = None
