"""Motion to the query times: error per pixel, as for points, and visibility.

DePT3R, arXiv 2512.13122 §3.3.

The paper has no gradient term and, in its second phase, no confidence term; visibility and balancing are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor

from four_d.constants import on_host
from four_d.errors import UserError
from four_d.losses.dense import UNCOUNTED, PixelTerms, length
from four_d.losses.reduction import balanced, check_balance, cross_entropy, nothing
from four_d.losses.schedule import Weight
from four_d.losses.supervision import Need
from four_d.losses.term import LossInputs, LossSpec, LossTerm
from four_d.surface import LEAST_MOTION
from four_d.types import Clip

Maps = Float[Tensor, "b f h w"]
Masks = Bool[Tensor, "b f h w"]


def motion_rows(targets: Clip, frames: Int[Tensor, "b k"]) -> Int[Tensor, "b k"]:
    """Rows of these frames in the true motion. UserError where it does not cover them."""
    if targets.motion_frames is None:
        return frames
    known = on_host(frames)[:, :, None] == on_host(targets.motion_frames)[:, None]
    if not bool(known.any(-1).all()):
        raise UserError(
            "the model's key frames are others than those that motion was made of; set data.motion_every to the "
            "backbone's stride, or to null"
        )
    return (frames[:, :, None] == targets.motion_frames[:, None]).int().argmax(-1)


@dataclass(frozen=True, kw_only=True)
class MotionLossConfig(LossSpec):
    """Distance of predicted to true motion in the clip's unit, and the cross-entropy of visibility.

    Each clip's pixels are averaged first, then the clips: sparse truth counts as much as dense.
    """

    needs: ClassVar[tuple[Need, ...]] = ("motion",)
    teaches: ClassVar[tuple[str, ...]] = ("motion",)
    kind: Literal["motion"] = "motion"
    weight: Weight = 1.0
    pixels: PixelTerms = field(default_factory=lambda: PixelTerms(confidence=0.0, quantile=None, min_valid=1))
    """Errors per pixel: their weights, and which pixels count; untrimmed and without confidence, as DePT3R's second
    phase."""
    visibility: float = 0.1
    """Weight of the cross-entropy."""
    balance: float = 0.0
    """Fraction of the total weight for moving pixels, however few; 0: all pixels count alike."""

    def __post_init__(self) -> None:
        check_balance(self.balance)

    @property
    def without_effect(self) -> dict[str, str]:
        """Settings that nothing reads → why."""
        unread = {"pixels.gradient_by": "on motion, whose loss has no term of gradients"}
        if self.pixels.counts:
            return unread
        trimmed = {} if self.visibility else {"pixels.quantile": UNCOUNTED}
        return {**unread, **trimmed, "balance": UNCOUNTED}

    def build(self) -> MotionLoss:
        """Build the term."""
        return MotionLoss(self)


class MotionLoss(LossTerm[MotionLossConfig]):
    """The term of `MotionLossConfig`."""

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Compute the term. UserError without a motion head; 0 without true motion."""
        prediction, targets = inputs.prediction, inputs.targets
        motion, confidence, seen = prediction.motion, prediction.motion_confidence, prediction.motion_visible_logits
        if motion is None or confidence is None or seen is None:
            raise UserError("the motion loss needs motion; add a head {kind: dense, output: motion} or remove the loss")
        if targets.motion is None or targets.motion_valid is None or targets.motion_visible is None:
            return nothing(motion, seen, *([confidence] if self.config.pixels.confidence else []))
        # Query times and frames are one axis from here on: they are independent.
        errors = length(motion - targets.motion, -1).flatten(1, 2)
        valid, sure = targets.motion_valid.flatten(1, 2), confidence.flatten(1, 2)
        value = self.error(errors, sure, valid, length(targets.motion, -1).flatten(1, 2) > LEAST_MOTION)
        if self.config.visibility:
            entropy = cross_entropy(seen, targets.motion_visible).flatten(1, 2)
            return value + self.config.visibility * self.config.pixels.reduce(
                self.config.pixels.mean(entropy, valid), valid
            )
        return value + nothing(seen)

    def error(self, errors: Maps, confidence: Maps, valid: Masks, moves: Masks) -> Float[Tensor, ""]:
        """Mean over clips, with moving pixels weighted by ``balance``."""
        pixels = self.config.pixels
        return balanced(
            lambda part: pixels.reduce(pixels(errors, confidence, part), part), valid, moves, self.config.balance
        )
