"""Training: `train` runs what a `RunConfig` says. The only part that imports Lightning."""

from four_d.training.run import TrainResult, train

__all__ = ["TrainResult", "train"]
