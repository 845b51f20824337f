"""Supervision of Gaussians besides images: depth and motion (DGS-LRM, arXiv 2506.09997).

The paper's weights are 10 and 10; the norms of both terms are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from four_d.errors import UserError
from four_d.geometry import invert_pose
from four_d.losses.dense import length
from four_d.losses.motion import motion_rows
from four_d.losses.photometric import required, untouched
from four_d.losses.reduction import balanced, check_balance, group_mean
from four_d.losses.schedule import Weight
from four_d.losses.supervision import Need, frames_with_cameras
from four_d.losses.term import LossInputs, LossSpec, LossTerm
from four_d.rendering.scene import means_at
from four_d.surface import LEAST_MOTION
from four_d.types import Gaussians, Prediction, same_time

NEAREST = 0.01
"""Depth (clip units) below which logarithm and disparity continue linearly, also behind the camera."""
FAINTEST = 1e-4
"""Opacity, and transparency, below which the entropy of an opacity is not followed."""
Space = Literal["log", "disparity"]


def with_key_frames(prediction: Prediction, loss: str) -> tuple[Gaussians, Int[Tensor, "b k"]]:
    """Gaussians and their key frames. UserError where the model has none."""
    gaussians, frames = required(prediction, loss), prediction.key_frames
    if frames is None:
        raise UserError(f"the {loss} loss needs to know key frames; let the head set Prediction.key_frames")
    return gaussians, frames


def of_key_frames(values: Tensor, frames: Int[Tensor, "b k"], axis: int = 1) -> Tensor:
    """Select each clip's key frames from values with frames along ``axis``."""
    return torch.stack([each.index_select(axis - 1, index) for each, index in zip(values, frames, strict=True)])


def own_offsets(gaussians: Gaussians, times: Float[Tensor, "b k"]) -> Float[Tensor, "b n 3"]:
    """Each Gaussian's offset at the time of its key frame; ``times`` are the key frames'."""
    each = offsets_at(gaussians, times).unflatten(2, (times.shape[1], -1))
    return each.diagonal(dim1=1, dim2=2).movedim(-1, 1).flatten(1, 2)


def offsets_at(gaussians: Gaussians, times: Float[Tensor, "b v"]) -> Float[Tensor, "b v n 3"]:
    """Offsets at any times; 0 for static Gaussians."""
    return means_at(replace(gaussians, means=torch.zeros_like(gaussians.means)), times)


def in_space(depth: Float[Tensor, "*b"], space: Space) -> Float[Tensor, "*b"]:
    """Map z to log z or 1 / z; below `NEAREST` along the tangent there, so that every depth has a gradient."""
    safe = depth.clamp_min(NEAREST)
    below = (depth - NEAREST).clamp_max(0) / NEAREST
    return safe.log() + below if space == "log" else (1 / safe) - below / NEAREST


@dataclass(frozen=True, kw_only=True)
class GaussianDepthLossConfig(LossSpec):
    """|error| of the z-depth that each Gaussian has in its key frame at that frame's time.

    Its position is the one rendered then: mean plus offset. Cameras are the targets'. Each clip's pixels are
    averaged first, then the clips.
    """

    needs: ClassVar[tuple[Need, ...]] = ("cameras", "depth")
    teaches: ClassVar[tuple[str, ...]] = ("gaussians",)
    kind: Literal["gaussian_depth"] = "gaussian_depth"
    weight: Weight = 10.0
    space: Space = "log"
    """Space of errors: log depth (relative errors, near 0), or disparity (1 / clip unit)."""

    def build(self) -> GaussianDepthLoss:
        """Build the term."""
        return GaussianDepthLoss(self)


class GaussianDepthLoss(LossTerm[GaussianDepthLossConfig]):
    """The term of `GaussianDepthLossConfig`."""

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Compute the term. UserError without Gaussians; 0 without true depth and cameras."""
        prediction, targets = inputs.prediction, inputs.targets
        gaussians, frames = with_key_frames(prediction, self.config.kind)
        if targets.depth is None or targets.valid is None or targets.cameras is None:
            return untouched(gaussians)
        poses = of_key_frames(targets.cameras.world_from_camera, frames).to(gaussians.means)
        places = gaussians.means + own_offsets(gaussians, of_key_frames(targets.times, frames))
        known = targets.valid & frames_with_cameras(targets)[..., None, None]
        truth, valid = (of_key_frames(each, frames).flatten(2) for each in (targets.depth, known))
        check_count(places, truth.shape[1:])
        depth = depths(places.unflatten(1, truth.shape[1:]), poses)
        errors = (in_space(depth, self.config.space) - in_space(truth.to(depth), self.config.space)).abs()
        return group_mean(errors.flatten(1), valid.flatten(1)).mean() + untouched(gaussians)


def depths(points: Float[Tensor, "b k p 3"], world_from_camera: Float[Tensor, "b k 4 4"]) -> Float[Tensor, "b k p"]:
    """Depth z of world points in each frame's camera."""
    camera_from_world = invert_pose(world_from_camera)
    return (points @ camera_from_world[..., 2, :3, None])[..., 0] + camera_from_world[..., 2, 3, None]


def check_count(places: Float[Tensor, "b n 3"], expected: torch.Size) -> None:
    """Raise UserError where there is not one Gaussian per pixel of each key frame (k, p)."""
    if places.shape[1] != expected.numel():
        raise UserError(
            f"there are {places.shape[1]} Gaussians for {expected[0]} key frames of {expected[1]} pixels; the losses "
            f"of Gaussians need one per pixel"
        )


@dataclass(frozen=True, kw_only=True)
class GaussianFlowLossConfig(LossSpec):
    """Distance from predicted to true motion of the key frames' pixels, in the clip's unit.

    Motion is from the key frame's own time to every other query time that Gaussians have an offset at, even where the
    point is not visible then. Each clip is averaged first, then the clips.
    """

    needs: ClassVar[tuple[Need, ...]] = ("motion",)
    teaches: ClassVar[tuple[str, ...]] = ("gaussians",)
    kind: Literal["gaussian_flow"] = "gaussian_flow"
    weight: Weight = 10.0
    huber: float = 0.0
    """Threshold of the Huber loss: distances below count as d² / (2 · huber), above as d − huber / 2; 0: all as d."""
    balance: float = 0.0
    """Fraction of the total weight for moving pixels, however few; 0: all pixels count alike."""

    def __post_init__(self) -> None:
        check_balance(self.balance)
        if self.huber < 0:
            raise UserError(f"huber is {self.huber}; choose a distance above 0, or 0 for none")

    def build(self) -> GaussianFlowLoss:
        """Build the term."""
        return GaussianFlowLoss(self)


class GaussianFlowLoss(LossTerm[GaussianFlowLossConfig]):
    """The term of `GaussianFlowLossConfig`."""

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Compute the term. UserError without Gaussians; 0 without true motion. Without offsets it has no gradient."""
        prediction, targets = inputs.prediction, inputs.targets
        gaussians, frames = with_key_frames(prediction, self.config.kind)
        if targets.motion is None or targets.motion_valid is None or targets.query_times is None:
            return untouched(gaussians)
        own, rows = of_key_frames(targets.times, frames), motion_rows(targets, frames)
        truth = of_key_frames(targets.motion, rows, axis=2).flatten(3, 4).to(gaussians.means)
        check_count(gaussians.means, truth.shape[2:4])
        moved = offsets_at(gaussians, targets.query_times) - own_offsets(gaussians, own)[:, None]
        errors = self.limited(length(moved.unflatten(2, truth.shape[2:4]) - truth, -1))
        valid = of_key_frames(targets.motion_valid, rows, axis=2).flatten(3)
        keep = valid & known_queries(gaussians, targets.query_times, own)[..., None]
        return self.reduce(errors, keep, length(truth, -1) > LEAST_MOTION) + untouched(gaussians)

    def limited(self, errors: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Apply the Huber function to distances."""
        if not self.config.huber:
            return errors
        return torch.where(
            errors < self.config.huber, errors.square() / (2 * self.config.huber), errors - self.config.huber / 2
        )

    def reduce(
        self, errors: Float[Tensor, "b q k p"], keep: Bool[Tensor, "b q k p"], moves: Bool[Tensor, "b q k p"]
    ) -> Float[Tensor, ""]:
        """Mean over clips, with moving pixels weighted by ``balance``."""
        values = errors.flatten(1)
        return balanced(lambda part: group_mean(values, part.flatten(1)).mean(), keep, moves, self.config.balance)


@dataclass(frozen=True, kw_only=True)
class OpacityLossConfig(LossSpec):
    """Regularisation of opacities: mean opacity, or the mean entropy of each as a probability, in nats.

    The first makes Gaussians that nothing needs disappear (Long-LRM, arXiv 2410.12781, at weight 0.1; 3DGS-MCMC, arXiv
    2404.09591), the second makes each opaque or transparent (SuGaR, arXiv 2311.12775).
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    teaches: ClassVar[tuple[str, ...]] = ("gaussians",)
    kind: Literal["opacity"] = "opacity"
    weight: Weight = 0.1
    form: Literal["sparsity", "entropy"] = "sparsity"
    """``sparsity``: the mean opacity. ``entropy``: the mean of −a·log a − (1 − a)·log(1 − a)."""

    def build(self) -> OpacityLoss:
        """Build the term."""
        return OpacityLoss(self)


class OpacityLoss(LossTerm[OpacityLossConfig]):
    """The term of `OpacityLossConfig`."""

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Compute the term. UserError without Gaussians."""
        gaussians = required(inputs.prediction, self.config.kind)
        opacities = gaussians.opacities
        if self.config.form == "entropy":
            # away from 0 and 1, where the gradient has no bound
            safe = opacities.clamp(FAINTEST, 1 - FAINTEST)
            opacities = -safe * safe.log() - (1 - safe) * (1 - safe).log()
        return opacities.mean() + untouched(gaussians)


def known_queries(
    gaussians: Gaussians, query_times: Float[Tensor, "b q"], own: Float[Tensor, "b k"]
) -> Bool[Tensor, "b q k"]:
    """Mask of query times with an offset, except each key frame's own, where motion is 0 by definition."""
    other = ~same_time(query_times[:, :, None], own[:, None])
    if gaussians.offset_times is None:
        return other
    known = same_time(query_times[:, :, None], gaussians.offset_times[:, None]).any(-1)
    return other & known[..., None]
