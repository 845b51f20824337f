"""Gaussians of one object against a video's own frames: colours inside the object's mask, and the mask itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from four_d.constants import move
from four_d.errors import UserError
from four_d.losses.photometric import required, untouched
from four_d.losses.reduction import group_mean, weighted
from four_d.losses.schedule import Weight
from four_d.losses.supervision import Need, frames_with_masks
from four_d.losses.term import LossInputs, LossSpec, LossTerm
from four_d.similarity import ssim_map


@dataclass(frozen=True, kw_only=True)
class ReconstructionLossConfig(LossSpec):
    """0.8 · L1 + 0.2 · (1 − SSIM) of colours, and the squared error of alpha, in the frames that have masks.

    Both pictures are laid over one random colour for each frame: a Gaussian that takes the background's place would
    show. Weights of colours are 3D Gaussian splatting's (Kerbl et al. 2023); PAD3R publishes none.
    """

    needs: ClassVar[tuple[Need, ...]] = ("dynamic",)
    teaches: ClassVar[tuple[str, ...]] = ("gaussians", "cameras")
    kind: Literal["reconstruction"] = "reconstruction"
    weight: Weight = 1.0
    ssim: float = 0.2
    """Share of 1 − SSIM beside that of L1, 0 to 1."""
    mask: float = 1.0
    """Weight of the mean squared error of alpha beside the colours'."""

    def __post_init__(self) -> None:
        if not 0 <= self.ssim <= 1 or self.mask < 0:
            raise UserError("ssim is a share from 0 to 1, and mask at least 0")

    def build(self) -> ReconstructionLoss:
        """Build the term."""
        return ReconstructionLoss(self)


class ReconstructionLoss(LossTerm[ReconstructionLossConfig]):
    """The term of `ReconstructionLossConfig`."""

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Compute the term. UserError without Gaussians or cameras; 0 without a mask of the object."""
        gaussians, targets = required(inputs.prediction, "reconstruction"), inputs.targets
        views, known = inputs.own_views, frames_with_masks(targets)
        if views is None:
            raise UserError("the reconstruction loss needs cameras and Gaussians; take a model that predicts both")
        if targets.dynamic is None:
            return untouched(gaussians)
        mask = targets.dynamic.to(views.alpha)
        behind = move(torch.rand(*mask.shape[:2], 3, 1, 1), mask.device).to(mask)
        colour = views.colour + (1 - views.alpha[:, :, None]) * behind
        truth = mask[:, :, None] * targets.images.to(colour) + (1 - mask[:, :, None]) * behind
        parts = (
            (1 - self.config.ssim, (colour - truth).abs().flatten(2).mean(-1)),
            (self.config.ssim, self.dissimilarity(colour, truth)),
            (self.config.mask, (views.alpha - mask).square().flatten(2).mean(-1)),
        )
        each = weighted(parts, start=torch.zeros_like(colour[:, :, 0, 0, 0]))
        return group_mean(each, known).mean() + untouched(gaussians)

    def dissimilarity(self, colour: Float[Tensor, "b f 3 h w"], truth: Float[Tensor, "b f 3 h w"]) -> Tensor:
        """1 − SSIM of each frame."""
        maps = ssim_map(colour.flatten(0, 1), truth.flatten(0, 1))
        return (1 - maps.flatten(1).mean(-1)).view(colour.shape[:2])
