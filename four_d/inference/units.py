"""Lengths of a video whose cameras are given: into the unit that a model was trained in, and back."""

from __future__ import annotations

import dataclasses

import torch

from four_d.data.sampling import Normalisation, disparity_scale, scale_lengths
from four_d.errors import UserError
from four_d.geometry import scale_gaussians
from four_d.types import Clip, Prediction, map_tensors


def to_model(clip: Clip, rule: Normalisation) -> tuple[Clip, float]:
    """A batch of one clip in the model's unit, and how many of the user's lengths that is.

    Only a model trained by disparity needs it: others make given poses and depth free of scale themselves.
    UserError without cameras, and without valid depth, which alone tells that unit.
    """
    if rule != "disparity":
        return clip, 1.0
    if clip.cameras is None:
        raise UserError(
            "this model needs the camera of every frame and how far away things are; give both (--cameras, --depth), "
            "or take a model of configs/unified.yaml, which needs none"
        )
    if clip.depth is None:
        raise UserError(
            "this model needs to know how far away things are, in the cameras' unit of length; give depth (--depth), "
            "as any model with a depth head writes it"
        )
    if clip.valid is None or not bool(clip.valid.any()):
        raise UserError(
            "no pixel of the given depth is valid (finite and above 0), and this model needs to know how far away "
            "things are; give other depth (--depth)"
        )
    single = map_tensors(clip, lambda tensor: tensor[0])
    divisor = disparity_scale(single)
    scaled = map_tensors(scale_lengths(single, divisor), lambda tensor: tensor[None])
    return dataclasses.replace(scaled, scale=clip.scale), float(divisor)


def from_model(prediction: Prediction, unit: float, given: Clip) -> Prediction:
    """The prediction in the user's unit, with the cameras that the user gave where the model finds none.

    Of lengths a model trained by disparity says Gaussians only (`config.load` refuses other heads).
    """
    cameras = prediction.cameras
    if cameras is None and given.cameras is not None and _known(given):
        cameras = given.cameras
    gaussians = None if prediction.gaussians is None else scale_gaussians(prediction.gaussians, unit)
    return dataclasses.replace(prediction, cameras=cameras, gaussians=gaussians)


def _known(clip: Clip) -> bool:
    assert clip.cameras is not None
    known = clip.cameras.known
    return known is None or bool(torch.as_tensor(known).all())
