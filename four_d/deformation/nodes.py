"""Control nodes of an object, which of them each point follows, and which are neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

NO_DISTANCE = 1e-12
"""Distance below which two places are one, relative to the largest."""
ROWS = 16_384
"""Points whose distances to all nodes are computed at once."""


@dataclass(frozen=True, kw_only=True)
class Binding:
    """Nodes that each of n points follows, in ascending order, and their shares, which sum to 1."""

    indices: Int[Tensor, "n k"]
    weights: Float[Tensor, "n k"]
    pairs: Int[Tensor, "p 2"]
    """Pairs of nodes that some point follows both, one of which is its nearest; each once."""


@torch.no_grad()
def farthest_points(points: Float[Tensor, "n 3"], count: int) -> Int[Tensor, "m"]:
    """Choose ``count`` points evenly spread over all, one after the other that which is farthest from those before.

    The first is the farthest from the middle. There are fewer where the points, or their distinct places, are.
    ValueError without points, or for a count below 1.
    """
    if not len(points) or count < 1:
        raise ValueError(f"{count} of {len(points)} points; give some, and ask for 1 or more")
    from_middle = (points - points.mean(0)).square().sum(-1)
    chosen = [from_middle.argmax()]
    nearest = (points - points[chosen[0]]).square().sum(-1)
    same = NO_DISTANCE**2 * nearest.max()
    for _ in range(min(count, len(points)) - 1):
        distance, index = nearest.max(0)
        if not distance > same:
            break
        chosen.append(index)
        nearest = torch.minimum(nearest, (points - points[index]).square().sum(-1))
    return torch.stack(chosen)


@torch.no_grad()
def bind(points: Float[Tensor, "n 3"], nodes: Float[Tensor, "m 3"], count: int = 4) -> Binding:
    """Bind each point to its ``count`` nearest nodes (all, if there are fewer), in proportion to (1 − d / d₊)².

    d₊ is the distance of the next node, as in DreamMesh4D (arXiv 2410.06756), so that a node's share falls to 0 where
    another takes its place; without a next node it is twice that of the last. These weights need no training and,
    unlike learned radii (SC-GS, arXiv 2312.14937), cannot make a node lose its points.
    """
    k = min(count, len(nodes))
    parts = [_nearest(part, nodes, min(k + 1, len(nodes))) for part in points.split(ROWS)]
    distances, indices = (torch.cat(each) for each in zip(*parts, strict=True))
    beyond = distances[:, k:] if len(nodes) > k else 2 * distances[:, -1:]
    near = distances[:, :k]
    apart = beyond > NO_DISTANCE * distances.max()
    raw = torch.where(apart, (1 - near / torch.where(apart, beyond, 1)).clamp_min(0).square(), 1)
    total = raw.sum(-1, keepdim=True)
    # all at one distance: none is nearer than the next
    even = total <= NO_DISTANCE
    weights = torch.where(even, 1 / k, raw / torch.where(even, 1, total))
    own, order = indices[:, :k].sort(dim=1)
    return bound_to(own, weights.gather(1, order))


@torch.no_grad()
def bound_to(indices: Int[Tensor, "n k"], weights: Float[Tensor, "n k"]) -> Binding:
    """Binding of points to these nodes, in ascending order, with these shares."""
    nearest = indices.gather(1, weights.argmax(1, keepdim=True)).expand_as(indices)
    pairs = torch.stack([nearest, indices], dim=-1)[nearest != indices].unique(dim=0)
    return Binding(indices=indices, weights=weights, pairs=pairs)


def _nearest(points: Float[Tensor, "n 3"], nodes: Float[Tensor, "m 3"], count: int) -> tuple[Tensor, Tensor]:
    """Distances and indices of the nearest nodes, nearest first."""
    return torch.cdist(points, nodes, compute_mode="donot_use_mm_for_euclid_dist").topk(count, dim=1, largest=False)


def edges_between(nodes: Float[Tensor, "m 3"], count: int = 8) -> Int[Tensor, "e 2"]:
    """Edges from each node to its ``count`` nearest others (all, if there are fewer), node by node."""
    k = min(count, len(nodes) - 1)
    distances = torch.cdist(nodes, nodes, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    others = distances.topk(k, dim=1, largest=False).indices
    own = torch.arange(len(nodes), device=nodes.device)[:, None].expand_as(others)
    return torch.stack([own, others], dim=-1).flatten(0, 1)
