"""What Gaussians are supervised by besides pictures: where they lie, and how they move (DGS-LRM, arXiv 2506.09997).

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
from four_d.layers import full_precision, full_type
from four_d.losses.dense import length
from four_d.losses.motion import LEAST_MOTION
from four_d.losses.photometric import required, untouched
from four_d.losses.reduction import group_mean
from four_d.rendering.scene import means_at
from four_d.types import Clip, Gaussians, Prediction, Views, map_tensors, same_time

NEAREST = 0.01
"""Depth (the clip's unit) below which logarithm and disparity go on as straight lines, also behind the camera."""
Space = Literal["log", "disparity"]


def settled(prediction: Prediction, loss: str) -> tuple[Gaussians, Int[Tensor, "b k"]]:
    """Gaussians in full precision and the frames that they are of. UserError where the model has none."""
    gaussians, frames = required(prediction, loss), prediction.key_frames
    if frames is None:
        raise UserError(f"the {loss} loss needs to know key frames; let the head set Prediction.key_frames")
    wide = full_type(gaussians.means.dtype)
    return map_tensors(gaussians, lambda tensor: tensor.to(wide)), frames


def of_key_frames(values: Tensor, frames: Int[Tensor, "b k"], axis: int = 1) -> Tensor:
    """Of values with frames along ``axis``, those of each clip's key frames."""
    return torch.stack([each.index_select(axis - 1, index) for each, index in zip(values, frames, strict=True)])


def own_offsets(gaussians: Gaussians, times: Float[Tensor, "b k"]) -> Float[Tensor, "b n 3"]:
    """Each Gaussian's offset at the time of its key frame; ``times`` are the key frames'."""
    each = offsets_at(gaussians, times).unflatten(2, (times.shape[1], -1))
    return each.diagonal(dim1=1, dim2=2).movedim(-1, 1).flatten(1, 2)


def offsets_at(gaussians: Gaussians, times: Float[Tensor, "b v"]) -> Float[Tensor, "b v n 3"]:
    """Offsets at any times; 0 where Gaussians stand still."""
    return means_at(replace(gaussians, means=torch.zeros_like(gaussians.means)), times)


def in_space(depth: Float[Tensor, "*b"], space: Space) -> Float[Tensor, "*b"]:
    """Logarithm of z or 1 / z; below `NEAREST` the tangent there, so that every depth has a gradient."""
    safe = depth.clamp_min(NEAREST)
    below = (depth - NEAREST).clamp_max(0) / NEAREST
    return safe.log() + below if space == "log" else (1 / safe) - below / NEAREST


@dataclass(frozen=True, kw_only=True)
class GaussianDepthLoss:
    """|error| of the z-depth that each Gaussian has in its key frame at that frame's time.

    Its place is the one that is rendered then: mean plus offset. Cameras are the targets'. Each clip's pixels are
    averaged first, then the clips.
    """

    kind: Literal["gaussian_depth"] = "gaussian_depth"
    weight: float = 10.0
    space: Space = "log"
    """Of what errors are: the logarithm of depth (shares of it, near 0), or disparity (one over the clip's unit)."""

    def __call__(self, prediction: Prediction, views: Views | None, targets: Clip) -> Float[Tensor, ""]:  # noqa: ARG002 - all terms have one signature
        """UserError without Gaussians; 0 without true depth and cameras."""
        gaussians, frames = settled(prediction, self.kind)
        if targets.depth is None or targets.valid is None or targets.cameras is None:
            return untouched(gaussians)
        with full_precision(gaussians.means.device):
            poses = of_key_frames(targets.cameras.world_from_camera, frames).to(gaussians.means)
            places = gaussians.means + own_offsets(gaussians, of_key_frames(targets.times, frames))
            truth, valid = (of_key_frames(each, frames).flatten(2) for each in (targets.depth, targets.valid))
            check_count(places, truth.shape[1:])
            depth = depths(places.unflatten(1, truth.shape[1:]), poses)
            errors = (in_space(depth, self.space) - in_space(truth.to(depth), self.space)).abs()
        if targets.cameras.known is not None:
            valid = valid & of_key_frames(targets.cameras.known, frames)[..., None]
        return group_mean(errors.flatten(1), valid.flatten(1)).mean() + untouched(gaussians)


def depths(points: Float[Tensor, "b k p 3"], world_from_camera: Float[Tensor, "b k 4 4"]) -> Float[Tensor, "b k p"]:
    """Each z of world points in each frame's camera."""
    camera_from_world = invert_pose(world_from_camera)
    return (points @ camera_from_world[..., 2, :3, None])[..., 0] + camera_from_world[..., 2, 3, None]


def check_count(places: Float[Tensor, "b n 3"], expected: torch.Size) -> None:
    """UserError where there is not one Gaussian per pixel of each key frame (k, p)."""
    if places.shape[1] != expected.numel():
        raise UserError(
            f"there are {places.shape[1]} Gaussians for {expected[0]} key frames of {expected[1]} pixels; the losses "
            f"of Gaussians need one per pixel"
        )


@dataclass(frozen=True, kw_only=True)
class GaussianFlowLoss:
    """Distance from the predicted to the true motion of what each pixel of the key frames shows, in the clip's unit.

    Motion is from the key frame's own time to every other query time that Gaussians have an offset at, whether the
    point is seen then or not. Each clip is averaged first, then the clips.
    """

    needs_queries: ClassVar[bool] = True
    """Without ``data.query_times`` there would be no truth, and the loss 0."""
    kind: Literal["gaussian_flow"] = "gaussian_flow"
    weight: float = 10.0
    huber: float = 0.0
    """Distances below this count as d² / (2 · huber), above it as d − huber / 2; 0: all as d."""
    balance: float = 0.0
    """Share of the weight that moving pixels have together, however few; 0: all pixels count alike."""

    def __post_init__(self) -> None:
        if not 0 <= self.balance < 1 or self.huber < 0:
            raise UserError("balance must be a share of 1 (or 0 for none), huber at least 0")

    def __call__(self, prediction: Prediction, views: Views | None, targets: Clip) -> Float[Tensor, ""]:  # noqa: ARG002 - all terms have one signature
        """UserError without Gaussians; 0 without true motion. What stands still (no offsets) has no gradient."""
        gaussians, frames = settled(prediction, self.kind)
        if targets.motion is None or targets.motion_valid is None or targets.query_times is None:
            return untouched(gaussians)
        own = of_key_frames(targets.times, frames)
        with full_precision(gaussians.means.device):
            truth = of_key_frames(targets.motion, frames, axis=2).flatten(3, 4).to(gaussians.means)
            check_count(gaussians.means, truth.shape[2:4])
            moved = offsets_at(gaussians, targets.query_times) - own_offsets(gaussians, own)[:, None]
            errors = self.limited(length(moved.unflatten(2, truth.shape[2:4]) - truth, -1))
        valid = of_key_frames(targets.motion_valid, frames, axis=2).flatten(3)
        keep = valid & asked(gaussians, targets.query_times, own)[..., None]
        return self.reduce(errors, keep, length(truth, -1) > LEAST_MOTION) + untouched(gaussians)

    def limited(self, errors: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Huber's function of the distances."""
        if not self.huber:
            return errors
        return torch.where(errors < self.huber, errors.square() / (2 * self.huber), errors - self.huber / 2)

    def reduce(
        self, errors: Float[Tensor, "b q k p"], keep: Bool[Tensor, "b q k p"], moves: Bool[Tensor, "b q k p"]
    ) -> Float[Tensor, ""]:
        """The mean over clips, moving pixels weighed as ``balance`` says."""
        values = errors.flatten(1)
        if not self.balance:
            return group_mean(values, keep.flatten(1)).mean()
        parts = ((self.balance, keep & moves), (1 - self.balance, keep & ~moves))
        return torch.stack([share * group_mean(values, part.flatten(1)).mean() for share, part in parts]).sum()


def asked(gaussians: Gaussians, query_times: Float[Tensor, "b q"], own: Float[Tensor, "b k"]) -> Bool[Tensor, "b q k"]:
    """Query times that Gaussians have an offset at, but for each key frame's own, where motion is 0 by definition."""
    other = ~same_time(query_times[:, :, None], own[:, None])
    if gaussians.offset_times is None:
        return other
    known = same_time(query_times[:, :, None], gaussians.offset_times[:, None]).any(-1)
    return other & known[..., None]
