"""Slicing and joining of predictions along frames, by the declarations of their fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from four_d import fields
from four_d.types import Prediction


def take_frames(prediction: Prediction, frames: slice | Sequence[int]) -> Prediction:
    """Some frames of an unbatched prediction, without Gaussians, tracked points and fields that only losses read."""
    rest = dataclasses.replace(fields.delivered(prediction), gaussians=None, key_frames=None)
    return fields.take(fields.without(rest, "n"), "f", frames)


def join_frames(parts: Sequence[Prediction]) -> Prediction:
    """Inverse of `take_frames`: concatenate the frames of several predictions.

    Fields with query times are dropped: those of each window are relative to its own first frame.
    """
    return fields.join([fields.without(part, "q") for part in parts], "f")
