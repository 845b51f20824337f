"""The camera term: distances of pose encodings (VGGT, arXiv 2503.11651 §3.4; weights of its released training)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from four_d.errors import UserError
from four_d.geometry import encode_cameras
from four_d.layers import full_precision
from four_d.losses.reduction import Over, group_mean, grouped, nothing
from four_d.types import Clip, Prediction, Views

TRANSLATION, ROTATION, FOV = slice(0, 3), slice(3, 7), slice(7, 9)
TRANSLATION_LIMIT = 100.0
"""Errors beyond it count as this much, and pull no longer."""


def encoding_errors(
    predicted: Float[Tensor, "*i b f 9"], target: Float[Tensor, "b f 9"], huber_delta: float | None = None
) -> Float[Tensor, "*i b f 9"]:
    """Absolute differences, or Huber's with the given turning point; those of the translation limited."""
    target = target.expand_as(predicted)
    if huber_delta is None:
        errors = (predicted - target).abs()
    else:
        errors = functional.huber_loss(predicted, target, reduction="none", delta=huber_delta)
    return torch.cat([errors[..., TRANSLATION].clamp_max(TRANSLATION_LIMIT), errors[..., TRANSLATION.stop :]], dim=-1)


def stage_weights(stages: int, decay: float) -> list[float]:
    """Of each refinement, the last one's largest: decay^(n − 1 − k) / n."""
    return [decay ** (stages - 1 - stage) / stages for stage in range(stages)]


@dataclass(frozen=True, kw_only=True)
class CameraLoss:
    """Error of every refinement's encoding; frames whose cameras are not known do not count."""

    kind: Literal["camera"] = "camera"
    weight: float = 5.0
    translation: float = 1.0
    rotation: float = 1.0
    fov: float = 0.5
    stage_decay: float = 0.6
    huber_delta: float | None = None
    """None: absolute differences."""
    min_valid: int = 100
    """Clips with depth whose first frame has no more of it than this do not count: their scale is not to be trusted.
    Clips without any depth have no such scale, and count."""
    over: Over = "clip"

    def __call__(self, prediction: Prediction, views: Views | None, targets: Clip) -> Float[Tensor, ""]:  # noqa: ARG002 - all terms have one signature
        """Dimensionless: clip units, quaternion components and radians summed. UserError without a camera head."""
        encodings = prediction.pose_encodings
        if encodings is None:
            raise UserError("the camera loss needs pose encodings; add a head of kind camera or remove the loss")
        if targets.cameras is None:
            return nothing(encodings)
        with full_precision(encodings.device):
            target = encode_cameras(targets.cameras, *targets.images.shape[-2:])
        errors = encoding_errors(encodings, target.to(encodings.dtype), self.huber_delta)
        keep = self.counted(targets)
        total = nothing(encodings)
        for stage_weight, stage in zip(stage_weights(len(errors), self.stage_decay), errors):
            total = total + stage_weight * self.one_stage(stage, keep)
        return total

    def one_stage(self, errors: Float[Tensor, "b f 9"], keep: Bool[Tensor, "b f"]) -> Float[Tensor, ""]:
        """Weighted mean errors of the three parts of the encoding."""
        total = errors.new_zeros(())
        for part, weight in ((TRANSLATION, self.translation), (ROTATION, self.rotation), (FOV, self.fov)):
            values = errors[..., part]
            mask = keep[..., None].expand_as(values)
            total = total + weight * group_mean(grouped(values, self.over), grouped(mask, self.over)).mean()
        return total

    def counted(self, targets: Clip) -> Bool[Tensor, "b f"]:
        """Which frames' cameras count."""
        keep = torch.ones(targets.images.shape[:2], dtype=torch.bool, device=targets.images.device)
        if targets.cameras is not None and targets.cameras.known is not None:
            keep = keep & targets.cameras.known
        if targets.valid is not None:
            enough = targets.valid[:, 0].flatten(1).sum(-1) > self.min_valid
            keep = keep & (enough | ~targets.valid.flatten(1).any(-1))[:, None]
        return keep
