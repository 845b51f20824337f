"""Trajectories of one sequence as a SIREN, fitted without any model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from four_d.errors import UserError
from four_d.keypoints import check_edges
from four_d.losses.siren_pose import consistency
from four_d.losses.siren_pose.siren import Siren, SirenConfig, anchors, coded, forward_in_time, half_range
from four_d.trajectories import Trajectories


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Fit of a SIREN to trajectories: mean squared distance, and penalties of what its motion does between them."""

    network: SirenConfig = field(default_factory=lambda: SirenConfig(omega0_first=10.0))
    """Sizes and frequencies; a lower first ω₀ than SIREN's own fits noise later."""
    lr: float = 1e-3
    """First learning rate; half a cosine takes it to 0."""
    acceleration: float = 0.0
    """Weight of the mean squared second difference at the times of the trajectories, per mean interval squared."""
    bone: float = 0.0
    """Weight of the variance of log lengths of bones."""

    def __post_init__(self) -> None:
        if self.lr <= 0 or min(self.acceleration, self.bone) < 0:
            raise UserError("lr must be positive, acceleration and bone at least 0")


class SequenceSiren(nn.Module):
    """Motion of a sequence's points at any time: a SIREN of time with a learned code for each point.

    Outside the times that it was fitted to it says nothing true: a sum of sines goes on somehow.
    """

    origin: Float[Tensor, "n 1 3"]
    size: Float[Tensor, ""]
    middle: Float[Tensor, ""]
    unit: Float[Tensor, ""]

    def __init__(self, count: int, config: SirenConfig) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(count, 1, config.code))
        self.siren = Siren(config.code + 1, 3, config)
        self.register_buffer("origin", torch.zeros(count, 1, 3))
        self.register_buffer("size", torch.ones(()))
        self.register_buffer("middle", torch.zeros(()))
        self.register_buffer("unit", torch.ones(()))

    def place(self, points: Float[Tensor, "n t 3"], times: Float[Tensor, "t"], weights: Float[Tensor, "n t"]) -> None:
        """Set origin, size and range of times: each point's mean, the extent of all movements, the times' own."""
        known = points[None].to(self.origin), weights[None]
        self.origin.copy_(anchors(*known)[0])
        moved = consistency.known(known[0] - self.origin, known[1])
        total = (moved.square().sum(-1) * known[1]).sum() / known[1].sum()
        self.size.copy_(torch.where(total > 0, total.sqrt(), 1))
        middle, half = half_range(times[None].to(self.origin), torch.ones_like(times[None], dtype=torch.bool))
        self.middle.copy_(middle[0, 0])
        self.unit.copy_(half[0, 0])

    def forward(self, times: Float[Tensor, "t"]) -> Float[Tensor, "n t 3"]:
        """Compute positions at times in seconds, in the unit of what was fitted."""
        return self.origin + self.size * self.siren(self._inputs(times))

    def velocities(self, times: Float[Tensor, "t"]) -> Float[Tensor, "n t 3"]:
        """Compute velocities per second: the exact derivatives of the positions."""
        inputs = self._inputs(times)
        return self.size / self.unit * self.siren.with_rate(inputs, forward_in_time(inputs))[1]

    def _inputs(self, times: Float[Tensor, "t"]) -> Float[Tensor, "n t i"]:
        stamps = ((times.to(self.origin) - self.middle) / self.unit)[None, :, None]
        return coded(self.codes, stamps.expand(len(self.codes), -1, -1))


def fit_siren(
    trajectories: Trajectories,
    *,
    steps: int = 1000,
    edges: Int[Tensor, "e 2"] | None = None,
    config: FitConfig | None = None,
    seed: int = 0,
) -> SequenceSiren:
    """Fit a SIREN to the trajectories of one sequence (n points, t times, unbatched), by Adam.

    Each entry counts by its visibility; those that are not valid, or not finite, do not. Times may be in any order
    and repeat. The same arguments give the same network.

    Args:
        trajectories: as a model, a tracker or a triangulation gives them, with ``edges`` of their own or without.
        steps: updates.
        edges: bones of constant length; None: those of the trajectories that are rigid.
        config: network, rate and penalties.
        seed: of the initial weights.

    Raises:
        UserError: nothing is known of the trajectories, they are batched, bones are asked for and there are none, or
            ``steps`` is not positive.

    """
    config = config or FitConfig()
    if trajectories.points.ndim != 3:
        raise UserError("fit_siren takes one sequence, without a batch axis (fields.unstack); fit one after the other")
    if steps < 1:
        raise UserError(f"steps is {steps}; choose at least 1")
    known = trajectories.valid & trajectories.points.isfinite().all(-1)
    weights = torch.where(known, trajectories.visible, 0).float()
    if not bool((weights > 0).any()):
        raise UserError("nothing is known of these trajectories: no entry is valid, finite and visible")
    bones = _bones(trajectories, edges) if config.bone else weights.new_zeros(0, 2, dtype=torch.long)
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU
        torch.manual_seed(seed)
        made = SequenceSiren(len(weights), config.network)
    made = made.to(weights.device)
    made.place(trajectories.points, trajectories.times, weights)
    optimiser = torch.optim.Adam(made.parameters(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    for _ in range(steps):
        optimiser.zero_grad()
        loss_of(made, trajectories, weights, bones, config).backward()
        optimiser.step()
        schedule.step()
    return made.requires_grad_(False)


def loss_of(
    made: SequenceSiren, trajectories: Trajectories, weights: Float[Tensor, "n t"], bones: Tensor, config: FitConfig
) -> Float[Tensor, ""]:
    """Mean squared distance in units of the sequence's extent, and the penalties."""
    points = consistency.known(trajectories.points[None].to(made.origin), weights[None])
    errors = (consistency.known(made(trajectories.times)[None], weights[None]) - points).square().sum(-1)
    loss = consistency.weighted_mean(errors, weights[None]) / made.size**2
    if config.acceleration or config.bone:
        times = trajectories.times.unique()
        shape, every = made(times)[None] / made.size, weights.new_ones(1, len(weights), len(times))
        steps = times / ((times[-1] - times[0]) / max(len(times) - 1, 1)).clamp_min(1e-12)
        loss = loss + config.acceleration * consistency.acceleration(shape, steps[None], every)
        loss = loss + config.bone * consistency.bone_variance(shape, every, bones[None])
    return loss.sum()


def _bones(trajectories: Trajectories, edges: Tensor | None) -> Int[Tensor, "e 2"]:
    """Bones of constant length. UserError if there are none, or some that cannot be."""
    if edges is None and trajectories.edges is not None and trajectories.rigid is not None:
        edges = trajectories.edges[trajectories.rigid]
    if edges is None or not len(edges):
        raise UserError("bone has a weight, and there are no rigid bones; give edges, or set bone=0")
    try:
        check_edges(edges.tolist(), [str(number) for number in range(len(trajectories.points))])
    except ValueError as error:
        raise UserError(str(error)) from error
    return edges
