"""What a backend must be able to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from four_d.rendering.memory import Cost
from four_d.rendering.scene import Scene


@dataclass(frozen=True, kw_only=True)
class Raster:
    """i pictures over nothing: Σ weight·value for c values, the expected z-depth, and alpha = Σ weight."""

    values: Float[Tensor, "i c h w"]
    depth: Float[Tensor, "i h w"]
    """Σ weight·z / Σ weight; 0 where nothing was drawn."""
    alpha: Float[Tensor, "i h w"]


@runtime_checkable
class Rasteriser(Protocol):
    """Draws scenes; gradients reach every tensor of the scene but the intrinsics."""

    @property
    def cost(self) -> Cost:
        """What it needs of memory."""
        ...

    def __call__(self, scene: Scene, size: tuple[int, int]) -> Raster:
        """The pictures, ``size`` (height, width) pixels each. UserError if they need more memory than there is."""
        ...


def expected(total: Float[Tensor, "*b"], alpha: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Σ weight·z / Σ weight, 0 where no weight is."""
    return torch.where(alpha > 0, total / torch.where(alpha > 0, alpha, 1), 0)
