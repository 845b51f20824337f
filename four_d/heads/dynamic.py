"""The backbone's mask of what moves, as an output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.nn import functional

from four_d.errors import UserError
from four_d.layers import full_precision, full_type
from four_d.types import Clip, Prediction, Tokens


@dataclass(frozen=True, kw_only=True)
class DynamicHeadConfig:
    """Nothing to choose: the mask is the backbone's (``backbone.dynamics``)."""

    kind: Literal["dynamic"] = "dynamic"

    def build(self, *, token_width: int, rounds: int, patch_size: int) -> DynamicHead:  # noqa: ARG002 - all heads' builds have one signature
        """It has no weights."""
        return DynamicHead()


class DynamicHead(nn.Module):
    """Sets ``dynamic``, bilinearly enlarged to the image's size, and ``dynamic_logits`` per patch."""

    rounds: tuple[int, ...] = ()
    queried = False

    def forward(self, tokens: Tokens, clip: Clip) -> Prediction:
        """UserError if the backbone does not look for what moves."""
        if tokens.dynamic_logits is None:
            raise UserError("the dynamic head needs backbone.dynamics; set {kind: dynamics} there or remove the head")
        with full_precision(tokens.dynamic_logits.device):
            logits = tokens.dynamic_logits.to(full_type(tokens.dynamic_logits.dtype)).unflatten(-1, tokens.grid)
            large = functional.interpolate(logits, size=clip.images.shape[-2:], mode="bilinear")
        return Prediction(dynamic=large.sigmoid(), dynamic_logits=logits)
