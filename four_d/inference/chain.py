"""Points followed from window to window of a long video."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from four_d.errors import UserError
from four_d.formats.clouds import point_maps, reliable
from four_d.geometry import project
from four_d.inference.fit import Fit
from four_d.inference.parts import Part, border
from four_d.tracking import EDGE, PointTracks
from four_d.types import Prediction

SEEN = 0.5
"""Probability from which a followed point counts as seen."""


class Chain:
    """Points followed from window to window.

    A point goes on from a frame that both windows share: where it was seen there, from its pixel. Where no shared frame
    sees it, from the pixel whose point was nearest to it in space (of a model without motion: from its last pixel, and
    it never counts as seen again); it then keeps its distance to that point, and counts as seen again where the depth
    at its place says so. A point begins in the first window that has its frame; in frames before that window it stands
    where it is first known, unseen. Of two windows the one counts in whose middle a frame lies (`border`).
    """

    def __init__(self, times: Sequence[float], points: Sequence[tuple[int | float, ...]] | None) -> None:
        self._times = torch.tensor(list(times), dtype=torch.float64)
        self._last: Part | None = None
        self._jitter = 0.0
        self._asked = torch.zeros(0, dtype=torch.long)
        self._state: _State | None = None
        self._users = points is not None
        if points is not None:
            self._state = _State.empty(torch.tensor([(0.0, *point)[-3:] for point in points]), len(self._times))

    def ask(self, frames: range) -> list[tuple[float, float, float]] | None:
        """What to ask of the next window: its own frame, x, y in original pixels of every point that it has to follow.

        None: what the model chooses; empty: nothing yet. UserError for a point of a frame that is not there.
        """
        state, last = self._state, self._last
        if state is None:
            return None
        begun = state.begun.nonzero()[:, 0]
        starts = state.queries[:, 0]
        _check_frames(starts, len(self._times))
        new = (~state.begun & (starts >= frames.start) & (starts < frames.stop)).nonzero()[:, 0]
        queries = state.queries[new]
        if last is not None and len(begun):
            queries = torch.cat([self._onwards(state, last, begun, frames), queries])
        self._asked = torch.cat([begun, new])
        local = queries - torch.tensor([float(frames.start), 0, 0])
        return [(frame, x, y) for frame, x, y in local.tolist()]

    def add(self, part: Part) -> None:
        """Take what the window that was asked gave; it is in the world of the result."""
        found = _found(part, self._times)
        if part.tracks is not None:
            self._jitter = max(self._jitter, part.tracks.jitter)
        if found is not None and (self._state is None or len(self._asked)):
            if self._state is None:
                self._state = _State.empty(found.queries, len(self._times))
                self._asked = torch.arange(len(found.queries))
            self._keep(self._state, found, part)
        self._last = part

    @property
    def asked_for(self) -> Float[Tensor, "n 3"] | None:
        """The points that the user asked for: frame of the video, x, y; None if the model chose."""
        return self._state.queries if self._users and self._state is not None else None

    def tracks(self) -> PointTracks | None:
        """Of the whole video, in original pixels; None if no window gave points in 3D."""
        state = self._state
        if state is None or state.points is None:
            return None
        times, index = np.unique(self._times.numpy().astype(np.float32), return_index=True)
        return PointTracks(
            queries=state.queries,
            points=state.points[:, index],
            visible=state.visible[:, index],
            times=torch.from_numpy(times),
            pixels=state.pixels,
            jitter=self._jitter,
        )

    def pixel_tracks(self, to: Fit) -> Prediction:
        """The fields of a track head's points, for the whole video; empty if the model has none."""
        state = self._state
        if state is None or state.points is not None or state.pixels is None or not bool(state.begun.any()):
            return Prediction()
        return Prediction(
            pixel_tracks=((state.pixels - torch.tensor([to.left, to.top])) * to.scale).transpose(0, 1),
            pixel_tracks_visible=state.visible.T,
            pixel_tracks_confidence=state.confidence.T,
        )

    def _onwards(self, state: _State, last: Part, rows: Int[Tensor, "k"], frames: range) -> Float[Tensor, "k 3"]:
        """Frame of the video, x, y from which begun points go on."""
        shared = range(frames.start, last.frames.stop)
        middle = min(border(last.frames, frames), shared.stop - 1)
        order = torch.tensor(sorted(shared, key=lambda frame: abs(frame - middle)))
        pixels = torch.zeros(len(rows), len(order), 2) if state.pixels is None else state.pixels[rows][:, order]
        inside = (pixels == _clamp(pixels, last.fit)).all(-1)
        seen = (state.visible[rows][:, order] > SEEN) & inside & (state.pixels is not None)
        first = seen.int().argmax(1)
        found = torch.cat([order[first, None].float(), pixels[torch.arange(len(rows)), first]], dim=-1)
        lost = ~seen.any(1)
        state.lost[rows], state.offset[rows] = lost, 0.0
        if bool(lost.any()):
            found[lost], state.offset[rows[lost]] = _carried(state, last, rows[lost], middle)
        return found

    def _keep(self, state: _State, found: _Found, part: Part) -> None:
        """Of points that go on the frames from the border on; of those that begin here all, and those before held."""
        rows, start, stop = self._asked, part.frames.start, part.frames.stop
        found = _offset(found, state.offset[rows], state.lost[rows], part)
        begun = state.begun[rows]
        first = start if self._last is None else max(border(self._last.frames, part.frames), start)
        state.write(rows[begun], range(first, stop), found.take(begun, first - start))
        state.write(rows[~begun], range(start, stop), found.take(~begun, 0))
        state.hold(rows[~begun], start)
        state.begun[rows] = True


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Points of one window, at its f frames."""

    queries: Float[Tensor, "n 3"]
    visible: Float[Tensor, "n f"]
    confidence: Float[Tensor, "n f"] | None
    """Of a track head."""
    points: Float[Tensor, "n f 3"] | None
    pixels: Float[Tensor, "n f 2"] | None

    def take(self, rows: Bool[Tensor, "n"], first: int) -> _Found:
        return _Found(
            queries=self.queries[rows],
            visible=self.visible[rows, first:],
            confidence=None if self.confidence is None else self.confidence[rows, first:],
            points=None if self.points is None else self.points[rows, first:],
            pixels=None if self.pixels is None else self.pixels[rows, first:],
        )


@dataclass(kw_only=True)
class _State:
    """Points of the whole video, at its f frames, as far as they are known; and how each goes on in the next window."""

    queries: Float[Tensor, "n 3"]
    visible: Float[Tensor, "n f"]
    confidence: Float[Tensor, "n f"]
    begun: Bool[Tensor, "n"]
    lost: Bool[Tensor, "n"]
    """No frame of the last overlap saw it: another pixel stands for it."""
    offset: Float[Tensor, "n 3"]
    """From the point of that pixel."""
    points: Float[Tensor, "n f 3"] | None = None
    pixels: Float[Tensor, "n f 2"] | None = None

    @staticmethod
    def empty(queries: Tensor, frames: int) -> _State:
        n = len(queries)
        no = torch.zeros(n, dtype=torch.bool)
        return _State(
            queries=queries.float(),
            visible=torch.zeros(n, frames),
            confidence=torch.zeros(n, frames),
            begun=no,
            lost=no.clone(),
            offset=torch.zeros(n, 3),
        )

    def write(self, rows: Int[Tensor, "k"], frames: range, found: _Found) -> None:
        n, f = self.visible.shape
        for name in ("visible", "confidence", "points", "pixels"):
            value: Tensor | None = getattr(found, name)
            if value is None:
                continue
            if getattr(self, name) is None:
                setattr(self, name, torch.zeros(n, f, value.shape[-1]))
            getattr(self, name)[rows, frames.start : frames.stop] = value.float()

    def hold(self, rows: Int[Tensor, "k"], until: int) -> None:
        """Frames before ``until`` as at it, unseen."""
        for value in (self.points, self.pixels):
            if value is not None and until < self.visible.shape[1]:
                value[rows, :until] = value[rows, until : until + 1]


def _check_frames(starts: Tensor, count: int) -> None:
    for frame in starts.tolist():
        if frame not in range(count):
            raise UserError(f"frame {frame:g} of a point is outside the video; choose 0 to {count - 1}")


def _found(part: Part, times: Float[Tensor, "f"]) -> _Found | None:
    tracks, prediction = part.tracks, part.prediction
    if tracks is not None:
        own = times[part.frames.start : part.frames.stop]
        index = ((own - own[0])[:, None] - tracks.times.double()).abs().argmin(1)
        return _Found(
            queries=tracks.queries,
            visible=tracks.visible[:, index],
            confidence=None,
            points=tracks.points[:, index],
            pixels=tracks.pixels,
        )
    if prediction.pixel_tracks is None:
        return None
    pixels = part.fit.points_to_original(prediction.pixel_tracks).transpose(0, 1)
    ones = torch.ones_like(pixels[..., 0])
    visible, confidence = prediction.pixel_tracks_visible, prediction.pixel_tracks_confidence
    return _Found(
        queries=torch.zeros(len(pixels), 3),
        visible=ones if visible is None else visible.T,
        confidence=ones if confidence is None else confidence.T,
        points=None,
        pixels=pixels,
    )


def _clamp(pixels: Float[Tensor, "*n 2"], fit: Fit) -> Float[Tensor, "*n 2"]:
    """Original pixels moved into what the model sees."""
    low = fit.points_to_original(torch.full((2,), 1e-3))
    high = fit.points_to_original(torch.tensor(fit.model[::-1]) - 1e-3)
    return pixels.maximum(low).minimum(high)


def _carried(
    state: _State, last: Part, rows: Int[Tensor, "k"], frame: int
) -> tuple[Float[Tensor, "k 3"], Float[Tensor, "k 3"]]:
    """Queries at the pixels whose points are nearest, and how far off the followed points are from those."""
    pixels = torch.zeros(len(rows), 2) if state.pixels is None else state.pixels[rows, frame]
    offset = torch.zeros(len(rows), 3)
    maps = None if state.points is None else point_maps(last.take(range(frame, frame + 1)).prediction)
    if maps is not None and state.points is not None:
        points, depth, confidence = maps
        usable = (reliable(depth, confidence) & points.isfinite().all(-1))[0].nonzero()
        if len(usable):
            places = points[0, usable[:, 0], usable[:, 1]]
            wanted = state.points[rows, frame]
            near = torch.cat([torch.cdist(some, places).argmin(1) for some in wanted.split(32)])
            pixels = last.fit.points_to_original(usable[near].flip(-1) + 0.5)
            offset = wanted - places[near]
    at = torch.full((len(rows), 1), float(frame))
    return torch.cat([at, _clamp(pixels, last.fit)], dim=-1), offset


def _offset(found: _Found, offset: Float[Tensor, "n 3"], lost: Bool[Tensor, "n"], part: Part) -> _Found:
    """Points for which another pixel stands, at their own places, and seen only where the depth there agrees."""
    if not bool(lost.any()):
        return found
    if found.points is None:
        return dataclasses.replace(found, visible=found.visible.masked_fill(lost[:, None], 0))
    points = found.points + offset[:, None]
    maps, cameras = point_maps(part.prediction), part.prediction.cameras
    if maps is None or cameras is None:
        return dataclasses.replace(found, points=points)
    pixels, z = project(points.transpose(0, 1), cameras)
    agree = _agree(pixels, z, maps[1]).T
    own = part.fit.points_to_original(pixels).transpose(0, 1)
    visible = torch.where(lost[:, None], found.visible * agree, found.visible)
    old = own if found.pixels is None else found.pixels
    return dataclasses.replace(found, points=points, visible=visible, pixels=torch.where(lost[:, None, None], own, old))


def _agree(
    pixels: Float[Tensor, "f n 2"], z: Float[Tensor, "f n"], depth: Float[Tensor, "f h w"]
) -> Bool[Tensor, "f n"]:
    """Whether a place is in the picture, at the depth that the picture has there."""
    height, width = depth.shape[-2:]
    x, y = pixels.floor().unbind(-1)
    inside = (z > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    rows, columns = y.clamp(0, height - 1).long(), x.clamp(0, width - 1).long()
    there = depth[torch.arange(len(depth))[:, None], rows, columns]
    return inside & ((there - z).abs() <= EDGE * z)
