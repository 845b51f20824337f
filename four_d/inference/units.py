"""Conversion of given cameras and depth to the unit that a model was trained in."""

from __future__ import annotations

import dataclasses

from four_d import fields
from four_d.abilities import Normalisation
from four_d.data.sampling import disparity_scale
from four_d.errors import UserError
from four_d.types import Clip


def to_model(clip: Clip, rule: Normalisation) -> tuple[Clip, float]:
    """Clip (batch axis of one) in the model's unit, and the factor from the model's lengths to the user's.

    Only a model trained by disparity needs it: others normalise given poses and depth themselves.
    UserError without cameras, or without valid depth, which alone determines that unit.
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
    divisor = disparity_scale(fields.unstack(clip, 0))
    return dataclasses.replace(fields.divide(clip, divisor), scale=clip.scale), float(divisor)
