"""Profile of some steps of a run by torch's profiler: a trace that browsers show, and a table of operators."""
# ruff: noqa: ARG002  # Lightning passes a hook all its arguments by position

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any, cast

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch.profiler import ProfilerActivity, profile

from four_d.config import ProfileConfig
from four_d.data.loading import Step
from four_d.outputs import new_file, write_whole
from four_d.training.module import TrainingModule

LOGGER = logging.getLogger(__name__)

ROWS = 20
"""Operators in the table."""
TABLE = "operators.txt"


class Profiling(Callback):
    """Callback that records steps, and writes them to a folder: ``trace-STEP.json`` and ``operators.txt``."""

    def __init__(self, folder: Path, config: ProfileConfig) -> None:
        self._folder, self._config = folder, config
        self._done = self._first = 0
        self._profile: profile | None = None
        self._over = False

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Step, batch_idx: int
    ) -> None:
        """Start before the first step to record."""
        if self._done == self._config.start and self._profile is None and not self._over:
            device, self._first = pl_module.device, cast(TrainingModule, pl_module).step + 1
            on_device = [ProfilerActivity.CUDA] if device.type == "cuda" else []
            self._profile = profile(activities=[ProfilerActivity.CPU, *on_device])
            self._profile.start()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Step,
        batch_idx: int,
    ) -> None:
        """Write after the last one."""
        self._done += 1
        if self._done == self._config.start + self._config.steps:
            self._write(cast(TrainingModule, pl_module).step)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write what there is of a run that ends before."""
        if self._profile is None and not self._over:
            LOGGER.warning(
                f"nothing was profiled: this start had {self._done} steps, and loop.profile.start is "
                f"{self._config.start}; lower it"
            )
        self._write(cast(TrainingModule, pl_module).step)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Write what there is of a run that is stopped."""
        self._write(cast(TrainingModule, pl_module).step)

    def _write(self, last: int) -> None:
        found, self._profile = self._profile, None
        if found is None:
            return
        self._over = True
        found.stop()
        with new_file(self._folder / f"trace-{self._first:07d}.json") as partial:
            found.export_chrome_trace(str(partial))
        steps = max(1, last - self._first + 1)
        write_whole(self._folder / TABLE, table(found, steps))
        LOGGER.warning(f"profiled steps {self._first} to {last}: {self._folder}")


def table(found: profile, steps: int) -> str:
    """Table of the operators that took the most time themselves, on the device if it has any, else on the host."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of events of other versions of the driver
        rows: list[Any] = list(found.key_averages())
    on_device = any(row.self_device_time_total for row in rows)
    own = {id(row): float(row.self_device_time_total if on_device else row.self_cpu_time_total) for row in rows}
    whole = sum(own.values()) or 1.0
    rows = sorted(rows, key=lambda row: own[id(row)], reverse=True)[:ROWS]
    place = "device" if on_device else "host"
    lines = [
        f"{'ms a step':>10} {'share':>6} {'calls a step':>12}  operator (time of its own on the {place}, {steps} steps)"
    ]
    lines += [
        f"{own[id(row)] / 1000 / steps:10.3f} {own[id(row)] / whole:6.1%} {row.count / steps:12.1f}  {row.key}"
        for row in rows
    ]
    return "\n".join(lines) + "\n"
