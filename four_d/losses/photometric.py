"""Renders of Gaussians against captured frames: squared error and a perceptual term.

DGS-LRM (arXiv 2506.09997), after GS-LRM (arXiv 2404.19702): MSE + 0.5 · a perceptual distance.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from four_d.encoders import EncoderConfig, feature_distance, frozen_encoder
from four_d.errors import UserError
from four_d.losses.reduction import group_mean, nothing
from four_d.losses.schedule import Weight
from four_d.losses.supervision import Need, frames_with_cameras
from four_d.losses.term import LossInputs, LossSpec, LossTerm
from four_d.similarity import LPIPS_WEIGHTS, load_lpips, structure
from four_d.types import Gaussians, Prediction

Perceptual = Literal["lpips", "encoder", "structure", "none"]
READERS: dict[str, Perceptual] = {"lpips_weights": "lpips", "encoder": "encoder"}
"""Setting → perceptual distance that reads it."""
NO_GAUSSIANS = "needs Gaussians; add a head {kind: gaussian} or remove the loss"


def required(prediction: Prediction, loss: str) -> Gaussians:
    """Return the predicted Gaussians. UserError where the model has none."""
    if prediction.gaussians is None:
        raise UserError(f"the {loss} loss {NO_GAUSSIANS}")
    return prediction.gaussians


def untouched(gaussians: Gaussians) -> Float[Tensor, ""]:
    """Zero, with a gradient path to all fields of the Gaussians except their times."""
    shape = (gaussians.means, gaussians.quats, gaussians.scales)
    moved = [each for each in (gaussians.offsets, gaussians.turns) if each is not None]
    return nothing(*shape, gaussians.opacities, gaussians.harmonics, *moved)


@dataclass(frozen=True, kw_only=True)
class PhotometricLossConfig(LossSpec):
    """Mean squared error of colours and a perceptual distance, over the views whose cameras are known.

    Each clip's views are averaged first, then the clips.
    """

    needs: ClassVar[tuple[Need, ...]] = ("views",)
    teaches: ClassVar[tuple[str, ...]] = ("gaussians",)
    kind: Literal["photometric"] = "photometric"
    weight: Weight = 1.0
    perceptual: Perceptual = "structure"
    """Perceptual distance. ``lpips``: `similarity.LPIPS`, which needs its weights; ``encoder``: difference of the
    features of ``encoder`` (`encoders.feature_distance`); ``structure``: (1 − SSIM) / 2 + differences of image
    gradients (`similarity.structure`)."""
    perceptual_weight: float = 0.5
    """Weight of the perceptual distance beside the squared error's 1, at least 0. ½: GS-LRM's."""
    lpips_weights: str | None = LPIPS_WEIGHTS
    """Weight file, or folder of weight files (`similarity.load_lpips`); None: there are none."""
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(strides=(2, 4, 8)))
    """Encoder whose features are compared; its ``pretrained`` names the weights, which stay as they are."""

    @property
    def without_effect(self) -> dict[str, str]:
        """Settings that nothing reads → why."""
        if not self.perceptual_weight:
            return dict.fromkeys(("perceptual", "lpips_weights", "encoder"), "where perceptual_weight is 0")
        unread = [name for name, reader in READERS.items() if self.perceptual != reader]
        unread = ["perceptual_weight", *unread] if self.perceptual == "none" else unread
        return dict.fromkeys(unread, f"where perceptual is {self.perceptual}")

    def build(self) -> PhotometricLoss:
        """Build the term. UserError where the weights of ``perceptual`` are missing."""
        return PhotometricLoss(self)


class PhotometricLoss(LossTerm[PhotometricLossConfig]):
    """The term of `PhotometricLossConfig`."""

    def __init__(self, config: PhotometricLossConfig) -> None:
        super().__init__(config)
        if config.perceptual == "lpips":
            load_lpips(config.lpips_weights)  # a broken file shows before the first step
        if config.perceptual == "encoder":
            frozen_encoder(config.encoder)

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Compute the term. UserError without Gaussians; 0 without true views."""
        targets = inputs.targets
        gaussians = required(inputs.prediction, "photometric")
        views = inputs.views
        if views is None or targets.views is None:
            return untouched(gaussians)
        known = frames_with_cameras(targets.views)
        truth = targets.views.images.to(views.colour)
        # an unknown view is its own truth: no gradient of its difference, which may be NaN, reaches anything
        colour = torch.where(known[..., None, None, None], views.colour, truth).flatten(0, 1)
        truth = truth.flatten(0, 1)
        each = (colour - truth).square().flatten(1).mean(-1) + self.difference(colour, truth)
        return group_mean(each.view(known.shape), known).mean() + untouched(gaussians)

    def difference(self, colour: Float[Tensor, "n 3 h w"], truth: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n"]:
        """Weighted perceptual distance of each image."""
        if self.config.perceptual == "none" or not self.config.perceptual_weight:
            return colour.new_zeros(len(colour))
        if self.config.perceptual == "structure":
            return self.config.perceptual_weight * structure(colour, truth)
        if self.config.perceptual == "encoder":
            encoder = frozen_encoder(self.config.encoder).to(colour)
            return self.config.perceptual_weight * feature_distance(encoder, colour, truth)
        return self.config.perceptual_weight * load_lpips(self.config.lpips_weights).to(colour)(colour, truth)
