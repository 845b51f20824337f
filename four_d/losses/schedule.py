"""Weights of loss terms: a number, or one that changes over the run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from four_d.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """Weight that changes from ``start`` to ``end`` over a part of the run, and is constant before and after it.

    Validation weights terms as at the end of the run, so that its figures are comparable.
    """

    start: float
    """Weight up to ``since``, at least 0."""
    end: float
    """Weight from ``until`` on, at least 0, and in validation throughout."""
    since: float = 0.0
    """Fraction of the run (steps, or minutes where a budget is set) at which the weight begins to change."""
    until: float = 1.0
    """Fraction of the run at which the weight reaches ``end``."""
    shape: Literal["linear", "cosine"] = "linear"
    """Shape of the change; ``cosine``: half a cosine, slow at both ends."""

    def __post_init__(self) -> None:
        if min(self.start, self.end) < 0:
            raise UserError(f"start is {self.start:g} and end {self.end:g}; a loss is minimised: choose 0 or more")
        if self.start == self.end:
            raise UserError(f"start and end are both {self.end:g}; give that number alone, as weight={self.end:g}")
        if not 0 <= self.since < self.until <= 1:
            raise UserError(
                f"since is {self.since:g} and until {self.until:g}, which are shares of the run; "
                "choose 0 ≤ since < until ≤ 1"
            )


Weight = float | Ramp
"""Factor of a term in the total loss."""


def weight_at(weight: Weight, progress: float) -> float:
    """Weight at a fraction of the run."""
    if not isinstance(weight, Ramp):
        return weight
    done = min(1.0, max(0.0, (progress - weight.since) / (weight.until - weight.since)))
    if weight.shape == "cosine":
        done = (1 - math.cos(math.pi * done)) / 2
    return weight.start + done * (weight.end - weight.start)
