"""Loss terms: functions of prediction and truth, and frozen dataclasses that name them and are their own configs."""

from __future__ import annotations

from four_d.losses.camera import CameraLoss
from four_d.losses.dense import DepthLoss, PointsLoss
from four_d.losses.dynamic import DynamicLoss
from four_d.losses.gaussian import GaussianDepthLoss, GaussianFlowLoss
from four_d.losses.matching import MatchingLoss
from four_d.losses.motion import MotionLoss
from four_d.losses.photometric import PhotometricLoss
from four_d.losses.track import TrackLoss

LossConfig = (
    CameraLoss
    | DepthLoss
    | PointsLoss
    | DynamicLoss
    | MatchingLoss
    | MotionLoss
    | TrackLoss
    | PhotometricLoss
    | GaussianDepthLoss
    | GaussianFlowLoss
)
"""All terms there are: ``term(prediction, views, targets) -> scalar``, not yet multiplied by ``term.weight``."""
