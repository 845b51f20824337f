"""Change that a still scene would not show: each pixel beside the place where other frames would see it (ours)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from four_d.correlation import pick
from four_d.geometry import inside, project, unproject
from four_d.layers import full_type
from four_d.registration.video import neighbours
from four_d.types import Cameras, Clip

GAPS = (1, 2, 4)
"""Frames of one camera that are compared: so many before, and so many after."""
WINDOW = 3
"""Side in pixels of the window whose range of colours counts as alike: cameras and depth are not exact."""
CHANNELS = 4
"""Numbers per pixel of `changes`."""


@torch.no_grad()
def changes(clip: Clip, cameras: Cameras, depth: Float[Tensor, "b f h w"]) -> Float[Tensor, "b f 4 h w"]:
    """Largest change of each pixel in earlier frames, 1 where one of them sees its place; the same of later frames.

    A change, from 0 to 1, is the mean over colours of the distance to the colours around the place where a still scene
    would show the pixel. What a body uncovers has changed on one side of time, the body itself on both. No gradient.
    """
    images = clip.images.to(full_type(clip.images.dtype))
    found = list[Tensor]()
    for sign in (-1, 1):
        several = [_change(clip, images, cameras, depth.to(images), sign * gap) for gap in GAPS]
        found += [torch.stack(each).amax(0) for each in zip(*several)]
    return torch.stack(found, dim=2)


def _change(
    clip: Clip, images: Float[Tensor, "b f 3 h w"], cameras: Cameras, depth: Float[Tensor, "b f h w"], gap: int
) -> tuple[Float[Tensor, "b f h w"], Float[Tensor, "b f h w"]]:
    """Change in the frame ``gap`` later, and where it sees the place; 0 where it does not, or is not there."""
    others, there = neighbours(clip, gap)
    height, width = depth.shape[-2:]
    poses, lenses = cameras.world_from_camera.to(depth), cameras.intrinsics.to(depth)
    points = unproject(depth, Cameras(world_from_camera=poses, intrinsics=lenses)).flatten(-3, -2)
    seen_by = Cameras(world_from_camera=pick(poses, others), intrinsics=pick(lenses, others))
    pixels, z = project(points, seen_by)
    seen = (inside(pixels, z, (height, width)) & there[..., None]).to(depth).unflatten(-1, (height, width))
    grid = (2 * pixels / pixels.new_tensor([width, height]) - 1).clamp(-2, 2).flatten(0, 1)[:, None]
    theirs, own = pick(images, others).flatten(0, 1), images.flatten(0, 1).flatten(-2)
    over = list[Tensor]()
    for side in (1, -1):  # above the largest, below the smallest
        limit = functional.max_pool2d(side * theirs, WINDOW, stride=1, padding=WINDOW // 2)
        limit = functional.grid_sample(limit, grid, padding_mode="border", align_corners=False)[:, :, 0]
        over.append(functional.relu(side * own - limit))
    change = (over[0] + over[1]).mean(1).unflatten(-1, (height, width)).unflatten(0, depth.shape[:2])
    return change * seen, seen
