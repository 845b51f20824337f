"""Pictures of Gaussians."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from four_d.rendering.backends import choose
from four_d.rendering.checks import (
    check_background,
    check_cameras,
    check_features,
    check_gaussians,
    in_one_type,
)
from four_d.rendering.memory import check_memory
from four_d.rendering.scene import make_scene
from four_d.types import Cameras, Gaussians, Views


def render(
    gaussians: Gaussians,
    cameras: Cameras,
    times: Float[Tensor, "b v"],
    size: tuple[int, int],
    *,
    background: Float[Tensor, "*any"] | None = None,
    features: Float[Tensor, "b n c"] | None = None,
    backend: str = "auto",
) -> Views:
    """What cameras ``b v`` see at ``times`` (seconds) of b sets of Gaussians, as pictures of ``size`` (height, width).

    The numbers are those of 3D Gaussian splatting (Kerbl et al. 2023) as gsplat 1.5.3 has them: pixel centres at +½,
    ellipses blurred by 0.3 pixels², alpha at most 0.999 and nothing below 1/255, nothing nearer than 0.01, and an end
    before the Gaussian that would leave 1e-4 of the light or less. ``background`` is one colour ``3`` or one per
    picture ``b v 3`` (None: black); features have background 0. Depth is the expected z-depth Σ w·z / Σ w,
    0 where alpha = Σ w is 0.

    Gradients reach all of the Gaussians but their offset times, the features, the background and the cameras' poses;
    not the intrinsics. All is computed in the means' type, in float32 if that is narrower. ``backend`` is "auto",
    "gsplat" (CUDA), "compiled" (CPU) or "torch" (`backends`).

    UserError: values that are not finite, opacities outside [0, 1], negative scales, cameras that are not rigid or have
    no focal length, shapes that do not belong together, a backend that this machine has not, too little memory.
    """
    check_gaussians(gaussians)
    check_cameras(cameras, times, gaussians.means)
    check_features(features, gaussians.means)
    check_background(background, tuple(times.shape))
    gaussians, cameras, times = in_one_type(gaussians, cameras, times)
    features = None if features is None else features.to(gaussians.means.dtype)
    rasterise = choose(backend, gaussians.means.device)
    check_memory(rasterise.cost, (times.numel(), gaussians.means.shape[1]), 0, gaussians.means)
    raster = rasterise(make_scene(gaussians, cameras, times, features), size)
    colour = raster.values[:, :3] + _behind(background, raster.alpha, times.shape)
    pictures = (colour, raster.alpha, raster.depth, raster.values[:, 3:])
    colour, alpha, depth, extra = (picture.unflatten(0, tuple(times.shape)) for picture in pictures)
    return Views(colour=colour, alpha=alpha, depth=depth, features=None if features is None else extra)


def _behind(background: Tensor | None, alpha: Float[Tensor, "i h w"], batch: torch.Size) -> Tensor:
    """The background's share of the colour, ``i 3 h w``."""
    if background is None:
        return alpha.new_zeros(())
    colour = background.to(alpha).expand(*batch, 3).flatten(0, 1)
    return (1 - alpha[:, None]) * colour[..., None, None]
