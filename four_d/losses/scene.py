"""Regularisers of a scene that is fitted to one clip: rigidity, smoothness, and trust in the cameras given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from four_d.deformation import edges_between, rigidity, smoothness
from four_d.deformation.prediction import ScenePrediction
from four_d.errors import UserError
from four_d.losses.schedule import Weight
from four_d.losses.supervision import Need
from four_d.losses.term import LossInputs, LossSpec, LossTerm
from four_d.types import Prediction


def scene_of(prediction: Prediction, loss: str) -> ScenePrediction:
    """Outputs of a fitted scene. UserError for another model's."""
    if not isinstance(prediction, ScenePrediction) or prediction.nodes is None:
        raise UserError(f"the {loss} loss is for a scene (model.kind=scene), which is fitted to one clip; remove it")
    return prediction


@dataclass(frozen=True, kw_only=True)
class RigidityLossConfig(LossSpec):
    """Energy that moves the control nodes as rigidly as possible at the step's times (`deformation.rigidity`).

    Node neighbourhoods shrink over the run from ``neighbours`` to ``least``, so that limbs may bend late (Lab4D's way).
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    teaches: ClassVar[tuple[str, ...]] = ("gaussians",)
    kind: Literal["rigidity"] = "rigidity"
    weight: Weight = 1.0
    neighbours: int = 16
    """Neighbours of a node at the beginning."""
    least: int = 4
    """Neighbours of a node at the end."""
    smooth: float = 0.0
    """Weight of the mean squared acceleration of the nodes, in radii per interval², where a step has three times."""

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.neighbours or self.smooth < 0:
            raise UserError("choose 1 ≤ least ≤ neighbours, and smooth at least 0")

    def build(self) -> RigidityLoss:
        """Build the term."""
        return RigidityLoss(self)


class RigidityLoss(LossTerm[RigidityLossConfig]):
    """The term of `RigidityLossConfig`."""

    def __init__(self, config: RigidityLossConfig) -> None:
        super().__init__(config)
        self._found: tuple[int, Tensor, Tensor] | None = None

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Compute the term. UserError for a model that is no scene."""
        scene, config = scene_of(inputs.prediction, self.config.kind), self.config
        count = round(config.neighbours + inputs.progress * (config.least - config.neighbours))
        assert scene.nodes is not None
        assert scene.node_times is not None
        values: list[Tensor] = []
        for index, (nodes, times) in enumerate(zip(scene.nodes, scene.node_times, strict=True)):
            states = scene.states(index)
            value = rigidity(nodes, states, self.edges(nodes, count))
            if config.smooth and len(times) > 2:
                steps = times / times.diff().mean()
                value = value + config.smooth * smoothness(states, steps)
            values.append(value)
        return torch.stack(values).mean()

    def edges(self, nodes: Float[Tensor, "m 3"], count: int) -> Int[Tensor, "e 2"]:
        """Edges between neighbours, found anew only for other nodes or another number."""
        if self._found is None or self._found[0] != count or not torch.equal(self._found[1], nodes):
            self._found = count, nodes.detach().clone(), edges_between(nodes, count)
        return self._found[2]


@dataclass(frozen=True, kw_only=True)
class CameraPriorLossConfig(LossSpec):
    """Squared length of the learned corrections of cameras: radians, and shifts in radii of the object."""

    needs: ClassVar[tuple[Need, ...]] = ()
    teaches: ClassVar[tuple[str, ...]] = ("cameras",)
    kind: Literal["camera_prior"] = "camera_prior"
    weight: Weight = 0.1
    """0.1: Lab4D's."""

    def build(self) -> CameraPriorLoss:
        """Build the term."""
        return CameraPriorLoss(self)


class CameraPriorLoss(LossTerm[CameraPriorLossConfig]):
    """The term of `CameraPriorLossConfig`."""

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Compute the term. UserError for a model that is no scene."""
        corrections = scene_of(inputs.prediction, self.config.kind).camera_corrections
        assert corrections is not None
        return corrections.square().sum(-1).mean()
