"""Exact nearest neighbours of point sets: two trees of boxes, compared block by block. No library beyond torch.

Both sets are cut at medians into leaves of nearby points. A leaf of queries looks through the leaves of the other set
in the order of the distance between their boxes, and stops where no box can hold anything nearer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Points = Float[Tensor, "n 3"]

LEAF = 64
"""Most points of a leaf."""
BLOCK = 512
"""Query leaves looked at together."""


@dataclass(frozen=True, kw_only=True)
class Leaves:
    """Points cut into leaves of one size; what is missing for that is filled up with copies that are not ``real``."""

    points: Float[Tensor, "l s 3"]
    index: Int[Tensor, "l s"]
    """Place of each point in the set."""
    real: Bool[Tensor, "l s"]
    low: Float[Tensor, "l 3"]
    high: Float[Tensor, "l 3"]


def leaves(points: Points) -> Leaves:
    """Cut a set at the median of each part's longest side until no part has more than `LEAF` points."""
    count, parts = len(points), 1
    while parts * LEAF < count:
        parts *= 2
    size = -(-count // parts)
    index = torch.arange(parts * size, device=points.device)
    real = index < count
    index = torch.where(real, index, index % max(count, 1))[None]
    real = real[None]
    while len(index) < parts:
        index, real = _halve(points, index, real)
    cut = points[index]
    return Leaves(points=cut, index=index, real=real, low=cut.amin(1), high=cut.amax(1))


def _halve(
    points: Points, index: Int[Tensor, "p s"], real: Bool[Tensor, "p s"]
) -> tuple[Int[Tensor, "q t"], Bool[Tensor, "q t"]]:
    cut = points[index]
    axis = (cut.amax(1) - cut.amin(1)).argmax(-1)
    along = cut.gather(2, axis[:, None, None].expand(-1, cut.shape[1], 1))[..., 0]
    order = along.argsort(dim=1)
    index, real = index.gather(1, order), real.gather(1, order)
    return index.reshape(2 * len(index), -1), real.reshape(2 * len(real), -1)


def nearest(queries: Float[Tensor, "m 3"], points: Points) -> tuple[Float[Tensor, "m"], Int[Tensor, "m"]]:
    """Distance to the nearest of ``points`` and its index, for every query. ``points`` must not be empty."""
    distance, index = k_nearest(queries, points, 1)
    return distance[:, 0], index[:, 0]


def k_nearest(queries: Float[Tensor, "m 3"], points: Points, k: int) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"]]:
    """The ``k`` nearest, nearest first; ``points`` has at least ``k``. Finite coordinates; exact in their precision."""
    if len(points) < k:
        raise ValueError(f"{k} neighbours among {len(points)} points; at least {k} are needed")
    distance = queries.new_empty(len(queries), k)
    index = torch.empty(len(queries), k, dtype=torch.long, device=queries.device)
    if len(queries) == 0:
        return distance, index
    tree, asked = leaves(points), leaves(queries)
    for first in range(0, len(asked.index), BLOCK):
        part = slice(first, first + BLOCK)
        best, found = _search(asked.points[part], asked.low[part], asked.high[part], tree, k)
        distance[asked.index[part]] = best
        index[asked.index[part]] = found
    return distance, index


def _search(
    queries: Float[Tensor, "l s 3"], low: Float[Tensor, "l 3"], high: Float[Tensor, "l 3"], tree: Leaves, k: int
) -> tuple[Float[Tensor, "l s k"], Int[Tensor, "l s k"]]:
    gaps = torch.maximum(tree.low - high[:, None], low[:, None] - tree.high).clamp_min(0).norm(dim=-1)
    gaps, order = gaps.sort(dim=1)
    best = queries.new_full((*queries.shape[:2], k), torch.inf)
    found = torch.zeros(best.shape, dtype=torch.long, device=queries.device)
    for step in range(len(tree.index)):
        active = (gaps[:, step] <= best.amax((1, 2))).nonzero()[:, 0]
        if len(active) == 0:
            break
        leaf = order[active, step]
        between = torch.cdist(queries[active], tree.points[leaf], compute_mode="donot_use_mm_for_euclid_dist")
        between = between.masked_fill(~tree.real[leaf][:, None], torch.inf)
        best[active], found[active] = _merge(best[active], found[active], between, tree.index[leaf])
    return best, found


def _merge(
    best: Float[Tensor, "l s k"],
    found: Int[Tensor, "l s k"],
    between: Float[Tensor, "l s t"],
    index: Int[Tensor, "l t"],
) -> tuple[Float[Tensor, "l s k"], Int[Tensor, "l s k"]]:
    """The k least of those known and those of one more leaf."""
    k = best.shape[-1]
    if k == 1:
        value, place = between.min(dim=-1, keepdim=True)
        nearer = value < best
        return torch.where(nearer, value, best), torch.where(nearer, index.gather(1, place[..., 0])[..., None], found)
    names = torch.cat([found, index[:, None].expand(-1, between.shape[1], -1)], dim=-1)
    value, place = torch.cat([best, between], dim=-1).topk(k, dim=-1, largest=False)
    return value, names.gather(2, place)
