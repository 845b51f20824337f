"""Differentiable renders of deformable Gaussians, and per-pixel contributors. No other part uses a rasteriser."""

from __future__ import annotations

from four_d.rendering.pixels import Contributors, contributors
from four_d.rendering.views import render

__all__ = ["Contributors", "contributors", "render"]
