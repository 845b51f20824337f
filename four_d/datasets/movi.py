"""Kubric's MOVi-F as OpenD4RT unpacks it from TFDS: a folder a scene, an .npy for each of its arrays.

Facts: OpenD4RT's docs/dataset/kubric_full.md and data_preprocess/prepare_kubric_full_preprocessed.py; what the arrays
mean: google-research/kubric at commit 0ee21e2. Depth is the distance to the camera's centre, in counts of a range.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from four_d.datasets import decode, files
from four_d.datasets.facts import DataSet
from four_d.datasets.kubric import KUBRIC_LICENCES, RATE, poses_of, stretch
from four_d.datasets.sequence import Depth, PerFrame, Sequence
from four_d.errors import UserError
from four_d.ordering import in_order
from four_d.types import Cameras

LAYOUT = (
    "[SPLIT/]SCENE/{rgb.npy,depth_uint16.npy,camera_positions.npy,camera_quaternions.npy,meta.json [depth_range, "
    "camera_field_of_view]}"
)
COUNTS = 65535


def read_movi(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List every scene of every split that is there, as ``train/scene_000000``."""
    files.folder(root, LAYOUT)
    found = [path for depth in (1, 2) for path in in_order(root.glob("*/" * depth + "depth_uint16.npy"))]
    places = {path.parent.relative_to(root).as_posix(): path.parent for path in found}
    if not places:
        raise files.missing(root / "train" / "scene_000000" / "depth_uint16.npy", LAYOUT)
    return [_scene(name, places[name]) for name in files.chosen(places, only)]


def _scene(name: str, directory: Path) -> Sequence:
    meta = decode.json_object(directory / "meta.json", "prepare the scene again")
    try:
        count, width = int(cast(int, meta["num_frames"])), int(cast(int, meta["width"]))
        nearest, farthest = (float(value) for value in cast(list[float], meta["depth_range"]))
        focal = width / 2 / np.tan(float(cast(float, meta["camera_field_of_view"])) / 2)
        k = files.pinhole(focal, focal, width / 2, int(cast(int, meta["height"])) / 2, centre_origin=False)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{directory / 'meta.json'} lacks {error}; prepare the scene again") from error
    paths = {part: files.file(directory / f"{part}.npy", LAYOUT) for part in ("rgb", "depth_uint16")}
    poses = [files.file(directory / f"camera_{part}.npy", LAYOUT) for part in ("positions", "quaternions")]
    frames = [(paths["depth_uint16"], at) for at in range(count)]
    return Sequence(
        name=name,
        frames=count,
        times=files.frame_times(count, RATE),
        images=PerFrame(partial(_images, count=count), [(paths["rgb"], at) for at in range(count)]),
        cameras=partial(_cameras, poses, k, count),
        depth=PerFrame(partial(_depths, count=count, span=(nearest, farthest), k=k), frames),
        listing=(directory / "meta.json",),
    )


def _images(items: list[tuple[Path, int]], count: int) -> NDArray[np.uint8]:
    path = items[0][0]
    stored = decode.mapped_npy(path, (count, None, None, 3), "u")
    return np.stack([np.asarray(stored[at], np.uint8) for _, at in items])


def _depths(items: list[tuple[Path, int]], count: int, span: tuple[float, float], k: NDArray[np.float64]) -> Depth:
    """Read counts from ``span``'s nearest to its farthest distance, and convert them to z-depth."""
    stored = decode.mapped_npy(items[0][0], (count, None, None, 1), "u")
    counts = np.stack([np.asarray(stored[at, ..., 0], np.float64) for _, at in items])
    distances = counts / COUNTS * (span[1] - span[0]) + span[0]
    depth = (distances / stretch(counts.shape[1], counts.shape[2], k)).astype(np.float32)
    valid = np.isfinite(depth) & (depth > 0)
    return np.where(valid, depth, 0).astype(np.float32), valid


def _cameras(paths: list[Path], k: NDArray[np.float64], count: int) -> Cameras:
    positions, turns = (
        np.asarray(decode.mapped_npy(path, (count, size), "f"), np.float64)
        for path, size in zip(paths, (3, 4), strict=True)
    )
    return files.cameras(poses_of(positions, turns), k)


MOVI = DataSet(
    name="kubric_movi",
    title="Kubric's MOVi-F as OpenD4RT unpacks it (kubric_full_process_v1)",
    home="github.com/google-research/kubric, challenges/movi, unpacked by OpenD4RT's preparation script",
    licences=KUBRIC_LICENCES,
    layout=LAYOUT,
    reader=read_movi,
    notes="images, depth and cameras at 12 frames a second; object coordinates and instances are not read",
)
