"""Rasteriser in plain torch, for every device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from four_d.geometry import pixel_centres
from four_d.rendering.compositing import Cells, composite
from four_d.rendering.memory import TORCH, Cost
from four_d.rendering.projection import project
from four_d.rendering.rasteriser import Raster, expected
from four_d.rendering.scene import Scene
from four_d.rendering.tiles import Grid, make_grid, make_lists, tile_centres


@dataclass(frozen=True, kw_only=True)
class TorchRasteriser:
    """`rasteriser.Rasteriser` in plain torch, for any device and floating type."""

    tile: int = 8
    """Pixels along a tile's edge; affects speed only."""
    cost: Cost = TORCH

    def __call__(self, scene: Scene, size: tuple[int, int]) -> Raster:
        """Render (`rasteriser.Rasteriser`)."""
        splats = project(scene, size)
        grid = make_grid(size, self.tile)
        lists = make_lists(splats, grid)
        cells = Cells(
            offsets=pixel_centres(self.tile, self.tile, splats.centres).reshape(-1, 2) - self.tile / 2,
            centres=tile_centres(grid, len(scene.means), splats.centres),
            members=lists.members,
            begins=lists.starts[:-1],
            ends=lists.starts[1:],
            lengths=lists.lengths,
        )
        values, alpha = composite(splats, torch.cat([scene.values, splats.depths[..., None]], dim=-1), cells)
        images = _assemble(torch.cat([values, alpha[..., None]], dim=-1), grid)
        return Raster(values=images[:, :-2], depth=expected(images[:, -2], images[:, -1]), alpha=images[:, -1])


def _assemble(tiles: Float[Tensor, "t p c"], grid: Grid) -> Float[Tensor, "i c h w"]:
    """Assemble images from their tiles, cropped at the edge."""
    shape = (-1, grid.rows, grid.columns, grid.tile, grid.tile, tiles.shape[-1])
    images = tiles.reshape(shape).permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
    return images[..., : grid.size[0], : grid.size[1]]
