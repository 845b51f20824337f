"""Motion to the query times: error per pixel, as of points, and whether the point is seen then.

DePT3R, arXiv 2512.13122 §3.3.

The paper has no gradient term and, in its second phase, no confidence term; visibility and balancing are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d.errors import UserError
from four_d.losses.dense import PixelTerms, length
from four_d.losses.reduction import nothing
from four_d.losses.track import cross_entropy
from four_d.types import Clip, Prediction, Views

LEAST_MOTION = 0.01
"""Motion longer than this, in the clip's unit, counts as moving."""

Maps = Float[Tensor, "b f h w"]
Masks = Bool[Tensor, "b f h w"]


@dataclass(frozen=True, kw_only=True)
class MotionLoss:
    """Distance of predicted to true motion in the clip's unit, and the cross-entropy of being seen.

    Each clip's pixels are averaged first, then the clips: sparse truth counts as much as dense.
    """

    needs_queries: ClassVar[bool] = True
    """Without ``data.query_times`` there would be no truth, and the loss 0."""
    kind: Literal["motion"] = "motion"
    weight: float = 1.0
    pixels: PixelTerms = field(default_factory=lambda: PixelTerms(confidence=0.0, quantile=None, min_valid=1))
    visibility: float = 0.1
    """Weight of the cross-entropy."""
    balance: float = 0.0
    """Share of the weight that moving pixels have together, however few; 0: all pixels count alike."""

    def __post_init__(self) -> None:
        if not 0 <= self.balance < 1:
            raise UserError(f"balance is {self.balance}; choose a share of 1, or 0 for none")

    def __call__(self, prediction: Prediction, views: Views | None, targets: Clip) -> Float[Tensor, ""]:  # noqa: ARG002 - all terms have one signature
        """UserError without a motion head; 0 without true motion."""
        motion, confidence, seen = prediction.motion, prediction.motion_confidence, prediction.motion_visible
        if motion is None or confidence is None or seen is None:
            raise UserError("the motion loss needs motion; add a head {kind: dense, output: motion} or remove the loss")
        if targets.motion is None or targets.motion_valid is None or targets.motion_visible is None:
            return nothing(motion, seen, *([confidence] if self.pixels.confidence else []))
        # Query times and frames are one axis from here on: nothing couples them.
        errors = length(motion - targets.motion, -1).flatten(1, 2)
        valid, sure = targets.motion_valid.flatten(1, 2), confidence.flatten(1, 2)
        value = self.error(errors, sure, valid, length(targets.motion, -1).flatten(1, 2) > LEAST_MOTION)
        if self.visibility:
            entropy = cross_entropy(seen, targets.motion_visible).flatten(1, 2)
            return value + self.visibility * self.pixels.reduce(self.pixels.mean(entropy, valid), valid)
        return value + nothing(seen)

    def error(self, errors: Maps, confidence: Maps, valid: Masks, moves: Masks) -> Float[Tensor, ""]:
        """The mean over clips, moving pixels weighed as ``balance`` says."""
        if not self.balance:
            return self.pixels.reduce(self.pixels(errors, confidence, valid), valid)
        parts = ((self.balance, valid & moves), (1 - self.balance, valid & ~moves))
        weighed = [share * self.pixels.reduce(self.pixels(errors, confidence, part), part) for share, part in parts]
        return torch.stack(weighed).sum()
