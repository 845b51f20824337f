"""Import of videos with keypoints of any detector: an NPZ file of arrays for each video."""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_prep.importers.frames import CLIP_FRAMES, Reel, cut, finite, inside, shrink
from data_prep.importers.vocabulary import Vocabulary, canonical
from data_prep.importers.writing import Origin, Planned, digest, write_clips
from four_d.data.contract import ClipInfo, KeypointArrays, KeypointInfo, ObjectInfo, RawClip
from four_d.data.manifest import Manifest
from four_d.errors import UserError
from four_d.keypoints import check_skeleton, knn_edges

LOGGER = logging.getLogger("four_d.data_prep")  # not __name__: users silence, and the program shows, "four_d"

CONFIDENCE = 0.3
"""Confidence from which a keypoint counts as known."""
NAME_LENGTH = 40
"""Characters of a video's name in keys."""
ARRAYS = (
    *("names", "pixels", "confidence", "visible", "points", "edges", "rigid", "frames", "times"),
    *("world_from_camera", "intrinsics", "metric"),
)
"""Arrays of a file; `docs/data.md` says what each is."""
_KEY = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Choices of an import of videos."""

    confidence: float = CONFIDENCE
    """Confidence below which a keypoint is unknown, where the file has confidences."""
    long_side: int | None = None
    """Longer side of the stored images in pixels; None: as they are."""
    clip_frames: int = CLIP_FRAMES
    """Most frames of a clip."""
    name: str = "videos"
    """Name of the source in the manifest."""
    licence: str = "unknown"


@dataclass(frozen=True, kw_only=True)
class Found:
    """Keypoints of one file: f frames, i things, n names."""

    names: tuple[str, ...]
    pixels: NDArray[np.float64]
    """f i n 2, corner origin; NaN where unknown."""
    hidden: NDArray[np.bool_]
    """f i n; the file says that it is not visible."""
    points: NDArray[np.float64]
    """f i n 3; NaN where unknown."""
    edges: tuple[tuple[int, int], ...]
    rigid: tuple[bool, ...]
    frames: NDArray[np.int64]
    """f, indices of the video's frames, ascending."""
    times: NDArray[np.float64] | None
    """f, seconds; None: the video's."""
    world_from_camera: NDArray[np.float64] | None
    """f 4 4"""
    intrinsics: NDArray[np.float64] | None
    """f 3 3"""
    metric: bool


def import_videos(
    videos: Sequence[Path],
    out: Path,
    settings: Settings | None = None,
    *,
    keypoints: Sequence[Path] = (),
    clips_per_shard: int = 64,
) -> Manifest:
    """Write videos (or folders of frames) with their keypoints as shards in ``out``, cut into clips.

    Args:
        videos: video files or folders of images.
        out: folder of the shards.
        settings: choices.
        keypoints: an NPZ file for each video; none: of the video's name with ``.npz`` in place of its suffix.
        clips_per_shard: clips of each shard but the last.

    Raises:
        UserError: a missing or unreadable file, arrays that break the layout, more frames than the video has, and what
            `write_clips` refuses. Nothing is written before all files are read.

    """
    settings = settings or Settings()
    if keypoints and len(keypoints) != len(videos):
        raise UserError(f"{len(keypoints)} files of keypoints for {len(videos)} videos; give one for each")
    files = keypoints or [video.parent / f"{video.name if video.is_dir() else video.stem}.npz" for video in videos]
    vocabulary = Vocabulary()
    plans: list[Planned] = []
    for video, file in zip(videos, files):
        plans += _plans(video, file, settings, vocabulary)
    return write_clips(out, plans, vocabulary, name=settings.name, clips_per_shard=clips_per_shard)


def read_keypoints(path: Path, confidence: float = CONFIDENCE) -> Found:
    """Read a file of keypoints. UserError names what breaks the layout."""
    arrays = _load(path)
    names = tuple(str(name) for name in _take(path, arrays, "names").reshape(-1).tolist())
    n = len(names)
    pixels = _take(path, arrays, "pixels").astype(np.float64)
    if pixels.ndim not in (3, 4) or pixels.shape[-2:] != (n, 2) or not len(pixels):
        raise UserError(
            f"{path}: pixels are {pixels.shape}; give (frames, {n}, 2), or (frames, things, {n}, 2), for {n} names"
        )
    several = pixels.ndim == 4
    shape = pixels.shape[:-1]
    f = len(pixels)

    def optional(name: str, wanted: tuple[int | None, ...], kinds: str) -> NDArray[Any] | None:
        if name not in arrays:
            return None
        value = arrays[name]
        fits = value.ndim == len(wanted) and all(b in (None, a) for a, b in zip(value.shape, wanted))
        if not fits or value.dtype.kind not in kinds:
            form = ", ".join("any" if side is None else str(side) for side in wanted)
            raise UserError(f"{path}: {name} is {value.dtype} {value.shape}; beside these pixels it has to be ({form})")
        return value

    sure = optional("confidence", shape, "f")
    known = finite(pixels) if sure is None else finite(pixels) & (sure >= confidence)
    visible = optional("visible", shape, "b")
    points = optional("points", (*shape, 3), "f")
    frames, times = optional("frames", (f,), "iu"), optional("times", (f,), "f")
    frames = np.arange(f) if frames is None else frames.astype(np.int64)
    for name, values in (("frames", frames), ("times", times)):
        if values is not None and (not np.isfinite(values).all() or (np.diff(values) <= 0).any() or values[0] < 0):
            raise UserError(f"{path}: {name} have to ascend, from 0 or more")
    poses, intrinsics = optional("world_from_camera", (f, 4, 4), "f"), optional("intrinsics", (f, 3, 3), "f")
    _check_cameras(path, poses, intrinsics)
    metric = optional("metric", (), "b")
    edges, rigid = _bones(path, names, optional("edges", (None, 2), "iu"), arrays)
    pixels = np.where(known[..., None], pixels, np.nan)
    found = Found(
        names=names,
        pixels=pixels if several else pixels[:, None],
        hidden=_as_things(np.zeros(shape, bool) if visible is None else ~visible, several),
        points=_as_things(np.full((*shape, 3), np.nan) if points is None else points.astype(np.float64), several),
        edges=edges or _nearest(pixels.reshape(-1, n, 2)),
        rigid=rigid,
        frames=frames,
        times=times,
        world_from_camera=None if poses is None else poses.astype(np.float64),
        intrinsics=None if intrinsics is None else intrinsics.astype(np.float64),
        metric=metric is not None and bool(metric),
    )
    if not finite(found.pixels).any():
        raise UserError(f"{path} knows no keypoint: all are NaN, or of a confidence below {confidence:g}")
    return found


def _check_cameras(path: Path, poses: NDArray[Any] | None, intrinsics: NDArray[Any] | None) -> None:
    """Raise UserError for cameras that the layout cannot hold."""
    if (poses is None) != (intrinsics is None):
        raise UserError(f"{path}: world_from_camera and intrinsics come together; add the other")
    if poses is None or intrinsics is None:
        return
    if not (np.isfinite(poses).all() and np.isfinite(intrinsics).all()):
        raise UserError(f"{path}: a camera has NaN or infinity; leave out its frame (frames), or all cameras")
    pinhole = intrinsics[:, [0, 1, 2, 2, 2], [1, 0, 0, 1, 2]]
    if np.abs(pinhole - [0, 0, 0, 0, 1]).max() > 1e-6 or np.abs(poses[:, 3] - [0, 0, 0, 1]).max() > 1e-6:
        raise UserError(
            f"{path}: intrinsics have to be fx 0 cx, 0 fy cy, 0 0 1, and the last row of world_from_camera 0 0 0 1"
        )


def _as_things(values: NDArray[Any], several: bool) -> NDArray[Any]:
    return values if several else values[:, None]


def _load(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: np.asarray(content[name]) for name in content.files}
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there; give the video's keypoints by that name, or say --keypoints") from error
    except (OSError, ValueError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not an NPZ file of plain arrays ({error}); write it with numpy.savez") from error
    if unknown := sorted(set(arrays) - set(ARRAYS)):
        raise UserError(
            f"{path} has an array {unknown[0]!r}, which means nothing here; it may have {', '.join(ARRAYS)}"
        )
    return arrays


def _take(path: Path, arrays: dict[str, NDArray[Any]], name: str) -> NDArray[Any]:
    kind = "text" if name == "names" else "floats"
    if name not in arrays or arrays[name].dtype.kind not in ("U" if name == "names" else "f"):
        raise UserError(f"{path} has no array {name} of {kind}; names and pixels are obligatory")
    return arrays[name]


def _bones(
    path: Path, names: Sequence[str], edges: NDArray[Any] | None, arrays: dict[str, NDArray[Any]]
) -> tuple[tuple[tuple[int, int], ...], tuple[bool, ...]]:
    """Bones of the file, and which are rigid; none without edges."""
    pairs = () if edges is None else tuple((int(a), int(b)) for a, b in edges.tolist())
    said = arrays.get("rigid", np.zeros(len(pairs), bool))
    if said.dtype.kind != "b" or said.ndim != 1:
        raise UserError(f"{path}: rigid is {said.dtype} {said.shape}; give a bool for each edge")
    rigid = tuple(bool(each) for each in said.tolist())
    try:
        check_skeleton([canonical(name) for name in names], [1] * len(names), pairs, rigid)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    return pairs, rigid


def _nearest(pixels: NDArray[np.float64]) -> tuple[tuple[int, int], ...]:
    """Bones between neighbours, by mean distances in the image."""
    joined = knn_edges(torch.from_numpy(np.nan_to_num(pixels)).float(), torch.from_numpy(finite(pixels)))
    return tuple((int(a), int(b)) for a, b in joined.tolist())


def _plans(video: Path, file: Path, settings: Settings, vocabulary: Vocabulary) -> list[Planned]:
    """Clips of one video, without those in which nothing is known."""
    found = read_keypoints(file, settings.confidence)
    reel = Reel(video)
    if found.frames[-1] >= len(reel.times):
        raise UserError(
            f"{file} has keypoints of frame {found.frames[-1]}, counted from 0; {video} has {len(reel.times)} frames"
        )
    stem = _KEY.sub("-", video.resolve().name if video.is_dir() else video.stem)[:NAME_LENGTH]
    files = {file.name: digest(file)} | ({} if video.is_dir() else {video.name: digest(video)})
    options = {"confidence": settings.confidence, "long_side": settings.long_side}
    more = {"clip_frames": settings.clip_frames, "name": settings.name, "licence": settings.licence}
    origin = Origin(name="four-d data import video", files=files, settings={**options, **more})
    known = finite(found.pixels)
    for labelled in known[known.any(-1)].tolist():
        vocabulary.add(settings.name, found.names, labelled)
    parts = cut(len(known), settings.clip_frames)
    told = [part for part in parts if known[part.start : part.stop].any()]
    if len(told) < len(parts):
        LOGGER.warning(f"{video}: {len(parts) - len(told)} clips in which no keypoint is known are left out")
    return [
        Planned(key=key, origin=origin, make=partial(_clip, found, reel, part, settings, key))
        for part in told
        for key in [f"{stem}-{int(found.frames[part.start]):06d}"]
    ]


def _clip(found: Found, reel: Reel, part: range, settings: Settings, key: str) -> RawClip:
    rows = slice(part.start, part.stop)
    known = finite(found.pixels[rows])
    things = np.flatnonzero(known.any(2).any(0))
    n = len(found.names)
    frames = found.frames[rows]
    images, factors = shrink(np.stack(reel.take(frames.tolist())), settings.long_side)
    size = images.shape[2], images.shape[1]
    pixels, known = found.pixels[rows][:, things] * factors, known[:, things]
    points, hidden = found.points[rows][:, things], found.hidden[rows][:, things]
    valid = finite(points)
    stored = np.where(known[..., None], pixels, 0).astype(np.float32)
    shape = (len(frames), len(things) * n)
    times = np.array(reel.times)[frames] if found.times is None else found.times[rows]
    bones = [(a + n * place, b + n * place) for place in range(len(things)) for a, b in found.edges]
    rigid = found.rigid or (False,) * len(found.edges)
    info = ClipInfo(
        source=settings.name,
        licence=settings.licence,
        metric=found.metric,
        width=size[0],
        height=size[1],
        times=(times - times[0]).tolist(),
        camera_ids=[0] * len(frames),
        objects=[ObjectInfo(name="surroundings"), *(ObjectInfo(name=f"thing {index}") for index in things.tolist())],
        keypoints=KeypointInfo(
            names=[canonical(name) for _ in things for name in found.names],
            instances=[place + 1 for place in range(len(things)) for _ in range(n)],
            edges=bones,
            rigid=list(rigid) * len(things),
        ),
    )
    poses, intrinsics = found.world_from_camera, found.intrinsics
    scale = np.array([[factors[0]], [factors[1]], [1.0]])
    return RawClip(
        key=key,
        info=info,
        images=images,
        world_from_camera=None if poses is None else poses[rows],
        intrinsics=None if intrinsics is None else intrinsics[rows] * scale,
        keypoints=KeypointArrays(
            points=np.where(valid[..., None], points, 0).astype(np.float32).reshape(*shape, 3),
            valid=valid.reshape(shape),
            pixels=stored.reshape(*shape, 2),
            pixels_valid=known.reshape(shape),
            visible=(known & ~hidden & inside(stored, size)).reshape(shape),
        ),
    )
