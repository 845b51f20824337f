"""four_d's model, losses and data in a `lightning.Trainer` of one's own.

    python examples/own_trainer.py overlays/tiny data.sources.mine.path=data/train data.validation.mine.path=data/test

What `four_d.train` does besides, and such a trainer does not, stands in docs/training.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from four_d.config import RunConfig, load
from four_d.training import RunData, TrainingModule


def fit(config: RunConfig, folder: Path, checkpoint: Path | None = None) -> Path:
    """Train, from ``checkpoint`` on if there is one; the path of the last checkpoint, which `four_d.load` takes."""
    loop = config.loop
    # each is of a whole step: Lightning warns that it is taken after the update, which is what is wanted
    keeper = ModelCheckpoint(
        folder / "checkpoints", save_top_k=-1, save_last=True, every_n_train_steps=loop.epoch_steps
    )
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=1,
        precision="bf16-mixed" if loop.precision == "bf16" else "32-true",
        max_steps=loop.max_steps,
        val_check_interval=loop.epoch_steps,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the data module gives each process its own clips
        logger=CSVLogger(folder),
        log_every_n_steps=config.logging.every,
        callbacks=[keeper],
        enable_model_summary=False,
    )
    trainer.fit(TrainingModule(config), datamodule=RunData(config), ckpt_path=checkpoint, weights_only=True)
    return Path(keeper.last_model_path)


if __name__ == "__main__":
    files = [word for word in sys.argv[1:] if "=" not in word]
    config = load(files, [word for word in sys.argv[1:] if "=" in word])
    print(fit(config, config.run_folder))
