"""Key frames' layers of Gaussians merged where they agree: a surface that two key frames see is drawn once.

Each key frame gives a Gaussian to every pixel, so what k of them see lies in k layers, each a little elsewhere.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d.errors import UserError
from four_d.geometry import inside, project
from four_d.rendering.scene import means_at
from four_d.types import Cameras, Gaussians

TOLERANCE = 0.1
"""Relative difference of depths up to which two Gaussians show one surface."""


@torch.no_grad()
def merged(
    gaussians: Gaussians,
    cameras: Cameras,
    times: Float[Tensor, "b k"],
    size: tuple[int, int],
    tolerance: float = TOLERANCE,
) -> tuple[Gaussians, Bool[Tensor, "b n"]]:
    """Merge Gaussians, one for each pixel of each of k key frames; return them and a mask of those that are left.

    A Gaussian that at another key frame's time lies on one of its pixels, at the depth of that pixel's own Gaussian but
    for ``tolerance``, joins it if that is more opaque. That gets the opacity of both layers and moves to their mean,
    weighted by opacity; what joined stays as an entry of opacity 0.

    Args:
        gaussians: in row-major order of key frame, row, column.
        cameras: b k, the key frames', in the Gaussians' world.
        times: seconds of the key frames.
        size: rows and columns of the key frames, in pixels of the intrinsics.
        tolerance: relative difference of depths; 0 merges nothing.

    Raises:
        UserError: there is not one Gaussian per pixel of each key frame.

    """
    keys, pixels = times.shape[1], size[0] * size[1]
    if gaussians.means.shape[1] != keys * pixels:
        raise UserError(
            f"there are {gaussians.means.shape[1]} Gaussians for {keys} key frames of {size[0]} × {size[1]} pixels; "
            "merging needs one per pixel"
        )
    places, own = means_at(gaussians, times), gaussians.opacities  # b k n 3, b n
    left, joined = torch.ones_like(own, dtype=torch.bool), torch.zeros_like(own)
    weights, shifts = own.clone(), torch.zeros_like(gaussians.means)
    numbers = torch.arange(own.shape[1], device=own.device)
    for key in range(keys):
        first = key * pixels
        camera = Cameras(world_from_camera=cameras.world_from_camera[:, key], intrinsics=cameras.intrinsics[:, key])
        seen_at, z = project(places[:, key], camera)
        column, row = (seen_at.nan_to_num().clamp(0, max(size)).long()).unbind(-1)
        there = first + row.clamp_max(size[0] - 1) * size[1] + column.clamp_max(size[1] - 1)
        depth, rival = z.gather(1, there), own.gather(1, there)
        agrees = inside(seen_at, z, size) & ((z - depth).abs() < tolerance * depth)
        agrees &= (numbers < first) | (numbers >= first + pixels)
        fainter = (own < rival) | ((own == rival) & (numbers > there))
        gone = agrees & fainter & left & left.gather(1, there)
        left &= ~gone
        weight = own * gone
        joined.scatter_reduce_(1, there, weight, "amax")
        weights.scatter_add_(1, there, weight)
        rows = there[..., None].expand(-1, -1, 3)
        shifts.scatter_add_(1, rows, weight[..., None] * (places[:, key] - places[:, key].gather(1, rows)))
    means = gaussians.means + shifts / weights.clamp_min(1e-9)[..., None]
    return replace(gaussians, means=means, opacities=(own + joined - own * joined) * left), left
