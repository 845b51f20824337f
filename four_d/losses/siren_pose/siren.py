"""SIREN: networks of sines that give positions over time, and their velocities exactly.

SIREN is of arXiv 2006.09661. The networks here are functions of a point's code and of time, which runs from −1 to 1;
which clip is meant comes in as phases (FiLM without scales). With the code an input among n, and not a phase, time gets
1/n of the first layer's weights: a network that fits slow things first, and noise late (docs/siren_pose.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from four_d.errors import UserError
from four_d.layers import Mlp
from four_d.losses.siren_pose.codes import Names, PointCode
from four_d.losses.siren_pose.consistency import Points, Weights, known


@dataclass(frozen=True, kw_only=True)
class SirenConfig:
    """Sizes and frequencies of a SIREN. The paper gives none; ω₀ is that of SIREN's own."""

    layers: int = 3
    """Layers of sines; a linear one follows."""
    width: int = 128
    """Units of each of them."""
    omega0_first: float = 30.0
    """Factor ω₀ of the first layer's argument: the larger, the faster the motion that is fitted early."""
    omega0_hidden: float = 30.0
    """Factor of the other layers' arguments; weights begin smaller by as much, and learn as much faster."""
    code: int = 16
    """Numbers that tell points apart."""
    clip_code: int = 32
    """Numbers that tell clips apart, in the amortised network."""

    def __post_init__(self) -> None:
        if min(self.layers, self.width, self.code, self.clip_code) < 1:
            raise UserError("layers, width, code and clip_code must be at least 1")
        if min(self.omega0_first, self.omega0_hidden) <= 0:
            raise UserError("omega0_first and omega0_hidden must be positive")


class Siren(nn.Module):
    """hₗ₊₁ = sin(ω₀(Whₗ + b) + φₗ), then a linear layer; the phases φ are a linear function of a code.

    Initialised as published: weights U(±1/n) in the first layer, U(±√(6/n)/ω₀) in the others, n inputs each, so that
    every layer's outputs have about the arcsine distribution, whose standard deviation is 0.71.
    """

    def __init__(self, inputs: int, outputs: int, config: SirenConfig, codes: int = 0) -> None:
        super().__init__()
        self.omegas = (config.omega0_first, *[config.omega0_hidden] * (config.layers - 1))
        widths = [inputs, *[config.width] * config.layers]
        self.sines = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(widths))
        self.out = nn.Linear(config.width, outputs)
        self.phases = nn.Linear(codes, config.layers * config.width, bias=False) if codes else None
        hidden = (6 / config.width) ** 0.5 / config.omega0_hidden
        for number, layer in enumerate((*self.sines, self.out)):
            bound = 1 / inputs if number == 0 else hidden
            nn.init.uniform_(cast(nn.Linear, layer).weight, -bound, bound)

    def forward(self, x: Float[Tensor, "*b i"], code: Float[Tensor, "*#b c"] | None = None) -> Float[Tensor, "*b o"]:
        """Compute the outputs. ``code`` broadcasts against ``x``."""
        for layer, omega, phase in zip(self.sines, self.omegas, self._phases(code), strict=True):
            x = (omega * layer(x) + phase).sin()
        return self.out(x)

    def with_rate(
        self, x: Float[Tensor, "*b i"], rate: Float[Tensor, "*b i"], code: Float[Tensor, "*#b c"] | None = None
    ) -> tuple[Float[Tensor, "*b o"], Float[Tensor, "*b o"]]:
        """Compute the outputs and their derivative along ``rate``: d f(x + s·rate) / ds at s = 0.

        By the chain rule, layer by layer: ḣₗ₊₁ = cos(ω₀(Whₗ + b) + φₗ) · ω₀Wḣₗ, a SIREN with shifted phases. It equals
        torch's autograd (a test) without a second backward pass, and works in inference mode, where runs are validated.
        """
        for layer, omega, phase in zip(self.sines, self.omegas, self._phases(code), strict=True):
            argument = omega * layer(x) + phase
            rate = argument.cos() * (omega * functional.linear(rate, cast(nn.Linear, layer).weight))
            x = argument.sin()
        return self.out(x), functional.linear(rate, self.out.weight)

    def _phases(self, code: Tensor | None) -> Sequence[Tensor | float]:
        """Phases of each layer."""
        if self.phases is None or code is None:
            return [0.0] * len(self.omegas)
        return self.phases(code).chunk(len(self.omegas), dim=-1)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Positions and velocities that a SIREN gives."""

    points: Points
    """At every time."""
    velocities: Float[Tensor, "b n s 3"]
    """At the middles between neighbouring times, of which there is one fewer; per unit of normalised time."""


def half_range(times: Float[Tensor, "b t"], real: Bool[Tensor, "b t"]) -> tuple[Tensor, Tensor]:
    """Middle of each clip's times and half their range, b 1 each; 1 for a range of 0."""
    first = torch.where(real, times, torch.inf).amin(-1, keepdim=True)
    last = torch.where(real, times, -torch.inf).amax(-1, keepdim=True)
    middle, half = (first + last) / 2, (last - first) / 2
    return torch.where(middle.isfinite(), middle, 0), torch.where((half > 0) & half.isfinite(), half, 1)


def anchors(points: Points, weights: Weights) -> Float[Tensor, "b n 1 3"]:
    """Each point's weighted mean position over time, without gradient."""
    weights = weights[..., None]
    total = (known(points, weights[..., 0]).detach() * weights).sum(2, keepdim=True)
    return total / torch.where(weights > 0, weights, 0).sum(2, keepdim=True).clamp_min(1e-12)


class AmortisedSiren(nn.Module):
    """SIREN for clips never seen, of each point's code and of time, its phases a function of a code of the clip.

    That code is the mean of a small network's outputs over all points and times, so that it holds how things move
    and not where each point is at each time: what the SIREN makes of it is smooth.
    """

    def __init__(self, config: SirenConfig, *, named: bool = False) -> None:
        super().__init__()
        self.point = PointCode(config.code, named=named)
        self.clip = Mlp(3 + 1 + config.code, 2 * config.width, config.clip_code)
        self.siren = Siren(config.code + 1, 3, config, codes=config.clip_code)

    def forward(
        self,
        points: Points,
        times: Float[Tensor, "b t"],
        weights: Weights,
        origin: Float[Tensor, "b n 1 3"],
        names: Names | None = None,
    ) -> Fitted:
        """Compute positions and velocities out of trajectories, which get no gradient.

        Args:
            points: trajectories that the codes are made of.
            times: normalised to −1 … 1.
            weights: 0 where a point is not known.
            origin: where the SIREN's displacements begin.
            names: of the points, where they have some.

        """
        points = known(points, weights).detach()
        place = self.point(points, weights, names)[:, :, None]
        moved = torch.where(weights[..., None] > 0, points - anchors(points, weights), 0)
        stamps = times[:, None, :, None].expand_as(moved[..., :1])
        features = self.clip(torch.cat([moved, stamps, place.expand(-1, -1, times.shape[1], -1)], dim=-1))
        total = (features * weights[..., None]).sum((1, 2)) / weights.sum((1, 2)).clamp_min(1e-12)[:, None]
        code = total[:, None, None]
        places = self.siren(coded(place, stamps), code)
        middles = coded(place, (stamps[:, :, 1:] + stamps[:, :, :-1]) / 2)
        rates = self.siren.with_rate(middles, forward_in_time(middles), code)[1]
        return Fitted(points=origin + places, velocities=rates)


def coded(codes: Float[Tensor, "*b n 1 c"], times: Float[Tensor, "*b n t 1"]) -> Float[Tensor, "*b n t i"]:
    """Inputs of a SIREN: each point's code, then the time."""
    return torch.cat([codes.expand(*times.shape[:-1], -1), times], dim=-1)


def forward_in_time(inputs: Float[Tensor, "*b i"]) -> Float[Tensor, "*b i"]:
    """Direction of time among the inputs (`coded`)."""
    return (torch.arange(inputs.shape[-1], device=inputs.device) == inputs.shape[-1] - 1).to(inputs).expand_as(inputs)
