"""Pruning and splitting of a scene's Gaussians while it is fitted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from four_d.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DensityConfig:
    """Pruning and splitting of Gaussians, by the gradients of their means (3D Gaussian splatting, Kerbl et al. 2023).

    Gradients are compared with each other alone (Lab4D's way): a share of the Gaussians is split, whatever the unit.
    """

    every: int = 200
    """Steps between two changes."""
    start: int = 200
    """First step of a change."""
    stop: int = 1500
    """Step after which nothing changes any more."""
    faint: float = 0.05
    """Opacity below which a Gaussian goes (Lab4D's)."""
    split: float = 0.05
    """Share of the Gaussians that is split, those of the largest mean gradient."""
    most: int = 20_000
    """Number of Gaussians beyond which none is split."""
    shrink: float = 1.6
    """Factor by which both halves are smaller than what was split (Kerbl et al.'s)."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.start < 1 or self.most < 1:
            raise UserError("every, start and most must be at least 1")
        if not (0 <= self.faint < 1 and 0 <= self.split <= 1 and self.shrink > 0):
            raise UserError("faint and split are shares from 0 to 1, and shrink is positive")

    def due(self, step: int) -> bool:
        """Tell if the Gaussians change before this step."""
        return self.start <= step <= self.stop and step % self.every == 0


@torch.no_grad()
def chosen(
    config: DensityConfig, opacities: Float[Tensor, "n"], gradients: Float[Tensor, "n"]
) -> tuple[Bool[Tensor, "n"], Int[Tensor, "m"]]:
    """Choose which Gaussians stay, and which of these are split (their indices).

    The most opaque one always stays. A Gaussian without any gradient was not seen, and is not split.
    """
    stays = opacities >= config.faint
    stays[opacities.argmax()] = True
    room = max(config.most - int(stays.sum()), 0)
    count = min(int(config.split * int(stays.sum())), room, int((stays & (gradients > 0)).sum()))
    order = torch.where(stays, gradients, -1).argsort(descending=True, stable=True)
    return stays, order[:count]
