"""Scenes, views, tracks and queries on which MVTracker and those after it are evaluated (ethz-vlg/mvtracker @ceea8ad).

The tracks are drawn at random by the published code, which then keeps them in a file beside each scene; the released
archives hold those of the paper's figures. They alone are read here: tracks of another draw give other figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from four_d.datasets import decode, files, kubric, mvtracker
from four_d.datasets.sequence import RigTracks, Sequence
from four_d.errors import UserError
from four_d.ordering import in_order

KEYS = "[traj3d_world, visibility, query_points]"
KUBRIC_CACHE = "cachedtracks--seed72-dynamic0.5-verydynamic-0.25-views0_1_2_3-n512-numviews-1-t24--v1.npz"
PANOPTIC_CACHE = "cachedtracks--seed72-views1_7_14_20-n384--v1.npz"
DEXYCB_CACHE = "cachedtracks--seed72-views0_1_2_3-n384--v1.npz"
PANOPTIC_VIEWS = [1, 7, 14, 20]
VIEWS = 4
"""First views of MV-Kubric and DexYCB that are taken."""


@dataclass(frozen=True, kw_only=True)
class _Set:
    """One of the sets."""

    layout: str
    sign: str
    """Pattern, below the root, of a file or folder that each scene has."""
    cache: str
    """Name of the file of tracks in a scene's folder ``cache``."""
    count: int
    """Number of scenes, from the first, that the published code takes."""
    open: Callable[[str, Path], Sequence]

    def read(self, root: Path, only: tuple[str, ...] | None) -> list[Sequence]:
        found = in_order({path.parent for path in files.folder(root, self.layout).glob(self.sign)})
        places = {path.name: path for path in found}
        if not places:
            raise files.missing(root / self.sign, self.layout)
        names = files.chosen(places, only)[: None if only is not None else self.count]
        if only is None and len(names) < self.count:
            raise UserError(
                f"{root} has {len(names)} of {self.count} scenes, and a mean over fewer does not compare; name those "
                "to score with sequences=…"
            )
        return [self._scene(name, places[name]) for name in names]

    def _scene(self, name: str, directory: Path) -> Sequence:
        scene = self.open(name, directory)
        cache = files.file(directory / "cache" / self.cache, self.layout)
        views = len(set(scene.camera_ids or (0,)))
        load = partial(_tracks, cache, views, scene.frames // views)
        return replace(scene, tasks=("rig_tracks",), world_tracks=None, rig_tracks=load)


def _tracks(path: Path, views: int, frames: int) -> RigTracks:
    """Read tracks t n 3, visibility v t n and queries n 4, a frame and the position then."""
    stored = decode.npz(path, ["traj3d_world", "visibility", "query_points"])
    points, visible, queries = (stored[key] for key in ("traj3d_world", "visibility", "query_points"))
    if points.ndim != 3 or visible.shape != (views, *points.shape[:2]) or queries.shape != (points.shape[1], 4):
        raise UserError(
            f"{path}: traj3d_world is {points.shape}, visibility {visible.shape}, query_points {queries.shape}, not "
            f"t n 3, {views} t n and n 4; download the set again"
        )
    if len(points) != frames:
        raise UserError(f"{path} is of {len(points)} frames, and the scene has {frames} a view; download the set again")
    asked, seen = queries[:, 0].astype(np.int64), visible.astype(bool)
    inside = (asked == queries[:, 0]) & (asked >= 0) & (asked < frames)
    any_view = np.asarray(seen.any(0))
    if not inside.all() or not any_view[asked.clip(0, frames - 1), np.arange(len(asked))].all():
        raise UserError(f"{path}: query_points asks for a point at a time when no view sees it; download the set again")
    if not np.isfinite(points[any_view]).all():
        raise UserError(f"{path}: traj3d_world is not finite where a view sees the point; download the set again")
    places = np.nan_to_num(points.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    return RigTracks(queries=asked, points=places.transpose(1, 0, 2), visible=seen.transpose(0, 2, 1))


def _kubric(name: str, directory: Path) -> Sequence:
    return kubric.scene(name, directory, [directory / f"view_{view}" for view in range(VIEWS)])


def _panoptic(name: str, directory: Path) -> Sequence:
    return mvtracker.panoptic(name, directory, PANOPTIC_VIEWS)


def _dexycb(name: str, directory: Path) -> Sequence:
    return mvtracker.dexycb(name, directory, VIEWS)


KUBRIC = _Set(
    layout=f"SCENE/{{view_0/{{rgba_00000.png,depth_00000.tiff,metadata.json}},cache/{KUBRIC_CACHE} {KEYS}}}",
    sign="*/view_0",
    cache=KUBRIC_CACHE,
    count=30,
    open=_kubric,
)
PANOPTIC = _Set(
    layout="SEQ/{ims/CAM/*.jpg,dynamic3dgs_depth/depths_01.npy,tapvid3d_annotations.npz [intrinsics, extrinsics],"
    f"cache/{PANOPTIC_CACHE} {KEYS}}}",
    sign="*/tapvid3d_annotations.npz",
    cache=PANOPTIC_CACHE,
    count=6,
    open=_panoptic,
)
DEXYCB = _Set(
    layout="SEQ/{view_00/{rgb/*.jpg,depth/*.png,intrinsics_extrinsics.npz [intrinsics, extrinsics]},"
    f"cache/{DEXYCB_CACHE} {KEYS}}}",
    sign="*/view_*",
    cache=DEXYCB_CACHE,
    count=10,
    open=_dexycb,
)
