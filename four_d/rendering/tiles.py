"""Ellipses that each tile of the images needs, front to back. Linear in memory: one number for each pair."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from four_d.constants import vector
from four_d.rendering.memory import TORCH, check_memory
from four_d.rendering.projection import Splats


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Square tiles over each of a call's images; ``corner`` (x, y) is the first pixel of the first tile."""

    rows: int
    columns: int
    tile: int
    size: tuple[int, int]
    """Height and width of the covered area in pixels."""
    corner: tuple[int, int] = (0, 0)
    centred: bool = True
    """True if only pixel centres are evaluated; False: any point of a pixel."""


def make_grid(size: tuple[int, int], tile: int, corner: tuple[int, int] = (0, 0), *, centred: bool = True) -> Grid:
    """Cover ``size`` (height, width) by tiles of ``tile`` × ``tile`` pixels."""
    rows, columns = (-(-side // tile) for side in size)
    return Grid(rows=rows, columns=columns, tile=tile, size=size, corner=corner, centred=centred)


@dataclass(frozen=True, kw_only=True)
class Lists:
    """Members of each tile: ``members[starts[t] : starts[t + 1]]``, with t row-major in image, row, column."""

    members: Int[Tensor, "p"]
    """Index of a Gaussian among all images' (image · n + Gaussian), nearest first within each tile."""
    starts: Int[Tensor, "t1"]
    lengths: Int[Tensor, "t"]
    """Members of each tile, on the host."""


@torch.no_grad()
def first_and_last(splats: Splats, grid: Grid) -> tuple[Int[Tensor, "i n 2"], Int[Tensor, "i n 2"]]:
    """First and last tile (column, row) that each ellipse reaches; last before first where it reaches none."""
    corner = vector(grid.corner, splats.centres)
    limit = vector([grid.size[1], grid.size[0]], splats.centres) - 1
    middle = splats.centres - corner
    start, end = middle - splats.reach, middle + splats.reach
    first = ((start - 0.5).ceil() if grid.centred else start.floor()).clamp_min(0)
    last = torch.minimum((end - 0.5 if grid.centred else end).floor(), limit)
    reached = splats.drawn[..., None] & (first <= last).all(-1, keepdim=True)
    first, last = torch.where(reached, first, grid.tile), torch.where(reached, last, 0)
    return first.long() // grid.tile, last.long() // grid.tile


@torch.no_grad()
def make_lists(splats: Splats, grid: Grid) -> Lists:
    """List the pairs of tiles and ellipses. Equal depths keep the Gaussians' order.

    The host waits once, for the lists' lengths: it must know how much memory they take.
    """
    images, n = splats.depths.shape
    order = splats.depths.argsort(dim=1, stable=True)
    members = (order + n * torch.arange(images, device=order.device)[:, None]).flatten()
    first, last = (bound.flatten(0, 1)[members] for bound in first_and_last(splats, grid))
    wide, high = (last - first + 1).clamp_min(0).unbind(-1)
    lengths = _lengths(members // max(n, 1), first, last, wide * high, images, grid)
    known = lengths.cpu()
    pairs = int(known.sum())
    check_memory(TORCH, (images, n), pairs, splats.depths)
    members, first, wide, within = _repeat(wide * high, pairs, members, first, wide)
    tile = (members // n * grid.rows + first[:, 1] + within // wide) * grid.columns + first[:, 0] + within % wide
    position = tile.argsort(stable=True)
    return Lists(members=members[position], starts=functional.pad(lengths.cumsum(0), (1, 0)), lengths=known)


def _lengths(
    image: Int[Tensor, "m"],
    first: Int[Tensor, "m 2"],
    last: Int[Tensor, "m 2"],
    counts: Tensor,
    images: int,
    grid: Grid,
) -> Int[Tensor, "t"]:
    """Number of ellipses that reach each tile: sums over changes at the corners of each one's rectangle of tiles."""
    changes = torch.zeros(images, grid.rows + 1, grid.columns + 1, dtype=torch.long, device=counts.device)
    reached = (counts > 0).long()
    after = torch.where(counts[:, None] > 0, last + 1, first)
    for sign, row, column in ((1, first, first), (-1, first, after), (-1, after, first), (1, after, after)):
        places = (image * changes.shape[1] + row[:, 1]) * changes.shape[2] + column[:, 0]
        changes.view(-1).scatter_add_(0, places, sign * reached)
    return changes.cumsum(1).cumsum(2)[:, : grid.rows, : grid.columns].flatten()


def _repeat(
    counts: Tensor, pairs: int, members: Tensor, first: Tensor, wide: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Repeat each Gaussian for every tile that it reaches, with the index of that tile among its own."""
    row = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts, output_size=pairs)
    within = torch.arange(len(row), device=counts.device) - (counts.cumsum(0) - counts)[row]
    return members[row], first[row], wide[row], within


def tile_centres(grid: Grid, images: int, example: Float[Tensor, "*any"]) -> Float[Tensor, "t 2"]:
    """(x, y) of every tile's middle, in the order of `Lists`."""
    x = (
        torch.arange(grid.columns, device=example.device, dtype=example.dtype) * grid.tile
        + grid.tile / 2
        + grid.corner[0]
    )
    y = torch.arange(grid.rows, device=example.device, dtype=example.dtype) * grid.tile + grid.tile / 2 + grid.corner[1]
    centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)
    return centres.repeat(images, 1)
