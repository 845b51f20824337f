"""Outputs of a scene that is fitted to one clip, besides cameras and Gaussians."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float, Int
from torch import Tensor

from four_d.deformation.motion import NodeStates
from four_d.types import FIXED, INTERNAL, NONE, POSE, Prediction


@dataclass(frozen=True, kw_only=True)
class ScenePrediction(Prediction):
    """Prediction of a `scene.DeformableScene`: what its regularisers read, in the object's own coordinates."""

    nodes: Float[Tensor, "*b nodes 3"] | None = field(default=None, metadata=FIXED | INTERNAL)
    """Control nodes at rest."""
    node_edges: Int[Tensor, "*b e 2"] | None = field(default=None, metadata=INTERNAL)
    """Neighbours of each node, the nearest first, node by node."""
    node_times: Float[Tensor, "*b moments"] | None = field(default=None, metadata=NONE | INTERNAL)
    """The clip's distinct times in order, seconds."""
    node_quats: Float[Tensor, "*b moments nodes 4"] | None = field(default=None, metadata=FIXED | INTERNAL)
    node_shifts: Float[Tensor, "*b moments nodes 3"] | None = field(default=None, metadata=FIXED | INTERNAL)
    world_from_object: Float[Tensor, "*b 4 4"] | None = field(default=None, metadata=POSE | INTERNAL)
    """The object's own coordinates in the prediction's, the first frame's camera."""
    camera_corrections: Float[Tensor, "*b f 6"] | None = field(default=None, metadata=FIXED | INTERNAL)
    """Learned change of each frame's camera: rotation vector (radians) about the object's middle and in its axes, then
    shift along the camera's own axes, in the object's radii."""

    def states(self, index: int) -> NodeStates:
        """States of the nodes of one clip of the batch, at its `node_times`."""
        assert self.node_quats is not None
        assert self.node_shifts is not None
        return NodeStates(quats=self.node_quats[index], shifts=self.node_shifts[index])
