"""Sliding windows over a video: predictions, points and Gaussians of all frames in the world of the first window.

The one path of inference and evaluation. A short video is a single window.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from four_d import fields
from four_d.abilities import Abilities, Model
from four_d.errors import UserError
from four_d.tracking import PointTracks, Watched, follow, grid
from four_d.types import Cameras, Clip, Prediction, Segment
from four_d.windows.align import Seam
from four_d.windows.carry import Chain
from four_d.windows.cut import Cut, border
from four_d.windows.gaussians import Window, chain
from four_d.windows.join import Part, V, W, join
from four_d.windows.segments import Segments, stretches


@runtime_checkable
class Predict(Protocol[V]):
    """Prediction of one window."""

    def __call__(self, queries: Float[Tensor, "n 3"] | None, *, tracks: bool) -> tuple[V, PointTracks | None]:
        """Predict the window in its first frame's coordinates, and track points through it.

        Args:
            queries: (frame of the window, x, y) in model pixels; None: a model of motion tracks a grid.
            tracks: track points.

        """
        ...


@runtime_checkable
class Source(Protocol[W]):
    """Frames of a video for a model. Frames of several cameras are ordered by time."""

    @property
    def times(self) -> Sequence[float]:
        """Seconds of all frames."""
        ...

    @property
    def moments(self) -> Sequence[range]:
        """Frames of each moment, in order: one of each camera."""
        ...

    def size(self) -> tuple[int, int]:
        """Rows and columns of the model's input; known once the first window is read."""
        ...

    def points(self) -> Float[Tensor, "n 3"] | None:
        """Points to track, (frame, x, y) in model pixels; known once the first window is read. None: not given."""
        ...

    def windows(self, plan: Sequence[range], *, gaussians: bool) -> Iterator[Predict[W]]:
        """Read the windows one after the other; without ``gaussians`` the model leaves them out."""
        ...

    def again(self, part: Part[W], moments: Sequence[range]) -> W:
        """Predict frames of a part of the video again, which may repeat, with Gaussians but no motion."""
        ...


class Sliding(Generic[W]):
    """Sliding-window prediction of a video by one model."""

    def __init__(self, source: Source[W], cut: Cut, model: Abilities, *, tracks: bool = True) -> None:
        """Start on a video, without reading its frames.

        Args:
            source: the video.
            cut: windows, in moments.
            model: abilities of the model.
            tracks: track points.

        """
        moments, count = source.moments, model.times
        spans = cut.plan(len(moments))
        self.plan = [range(moments[span.start].start, moments[span.stop - 1].stop) for span in spans]
        """Frames of each window."""
        self.seams: list[Seam] = []
        """Alignment of every window after the first, as far as they are read."""
        self._source, self._follows, self._tracks = source, model.follows, tracks
        self._spans, self._segments = spans, None
        if count is not None and not (count == len(moments) and len(spans) == 1):
            self._spans = stretches(count).plan(len(moments))
            self._segments = Segments(source.again, count, source.times, moments)
        self._made: list[Segment] = []
        self._chain: Chain | None = None
        self._before: range | None = None

    def parts(self) -> Iterator[Part[W]]:
        """Yield every frame once, as soon as it is final; a video of one window with all of its outputs."""
        for part in join(self._windows(), self.seams, self._follow):
            yield part
            if self._segments is not None:
                self._segments.add(part)
        if self._segments is not None:
            self._made = list(self._segments.end())

    def collect(self) -> W:
        """Outputs of all frames, in memory."""
        first, *later = [part.value for part in self.parts()]
        return first.join(later)

    def segments(self) -> tuple[Segment, ...]:
        """Gaussians of the video, after its last frame; empty if the model gives none."""
        return tuple(self._made)

    def followed(self, whole: Prediction) -> tuple[Prediction, PointTracks | None]:
        """Add the per-point fields to the prediction for all frames; and tracks of the points through all times.

        The tracks are those of the model, else those through its Gaussians; None without points or either.

        Raises:
            UserError: points through Gaussians of several cameras, or without cameras.

        """
        assert self._chain is not None
        whole, tracks = self._chain.over(whole), self._chain.tracks()
        queries, own = self._source.points(), fields.size(whole, "n") is not None
        if queries is not None and tracks is None and not own and self._tracks and self.segments():
            tracks = self.through(whole, queries)
        return whole, tracks

    def through(self, whole: Prediction, queries: Float[Tensor, "n 3"]) -> PointTracks:
        """Track points (frame, x, y) through the Gaussians; ``whole`` has the cameras of all frames.

        UserError for several cameras, or without any.
        """
        cameras, rig = whole.cameras, any(len(moment) > 1 for moment in self._source.moments)
        if cameras is None or rig:
            lack = "no cameras are known, by which they are" if cameras is None else "there are several cameras"
            raise UserError(
                f"points are followed through Gaussians of one camera's video, and {lack}; leave points out"
            )
        windows = [
            self._window(segment, slice(span.start, span.stop), cameras)
            for segment, span in zip(self.segments(), self._spans, strict=True)
        ]
        return chain(windows, queries)

    def _window(self, segment: Segment, own: slice, cameras: Cameras) -> Window:
        """Segment with its own frames' cameras and times."""
        plain = Cameras(world_from_camera=cameras.world_from_camera[own], intrinsics=cameras.intrinsics[own])
        seconds = torch.tensor(self._source.times[own], dtype=segment.gaussians.means.dtype)
        return Window(gaussians=segment.gaussians, cameras=plain, times=seconds, size=self._source.size())

    def _windows(self) -> Iterator[Part[W]]:
        """Yield every window in its own world."""
        source = self._source
        for frames, predict in zip(self.plan, source.windows(self.plan, gaussians=self._segments is None), strict=True):
            if self._chain is None:
                points = source.points()  # of any model: a point outside is refused before the first prediction
                self._chain = Chain(source.times, source.size(), points if self._follows else None)
            asked = self._chain.ask(frames)
            some = None if asked is None or not len(asked) else asked
            value, tracks = predict(some, tracks=self._tracks and (asked is None or some is not None))
            yield Part(frames=frames, value=value, tracks=tracks)

    def _follow(self, part: Part[W]) -> None:
        """Track points through a window that is in the world of the first, and keep its Gaussians."""
        assert self._chain is not None
        self._chain.add(part)
        gaussians, frames, times = part.value.prediction.gaussians, part.frames, self._source.times
        if self._segments is None and gaussians is not None:
            first = 0 if self._before is None else border(self._before, frames)
            if len(self.plan) > 1 and gaussians.offset_times is not None:  # which count from the window's first
                at = gaussians.offset_times + times[frames.start]
                gaussians = dataclasses.replace(gaussians, offset_times=at)
            self._made.append(Segment(gaussians=gaussians, start=times[first]))
        self._before = frames


def predict(
    model: Model, clip: Clip, change: Callable[[Prediction], Prediction] | None = None, *, tracks: bool
) -> tuple[Prediction, PointTracks | None]:
    """Predict a clip (batch axis of one); with ``tracks``, a model that moves points tracks some through it.

    Points are ``clip.query_points`` (frame, x, y in the clip's pixels), by default a grid. Where they are tracked, the
    prediction is that of the first of all times, else it has the answers to all of ``clip.query_times``. ``change`` is
    applied to each pass.
    """
    if not (model.abilities.moves and tracks):
        with torch.no_grad():
            passes = [each if change is None else change(each) for each in model.passes(clip)]
            return fields.join(passes, "q"), None
    queries, watched = clip.query_points, Watched(model, change)
    tracked = follow(watched, clip, grid(*clip.images.shape[-2:]) if queries is None else queries[0])
    return watched.first, tracked
