"""SirenPose (arXiv 2512.20531): supervision of trajectories, with a sinusoidal network and a graph network."""

from __future__ import annotations

from four_d.losses.siren_pose.fitting import FitConfig, SequenceSiren, fit_siren
from four_d.losses.siren_pose.term import SirenPoseLoss, SirenPoseLossConfig

__all__ = ["FitConfig", "SequenceSiren", "SirenPoseLoss", "SirenPoseLossConfig", "fit_siren"]
