"""Renders of Gaussians."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from four_d.layers import full_precision
from four_d.memory import without_values
from four_d.rendering.backends import choose
from four_d.rendering.checks import (
    check_background,
    check_cameras,
    check_features,
    check_gaussians,
    guarded,
    to_common_dtype,
)
from four_d.rendering.compiled import CompiledRasteriser
from four_d.rendering.memory import check_memory
from four_d.rendering.rasteriser import Raster
from four_d.rendering.scene import Scene, make_scene
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
    read_back: bool = True,
) -> Views:
    """Render b sets of Gaussians for cameras ``b v`` at ``times`` (seconds), as images of ``size`` (height, width).

    Constants are those of 3D Gaussian splatting (Kerbl et al. 2023) as in gsplat 1.5.3: pixel centres at +½, ellipses
    blurred by 0.3 pixels², alpha at most 0.999 and at least 1/255, depth above 0.01, and an end before the Gaussian
    that would leave a transmittance of 1e-4 or less. ``background`` is one colour ``3`` or one per
    image ``b v 3`` (None: black); features have background 0. Depth is the expected z-depth Σ w·z / Σ w,
    0 where alpha = Σ w is 0. Images of cameras that are not ``known`` show the background.

    Gradients reach all fields of the Gaussians except their offset times, the features, the background and the cameras'
    poses, but not the intrinsics. Computation is in the means' type, at least float32. ``backend`` is "auto", "gsplat"
    (CUDA), "compiled" (CPU) or "torch" (`backends`).

    ``read_back`` False: no value is read back to be checked, for which the host would wait for the device. Where one is
    not finite the images and their gradients are NaN, so that a step of training is left out (`guarded`).

    UserError: values that are not finite, opacities outside [0, 1], negative scales, cameras that are not rigid or have
    no focal length, inconsistent shapes, a backend that this machine lacks, too little memory.
    """
    check_gaussians(gaussians, read_back=read_back)
    check_cameras(cameras, times, gaussians.means, read_back=read_back)
    check_features(features, gaussians.means, read_back=read_back)
    check_background(background, tuple(times.shape), read_back=read_back)
    gaussians, cameras, times = to_common_dtype(gaussians, cameras, times)
    factor = None
    if not read_back:
        (gaussians, cameras, times, features, background), factor = guarded(
            (gaussians, cameras, times, features, background)
        )
    features = None if features is None else features.to(gaussians.means.dtype)
    if without_values(gaussians.means):
        rasterise = CompiledRasteriser(kernel=None)
    else:
        rasterise = choose(backend, gaussians.means.device)
        check_memory(rasterise.cost, (times.numel(), gaussians.means.shape[1]), 0, gaussians.means)
    with full_precision(gaussians.means.device):
        scene = make_scene(gaussians, cameras, times, features)
        raster = rasterise(scene, size) if scene.opacities.numel() else _blank(scene, size)
    colour = raster.values[:, :3] + _background_part(background, raster.alpha, times.shape)
    outputs = (colour, raster.alpha, raster.depth, raster.values[:, 3:])
    if factor is not None:  # also where nothing is drawn, gradients of the Gaussians are NaN
        unsound = (factor - 1) * (gaussians.means.sum() + gaussians.opacities.sum())
        outputs = tuple(output * factor + unsound for output in outputs)
    colour, alpha, depth, extra = (output.unflatten(0, tuple(times.shape)) for output in outputs)
    return Views(colour=colour, alpha=alpha, depth=depth, features=None if features is None else extra)


def _blank(scene: Scene, size: tuple[int, int]) -> Raster:
    """Render an empty scene, which kernels cannot (division by zero), with a gradient path to the scene."""
    images, _, channels = scene.values.shape
    reached = (scene.means, scene.quats, scene.scales, scene.opacities, scene.values, scene.camera_from_world)
    empty = torch.stack([tensor.flatten()[:0].sum() for tensor in reached]).sum().expand(images, channels + 2, *size)
    return Raster(values=empty[:, :-2], depth=empty[:, -2], alpha=empty[:, -1])


def _background_part(background: Tensor | None, alpha: Float[Tensor, "i h w"], batch: torch.Size) -> Tensor:
    """Contribution of the background to the colour, ``i 3 h w``."""
    if background is None:
        return alpha.new_zeros(())
    colour = background.to(alpha).expand(*batch, 3).flatten(0, 1)
    return (1 - alpha[:, None]) * colour[..., None, None]
