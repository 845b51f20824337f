"""Long video: overlapping windows, each seen alone, joined in the coordinates and unit of the first.

A model's coordinates and unit are those of the frames it sees at once, so two windows differ by a similarity. It is
found on the frames that both see (`align`), and every later window is brought into the world of the first (`join`).
What is off at a seam stays off for all later windows: errors add up, and `Seam` says how large each one looks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from four_d.errors import UserError
from four_d.inference.chain import Chain
from four_d.inference.parts import Part, border
from four_d.inference.seams import Seam, align

SHORT = 24
"""Frames up to which a video is one window with any model."""
POOR = 0.2
"""Median residual, as a share of the distance, above which windows are said not to fit."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How a video is cut."""

    frames: int
    """Of a window."""
    overlap: int
    """Frames that neighbouring windows share; the last two share more where the video's length asks for it."""

    def __post_init__(self) -> None:
        """Refuse what cannot be joined."""
        if self.frames < 2:
            raise UserError(f"window is {self.frames}; take at least 2 frames at once")
        if self.overlap < 1:
            raise UserError(f"overlap is {self.overlap}; windows are joined by frames that both see: share at least 1")
        if self.overlap >= self.frames:
            raise UserError(f"overlap is {self.overlap}, and a window has {self.frames} frames; share fewer")

    def plan(self, count: int) -> list[range]:
        """Windows over ``count`` frames, all of one length; one if they fit into one."""
        if count <= self.frames:
            return [range(count)]
        step, last = self.frames - self.overlap, count - self.frames
        return [range(start, start + self.frames) for start in [*range(0, last, step), last]]


def choose(window: int | None, overlap: int | None, trained: int) -> Windows:
    """The user's window and overlap; else twice the frames of training but at least `SHORT`, and a quarter of it."""
    frames = max(SHORT, 2 * trained) if window is None else window
    return Windows(frames=frames, overlap=max(1, frames // 4) if overlap is None else overlap)


def join(parts: Iterable[Part], seams: list[Seam], chain: Chain | None = None) -> Iterator[Part]:
    """Bring windows, in the video's order, into the first one's world; yield every frame once, as soon as it is final.

    Of the two windows that see a frame the one counts in whose middle it lies (`border`). Holds two windows at once.
    A seam that cannot be aligned stays as the model gave it; that, and one that fits badly, is said on stderr.

    Args:
        parts: one of each window; made one at a time.
        seams: gets one more with every window after the first.
        chain: is told every window once it is in the world of the first.

    """
    held: Part | None = None
    start = 0
    for part in parts:
        here = part
        if held is not None:
            shared = range(part.frames.start, held.frames.stop)
            move, seam = align(held.take(shared).prediction, part.take(shared).prediction)
            here = part.moved(move)
            seams.append(seam)
            _complain(seam, shared)
            stop = border(held.frames, here.frames)
            yield held.take(range(start, stop))
            start = stop
        if chain is not None:
            chain.add(here)
        held = here
    if held is not None:
        yield held.take(range(start, held.frames.stop))


def _complain(seam: Seam, shared: range) -> None:
    where = f"frames {shared.start} to {shared.stop - 1}, on which two windows meet,"
    if seam.method == "none":
        print(f"{where} show nothing to align by: what follows stands as the model gave it", file=sys.stderr)
    elif seam.residual is not None and seam.residual > POOR:
        print(
            f"{where} fit badly: half of the points are off by {seam.residual:.0%} of their distance", file=sys.stderr
        )
