"""Fit of one object's scene to one video (PAD3R): ``four-d fit``."""

from four_d.fitting.fit import deliver, fit
from four_d.fitting.request import FitRequest

__all__ = ["FitRequest", "deliver", "fit"]
