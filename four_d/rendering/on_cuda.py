"""The rasteriser for NVIDIA GPUs: gsplat, whose kernels are compiled the first time it is asked for."""

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
    """The function of that name of gsplat, or in one line why not. Without a GPU gsplat is not even imported."""
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
    """gsplat 1.5.3 or any later one that knows the same arguments, in float32; `rasteriser.Rasteriser`."""

    rasterization: Rasterization
    cost: Cost = COMPILED
    """Not measured; gsplat keeps about what our kernel keeps."""

    def __call__(self, scene: Scene, size: tuple[int, int]) -> Raster:
        """As `rasteriser.Rasteriser`."""
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
        pictures = values[:, 0].permute(0, 3, 1, 2).to(scene.means.dtype)
        return Raster(values=pictures[:, :-1], depth=pictures[:, -1], alpha=alpha[:, 0, ..., 0].to(scene.means.dtype))
