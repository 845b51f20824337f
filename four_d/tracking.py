"""3D tracking of any pixel of any frame to any frame's time, sampled from a model's dense motion.

A model predicts the motion of all pixels to one time at once (``Prediction.motion``). The query pixels are sampled from
it, one time after the other, so that the dense fields of only one time are in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d import fields
from four_d.errors import UserError
from four_d.geometry import at_pixels, inside, project
from four_d.trajectories import EDGE, Shown, moved, shown
from four_d.types import NONE, PIXEL, POINT, SAME_TIME, Cameras, Clip, Prediction, same_time

NEAREST = 1e-6
"""Minimum distance to the first camera that relative spans are divided by."""
SPAN = 0.02
"""Minimum span of a moving track, as a fraction of its distance to the first camera."""
RESTING = 0.25
"""Fraction of the first frame assumed static: `PointTracks.jitter` is this quantile of spans."""
CLEARLY = 3.0
"""Minimum span of a moving track, as a multiple of the jitter.

With this value a third of a small model's tracks (`late` of `make study-dept3r`, 16 held-out clips of 64 × 64 pixels)
count as moving, among them two thirds of the 17 % that do move; with `SPAN` alone 69 % would. Twice the jitter gives
45 %, four times 25 %.
"""


@runtime_checkable
class Moves(Protocol):
    """Interface of a model that predicts motion: any `Model` with that ability."""

    def passes(self, clip: Clip) -> Iterator[Prediction]:
        """Yield a prediction with q = 1 for each of ``clip.query_times``; the first also has cameras, depth, points."""
        ...


class Watched:
    """Wrapper of a model that applies ``change`` to each pass and keeps the first."""

    def __init__(self, model: Moves, change: Callable[[Prediction], Prediction] | None = None) -> None:
        self._model, self._change = model, change
        self.first = Prediction()

    def passes(self, clip: Clip) -> Iterator[Prediction]:
        """Yield as `Moves.passes` does."""
        for index, said in enumerate(self._model.passes(clip)):
            prediction = said if self._change is None else self._change(said)
            if index == 0:
                self.first = prediction
            yield prediction
            del prediction, said  # frees its memory before the next one is computed


@dataclass(frozen=True, kw_only=True)
class PointTracks:
    """Tracks of n points over t times, in the first frame's camera coordinates and the model's unit."""

    queries: Float[Tensor, "n 3"] = field(metadata=PIXEL)
    """(frame, x, y) of the query pixels, as ``Clip.query_points``."""
    points: Float[Tensor, "n t 3"] = field(metadata=POINT)
    """Position of the point at each time, visible or not."""
    visible: Float[Tensor, "n t"] = field(metadata=NONE)
    """Probability that the point is visible in a frame of that time; 1 at the query's own time."""
    times: Float[Tensor, "t"] = field(metadata=NONE)
    """Seconds; ascending by default, else in the order of the call."""
    pixels: Float[Tensor, "n f 2"] | None = field(default=None, metadata=PIXEL)
    """(x, y) in every frame of the clip at that frame's time, also outside the image; undefined behind a camera.
    None if the model gives no cameras or the query times lack a frame's."""
    jitter: float = 0.0
    """Apparent motion of static points: the `RESTING` quantile of `spans` over the first frame's points."""


def follow(
    model: Moves, clip: Clip, queries: Float[Tensor, "n 3"], times: Float[Tensor, "t"] | None = None
) -> PointTracks:
    """Track the points that pixels show to other times.

    Maps are interpolated between the pixel's four neighbours, leaving out those of another surface (`EDGE`), which is
    exact on a plane in rigid motion. At the query's own time the motion is 0 and the point visible by definition. If
    the model predicts no visibility, it follows from its cameras and depth.

    Args:
        model: predicts motion.
        clip: has a batch axis of one; any number of cameras.
        queries: (frame, x, y), in pixels of the clip's images.
        times: seconds, each a frame's; None: all times of the clip, ascending.

    Raises:
        UserError: a point outside the image, a frame or a time outside the clip, a model without motion or geometry.

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
            del prediction  # frees its memory before the next one is computed
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
    """Diagonal of the bounding box of each track, as a fraction of its median distance to the first camera.

    Jitter adds to the length of the path at every time, but hardly to the box. Relative, since errors of a model grow
    with distance.
    """
    distance = points.norm(dim=-1).median(dim=1).values if points.numel() else points.new_ones(len(points))
    diagonal = (points.amax(1) - points.amin(1)).norm(dim=-1) if points.numel() else points.new_zeros(len(points))
    return diagonal / distance.clamp_min(NEAREST)


def moving(tracks: PointTracks, share: float = SPAN) -> Bool[Tensor, "n"]:
    """Mask of tracks whose span exceeds the fraction ``share`` of their distance and `CLEARLY` times the jitter.

    The threshold thus adapts to a model whose static points drift. If less than `RESTING` of the first frame is
    static, only tracks that move far more than the rest count.
    """
    return spans(tracks.points) > max(share, CLEARLY * tracks.jitter)


def grid(height: int, width: int, count: int = 24, frame: int = 0) -> Float[Tensor, "n 3"]:
    """Queries evenly spaced over one frame at pixel centres, at most ``count`` rows and columns."""
    y, x = (torch.linspace(0, side, min(count, side) + 1)[:-1] for side in (height, width))
    y, x = (part + side / (2 * len(part)) for part, side in ((y, height), (x, width)))
    rows, columns = torch.meshgrid(y.floor() + 0.5, x.floor() + 0.5, indexing="ij")
    return torch.stack([torch.full_like(rows, frame), columns, rows], dim=-1).reshape(-1, 3)


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """Quantities independent of the query time, of a batch of one."""

    pixels: Shown
    times: Float[Tensor, "f"]
    size: tuple[int, int]
    cameras: Cameras | None
    depth: Float[Tensor, "f h w"] | None


def _scene(prediction: Prediction, clip: Clip, queries: Float[Tensor, "n 3"]) -> _Scene:
    return _Scene(
        pixels=shown(prediction, queries[None]),
        times=clip.times[0],
        size=(clip.images.shape[-2], clip.images.shape[-1]),
        cameras=None if prediction.cameras is None else fields.unstack(prediction.cameras, 0),
        depth=None if prediction.depth is None else prediction.depth[0],
    )


def _step(scene: _Scene, prediction: Prediction, time: Tensor) -> tuple[Tensor, Tensor]:
    """Points (n 3) and visibility (n) at one time."""
    own = same_time(scene.times[scene.pixels.frames], time)[..., None]
    places, seen = moved(prediction, scene.pixels, own)
    points = places[0, :, 0]
    visible = _seen(scene, points, time).masked_fill(own[0, :, 0], 1) if seen is None else seen[0, :, 0]
    return points, visible


def _seen(scene: _Scene, points: Float[Tensor, "n 3"], time: Tensor) -> Float[Tensor, "n"]:
    """1 if the point is inside the image of a frame of that time and not occluded, else 0; without cameras always 1."""
    if scene.cameras is None:
        return torch.ones_like(points[:, 0])
    there = same_time(scene.times, time)
    pixels, z = project(points.expand(int(there.sum()), -1, 3), fields.take(scene.cameras, "b", there))
    seen = inside(pixels, z, scene.size)
    if scene.depth is not None:
        seen &= z <= at_pixels(scene.depth[there], pixels) * (1 + EDGE)
    return seen.any(0).to(points)


def _pixels(scene: _Scene, points: Float[Tensor, "n t 3"], times: Float[Tensor, "t"]) -> Float[Tensor, "n f 2"] | None:
    """Projections of the points into every frame at its own time; None without cameras or all frames' times."""
    same = same_time(scene.times[:, None], times)
    if scene.cameras is None or not same.any(-1).all():
        return None
    of_frames = points[:, same.int().argmax(-1)].transpose(0, 1)
    return project(of_frames, scene.cameras)[0].transpose(0, 1)


def _known_times(clip: Clip, times: Float[Tensor, "t"]) -> Float[Tensor, "t"]:
    """Replace query times by the frames' exact values; UserError for a time of no frame."""
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
