"""Clips of the shard layout from a data set's sequences: one size, rigid poses, tracks in the world."""

from __future__ import annotations

import logging
from collections.abc import Sequence as Indices
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.importers.frames import cut
from data_prep.importers.writing import MOST_FRAMES
from four_d.data.contract import ClipInfo, RawClip, TrackArrays, problems
from four_d.datasets import files
from four_d.datasets.facts import DataSet
from four_d.datasets.sequence import Sequence
from four_d.errors import UserError
from four_d.types import SAME_TIME

LOGGER = logging.getLogger("four_d.data_prep")  # not __name__: users silence, and the program shows, "four_d"

SKEW = 1e-9
"""Largest skew, in pixels, that counts as none."""
RIGID, REPAIRABLE = 1e-6, 1e-2
"""Largest entry of RᵀR − 1 that needs no correction, and that is corrected; beyond it the matrix is no rotation."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Choices of an import of a data set."""

    long_side: int | None = None
    """Longer side of the stored images in pixels; None: as they are."""
    clip_frames: int = 48
    """Most times of a clip; a sequence becomes clips of about equal length."""
    every: int = 1
    """Take every N-th time."""
    most_tracks: int = 4096
    """Most tracks of a clip, evenly chosen."""
    licence: str | None = None
    """Licence, for sets that state none; None: the set's."""
    name: str | None = None
    """Name of the source; None: the set's."""
    depth_tolerance: float | None = None
    """Relative error of depth that checks allow, kept with each clip; None: the set's."""


def parts(sequence: Sequence, settings: Settings) -> list[list[int]]:
    """Cut a sequence into clips: frames of each, camera by camera, over ranges of moments.

    Frames after the last with a mask are left out where masks say what moves. UserError for fewer than one time.
    """
    ids = sequence.camera_ids or (0,) * sequence.frames
    end = sequence.frames if sequence.mask_frames is None else sequence.mask_frames
    cameras = len(set(ids))
    chosen = _moments(sequence.times[:end], ids[:end])[:: settings.every]
    groups = cut(len(chosen), min(settings.clip_frames, max(1, MOST_FRAMES // cameras)), cameras)
    return [
        sorted((f for at in group for f in chosen[at]), key=lambda f: (ids[f], sequence.times[f])) for group in groups
    ]


def _moments(times: Indices[float], ids: Indices[int]) -> list[list[int]]:
    """Group frames by the moment at which they were taken, in order of time.

    A moment has at most one frame of each camera, all within half the smallest interval of a camera's frames, so that
    clocks may differ a little.
    """
    order = sorted(range(len(times)), key=lambda f: times[f])
    steps = [_smallest_step([t for t, of in zip(times, ids) if of == camera]) for camera in sorted(set(ids))]
    within = SAME_TIME if np.isinf(min(steps)) else min(steps) / 2
    moments: list[list[int]] = []
    for frame in order:
        last = moments[-1] if moments else []
        near = bool(last) and times[frame] - times[last[0]] < within
        if near and ids[frame] not in {ids[other] for other in last}:
            last.append(frame)
        else:
            moments.append([frame])
    return moments


def _smallest_step(times: list[float]) -> float:
    """Smallest interval of one camera's times; infinite for one frame."""
    return float(np.diff(np.sort(times)).min(initial=np.inf))


def clip_of(dataset: DataSet, sequence: Sequence, frames: Indices[int], settings: Settings, key: str) -> RawClip:
    """Read these frames of a sequence as a clip.

    Frames whose pose is lost are left out, unless all are: then there are intrinsics only. Where depth is smaller than
    the images, these are made as small. UserError where files cannot be read, or hold poses that are no rotations.
    """
    frames, intrinsics, poses = _cameras(sequence, frames)
    part = sequence.take(frames)
    images, depth = part.images(), _depth(part)
    full = images.shape[1:3]
    masks = part.masks() if part.masks is not None and dataset.moving else None
    for name, maps in (("depth", depth), ("masks", masks)):
        if maps is not None and not files.same_shape(maps.shape[1:], full):
            raise UserError(
                f"{sequence.name}: {name} are {maps.shape[2]} × {maps.shape[1]}, the images {full[1]} × {full[0]}, "
                "another shape; give maps of the whole images, of any size"
            )
    size = _fitted(full if depth is None else _smaller(full, depth.shape[1:]), settings.long_side)
    if intrinsics is not None:
        intrinsics = intrinsics * np.array([[size[1] / full[1]], [size[0] / full[0]], [1.0]])
    times = [time - min(part.times) for time in part.times]
    tracks = None if poses is None else _tracks(sequence, frames, poses, settings.most_tracks)
    clip = RawClip(
        key=key,
        info=ClipInfo(
            source=settings.name or dataset.name,
            licence=settings.licence or dataset.licence,
            home=dataset.home or None,
            metric=dataset.metric if sequence.metric is None else sequence.metric,
            depth_tolerance=None if depth is None else settings.depth_tolerance or dataset.depth_tolerance,
            width=size[1],
            height=size[0],
            times=times,
            camera_ids=list(part.camera_ids or (0,) * len(frames)),
            track_times=None if tracks is None else sorted(set(times)),
        ),
        images=_resized_images(images, size),
        world_from_camera=poses,
        intrinsics=intrinsics,
        depth=None if depth is None else files.resized(depth, size),
        dynamic=None if masks is None else files.resized(masks, size),
        tracks=tracks,
    )
    if wrong := problems(clip):
        raise UserError(f"{sequence.name}, frame {frames[0]} and on: {wrong[0]}; correct its files")
    return clip


def _cameras(
    sequence: Sequence, frames: Indices[int]
) -> tuple[Indices[int], NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Frames that are kept, their intrinsics f 3 3 and poses f 4 4; None where the set has none."""
    part = sequence.take(frames)
    if part.cameras is None:
        return frames, None, None
    cameras, chosen = part.cameras(), list(frames)
    intrinsics, poses = cameras.intrinsics.double().numpy(), cameras.world_from_camera.double().numpy()
    if np.abs(intrinsics[:, 0, 1]).max() > SKEW:
        raise UserError(f"{sequence.name} has intrinsics with skew, which four_d does not hold; calibrate without")
    known = np.ones(len(chosen), bool) if cameras.known is None else cameras.known.numpy()
    if not known.any():
        return frames, intrinsics, None
    if not known.all():
        LOGGER.info("%s: %d frames without a pose are left out", sequence.name, int((~known).sum()))
    kept = [frame for frame, each in zip(chosen, known) if each]
    return kept, intrinsics[known], rigid(poses[known], sequence.name)


def rigid(poses: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """Replace rotations of poses f 4 4 by the nearest orthonormal ones, which is logged where they differ by more than
    `RIGID`. UserError beyond `REPAIRABLE`, or for mirrored ones.
    """
    rotation = poses[:, :3, :3]
    off = np.abs(rotation.transpose(0, 2, 1) @ rotation - np.eye(3)).max((1, 2))
    worst = int(off.argmax())
    if off[worst] > REPAIRABLE or (np.linalg.det(rotation) < 0).any():
        raise UserError(
            f"{name}: the pose of frame {worst} is not rigid (RᵀR differs from 1 by {off[worst]:.2g}); "
            "a scale or a mirrored axis does not belong into it"
        )
    if off[worst] <= RIGID:
        return poses
    LOGGER.warning(f"{name}: rotations, which are up to {off[worst]:.1g} off, are made orthonormal")
    left, _, right = np.linalg.svd(rotation)
    corrected = poses.copy()
    corrected[:, :3, :3] = left @ right
    return corrected


def _depth(part: Sequence) -> NDArray[np.float32] | None:
    """Depth f h w, 0 where invalid; None if nothing is valid."""
    if part.depth is None:
        return None
    values, valid = part.depth()
    return np.where(valid, values, 0).astype(np.float32) if valid.any() else None


def _smaller(images: tuple[int, ...], depth: tuple[int, ...]) -> tuple[int, int]:
    """Size of depth if it is the smaller one in both directions, else that of the images."""
    size = depth if depth[0] <= images[0] and depth[1] <= images[1] else images
    return size[0], size[1]


def _fitted(size: tuple[int, ...], long_side: int | None) -> tuple[int, int]:
    """Size of which the longer side is at most ``long_side``."""
    factor = 1.0 if long_side is None else min(1.0, long_side / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _resized_images(images: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if images.shape[1:3] == size:
        return images
    shape = size[1], size[0]
    return np.stack([np.asarray(Image.fromarray(each).resize(shape, Image.Resampling.BICUBIC)) for each in images])


def _tracks(sequence: Sequence, frames: Indices[int], poses: NDArray[np.float64], most: int) -> TrackArrays | None:
    """World positions at the times of ``frames`` of at most ``most`` tracks that are seen then; None without any."""
    if sequence.world_tracks is not None:
        stored = sequence.world_tracks()
        wanted = np.unique([sequence.times[frame] for frame in frames])
        at = np.abs(np.subtract.outer(wanted, np.array(stored.times))).argmin(-1)
        if np.abs(np.array(stored.times)[at] - wanted).max() > SAME_TIME:
            raise UserError(f"{sequence.name}: its tracks have no entry at a frame's time; unpack it again")
        points, known, visible = stored.points[:, at], stored.known[:, at], stored.visible[:, at]
    elif sequence.tracks is not None and sequence.camera_ids is None:
        truth = sequence.tracks()
        chosen = list(frames)
        local = truth.points[chosen].transpose(1, 0, 2)
        points = np.einsum("tij,ntj->nti", poses[:, :3, :3], local) + poses[:, :3, 3]
        known, visible = truth.known[chosen].T, truth.visible[chosen].T
    else:
        return None
    seen = np.flatnonzero((known & visible).any(-1))
    if not len(seen):
        return None
    seen = seen[np.unique(np.linspace(0, len(seen) - 1, min(most, len(seen))).round().astype(int))]
    points, known = points[seen], known[seen]
    return TrackArrays(
        points=np.where(known[..., None], points, 0).astype(np.float32),
        visible=np.ascontiguousarray(visible[seen] & known),
        valid=np.ascontiguousarray(known),
    )
