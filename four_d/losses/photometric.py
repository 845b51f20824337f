"""Pictures of Gaussians against the frames that were taken there: squared error and a perceptual term.

DGS-LRM (arXiv 2506.09997), after GS-LRM (arXiv 2404.19702): MSE + 0.5 · a perceptual distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from four_d.errors import UserError
from four_d.layers import full_precision, full_type
from four_d.losses.reduction import nothing
from four_d.similarity import LPIPS_WEIGHTS, has_lpips, load_lpips, structure
from four_d.types import Clip, Gaussians, Prediction, Views

Perceptual = Literal["auto", "lpips", "structure", "none"]
NO_GAUSSIANS = "needs Gaussians; add a head {kind: gaussian} or remove the loss"


def required(prediction: Prediction, loss: str) -> Gaussians:
    """The predicted Gaussians. UserError where the model has none."""
    if prediction.gaussians is None:
        raise UserError(f"the {loss} loss {NO_GAUSSIANS}")
    return prediction.gaussians


def untouched(gaussians: Gaussians) -> Float[Tensor, ""]:
    """Zero, with a gradient path to all of the Gaussians but their times."""
    shape = (gaussians.means, gaussians.quats, gaussians.scales)
    offsets = [] if gaussians.offsets is None else [gaussians.offsets]
    return nothing(*shape, gaussians.opacities, gaussians.harmonics, *offsets)


@dataclass(frozen=True, kw_only=True)
class PhotometricLoss:
    """Mean squared error of colours over all pixels of all views, and how different the pictures look.

    ``perceptual`` is settled when the config is built, so a run's config.yaml says which term trained it.
    """

    kind: Literal["photometric"] = "photometric"
    weight: float = 1.0
    perceptual: Perceptual = "auto"
    """``lpips``: `similarity.LPIPS`; ``structure``: (1 − SSIM) / 2 + differences of image gradients
    (`similarity.structure`); ``auto`` becomes ``lpips`` where its weights are, else ``structure``."""
    perceptual_weight: float = 0.5
    lpips_weights: str | None = LPIPS_WEIGHTS
    """A file, or a folder of files, of weights (`similarity.load_lpips`); None: there are none."""

    def __post_init__(self) -> None:
        if self.perceptual == "auto":
            chosen = "lpips" if has_lpips(self.lpips_weights) else "structure"
            object.__setattr__(self, "perceptual", chosen)

    def __call__(self, prediction: Prediction, views: Views | None, targets: Clip) -> Float[Tensor, ""]:
        """UserError without Gaussians, or without LPIPS's weights where it is asked for; 0 without true views."""
        gaussians = required(prediction, "photometric")
        if views is None or targets.views is None:
            return untouched(gaussians)
        with full_precision(views.colour.device):
            colour = views.colour.to(full_type(views.colour.dtype)).flatten(0, -4)
            truth = targets.views.images.to(colour).flatten(0, -4)
            value = (colour - truth).square().mean()
            return value + self.perceptual_weight * self.difference(colour, truth) + untouched(gaussians)

    def difference(self, colour: Float[Tensor, "b 3 h w"], truth: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
        """The perceptual term, averaged over pictures."""
        if self.perceptual == "none" or not self.perceptual_weight:
            return colour.new_zeros(())
        if self.perceptual == "structure":
            return structure(colour, truth).mean()
        return load_lpips(self.lpips_weights).to(colour)(colour, truth).mean()
