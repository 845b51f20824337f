"""Rasteriser for NVIDIA GPUs: gsplat, whose kernels are compiled on first use."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from four_d.rendering.memory import COMPILED, Cost
from four_d.rendering.projection import BLUR, NEAR
from four_d.rendering.rasteriser import Raster
from four_d.rendering.scene import Scene

Rasterization = Callable[..., tuple[torch.Tensor, torch.Tensor, dict[str, Any]]]


@functools.cache
def rasterization() -> Rasterization | str:
    """Load gsplat's function of that name; a one-line reason if that fails. Without a GPU gsplat is not imported."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    try:
        import gsplat
        from gsplat.cuda import _backend
    except Exception as error:  # a failed build of its kernels raises anything
        return f"gsplat does not load ({str(error).strip().splitlines()[0] if str(error) else type(error).__name__})"
    if getattr(_backend, "_C", None) is None:
        return "gsplat has no CUDA kernels; install the CUDA toolkit (nvcc) of torch's version"
    return gsplat.rasterization


@dataclass(frozen=True, kw_only=True)
class GsplatRasteriser:
    """`rasteriser.Rasteriser` by gsplat 1.5, in float32. (1.6 limits alpha to 0.99.)"""

    rasterization: Rasterization
    cost: Cost = COMPILED
    """Memory cost; not measured, but gsplat keeps about as much as our kernel."""

    def __call__(self, scene: Scene, size: tuple[int, int]) -> Raster:
        """Render (`rasteriser.Rasteriser`)."""
        values, alpha, _ = self.rasterization(
            means=scene.means.float(),
            quats=scene.quats.float(),
            scales=scene.scales.float(),
            opacities=scene.opacities.float(),
            colors=scene.values.float(),
            viewmats=scene.camera_from_world[:, None].float(),
            Ks=scene.intrinsics[:, None].float(),
            width=size[1],
            height=size[0],
            near_plane=NEAR,
            eps2d=BLUR,
            render_mode="RGB+ED",
            packed=False,
        )
        images = values[:, 0].permute(0, 3, 1, 2).to(scene.means.dtype)
        return Raster(values=images[:, :-1], depth=images[:, -1], alpha=alpha[:, 0, ..., 0].to(scene.means.dtype))
