"""Joining of the overlapping windows of a long video, each predicted alone, in the world of the first.

A model's coordinates and unit are those of the frames it sees at once, so two windows differ by a similarity. It is
estimated on shared frames (`align`), and every later window is moved into the world of the first (`join`). Errors of
an alignment affect all later windows and accumulate; `Seam` measures each one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

from four_d import fields
from four_d.geometry import Similarity
from four_d.tracking import PointTracks
from four_d.types import Geometry, Prediction
from four_d.windows.align import Seam, align, report
from four_d.windows.cut import border

LOGGER = logging.getLogger(__name__)

TURNED = frozenset({Geometry.POINT, Geometry.DISPLACEMENT, Geometry.NORMAL, Geometry.QUATERNION, Geometry.TURN})
"""Geometry of values that depend on the world's axes."""

S = TypeVar("S", bound="Outputs")


@runtime_checkable
class Outputs(Protocol):
    """Outputs of a model for some frames, unbatched, on the CPU."""

    @property
    def prediction(self) -> Prediction:
        """Prediction, whose motion is to the time of the window's first frame."""
        ...

    def take(self: S, part: slice) -> S:
        """Consecutive frames, without tracked points."""
        ...

    def join(self: S, later: Sequence[S]) -> S:
        """Add the outputs of later frames, the inverse of `take`; without any they stay unchanged."""
        ...

    def placed_on(self: S, before: S) -> Similarity | None:
        """Similarity to the world of the window before, if it is known."""
        ...

    def moved(self: S, move: Similarity, before: S) -> S:
        """Move into the world of the window before."""
        ...


V = TypeVar("V", bound=Outputs, covariant=True)
W = TypeVar("W", bound=Outputs)


@dataclass(frozen=True, kw_only=True)
class Part(Generic[V]):
    """Outputs for consecutive frames of a video."""

    frames: range
    """Indices of the frames in the video."""
    value: V
    tracks: PointTracks | None = None
    """Points tracked through the whole window, in model pixels; frames count from the window's first."""

    def take(self, frames: range) -> Part[V]:
        """Some of the frames, without tracked points."""
        part = slice(frames.start - self.frames.start, frames.stop - self.frames.start)
        return Part(frames=frames, value=self.value.take(part))


def join(
    parts: Iterable[Part[V]], seams: list[Seam], follow: Callable[[Part[V]], None] | None = None
) -> Iterator[Part[V]]:
    """Move windows, in temporal order, into the world of the first; yield every frame once, as soon as it is final.

    A shared frame comes from the window in whose middle it lies (`cut.border`). Holds two windows at once. A video of
    one window is yielded unchanged. A window that cannot be aligned stays as predicted; this and a poor fit are
    reported on stderr.

    Args:
        parts: outputs of each window, computed on demand.
        seams: receives an entry for every window after the first.
        follow: called with every window once it is in the world of the first.

    """
    held: Part[V] | None = None
    start = 0
    for part in parts:
        here = part if held is None else _onto(held, part, seams)
        if held is not None:
            stop = border(held.frames, here.frames)
            yield held.take(range(start, stop))
            start = stop
        if follow is not None:
            follow(here)
        held = here
    if held is not None:
        yield held.take(range(start, held.frames.stop)) if seams else held


def _onto(held: Part[V], part: Part[V], seams: list[Seam]) -> Part[V]:
    """Move a window into the world of the one before, appending the seam."""
    shared = range(part.frames.start, held.frames.stop)
    before, after = held.take(shared).value.prediction, part.take(shared).value.prediction
    move, seam = align(before, after, part.value.placed_on(held.value))
    seams.append(seam)
    where = f"frames {shared.start} to {shared.stop - 1}, on which two windows meet,"
    report(seam, where)
    turned = sorted({leaf.label for leaf, _ in fields.leaves(after) if leaf.geometry in TURNED})
    if seam.method == "depth" and turned:
        told = ", ".join(turned)
        LOGGER.warning(f"{where} show nothing to turn by: {told} stand in the axes of each window's first frame")
    if seam.method == "cameras without scale":
        LOGGER.warning(f"{where} show nothing to scale by: lengths stand as the model gave them")
    tracks = None if part.tracks is None else fields.move(part.tracks, move)
    return Part(frames=part.frames, value=part.value.moved(move, held.value), tracks=tracks)
