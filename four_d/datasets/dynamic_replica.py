"""DynamicReplica as published: rendered stereo videos of people and animals in rooms, with tracks of their meshes.

Facts: facebookresearch/dynamic_stereo and co-tracker (loaders), facebookresearch/map-anything at commit f7ebafb
(data_processing/wai_processing/scripts/conversion/dynamicreplica.py). The index is in PyTorch3D's form: a point p of
the world is p R + T in a camera whose axes are left, up and forward, and pixels are counted from the image's middle.
"""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from four_d.datasets import decode, files
from four_d.datasets.facts import DataSet, Licence
from four_d.datasets.sequence import Sequence, WorldTracks
from four_d.errors import UserError
from four_d.ordering import in_order
from four_d.types import Cameras

LOGGER = logging.getLogger(__name__)

LAYOUT = (
    "[SPLIT/]{frame_annotations_SPLIT.jgz,SEQ_source_left/{images/*.png,depths/*.png,trajectories/*.pth}} and "
    "…_right, by the paths in the index"
)
RATE = 30.0
CAMERAS = ("left", "right")


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """One entry of the index."""

    number: int
    camera: str
    image: Path
    depth: Path
    trajectories: Path | None
    size: tuple[int, int]
    """Height and width."""
    viewpoint: dict[str, Any]


def read_dynamic_replica(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List every sequence of every split that is there, as ``train/SEQ``: both eyes, synchronised."""
    indices = in_order(files.folder(root, LAYOUT).glob("frame_annotations_*.jgz"))
    indices += in_order(root.glob("*/frame_annotations_*.jgz"))
    if not indices:
        raise files.missing(root / "train" / "frame_annotations_train.jgz", LAYOUT)
    found: dict[str, tuple[Path, list[_Frame]]] = {}
    for index in indices:
        split = index.name.removeprefix("frame_annotations_").removesuffix(".jgz")
        for name, frames in _sequences(index).items():
            if there := [frame for frame in frames if frame.image.is_file()]:
                found[f"{split}/{name}"] = index, there
    if not found:
        raise UserError(f"{indices[0]} is there, and the image of none of its entries; unpack them beside it")
    return [_sequence(name, *found[name]) for name in files.chosen(found, only)]


def _sequences(index: Path) -> dict[str, list[_Frame]]:
    """Entries of an index by sequence, camera by camera in the order of their numbers."""
    try:
        with gzip.open(index, "rt", encoding="utf-8") as file:
            entries = cast(list[dict[str, Any]], json.load(file))
        found: dict[str, list[_Frame]] = {}
        for entry in entries:
            found.setdefault(str(entry["sequence_name"]), []).append(_frame(index.parent, entry))
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index} is not an index of frames ({error!r}); download it again") from error
    return {
        name: sorted(own, key=lambda frame: (CAMERAS.index(frame.camera), frame.number)) for name, own in found.items()
    }


def _frame(root: Path, entry: dict[str, Any]) -> _Frame:
    height, width = entry["image"]["size"]
    if entry["camera_name"] not in CAMERAS:
        raise ValueError(f"camera_name is {entry['camera_name']!r}")
    path = (entry.get("trajectories") or {}).get("path")
    return _Frame(
        number=int(entry["frame_number"]),
        camera=entry["camera_name"],
        image=root / entry["image"]["path"],
        depth=root / entry["depth"]["path"],
        trajectories=None if path is None else root / path,
        size=(int(height), int(width)),
        viewpoint=entry["viewpoint"],
    )


def _sequence(name: str, index: Path, frames: list[_Frame]) -> Sequence:
    first = min(frame.number for frame in frames)
    cameras = sorted({frame.camera for frame in frames}, key=CAMERAS.index)
    tracked: dict[str, dict[int, Path]] = {}
    for frame in frames:
        if frame.trajectories is not None and frame.trajectories.is_file():
            tracked.setdefault(frame.camera, {})[frame.number] = frame.trajectories
    numbers = sorted({frame.number for frame in frames})
    whole = [own for own in tracked.values() if own.keys() == set(numbers)]
    if tracked and not whole:
        LOGGER.warning(f"{name}: trajectories of some frames are missing, so its tracks are not read")
    paths = [[own[number] for own in whole] for number in numbers]
    moments = tuple((number - first) / RATE for number in numbers)
    return Sequence(
        name=name,
        frames=len(frames),
        times=tuple((frame.number - first) / RATE for frame in frames),
        camera_ids=tuple(cameras.index(frame.camera) for frame in frames) if len(cameras) > 1 else None,
        images=files.image_loader([frame.image for frame in frames]),
        cameras=partial(_cameras, index, frames),
        depth=files.depth_loader([files.file(frame.depth, LAYOUT) for frame in frames], _depth),
        listing=(index,),
        world_tracks=partial(_tracks, paths, moments) if whole else None,
    )


def _cameras(index: Path, frames: list[_Frame]) -> Cameras:
    """Convert PyTorch3D's viewpoints: its x and y are turned round, its rotation acts on rows."""
    try:
        poses = np.stack([_pose(frame.viewpoint) for frame in frames])
        lenses = np.stack([_intrinsics(frame) for frame in frames])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{index} has a viewpoint that is none of PyTorch3D's ({error!r}); download it again"
        ) from error
    return files.cameras(poses, lenses)


def _pose(viewpoint: dict[str, Any]) -> NDArray[np.float64]:
    """world_from_camera 4 4."""
    camera_from_world = np.eye(4)
    camera_from_world[:3, :3] = np.array(viewpoint["R"], np.float64).reshape(3, 3).T
    camera_from_world[:3, 3] = np.array(viewpoint["T"], np.float64).reshape(3)
    camera_from_world[:2] *= -1
    return np.linalg.inv(camera_from_world).astype(np.float64)


def _intrinsics(frame: _Frame) -> NDArray[np.float64]:
    """Matrix 3 3, corner origin."""
    form = str(frame.viewpoint.get("intrinsics_format", "ndc_norm_image_bounds")).lower()
    half = np.array(frame.size[::-1], np.float64) / 2
    if form not in ("ndc_isotropic", "ndc_norm_image_bounds"):
        raise ValueError(f"intrinsics_format {form}")
    unit = np.full(2, half.min()) if form == "ndc_isotropic" else half
    focal = np.array(frame.viewpoint["focal_length"], np.float64).reshape(2) * unit
    middle = half - np.array(frame.viewpoint["principal_point"], np.float64).reshape(2) * unit
    return files.pinhole(focal[0], focal[1], middle[0], middle[1], centre_origin=False)


def _depth(path: Path) -> NDArray[np.float32]:
    """Read PNG of 16 bits, which are those of a float16, in metres."""
    try:
        with Image.open(path) as opened:
            if not opened.mode.startswith("I"):
                raise ValueError(f"mode {opened.mode}")
            stored = np.array(opened).astype(np.uint16)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is not depth of 16 bits ({error}); unpack or download it again") from error
    return stored.view(np.float16).astype(np.float32)


def _tracks(paths: list[list[Path]], times: tuple[float, ...]) -> WorldTracks:
    """Read the files of each moment, one of each eye: the same n points, seen by the one or the other."""
    rows = [[_trajectory(path, files.file(path, LAYOUT).stat().st_mtime_ns) for path in own] for own in paths]
    counts = {len(points) for own in rows for points, _ in own}
    if len(counts) > 1:
        raise UserError(f"{paths[0][0].parent} and its neighbours have {sorted(counts)} points; unpack them again")
    points = np.stack([own[0][0] for own in rows]).transpose(1, 0, 2)
    seen = np.stack([np.any([visible for _, visible in own], axis=0) for own in rows]).T
    known = np.asarray(np.isfinite(points).all(-1))
    return WorldTracks(points=np.where(known[..., None], points, 0), known=known, visible=seen & known, times=times)


@lru_cache(maxsize=700)
def _trajectory(path: Path, changed: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:  # noqa: ARG001
    """Positions n 3 in the world and visibility n at one moment; kept, since every clip of a sequence asks for all.

    A file that has changed is read again.
    """
    stored = decode.tensors(path, ("traj_3d_world", "verts_inds_vis"))
    points, seen = stored["traj_3d_world"].double().numpy(), stored["verts_inds_vis"].to(torch.bool).numpy()
    if points.ndim != 2 or points.shape[1] != 3 or seen.shape != points.shape[:1]:
        raise UserError(f"{path}: traj_3d_world is {points.shape}, verts_inds_vis {seen.shape}; download it again")
    return points, seen


DYNAMIC_REPLICA = DataSet(
    name="dynamic_replica",
    title="DynamicReplica, both eyes",
    home="github.com/facebookresearch/dynamic_stereo",
    licences=(Licence(text="CC BY-NC 4.0"),),
    layout=LAYOUT,
    reader=read_dynamic_replica,
    notes="depth is of 16-bit floats; tracks are those of the meshes' vertices, seen by either eye",
)
