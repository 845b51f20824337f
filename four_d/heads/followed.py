"""Initialisation of offsets from matched motion, scaled by a learned weight: for small heads (ours).

A match in another frame constrains the point to a ray, at unknown distance. The ray's point nearest to the old
position gives the least motion that agrees with the match: none for static points, as far as depth and match are right.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from four_d.correlation import pick
from four_d.errors import UserError
from four_d.geometry import pixel_centres, rays
from four_d.layers import Linear
from four_d.types import Cameras, Matches


class Followed(nn.Module):
    """Learned fraction, per pixel and time, of the `least_motion`; initially 0. No gradient reaches the matches."""

    def __init__(self, width: int, *, patch_size: int, times: int) -> None:
        super().__init__()
        self.patch_size, self.times = patch_size, times
        # a name in checkpoints: do not rename
        self.share = Linear(width, times * patch_size**2)
        for parameter in self.share.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self,
        tokens: Float[Tensor, "b k p c"],
        grid: tuple[int, int],
        means: Float[Tensor, "b k h w 3"],
        matches: Matches | None,
        rows: Int[Tensor, "b k"],
        cameras: Cameras | None,
    ) -> Float[Tensor, "b t k h w 3"]:
        """Compute the offsets; ``rows`` are the tokens' rows among the matches, ``cameras`` and ``means`` in one world.

        UserError where the backbone gives no matches.
        """
        if matches is None or cameras is None:
            raise UserError(
                "the gaussian head follows matches between frames, and the backbone makes none; set its "
                "follow=false, or 'model.backbone.correlation={}' with the spacetime backbone"
            )
        size = self.patch_size
        fraction = self.share(tokens).unflatten(-1, (self.times, size, size)).unflatten(2, grid)  # b k r c t y x
        fraction = fraction.permute(0, 4, 1, 2, 5, 3, 6).flatten(3, 4).flatten(4, 5)
        steps = pick(matches.steps.transpose(1, 2), rows).transpose(1, 2)
        frames = pick(matches.frames.transpose(1, 2), rows).transpose(1, 2)
        return fraction[..., None] * least_motion(means.detach(), steps.detach().to(means), frames, cameras)


def least_motion(
    points: Float[Tensor, "b k h w 3"],
    steps: Float[Tensor, "b t k y x 2"],
    frames: Int[Tensor, "b t k"],
    cameras: Cameras,
) -> Float[Tensor, "b t k h w 3"]:
    """Displacement from each pixel's point to the nearest point on the ray of its match, ``steps`` pixels away.

    No motion where that point would be behind the camera.

    points: b k h w 3, world.
    steps: b t k y x 2, pixels, of cells that fill the image.
    frames: b t k, whose cameras these are; they are the same for all of a clip in ``cameras``' own order.
    """
    height, width = points.shape[2:4]
    rows = torch.arange(height, device=points.device) * steps.shape[3] // height
    columns = torch.arange(width, device=points.device) * steps.shape[4] // width
    pixels = pixel_centres(height, width, points) + steps[:, :, :, rows[:, None], columns]
    poses, intrinsics = (pick(each.to(points), frames) for each in (cameras.world_from_camera, cameras.intrinsics))
    local = rays(intrinsics, pixels.flatten(3, 4))
    directions = nn.functional.normalize(local @ poses[..., :3, :3].mT, dim=-1).unflatten(3, (height, width))
    offset = points[:, None] - poses[..., None, None, :3, 3]
    along = (offset * directions).sum(-1, keepdim=True)
    return torch.where(along > 0, along * directions - offset, 0)
