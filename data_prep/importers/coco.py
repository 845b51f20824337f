"""Import of keypoint annotations in COCO's form: a clip per image, or per video where images name theirs."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from PIL import ImageOps, UnidentifiedImageError

from data_prep.importers.frames import CLIP_FRAMES, Reel
from data_prep.importers.vocabulary import Vocabulary, canonical
from data_prep.importers.writing import MOST_FRAMES, VOCABULARY, Origin, Planned, digest, write_clips
from four_d.data.contract import ClipInfo, KeypointArrays, KeypointInfo, ObjectInfo, RawClip
from four_d.data.manifest import Manifest
from four_d.errors import UserError
from four_d.formats.coco import Base, Image, Instance, Skeleton, has_keypoints, read_coco
from four_d.keypoints import check_skeleton, knn_edges

LOGGER = logging.getLogger(__name__)

__all__ = ["VOCABULARY", "Source", "import_coco", "sources_in"]

FRAME_RATE = 30.0
"""Frames per second of videos given as images: the annotations do not tell."""
MOST_EXAMPLES = 1000
"""Instances of a category from which bones are derived where the file has none."""
FOLDERS = (".", "images", "data", "..", "../images", "../data")
"""Folders, from the annotation file's, in which images are looked for where none are given; AP-10K's are in ../data."""
NAME_LENGTH = 24
"""Characters of a source's name, with which the keys of its clips begin."""
_KEY = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One annotation file with its images."""

    annotations: Path
    images: Path | None = None
    """Folder that its file names are relative to, or the video whose frames its ``frame_id`` number from 0; None: look
    in `FOLDERS`.
    """
    name: str | None = None
    """Name in the manifest; None: the file's own without its ending."""
    licence: str | None = None
    """Licence of annotations and images; None: what the file says, else "unknown"."""


@dataclass(frozen=True, kw_only=True)
class _Video:
    """Frames of one clip, in their order."""

    key: str
    source: str
    licence: str
    images: Path | Reel
    """Folder of the images, or the video that they are frames of."""
    frames: list[Image]
    edges: Mapping[Skeleton, tuple[tuple[int, int], ...]]
    origin: Origin


def sources_in(folder: Path) -> list[Source]:
    """Find the annotation files of keypoints below a folder, each named by its path in it (MegaKPT's form).

    UserError if there are none.
    """
    found: list[Source] = []
    for path in sorted(folder.rglob("*.json")):
        if not has_keypoints(path):
            LOGGER.info("%s has no keypoints in COCO's form, and is left out", path)
            continue
        parts = [part for part in path.relative_to(folder).with_suffix("").parts if part != "annotations"]
        name = _KEY.sub("-", "-".join(parts))[-NAME_LENGTH:].strip("-")
        if any(each.name == name for each in found):
            name = f"{name[: NAME_LENGTH - 4]}-{len(found)}"
        found.append(Source(annotations=path, name=name))
    if not found:
        raise UserError(f"{folder} holds no JSON file of keypoints in COCO's form; say the annotation files")
    return found


def import_coco(
    sources: Sequence[Source], out: Path, *, clips_per_shard: int = 256, skeleton_base: Base | None = None
) -> Manifest:
    """Write all annotated images as shards in ``out``, with ``vocabulary.json``: names, counts, spellings.

    Names get one spelling (`vocabulary.canonical`). Bones are the file's; where it has none, each point is joined with
    its four nearest. Safe to run again: finished shards stay.

    Args:
        sources: the annotation files.
        out: folder of the shards.
        clips_per_shard: clips of each shard but the last.
        skeleton_base: see `formats.coco.read_coco`.

    Raises:
        UserError: what `read_coco` refuses; images that are missing or of another size than the file says; two sources
            of one name; shards in ``out`` that other settings made, or the annotation files as they were before they
            were changed (images are not compared). Nothing is written before all files are found.

    """
    videos: list[_Video] = []
    vocabulary = Vocabulary()
    for source in sources:
        videos += _videos(source, skeleton_base, vocabulary, {video.source for video in videos})
    plans = [Planned(key=video.key, origin=video.origin, make=partial(_clip, video)) for video in videos]
    return write_clips(out, plans, vocabulary, name="keypoints", clips_per_shard=clips_per_shard)


def _videos(source: Source, base: Base | None, vocabulary: Vocabulary, taken: set[str]) -> list[_Video]:
    """Clips of one source, whose files all exist; counts its instances."""
    name = _KEY.sub("-", source.name or source.annotations.stem)[:NAME_LENGTH]
    if name in taken:
        raise UserError(f"two sources are called {name}; give each its own name (--names)")
    images = [each for image in read_coco(source.annotations, base) if (each := _annotated(image)).instances]
    if not images:
        raise UserError(f"{source.annotations} labels no keypoint of any image")
    folder = _reel(source, images) if source.images and source.images.is_file() else _folder(source, images)
    skeletons = {instance.skeleton: None for image in images for instance in image.instances}
    edges = {skeleton: skeleton.edges or _nearest(skeleton, images) for skeleton in skeletons}
    for skeleton in skeletons:
        _check(source, skeleton, edges[skeleton])
    for image in images:
        for instance in image.instances:
            vocabulary.add(name, instance.skeleton.names, instance.labelled.tolist())
    licence = source.licence or "; ".join(sorted({image.licence for image in images if image.licence})) or "unknown"
    origin = Origin(
        name="four-d data import coco",
        files={name: digest(source.annotations)}
        | ({} if isinstance(folder, Path) else {folder.path.name: digest(folder.path)}),
        settings={"skeleton_base": base, "licence": licence},
    )
    grouped: dict[str, list[Image]] = {}
    for image in images:
        single = image.video is None and isinstance(folder, Path)
        grouped.setdefault(f"{image.file}" if single else f"video {image.video}", []).append(image)
    found: list[_Video] = []
    for number, frames in enumerate(grouped.values()):
        ordered = sorted(frames, key=lambda image: image.frame)
        _check_video(source, ordered)
        most = MOST_FRAMES if isinstance(folder, Path) else CLIP_FRAMES
        for start in range(0, len(ordered), most):
            key = f"{name}-{number:07d}" + (f"-{start // most}" if len(ordered) > most else "")
            part = ordered[start : start + most]
            found.append(
                _Video(
                    key=key,
                    source=name,
                    licence=licence,
                    images=folder,
                    frames=part,
                    edges=edges,
                    origin=origin,
                )
            )
    return found


def _check_video(source: Source, frames: Sequence[Image]) -> None:
    """Raise UserError for frames of two sizes, two frames of one number, or a frame with two things of one identity."""
    video = f"{source.annotations}: video {frames[0].video}"
    if len({(frame.width, frame.height) for frame in frames}) > 1:
        raise UserError(f"{video} has frames of different sizes; a clip has one: give each size its own video_id")
    numbers = [frame.frame for frame in frames]
    if len(set(numbers)) < len(numbers):
        raise UserError(f"{video} has two frames with one frame_id; number them")
    for frame in frames if len(frames) > 1 else ():
        tracks = [(each.track, each.skeleton) for each in frame.instances if each.track is not None]
        if len(set(tracks)) < len(tracks):
            raise UserError(
                f"{video}: frame {frame.frame} has two annotations of one category with one track_id; give each thing "
                "its own, or none"
            )


def _annotated(image: Image) -> Image:
    return replace(image, instances=tuple(each for each in image.instances if each.labelled.any()))


def _folder(source: Source, images: Sequence[Image]) -> Path:
    """Folder of the images. UserError if some are missing."""
    if source.images is None:
        own = source.annotations.parent
        found = [own / name for name in FOLDERS if (own / name / images[0].file).is_file()]
        if not found:
            raise UserError(f"{images[0].file} is not beside {source.annotations}; say --images FOLDER")
        folder = found[0]
    else:
        folder = source.images
    missing = [image.file for image in images if not (folder / image.file).is_file()]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of the {len(images)} images of {source.annotations}, as {missing[0]}; add "
            "them, or say another folder with --images"
        )
    return folder


def _reel(source: Source, images: Sequence[Image]) -> Reel:
    """Video that the images are frames of. UserError if it lacks some, has another size, or there are several."""
    assert source.images is not None
    reel = Reel(source.images)
    if len({image.video for image in images}) > 1:
        raise UserError(f"{source.annotations} has several video_id, and {source.images} is one video; split the file")
    last = max(image.frame for image in images)
    if last >= len(reel.times):
        raise UserError(
            f"{source.annotations} has frame_id {last}, counted from 0; {source.images} has {len(reel.times)} frames"
        )
    size, said = reel.size(), (images[0].width, images[0].height)
    if size != said:
        raise UserError(
            f"{source.images} is {size[0]} × {size[1]}, {source.annotations} is of images of {said[0]} × {said[1]}"
        )
    return reel


def _nearest(skeleton: Skeleton, images: Sequence[Image]) -> tuple[tuple[int, int], ...]:
    """Bones between neighbours, by mean distances over instances of equal size."""
    same = [each for image in images for each in image.instances if each.skeleton == skeleton][:MOST_EXAMPLES]
    points = torch.from_numpy(np.stack([_unit(instance) for instance in same]))
    labelled = torch.from_numpy(np.stack([instance.labelled for instance in same]))
    return tuple((int(a), int(b)) for a, b in knn_edges(points.float(), labelled).tolist())


def _unit(instance: Instance) -> NDArray[np.float64]:
    """Pixels over the longer side of the labelled ones' box."""
    own = instance.pixels[instance.labelled]
    return instance.pixels / max(float(np.ptp(own, axis=0).max()), 1e-6)


def _check(source: Source, skeleton: Skeleton, edges: Sequence[tuple[int, int]]) -> None:
    names = [canonical(name) for name in skeleton.names]
    try:
        check_skeleton(names, [1] * len(names), edges, [False] * len(edges))
    except ValueError as error:
        raise UserError(f"{source.annotations}: category {skeleton.category}: {error}") from error


def _clip(video: _Video) -> RawClip:
    """Read the images of a clip and its keypoints."""
    first = video.frames[0]
    if isinstance(video.images, Path):
        images = np.stack([_read(video.images / frame.file, frame) for frame in video.frames])
        times = [(frame.frame - first.frame) / FRAME_RATE for frame in video.frames]
    else:
        reel = video.images
        images = np.stack(reel.take([frame.frame for frame in video.frames]))
        times = [reel.times[frame.frame] - reel.times[first.frame] for frame in video.frames]
    things = _things(video)
    starts = np.cumsum([0, *(len(skeleton.names) for skeleton, _ in things)])
    shape = (len(video.frames), int(starts[-1]))
    arrays = KeypointArrays(
        points=np.zeros((*shape, 3), np.float32),
        valid=np.zeros(shape, np.bool_),
        pixels=np.zeros((*shape, 2), np.float32),
        pixels_valid=np.zeros(shape, np.bool_),
        visible=np.zeros(shape, np.bool_),
    )
    size = np.array([first.width, first.height])
    for (_, seen), start in zip(things, starts):
        for frame, instance in seen.items():
            own = frame, slice(int(start), int(start) + len(instance.labelled))
            inside = ((instance.pixels >= 0) & (instance.pixels < size)).all(-1)
            arrays.pixels[own], arrays.pixels_valid[own] = instance.pixels, instance.labelled
            arrays.visible[own] = instance.visible & inside
    edges = [(int(a + s), int(b + s)) for (skeleton, _), s in zip(things, starts) for a, b in video.edges[skeleton]]
    info = ClipInfo(
        source=video.source,
        licence=video.licence,
        metric=False,
        width=first.width,
        height=first.height,
        times=times,
        camera_ids=[0] * len(video.frames),
        objects=[ObjectInfo(name="surroundings"), *(ObjectInfo(name=skeleton.category) for skeleton, _ in things)],
        keypoints=KeypointInfo(
            names=[canonical(name) for skeleton, _ in things for name in skeleton.names],
            instances=[thing + 1 for thing, (skeleton, _) in enumerate(things) for _ in skeleton.names],
            edges=edges,
            rigid=[False] * len(edges),
        ),
    )
    return RawClip(key=video.key, info=info, images=images, keypoints=arrays)


def _things(video: _Video) -> list[tuple[Skeleton, dict[int, Instance]]]:
    """Things of a clip, with what each frame shows of them; without identities, or in a single image, each annotation
    is a thing.
    """
    found: dict[object, tuple[Skeleton, dict[int, Instance]]] = {}
    for frame, image in enumerate(video.frames):
        for number, instance in enumerate(image.instances):
            alone = instance.track is None or len(video.frames) == 1
            name = (frame, number) if alone else (instance.track, instance.skeleton)
            found.setdefault(name, (instance.skeleton, {}))[1][frame] = instance
    return list(found.values())


def _read(path: Path, image: Image) -> NDArray[np.uint8]:
    """Read an image of the size that its annotation says; turned as EXIF says only if the size asks for it."""
    try:
        picture = PIL.Image.open(path)
        size = (image.width, image.height)
        turned = picture if picture.size == size else ImageOps.exif_transpose(picture)
        if turned.size != size:
            raise UserError(f"{path} is {picture.width} × {picture.height}, its annotation says {size[0]} × {size[1]}")
        return np.asarray(turned.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}); mend it, or remove its annotations") from error
