"""The camera term: distances of pose encodings (VGGT, arXiv 2503.11651 §3.4; weights of its released training)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from four_d.errors import UserError
from four_d.geometry import encode_cameras
from four_d.losses.reduction import Over, kept_mean, nothing, weighted
from four_d.losses.schedule import Weight
from four_d.losses.supervision import Need, frames_with_cameras
from four_d.losses.term import LossInputs, LossSpec, LossTerm
from four_d.types import Clip

TRANSLATION, ROTATION, FOV = slice(0, 3), slice(3, 7), slice(7, 9)
TRANSLATION_LIMIT = 100.0
"""Upper limit of an error; beyond it there is no gradient."""


def encoding_errors(
    predicted: Float[Tensor, "*i b f 9"], target: Float[Tensor, "b f 9"], huber_delta: float | None = None
) -> Float[Tensor, "*i b f 9"]:
    """Absolute differences, or Huber's with the given threshold; those of the translation clamped."""
    target = target.expand_as(predicted)
    if huber_delta is None:
        errors = (predicted - target).abs()
    else:
        errors = functional.huber_loss(predicted, target, reduction="none", delta=huber_delta)
    return torch.cat([errors[..., TRANSLATION].clamp_max(TRANSLATION_LIMIT), errors[..., TRANSLATION.stop :]], dim=-1)


def stage_weights(stages: int, decay: float) -> list[float]:
    """Weight of each refinement, the last one's largest: decay^(n − 1 − k) / n."""
    return [decay ** (stages - 1 - stage) / stages for stage in range(stages)]


@dataclass(frozen=True, kw_only=True)
class CameraLossConfig(LossSpec):
    """Error of every refinement's encoding, over the frames whose cameras are known."""

    needs: ClassVar[tuple[Need, ...]] = ("cameras",)
    teaches: ClassVar[tuple[str, ...]] = ("cameras",)
    kind: Literal["camera"] = "camera"
    weight: Weight = 5.0
    translation: float = 1.0
    """Weight of the translation's errors, in the clip's unit. 1: VGGT's release."""
    rotation: float = 1.0
    """Weight of the quaternion's errors. 1: VGGT's release."""
    fov: float = 0.5
    """Weight of the fields of view's errors, in radians. ½: VGGT's release."""
    stage_decay: float = 0.6
    """Weight of each refinement relative to the next one, above 0 to 1: the last counts most. 0.6: VGGT's release."""
    huber_delta: float | None = None
    """Threshold of the Huber loss; None: absolute differences."""
    min_valid: int = 100
    """Valid depth pixels that the first frame must exceed for a clip with depth to count: with fewer, its scale is not
    reliable. Clips without any depth have no such scale, and count."""
    over: Over = "clip"
    """Domain of means. ``clip``: each clip's values, then all clips alike, so that processes that share a batch do what
    one does; ``batch``: all values of the batch together, as VGGT's release."""

    def build(self) -> CameraLoss:
        """Build the term."""
        return CameraLoss(self)


class CameraLoss(LossTerm[CameraLossConfig]):
    """The term of `CameraLossConfig`."""

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Compute the term: clip units, quaternion components and radians summed. UserError without a camera head."""
        prediction, targets = inputs.prediction, inputs.targets
        encodings = prediction.pose_encodings
        if encodings is None:
            raise UserError("the camera loss needs pose encodings; add a head of kind camera or remove the loss")
        if targets.cameras is None:
            return nothing(encodings)
        target = encode_cameras(targets.cameras, *targets.images.shape[-2:])
        errors = encoding_errors(encodings, target.to(encodings.dtype), self.config.huber_delta)
        keep = self.counted(targets)
        total = nothing(encodings)
        for stage_weight, stage in zip(stage_weights(len(errors), self.config.stage_decay), errors):
            total = total + stage_weight * self.one_stage(stage, keep)
        return total

    def one_stage(self, errors: Float[Tensor, "b f 9"], keep: Bool[Tensor, "b f"]) -> Float[Tensor, ""]:
        """Weighted mean errors of the three parts of the encoding."""
        parts = (
            (self.config.translation, errors[..., TRANSLATION]),
            (self.config.rotation, errors[..., ROTATION]),
            (self.config.fov, errors[..., FOV]),
        )
        means = (
            (weight, kept_mean(values, keep[..., None].expand_as(values), self.config.over)) for weight, values in parts
        )
        return weighted(means, start=errors.new_zeros(()))

    def counted(self, targets: Clip) -> Bool[Tensor, "b f"]:
        """Mask of the frames whose cameras count."""
        keep = frames_with_cameras(targets)
        if targets.valid is not None:
            enough = targets.valid[:, 0].flatten(1).sum(-1) > self.config.min_valid
            keep = keep & (enough | ~targets.valid.flatten(1).any(-1))[:, None]
        return keep
