"""A share of the motion that frames' comparison found: what a small head need not learn about where things went (ours).

A place in another frame is a ray, on which the point is then. How far along it is not known; the point of the ray that
is nearest to where it was is the least motion that agrees with what was found: none for what stands still, as far as
its depth and the place found are right.
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
    """Per pixel and time a learned share of the `least_motion`; 0 at the start. The matches learn nothing from it."""

    def __init__(self, width: int, *, patch_size: int, times: int) -> None:
        super().__init__()
        self.patch_size, self.times = patch_size, times
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
        """``rows`` of the matches are the tokens'; ``cameras`` and ``means`` are in one world.

        UserError where the backbone compared nothing.
        """
        if matches is None or cameras is None:
            raise UserError(
                "the gaussian head follows what frames' comparison finds, and the backbone compares none; set "
                "model.backbone.correlation={kind: correlation} with the spacetime backbone, or the head's follow=false"
            )
        size = self.patch_size
        share = self.share(tokens).unflatten(-1, (self.times, size, size)).unflatten(2, grid)  # b k r c t y x
        share = share.permute(0, 4, 1, 2, 5, 3, 6).flatten(3, 4).flatten(4, 5)
        steps = pick(matches.steps.transpose(1, 2), rows).transpose(1, 2)
        frames = pick(matches.frames.transpose(1, 2), rows).transpose(1, 2)
        return share[..., None] * least_motion(means.detach(), steps.detach().to(means), frames, cameras)


def least_motion(
    points: Float[Tensor, "b k h w 3"],
    steps: Float[Tensor, "b t k y x 2"],
    frames: Int[Tensor, "b t k"],
    cameras: Cameras,
) -> Float[Tensor, "b t k h w 3"]:
    """From each pixel's point to the nearest on the ray of the place, ``steps`` pixels on, where a frame shows it then.

    No motion where that point would be behind the camera.

    points: b k h w 3, world.
    steps: b t k y x 2, pixels, of cells that fill the image.
    frames: b t k, whose cameras these are; they are the same for all of a clip in ``cameras``' own order.
    """
    height, width = points.shape[2:4]
    rows = torch.arange(height, device=points.device) * steps.shape[3] // height
    columns = torch.arange(width, device=points.device) * steps.shape[4] // width
    places = pixel_centres(height, width, points) + steps[:, :, :, rows[:, None], columns]
    poses, intrinsics = (pick(each.to(points), frames) for each in (cameras.world_from_camera, cameras.intrinsics))
    local = rays(intrinsics, places.flatten(3, 4))
    directions = nn.functional.normalize(local @ poses[..., :3, :3].mT, dim=-1).unflatten(3, (height, width))
    away = points[:, None] - poses[..., None, None, :3, 3]
    along = (away * directions).sum(-1, keepdim=True)
    return torch.where(along > 0, along * directions - away, 0)
