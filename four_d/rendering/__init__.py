"""Pictures of deformable Gaussians, with gradients, and what made them. Nothing else in `four_d` knows a rasteriser."""

from __future__ import annotations

from four_d.rendering.pixels import Contributors, contributors
from four_d.rendering.views import render

__all__ = ["Contributors", "contributors", "render"]
