"""Motion of nodes over time, of three kinds, each at rest when built: numbers at times, a network, six planes.

Every kind gives a node's rotation as a unit quaternion, the identity plus what it learns, normalised (DreamMesh4D,
arXiv 2410.06756), and its shift in the object's unit. Times outside those it was built for count as the nearest.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import roma
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from four_d.errors import UserError
from four_d.geometry import identity_quaternion, in_half_space, quaternion_product, rigid_part, unit_quaternions
from four_d.kinematics import between

NUMBERS = 7
"""Numbers of a state: change of the quaternion, 4, and shift, 3."""
ANCHOR = 1e-3
"""Pull of `anchored` to no rotation, beside the nodes' mean variance: places on one line do not tell a rotation."""


@dataclass(frozen=True, kw_only=True)
class NodeStates:
    """Rotations about themselves and shifts of m nodes at t times, from rest."""

    quats: Float[Tensor, "t m 4"]
    """Unit quaternions."""
    shifts: Float[Tensor, "t m 3"]


class NodeMotion(nn.Module):
    """Motion of m nodes: a module from times to their states."""

    times: Tensor

    def __init__(self, nodes: Float[Tensor, "m 3"], times: Float[Tensor, "t"]) -> None:
        """Build for nodes at these places at rest, over these times (s), which ascend.

        ValueError without times or nodes, or for times that do not ascend.
        """
        super().__init__()
        if not len(nodes) or not len(times) or not bool((times.diff() > 0).all()):
            raise ValueError(f"{len(nodes)} nodes and {len(times)} times; give some of both, times that ascend")
        self.register_buffer("times", times.to(nodes.dtype).clone())

    def raw(self, times: Float[Tensor, "s"]) -> Float[Tensor, "s m 7"]:
        """Compute what is learned (`NUMBERS`), 0 at rest, at times within those of the build."""
        raise NotImplementedError

    def forward(self, times: Float[Tensor, "s"]) -> NodeStates:
        """Give the states at any times (s)."""
        return _states(self.raw(times.to(self.times).clamp(self.times[0], self.times[-1])))

    def fraction(self, times: Float[Tensor, "s"]) -> Float[Tensor, "s"]:
        """Fraction of the way from the first time to the last, 0 to 1; 0 where they are one."""
        first, last = self.times[0], self.times[-1]
        return (times - first) / torch.where(last > first, last - first, 1)


def _states(raw: Float[Tensor, "s m 7"]) -> NodeStates:
    quats = unit_quaternions(identity_quaternion(raw) + raw[..., :4])
    return NodeStates(quats=quats, shifts=raw[..., 4:])


def anchored(nodes: Float[Tensor, "m 3"], states: NodeStates) -> NodeStates:
    """Take out of the states, at each time, the rotation and shift that fit all nodes at rest to their places best.

    A camera that turns about an object and an object that turns before a camera look the same; of the two descriptions
    this leaves the first. Rotations that the places do not tell (nodes on one line) stay. ``nodes`` are their places at
    rest, in the object's coordinates and unit, as are the shifts.
    """
    places = nodes + states.shifts
    motion = rigid_part(nodes, places, ANCHOR)
    rotation = motion[:, :3, :3]
    back = roma.quat_xyzw_to_wxyz(roma.rotmat_to_unitquat(rotation.mT))[:, None]
    shifts = (places - motion[:, None, :3, 3]) @ rotation - nodes
    return NodeStates(quats=quaternion_product(back, states.quats), shifts=shifts)


@dataclass(frozen=True, kw_only=True)
class DirectMotionConfig:
    """States at each time of the build; in between linear, rotations the shorter way and normalised."""

    kind: Literal["direct"] = "direct"

    def build(self, nodes: Float[Tensor, "m 3"], times: Float[Tensor, "t"]) -> DirectMotion:
        """Build the motion."""
        return DirectMotion(nodes, times)


class DirectMotion(NodeMotion):
    """The motion of `DirectMotionConfig`."""

    def __init__(self, nodes: Float[Tensor, "m 3"], times: Float[Tensor, "t"]) -> None:
        super().__init__(nodes, times)
        self.numbers = nn.Parameter(nodes.new_zeros(len(times), len(nodes), NUMBERS))

    def forward(self, times: Float[Tensor, "s"]) -> NodeStates:
        """Give the states at any times (s)."""
        lower, upper, fraction = (each[0] for each in between(self.times[None], times.to(self.times)[None]))
        states, share = _states(self.numbers), fraction[:, None, None]
        before, after = states.quats[lower], states.quats[upper]
        return NodeStates(
            quats=unit_quaternions(torch.lerp(before, in_half_space(after, before), share)),
            shifts=torch.lerp(states.shifts[lower], states.shifts[upper], share),
        )


@dataclass(frozen=True, kw_only=True)
class MlpMotionConfig:
    """Network of the node's place at rest and the time, both as Fourier features (SC-GS, arXiv 2312.14937)."""

    kind: Literal["mlp"] = "mlp"
    width: int = 64
    """Channels of the hidden layers."""
    depth: int = 3
    """Hidden layers."""
    time_frequencies: int = 6
    """Octaves of the time, from half a period over all times."""
    place_frequencies: int = 4
    """Octaves of the place, from half a period over the object's radius."""

    def __post_init__(self) -> None:
        _at_least(1, width=self.width, depth=self.depth)
        _at_least(0, time_frequencies=self.time_frequencies, place_frequencies=self.place_frequencies)

    def build(self, nodes: Float[Tensor, "m 3"], times: Float[Tensor, "t"]) -> MlpMotion:
        """Build the motion."""
        return MlpMotion(self, nodes, times)


def _at_least(least: int, **settings: int) -> None:
    for name, value in settings.items():
        if value < least:
            raise UserError(f"{name} is {value}; give {least} or more")


class MlpMotion(NodeMotion):
    """The motion of `MlpMotionConfig`."""

    places: Tensor

    def __init__(self, config: MlpMotionConfig, nodes: Float[Tensor, "m 3"], times: Float[Tensor, "t"]) -> None:
        super().__init__(nodes, times)
        self.config = config
        self.register_buffer("places", _fourier(_within(nodes), config.place_frequencies))
        inputs = self.places.shape[1] + 1 + 2 * config.time_frequencies
        self.network = _network(inputs, config.width, config.depth).to(nodes)

    def raw(self, times: Float[Tensor, "s"]) -> Float[Tensor, "s m 7"]:
        """Compute what is learned."""
        moments = _fourier(self.fraction(times)[:, None], self.config.time_frequencies)
        shape = (len(times), len(self.places), -1)
        inputs = torch.cat([moments[:, None].expand(shape), self.places.expand(shape)], dim=-1)
        return self.network(inputs)


def _within(nodes: Float[Tensor, "m 3"]) -> Float[Tensor, "m 3"]:
    """Places about their middle, the farthest coordinate 1."""
    centred = nodes - (nodes.amax(0) + nodes.amin(0)) / 2
    farthest = centred.abs().max()
    return centred / torch.where(farthest > 0, farthest, 1)


def _fourier(values: Float[Tensor, "*b c"], octaves: int) -> Float[Tensor, "*b features"]:
    """Values, and sines and cosines of π·2^i times them."""
    angles = values[..., None] * (math.pi * 2.0 ** torch.arange(octaves, device=values.device, dtype=values.dtype))
    return torch.cat([values, angles.sin().flatten(-2), angles.cos().flatten(-2)], dim=-1)


def _network(inputs: int, width: int, depth: int) -> nn.Sequential:
    """Hidden layers, and a last one of zeros: at rest."""
    sizes = [inputs, *[width] * depth]
    layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.SiLU())]
    last = nn.Linear(width, NUMBERS)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


@dataclass(frozen=True, kw_only=True)
class HexplaneMotionConfig:
    """Six planes of features over pairs of x, y, z and time, multiplied, and a small network (arXiv 2310.08528).

    Each of several scales has all six. Planes of the time begin as ones, so that they change nothing at first.
    """

    kind: Literal["hexplane"] = "hexplane"
    resolution: int = 16
    """Cells along x, y and z at the coarsest scale."""
    steps: int = 25
    """Cells along the time, at each scale."""
    scales: tuple[int, ...] = (1, 2)
    """Factors of ``resolution``."""
    features: int = 16
    """Features of a cell."""
    width: int = 64
    """Channels of the hidden layers."""
    depth: int = 1
    """Hidden layers of the network."""

    def __post_init__(self) -> None:
        _at_least(2, resolution=self.resolution, steps=self.steps)
        _at_least(1, features=self.features, width=self.width, depth=self.depth, scales=min(self.scales, default=0))

    def build(self, nodes: Float[Tensor, "m 3"], times: Float[Tensor, "t"]) -> HexplaneMotion:
        """Build the motion."""
        return HexplaneMotion(self, nodes, times)


class HexplaneMotion(NodeMotion):
    """The motion of `HexplaneMotionConfig`."""

    places: Tensor

    def __init__(self, config: HexplaneMotionConfig, nodes: Float[Tensor, "m 3"], times: Float[Tensor, "t"]) -> None:
        super().__init__(nodes, times)
        self.register_buffer("places", _within(nodes))
        sizes = [config.resolution * scale for scale in config.scales]
        self.spaces = nn.ParameterList(
            nn.init.uniform_(nodes.new_empty(3, config.features, size, size), 0.1, 0.5) for size in sizes
        )
        self.moments = nn.ParameterList(nodes.new_ones(3, config.features, config.steps, size) for size in sizes)
        self.network = _network(config.features * len(sizes), config.width, config.depth).to(nodes)

    def raw(self, times: Float[Tensor, "s"]) -> Float[Tensor, "s m 7"]:
        """Compute what is learned."""
        x, y, z = self.places.unbind(-1)
        pairs = torch.stack([torch.stack(pair, dim=-1) for pair in ((x, y), (x, z), (y, z))])[:, None]
        shape = (3, len(times), len(self.places))
        moment = (2 * self.fraction(times) - 1)[None, :, None].expand(shape)
        over_time = torch.stack([self.places.mT[:, None].expand(shape), moment], dim=-1)
        found = [
            _read(space, pairs).prod(0) * _read(time, over_time).prod(0)
            for space, time in zip(self.spaces, self.moments, strict=True)
        ]
        return self.network(torch.cat(found, dim=0).movedim(0, -1))


def _read(planes: Float[Tensor, "p c h w"], places: Float[Tensor, "p s m 2"]) -> Float[Tensor, "p c s m"]:
    """Features of planes at places from −1 to 1, between the centres of the outermost cells."""
    return functional.grid_sample(planes, places, align_corners=True, padding_mode="border")


MotionConfig = DirectMotionConfig | MlpMotionConfig | HexplaneMotionConfig
"""Config of any motion of nodes, chosen by its ``kind``."""
