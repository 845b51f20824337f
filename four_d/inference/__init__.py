"""Run a model on a video: `load`, call, `infer`."""

from four_d.inference.fit import Fit
from four_d.inference.hints import Known
from four_d.inference.run import LoadedModel, Result, infer, load, write
from four_d.inference.video import Selection, Video, read

__all__ = ["Fit", "Known", "LoadedModel", "Result", "Selection", "Video", "infer", "load", "read", "write"]
