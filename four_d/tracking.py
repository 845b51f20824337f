"""Follow pixels in 3D: any pixel of any frame to any frame's time, read out of a model's dense motion.

A model says where the point that a pixel shows is at a time (``Prediction.motion``), for all pixels at once. Here a few
pixels are read out of that, one time after the other, so that the dense fields of only one time are held at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from four_d.errors import UserError
from four_d.geometry import invert_pose, project, rays, transform, world_points
from four_d.types import SAME_TIME, Cameras, Clip, Prediction, same_time

NEAREST = 1e-6
"""Points nearer to the first camera count as so far away."""
EDGE = 0.1
"""Relative difference of inverse depth above which two neighbouring pixels are not read as one surface.

Of 0.02 to 0.5 this misses least: beside the edges of a box room at 64 × 64 pixels, exact motion read between pixels
is 15 mm off on average, 49 mm if the nearest pixel is read, 221 mm if all four are blended.
"""
SPAN = 0.02
"""Share of its distance to the first camera that a track must span at least to count as moving."""
RESTING = 0.25
"""Share of the first picture that is taken to stand still, of which `PointTracks.jitter` is the most."""
CLEARLY = 3.0
"""Times the jitter that a track must span to count as moving.

With this, of what a small model (`late` of `make study-dept3r`) says of 16 held-out clips of 64 × 64 pixels a third
counts as moving, and two thirds of the 17 % that do are in it; by `SPAN` alone it is 69 %. Twice the jitter gives
45 %, four times 25 %.
"""


@runtime_checkable
class Moves(Protocol):
    """What a model must be able to do: `model.FourD` with a motion head is one."""

    def passes(self, clip: Clip) -> Iterator[Prediction]:
        """One prediction for each of ``clip.query_times``, with q = 1; the first also holds cameras, depth, points."""
        ...


@dataclass(frozen=True, kw_only=True)
class PointTracks:
    """n points followed over t times, in the first frame's camera coordinates and the model's unit."""

    queries: Float[Tensor, "n 3"]
    """(frame, x, y) of the pixels that were asked for, as ``Clip.query_points``."""
    points: Float[Tensor, "n t 3"]
    """Where the point is at each time, seen or not."""
    visible: Float[Tensor, "n t"]
    """Probability that a frame of that time sees it; 1 at the query's own time."""
    times: Float[Tensor, "t"]
    """Seconds, ascending unless asked for otherwise."""
    pixels: Float[Tensor, "n f 2"] | None = None
    """(x, y) in every frame of the clip at that frame's own time, also outside the picture; behind a camera it means
    nothing. None if the model gives no cameras or not all frames' times were asked for."""
    jitter: float = 0.0
    """How far the model lets things wander that stand still: what the `RESTING` share of the first frame's points that
    span least span at most, each as a share of its distance to the first camera."""


def follow(
    model: Moves, clip: Clip, queries: Float[Tensor, "n 3"], times: Float[Tensor, "t"] | None = None
) -> PointTracks:
    """Where the points that pixels show are at other times.

    A pixel is read between its four neighbours, those of another surface left out (`EDGE`); on a plane that moves
    rigidly this is exact. At the query's own time the motion is 0 and the point visible by definition. A model that
    says nothing of visibility has it judged by its cameras and depth.

    Args:
        model: gives motion.
        clip: has a batch axis of one; any number of cameras.
        queries: (frame, x, y), in pixels of the clip's images.
        times: seconds, each a frame's; None: all times of the clip, ascending.

    Raises:
        UserError: a point outside the picture, a frame or a time outside the clip, a model without motion or geometry.

    """
    asked = clip_times(clip) if times is None else _known_times(clip, times)
    _check(clip, queries)
    queries = queries.to(clip.images)
    background = grid(clip.images.shape[-2], clip.images.shape[-1]).to(queries)
    steps: list[tuple[Tensor, Tensor]] = []
    scene: _Scene | None = None
    with torch.no_grad():
        for prediction in model.passes(dataclasses.replace(clip, query_times=asked[None])):
            scene = scene or _scene(prediction, clip, torch.cat([queries, background]))
            steps.append(_step(scene, prediction, asked[len(steps)]))
            del prediction  # before the next is made
    assert scene is not None
    assert len(steps) == len(asked)
    everything, visible = (torch.stack(parts, dim=1) for parts in zip(*steps, strict=True))
    points, resting = everything.split([len(queries), len(background)])
    return PointTracks(
        queries=queries,
        points=points,
        visible=visible[: len(queries)],
        times=asked,
        pixels=_pixels(scene, points, asked),
        jitter=float(spans(resting).quantile(RESTING)),
    )


def clip_times(clip: Clip) -> Float[Tensor, "t"]:
    """The distinct times of a clip with a batch axis of one, ascending."""
    return clip.times[0].unique()


def spans(points: Float[Tensor, "n t 3"]) -> Float[Tensor, "n"]:
    """Diagonal of the box around each track, as a share of its median distance to the first camera.

    It and not the length of the path, to which jitter adds at every time, however small. A share, for what a model says
    of far things is off by more.
    """
    distance = points.norm(dim=-1).median(dim=1).values if points.numel() else points.new_ones(len(points))
    diagonal = (points.amax(1) - points.amin(1)).norm(dim=-1) if points.numel() else points.new_zeros(len(points))
    return diagonal / distance.clamp_min(NEAREST)


def moving(tracks: PointTracks, share: float = SPAN) -> Bool[Tensor, "n"]:
    """Tracks that span more than ``share`` of their distance, and clearly more than what stands still (`CLEARLY`).

    So a model that lets everything wander has to say more to be believed. Where less than `RESTING` of the first
    picture stands still, only what moves far more than the rest counts.
    """
    return spans(tracks.points) > max(share, CLEARLY * tracks.jitter)


def grid(height: int, width: int, count: int = 24, frame: int = 0) -> Float[Tensor, "n 3"]:
    """Queries spread evenly over one frame: ``count`` rows and columns at most, at pixel centres."""
    y, x = (torch.linspace(0, side, min(count, side) + 1)[:-1] for side in (height, width))
    y, x = (part + side / (2 * len(part)) for part, side in ((y, height), (x, width)))
    rows, columns = torch.meshgrid(y.floor() + 0.5, x.floor() + 0.5, indexing="ij")
    return torch.stack([torch.full_like(rows, frame), columns, rows], dim=-1).reshape(-1, 3)


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """What does not depend on the query time."""

    frames: Int[Tensor, "n"]
    rows: Int[Tensor, "n k"]
    columns: Int[Tensor, "n k"]
    weights: Float[Tensor, "n k"]
    points: Float[Tensor, "n 3"]
    """Of the queries at their own times."""
    times: Float[Tensor, "f"]
    size: tuple[int, int]
    cameras: Cameras | None
    depth: Float[Tensor, "f h w"] | None

    def read(self, field: Float[Tensor, "f h w *c"]) -> Float[Tensor, "n *c"]:
        return _weigh(field[self.frames[:, None], self.rows, self.columns], self.weights)


def _weigh(values: Float[Tensor, "n k *c"], weights: Float[Tensor, "n k"]) -> Float[Tensor, "n *c"]:
    return (values * weights.reshape(*weights.shape, *[1] * (values.ndim - 2))).sum(1)


def _scene(prediction: Prediction, clip: Clip, queries: Float[Tensor, "n 3"]) -> _Scene:
    height, width = clip.images.shape[-2:]
    frames, pixels = queries[:, 0].long(), queries[:, 1:]
    cameras = None if prediction.cameras is None else _take(prediction.cameras, 0)
    own = None if cameras is None else _take(cameras, frames)
    depth = None if prediction.depth is None else prediction.depth[0]
    rows, columns, shares = _neighbours(pixels, height, width)
    chosen = frames[:, None], rows, columns
    dense = world_points(prediction)
    if dense is None:
        raise UserError("this model gives neither depth with cameras nor points, so no place to follow; take another")
    found = dense[0][chosen]
    z = (found if own is None else transform(invert_pose(own.world_from_camera), found))[..., 2]
    weights = _one_surface(z, shares)
    points = _weigh(found, weights)
    if depth is not None and own is not None:
        # with a neighbour left out, the others' mean is not on the pixel's ray
        on_ray = rays(own.intrinsics, pixels[:, None]) * _weigh(z, weights)[:, None, None]
        points = transform(own.world_from_camera, on_ray)[:, 0]
    return _Scene(
        frames=frames,
        rows=rows,
        columns=columns,
        weights=weights,
        points=points,
        times=clip.times[0],
        size=(height, width),
        cameras=cameras,
        depth=depth,
    )


def _take(cameras: Cameras, index: int | Tensor) -> Cameras:
    return Cameras(world_from_camera=cameras.world_from_camera[index], intrinsics=cameras.intrinsics[index])


def _neighbours(
    pixels: Float[Tensor, "n 2"], height: int, width: int
) -> tuple[Int[Tensor, "n 4"], Int[Tensor, "n 4"], Float[Tensor, "n 4"]]:
    """Rows, columns and bilinear weights of the four pixel centres around; at the border some coincide."""
    low = (pixels - 0.5).floor()
    x, y = (pixels - 0.5 - low).unbind(-1)
    left, top = low.long().unbind(-1)
    rows = torch.stack([top, top, top + 1, top + 1], dim=-1).clamp(0, height - 1)
    columns = torch.stack([left, left + 1, left, left + 1], dim=-1).clamp(0, width - 1)
    weights = torch.stack([(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y], dim=-1)
    return rows, columns, weights


def _one_surface(depth: Float[Tensor, "n 4"], shares: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
    """Weights of the neighbours that are of the nearest one's surface, corrected for perspective.

    On a plane whatever is affine in the place in space, divided by depth, is linear in the pixel.
    """
    sound = depth.isfinite() & (depth > 1e-6)
    inverse = torch.where(sound, 1 / depth.clamp_min(1e-6), torch.zeros_like(depth))
    nearest = shares.argmax(-1, keepdim=True)
    near = inverse.gather(-1, nearest)
    weights = shares * inverse * ((inverse - near).abs() <= EDGE * near)
    total = weights.sum(-1, keepdim=True)
    alone = torch.zeros_like(shares).scatter(-1, nearest, 1)
    return torch.where(total > 0, weights / total.clamp_min(1e-12), alone)


def _step(scene: _Scene, prediction: Prediction, time: Tensor) -> tuple[Tensor, Tensor]:
    """Points n 3 and visibility n at one time."""
    if prediction.motion is None:
        raise UserError("this model predicts no motion (it has no motion head); take one that does")
    own = same_time(scene.times[scene.frames], time)
    motion = scene.read(prediction.motion[0, 0]).masked_fill(own[:, None], 0)
    points = scene.points + motion
    seen = prediction.motion_visible
    visible = _seen(scene, points, time) if seen is None else scene.read(seen[0, 0])
    return points, visible.masked_fill(own, 1)


def _seen(scene: _Scene, points: Float[Tensor, "n 3"], time: Tensor) -> Float[Tensor, "n"]:
    """1 where a frame of that time has the point in its picture and nothing in front of it; without cameras always."""
    if scene.cameras is None:
        return torch.ones_like(points[:, 0])
    there = same_time(scene.times, time)
    pixels, z = project(points.expand(int(there.sum()), -1, 3), _take(scene.cameras, there))
    height, width = scene.size
    x, y = pixels.floor().long().unbind(-1)
    inside = (z > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    if scene.depth is not None:
        frames = torch.arange(len(there), device=z.device)[there][:, None]
        front = scene.depth[frames, y.clamp(0, height - 1), x.clamp(0, width - 1)]
        inside &= z <= front * (1 + EDGE)
    return inside.any(0).to(points)


def _pixels(scene: _Scene, points: Float[Tensor, "n t 3"], times: Float[Tensor, "t"]) -> Float[Tensor, "n f 2"] | None:
    """Points in every frame's picture at its own time."""
    same = same_time(scene.times[:, None], times)
    if scene.cameras is None or not same.any(-1).all():
        return None
    of_frames = points[:, same.int().argmax(-1)].transpose(0, 1)
    return project(of_frames, scene.cameras)[0].transpose(0, 1)


def _known_times(clip: Clip, times: Float[Tensor, "t"]) -> Float[Tensor, "t"]:
    """The frames' own values of the times asked for."""
    known = clip_times(clip)
    apart = (times.to(known)[:, None] - known).abs()
    for time, gap in zip(times.tolist(), apart.amin(-1).tolist(), strict=True):
        if not gap <= SAME_TIME:
            raise UserError(
                f"no frame is of time {time:g} s; the clip has {len(known)} times "
                f"from {known[0]:g} to {known[-1]:g} s: choose among them"
            )
    return known[apart.argmin(-1)]


def _check(clip: Clip, queries: Float[Tensor, "n 3"]) -> None:
    if len(clip.images) != 1:
        raise UserError(f"the clip holds a batch of {len(clip.images)}; follow points in one at a time")
    count, (height, width) = clip.images.shape[1], clip.images.shape[-2:]
    for frame, x, y in queries.tolist():
        if frame not in range(count):
            raise UserError(f"frame {frame:g} of point {x:g},{y:g} is outside the clip; choose 0 to {count - 1}")
        if not (0 <= x <= width and 0 <= y <= height):
            raise UserError(f"point {x:g},{y:g} is outside the picture; choose x from 0 to {width}, y to {height}")
