"""Fit of one object's scene to one video (PAD3R): ``four-d fit``."""

from four_d.fitting.request import FitRequest
from four_d.fitting.stages import deliver, fit

__all__ = ["FitRequest", "deliver", "fit"]
