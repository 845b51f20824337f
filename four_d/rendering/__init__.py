"""Pictures of deformable Gaussians, with gradients: `render`. Nothing else in `four_d` knows a rasteriser."""

from __future__ import annotations

from four_d.rendering.views import render

__all__ = ["render"]
