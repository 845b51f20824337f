"""Which ellipses each tile of the pictures needs, front to back. Linear in memory: one number for each pair."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from four_d.rendering.memory import TORCH, check_memory
from four_d.rendering.projection import Splats


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Square tiles over each of a call's pictures; ``corner`` (x, y) is the first pixel of the first tile."""

    rows: int
    columns: int
    tile: int
    size: tuple[int, int]
    """Height and width of what the tiles cover, in pixels."""
    corner: tuple[int, int] = (0, 0)
    centred: bool = True
    """Whether of a pixel only its centre is asked for, or any point."""


def make_grid(size: tuple[int, int], tile: int, corner: tuple[int, int] = (0, 0), *, centred: bool = True) -> Grid:
    """Enough tiles of ``tile`` × ``tile`` pixels for ``size`` (height, width)."""
    rows, columns = (-(-side // tile) for side in size)
    return Grid(rows=rows, columns=columns, tile=tile, size=size, corner=corner, centred=centred)


@dataclass(frozen=True, kw_only=True)
class Lists:
    """Tile t of all pictures, row-major in picture, row, column, needs ``members[starts[t] : starts[t + 1]]``."""

    members: Int[Tensor, "p"]
    """Index of a Gaussian among all pictures' (picture · n + Gaussian), nearest first within each tile."""
    starts: Int[Tensor, "t1"]


@torch.no_grad()
def first_and_last(splats: Splats, grid: Grid) -> tuple[Int[Tensor, "i n 2"], Int[Tensor, "i n 2"]]:
    """First and last tile (column, row) that each ellipse reaches; last before first where it reaches none."""
    corner = splats.centres.new_tensor(grid.corner)
    limit = splats.centres.new_tensor([grid.size[1], grid.size[0]]) - 1
    middle = splats.centres - corner
    start, end = middle - splats.reach, middle + splats.reach
    first = ((start - 0.5).ceil() if grid.centred else start.floor()).clamp_min(0)
    last = torch.minimum((end - 0.5 if grid.centred else end).floor(), limit)
    seen = splats.drawn[..., None] & (first <= last).all(-1, keepdim=True)
    first, last = torch.where(seen, first, grid.tile), torch.where(seen, last, 0)
    return first.long() // grid.tile, last.long() // grid.tile


@torch.no_grad()
def make_lists(splats: Splats, grid: Grid) -> Lists:
    """The pairs of tiles and ellipses. Equal depths keep the Gaussians' order."""
    pictures, n = splats.depths.shape
    order = splats.depths.argsort(dim=1, stable=True)
    members = (order + n * torch.arange(pictures, device=order.device)[:, None]).flatten()
    first, last = (ends.flatten(0, 1)[members] for ends in first_and_last(splats, grid))
    wide, high = (last - first + 1).clamp_min(0).unbind(-1)
    check_memory(TORCH, (pictures, n), int((wide * high).sum()), splats.depths)
    members, first, wide, within = _repeat(wide * high, members, first, wide)
    tile = (members // n * grid.rows + first[:, 1] + within // wide) * grid.columns + first[:, 0] + within % wide
    tile, position = tile.sort(stable=True)
    edges = torch.arange(pictures * grid.rows * grid.columns + 1, device=tile.device)
    return Lists(members=members[position], starts=torch.searchsorted(tile, edges))


def _repeat(counts: Tensor, members: Tensor, first: Tensor, wide: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each Gaussian as often as it reaches tiles, and the how-manieth of its tiles each is."""
    each = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    within = torch.arange(len(each), device=counts.device) - (counts.cumsum(0) - counts)[each]
    return members[each], first[each], wide[each], within


def tile_centres(grid: Grid, pictures: int, like: Float[Tensor, "*any"]) -> Float[Tensor, "t 2"]:
    """(x, y) of every tile's middle, in the order of `Lists`."""
    x = torch.arange(grid.columns, device=like.device, dtype=like.dtype) * grid.tile + grid.tile / 2 + grid.corner[0]
    y = torch.arange(grid.rows, device=like.device, dtype=like.dtype) * grid.tile + grid.tile / 2 + grid.corner[1]
    centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)
    return centres.repeat(pictures, 1)
