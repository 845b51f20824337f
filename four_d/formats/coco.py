"""Keypoint annotations in COCO's JSON, with names as text: COCO, AP-10K, APT-36K, MegaKPT, PoseImageNet and alike.

Pixels are in our convention: COCO counts from the centre of the top-left pixel, hence + ½.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from four_d.errors import UserError

Base = Literal[0, 1]
Json = Mapping[str, object]
HIDDEN, VISIBLE = 1, 2
"""States of labelled keypoints in COCO; 0 is not labelled."""
STATES = ("visibility", "visible", "keypoints_visible")
"""Names of an annotation's states in files whose keypoints are (x, y) without them."""
LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """Keypoints of one category."""

    category: str
    names: tuple[str, ...]
    """In the file's order and spelling."""
    edges: tuple[tuple[int, int], ...]
    """Bones as pairs of indices, counted from 0; empty where the file has none."""


@dataclass(frozen=True, kw_only=True)
class Instance:
    """Keypoints of one thing in one image."""

    skeleton: Skeleton
    pixels: NDArray[np.float64]
    """k 2: x, y; 0 where not labelled."""
    labelled: NDArray[np.bool_]
    visible: NDArray[np.bool_]
    """k; labelled and not hidden."""
    track: int | None = None
    """Identity of the thing over the frames of a video."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """Image with its annotated instances."""

    file: str
    width: int
    height: int
    instances: tuple[Instance, ...]
    video: str | None = None
    """Video that it is a frame of."""
    frame: int = 0
    """Position in the video."""
    licence: str | None = None


def read_coco(path: Path, skeleton_base: Base | None = None) -> list[Image]:
    """Read all images that have keypoints, in the file's order.

    Args:
        path: the JSON file.
        skeleton_base: number of the first keypoint in skeletons of a file that does not tell. COCO counts from 1,
            others from 0: an index 0, or one equal to the number of keypoints, settles it for the whole file.

    Raises:
        UserError: the file is not of this form, names an image or category that it lacks, has another number of
            coordinates than names, a bone that no count allows, or does not tell where its skeletons count from.

    """
    content = _load(path)
    skeletons = _skeletons(path, _rows(path, content, "categories"), skeleton_base)
    annotations = [
        row for row in _rows(path, content, "annotations") if row.get("keypoints") and not row.get("iscrowd")
    ]
    two = any(state >= VISIBLE for row in annotations for state in _states(row))
    if annotations and not two:
        LOGGER.warning("%s: no keypoint has the state 2, so that 1 is taken for visible", path)
    by_image: dict[object, list[Instance]] = defaultdict(list)
    for row in annotations:
        by_image[row.get("image_id")].append(_instance(path, row, skeletons, VISIBLE if two else HIDDEN))
    licences = {row.get("id"): str(row.get("name", "")) for row in _optional(content, "licenses")}
    images = {row.get("id"): row for row in _rows(path, content, "images")}
    if unknown := [name for name in by_image if name not in images]:
        raise UserError(f"{path}: annotations name image {unknown[0]!r}, which the file's images lack")
    return [_image(path, row, by_image[name], licences) for name, row in images.items() if name in by_image]


def has_keypoints(path: Path) -> bool:
    """True for a JSON file of COCO's form with keypoints."""
    try:
        content = _load(path)
    except UserError:
        return False
    rows = [_optional(content, name) for name in ("images", "annotations", "categories")]
    return all(rows) and any(row.get("keypoints") for row in rows[2])


def _load(path: Path) -> Json:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not readable as JSON ({error}); give a COCO annotation file") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object; a COCO file has images, annotations and categories")
    return cast(Json, content)


def _optional(content: Json, name: str) -> list[Json]:
    rows = content.get(name)
    return [cast(Json, row) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _rows(path: Path, content: Json, name: str) -> list[Json]:
    rows = _optional(content, name)
    if not rows:
        raise UserError(f"{path} has no list of {name}; a COCO file has images, annotations and categories")
    return rows


def _skeletons(path: Path, categories: Sequence[Json], base: Base | None) -> dict[object, Skeleton]:
    """Skeletons by category id, of the categories that have names of keypoints."""
    named = [row for row in categories if row.get("keypoints")]
    if not named:
        raise UserError(
            f"{path}: no category names its keypoints; the names are needed as text, in categories.keypoints"
        )
    bones = {id(row): _bones(path, row) for row in named}
    base = _base(path, named, bones, base)
    found: dict[object, Skeleton] = {}
    for row in named:
        category, names = (
            str(row.get("name", row.get("id"))),
            tuple(str(n) for n in cast(list[object], row["keypoints"])),
        )
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{path}: category {category} has two keypoints named {twice[0]!r}; rename one of them")
        edges = [(a - base, b - base) for a, b in bones[id(row)]]
        for a, b in edges:
            if a == b or not (0 <= a < len(names) and 0 <= b < len(names)):
                raise UserError(
                    f"{path}: category {category} has a bone {a + base}-{b + base}, which {len(names)} keypoints "
                    f"counted from {base} do not allow; mend its skeleton"
                )
        unique = tuple(dict.fromkeys((min(edge), max(edge)) for edge in edges))
        found[row.get("id")] = Skeleton(category=category, names=names, edges=unique)
    return found


def _bones(path: Path, category: Json) -> list[tuple[int, int]]:
    bones = cast(list[object], category.get("skeleton") or [])
    try:
        return [(int(a), int(b)) for a, b in cast(list[tuple[int, int]], bones)]
    except (TypeError, ValueError):
        raise UserError(f"{path}: the skeleton of category {category.get('name')} is not a list of pairs") from None


def _base(
    path: Path, categories: Sequence[Json], bones: Mapping[int, list[tuple[int, int]]], otherwise: Base | None
) -> Base:
    """Number of the first keypoint, by the extreme indices of any skeleton; ``otherwise`` if they do not tell."""
    indices = [
        (i, len(cast(list[object], row["keypoints"]))) for row in categories for bone in bones[id(row)] for i in bone
    ]
    from_0, from_1 = any(i == 0 for i, _ in indices), any(i == count for i, count in indices)
    if from_0 and from_1:
        raise UserError(f"{path}: skeletons hold an index 0 and one beyond the last counted from 0; mend them")
    if indices and otherwise is not None and not (from_0 or from_1):
        return otherwise
    if indices and not (from_0 or from_1):
        raise UserError(
            f"{path}: skeletons do not tell whether they count from 0 or from 1; say --skeleton-base 0 or 1 "
            "(COCO's own count from 1)"
        )
    return 0 if from_0 else 1


def _states(annotation: Json) -> list[float]:
    """States of an annotation's keypoints; empty if they are not numbers."""
    separate = next((annotation[name] for name in STATES if isinstance(annotation.get(name), list)), None)
    return _flat(annotation["keypoints"])[2::3] if separate is None else _flat(separate)


def _flat(values: object) -> list[float]:
    """Numbers of a list, nested or not."""
    if isinstance(values, list):
        return [number for value in cast(list[object], values) for number in _flat(value)]
    return [float(values)] if isinstance(values, int | float) else []


def _instance(path: Path, row: Json, skeletons: Mapping[object, Skeleton], visible: int) -> Instance:
    skeleton, where = skeletons.get(row.get("category_id")), f"{path}: annotation {row.get('id')}"
    if skeleton is None:
        raise UserError(f"{where} is of category {row.get('category_id')!r}, which has no names of keypoints")
    separate, numbers = any(isinstance(row.get(name), list) for name in STATES), _flat(row["keypoints"])
    per_point, count = 2 if separate else 3, len(skeleton.names)
    states = np.array(_states(row))
    if len(numbers) != per_point * count or len(states) != count:
        raise UserError(
            f"{where} has {len(numbers)} numbers for the {count} keypoints of {skeleton.category}; (x, y, state) of "
            "each are needed, or (x, y) with a list of states"
        )
    places = np.array(numbers).reshape(count, per_point)[:, :2]
    labelled = (states > 0) & np.isfinite(places).all(-1)
    pixels = np.where(labelled[:, None], places + 0.5, 0.0)
    track = row.get("track_id")
    return Instance(
        skeleton=skeleton,
        pixels=pixels,
        labelled=labelled,
        visible=labelled & (states >= visible),
        track=track if isinstance(track, int) else None,
    )


def _image(path: Path, row: Json, instances: Iterable[Instance], licences: Mapping[object, str]) -> Image:
    file, width, height = row.get("file_name"), row.get("width"), row.get("height")
    if not isinstance(file, str) or not isinstance(width, int) or not isinstance(height, int):
        raise UserError(f"{path}: image {row.get('id')!r} lacks its file_name, width or height")
    video, frame = row.get("video_id"), row.get("frame_id", 0)
    return Image(
        file=file,
        width=width,
        height=height,
        instances=tuple(instances),
        video=None if video is None else str(video),
        frame=frame if isinstance(frame, int) else 0,
        licence=licences.get(row.get("license")) or None,
    )
