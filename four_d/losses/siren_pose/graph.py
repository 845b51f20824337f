"""Attention over the graph of points in space and time.

SirenPose (arXiv 2512.20531) names a graph network and no more; this one is ours. Nodes are points at times; edges join
neighbours at one time, both ways, and each point with itself at the next and the previous time.

It is plain attention over a list of edges, in torch. torch-geometric would do the same with the same scatter
operations: it would spare some forty lines, and cost a dependency with compiled parts for each version of torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from four_d.errors import UserError
from four_d.layers import Mlp
from four_d.losses.dense import length
from four_d.losses.siren_pose.consistency import Edges, Points, Times, Weights, known, real

RELATION = 3 + 1 + 1 + 3
"""Numbers of an edge: difference in position, its length, difference in time, and its type out of three."""
MANY = 4.0
"""Least standard deviations σ₀ at which errors turn from squares into distances."""


@dataclass(frozen=True, kw_only=True)
class GraphConfig:
    """Sizes of the graph network. The paper gives none."""

    layers: int = 3
    """Rounds of messages: how many edges away a point hears of."""
    width: int = 128
    """Numbers of a node."""
    heads: int = 4
    """Heads of attention."""
    code: int = 16
    """Numbers that tell points apart."""
    least_sigma: float = 0.02
    """Least standard deviation of an error that it may expect, in the extent of the clip's points."""
    correction: float = 0.1
    """Weight of the squared correction, which leaves the work to the model."""

    def __post_init__(self) -> None:
        if min(self.layers, self.heads, self.code) < 1 or self.width < 1 or self.width % self.heads:
            raise UserError(f"width {self.width} must be a positive multiple of heads {self.heads}, layers at least 1")
        if self.least_sigma <= 0 or self.correction < 0:
            raise UserError("least_sigma must be positive, correction at least 0")


@dataclass(frozen=True, kw_only=True)
class Links:
    """Directed edges between the nodes of a batch, numbered (clip, point, time) in row-major order."""

    receivers: Int[Tensor, "m"]
    senders: Int[Tensor, "m"]
    relations: Float[Tensor, "m r"]
    """Sender relative to receiver (`RELATION`)."""
    strengths: Float[Tensor, "m"]
    """Weight of the sender; 0 for padding."""


def links(points: Points, times: Times, weights: Weights, edges: Edges) -> Links:
    """Edges of space and time. Points of weight 0 send nothing; ``edges`` count both ways."""
    batch, count, steps = weights.shape
    nodes = torch.arange(batch * count * steps, device=points.device).view(batch, count, steps)
    ends = nodes.gather(1, edges.flatten(1)[..., None].expand(-1, -1, steps)).unflatten(1, (-1, 2))
    sound = real(edges)[..., None].expand(-1, -1, steps)
    pairs = [
        (ends[:, :, 0], ends[:, :, 1], sound, 0),
        (ends[:, :, 1], ends[:, :, 0], sound, 0),
        (nodes[..., 1:], nodes[..., :-1], None, 1),
        (nodes[..., :-1], nodes[..., 1:], None, 2),
    ]
    receivers = torch.cat([to.flatten() for to, *_ in pairs])
    senders = torch.cat([source.flatten() for _, source, *_ in pairs])
    kinds = torch.cat([torch.full_like(to, kind).flatten() for to, _, _, kind in pairs])
    whole = torch.cat(
        [
            torch.ones_like(to, dtype=points.dtype).flatten() if some is None else some.to(points).flatten()
            for to, _, some, _ in pairs
        ]
    )
    flat, stamps = known(points, weights).flatten(0, 2), times[:, None].expand(-1, count, -1).flatten()
    apart = flat[senders] - flat[receivers]
    later = (stamps[senders] - stamps[receivers])[:, None]
    relations = torch.cat([apart, length(apart, -1)[:, None], later, functional.one_hot(kinds, 3).to(apart)], dim=-1)
    strengths = weights.flatten()[senders] * whole
    # what a point that is not known would say of itself is nothing, and has no gradient
    both = (strengths > 0) & (weights.flatten()[receivers] > 0)
    return Links(
        receivers=receivers,
        senders=senders,
        relations=torch.where(both[:, None], relations, 0),
        strengths=torch.where(both, strengths, 0),
    )


class GraphLayer(nn.Module):
    """Multi-head attention over incoming edges, then a residual update of every node."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.receiver, self.sender = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.relation = nn.Linear(RELATION, width, bias=False)
        self.logits, self.value = nn.Linear(width, heads), nn.Linear(width, width)
        self.update = Mlp(2 * width, width, width)

    def forward(self, nodes: Float[Tensor, "n c"], links: Links) -> Float[Tensor, "n c"]:
        """Update the nodes. A message is a network of both nodes and their relation."""
        plain = self.norm(nodes)
        message = self.receiver(plain)[links.receivers] + self.sender(plain)[links.senders]
        message = functional.gelu(message + self.relation(links.relations))
        shares = shares_of(self.logits(message), links, len(nodes))  # m heads
        weighed = (message.unflatten(-1, (self.heads, -1)) * shares[..., None]).flatten(1)
        heard = torch.zeros_like(nodes).index_add(0, links.receivers, weighed)
        return nodes + self.update(torch.cat([plain, self.value(heard)], dim=-1))


def shares_of(logits: Float[Tensor, "m heads"], links: Links, count: int) -> Float[Tensor, "m heads"]:
    """Softmax over each node's incoming edges, weighed by their strengths; all 0 where nothing comes in."""
    index, sound = links.receivers[:, None].expand_as(logits), links.strengths[:, None] > 0
    least = torch.full((count, logits.shape[1]), -torch.inf, dtype=logits.dtype, device=logits.device)
    most = least.scatter_reduce(0, index, torch.where(sound, logits, -torch.inf).detach(), "amax")
    # an edge without strength may be far above the others
    above = torch.where(sound, logits - torch.where(most.isfinite(), most, 0)[links.receivers], 0)
    found = above.exp() * links.strengths[:, None]
    total = torch.zeros_like(most).index_add(0, links.receivers, found)
    return found / torch.where(total > 0, total, 1)[links.receivers]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Outputs of the graph network."""

    correction: Points
    """Difference from the given to a better position."""
    excess: Float[Tensor, "b n t"]
    """Logarithm of the variance of the error, above the least one; not negative."""


class GraphNetwork(nn.Module):
    """Corrections of trajectories, and how much they may be wrong, out of what their neighbours do.

    It is equivariant to a permutation of the points (with their codes and edges), and invariant to a translation of the
    whole. At first it corrects nothing.
    """

    def __init__(self, config: GraphConfig) -> None:
        super().__init__()
        self.embed = Mlp(3 + 1 + config.code, config.width, config.width)
        self.layers = nn.ModuleList(GraphLayer(config.width, config.heads) for _ in range(config.layers))
        self.norm, self.out = nn.LayerNorm(config.width), nn.Linear(config.width, 4)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, points: Points, times: Times, weights: Weights, codes: Float[Tensor, "b n c"], edges: Edges
    ) -> Judged:
        """Compute for every node; those of weight 0 are neither read nor of any use."""
        total = weights.sum((1, 2)).clamp_min(1e-12)[:, None, None, None]
        centre = (known(points, weights) * weights[..., None]).sum((1, 2), keepdim=True) / total
        placed = torch.where(weights[..., None] > 0, points - centre, 0)
        codes = codes[:, :, None].expand(-1, -1, points.shape[2], -1)
        nodes = self.embed(torch.cat([placed, weights[..., None], codes], dim=-1)).flatten(0, 2)
        between = links(points, times, weights, edges)
        for layer in self.layers:
            nodes = layer(nodes, between)
        found = self.out(self.norm(nodes)).view(*weights.shape, 4)
        return Judged(correction=found[..., :3], excess=functional.softplus(found[..., 3]))


def judged_error(
    judged: Judged, points: Points, reference: Points, weights: Weights, least_sigma: float
) -> Float[Tensor, "b n t"]:
    """Heteroscedastic Huber error of corrected points, in the unit of the points squared; 0 at r = 0 and u = 0.

    huber(r)·e⁻ᵘ + σ₀²u, r the distance to the reference, u the excess, huber(r) = r² up to `MANY` σ₀ and linear beyond.
    Up to there it is 2σ₀² times the negative log-likelihood of r as one normal number of variance σ₀²eᵘ, above that at
    0: the u of least error is log(r² / σ₀²), not a third of r² for each of three axes.
    """
    apart = known(points + judged.correction - reference, weights)
    squared, turn = apart.square().sum(-1), MANY * least_sigma
    far = 2 * turn * length(apart, -1) - turn**2
    return torch.where(squared < turn**2, squared, far) * (-judged.excess).exp() + least_sigma**2 * judged.excess
