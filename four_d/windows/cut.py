"""Windows of a long video, and ownership of the frames that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from four_d.constants import precise
from four_d.errors import UserError

SHORT = 24
"""Minimum default window length, in frames."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Windows of ``frames`` frames, neighbours sharing ``overlap`` frames; the last two may share more."""

    frames: int
    overlap: int

    @staticmethod
    def of(trained: int, frames: int | None = None, overlap: int | None = None) -> Cut:
        """Windows for a model trained on clips of ``trained`` frames: twice as many, not below `SHORT`, sharing a
        quarter.
        """
        frames = max(SHORT, 2 * trained) if frames is None else frames
        return Cut(frames=frames, overlap=max(1, frames // 4) if overlap is None else overlap)

    @staticmethod
    def strided(window: tuple[int, int]) -> Cut:
        """Windows of (frames, stride). UserError unless neighbours share a frame, by which they are joined."""
        frames, stride = window
        if not 0 < stride < frames:
            raise UserError(f"window is {[frames, stride]}; write [frames,stride] with 0 < stride < frames")
        return Cut(frames=frames, overlap=frames - stride)

    def plan(self, count: int) -> list[range]:
        """Windows of equal length over ``count`` frames, the last ending with the video; a single one if all fit."""
        if count <= self.frames:
            return [range(count)]
        stride, last = max(self.frames - self.overlap, 1), count - self.frames
        return [range(start, start + self.frames) for start in [*range(0, last, stride), last]]


def border(earlier: range, later: range) -> int:
    """First frame that the later of two windows owns: the middle of their overlap divides them (as in `owners`)."""
    return (earlier.stop - 1 + later.start) // 2 + 1


def owners(
    at: Float[Tensor, "n"] | Int[Tensor, "n"], spans: Sequence[tuple[int | float, int | float]]
) -> Int[Tensor, "n"]:
    """Index of the window that owns each frame or time: the one in which it is farthest from both ends.

    ``spans`` are those of the windows. In a tie the first window owns.
    """
    first, last = torch.tensor(spans, dtype=precise(at.device), device=at.device).unbind(-1)
    room = torch.minimum(at - first[:, None], last[:, None] - at)
    return room.max(0).indices
