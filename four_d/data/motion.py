"""Truth of dense motion: where what each pixel saw is at other times, out of correspondence or of sparse tracks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from four_d import surface as surfaces
from four_d.geometry import project
from four_d.types import Cameras, Clip, Surface, Tracks, map_tensors, same_time

BEHIND = 0.05
"""Share of the depth that a pixel shows by which a track lies behind it that is hidden there."""


@dataclass(frozen=True, kw_only=True)
class MotionTruth:
    """Motion of every pixel to one time, and where that and ``visible`` mean something."""

    motion: Float[Tensor, "f h w 3"]
    visible: Bool[Tensor, "f h w"]
    valid: Bool[Tensor, "f h w"]


def choose_times(times: Float[Tensor, "f"], count: int, rng: np.random.Generator) -> Float[Tensor, "q"]:
    """``count`` of the frames' times, each time alike, none twice while there are others."""
    distinct = times.unique()
    order = np.concatenate([rng.permutation(len(distinct)) for _ in range(-(-count // len(distinct)))])
    return distinct[torch.from_numpy(order[:count])]


def with_motion(clip: Clip, query_times: Float[Tensor, "q"]) -> Clip:
    """The unbatched clip with ``query_times`` and the true motion to them, in its own unit and coordinates.

    A surface gives it for every pixel that hit something, seen or not at the query time. Sparse tracks give it for
    the pixels on which a visible track falls (the nearest one, if several), also while it is hidden at the query time.
    Clips with neither, or without cameras, have no valid motion.
    """
    truths = [_motion(clip, query) for query in query_times]
    stacked = {
        f.name: torch.stack([getattr(truth, f.name) for truth in truths]) for f in dataclasses.fields(MotionTruth)
    }
    return dataclasses.replace(
        clip,
        query_times=query_times,
        motion=stacked["motion"],
        motion_visible=stacked["visible"],
        motion_valid=stacked["valid"],
    )


def _motion(clip: Clip, query: Float[Tensor, ""]) -> MotionTruth:
    if clip.cameras is not None and clip.surface is not None:
        return surface_motion(clip.surface, clip.cameras, clip.times, query)
    if clip.cameras is not None and clip.tracks is not None:
        return track_motion(clip, query)
    nothing = torch.zeros_like(clip.images[:, 0], dtype=torch.bool)
    return MotionTruth(motion=torch.zeros(*nothing.shape, 3), visible=nothing, valid=nothing)


def surface_motion(
    surface: Surface, cameras: Cameras, times: Float[Tensor, "f"], query: Float[Tensor, ""]
) -> MotionTruth:
    """Of every pixel. ValueError if a time is not on the surface's axis."""
    then = surfaces.points(surface, query.expand(len(times)))
    valid = surfaces.valid(surface)
    motion = (then - surfaces.points(surface, times)).masked_fill(~valid[..., None], 0.0)
    there = same_time(times, query).nonzero()[:, 0]
    seen = torch.zeros_like(valid).flatten()
    for frame in there:
        only = frame[None]
        shown = dataclasses.replace(surface, faces=surface.faces[only], barycentric=surface.barycentric[only])
        camera = map_tensors(cameras, lambda tensor, only=only: tensor[only])
        points = then.flatten(0, 2)[None]
        seen = seen | surfaces.visible(shown, camera, times[only], points, surface.faces.flatten())[0]
    return MotionTruth(motion=motion, visible=seen.view(valid.shape) & valid, valid=valid)


def track_motion(clip: Clip, query: Float[Tensor, ""]) -> MotionTruth:
    """Of the pixels on which the clip's tracks fall.

    A track that is visible may be so in another camera of that time only. Where the clip has depth, that decides; else
    a track that falls into the pictures of several cameras is left out.
    """
    tracks = clip.tracks
    assert tracks is not None
    height, width = clip.images.shape[-2:]
    motion = torch.zeros(len(clip.times), height * width, 3)
    visible = torch.zeros(len(clip.times), height * width, dtype=torch.bool)
    valid = torch.zeros_like(visible)
    then = _place(tracks, query)
    seen_then = _seen(clip, tracks, then).any(0)
    for frame, time in enumerate(clip.times):
        now = _place(tracks, time)
        if then is None or now is None:
            continue
        shown = (_seen(clip, tracks, now)[frame] & tracks.valid[:, then]).nonzero()[:, 0]
        pixels, depth = project(tracks.points[shown, now], _camera(clip, frame))
        landed, which = _landings(pixels, depth, width)
        chosen = shown[which]
        motion[frame, landed] = tracks.points[chosen, then] - tracks.points[chosen, now]
        visible[frame, landed] = seen_then[chosen]
        valid[frame, landed] = True
    shape = (len(clip.times), height, width)
    return MotionTruth(motion=motion.view(*shape, 3), visible=visible.view(shape), valid=valid.view(shape))


def _camera(clip: Clip, frame: int) -> Cameras:
    assert clip.cameras is not None
    return map_tensors(clip.cameras, lambda tensor: tensor[frame])


def _seen(clip: Clip, tracks: Tracks, place: int | None) -> Bool[Tensor, "f n"]:
    """Which frames of the time at a place on the tracks' axis surely see which tracks; the other frames see none.

    A crop may have cut off what the source saw, and what one camera of the time saw may be hidden from another.
    """
    possible = torch.zeros(len(clip.times), len(tracks.points), dtype=torch.bool)
    if place is None:
        return possible
    sure = possible.clone()
    for frame in same_time(clip.times, tracks.times[place]).nonzero()[:, 0].tolist():
        pixels, depth = project(tracks.points[:, place], _camera(clip, frame))
        before, found = _shown(clip, frame, pixels)
        possible[frame] = found & (depth > 0) & ~(before * (1 + BEHIND) < depth)
        sure[frame] = possible[frame] & before.isfinite()
    alone = possible.sum(0) == 1
    return (sure | (possible & alone)) & (tracks.visible & tracks.valid)[:, place]


def _shown(clip: Clip, frame: int, pixels: Float[Tensor, "n 2"]) -> tuple[Float[Tensor, "n"], Bool[Tensor, "n"]]:
    """Depth of what a frame shows at some places, infinite where it is not known; and which of them it has."""
    height, width = clip.images.shape[-2:]
    inside = (pixels >= 0).all(-1) & (pixels[:, 0] < width) & (pixels[:, 1] < height)
    if clip.depth is None or clip.valid is None:
        return torch.full_like(pixels[:, 0], torch.inf), inside
    x, y = pixels[:, 0].clamp(0, width - 1).long(), pixels[:, 1].clamp(0, height - 1).long()
    return torch.where(clip.valid[frame, y, x], clip.depth[frame, y, x], torch.inf), inside


def _landings(
    pixels: Float[Tensor, "n 2"], depth: Float[Tensor, "n"], width: int
) -> tuple[Int[Tensor, "k"], Int[Tensor, "k"]]:
    """The distinct pixels (row-major) on which points fall, and the nearest point on each."""
    order = depth.argsort()
    landed, group = (pixels[:, 1].long() * width + pixels[:, 0].long())[order].unique(return_inverse=True)
    first = torch.full_like(landed, len(order)).scatter_reduce(0, group, torch.arange(len(order)), "amin")
    return landed, order[first]


def _place(tracks: Tracks, time: Float[Tensor, ""]) -> int | None:
    """Where a time is on the tracks' axis; None if it is not."""
    if not len(tracks.times):
        return None
    index = int((tracks.times - time).abs().argmin())
    return index if bool(same_time(tracks.times[index], time)) else None
