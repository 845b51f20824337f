"""PointOdyssey as published: images, depth, cameras and tracks of every animated scene."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from four_d.datasets import decode, files
from four_d.datasets.cut3r import POINTODYSSEY_LICENCES
from four_d.datasets.facts import DataSet
from four_d.datasets.sequence import Sequence, WorldTracks
from four_d.errors import UserError
from four_d.ordering import in_order
from four_d.types import Cameras

LAYOUT = (
    "[SPLIT/]SCENE/{rgbs/rgb_00000.jpg,depths/depth_00000.png,anno.npz [trajs_3d, visibs, valids, intrinsics, "
    "extrinsics]}"
)
RATE = 30.0
"""Frames per second; nominal, since the set gives none."""
COUNTS = 65535 / 1000
"""Counts of depth to the metre."""
FARTHEST = (65535 - 0.5) / COUNTS
"""Largest valid depth (m): the last count that 16 bits hold, 1000 m, is the sky."""


def read_pointodyssey(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List every scene of every split that is there, as ``train/ani``."""
    paths = in_order(files.folder(root, LAYOUT).glob("*/anno.npz")) + in_order(root.glob("*/*/anno.npz"))
    places = {path.parent.relative_to(root).as_posix(): path.parent for path in paths}
    if not places:
        raise files.missing(root / "train" / "*" / "anno.npz", LAYOUT)
    return [_scene(name, places[name]) for name in files.chosen(places, only)]


def _scene(name: str, directory: Path) -> Sequence:
    images = files.listed(directory / "rgbs", "rgb_*.jpg", LAYOUT, key=files.number)
    maps = [files.file(directory / "depths" / f"depth_{path.stem[4:]}.png", LAYOUT) for path in images]
    anno = directory / "anno.npz"
    times = files.frame_times(len(images), RATE)
    return Sequence(
        name=name,
        frames=len(images),
        times=times,
        images=files.image_loader(images),
        cameras=partial(_cameras, anno, len(images)),
        depth=files.depth_loader(maps, partial(decode.depth_png, per_metre=COUNTS), FARTHEST),
        world_tracks=partial(_tracks, anno, times),
    )


@lru_cache(maxsize=2)
def _arrays(anno: Path, frames: int, keys: tuple[str, ...]) -> tuple[NDArray[np.generic], ...]:
    """Read arrays of a scene's annotations, of all its frames; kept, since each clip of the scene asks for them."""
    stored = decode.npz(anno, keys)
    found = tuple(stored[key] for key in keys)
    for key, values in zip(keys, found, strict=True):
        if len(values) != frames:
            raise UserError(f"{anno}: {key} has {len(values)} frames, rgbs {frames}; unpack or download both again")
    return found


def _cameras(anno: Path, frames: int) -> Cameras:
    """Read the cameras: camera_from_world, and intrinsics of a renderer, which count from the corner."""
    intrinsics, poses = (each.astype(np.float64) for each in _arrays(anno, frames, ("intrinsics", "extrinsics")))
    return files.cameras(files.inverted(poses), intrinsics)


def _tracks(anno: Path, times: tuple[float, ...]) -> WorldTracks:
    """Read the tracks, of which ``valids`` are known and ``visibs`` seen."""
    points, visible, valid = _arrays(anno, len(times), ("trajs_3d", "visibs", "valids"))
    if points.shape != (*visible.shape, 3) or valid.shape != visible.shape:
        raise UserError(f"{anno}: trajs_3d is {points.shape}, visibs {visible.shape}, valids {valid.shape}")
    places = points.astype(np.float64).transpose(1, 0, 2)
    known = valid.T.astype(bool) & np.isfinite(places).all(-1)
    return WorldTracks(
        points=np.where(known[..., None], places, 0), known=known, visible=visible.T.astype(bool) & known, times=times
    )


POINTODYSSEY = DataSet(
    name="pointodyssey",
    title="PointOdyssey",
    home="pointodyssey.com",
    licences=POINTODYSSEY_LICENCES,
    layout=LAYOUT,
    reader=read_pointodyssey,
    notes="30 frames a second are nominal; the last count of depth, 1000 m, is invalid",
)
