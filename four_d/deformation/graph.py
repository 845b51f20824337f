"""A deformation graph as one module: nodes on an object, its points' binding, and the nodes' motion."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from four_d.deformation.motion import MlpMotionConfig, MotionConfig, NodeStates, anchored
from four_d.deformation.nodes import Binding, bind, bound_to, edges_between, farthest_points
from four_d.deformation.skinning import Skinning, skin
from four_d.errors import UserError
from four_d.types import Gaussians


@dataclass(frozen=True, kw_only=True)
class DeformationConfig:
    """Deformation graph of one object (Sumner et al. 2007)."""

    nodes: int = 512
    """Number of control nodes, as in SC-GS; fewer where the object has fewer points."""
    bound: int = 4
    """Nodes that each point follows, as in DreamMesh4D."""
    neighbours: int = 8
    """Neighbours of each node, to which rigidity ties it."""
    skinning: Skinning = "dual_quaternion"
    """Blend of the nodes' motions at a point; ``hybrid``: a share ``linear`` of the linear blend."""
    linear: float = 0.5
    """Share of the linear blend in the hybrid skinning."""
    motion: MotionConfig = field(default_factory=MlpMotionConfig)
    """Motion of the nodes over time."""
    anchored: bool = False
    """Take the rigid motion of all nodes together out of theirs (`anchored`): cameras of a scene carry it, not both."""

    def __post_init__(self) -> None:
        for name in ("nodes", "bound", "neighbours"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"{name} is {value}; give 1 or more")
        if not 0 <= self.linear <= 1:
            raise UserError(f"linear is {self.linear}; give a share from 0 to 1")

    def build(self, points: Float[Tensor, "n 3"], times: Float[Tensor, "t"]) -> Deformation:
        """Build the graph of an object whose points are there at rest, over these times (s), which ascend."""
        return Deformation(self, points, times)


class Deformation(nn.Module):
    """Points of an object over time, at rest when built. Nodes and binding are buffers, the motion is trained.

    A saved one loads into one that was built of as many points, in any places, and times.
    """

    nodes: Tensor
    indices: Tensor
    weights: Tensor
    pairs: Tensor
    edges: Tensor

    def __init__(self, config: DeformationConfig, points: Float[Tensor, "n 3"], times: Float[Tensor, "t"]) -> None:
        super().__init__()
        self.config = config
        points = points.detach()
        nodes = points[farthest_points(points, config.nodes)].clone()
        binding = bind(points, nodes, config.bound)
        buffers = {
            "nodes": nodes,
            "indices": binding.indices,
            "weights": binding.weights,
            "edges": edges_between(nodes, config.neighbours),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value)
        self.register_buffer("pairs", binding.pairs, persistent=False)
        self.register_load_state_dict_post_hook(_pair)
        self.motion = config.motion.build(nodes, times)

    @property
    def binding(self) -> Binding:
        """Nodes that each point follows."""
        return Binding(indices=self.indices, weights=self.weights, pairs=self.pairs)

    def states(self, times: Float[Tensor, "t"]) -> NodeStates:
        """States of the nodes at any times (s)."""
        states = self.motion(times)
        return anchored(self.nodes, states) if self.config.anchored else states

    def forward(
        self, points: Float[Tensor, "n 3"], states: NodeStates
    ) -> tuple[Float[Tensor, "t n 3"], Float[Tensor, "t n 4"]]:
        """Give the places and turns (`skin`) of the points that it was built for, at rest at ``points``."""
        config = self.config
        return skin(points, self.nodes, self.binding, states, config.skinning, config.linear)

    @torch.no_grad()
    def follow_rows(self, former: Int[Tensor, "k"], moved: Bool[Tensor, "k"], points: Float[Tensor, "k 3"]) -> None:
        """Go on with other points: each bound as the former one of that number or, where it has ``moved``, anew."""
        indices, weights = self.indices[former], self.weights[former]
        if bool(moved.any()):
            anew = bind(points[moved], self.nodes, self.config.bound)
            indices[moved], weights[moved] = anew.indices, anew.weights.to(weights)
        self.indices, self.weights = indices, weights
        _pair(self, None)

    def deform(self, gaussians: Gaussians, times: Float[Tensor, "t"]) -> Gaussians:
        """Give unbatched Gaussians with their offsets and turns at these times (s), which ascend."""
        places, turns = self(gaussians.means, self.states(times))
        return replace(gaussians, offsets=places - gaussians.means, offset_times=times, turns=turns)


def _pair(graph: Deformation, _: object) -> None:
    """Find the pairs of nodes again, whose number depends on the binding that was loaded."""
    graph.pairs = bound_to(graph.indices, graph.weights).pairs
