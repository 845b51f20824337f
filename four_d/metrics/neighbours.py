"""Exact nearest neighbours of point sets by two bounding-box trees, block by block, in plain torch.

Both sets are cut at medians into leaves of nearby points. A leaf of queries visits the leaves of the other set in the
order of the distance between their boxes, and stops when no box can hold a nearer point.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Points = Float[Tensor, "n 3"]

LEAF = 64
"""Maximum number of points in a leaf."""
BLOCK = 512
"""Query leaves processed together."""


@dataclass(frozen=True, kw_only=True)
class Leaves:
    """Points cut into leaves of one size, padded with copies that are not ``real``."""

    points: Float[Tensor, "l s 3"]
    index: Int[Tensor, "l s"]
    """Index of each point in the set."""
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


def nearest_points(queries: Float[Tensor, "m 3"], points: Points) -> tuple[Float[Tensor, "m"], Int[Tensor, "m"]]:
    """Distance to and index of the nearest of ``points``, for every query. ``points`` must not be empty."""
    distance, index = k_nearest(queries, points, 1)
    return distance[:, 0], index[:, 0]


def k_nearest(queries: Float[Tensor, "m 3"], points: Points, k: int) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"]]:
    """Distances and indices of the ``k`` nearest, ascending, of at least ``k`` points. Coordinates must be finite."""
    if len(points) < k:
        raise ValueError(f"{k} neighbours among {len(points)} points; at least {k} are needed")
    distance = queries.new_empty(len(queries), k)
    index = torch.empty(len(queries), k, dtype=torch.long, device=queries.device)
    if len(queries) == 0:
        return distance, index
    tree, query_leaves = leaves(points), leaves(queries)
    for first in range(0, len(query_leaves.index), BLOCK):
        rows = slice(first, first + BLOCK)
        best, neighbour = _search(query_leaves.points[rows], query_leaves.low[rows], query_leaves.high[rows], tree, k)
        distance[query_leaves.index[rows]] = best
        index[query_leaves.index[rows]] = neighbour
    return distance, index


def _search(
    queries: Float[Tensor, "l s 3"], low: Float[Tensor, "l 3"], high: Float[Tensor, "l 3"], tree: Leaves, k: int
) -> tuple[Float[Tensor, "l s k"], Int[Tensor, "l s k"]]:
    gaps = torch.maximum(tree.low - high[:, None], low[:, None] - tree.high).clamp_min(0).norm(dim=-1)
    gaps, order = gaps.sort(dim=1)
    best = queries.new_full((*queries.shape[:2], k), torch.inf)
    neighbours = torch.zeros(best.shape, dtype=torch.long, device=queries.device)
    for step in range(len(tree.index)):
        # leaves come nearest first, so a block is done once the next is farther than its worst neighbour
        active = (gaps[:, step] <= best.amax((1, 2))).nonzero()[:, 0]
        if len(active) == 0:
            break
        leaf = order[active, step]
        # through a matrix product, cdist would lose the digits of small distances
        between = torch.cdist(queries[active], tree.points[leaf], compute_mode="donot_use_mm_for_euclid_dist")
        between = between.masked_fill(~tree.real[leaf][:, None], torch.inf)
        best[active], neighbours[active] = _merge(best[active], neighbours[active], between, tree.index[leaf])
    return best, neighbours


def _merge(
    best: Float[Tensor, "l s k"],
    neighbours: Int[Tensor, "l s k"],
    between: Float[Tensor, "l s t"],
    index: Int[Tensor, "l t"],
) -> tuple[Float[Tensor, "l s k"], Int[Tensor, "l s k"]]:
    """Merge one more leaf into the k nearest so far."""
    k = best.shape[-1]
    if k == 1:
        value, column = between.min(dim=-1, keepdim=True)
        nearer = value < best
        return torch.where(nearer, value, best), torch.where(
            nearer, index.gather(1, column[..., 0])[..., None], neighbours
        )
    candidates = torch.cat([neighbours, index[:, None].expand(-1, between.shape[1], -1)], dim=-1)
    value, column = torch.cat([best, between], dim=-1).topk(k, dim=-1, largest=False)
    return value, candidates.gather(2, column)
