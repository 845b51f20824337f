"""Run a model on a video: `load`, call, `infer`."""

from four_d.inference.fit import Fit
from four_d.inference.hints import Known
from four_d.inference.output import write
from four_d.inference.result import Result
from four_d.inference.run import LoadedModel, infer, load
from four_d.inference.video import Selection, Video, read

__all__ = ["Fit", "Known", "LoadedModel", "Result", "Selection", "Video", "infer", "load", "read", "write"]
