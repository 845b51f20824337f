"""Reduction of unreduced losses to one number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from four_d.errors import UserError

Over = Literal["clip", "batch"]
"""Domain of a mean. ``clip``: each clip's valid pixels, then all clips alike, those without truth as zeros;
splitting a batch over processes or accumulating gradients then changes nothing. ``batch``: all valid pixels of the
batch together, as VGGT's released code."""


def nothing(*tensors: Tensor) -> Float[Tensor, ""]:
    """Zero, with a path that gives every one of ``tensors`` the gradient zero, even where it is not finite."""
    return sum((each.flatten()[:0].sum() for each in tensors), start=tensors[0].new_zeros(()))


def weighted(parts: Iterable[tuple[float, Float[Tensor, "*b"]]], start: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Sum of ``start`` and (weight, value) products. A value of weight 0 is left out: even NaN cannot spoil the sum."""
    return sum((weight * value for weight, value in parts if weight), start=start)


def grouped(values: Tensor, over: Over) -> Tensor:
    """``b …`` to ``g n``: one group per clip, or a single one."""
    return values.flatten(1) if over == "clip" else values.reshape(1, -1)


def group_mean(values: Float[Tensor, "g n"], keep: Bool[Tensor, "g n"], at_least: int = 1) -> Float[Tensor, "g"]:
    """Mean of the kept values of each group; 0 where fewer than ``at_least`` are."""
    count = keep.sum(-1)
    mean = torch.where(keep, values, 0).sum(-1) / count.clamp_min(1)
    return torch.where(count >= at_least, mean, 0)


def kept_mean(values: Float[Tensor, "b *n"], keep: Bool[Tensor, "b *n"], over: Over) -> Float[Tensor, ""]:
    """Mean of the kept values of each group (`grouped`), then of the groups; 0 where none is kept."""
    return group_mean(grouped(values, over), grouped(keep, over)).mean()


def cross_entropy(logits: Float[Tensor, "*b"], truth: Bool[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Negative log-probability of the truth, with a gradient even where a wrong logit saturates."""
    return functional.softplus(torch.where(truth, -logits, logits))


def check_balance(balance: float) -> None:
    """Raise UserError unless the share of what moves (`balanced`) is at least 0 and below 1."""
    if not 0 <= balance < 1:
        raise UserError(f"balance is {balance}; choose a share of 1, or 0 for none")


def balanced(
    mean: Callable[[Bool[Tensor, "*b"]], Float[Tensor, ""]],
    keep: Bool[Tensor, "*b"],
    moves: Bool[Tensor, "*b"],
    balance: float,
) -> Float[Tensor, ""]:
    """``mean`` of the kept values that move, of weight ``balance`` however few they are, plus that of the others; with
    a balance of 0 that of all alike.
    """
    if not balance:
        return mean(keep)
    return balance * mean(keep & moves) + (1 - balance) * mean(keep & ~moves)


def below_quantile(
    values: Float[Tensor, "g n"], keep: Bool[Tensor, "g n"], quantile: float, at_least: int = 1000
) -> Bool[Tensor, "g n"]:
    """Restrict ``keep`` to values strictly below the group's quantile (nearest rank).

    Groups that have, or would be left with, no more than ``at_least`` values stay whole.
    """
    size = values.shape[-1]
    count = keep.sum(-1, keepdim=True)
    from_top = count - 1 - (quantile * (count - 1)).round().long()
    # Only the top is sorted: no group's rank is deeper than that of a group with every value kept.
    deepest = min(math.ceil((1 - quantile) * (size - 1)) + 1, size)
    top = torch.where(keep, values.detach(), -torch.inf).topk(deepest, dim=-1).values
    limit = top.gather(-1, from_top.clamp(0, deepest - 1))
    below = keep & (values < limit)
    enough = (count > at_least) & (below.sum(-1, keepdim=True) > at_least)
    return torch.where(enough, below, keep)
