"""Mask term: cross-entropy of moving patches. Ours: PAGE-4D as released has no such supervision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from four_d.errors import UserError
from four_d.losses.reduction import Over, kept_mean, nothing
from four_d.losses.schedule import Weight
from four_d.losses.supervision import Need, frames_with_masks
from four_d.losses.term import LossInputs, LossSpec, LossTerm


@dataclass(frozen=True, kw_only=True)
class DynamicLossConfig(LossSpec):
    """Cross-entropy of each patch's logit with the fraction of its pixels that move, in frames with a known mask."""

    needs: ClassVar[tuple[Need, ...]] = ("dynamic",)
    teaches: ClassVar[tuple[str, ...]] = ("dynamic",)
    kind: Literal["dynamic"] = "dynamic"
    weight: Weight = 1.0
    positive: float = 1.0
    """Weight of moving patches relative to static ones."""
    over: Over = "clip"
    """Domain of means. ``clip``: each clip's values, then all clips alike, so that processes that share a batch do what
    one does; ``batch``: all values of the batch together, as VGGT's release."""

    def build(self) -> DynamicLoss:
        """Build the term."""
        return DynamicLoss(self)


class DynamicLoss(LossTerm[DynamicLossConfig]):
    """The term of `DynamicLossConfig`."""

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Compute the term in nats per patch. UserError without a dynamic head; 0 without a true mask."""
        prediction, targets = inputs.prediction, inputs.targets
        logits = prediction.dynamic_logits
        if logits is None:
            raise UserError("the dynamic loss needs a mask; add a head {kind: dynamic} or remove the loss")
        if targets.dynamic is None:
            return nothing(logits)
        size = (targets.dynamic.shape[-2] // logits.shape[-2], targets.dynamic.shape[-1] // logits.shape[-1])
        shares = functional.avg_pool2d(targets.dynamic.to(logits.dtype), size)
        weight = torch.full_like(logits[..., :1, :1], self.config.positive)
        errors = functional.binary_cross_entropy_with_logits(logits, shares, reduction="none", pos_weight=weight)
        keep = frames_with_masks(targets)[..., None, None].expand_as(errors)
        return kept_mean(errors, keep, self.config.over)
