"""Interface of a rendering backend."""

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
    """i images without background: Σ weight·value for c values, the expected z-depth, and alpha = Σ weight."""

    values: Float[Tensor, "i c h w"]
    depth: Float[Tensor, "i h w"]
    """Σ weight·z / Σ weight; 0 where nothing was drawn."""
    alpha: Float[Tensor, "i h w"]


@runtime_checkable
class Rasteriser(Protocol):
    """Rasteriser of scenes; gradients reach every tensor of the scene except the intrinsics."""

    @property
    def cost(self) -> Cost:
        """Memory cost."""
        ...

    def __call__(self, scene: Scene, size: tuple[int, int]) -> Raster:
        """Render images of ``size`` (height, width) pixels. UserError if they exceed the free memory."""
        ...


def expected(total: Float[Tensor, "*b"], alpha: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Divide Σ weight·z by Σ weight, 0 without weight."""
    return torch.where(alpha > 0, total / torch.where(alpha > 0, alpha, 1), 0)
