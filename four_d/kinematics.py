"""Velocity, acceleration and jerk of points over times that need not be evenly spaced, and lengths of bones."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def derivative(
    points: Float[Tensor, "*b t c"], times: Float[Tensor, "*#b t"], order: int
) -> Float[Tensor, "*b steps c"]:
    """Finite differences of an order ≥ 1 over neighbouring samples: order! times the divided difference.

    There are max(t − order, 0) steps, and polynomials of that degree are exact. 1 is velocity (halfway between two
    samples), 2 acceleration, 3 jerk. Times must ascend: of equal ones the result is not finite.
    """
    result, factor = points, 1
    for step in range(1, order + 1):
        result = result.diff(dim=-2) / (times[..., step:] - times[..., :-step])[..., None]
        factor *= step
    return result * factor


def between(known_times: Float[Tensor, "b t"], times: Float[Tensor, "b v"]) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the known times around each time, and its fraction of the way between them, 0 to 1.

    Known times must ascend. Before the first and after the last, the time is the nearest of them.
    """
    known_times = known_times.contiguous()
    upper = torch.searchsorted(known_times, times.to(known_times.dtype).contiguous()).clamp(0, known_times.shape[1] - 1)
    lower = (upper - 1).clamp_min(0)
    start, end = known_times.gather(1, lower), known_times.gather(1, upper)
    span = torch.where(end > start, end - start, torch.ones_like(end))
    return lower, upper, ((times - start) / span).clamp(0, 1)


def known(valid: Bool[Tensor, "*b t"], order: int) -> Bool[Tensor, "*b steps"]:
    """True where all samples of `derivative` are valid."""
    for _ in range(order):
        valid = valid[..., 1:] & valid[..., :-1]
    return valid


def at_ends(values: Float[Tensor, "*b n c"], edges: Int[Tensor, "*#b e 2"]) -> Float[Tensor, "*b e 2 c"]:
    """Values of both ends of each bone; each sample has bones of its own, or all have the same."""
    index = edges.expand(*values.shape[:-2], *edges.shape[-2:]).flatten(-2)[..., None]
    return values.gather(-2, index.expand(*index.shape[:-1], values.shape[-1])).unflatten(-2, edges.shape[-2:])


def bone_lengths(points: Float[Tensor, "*b n 3"], edges: Int[Tensor, "*#b e 2"]) -> Float[Tensor, "*b e"]:
    """Distance between both ends of each bone (`at_ends`), with a finite gradient also where it is 0."""
    one, other = at_ends(points, edges).unbind(-2)
    squared = (other - one).square().sum(-1)
    there = squared > 0
    return torch.where(there, torch.where(there, squared, 1).sqrt(), 0)
