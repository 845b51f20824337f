"""3D tracking of pixels through a long video by the deformable Gaussians of overlapping windows.

In a window the Gaussians that contribute to a pixel carry its point: its path is their mean path. At the next window
the point is matched to that window's Gaussians and continues with those (DGS-LRM's flow chaining). Matching is by
depth, so that an occluded point does not switch to its occluder. Paths are continuous: Gaussians determine only the
motion of a point; its position is read at the query alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from four_d import fields
from four_d.errors import UserError
from four_d.geometry import inside, project, rays, transform
from four_d.rendering import contributors
from four_d.rendering.scene import means_at
from four_d.tracking import PointTracks
from four_d.types import SAME_TIME, Cameras, Gaussians, map_tensors
from four_d.windows.cut import owners

COUNT = 16
"""Number of Gaussians considered at a pixel."""
MARGIN = 0.05
"""Relative depth difference within which Gaussians and rendered depth match a point."""
FAINTEST = 0.05
"""Fraction of a pixel's light below which the pixel counts as empty."""
CARRIERS = 4
"""Maximum number of Gaussians, the nearest, that carry an invisible point."""
TRANSPARENT = 1 / 255
"""Opacity below which a Gaussian is never drawn."""
WORK = 1 << 24
"""Maximum number of distances in memory at once."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """Gaussians of consecutive frames of one camera's video. All windows share world, unit and time origin."""

    gaussians: Gaussians
    """Unbatched; offset times in seconds of the video. Without offsets nothing moves."""
    cameras: Cameras
    """One per frame, in the world of the Gaussians."""
    times: Float[Tensor, "f"]
    """Seconds of the video, ascending."""
    size: tuple[int, int]
    """Height and width of the frames, in pixels of the intrinsics."""

    @property
    def batched(self) -> Gaussians:
        """Gaussians with a batch axis of one."""
        return map_tensors(self.gaussians, lambda tensor: tensor[None])


@torch.no_grad()
def chain(
    windows: Sequence[Window], queries: Float[Tensor, "n 3"], *, count: int = COUNT, margin: float = MARGIN
) -> PointTracks:
    """Track the points that pixels show to all times of all windows, forward and backward.

    A query begins in the window in whose middle its frame lies: on the pixel's ray, at the weighted mean depth of those
    of the pixel's ``count`` Gaussians of largest weight that match the weighted median depth of all. It continues in a
    neighbouring window from the first shared frame in which that window has Gaussians at its pixel that match its
    depth. If there is none, because the point is occluded or has left the image, the nearest Gaussians in space carry
    it, within ``margin`` times its distance to the camera. Without those either it stays in place, invisible, until a
    later window has some again.

    A point is visible if it projects into the image, its pixel is not empty, and the depth there, the weighted median
    of its Gaussians, is not smaller than the point's by more than ``margin`` times that. At its query it is visible by
    definition, except at an empty pixel: such a point is never visible, and lies on the pixel's ray at the median depth
    of the Gaussians in front of the camera.

    Args:
        windows: in temporal order; each shares at least one frame with the next.
        queries: (frame, x, y); frames index the distinct times of all windows, pixels are those of the windows.
        count: number of Gaussians considered at a pixel.
        margin: relative difference up to which depths match.

    Returns:
        Tracks in the windows' world, which should be the first frame's camera (`PointTracks`); ``jitter`` is 0.

    Raises:
        UserError: windows that share no frame, are out of order or skip frames; queries outside the video; a margin
            outside 0 to 1; errors of `contributors`.

    """
    if not 0 < margin < 1:
        raise UserError(f"a margin of {margin:g}; choose a share of the depth above 0 and below 1, such as {MARGIN}")
    spans, times = _timeline(windows)
    _check_queries(windows, spans, queries)
    queries = queries.to(windows[0].gaussians.means)
    settings = _Settings(windows=windows, spans=spans, count=count, margin=margin)
    state = _begin(settings, queries, len(times))
    _sweep(settings, state, range(1, len(windows)), forward=True)
    _sweep(settings, state, range(len(windows) - 2, -1, -1), forward=False)
    visible, pixels = _look(settings, state)
    own = torch.arange(len(times), device=queries.device) == state.frames[:, None]
    return PointTracks(
        queries=queries,
        points=state.points,
        visible=(visible | own & ~state.empty[:, None]).to(state.points),
        times=times.to(state.points),
        pixels=pixels,
    )


@dataclass(frozen=True, kw_only=True)
class _Settings:
    windows: Sequence[Window]
    spans: list[range]
    """Frames of the video in each window."""
    count: int
    margin: float


@dataclass(frozen=True, kw_only=True)
class _State:
    """Tracks of n points so far, filled window by window."""

    frames: Int[Tensor, "n"]
    """Frame of each query."""
    homes: Int[Tensor, "n"]
    """Window in which each point begins."""
    empty: Bool[Tensor, "n"]
    """True for queries at an empty pixel."""
    points: Float[Tensor, "n t 3"]
    owners: Int[Tensor, "n t"]
    """Window that each position comes from."""
    lost: Bool[Tensor, "n t"]
    """True if no Gaussian carries the point."""

    def write(self, who: Tensor, span: range, path: Tensor, owner: int, lost: Tensor, where: Tensor) -> None:
        """Store the paths (m f 3) of the points ``who`` over a window's frames, at ``where`` (m f)."""
        frames = torch.arange(span.start, span.stop, device=who.device)
        at = who[:, None].expand_as(where)[where], frames.expand_as(where)[where]
        self.points[at] = path[where]
        self.owners[at] = owner
        self.lost[at] = lost[:, None].expand_as(where)[where]


@dataclass(frozen=True, kw_only=True)
class _Carriers:
    """Gaussians of one window that carry m points, each from its own frame on."""

    frames: Int[Tensor, "m"]
    """Frame of the window from which each point is carried."""
    members: Int[Tensor, "m k"]
    weights: Float[Tensor, "m k"]
    """Sum to 1 over k, or all 0 if nothing carries the point."""

    @staticmethod
    def none(points: Float[Tensor, "m 3"], count: int) -> _Carriers:
        frames = torch.zeros(len(points), dtype=torch.long, device=points.device)
        weights = points.new_zeros(len(points), count)
        return _Carriers(frames=frames, members=weights.long(), weights=weights)

    def put(self, where: Tensor, frame: int, members: Tensor, weights: Tensor) -> None:
        """Set the carriers of the points ``where``; ``members`` may be fewer than k."""
        self.frames[where] = frame
        self.members[where, : members.shape[1]] = members
        self.weights[where, : members.shape[1]] = _normalised(weights)

    @property
    def lost(self) -> Bool[Tensor, "m"]:
        return self.weights.sum(-1) == 0

    def paths(self, window: Window, points: Float[Tensor, "m 3"]) -> Float[Tensor, "m f 3"]:
        """Paths over the window's frames of ``points``, given at their own frames."""
        places = _places(window, self.members, window.times)
        start = places[self.frames, torch.arange(len(points), device=points.device)]
        steps = ((places - start) * self.weights[..., None]).sum(2)
        return points[:, None] + steps.transpose(0, 1)


def _normalised(weights: Float[Tensor, "m k"]) -> Float[Tensor, "m k"]:
    total = weights.sum(-1, keepdim=True)
    return torch.where(total > 0, weights / torch.where(total > 0, total, 1), 0)


def _places(window: Window, members: Int[Tensor, "m k"], times: Float[Tensor, "t"]) -> Float[Tensor, "t m k 3"]:
    """Positions of some of the Gaussians at some times."""
    known, where = members.unique(return_inverse=True)
    return means_at(fields.take(window.batched, "n", known), times.to(window.gaussians.means)[None])[0][:, where]


@dataclass(frozen=True, kw_only=True)
class _Sight:
    """Gaussians that contribute to m pixels of a frame, with their blending weights and z-depths."""

    members: Int[Tensor, "m k"]
    weights: Float[Tensor, "m k"]
    depths: Float[Tensor, "m k"]

    def near(self, depth: Float[Tensor, "m"], margin: float) -> Float[Tensor, "m k"]:
        """Weights of the Gaussians near a depth, 0 for others; all 0 if their sum is below `FAINTEST`."""
        close = (self.depths - depth[:, None]).abs() <= margin * depth[:, None]
        weights = self.weights * close
        return weights * (weights.sum(-1, keepdim=True) >= FAINTEST)

    def depth(self) -> Float[Tensor, "m"]:
        """Weighted median depth; 0 at an empty pixel."""
        depths, order = self.depths.sort(dim=-1)
        cumulative = self.weights.gather(-1, order).cumsum(-1)
        middle = (cumulative >= cumulative[:, -1:] / 2).int().argmax(-1, keepdim=True)
        return torch.where(cumulative[:, -1] >= FAINTEST, depths.gather(-1, middle)[:, 0], 0)


def _sight(window: Window, frame: int, pixels: Float[Tensor, "m 2"], count: int) -> _Sight:
    camera, time = _camera(window, frame), window.times[frame : frame + 1].to(pixels)
    view = map_tensors(camera, lambda tensor: tensor[None, None])
    found = contributors(window.batched, view, time[None], pixels[None, None], count, size=window.size)
    members, weights = found.indices[0, 0].clamp_min(0), found.weights[0, 0]
    places = _places(window, members, time)[0]
    depths = project(places.flatten(0, 1), camera)[1].unflatten(0, members.shape)
    return _Sight(members=members, weights=weights, depths=depths)


def _camera(window: Window, frame: int) -> Cameras:
    cameras = window.cameras
    return Cameras(
        world_from_camera=cameras.world_from_camera[frame].to(window.gaussians.means),
        intrinsics=cameras.intrinsics[frame].to(window.gaussians.means),
    )


def _begin(settings: _Settings, queries: Float[Tensor, "n 3"], count: int) -> _State:
    """Track every point over the frames of the window in which it begins."""
    frames = queries[:, 0].long()
    state = _State(
        frames=frames,
        homes=_owners(frames, settings.spans),
        empty=torch.zeros_like(frames, dtype=torch.bool),
        points=queries.new_zeros(len(queries), count, 3),
        owners=frames[:, None].repeat(1, count).fill_(-1),
        lost=torch.zeros(len(queries), count, dtype=torch.bool, device=queries.device),
    )
    for index, (window, span) in enumerate(zip(settings.windows, settings.spans, strict=True)):
        who = (state.homes == index).nonzero()[:, 0]
        if not len(who):
            continue
        points, carriers = _read(settings, window, frames[who] - span.start, queries[who, 1:])
        state.empty[who] = carriers.lost
        everywhere = torch.ones(len(who), len(span), dtype=torch.bool, device=who.device)
        state.write(who, span, carriers.paths(window, points), index, carriers.lost, everywhere)
    return state


def _owners(frames: Int[Tensor, "n"], spans: list[range]) -> Int[Tensor, "n"]:
    return owners(frames, [(span.start, span.stop - 1) for span in spans])


def _read(
    settings: _Settings, window: Window, frames: Int[Tensor, "m"], pixels: Float[Tensor, "m 2"]
) -> tuple[Float[Tensor, "m 3"], _Carriers]:
    """Points that pixels show, and their carriers; none at an empty pixel."""
    points = pixels.new_zeros(len(pixels), 3)
    carriers = _Carriers.none(points, settings.count)
    for frame in frames.unique().tolist():
        here = frames == frame
        sight = _sight(window, frame, pixels[here], settings.count)
        weights = sight.near(sight.depth(), settings.margin)
        depths = (_normalised(weights) * sight.depths).sum(-1)
        depths = torch.where(weights.sum(-1) > 0, depths, _usual_depth(window, frame))
        camera = _camera(window, frame)
        points[here] = transform(camera.world_from_camera, rays(camera.intrinsics, pixels[here]) * depths[:, None])
        carriers.put(here, frame, sight.members, weights)
    return points, carriers


def _usual_depth(window: Window, frame: int) -> Float[Tensor, ""]:
    """Median z-depth of the Gaussians in front of the camera; 1 if there are none."""
    z = project(_everywhere(window, frame), _camera(window, frame))[1]
    return z[z > 0].median() if (z > 0).any() else z.new_ones(())


def _everywhere(window: Window, frame: int) -> Float[Tensor, "g 3"]:
    """Means of all Gaussians at the time of a frame."""
    return means_at(window.batched, window.times[None, frame : frame + 1].to(window.gaussians.means))[0, 0]


def _sweep(settings: _Settings, state: _State, order: range, *, forward: bool) -> None:
    """Carry the points from window to window; ``order`` lists the windows that they enter."""
    since = state.frames.clone()
    for index in order:
        behind = state.homes < index if forward else state.homes > index
        who = behind.nonzero()[:, 0]
        if not len(who):
            continue
        window, span = settings.windows[index], settings.spans[index]
        shared = _shared(settings.spans, index, forward=forward)
        carriers = _enter(settings, index, state.points[who], since[who], shared)
        carriers.weights[state.empty[who]] = 0  # the point of an empty pixel belongs to no Gaussian
        since[who] = carriers.frames + span.start
        frames = torch.arange(span.start, span.stop, device=who.device)
        later = frames >= since[who, None] if forward else frames <= since[who, None]
        path = carriers.paths(window, state.points[who, since[who]])
        state.write(who, span, path, index, carriers.lost, later)


def _shared(spans: list[range], index: int, *, forward: bool) -> range:
    """Frames of the video that a window shares with the previous one of the sweep, in the order of the sweep."""
    if forward:
        return range(spans[index].start, spans[index - 1].stop)
    return range(spans[index].stop - 1, spans[index + 1].start - 1, -1)


def _enter(
    settings: _Settings, index: int, points: Float[Tensor, "m t 3"], since: Int[Tensor, "m"], shared: range
) -> _Carriers:
    """Gaussians that carry points in a window, from the first shared frame since ``since`` in which they are visible.

    If there is none, the nearest in space, from the first shared frame.
    """
    window, start = settings.windows[index], settings.spans[index].start
    carriers = _Carriers.none(points[:, 0], settings.count)
    first = since.clamp_min(shared[0]) if shared.step > 0 else since.clamp_max(shared[0])
    for frame in shared:
        reached = first <= frame if shared.step > 0 else first >= frame
        waiting = (reached & carriers.lost).nonzero()[:, 0]
        seen, members, weights = _recognise(settings, window, frame - start, points[waiting, frame])
        carriers.put(waiting[seen], frame - start, members, weights)
    hidden = carriers.lost
    for frame in first[hidden].unique().tolist():
        here = (hidden & (first == frame)).nonzero()[:, 0]
        carriers.put(here, frame - start, *_nearest(settings, window, frame - start, points[here, frame]))
    return carriers


def _recognise(
    settings: _Settings, window: Window, frame: int, points: Float[Tensor, "m 3"]
) -> tuple[Bool[Tensor, "m"], Int[Tensor, "s k"], Float[Tensor, "s k"]]:
    """Mask of the points visible in a frame, and for those the Gaussians at their pixels that match their depth."""
    pixels, z = project(points, _camera(window, frame))
    seen = inside(pixels, z, window.size)
    sight = _sight(window, frame, pixels[seen], settings.count)
    weights = sight.near(z[seen], settings.margin)
    there = weights.sum(-1) > 0
    seen[seen.clone()] = there
    return seen, sight.members[there], weights[there]


def _nearest(
    settings: _Settings, window: Window, frame: int, points: Float[Tensor, "m 3"]
) -> tuple[Int[Tensor, "m k"], Float[Tensor, "m k"]]:
    """Nearest Gaussians in space, weighted by opacity over squared distance; weights are 0 beyond the margin."""
    centres, opacities = _everywhere(window, frame), window.gaussians.opacities
    reach = settings.margin * (points - _camera(window, frame).world_from_camera[:3, 3]).norm(dim=-1, keepdim=True)
    found: list[tuple[Tensor, Tensor]] = []
    for some in points.split(max(WORK // len(centres), 1)):
        apart = torch.cdist(some, centres, compute_mode="donot_use_mm_for_euclid_dist")
        apart = apart.masked_fill(opacities < TRANSPARENT, torch.inf)
        distances, members = apart.topk(min(CARRIERS, settings.count, len(centres)), largest=False)
        found.append((distances, members))
    distances, members = (torch.cat(parts) for parts in zip(*found, strict=True))
    weights = opacities[members] / (distances.square() + (1e-4 * reach).square())
    return members, torch.where(distances <= reach, weights, 0)


def _look(settings: _Settings, state: _State) -> tuple[Bool[Tensor, "n t"], Float[Tensor, "n t 2"]]:
    """Visibility of the points in each frame, and their pixels."""
    visible = torch.zeros_like(state.lost)
    pixels = state.points.new_zeros(*visible.shape, 2)
    for index, (window, span) in enumerate(zip(settings.windows, settings.spans, strict=True)):
        for local, frame in enumerate(span):
            who = (state.owners[:, frame] == index).nonzero()[:, 0]
            at, z = project(state.points[who, frame], _camera(window, local))
            pixels[who, frame] = at
            there = inside(at, z, window.size) & ~state.lost[who, frame]
            front = _sight(window, local, at[there], settings.count).depth()
            visible[who[there], frame] = (front > 0) & (front >= z[there] * (1 - settings.margin))
    return visible, pixels


def _timeline(windows: Sequence[Window]) -> tuple[list[range], Float[Tensor, "t"]]:
    """Frames of the video in each window, and the times of all frames; UserError unless windows slide in order."""
    if not windows:
        raise UserError("no windows; give at least one")
    for index, window in enumerate(windows):
        _check_window(window, index)
    times = torch.cat([window.times for window in windows]).sort().values
    times = times[torch.cat([times.new_ones(1), times.diff()]) > SAME_TIME]
    spans: list[range] = []
    for index, window in enumerate(windows):
        start = int((times - window.times[0]).abs().argmin())
        span = range(start, start + len(window.times))
        if span.stop > len(times) or ((times[start : span.stop] - window.times).abs() > SAME_TIME).any():
            raise UserError(f"window {index} skips a frame that another has; give windows of consecutive frames")
        spans.append(span)
    for index, (one, other) in enumerate(itertools.pairwise(spans)):
        _check_neighbours(index, one, other)
    return spans, times


def _check_neighbours(index: int, one: range, other: range) -> None:
    pair = f"windows {index} and {index + 1}"
    if other.start <= one.start or other.stop <= one.stop:
        raise UserError(f"{pair} are out of order, or one lies within the other; sort them by time, or leave one out")
    if other.start >= one.stop:
        raise UserError(f"{pair} share no frame; let each begin at the last frame of the one before or earlier")


def _check_window(window: Window, index: int) -> None:
    frames, gaussians = len(window.times), window.gaussians
    if gaussians.means.ndim != 2 or not len(gaussians.means):
        raise UserError(f"window {index} has Gaussians {tuple(gaussians.means.shape)}; give some, without a batch: n 3")
    if window.cameras.world_from_camera.shape[:-2] != (frames,) or window.cameras.intrinsics.shape[:-2] != (frames,):
        raise UserError(f"window {index} has {frames} times; give as many cameras, one for each frame")
    if not frames or not (window.times.diff() > SAME_TIME).all():
        raise UserError(f"window {index}'s times do not ascend; give one frame for each time, in order")


def _check_queries(windows: Sequence[Window], spans: list[range], queries: Float[Tensor, "n 3"]) -> None:
    count = spans[-1].stop
    for frame, x, y in queries.tolist():
        if frame not in range(count):
            raise UserError(f"frame {frame:g} of point {x:g},{y:g} is outside the video; choose 0 to {count - 1}")
        height, width = windows[int(_owners(torch.tensor([int(frame)]), spans))].size
        if not (0 <= x <= width and 0 <= y <= height):
            raise UserError(f"point {x:g},{y:g} is outside the picture; choose x from 0 to {width}, y to {height}")
