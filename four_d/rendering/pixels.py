"""Gaussians that contribute to a pixel, and their weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from four_d.constants import also_kept, move, on_host, vector
from four_d.errors import UserError
from four_d.layers import full_precision
from four_d.rendering.checks import check_cameras, check_gaussians, guarded, to_common_dtype
from four_d.rendering.compositing import Cells, weights_of
from four_d.rendering.projection import Splats, project
from four_d.rendering.scene import make_scene
from four_d.rendering.tiles import Grid, make_grid, make_lists
from four_d.types import Cameras, Gaussians

TILE = 8
MAX_TILES = 256
"""Maximum tiles along an edge of the pixels' bounding box: farther pixels get larger tiles."""


@dataclass(frozen=True, kw_only=True)
class Contributors:
    """Gaussians, k for each of p pixels, with the largest weights, in descending order."""

    indices: Int[Tensor, "b v p k"]
    """Indices into the batch's n Gaussians; −1 where there are fewer."""
    weights: Float[Tensor, "b v p k"]
    """Blending weights; 0 where the index is −1. All of a pixel's weights sum to its alpha."""


@torch.no_grad()
def contributors(
    gaussians: Gaussians,
    cameras: Cameras,
    times: Float[Tensor, "b v"],
    pixels: Float[Tensor, "b v p 2"],
    count: int,
    *,
    size: tuple[int, int] | None = None,
    read_back: bool = True,
) -> Contributors:
    """Find the ``count`` Gaussians with the largest weights at pixels (x, y), by `render`'s rules, without gradient.

    Pixels have a corner origin, so a pixel's centre is at +½; any point is allowed, also outside the image. ``size``
    (height, width) is the image's; None: its middle is the principal point. It matters only for Gaussians far outside.
    ``read_back`` False: as in `render`, but for what is not finite weights are not NaN.
    UserError as `render`, and if a pixel is not finite or ``count`` is below 1.
    """
    check_gaussians(gaussians, read_back=read_back)
    check_cameras(cameras, times, gaussians.means, read_back=read_back)
    _check(pixels, count, times)
    gaussians, cameras, times = to_common_dtype(gaussians, cameras, times)
    if not read_back:
        (gaussians, cameras), _ = guarded((gaussians, cameras))
    middle = cameras.intrinsics[..., :2, 2].flatten(0, 1)
    with full_precision(gaussians.means.device):
        splats = project(make_scene(gaussians, cameras, times, None), size or (2 * middle[:, 1:], 2 * middle[:, :1]))
        placed = also_kept(pixels, lambda each: each.flatten(0, 1).to(splats.centres.dtype))
        cells = _cells(splats, placed)
        members, weights = weights_of(splats, cells, count)
    indices = torch.where(weights > 0, members % max(gaussians.means.shape[1], 1), -1)
    shape = (*pixels.shape[:-1], count)
    return Contributors(indices=indices.reshape(shape), weights=weights.reshape(shape))


def _check(pixels: Tensor, count: int, times: Tensor) -> None:
    if pixels.shape[:2] != times.shape:
        raise UserError(f"pixels is {tuple(pixels.shape)}, but times are {tuple(times.shape)}: b and v must agree")
    if count < 1:
        raise UserError(f"{count} contributors for each pixel; ask for 1 or more")
    if not torch.isfinite(on_host(pixels)).all():
        raise UserError("pixels has values that are not finite; leave those pixels out")


def _cells(splats: Splats, pixels: Float[Tensor, "i p 2"]) -> Cells:
    """Cells of single pixels, with the lists of their tiles."""
    grid = _grid(pixels)
    lists = make_lists(splats, grid)
    known = on_host(pixels)
    column, row = ((known - vector(grid.corner, known)).floor().long() // grid.tile).unbind(-1)
    image = torch.arange(len(known))[:, None]
    tiles = move(((image * grid.rows + row) * grid.columns + column).flatten(), pixels.device)
    return Cells(
        offsets=pixels.new_zeros(1, 2),
        centres=pixels.flatten(0, 1),
        members=lists.members,
        begins=lists.starts[tiles],
        ends=lists.starts[tiles + 1],
        lengths=lists.lengths[on_host(tiles)],
    )


def _grid(pixels: Float[Tensor, "i p 2"]) -> Grid:
    """Tiles over the pixels' bounding box."""
    if not pixels.numel():
        return make_grid((1, 1), TILE, centred=False)
    low, high = (bound.floor().long().tolist() for bound in on_host(pixels).flatten(0, 1).aminmax(dim=0))
    wide, high = high[0] - low[0] + 1, high[1] - low[1] + 1
    return make_grid((high, wide), max(TILE, -(-max(wide, high) // MAX_TILES)), (low[0], low[1]), centred=False)
