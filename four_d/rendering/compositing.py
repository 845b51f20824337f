"""Front-to-back alpha compositing of ellipses in plain torch, with a hand-written backward pass.

The images are cut into cells, each with a few points and one list of Gaussians. Cells with lists of similar length are
processed together, as many as fit the cache; longer lists are split into pieces, each starting from the transmittance
of the one before. Only transmittance is kept for the backward pass, so memory is linear in the pairs of `Lists`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from four_d.constants import move
from four_d.layers import full_precision
from four_d.rendering.projection import FAINTEST, Splats

OPAQUE = 0.999
"""Maximum alpha of one Gaussian."""
DARK = 1e-4
"""Transmittance at or below which compositing ends, before the Gaussian that would reach it."""
WORK = 1 << 18
"""Numbers processed in one step: a few such tensors fit a core's cache."""


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Groups of points with a common list: the tiles of images, or single points."""

    offsets: Float[Tensor, "p 2"]
    """Offsets of a cell's points from its centre."""
    centres: Float[Tensor, "t 2"]
    members: Int[Tensor, "m"]
    """Gaussians of all lists, concatenated."""
    begins: Int[Tensor, "t"]
    ends: Int[Tensor, "t"]
    lengths: Int[Tensor, "t"]
    """Number of each list's members, on the host."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Batch of cells with a part of their lists; ``members`` is −1 beyond a list's end."""

    cells: Int[Tensor, "t"]
    members: Int[Tensor, "t k"]
    continues: bool
    """True if earlier pieces hold the beginning of the lists."""


def pieces(cells: Cells) -> Iterator[Piece]:
    """Yield all non-empty lists, about `WORK` numbers at a time; the pieces of one list follow each other."""
    lengths, longest_first = cells.lengths.sort(descending=True)
    order, sorted_lengths = move(longest_first, cells.begins.device), cast(list[int], lengths.tolist())
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
    positions_in_stretch = torch.arange(stretch, device=group.device)
    for start in range(0, longest, stretch):
        positions = begins + start + positions_in_stretch[: longest - start]
        members = cells.members[positions.clamp_max(len(cells.members) - 1)]
        yield Piece(cells=group, members=members.masked_fill(positions >= ends, -1), continues=start > 0)


def composite(
    splats: Splats, values: Float[Tensor, "i n c"], cells: Cells
) -> tuple[Float[Tensor, "t p c"], Float[Tensor, "t p"]]:
    """Composite values and alpha at every point of every cell, differentiable in the splats and the values."""
    ones = torch.ones_like(values[..., :1])
    blended = _Composite.apply(parameters_of(splats), torch.cat([values, ones], dim=-1).flatten(0, 1), cells)
    return blended[..., :-1], blended[..., -1]


def parameters_of(splats: Splats) -> Float[Tensor, "m 6"]:
    """Centre, conic and log opacity of every Gaussian, as compositing needs them."""
    # an opacity of 0 has no logarithm; anything below FAINTEST is skipped, so its value does not matter
    faintness = splats.opacities.clamp_min(FAINTEST / 2).log()
    return torch.cat([splats.centres, splats.conics, faintness[..., None]], dim=-1).flatten(0, 1)


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameters: Tensor, values: Tensor, cells: Cells) -> Tensor:  # noqa: ANN401
        blended = values.new_zeros(len(cells.centres), len(cells.offsets), values.shape[1])
        monomials = _monomials(cells.offsets)
        light: list[Tensor] = []
        transmittance = values.new_ones(0)
        steps = list(pieces(cells))
        for piece in steps:
            transmittance = (
                transmittance if piece.continues else values.new_ones(len(piece.cells), len(cells.offsets), 1)
            )
            light.append(transmittance)
            shades = _shade(_exponents(parameters, piece, cells, monomials), transmittance)
            blended[piece.cells] += shades.weights @ values[piece.members]
            transmittance = shades.transmittance
        ctx.save_for_backward(parameters, values)
        ctx.cells, ctx.steps, ctx.light = cells, steps, light
        return blended

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
        with full_precision(gradients[0].device):  # gradients may be requested under autocast
            return _Composite.derivatives(ctx, gradients[0])

    @staticmethod
    def derivatives(ctx: Any, gradient_of_blended: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
        """Derivatives with respect to the parameters and the values."""
        parameters, values = ctx.saved_tensors
        cells: Cells = ctx.cells
        to_parameters, to_values = torch.zeros_like(parameters), torch.zeros_like(values)
        monomials = _monomials(cells.offsets)
        behind = values.new_zeros(0)
        continued = False
        for piece, transmittance in zip(reversed(ctx.steps), reversed(ctx.light)):
            gradient = gradient_of_blended[piece.cells]
            behind = behind if continued else gradient.new_zeros(*gradient.shape[:2], 1)
            shades = _shade(_exponents(parameters, piece, cells, monomials), transmittance)
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
    """Compute log(opacity) − σ at every point: a polynomial of degree 2 in the position within the cell."""
    x, y, xx, xy, yy, faintness = parameters[piece.members].unbind(-1)
    x, y = x - cells.centres[piece.cells, None, 0], y - cells.centres[piece.cells, None, 1]
    across, down = xx * x + xy * y, xy * x + yy * y
    constant = (faintness - 0.5 * (across * x + down * y)).masked_fill_(piece.members < 0, -1e4)
    return monomials @ torch.stack([constant, across, down, -0.5 * xx, -xy, -0.5 * yy], dim=1)


def _exponents_backward(parameters: Tensor, piece: Piece, cells: Cells, slopes: Tensor) -> Float[Tensor, "t k 6"]:
    """Convert derivatives by the polynomial's coefficients ``t 6 k`` to those by the parameters."""
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
    """Find the ``count`` largest weights at each cell's single point, and their Gaussians (arbitrary for weight 0)."""
    parameters = parameters_of(splats)
    best = parameters.new_zeros(len(cells.centres), count)
    winners = torch.zeros(len(cells.centres), count, dtype=torch.int64, device=best.device)
    transmittance = parameters.new_ones(0)
    for piece in pieces(cells):
        transmittance = transmittance if piece.continues else parameters.new_ones(len(piece.cells), 1, 1)
        shades = _shade(_exponents(parameters, piece, cells, _monomials(cells.offsets)), transmittance)
        transmittance = shades.transmittance
        weights = torch.cat([best[piece.cells], shades.weights[:, 0]], dim=1)
        members = torch.cat([winners[piece.cells], piece.members], dim=1)
        best[piece.cells], order = weights.topk(count, dim=1)
        winners[piece.cells] = members.gather(1, order)
    return winners, best


@dataclass(frozen=True, kw_only=True)
class _Shades:
    alphas: Float[Tensor, "t p k"]
    """0 where too faint."""
    transmitted: Float[Tensor, "t p k"]
    """1 − alpha."""
    arriving: Float[Tensor, "t p k"]
    """Transmittance in front of each Gaussian; 0 once it is dark."""
    weights: Float[Tensor, "t p k"]
    transmittance: Float[Tensor, "t p 1"]
    """Transmittance behind the last; at most `DARK` once it is dark."""


def _shade(exponents: Float[Tensor, "t p k"], transmittance: Float[Tensor, "t p 1"]) -> _Shades:
    """Compute the blending weight of each Gaussian at each point. ``exponents`` is overwritten."""
    alphas = torch.threshold_(exponents.exp_().clamp_max_(OPAQUE), FAINTEST, 0)
    transmitted = 1 - alphas
    through = transmitted.log().cumsum_(-1).clamp_min_(-30).exp_().mul_(transmittance)
    arriving = torch.where(through > DARK, through / transmitted, 0)
    return _Shades(
        alphas=alphas,
        transmitted=transmitted,
        arriving=arriving,
        weights=alphas * arriving,
        transmittance=through[..., -1:].clone(),
    )


def _shade_backward(shades: _Shades, value_gradients: Float[Tensor, "t p k"], behind: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives with respect to the exponents, and to the transmittance in front of the first."""
    accumulated = (shades.weights * value_gradients).cumsum_(-1)
    total = accumulated[..., -1:] + behind
    slope = shades.arriving * value_gradients - (total - accumulated) / shades.transmitted
    counts = (shades.arriving > 0) & (shades.alphas < OPAQUE)
    return slope.mul_(shades.alphas).mul_(counts), total
