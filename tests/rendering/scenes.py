"""Scenes for the tests of rendering, and a picture of them by other code: gsplat's projection and a plain loop."""

from __future__ import annotations

import dataclasses
import math

import torch
from gsplat.cuda import _torch_impl as gsplat_torch
from torch import Tensor
from torch.nn.functional import normalize

from four_d.rendering import harmonics
from four_d.types import Cameras, Gaussians

C0 = 1 / math.sqrt(4 * math.pi)


def constant_colour(colour: Tensor) -> Tensor:
    """Harmonics ``… 1 3`` of that colour from everywhere."""
    return ((colour - 0.5) / C0)[..., None, :]


def one(
    z: float, opacity: float = 0.8, scale: float = 0.1, colour: tuple[float, float, float] = (0.9, 0.5, 0.1)
) -> Gaussians:
    """An isotropic Gaussian on the axis of `straight`, float64."""
    return Gaussians(
        means=torch.tensor([[[0.0, 0.0, z]]], dtype=torch.float64),
        quats=torch.tensor([[[1.0, 0, 0, 0]]], dtype=torch.float64),
        scales=torch.full((1, 1, 3), scale, dtype=torch.float64),
        opacities=torch.full((1, 1), opacity, dtype=torch.float64),
        harmonics=constant_colour(torch.tensor([[colour]], dtype=torch.float64)),
    )


def together(*parts: Gaussians) -> Gaussians:
    return Gaussians(
        **{
            name: torch.cat([getattr(part, name) for part in parts], dim=1)
            for name in ("means", "quats", "scales", "opacities", "harmonics")
        }
    )


def straight(focal: float = 20.0, height: int = 9, width: int = 11) -> tuple[Cameras, Tensor]:
    """A camera at the origin that looks along z, and time 0, float64."""
    intrinsics = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    return Cameras(world_from_camera=pose[None, None], intrinsics=intrinsics[None, None]), torch.zeros(1, 1)


def cloud(
    n: int,
    *,
    batch: int = 1,
    views: int = 1,
    k: int = 1,
    size: float = 0.1,
    seed: int = 0,
    moves: bool = False,
    turns: bool = False,
) -> tuple[Gaussians, Cameras, Tensor]:
    """n random Gaussians of each of ``batch`` scenes about 3 in front of ``views`` cameras, float64."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    means = (uniform(batch, n, 3) - 0.5) * torch.tensor([2.0, 2.0, 1.0]) + torch.tensor([0.0, 0.0, 3.0])
    gaussians = Gaussians(
        means=means,
        quats=uniform(batch, n, 4) - 0.5,
        scales=(uniform(batch, n, 3) + 0.2) * size,
        opacities=uniform(batch, n) * 0.8 + 0.1,
        harmonics=(uniform(batch, n, k, 3) - 0.3),
        offsets=(uniform(batch, 3, n, 3) - 0.5) * 0.2 if moves else None,
        offset_times=torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64).repeat(batch, 1) if moves else None,
    )
    times = uniform(batch, views)
    if turns:
        gaussians = dataclasses.replace(gaussians, turns=normalize(uniform(batch, 3, n, 4) - 0.5, dim=-1))
    return gaussians, _ring(batch, views), times


def _ring(batch: int, views: int) -> Cameras:
    """Cameras side by side, each turned a little more, of principal points beside the middle."""
    pose = torch.eye(4, dtype=torch.float64).repeat(batch, views, 1, 1)
    for view in range(views):
        angle = 0.1 * view + 0.05
        rotation = [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]]
        pose[:, view, :3, :3] = torch.tensor(rotation, dtype=torch.float64)
        pose[:, view, :3, 3] = torch.tensor([-0.2 * view, 0.1, 0.05 * view], dtype=torch.float64)
    intrinsics = torch.tensor([[24.0, 0, 9.5], [0, 22.0, 8.0], [0, 0, 1]], dtype=torch.float64)
    return Cameras(world_from_camera=pose, intrinsics=intrinsics.repeat(batch, views, 1, 1))


def dense(
    gaussians: Gaussians, cameras: Cameras, size: tuple[int, int], stop: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Colour ``h w 3``, depth, alpha and weights ``h w n`` of scene 0 by camera 0, one Gaussian after the other."""
    view = torch.linalg.inv(cameras.world_from_camera[0, 0])
    covariances, _ = gsplat_torch._quat_scale_to_covar_preci(gaussians.quats[0], gaussians.scales[0], True, False)
    _, centres, depths, conics, _ = gsplat_torch._fully_fused_projection(
        gaussians.means[0], covariances, view[None], cameras.intrinsics[0, :1], size[1], size[0]
    )
    directions = gaussians.means[0] - cameras.world_from_camera[0, 0, :3, 3]
    colours = harmonics.colours(gaussians.harmonics[0], directions)
    rows, columns = torch.meshgrid(*(torch.arange(s, dtype=torch.float64) + 0.5 for s in size), indexing="ij")
    light, lit = torch.ones(size, dtype=torch.float64), torch.ones(size, dtype=torch.bool)
    weights = torch.zeros(*size, len(colours), dtype=torch.float64)
    for index in depths[0].argsort(stable=True).tolist():
        if depths[0, index] <= 0.01:
            continue
        dx, dy = columns - centres[0, index, 0], rows - centres[0, index, 1]
        xx, xy, yy = conics[0, index]
        sigma = 0.5 * (xx * dx * dx + yy * dy * dy) + xy * dx * dy
        alpha = (gaussians.opacities[0, index] * torch.exp(-sigma)).clamp_max(0.999)
        alpha = torch.where(alpha < 1 / 255, 0, alpha)
        if stop:
            lit = lit & (light * (1 - alpha) > 1e-4)
        weights[..., index] = torch.where(lit, light * alpha, 0)
        light = torch.where(lit, light * (1 - alpha), light)
    total = weights.sum(-1)
    depth = (weights @ depths[0]) / torch.where(total > 0, total, 1)
    return weights @ colours, depth, total, weights
