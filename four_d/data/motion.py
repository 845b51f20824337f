"""Ground truth of dense motion of each pixel's point to other times, from correspondence or sparse tracks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from four_d import fields
from four_d import surface as surfaces
from four_d.geometry import project
from four_d.types import Cameras, Clip, Surface, Tracks, same_time

BEHIND = 0.05
"""Fraction of a pixel's depth by which a track must lie behind it to count as occluded."""


@dataclass(frozen=True, kw_only=True)
class MotionTruth:
    """Motion of every pixel of some frames to one time, with visibility and the validity of both."""

    motion: Float[Tensor, "k h w 3"]
    visible: Bool[Tensor, "k h w"]
    valid: Bool[Tensor, "k h w"]


def choose_times(times: Float[Tensor, "f"], count: int, rng: np.random.Generator) -> Float[Tensor, "q"]:
    """Draw ``count`` of the frames' distinct times uniformly, without repeats while there are enough."""
    distinct = times.unique()
    order = np.concatenate([rng.permutation(len(distinct)) for _ in range(-(-count // len(distinct)))])
    return distinct[torch.from_numpy(order[:count])]


def key_frames(clip: Clip, every: int) -> Int[Tensor, "k"]:
    """Indices of each ``every``-th frame of an unbatched clip, by camera and time, as `backbones.spacetime` takes
    them; reference frames are left out.
    """
    order = clip.times.argsort(stable=True)
    order = order[clip.camera_ids[order].argsort(stable=True)]
    return (order if clip.references is None else order[~clip.references[order]])[::every]


def with_motion(clip: Clip, query_times: Float[Tensor, "q"], frames: Int[Tensor, "k"] | None = None) -> Clip:
    """Add ``query_times`` and the true motion to them to an unbatched clip, in its own unit and coordinates.

    Only ``frames`` get motion, where they are given: memory grows with their number times that of the query times.
    A surface gives it for every pixel that hit something, seen or not at the query time. Sparse tracks give it for
    the pixels on which a visible track falls (the nearest one, if several), also while it is hidden at the query time.
    Clips with neither, or without cameras, have no valid motion.
    """
    chosen = torch.arange(len(clip.times)) if frames is None else frames
    truths = [_motion(clip, query, chosen) for query in query_times]
    stacked = {
        f.name: torch.stack([getattr(truth, f.name) for truth in truths]) for f in dataclasses.fields(MotionTruth)
    }
    return dataclasses.replace(
        clip,
        query_times=query_times,
        motion=stacked["motion"],
        motion_visible=stacked["visible"],
        motion_valid=stacked["valid"],
        motion_frames=frames,
    )


def _motion(clip: Clip, query: Float[Tensor, ""], frames: Int[Tensor, "k"]) -> MotionTruth:
    if clip.cameras is not None and clip.surface is not None:
        return surface_motion(clip.surface, clip.cameras, clip.times, query, frames)
    posed = clip.cameras is not None and (clip.cameras.known is None or bool(clip.cameras.known.all()))
    if posed and clip.tracks is not None:
        return track_motion(clip, query, frames)
    empty = torch.zeros_like(clip.images[frames, 0], dtype=torch.bool)
    return MotionTruth(motion=torch.zeros(*empty.shape, 3), visible=empty, valid=empty)


def surface_motion(
    surface: Surface,
    cameras: Cameras,
    times: Float[Tensor, "f"],
    query: Float[Tensor, ""],
    frames: Int[Tensor, "k"],
) -> MotionTruth:
    """Motion of every pixel of ``frames``. ValueError if a time is not on the surface's axis."""
    surface_of_frames = fields.take(surface, "f", frames)
    at_query = surfaces.points(surface_of_frames, query.expand(len(frames)))
    valid = surfaces.valid(surface_of_frames)
    motion = (at_query - surfaces.points(surface_of_frames, times[frames])).masked_fill(~valid[..., None], 0.0)
    query_frames = same_time(times, query).nonzero()[:, 0]
    visible = torch.zeros_like(valid).flatten()
    for frame in query_frames:
        only = frame[None]
        camera = fields.take(cameras, "b", only)
        points = at_query.flatten(0, 2)[None]
        surface_there = fields.take(surface, "f", only)
        visible = (
            visible | surfaces.visible(surface_there, camera, times[only], points, surface_of_frames.faces.flatten())[0]
        )
    return MotionTruth(motion=motion, visible=visible.view(valid.shape) & valid, valid=valid)


def track_motion(clip: Clip, query: Float[Tensor, ""], frames: Int[Tensor, "k"]) -> MotionTruth:
    """Motion of the pixels of ``frames`` on which the clip's tracks fall.

    A visible track may be visible only in another camera of that time. Where the clip has depth, that decides; else a
    track that falls into the images of several cameras is left out.
    """
    tracks = clip.tracks
    assert tracks is not None
    height, width = clip.images.shape[-2:]
    motion = torch.zeros(len(frames), height * width, 3)
    visible = torch.zeros(len(frames), height * width, dtype=torch.bool)
    valid = torch.zeros_like(visible)
    query_index = _time_index(tracks, query)
    seen_at_query = _seen_in_frames(clip, tracks, query_index).any(0)
    for row, frame in enumerate(frames.tolist()):
        start_index = _time_index(tracks, clip.times[frame])
        if query_index is None or start_index is None:
            continue
        usable = (_seen_in_frames(clip, tracks, start_index)[frame] & tracks.valid[:, query_index]).nonzero()[:, 0]
        pixels, depth = project(tracks.points[usable, start_index], _camera_of(clip, frame))
        landed, nearest = _landings(pixels, depth, width)
        chosen = usable[nearest]
        motion[row, landed] = tracks.points[chosen, query_index] - tracks.points[chosen, start_index]
        visible[row, landed] = seen_at_query[chosen]
        valid[row, landed] = True
    shape = (len(frames), height, width)
    return MotionTruth(motion=motion.view(*shape, 3), visible=visible.view(shape), valid=valid.view(shape))


def _camera_of(clip: Clip, frame: int) -> Cameras:
    assert clip.cameras is not None
    return fields.unstack(clip.cameras, frame)


def _seen_in_frames(clip: Clip, tracks: Tracks, index: int | None) -> Bool[Tensor, "f n"]:
    """Certain visibility of each track in the frames at one time, ``place`` on the tracks' axis; other frames see none.

    A crop may have removed points that the source saw, and one camera may see points that are hidden from another.
    """
    possible = torch.zeros(len(clip.times), len(tracks.points), dtype=torch.bool)
    if index is None:
        return possible
    certain = possible.clone()
    for frame in same_time(clip.times, tracks.times[index]).nonzero()[:, 0].tolist():
        pixels, depth = project(tracks.points[:, index], _camera_of(clip, frame))
        surface_depth, inside = _depth_at(clip, frame, pixels)
        possible[frame] = inside & (depth > 0) & ~(surface_depth * (1 + BEHIND) < depth)
        certain[frame] = possible[frame] & surface_depth.isfinite()
    single = possible.sum(0) == 1
    return (certain | (possible & single)) & (tracks.visible & tracks.valid)[:, index]


def _depth_at(clip: Clip, frame: int, pixels: Float[Tensor, "n 2"]) -> tuple[Float[Tensor, "n"], Bool[Tensor, "n"]]:
    """Depth that a frame shows at some pixels, infinite where unknown; and a mask of those inside the image."""
    height, width = clip.images.shape[-2:]
    inside = (pixels >= 0).all(-1) & (pixels[:, 0] < width) & (pixels[:, 1] < height)
    if clip.depth is None or clip.valid is None:
        return torch.full_like(pixels[:, 0], torch.inf), inside
    x, y = pixels[:, 0].clamp(0, width - 1).long(), pixels[:, 1].clamp(0, height - 1).long()
    return torch.where(clip.valid[frame, y, x], clip.depth[frame, y, x], torch.inf), inside


def _landings(
    pixels: Float[Tensor, "n 2"], depth: Float[Tensor, "n"], width: int
) -> tuple[Int[Tensor, "k"], Int[Tensor, "k"]]:
    """Distinct pixels (row-major) on which points fall, and the nearest point on each."""
    order = depth.argsort()
    landed, group = (pixels[:, 1].long() * width + pixels[:, 0].long())[order].unique(return_inverse=True)
    # points are sorted by depth, so the first one of a pixel's group is the nearest
    first = torch.full_like(landed, len(order)).scatter_reduce(0, group, torch.arange(len(order)), "amin")
    return landed, order[first]


def _time_index(tracks: Tracks, time: Float[Tensor, ""]) -> int | None:
    """Index of a time on the tracks' axis; None if it is not there."""
    if not len(tracks.times):
        return None
    index = int((tracks.times - time).abs().argmin())
    return index if bool(same_time(tracks.times[index], time)) else None
