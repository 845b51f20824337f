"""How unreduced losses become one number."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Over = Literal["clip", "batch"]
"""What a mean is taken over. ``clip``: each clip's valid pixels, then all clips alike, those without truth as zeros;
splitting a batch over processes or accumulating gradients then changes nothing. ``batch``: all valid pixels of the
batch together, as VGGT's released code."""


def nothing(*predictions: Tensor) -> Float[Tensor, ""]:
    """Zero, with a path that gives every one of ``predictions`` the gradient zero, even where it is not finite."""
    return sum((each.flatten()[:0].sum() for each in predictions), start=predictions[0].new_zeros(()))


def grouped(values: Tensor, over: Over) -> Tensor:
    """``b …`` to ``g n``: one group per clip, or a single one."""
    return values.flatten(1) if over == "clip" else values.reshape(1, -1)


def group_mean(values: Float[Tensor, "g n"], keep: Bool[Tensor, "g n"], at_least: int = 1) -> Float[Tensor, "g"]:
    """Mean of what is kept in each group; 0 where fewer than ``at_least`` are."""
    count = keep.sum(-1)
    mean = torch.where(keep, values, 0).sum(-1) / count.clamp_min(1)
    return torch.where(count >= at_least, mean, 0)


def below_quantile(
    values: Float[Tensor, "g n"], keep: Bool[Tensor, "g n"], quantile: float, at_least: int = 1000
) -> Bool[Tensor, "g n"]:
    """Of what is kept, that strictly below the group's quantile (nearest rank).

    Groups that have, or would be left with, no more than ``at_least`` stay whole.
    """
    size = values.shape[-1]
    count = keep.sum(-1, keepdim=True)
    from_top = count - 1 - (quantile * (count - 1)).round().long()
    # Only the top is sorted: no group's rank lies deeper than that of a group with every value kept.
    deepest = min(math.ceil((1 - quantile) * (size - 1)) + 1, size)
    top = torch.where(keep, values.detach(), -torch.inf).topk(deepest, dim=-1).values
    limit = top.gather(-1, from_top.clamp(0, deepest - 1))
    below = keep & (values < limit)
    enough = (count > at_least) & (below.sum(-1, keepdim=True) > at_least)
    return torch.where(enough, below, keep)
