"""Check that the processes of a run agree on it: software, config, data and length."""
# ruff: noqa: ARG002  # Lightning passes a hook all its arguments by position

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import cast

import lightning
from lightning.pytorch.callbacks import Callback

from four_d.schema import Plain, to_plain
from four_d.training import parallel
from four_d.training.module import TrainingModule
from four_d.training.record import versions

FREE = re.compile(r"data\.workers|data\.cache\..*|data\.(sources|validation)\.[^.]+\.path")
"""Settings that may change when a run continues: the clips themselves are compared instead of their path."""
LOCAL = re.compile(rf"folder|weights\.path|{FREE.pattern}")
"""Settings that may differ between the machines of a run."""


class Agreement(Callback):
    """Check before the first step that all ranks agree on the run: a mismatch would hang them later."""

    def __init__(self, step: int, fingerprint: str) -> None:
        self._facts = {"the step to go on from": step, "the list of training clips": fingerprint[:15]}

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Compare software and config of all ranks, as soon as they can speak with each other."""
        parallel.must_agree(versions(), "install the same on every machine")
        config = cast(TrainingModule, pl_module).config
        plain = {name: value for name, value in _flat(to_plain(config)) if not LOCAL.fullmatch(name)}
        parallel.must_agree({name: str(value) for name, value in plain.items()}, "start all with the same config")

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Compare the facts of all ranks."""
        validation = trainer.num_val_batches
        clips = int(validation[0]) if validation else 0
        parallel.must_agree({**self._facts, "the number of validation clips": clips})


def _flat(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Yield the values of nested plain containers by their dotted names."""
    if isinstance(value, dict):
        for key, each in cast(Plain, value).items():
            yield from _flat(each, f"{name}.{key}".lstrip("."))
    else:
        yield name, value
