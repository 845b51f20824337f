"""Loss terms: their inputs, config and module."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from four_d.extension import Spec
from four_d.layers import full_precision
from four_d.losses.schedule import Weight
from four_d.losses.supervision import Need
from four_d.rendering import render
from four_d.trajectories import Trajectories, of_true_keypoints, predicted, true
from four_d.types import Clip, Prediction, Views

GRID = 16
"""Rows and columns of the default grid of query points."""


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """Inputs of all loss terms of a step. Those that only some terms need are computed on first use and cached."""

    prediction: Prediction
    targets: Clip
    step: int = 0
    """Updates done before this step."""
    progress: float = 0.0
    """Completed fraction of the run at the end of this step; 1 in validation, so that its figures are comparable."""

    @cached_property
    def views(self) -> Views | None:
        """Renders of the predicted Gaussians for the targets' held-out frames; None without either."""
        gaussians, shown = self.prediction.gaussians, self.targets.views
        if gaussians is None or shown is None or shown.cameras is None:
            return None
        return render(gaussians, shown.cameras, shown.times, (shown.images.shape[-2], shown.images.shape[-1]))

    @cached_property
    def queries(self) -> Float[Tensor, "b n 3"]:
        """Query points (frame, x, y): the clip's; without them, in the first frame, those that the model tracked, or a
        grid of `GRID` rows and columns.
        """
        if self.targets.query_points is not None:
            return self.targets.query_points
        images, tracks = self.targets.images, self.prediction.pixel_tracks
        if tracks is not None:
            return functional.pad(tracks[:, 0].detach(), (1, 0))
        y, x = (torch.arange(GRID, device=images.device) * side // GRID + 0.5 for side in images.shape[-2:])
        grid = torch.stack([*torch.meshgrid(x, y, indexing="xy")], dim=-1).flatten(0, 1)
        return functional.pad(grid.to(images), (1, 0)).expand(len(images), -1, -1)

    @cached_property
    def trajectories(self) -> dict[str, Trajectories]:
        """Predicted 3D trajectories of the points of `queries` over time (`trajectories.predicted`)."""
        with full_precision(self.targets.images.device):
            return predicted(self.prediction, self.targets, self.queries)

    @cached_property
    def true_trajectories(self) -> Trajectories | None:
        """True trajectories of `queries` (`trajectories.true`), at its own times; `trajectories.at_times` resamples."""
        return true(self.targets, self.queries)

    @cached_property
    def true_keypoints(self) -> Trajectories | None:
        """True trajectories of the targets' keypoints (`trajectories.of_true_keypoints`), in the order in which
        ``trajectories["keypoints"]`` has the predicted ones.
        """
        return of_true_keypoints(self.targets)


@runtime_checkable
class LossSpec(Spec, Protocol):
    """Config of a term, a frozen dataclass with a ``kind``."""

    needs: ClassVar[tuple[Need, ...]]
    """Ground truth without which the term is an exact 0."""
    teaches: ClassVar[tuple[str, ...]]
    """Fields of `Prediction` that get a gradient; a head none of whose outputs gets one is frozen."""
    weight: Weight
    """Factor of the term in the total loss, or its schedule."""

    def build(self) -> nn.Module:
        """Build the term: ``module(inputs: LossInputs) -> scalar``, not yet weighted."""
        ...


C = TypeVar("C")


class LossTerm(nn.Module, Generic[C]):
    """Loss term with its config. A subclass's parameters train beside the model's, and stay out of exports.

    Where truth is missing the value is an exact 0 with a gradient path to the prediction, so that all processes of a
    run exchange the same gradients.
    """

    def __init__(self, config: C) -> None:
        super().__init__()
        self.config = config

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Compute the unweighted value. UserError where the model lacks the output that the term needs."""
        raise NotImplementedError
