"""Heads: ``(Tokens, Clip) -> Prediction`` with only their own fields set. Adding one: a file, and its config below."""

from __future__ import annotations

from typing import Annotated

from four_d.extension import OneOf
from four_d.heads.camera import CameraHeadConfig
from four_d.heads.dense import DenseHeadConfig
from four_d.heads.dynamic import DynamicHeadConfig
from four_d.heads.gaussian import GaussianHeadConfig
from four_d.heads.keypoint import KeypointHeadConfig
from four_d.heads.track import TrackHeadConfig
from four_d.parts import HeadSpec

HeadConfig = Annotated[
    HeadSpec,
    OneOf(
        CameraHeadConfig, DenseHeadConfig, DynamicHeadConfig, GaussianHeadConfig, KeypointHeadConfig, TrackHeadConfig
    ),
]
"""Config of any head, chosen by its ``kind``."""
