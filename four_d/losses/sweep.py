"""Depth that a cost volume finds, taught directly: renders and Gaussians alone teach it slowly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from four_d.correlation import pick
from four_d.errors import UserError
from four_d.losses.reduction import group_mean, nothing
from four_d.losses.schedule import Weight
from four_d.losses.supervision import Need
from four_d.losses.term import LossInputs, LossSpec, LossTerm


@dataclass(frozen=True, kw_only=True)
class SweepLossConfig(LossSpec):
    """|log error| of the cost volume's depth at the centres of its cells (MVSNet's regression, arXiv 1804.02505).

    Each clip's cells are averaged first, then the clips.
    """

    needs: ClassVar[tuple[Need, ...]] = ("depth",)
    teaches: ClassVar[tuple[str, ...]] = ("sweep_depth",)
    kind: Literal["sweep"] = "sweep"
    weight: Weight = 0.5

    def build(self) -> SweepLoss:
        """Build the term."""
        return SweepLoss(self)


class SweepLoss(LossTerm[SweepLossConfig]):
    """The term of `SweepLossConfig`."""

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Compute the term. UserError without a cost volume; 0 without true depth."""
        found, frames, targets = inputs.prediction.sweep_depth, inputs.prediction.match_frames, inputs.targets
        if found is None or frames is None:
            raise UserError(
                "the sweep loss needs a cost volume; set 'model.backbone.cost_volume={}' with the spacetime backbone, "
                "or remove the loss"
            )
        if targets.depth is None or targets.valid is None:
            return nothing(found)
        truth, valid = (_at_centres(pick(each, frames), found) for each in (targets.depth, targets.valid))
        errors = (found.log() - truth.clamp_min(1e-6).log()).abs()
        return group_mean(errors.flatten(1), (valid & (truth > 0)).flatten(1)).mean() + nothing(found)


def _at_centres(maps: Tensor, cells: Float[Tensor, "b r y x"]) -> Tensor:
    """Pixels of maps b r h w at the centres of cells that fill them."""
    rows, columns = maps.shape[-2] // cells.shape[-2], maps.shape[-1] // cells.shape[-1]
    return maps[..., rows // 2 :: rows, columns // 2 :: columns]
