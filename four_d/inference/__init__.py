"""Inference on videos: `load` a model and call it, or `infer` into a folder."""

from four_d.inference.hints import Known
from four_d.inference.keypoints import Instance
from four_d.inference.model import LoadedModel, check_output, infer, load
from four_d.inference.request import Request
from four_d.inference.result import Result
from four_d.inference.sinks import write
from four_d.video.fit import Fit, Fits
from four_d.video.footage import Selection, Video, read

__all__ = [
    "Fit",
    "Fits",
    "Instance",
    "Known",
    "LoadedModel",
    "Request",
    "Result",
    "Selection",
    "Video",
    "check_output",
    "infer",
    "load",
    "read",
    "write",
]
