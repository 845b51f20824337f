"""Blending of ellipses front to back in plain torch: forward, and its derivative by hand.

The pictures are cut into cells, each with a few points and one list of Gaussians. Cells with lists of like length go
together, as many as fit the cache; a list too long for that goes in pieces, each starting from the light that the one
before left. Nothing is kept between forward and backward but that light, so memory is linear in the pairs of `Lists`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from four_d.rendering.projection import FAINTEST, Splats

OPAQUE = 0.999
"""The most alpha that one Gaussian can have."""
DARK = 1e-4
"""A Gaussian that would leave this share of light or less is not drawn any more, nor anything behind it."""
WORK = 1 << 18
"""Numbers that one step works on: a few of such tensors fit the cache of a core."""


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Groups of points that share a list: the tiles of pictures, or single points."""

    offsets: Float[Tensor, "p 2"]
    """Where a cell's points lie from its centre."""
    centres: Float[Tensor, "t 2"]
    members: Int[Tensor, "m"]
    """Gaussians of all lists, one after the other."""
    begins: Int[Tensor, "t"]
    ends: Int[Tensor, "t"]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some cells and a stretch of their lists; ``members`` is −1 where a list has ended."""

    cells: Int[Tensor, "t"]
    members: Int[Tensor, "t k"]
    continues: bool
    """Whether earlier pieces had the beginning of the lists."""


def pieces(cells: Cells) -> Iterator[Piece]:
    """All lists that are not empty, about `WORK` numbers at a time; the pieces of one list follow each other."""
    lengths = cells.ends - cells.begins
    order = lengths.argsort(descending=True)
    sorted_lengths: list[int] = lengths[order].tolist()
    points = len(cells.offsets)
    at = 0
    while at < len(order) and sorted_lengths[at] > 0:
        longest = sorted_lengths[at]
        stretch = min(longest, max(WORK // points, 1))
        until = at + max(WORK // (points * stretch), 1)
        until = next((i for i in range(at, min(until, len(order))) if sorted_lengths[i] < 0.8 * longest), until)
        yield from _stretches(cells, order[at:until], longest, stretch)
        at = until


def _stretches(cells: Cells, group: Tensor, longest: int, stretch: int) -> Iterator[Piece]:
    begins, ends = cells.begins[group, None], cells.ends[group, None]
    steps = torch.arange(stretch, device=group.device)
    for start in range(0, longest, stretch):
        positions = begins + start + steps[: longest - start]
        members = cells.members[positions.clamp_max(len(cells.members) - 1)]
        yield Piece(cells=group, members=members.masked_fill(positions >= ends, -1), continues=start > 0)


def composite(
    splats: Splats, values: Float[Tensor, "i n c"], cells: Cells
) -> tuple[Float[Tensor, "t p c"], Float[Tensor, "t p"]]:
    """Blended values and alpha at every point of every cell, differentiable in the splats and the values."""
    ones = torch.ones_like(values[..., :1])
    blended = _Composite.apply(parameters_of(splats), torch.cat([values, ones], dim=-1).flatten(0, 1), cells)
    return blended[..., :-1], blended[..., -1]


def parameters_of(splats: Splats) -> Float[Tensor, "m 6"]:
    """Centre, conic and the logarithm of the opacity of every Gaussian, as the blending wants them."""
    faintness = splats.opacities.clamp_min(FAINTEST / 2).log()
    return torch.cat([splats.centres, splats.conics, faintness[..., None]], dim=-1).flatten(0, 1)


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameters: Tensor, values: Tensor, cells: Cells) -> Tensor:  # noqa: ANN401
        blended = values.new_zeros(len(cells.centres), len(cells.offsets), values.shape[1])
        monomials = _monomials(cells.offsets)
        light: list[Tensor] = []
        left = values.new_ones(0)
        steps = list(pieces(cells))
        for piece in steps:
            left = left if piece.continues else values.new_ones(len(piece.cells), len(cells.offsets), 1)
            light.append(left)
            shades = _shade(_exponents(parameters, piece, cells, monomials), left)
            blended[piece.cells] += shades.weights @ values[piece.members]
            left = shades.left
        ctx.save_for_backward(parameters, values)
        ctx.cells, ctx.steps, ctx.light = cells, steps, light
        return blended

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
        parameters, values = ctx.saved_tensors
        cells: Cells = ctx.cells
        to_parameters, to_values = torch.zeros_like(parameters), torch.zeros_like(values)
        monomials = _monomials(cells.offsets)
        behind = values.new_zeros(0)
        continued = False
        for piece, left in zip(reversed(ctx.steps), reversed(ctx.light)):
            gradient = gradients[0][piece.cells]
            behind = behind if continued else gradient.new_zeros(*gradient.shape[:2], 1)
            shades = _shade(_exponents(parameters, piece, cells, monomials), left)
            to_exponents, behind = _shade_backward(shades, gradient @ values[piece.members].mT, behind)
            members = piece.members.flatten()
            to_values.index_add_(0, members.clamp_min(0), (shades.weights.mT @ gradient).flatten(0, 1))
            moved = _exponents_backward(parameters, piece, cells, monomials.mT @ to_exponents)
            to_parameters.index_add_(0, members.clamp_min(0), moved.flatten(0, 1))
            continued = piece.continues
        return to_parameters, to_values, None


def _monomials(offsets: Float[Tensor, "p 2"]) -> Float[Tensor, "p 6"]:
    x, y = offsets.unbind(-1)
    return torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], dim=-1)


def _exponents(parameters: Tensor, piece: Piece, cells: Cells, monomials: Tensor) -> Float[Tensor, "t p k"]:
    """log(opacity) − σ at every point: a polynomial of degree 2 in the place within the cell."""
    x, y, xx, xy, yy, faintness = parameters[piece.members].unbind(-1)
    x, y = x - cells.centres[piece.cells, None, 0], y - cells.centres[piece.cells, None, 1]
    across, down = xx * x + xy * y, xy * x + yy * y
    constant = (faintness - 0.5 * (across * x + down * y)).masked_fill_(piece.members < 0, -1e4)
    return monomials @ torch.stack([constant, across, down, -0.5 * xx, -xy, -0.5 * yy], dim=1)


def _exponents_backward(parameters: Tensor, piece: Piece, cells: Cells, slopes: Tensor) -> Float[Tensor, "t k 6"]:
    """From derivatives by the polynomial's coefficients ``t 6 k`` to those by the parameters."""
    x, y, xx, xy, yy, _ = parameters[piece.members].unbind(-1)
    x, y = x - cells.centres[piece.cells, None, 0], y - cells.centres[piece.cells, None, 1]
    one, to_x, to_y, to_xx, to_xy, to_yy = slopes.unbind(1)
    right, below = to_x - one * x, to_y - one * y
    by_xx = -0.5 * to_xx + to_x * x - 0.5 * one * x * x
    by_xy = -to_xy + to_x * y + to_y * x - one * x * y
    by_yy = -0.5 * to_yy + to_y * y - 0.5 * one * y * y
    return torch.stack([xx * right + xy * below, xy * right + yy * below, by_xx, by_xy, by_yy, one], dim=-1)


@torch.no_grad()
def weights_of(splats: Splats, cells: Cells, count: int) -> tuple[Int[Tensor, "t k"], Float[Tensor, "t k"]]:
    """The ``count`` largest weights at the one point of each cell, and their Gaussians (any where the weight is 0)."""
    parameters = parameters_of(splats)
    best = parameters.new_zeros(len(cells.centres), count)
    winners = torch.zeros(len(cells.centres), count, dtype=torch.int64, device=best.device)
    left = parameters.new_ones(0)
    for piece in pieces(cells):
        left = left if piece.continues else parameters.new_ones(len(piece.cells), 1, 1)
        shades = _shade(_exponents(parameters, piece, cells, _monomials(cells.offsets)), left)
        left = shades.left
        weights = torch.cat([best[piece.cells], shades.weights[:, 0]], dim=1)
        members = torch.cat([winners[piece.cells], piece.members], dim=1)
        best[piece.cells], order = weights.topk(count, dim=1)
        winners[piece.cells] = members.gather(1, order)
    return winners, best


@dataclass(frozen=True, kw_only=True)
class _Shades:
    alphas: Float[Tensor, "t p k"]
    """0 where too faint."""
    passed: Float[Tensor, "t p k"]
    """1 − alpha."""
    arriving: Float[Tensor, "t p k"]
    """Light that reaches each Gaussian; 0 from where it has become dark."""
    weights: Float[Tensor, "t p k"]
    left: Float[Tensor, "t p 1"]
    """Light behind the last; at most `DARK` once it is dark."""


def _shade(exponents: Float[Tensor, "t p k"], left: Float[Tensor, "t p 1"]) -> _Shades:
    """How much each Gaussian weighs at each point. ``exponents`` is overwritten."""
    alphas = torch.threshold_(exponents.exp_().clamp_max_(OPAQUE), FAINTEST, 0)
    passed = 1 - alphas
    through = passed.log().cumsum_(-1).clamp_min_(-30).exp_().mul_(left)
    arriving = torch.where(through > DARK, through / passed, 0)
    return _Shades(
        alphas=alphas, passed=passed, arriving=arriving, weights=alphas * arriving, left=through[..., -1:].clone()
    )


def _shade_backward(shades: _Shades, worth: Float[Tensor, "t p k"], behind: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives by the exponents, and of all that lies behind the light that reaches the first."""
    seen = (shades.weights * worth).cumsum_(-1)
    total = seen[..., -1:] + behind
    slope = shades.arriving * worth - (total - seen) / shades.passed
    counts = (shades.arriving > 0) & (shades.alphas < OPAQUE)
    return slope.mul_(shades.alphas).mul_(counts), total
