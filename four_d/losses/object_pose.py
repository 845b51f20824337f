"""The object pose term: view class, rotation, distance and place of one object in its pictures (`viewpoints`).

Classes with soft targets keep the mean pose from being a refuge (BANMo's idea); angles, Huber and the error to expect
are Lab4D's; how they are joined is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from four_d.errors import UserError
from four_d.geometry import rotation_angle
from four_d.losses.reduction import kept_mean, nothing, weighted
from four_d.losses.schedule import Weight
from four_d.losses.supervision import Need, frames_with_cameras
from four_d.losses.term import LossInputs, LossSpec, LossTerm
from four_d.viewpoints import encode_pose, soft_classes


def class_divergence(logits: Float[Tensor, "*b k"], target: Float[Tensor, "*b k"]) -> Float[Tensor, "*b"]:
    """Kullback–Leibler divergence of predicted class probabilities from soft targets; 0 where they are equal."""
    return (torch.xlogy(target, target) - target * logits.log_softmax(-1)).sum(-1)


def hypothesis_angle(
    rotations: Float[Tensor, "*b k 3 3"], truth: Float[Tensor, "*b 3 3"], target: Float[Tensor, "*b k"]
) -> Float[Tensor, "*b"]:
    """Mean angle (radians) of the classes' rotations from the truth, each by its class's probability to be true."""
    return (target * rotation_angle(rotations.mT @ truth[..., None, :, :])).sum(-1)


@dataclass(frozen=True, kw_only=True)
class ObjectPoseLossConfig(LossSpec):
    """Errors of class, rotation, distance, place and expected error, over the frames whose cameras are known."""

    needs: ClassVar[tuple[Need, ...]] = ("cameras",)
    teaches: ClassVar[tuple[str, ...]] = ("cameras", "pose_uncertainty")
    kind: Literal["object_pose"] = "object_pose"
    weight: Weight = 1.0
    sharpness: float = 8.0
    """Soft targets of the classes are ∝ exp(−sharpness · angle²), with the angle between views in radians. BANMo: 2, of
    more classes."""
    classes: float = 1.0
    """Weight of the classes' divergence."""
    rotation: float = 1.0
    """Weight of the angles, in radians."""
    distance: float = 1.0
    """Weight of the error of the distance's logarithm."""
    offset: float = 1.0
    """Weight of the error of the centre's pixel, in sides of the picture."""
    uncertainty: float = 0.1
    """Weight of the squared error of the expected error, in radians²."""
    huber_delta: float = 0.05
    """Error of distance and place below which they are squared, above 0; larger ones count as they are."""

    def __post_init__(self) -> None:
        if min(self.sharpness, self.huber_delta) <= 0:
            raise UserError("sharpness and huber_delta must be positive")
        if min(self.classes, self.rotation, self.distance, self.offset, self.uncertainty) < 0:
            raise UserError("classes, rotation, distance, offset and uncertainty are weights; choose 0 or more")

    def build(self) -> ObjectPoseLoss:
        """Build the term."""
        return ObjectPoseLoss(self)


class ObjectPoseLoss(LossTerm[ObjectPoseLossConfig]):
    """The term of `ObjectPoseLossConfig`."""

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Compute the term. UserError for a model that predicts no object's pose."""
        prediction, targets, config = inputs.prediction, inputs.targets, self.config
        names = ("logits", "rotations", "classes", "log_distance", "offset", "uncertainty")
        found = [cast("Tensor | None", getattr(prediction, f"pose_{name}", None)) for name in names]
        if any(each is None for each in found):
            raise UserError("the object pose loss needs poses of one object; set model.kind=pose_net, or remove it")
        logits, rotations, classes, log_distance, offset, uncertainty = cast(list[Tensor], found)
        start = nothing(logits, rotations, log_distance, offset, uncertainty)
        if targets.cameras is None:
            return start
        truth = encode_pose(targets.cameras, (targets.images.shape[-2], targets.images.shape[-1]))
        target = soft_classes(truth.rotation, classes.flatten(0, -4)[0], config.sharpness).to(logits)
        rotation = truth.rotation.to(rotations)
        best = logits.argmax(-1, keepdim=True)[..., None, None].expand(*logits.shape[:-1], 1, 3, 3)
        error = rotation_angle(rotations.detach().gather(-3, best)[..., 0, :, :].mT @ rotation)
        distance = self.huber(log_distance - truth.log_distance.to(log_distance))
        parts = (
            (config.classes, class_divergence(logits, target)),
            (config.rotation, hypothesis_angle(rotations, rotation, target)),
            (config.distance, distance),
            (config.offset, self.huber(offset - truth.offset.to(offset)).sum(-1)),
            (config.uncertainty, (uncertainty - error).square()),
        )
        keep = frames_with_cameras(targets)
        return weighted(((weight, kept_mean(values, keep, "clip")) for weight, values in parts), start=start)

    def huber(self, errors: Tensor) -> Tensor:
        """Absolute errors, squared and scaled to fit below ``huber_delta``."""
        return functional.smooth_l1_loss(
            errors, torch.zeros_like(errors), reduction="none", beta=self.config.huber_delta
        )
