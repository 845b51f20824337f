"""Which rasteriser a call uses."""

from __future__ import annotations

import torch

from four_d.errors import UserError
from four_d.rendering.in_torch import TorchRasteriser
from four_d.rendering.rasteriser import Rasteriser


def choose(backend: str, device: torch.device) -> Rasteriser:  # noqa: ARG001 - more backends follow
    """The rasteriser of that name; "auto" is the fastest that there is for the device."""
    if backend not in ("auto", "torch"):
        raise UserError(f"backend {backend!r} is unknown; choose one of auto, torch")
    return TorchRasteriser()
