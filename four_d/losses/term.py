"""Loss terms: their inputs, config and module."""

from __future__ import annotations

from collections.abc import Iterable
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
from four_d.memory import without_values
from four_d.rendering import render
from four_d.trajectories import Trajectories, of_true_keypoints, predicted, true
from four_d.types import Cameras, Clip, Gaussians, Prediction, Views, widened

GRID = 16
"""Rows and columns of the default grid of query points."""


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """Inputs of all loss terms of a step. Derived ones are computed lazily and cached for the step."""

    prediction: Prediction
    """In float32 at least: tensors of half precision are converted."""
    targets: Clip
    """Truth, of which a batch marks what a clip lacks (`losses.supervision`)."""
    step: int = 0
    """Updates done before this step."""
    progress: float = 0.0
    """Completed fraction of the run at the end of this step; 1 in validation, so that its figures are comparable."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prediction", widened(self.prediction))  # the class is frozen

    @cached_property
    def views(self) -> Views | None:
        """Renders of the predicted Gaussians for the targets' held-out frames; None without either."""
        gaussians, shown = self.prediction.gaussians, self.targets.views
        if gaussians is None or shown is None or shown.cameras is None:
            return None
        return rendered(gaussians, shown.cameras, shown.times, (shown.images.shape[-2], shown.images.shape[-1]))

    @cached_property
    def own_views(self) -> Views | None:
        """Renders of the predicted Gaussians for the clip's own frames and the predicted cameras, over black; None
        without either.
        """
        gaussians, cameras, images = self.prediction.gaussians, self.prediction.cameras, self.targets.images
        if gaussians is None or cameras is None:
            return None
        return rendered(gaussians, cameras, self.targets.times, (images.shape[-2], images.shape[-1]))

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
        return predicted(self.prediction, self.targets, self.queries)

    @cached_property
    def true_trajectories(self) -> Trajectories | None:
        """True trajectories of `queries` (`trajectories.true`), at its own times; `trajectories.at_times` resamples."""
        return true(self.targets, self.queries)

    @cached_property
    def true_keypoints(self) -> Trajectories | None:
        """True trajectories of the targets' keypoints (`trajectories.of_true_keypoints`), in the order in which
        ``trajectories["keypoints"]`` has the predicted ones. UserError where a model was asked for other names.
        """
        return of_true_keypoints(self.targets)


def rendered(
    gaussians: Gaussians,
    cameras: Cameras,
    times: Float[Tensor, "b v"],
    size: tuple[int, int],
    features: Float[Tensor, "b n c"] | None = None,
) -> Views:
    """Render for a loss (`rendering.render`): checked on the CPU, and elsewhere without waiting for the device."""
    read_back = gaussians.means.device.type == "cpu" and not without_values(gaussians.means)
    return render(gaussians, cameras, times, size, features=features, read_back=read_back)


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
    run exchange the same gradients. It is called by `values_of`, in full precision.
    """

    def __init__(self, config: C) -> None:
        super().__init__()
        self.config = config

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Compute the unweighted value. UserError where the model lacks the output that the term needs."""
        raise NotImplementedError


def values_of(terms: Iterable[tuple[str, nn.Module]], inputs: LossInputs) -> dict[str, Float[Tensor, ""]]:
    """Compute the unweighted values of named terms, in full precision whatever the caller's autocast.

    Gradients are enabled, in validation too: terms may differentiate (``torch.autograd.grad``).
    """
    with full_precision(inputs.targets.images.device), torch.enable_grad():
        return {name: term(inputs) for name, term in terms}
