"""Loss terms: functions of prediction and truth, modules that call them, and the configs that build those."""

from __future__ import annotations

from typing import Annotated

from four_d.extension import OneOf
from four_d.losses.camera import CameraLossConfig
from four_d.losses.dense import DepthLossConfig, PointsLossConfig
from four_d.losses.dynamic import DynamicLossConfig
from four_d.losses.gaussian import GaussianDepthLossConfig, GaussianFlowLossConfig, OpacityLossConfig
from four_d.losses.guidance import GuidanceLossConfig
from four_d.losses.keypoint import KeypointLossConfig
from four_d.losses.matching import MatchingLossConfig
from four_d.losses.motion import MotionLossConfig
from four_d.losses.object_pose import ObjectPoseLossConfig
from four_d.losses.photometric import PhotometricLossConfig
from four_d.losses.reconstruction import ReconstructionLossConfig
from four_d.losses.rendered_flow import RenderedFlowLossConfig
from four_d.losses.scene import CameraPriorLossConfig, RigidityLossConfig
from four_d.losses.siren_pose import SirenPoseLossConfig
from four_d.losses.sweep import SweepLossConfig
from four_d.losses.term import LossSpec
from four_d.losses.track import TrackLossConfig
from four_d.losses.tracked_pixels import TrackedPixelsLossConfig

LossConfig = Annotated[
    LossSpec,
    OneOf(
        CameraLossConfig,
        DepthLossConfig,
        PointsLossConfig,
        DynamicLossConfig,
        KeypointLossConfig,
        MatchingLossConfig,
        SweepLossConfig,
        MotionLossConfig,
        ObjectPoseLossConfig,
        TrackLossConfig,
        PhotometricLossConfig,
        GaussianDepthLossConfig,
        GaussianFlowLossConfig,
        OpacityLossConfig,
        SirenPoseLossConfig,
        ReconstructionLossConfig,
        TrackedPixelsLossConfig,
        RenderedFlowLossConfig,
        RigidityLossConfig,
        CameraPriorLossConfig,
        GuidanceLossConfig,
    ),
]
"""Config of any loss term, chosen by its ``kind``."""
