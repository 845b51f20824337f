"""Training: `train` runs what a `RunConfig` says, `finetune` judges it too. The only part that imports Lightning."""

from four_d.training.run import TrainResult, finetune, train

__all__ = ["TrainResult", "finetune", "train"]
