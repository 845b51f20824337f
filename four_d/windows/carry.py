"""Tracking of points from window to window of a long video, with all per-point fields of the prediction."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from four_d import fields
from four_d.geometry import at_pixels, inside, point_maps, project, reliable
from four_d.tracking import PointTracks
from four_d.trajectories import EDGE
from four_d.types import LIKELY, Prediction, same_time
from four_d.windows.cut import border
from four_d.windows.frames import take_frames
from four_d.windows.join import Outputs, Part

OF_TRACKS = {"pixel_tracks": "pixels", "pixel_tracks_visible": "visible"}
"""Field of 2D tracks in a prediction → corresponding field of `PointTracks`."""


class Chain:
    """Tracker of points from window to window, in model pixels.

    A point continues from a frame that both windows share: from its pixel in a frame where it is visible, else from the
    pixel whose point is nearest in space (for a model without motion: from its last pixel, and it never becomes visible
    again). In the latter case it keeps its offset to that point, and becomes visible again if the depth at its position
    agrees. A point begins in the first window that has its frame; in frames before that window it is invisible at its
    first known position. A frame in two windows belongs to the one in whose middle it lies (`border`).

    Fields of the prediction with an axis of points (n) are tracked in the same way; those without frames come from the
    window in which a point begins.
    """

    def __init__(
        self, times: Sequence[float], size: tuple[int, int], queries: Float[Tensor, "n 3"] | None = None
    ) -> None:
        """Start on a video with frames at ``times`` (s) and model input ``size`` (rows, columns).

        ``queries`` are (frame, x, y) in model pixels; None: the model's choice.
        """
        self._times = torch.tensor(list(times), dtype=torch.float64)
        self._rig = bool(same_time(self._times[1:], self._times[:-1]).any())
        self._size = torch.tensor([size[1], size[0]], dtype=torch.float32)
        self._last: tuple[range, Prediction] | None = None
        self._only: Part[Outputs] | None = None
        self._jitter = 0.0
        self._asked = torch.zeros(0, dtype=torch.long)
        self._users = queries is not None
        self._state = None if queries is None else _State.empty(queries, len(self._times))

    def ask(self, frames: range) -> Float[Tensor, "n 3"] | None:
        """Queries for the next window: (frame of the window, x, y) of every point to track in it.

        None: the model's choice; empty: no points.
        """
        state = self._state
        if state is None:
            return None
        starts = state.queries[:, 0]
        new = (~state.begun & (starts >= frames.start) & (starts < frames.stop)).nonzero()[:, 0]
        queries, self._asked = state.queries[new], new
        begun = state.begun.nonzero()[:, 0]
        if self._last is not None and len(begun) and "pixels" in state.framed:
            queries = torch.cat([self._onwards(state, self._last, begun, frames), queries])
            self._asked = torch.cat([begun, new])
        return queries - torch.tensor([float(frames.start), 0, 0])

    def add(self, part: Part[Outputs]) -> None:
        """Add the outputs of the window of the last `ask`, in the world of the first window."""
        if len(part.frames) == len(self._times):
            self._only = part
            return
        followed = self._followed(part)
        if part.tracks is not None:
            self._jitter = max(self._jitter, part.tracks.jitter)
        if followed is not None and (self._state is None or len(self._asked)):
            if self._state is None:
                assert part.tracks is not None
                self._state = _State.empty(part.tracks.queries, len(self._times))
                self._asked = torch.arange(len(part.tracks.queries))
            self._keep(self._state, followed, part)
        self._last = part.frames, part.value.prediction

    def tracks(self) -> PointTracks | None:
        """Tracks through the whole video; None if no window gave 3D points."""
        if self._only is not None:
            return self._only.tracks
        state = self._state
        if state is None or "points" not in state.framed:
            return None
        times, index = np.unique(self._times.numpy().astype(np.float32), return_index=True)
        return PointTracks(
            queries=state.queries,
            points=state.framed["points"][:, index],
            visible=state.framed["visible"][:, index],
            times=torch.from_numpy(times),
            pixels=state.framed.get("pixels"),
            jitter=self._jitter,
        )

    def over(self, prediction: Prediction) -> Prediction:
        """Add the per-point fields of the whole video to the prediction for all frames."""
        state, changes = self._state, dict[str, Tensor]()
        if self._only is not None or state is None:
            return prediction
        for leaf in state.leaves:
            name = OF_TRACKS.get(leaf.name, leaf.name) if "points" not in state.framed else leaf.name
            value = state.framed.get(name, state.single.get(name))
            if value is not None:
                changes[leaf.name] = _unsorted(leaf, value)
        return dataclasses.replace(prediction, **changes)

    def _onwards(
        self, state: _State, last: tuple[range, Prediction], rows: Int[Tensor, "k"], frames: range
    ) -> Float[Tensor, "k 3"]:
        """Queries (frame of the video, x, y) from which begun points continue."""
        shared = range(frames.start, last[0].stop)
        middle = min(border(last[0], frames), shared.stop - 1)
        order = torch.tensor(sorted(shared, key=lambda frame: abs(frame - middle)))
        pixels = state.framed["pixels"][rows][:, order]
        inside = (pixels == self._clamp(pixels)).all(-1)
        seen = (state.framed["visible"][rows][:, order] > LIKELY) & inside
        if self._rig and "points" in state.framed:
            seen &= _unhidden(state.framed["points"][rows][:, order], last[1], order - last[0].start)
        first = seen.int().argmax(1)
        queries = torch.cat([order[first, None].float(), pixels[torch.arange(len(rows)), first]], dim=-1)
        lost = ~seen.any(1)
        state.lost[rows], state.offset[rows] = lost, 0.0
        if bool(lost.any()):
            queries[lost], state.offset[rows[lost]] = self._carried(state, last, rows[lost], middle)
        return queries

    def _clamp(self, pixels: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 2"]:
        """Clamp pixels to the model's input."""
        return pixels.clamp_min(1e-3).minimum(self._size - 1e-3)

    def _carried(
        self, state: _State, last: tuple[range, Prediction], rows: Int[Tensor, "k"], frame: int
    ) -> tuple[Float[Tensor, "k 3"], Float[Tensor, "k 3"]]:
        """Queries at the pixels of the nearest points in space, and the offsets of the tracked points from those."""
        pixels, offset = state.framed["pixels"][rows, frame], torch.zeros(len(rows), 3)
        own = slice(frame - last[0].start, frame - last[0].start + 1)
        maps = None if "points" not in state.framed else point_maps(take_frames(last[1], own))
        if maps is not None:
            points, depth, confidence = maps
            usable = (reliable(depth, confidence) & points.isfinite().all(-1))[0].nonzero()
            if len(usable):
                places = points[0, usable[:, 0], usable[:, 1]]
                wanted = state.framed["points"][rows, frame]
                near = torch.cat([torch.cdist(some, places).argmin(1) for some in wanted.split(32)])
                pixels = usable[near].flip(-1) + 0.5
                offset = wanted - places[near]
        return torch.cat([torch.full((len(rows), 1), float(frame)), self._clamp(pixels)], dim=-1), offset

    def _keep(self, state: _State, followed: _Followed, part: Part[Outputs]) -> None:
        """Store a window's outputs: for continued points the frames from the border on, for new ones all frames."""
        rows, start, stop = self._asked, part.frames.start, part.frames.stop
        followed = _offset(followed, state.offset[rows], state.lost[rows], part.value.prediction)
        begun = state.begun[rows]
        first = start if self._last is None else max(border(self._last[0], part.frames), start)
        state.leaves = followed.leaves
        state.write(rows[begun], range(first, stop), followed, begun, first - start)
        state.write(rows[~begun], range(start, stop), followed, ~begun, 0)
        state.hold(rows[~begun], start)
        state.begun[rows] = True

    def _followed(self, part: Part[Outputs]) -> _Followed | None:
        """Per-point outputs of a window at its own frames; None without any."""
        leaves, framed, single = list[fields.Leaf](), dict[str, Tensor](), dict[str, Tensor]()
        if self._users:
            for leaf, tensor in fields.leaves(part.value.prediction):
                if "n" in leaf.axes and "." not in leaf.name:
                    leaves.append(leaf)
                    (framed if "f" in leaf.axes else single)[leaf.name] = _sorted(leaf, tensor).float()
        if part.tracks is not None:
            own = self._times[part.frames.start : part.frames.stop]
            index = ((own - own[0])[:, None] - part.tracks.times.double()).abs().argmin(1)
            framed |= {"points": part.tracks.points[:, index], "visible": part.tracks.visible[:, index]}
            framed |= {} if part.tracks.pixels is None else {"pixels": part.tracks.pixels}
        else:
            framed = {OF_TRACKS.get(name, name): value for name, value in framed.items()}
            if "pixels" in framed:
                framed.setdefault("visible", torch.ones_like(framed["pixels"][..., 0]))
        return _Followed(leaves=leaves, framed=framed, single=single) if framed or single else None


def _unhidden(points: Float[Tensor, "k s 3"], prediction: Prediction, frames: Int[Tensor, "s"]) -> Bool[Tensor, "k s"]:
    """Mask of the points that no surface hides in these frames of a window; True without cameras or depth.

    The visibility of a rig's point is that of any camera: another one of the same time may show something before it.
    """
    if prediction.cameras is None or prediction.depth is None:
        return torch.ones_like(points[..., 0], dtype=torch.bool)
    pixels, z = project(points.transpose(0, 1), fields.take(prediction.cameras, "b", frames))
    return (z <= at_pixels(prediction.depth[frames], pixels) * (1 + EDGE)).T


def _sorted(leaf: fields.Leaf, tensor: Tensor) -> Tensor:
    """Move the axis of points to the front, then that of frames."""
    places = [leaf.dim(axis, tensor) for axis in ("n", "f")]
    dims = [place for place in places if place is not None]
    return tensor.movedim(dims, list(range(len(dims))))


def _unsorted(leaf: fields.Leaf, tensor: Tensor) -> Tensor:
    """Inverse of `_sorted`."""
    places = [leaf.dim(axis, tensor) for axis in ("n", "f")]
    dims = [place for place in places if place is not None]
    return tensor.movedim(list(range(len(dims))), dims)


@dataclass(frozen=True, kw_only=True)
class _Followed:
    """Outputs of one window for its n points."""

    leaves: list[fields.Leaf]
    """Declarations of those that are fields of the prediction."""
    framed: dict[str, Tensor]
    """n f …"""
    single: dict[str, Tensor]
    """n …"""


@dataclass(kw_only=True)
class _State:
    """Points of the whole video at its f frames, as far as known, and their continuation in the next window."""

    queries: Float[Tensor, "n 3"]
    frames: int
    begun: Bool[Tensor, "n"]
    lost: Bool[Tensor, "n"]
    """True if the point is invisible in the last overlap, so that another pixel represents it."""
    offset: Float[Tensor, "n 3"]
    """Offset from the point of that pixel."""
    framed: dict[str, Tensor] = dataclasses.field(default_factory=dict[str, Tensor])
    single: dict[str, Tensor] = dataclasses.field(default_factory=dict[str, Tensor])
    leaves: list[fields.Leaf] = dataclasses.field(default_factory=list[fields.Leaf])

    @staticmethod
    def empty(queries: Tensor, frames: int) -> _State:
        no = torch.zeros(len(queries), dtype=torch.bool)
        offset = torch.zeros(len(queries), 3)
        return _State(queries=queries.float(), frames=frames, begun=no, lost=no.clone(), offset=offset)

    def write(self, rows: Int[Tensor, "k"], frames: range, followed: _Followed, which: Tensor, first: int) -> None:
        """Store the values of points ``rows`` from the window's frame ``first`` on; ``which`` selects them there.

        Values without frames come from the window in which a point begins.
        """
        for name, value in followed.framed.items():
            if name not in self.framed:
                self.framed[name] = torch.zeros(len(self.queries), self.frames, *value.shape[2:])
            self.framed[name][rows, frames.start : frames.stop] = value[which, first:].float()
        new = ~self.begun[rows]
        for name, value in followed.single.items():
            if name not in self.single:
                self.single[name] = torch.zeros(len(self.queries), *value.shape[1:])
            self.single[name][rows[new]] = value[which][new].float()

    def hold(self, rows: Int[Tensor, "k"], until: int) -> None:
        """Copy positions at frame ``until`` to all earlier frames, which stay invisible."""
        for name in ("points", "pixels"):
            value = self.framed.get(name)
            if value is not None and until < self.frames:
                value[rows, :until] = value[rows, until : until + 1]


def _offset(
    followed: _Followed, offset: Float[Tensor, "n 3"], lost: Bool[Tensor, "n"], prediction: Prediction
) -> _Followed:
    """Add the offsets of points that another pixel represents; they are visible only if the depth there agrees."""
    if not bool(lost.any()):
        return followed
    framed = dict(followed.framed)
    if "points" not in framed:
        framed["visible"] = framed["visible"].masked_fill(lost[:, None], 0)
        return dataclasses.replace(followed, framed=framed)
    framed["points"] = framed["points"] + offset[:, None]
    maps, cameras = point_maps(prediction), prediction.cameras
    if maps is not None and cameras is not None:
        pixels, z = project(framed["points"].transpose(0, 1), cameras)
        framed["visible"] = torch.where(
            lost[:, None], framed["visible"] * _agree(pixels, z, maps[1]).T, framed["visible"]
        )
        own = pixels.transpose(0, 1)
        framed["pixels"] = torch.where(lost[:, None, None], own, framed.get("pixels", own))
    return dataclasses.replace(followed, framed=framed)


def _agree(
    pixels: Float[Tensor, "f n 2"], z: Float[Tensor, "f n"], depth: Float[Tensor, "f h w"]
) -> Bool[Tensor, "f n"]:
    """True if a point is inside the image and its depth agrees with the depth map there."""
    near = (at_pixels(depth, pixels) - z).abs() <= EDGE * z
    return near & inside(pixels, z, (depth.shape[-2], depth.shape[-1]))
