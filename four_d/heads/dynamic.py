"""The backbone's mask of moving pixels as an output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.nn import functional

from four_d.layers import full_precision, full_type
from four_d.parts import DYNAMICS, EVERY_FRAME, HeadSpec, Provision, TokenShape
from four_d.types import Clip, Prediction, Tokens


@dataclass(frozen=True, kw_only=True)
class DynamicHeadConfig(HeadSpec):
    """Config without settings: the mask is the backbone's (``backbone.dynamics``)."""

    kind: Literal["dynamic"] = "dynamic"

    @property
    def requires(self) -> frozenset[Provision]:
        """The mask, and token rows of every frame."""
        return frozenset({EVERY_FRAME, DYNAMICS})

    @property
    def provides(self) -> tuple[str, ...]:
        """The mask per pixel and its logits per patch."""
        return "dynamic", "dynamic_logits"

    def build(self, shape: TokenShape) -> DynamicHead:  # noqa: ARG002 - it has no weights
        """Build the module, which has no weights."""
        return DynamicHead(self)


class DynamicHead(nn.Module):
    """Head of ``dynamic``, upsampled bilinearly to the image's size, and ``dynamic_logits`` per patch."""

    def __init__(self, config: DynamicHeadConfig) -> None:
        super().__init__()
        self.config, self.rounds = config, tuple[int, ...]()

    def forward(self, tokens: Tokens, clip: Clip) -> Prediction:
        """Upsample the backbone's mask."""
        assert tokens.dynamic_logits is not None  # of DYNAMICS
        with full_precision(tokens.dynamic_logits.device):
            logits = tokens.dynamic_logits.to(full_type(tokens.dynamic_logits.dtype)).unflatten(-1, tokens.grid)
            large = functional.interpolate(logits, size=clip.images.shape[-2:], mode="bilinear")
        return Prediction(dynamic=large.sigmoid(), dynamic_logits=logits)
