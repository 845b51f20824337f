"""Train, evaluate and export feed-forward 4D models.

``four_d.load("runs/demo/model")("video.mp4")`` gives depth, points and cameras; the names below are the public ones.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from four_d.config import RunConfig
    from four_d.evaluation import evaluate
    from four_d.exporting import export
    from four_d.extension import extend
    from four_d.inference import load
    from four_d.model import FourD
    from four_d.training import finetune, train
    from four_d.types import Cameras, Clip, Example, Prediction, Surface, Tracks

_HOMES = {
    "RunConfig": "config",
    "evaluate": "evaluation",
    "export": "exporting",
    "extend": "extension",
    "load": "inference",
    "FourD": "model",
    "finetune": "training",
    "train": "training",
    "Cameras": "types",
    "Clip": "types",
    "Example": "types",
    "Prediction": "types",
    "Surface": "types",
    "Tracks": "types",
}

__all__ = [
    "Cameras",
    "Clip",
    "Example",
    "FourD",
    "Prediction",
    "RunConfig",
    "Surface",
    "Tracks",
    "__version__",
    "evaluate",
    "export",
    "extend",
    "finetune",
    "load",
    "train",
]


def __getattr__(name: str) -> object:
    """Import public names lazily, so that `import four_d` stays fast."""
    if name not in _HOMES:
        raise AttributeError(f"four_d has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"four_d.{_HOMES[name]}"), name)
