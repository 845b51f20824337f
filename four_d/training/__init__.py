"""Training: `train` executes a `RunConfig`, `finetune` also compares figures before and after. Only Lightning user."""

from four_d.checkpoints import LAST
from four_d.training.module import TrainingModule
from four_d.training.run import RunData, TrainerOptions, TrainResult, finetune, train

__all__ = ["LAST", "RunData", "TrainResult", "TrainerOptions", "TrainingModule", "finetune", "train"]
