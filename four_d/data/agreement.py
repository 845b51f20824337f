"""Mistakes in poses that depth alone tells, for callers who have no images yet."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from four_d import fields
from four_d.data.evidence import carried
from four_d.data.readings import pose_mistakes
from four_d.data.truth import Truth

CLEARLY_RIGHT, CLEARLY_BETTER = 0.6, 0.25
"""Fraction of the pixels that other frames confirm under corrected poses, and its excess over that under the given
poses, from which the given poses count as mistaken."""
TOLERANCE = 0.05
"""Relative difference below which two depths are equal."""


@dataclass(frozen=True, kw_only=True)
class PoseMistake:
    """Alternative reading of given poses that fits the depth where they do not."""

    remedy: str
    given: float
    """Fraction of the pixels that other frames confirm under the given poses."""
    mended: float


def pose_mistake(known: Truth) -> PoseMistake | None:
    """Detect a usual mistake in poses from the frames' depth; None where there is none, or depth is inconclusive.

    It is inconclusive where the camera hardly moves or no two frames overlap. Poses must be as given: a change of the
    world hides some mistakes. All floats are of one type.
    """
    assert known.cameras is not None
    assert known.depth is not None
    mistakes = pose_mistakes(known.cameras)
    readings = {"": known} | {
        name: dataclasses.replace(known, cameras=corrected) for name, corrected in mistakes.items()
    }
    rows = [[_confirmed(reading, *pair) for reading in readings.values()] for pair in _pairs_apart(len(known.depth))]
    conclusive = [row for row in rows if any(np.isfinite(row))]
    if not conclusive:
        return None
    scores = np.nan_to_num(np.array(conclusive)).mean(0)
    best = int(scores.argmax())
    if scores[best] < max(CLEARLY_RIGHT, scores[0] + CLEARLY_BETTER):
        return None
    return PoseMistake(remedy=list(readings)[best], given=float(scores[0]), mended=float(scores[best]))


def _confirmed(known: Truth, a: int, b: int) -> float:
    """Fraction of the pixels that frame b confirms; NaN if too few land there."""
    assert known.depth is not None
    assert known.cameras is not None
    still = None if known.dynamic is None else ~known.dynamic[a]
    here, there = fields.unstack(known.cameras, a), fields.unstack(known.cameras, b)
    pair = carried(known.depth[a], known.depth[b], here, there, still, TOLERANCE)
    return pair.agreement * pair.confirmed


def _pairs_apart(count: int) -> list[tuple[int, int]]:
    """Pairs of frames near to each other and far apart."""
    steps = {max(count // part, 1) for part in (8, 3, 2)} if count > 1 else set[int]()
    return [(a, a + step) for step in sorted(steps) for a in sorted({0, (count - step) // 2, count - 1 - step})]
