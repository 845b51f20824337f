"""Deformable Gaussians that look different from every side, and what cameras see of them."""

import dataclasses

import torch

from four_d.geometry import make_pose
from four_d.rendering import render
from four_d.types import Cameras, Gaussians, map_tensors

SIZE = 36, 48
TIMES = (-0.5, 0.0, 0.13, 0.3, 9.0)
"""Before, at, between and after the offset times of `moving`."""


def moving(count: int = 300, degree: int = 3, seed: int = 0) -> Gaussians:
    """A cloud in front of the cameras, of which half flies to the right and up and the other half stands."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    means = (rand(count, 3) - 0.5) * torch.tensor([2.4, 1.8, 1.0]) + torch.tensor([0, 0, 2.5])
    path = torch.tensor([[0, 0, 0], [0.25, -0.1, 0.05], [0.7, -0.5, 0.3]])
    flies = (torch.arange(count) < count // 2).float()
    higher = 0.3 * torch.randn(count, (degree + 1) ** 2 - 1, 3, generator=generator).clamp(-2, 2)
    return Gaussians(
        means=means,
        quats=torch.randn(count, 4, generator=generator),
        scales=0.02 + 0.15 * rand(count, 3) ** 2,
        opacities=0.2 + 0.8 * rand(count),
        harmonics=torch.cat([3 * rand(count, 1, 3) - 1.5, higher], dim=1),
        offsets=path[:, None] * flies[:, None],
        offset_times=torch.tensor([0.0, 0.1, 0.3]),
    )


def turning(count: int = 300, degree: int = 3) -> Gaussians:
    """The same cloud, all of which turns, some by nearly half a turn from one time to the next, with any signs."""
    scene = moving(count, degree)
    generator = torch.Generator().manual_seed(7)
    axes = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    half = torch.tensor([0.1, 0.8, 1.9])[:, None, None] * torch.rand(count, 1, generator=generator)
    signs = torch.where(torch.rand(3, count, 1, generator=generator) < 0.5, -1, 1)
    return dataclasses.replace(scene, turns=signs * torch.cat([half.cos(), half.sin() * axes], dim=-1))


def standing(count: int = 300, degree: int = 3) -> Gaussians:
    """The same cloud without motion."""
    return dataclasses.replace(moving(count, degree), offsets=None, offset_times=None)


def cameras() -> Cameras:
    """One in front, one from the left and above."""
    turn = torch.tensor([[0.8, 0, 0.6], [0, 1, 0], [-0.6, 0, 0.8]])
    poses = torch.stack([torch.eye(4), make_pose(turn, torch.tensor([-1.4, -0.2, 0.5]))])
    lens = torch.tensor([[45.0, 0, SIZE[1] / 2], [0, 45, SIZE[0] / 2], [0, 0, 1]])
    return Cameras(world_from_camera=poses, intrinsics=lens.expand(2, 3, 3))


def pictures(gaussians: Gaussians, views: Cameras | None = None) -> torch.Tensor:
    """What the cameras see at `TIMES`, times·cameras 3 h w, clamped to what a screen shows."""
    views = views or cameras()
    count = len(views.intrinsics)
    each = map_tensors(views, lambda tensor: tensor.repeat(len(TIMES), *[1] * (tensor.ndim - 1))[None])
    times = torch.tensor(TIMES).repeat_interleave(count)[None]
    batch = map_tensors(gaussians, lambda tensor: tensor[None])
    return render(batch, each, times, SIZE, backend="torch").colour[0].clamp(0, 1)
