"""Keypoints: pixels, depth and positions in space, visibility, and confidence in the pixel (ours)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d.constants import vector
from four_d.errors import UserError
from four_d.geometry import NEAREST, project
from four_d.keypoints import box_sides, inside_image
from four_d.losses.reduction import Over, cross_entropy, kept_mean, nothing, weighted
from four_d.losses.schedule import Weight
from four_d.losses.supervision import Need, frames_with_cameras
from four_d.losses.term import LossInputs, LossSpec, LossTerm
from four_d.trajectories import asked_keypoints, check_found
from four_d.types import Clip, Keypoints, Prediction

OUTPUTS = (
    "keypoints",
    "keypoint_pixels",
    "keypoint_depth",
    "keypoint_visible_logits",
    "keypoint_confidence_logits",
    "keypoint_patch_logits",
)
"""Fields of a prediction that the term reads."""
LEAST_SIDE = 0.1
"""Least side of a thing's box as a fraction of the image's longer side: a thing of one point has none."""


@dataclass(frozen=True, kw_only=True)
class KeypointLossConfig(LossSpec):
    """Distances of keypoints in the images, in log depth and in space, and three cross-entropies.

    The predicted keypoints are the targets', in their order: other names are refused.
    """

    needs: ClassVar[tuple[Need, ...]] = ("keypoints",)
    teaches: ClassVar[tuple[str, ...]] = OUTPUTS
    kind: Literal["keypoints"] = "keypoints"
    weight: Weight = 1.0
    """Factor of the term in the total loss."""
    pixels: float = 1.0
    """Weight of the distance in the image, of points inside it, seen or not."""
    by: Literal["box", "image"] = "box"
    """Unit of that distance: the longer side of the box of the thing's known points inside the image, at least a tenth
    of the image's (a thing far away counts as one that is near); or the image's longer side."""
    patch: float = 0.2
    """Weight of the cross-entropy of the patch that the point is in, of points inside the image: the mean of patches
    that the pixel is has hardly a gradient towards the right one while none is preferred."""
    depth: float = 1.0
    """Weight of the difference of the logarithms of depth, of points before a known camera."""
    points: float = 1.0
    """Weight of the distance in space, in the clip's unit."""
    visibility: float = 0.1
    """Weight of the cross-entropy of being seen, of points with a known pixel."""
    confidence: float = 0.1
    """Weight of the cross-entropy of being within ``near``, which does not move the points."""
    near: float = 0.1
    """Distance, in the unit of ``by``, up to which a pixel counts as right."""
    over: Over = "clip"
    """Domain of the means: each clip alone, or the batch."""

    @property
    def without_effect(self) -> dict[str, str]:
        """Settings that nothing reads → why."""
        unread = {} if self.confidence else {"near": "where confidence is 0"}
        return unread if self.confidence or self.pixels else {**unread, "by": "where pixels and confidence are 0"}

    def build(self) -> KeypointLoss:
        """Build the term."""
        return KeypointLoss(self)


class KeypointLoss(LossTerm[KeypointLossConfig]):
    """The term of `KeypointLossConfig`."""

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Compute the term. UserError without a head or for keypoints other than the targets'; 0 without truth."""
        outputs, truth = keypoint_outputs(inputs.prediction), asked_keypoints(inputs.targets)
        if truth is None or not truth.points.shape[-2] or not outputs:
            return nothing(inputs.targets.images, *outputs.values())
        points, pixels = outputs["keypoints"], outputs["keypoint_pixels"]
        check_found(points.shape[-2], truth.points.shape[-2])
        config, size = self.config, (inputs.targets.images.shape[-2], inputs.targets.images.shape[-1])
        here = inside_image(truth, size)
        away = _length(pixels - truth.pixels, here) / units(truth, here, size, config.by)
        right = away.detach() < config.near
        depth, before = true_depth(inputs.targets, truth)
        logs = (outputs["keypoint_depth"].clamp_min(NEAREST).log() - depth.log()).abs()
        matched = outputs.get("keypoint_patch_logits")  # a head of one's own may find pixels without
        patches = torch.zeros_like(away) if matched is None else patch_entropy(matched, truth.pixels, size)
        parts = (
            (config.pixels, away, here),
            (config.patch, patches, here),
            (config.depth, logs, before),
            (config.points, _length(points - truth.points, truth.valid), truth.valid),
            (config.visibility, cross_entropy(outputs["keypoint_visible_logits"], truth.visible), truth.pixels_valid),
            (config.confidence, cross_entropy(outputs["keypoint_confidence_logits"], right), here),
        )
        means = ((weight, kept_mean(values, keep, config.over)) for weight, values, keep in parts)
        return weighted(means, start=nothing(*outputs.values()))


def keypoint_outputs(prediction: Prediction) -> dict[str, Tensor]:
    """Fields of a prediction that `OUTPUTS` names; none where nothing was asked for. UserError without a head."""
    lacking = [name for name in OUTPUTS if not hasattr(prediction, name)]
    if lacking:
        raise UserError(
            f"the keypoints loss needs {lacking[0]}; add a head {{kind: keypoints}} to model.heads, or remove the loss"
        )
    found = {name: cast(Tensor | None, getattr(prediction, name)) for name in OUTPUTS}
    return {name: value for name, value in found.items() if value is not None}


def patch_entropy(
    logits: Float[Tensor, "b f n rows columns"], pixels: Float[Tensor, "b f n 2"], size: tuple[int, int]
) -> Float[Tensor, "b f n"]:
    """Cross-entropy, in nats, of the patch that each pixel is in, of an image of ``size`` (rows, columns); of pixels
    outside the nearest one.
    """
    rows, columns = logits.shape[-2:]
    cell = pixels.nan_to_num() / vector([size[1] / columns, size[0] / rows], pixels)
    x, y = cell.floor().long().unbind(-1)
    index = y.clamp(0, rows - 1) * columns + x.clamp(0, columns - 1)
    return -logits.flatten(-2).log_softmax(-1).gather(-1, index[..., None])[..., 0]


def units(
    truth: Keypoints, here: Bool[Tensor, "b f n"], size: tuple[int, int], by: Literal["box", "image"] = "box"
) -> Float[Tensor, "b f n"]:
    """Unit of distances in an image of ``size`` (rows, columns), in pixels: the longer side of the box of the points
    ``here`` of each point's thing, at least `LEAST_SIDE` of the image's; or the image's longer side.
    """
    if by == "image":
        return torch.full_like(truth.pixels[..., 0], max(size))
    return box_sides(truth, here).clamp_min(LEAST_SIDE * max(size))


def true_depth(targets: Clip, truth: Keypoints) -> tuple[Float[Tensor, "b f n"], Bool[Tensor, "b f n"]]:
    """z-depth of the true points in each frame's camera, 1 where unknown, and where it is known."""
    cameras = targets.cameras
    if cameras is None:
        return torch.ones_like(truth.points[..., 0]), torch.zeros_like(truth.valid)
    depth = project(truth.points, cameras)[1]
    known = truth.valid & (depth > NEAREST) & frames_with_cameras(targets)[..., None]
    return torch.where(known, depth, 1), known


def _length(difference: Float[Tensor, "*b c"], keep: Bool[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Norm, without the gradient NaN of a length 0 where nothing is kept."""
    return torch.where(keep[..., None], difference, 1).norm(dim=-1)
