"""What happens around the steps: figures, pictures, checkpoints, the clock and signals."""
# ruff: noqa: ARG002  # Lightning passes a hook all its arguments by position

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import FrameType
from typing import cast

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from four_d.data.loading import Step
from four_d.errors import UserError
from four_d.progress import Bar
from four_d.training import parallel
from four_d.training.module import Terms, TrainingModule
from four_d.training.record import RunRecord, read_metrics, write_atomically
from four_d.training.validation import Means, draw, figures
from four_d.types import Prediction

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
LAST, BEST = Path("checkpoints/last.ckpt"), Path("checkpoints/best.ckpt")


class Stopped(Exception):  # noqa: N818  # not an error: the run was asked to stop, and saved first
    """A signal ended the run after its checkpoint was written."""


class Reporter(Callback):
    """Figures into the run's record and the progress bar. ``record`` is None on all ranks but the first."""

    def __init__(self, record: RunRecord | None, bar: Bar, validation_clips: int) -> None:
        self._record, self._bar, self._clips = record, bar, validation_clips
        self._sums: dict[str, Tensor] = {}
        self._steps = self._images = 0
        self._since = time.monotonic()
        self._complained: set[str] = set()
        self._skipped = 0
        self._means = Means()
        self._drawn = 0
        self.loss = float("nan")
        self.validation: dict[str, float] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The clock of the rates starts."""
        self._since = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Step,
        batch_idx: int,
    ) -> None:
        """Add up; every so often write a line."""
        module = cast(TrainingModule, pl_module)
        for name, value in cast(Terms, outputs).items():
            self._sums[name] = self._sums.get(name, 0) + value.float()
        self._steps += 1
        self._images += sum(example.inputs.images.shape[:2].numel() for example in batch.batches) * trainer.world_size
        self._complain(batch.skipped)
        if module.step % module.config.logging.every == 0:
            self._write_line(module)
        if module.config.loop.max_minutes is not None and module.share > 0:
            self._bar.expect(max(module.step, round(module.step / module.share)))
        self._bar.advance(1, loss=self.loss)

    def _complain(self, skipped: tuple[str, ...]) -> None:
        """Name each corrupt sample once per process; count all."""
        self._skipped += len(skipped)
        for line in skipped:
            if line not in self._complained:
                print(f"skipped {line}", file=sys.stderr)
                self._complained.add(line)

    def _write_line(self, module: TrainingModule) -> None:
        values = [float(value) / self._steps for value in self._sums.values()]
        reduced = parallel.total([*values, float(self._skipped)], module.device)
        means = {name: value / module.trainer.world_size for name, value in zip(self._sums, reduced)}
        seconds = max(time.monotonic() - self._since, 1e-9)
        rates = {"steps_per_s": self._steps / seconds, "images_per_s": self._images / seconds}
        self.loss = means["loss"]
        if self._record is not None:
            line = {**means, **rates, "skipped_samples": int(reduced[-1]), "elapsed_s": round(module.elapsed, 3)}
            self._record.write("train", module.step, line)
        self._sums, self._steps, self._images, self._since = {}, 0, 0, time.monotonic()

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Step,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Judge one clip, and draw the first few."""
        module, targets = cast(TrainingModule, pl_module), batch.batches[0].targets
        judged = cast(Mapping[str, object], outputs)
        prediction, terms = cast(Prediction, judged["prediction"]), cast(Terms, judged["terms"])
        self._complain(batch.skipped)
        is_repeat = batch.index >= self._clips
        self._means.add(figures(prediction, terms, targets), 0.0 if is_repeat else 1.0)
        if self._record is not None and self._drawn < module.config.logging.pictures:
            picture = draw(prediction, targets, f"{batch.batches[0].key[0]}, step {module.step}")
            if picture is not None:
                self._record.picture(f"clip-{self._drawn}", module.step, picture)
            self._drawn += 1

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the means."""
        module = cast(TrainingModule, pl_module)
        self.validation = self._means.take(module.device)
        self._drawn = 0
        if self._record is not None:
            self._record.write("validation", module.step, {**self.validation, "elapsed_s": round(module.elapsed, 3)})

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Validation does not count for the rates."""
        self._since = time.monotonic()


class Watch(Callback):
    """The run's clock, and whether a signal asked it to stop; after each step all ranks know the same."""

    def __init__(self) -> None:
        self.stop = self._asked = False
        self._began = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock; take over the signals (Lightning gives back the former handlers in the end)."""
        self._began = time.monotonic() - cast(TrainingModule, pl_module).elapsed
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._ask)

    def _ask(self, number: int, _: FrameType | None) -> None:
        if not self._asked:
            print(f"{signal.Signals(number).name}: finishing the step, then saving", file=sys.stderr, flush=True)
        self._asked = True

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Step,
        batch_idx: int,
    ) -> None:
        """Agree."""
        module = cast(TrainingModule, pl_module)
        stop, module.elapsed = parallel.maximum([float(self._asked), time.monotonic() - self._began], module.device)
        self.stop = bool(stop)


class Keeper(Callback):
    """Saves the run when due; ends it when its steps or time are over, or when it was asked to stop. Comes last."""

    def __init__(self, folder: Path, watch: Watch) -> None:
        self._folder, self._watch = folder, watch

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Step,
        batch_idx: int,
    ) -> None:
        """Save, end."""
        module = cast(TrainingModule, pl_module)
        finished = module.share >= 1
        if self._watch.stop or finished or module.step % module.config.loop.epoch_steps == 0:
            save(trainer, self._folder / LAST)
        if self._watch.stop:
            raise Stopped
        if finished:
            trainer.should_stop = True


class BestKeeper(Callback):
    """Keeps the weights of the best validation; what is best so far stands in the run's own figures."""

    def __init__(self, folder: Path, reporter: Reporter, figure: str) -> None:
        self._folder, self._reporter, self._figure = folder, reporter, figure

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save the weights if no earlier validation had a lower figure."""
        step = cast(TrainingModule, pl_module).step
        if self._figure not in self._reporter.validation:
            known = ", ".join(self._reporter.validation)
            raise UserError(f"loop.best is {self._figure!r}, which no validation gives; choose one of {known}")
        value = self._reporter.validation[self._figure]
        lines = [line for line in read_metrics(self._folder) if line["split"] == "validation"]
        earlier = [line[self._figure] for line in lines if line["step"] != step and self._figure in line]
        known = [cast(float, other) for other in earlier if other is not None]
        # the first rank wrote these lines: let it decide for all
        better = [float(all(value < other for other in known))]
        if parallel.from_first(better, pl_module.device)[0]:
            save(trainer, self._folder / BEST, weights_only=True)


def save(trainer: lightning.Trainer, path: Path, *, weights_only: bool = False) -> None:
    """Write a checkpoint under a temporary name and rename it. All ranks must call it; the first one writes."""
    write = partial(trainer.save_checkpoint, weights_only=weights_only)
    if trainer.is_global_zero:
        write_atomically(path, write)
    else:
        write(path)
    trainer.strategy.barrier()
