"""Scenes of WAI, MapAnything's layout: scene_meta.json, which extends nerfstudio's transforms.json.

Facts: facebookresearch/map-anything at commit f7ebafb, mapanything/utils/wai and data_processing/wai_processing.
Poses are world_from_camera with OpenCV's axes; depth is EXR of one channel, of 16 or 32 bits.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from four_d.datasets import decode, files
from four_d.datasets.exr import depth_exr
from four_d.datasets.facts import DataSet, Licence
from four_d.datasets.nerfstudio import Form, Json
from four_d.datasets.own import SHARED
from four_d.datasets.sequence import Sequence
from four_d.errors import UserError
from four_d.ordering import in_order

LOGGER = logging.getLogger(__name__)

FILE = "scene_meta.json"
VERSION = "0.1"
LAYOUT = (
    "SCENE/scene_meta.json [frames of frame_name, file_path, transform_matrix, fl_x, fl_y, cx, cy, w, h], with images "
    "and EXR depth by the frames' paths"
)
AS_WRITTEN = "write it as WAI's converters do"
METRIC = "metric"
"""Value of ``scale_type`` for lengths in metres."""


def read_wai(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List ``root`` if it is a scene, else every folder below that is one.

    WAI has no cameras and no times. A frame's ``camera_id`` and ``time`` are read where they are, as our own export
    writes them; else frames whose names differ only before a common number are of synchronised cameras.
    """
    places = [root] if (root / FILE).is_file() else [path.parent for path in in_order(root.glob(f"*/{FILE}"))]
    scenes = {path.name: path for path in places}
    if not scenes:
        raise files.missing(root / "SCENE" / FILE, LAYOUT)
    return [_scene(scenes[name], name) for name in files.chosen(scenes, only)]


def _scene(root: Path, name: str) -> Sequence:
    path = root / FILE
    content = decode.json_object(path, AS_WRITTEN)
    convention = content.get("camera_convention", "opencv")
    if convention != "opencv":
        raise UserError(f"{path}: camera_convention is {convention!r}, and only opencv is read; {AS_WRITTEN}")
    content = {**content, "frames": _with_cameras(path, cast(list[Json], content.get("frames") or []))}
    form = Form(file=FILE, axes=np.eye(4), depth=_depth_entry(content), read_depth=depth_exr)
    scale = content.get("scale_type", METRIC)
    return replace(form.sequence(root, name, content), metric=scale == METRIC)


def _depth_entry(content: Json) -> str:
    """Entry of a frame that names its depth file, by ``frame_modalities``."""
    modalities = content.get("frame_modalities")
    depth = cast(Json, modalities).get("depth") if isinstance(modalities, dict) else None
    return str(cast(Json, depth).get("frame_key", "depth")) if isinstance(depth, dict) else "depth"


def _with_cameras(path: Path, frames: list[Json]) -> list[Json]:
    """Give frames a ``camera_id`` by their names, where none has one and names tell several cameras."""
    try:
        if any("camera_id" in frame for frame in frames):
            return frames
        parts = [_parts(str(frame["frame_name"])) for frame in frames]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: a frame has no frame_name ({error}); {AS_WRITTEN}") from error
    prefixes = sorted({prefix for prefix, _ in parts})
    held = Counter(number for _, number in set(parts))
    shared = sum(held[number] > 1 for _, number in parts)
    if len(prefixes) < 2 or shared < SHARED * len(frames):
        return frames
    LOGGER.warning(
        f"{path}: {len(prefixes)} cameras by the frames' names ({', '.join(prefixes[:3])}"
        f"{' …' if len(prefixes) > 3 else ''}), synchronised by their numbers"
    )
    return [{**frame, "camera_id": prefix} for frame, (prefix, _) in zip(frames, parts, strict=True)]


def _parts(name: str) -> tuple[str, int]:
    """Split a name into what is before the number at its end, and the number; −1 without one."""
    found = re.search(r"[0-9]+$", name)
    return (name[: found.start()], int(found[0])) if found else (name, -1)


WAI = DataSet(
    name="wai",
    title="scenes of WAI, MapAnything's layout",
    home="github.com/facebookresearch/map-anything, data_processing",
    licences=(Licence(text="not stated: that of the set which was converted"),),
    layout=LAYOUT,
    reader=read_wai,
    metric=False,
    depth_tolerance=0.05,
    notes="metric where scale_type says so; without times 30 frames a second; of the modalities image and depth",
)
