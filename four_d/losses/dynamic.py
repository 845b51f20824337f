"""The mask term: cross-entropy of what moves. Ours: PAGE-4D as released has no such supervision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from four_d.errors import UserError
from four_d.losses.reduction import Over, group_mean, grouped, nothing
from four_d.types import Clip, Prediction, Views


@dataclass(frozen=True, kw_only=True)
class DynamicLoss:
    """Cross-entropy of each patch's logit with the share of its pixels that move, in frames where that is known."""

    kind: Literal["dynamic"] = "dynamic"
    weight: float = 1.0
    positive: float = 1.0
    """Weight of what moves relative to what does not."""
    over: Over = "clip"

    def __call__(self, prediction: Prediction, views: Views | None, targets: Clip) -> Float[Tensor, ""]:  # noqa: ARG002 - all terms have one signature
        """Nats per patch. UserError without a dynamic head; 0 without a true mask."""
        logits = prediction.dynamic_logits
        if logits is None:
            raise UserError("the dynamic loss needs a mask; add a head {kind: dynamic} or remove the loss")
        if targets.dynamic is None:
            return nothing(logits)
        size = (targets.dynamic.shape[-2] // logits.shape[-2], targets.dynamic.shape[-1] // logits.shape[-1])
        shares = functional.avg_pool2d(targets.dynamic.to(logits.dtype), size)
        weight = torch.full_like(logits[..., :1, :1], self.positive)
        errors = functional.binary_cross_entropy_with_logits(logits, shares, reduction="none", pos_weight=weight)
        known = torch.ones_like(shares[..., 0, 0], dtype=torch.bool)
        if targets.dynamic_known is not None:
            known = targets.dynamic_known
        keep = known[..., None, None].expand_as(errors)
        return group_mean(grouped(errors, self.over), grouped(keep, self.over)).mean()
