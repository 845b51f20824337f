"""Check before rendering that it fits the memory."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from four_d.errors import UserError
from four_d.memory import free_bytes


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Peak number of values that a backend holds, forward and backward (measured)."""

    per_gaussian: int
    """Values per Gaussian of each render."""
    per_pair: int
    """Values per Gaussian in each tile that it reaches."""


FEW = 1 << 26
"""Bytes that are not compared with what is free: reading that takes milliseconds, as long as a small render."""
COMPILED = Cost(per_gaussian=65, per_pair=14)
TORCH = Cost(per_gaussian=110, per_pair=30)


def check_memory(cost: Cost, shape: tuple[int, int], pairs: int, example: Tensor) -> None:
    """Raise UserError if rendering (images, Gaussians) exceeds the free memory, for the type and device of ``like``."""
    images, gaussians = shape
    needed = (gaussians * images * cost.per_gaussian + pairs * cost.per_pair) * example.element_size()
    free = free_bytes(example.device) if needed > FEW else None
    if free is not None and needed > free:
        raise UserError(
            f"rendering {gaussians:,} Gaussians in {images} images needs about {needed / 1e9:.1f} GB, and"
            f" {free / 1e9:.1f} GB are free; render fewer Gaussians, or fewer or smaller images at a time"
        )
