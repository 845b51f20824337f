"""Callbacks around the steps: figures, images, checkpoints, the clock and signals."""
# ruff: noqa: ARG002  # Lightning passes a hook all its arguments by position

from __future__ import annotations

import itertools
import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import cast

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from four_d.data.loading import Loader, Step
from four_d.errors import UserError
from four_d.progress import Bar
from four_d.training import parallel
from four_d.training.meter import STEP_TIMES, Meter
from four_d.training.module import Judged, Terms, TrainingModule
from four_d.training.record import RunRecord, read_metrics
from four_d.training.saving import Writer, step_file
from four_d.training.validation import draw
from four_d.training.variation import LEAST_STEPS, SAME_FOR, Rows, Variation, rows, stuck, variation
from four_d.types import Prediction

LOGGER = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
BEST = Path("checkpoints/best.ckpt")


class Stopped(Exception):  # noqa: N818  # not an error: a requested stop, after saving
    """A signal ended the run after its checkpoint was written."""


class Reporter(Callback):
    """Reporter of figures to the run's record and the progress bar. ``record`` is None on all ranks but the first."""

    def __init__(
        self, record: RunRecord | None, bar: Bar, shown: Sequence[str] = (), stops: Callable[[], bool] = lambda: False
    ) -> None:
        """``shown``: figures of validation whose last value the progress line has beside the loss. ``stops``: whether
        the run ends with this step.
        """
        self._stops = stops
        self._record, self._bar, self._names = record, bar, shown
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._meter: Meter | None = None
        self._timed = 0
        self._since = time.monotonic()
        self._complained: set[str] = set()
        self._skipped = self._written = self._left_out = 0
        self._judged: list[Judged] = []
        self._named: list[str] = []
        self._shown: list[tuple[Rows, Rows]] = []
        self._drawn = 0
        self.loss: float | None = None
        """Loss of the last record; None before the first."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock of the rates."""
        module = cast(TrainingModule, pl_module)
        earlier = [] if self._record is None else read_metrics(self._record.folder)
        self._meter = Meter(module.config, module.device, trainer.world_size, earlier)
        self._since = time.monotonic()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Step, batch_idx: int
    ) -> None:
        """Begin to measure the step."""
        module = cast(TrainingModule, pl_module)
        if self._meter is not None:
            self._meter.begin(batch, module.model, trainer.precision_plugin.forward_context())

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Step,
        batch_idx: int,
    ) -> None:
        """Accumulate; write a line every few steps."""
        module = cast(TrainingModule, pl_module)
        for name, value in cast(Terms, outputs).items():
            self._sums[name] = self._sums.get(name, 0) + value.float()
        if module.judged is not None:
            self._judged.append(module.judged)
        self._steps += 1
        if self._meter is not None:
            self._meter.end(batch, module.model)
        self._complain(batch.skipped)
        ends = module.share >= 1
        if module.step % module.config.logging.every == 0 or ends:
            self._write_line(module)
        if module.step % module.config.loop.epoch_steps == 0 or ends or self._stops():
            self._write_times(module.step)
        if module.config.loop.max_minutes is not None and module.share > 0:
            self._bar.expect(max(module.step, round(module.step / module.share)))
        judged = {name: module.validation[name] for name in self._names if name in module.validation}
        self._bar.advance(1, **({} if self.loss is None else {"loss": self.loss}), **judged)

    def _complain(self, skipped: tuple[str, ...]) -> None:
        """Report each corrupt sample once per process; count all."""
        self._skipped += len(skipped)
        for line in skipped:
            if line not in self._complained:
                LOGGER.error(f"skipped {line}")
                self._complained.add(line)
                self._named.append(line)

    def _write_line(self, module: TrainingModule) -> None:
        sums = [value.to(module.device) for value in self._sums.values()]
        bad = [each.bad.to(module.device) for each in self._judged]
        unsound = [part for each in self._judged for part in each.unsound.to(module.device).unbind()]
        read: list[float] = torch.stack([each.float() for each in (*sums, *bad, *unsound)]).tolist()  # one wait for all
        values = [value / self._steps for value in read[: len(sums)]]
        left_out = self._tell_left_out(read[len(sums) : len(sums) + len(bad)], read[len(sums) + len(bad) :])
        reduced = parallel.total([*values, float(self._skipped)], module.device)
        means = {name: value / module.trainer.world_size for name, value in zip(self._sums, reduced)}
        seconds, loader = max(time.monotonic() - self._since, 1e-9), module.trainer.train_dataloader
        waited = loader.waited if isinstance(loader, Loader) else 0.0
        rates = {} if self._meter is None else self._meter.line(seconds, waited)
        self.loss = means["loss"]
        skipped = self._newly_skipped(int(reduced[-1]))
        if self._record is not None:
            line = {
                **means,
                **rates,
                "skipped_steps": self._left_out,
                "skipped_samples": int(reduced[-1]),
                "elapsed_s": round(module.elapsed, 3),
            }
            told = "\n".join(each for each in (skipped, left_out) if each)
            line |= {"skipped": told} if told else {}
            self._record.write("train", module.step, line)
        self._sums, self._steps, self._since = {}, 0, time.monotonic()

    def _write_times(self, step: int) -> None:
        """Write the histogram of step times where the run may go on from: with every checkpoint."""
        if self._record is not None and self._meter is not None and len(self._meter.times):
            self._record.histogram(STEP_TIMES, step, self._meter.times)
            self._timed = step

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the histogram of a run that another callback has ended."""
        step = cast(TrainingModule, pl_module).step
        if self._timed != step:
            self._write_times(step)

    def _tell_left_out(self, bad: Sequence[float], unsound: Sequence[float]) -> str:
        """Count the steps since the last record that changed nothing, and name their clips, of all processes."""
        self._left_out += sum(map(bool, bad))
        judged, self._judged = self._judged, []
        if not any(bad):  # of all processes alike
            return ""
        begins = [0, *itertools.accumulate(len(each.keys) for each in judged)]
        mine = [
            (each.told([bool(one) for one in unsound[begin:end]]), any(unsound[begin:end]))
            for each, (begin, end), left in zip(judged, itertools.pairwise(begins), bad, strict=True)
            if left
        ]
        told = list[str]()
        for lines in zip(*parallel.gather(mine)):  # step by step; where a process knows the clip, only that one
            told += [line for line, known in lines if known] or [line for line, _ in lines]
        for line in told if self._record is not None else ():
            LOGGER.warning(f"left out {line}")
        return "\n".join(told)

    def _newly_skipped(self, total: int) -> str:
        """Lines on the corrupt samples of all processes since the last record, of which ``total`` were met so far."""
        if total == self._written:  # of all processes alike, so that all gather or none
            return ""
        self._written = total
        named = sorted({line for each in parallel.gather(self._named) for line in each})
        self._named.clear()
        return "\n".join(named)

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Step,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first few clips, and collect outputs for their variation."""
        module, targets = cast(TrainingModule, pl_module), batch.batches[0].targets
        judged = cast(Mapping[str, object], outputs)
        prediction = cast(Prediction, judged["prediction"])
        self._complain(batch.skipped)
        if not batch.repeat and module.model.abilities.looks:
            self._shown.append(rows(prediction, targets))
        if self._record is not None and self._drawn < module.config.logging.pictures:
            picture = draw(prediction, targets, f"{batch.batches[0].key[0]}, step {module.step}")
            if picture is not None:
                self._record.picture(f"clip-{self._drawn}", module.step, picture)
            self._drawn += 1

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the module's figures. Validation time does not count for the rates."""
        module = cast(TrainingModule, pl_module)
        self._drawn = 0
        shown = [clip for each in parallel.gather(self._shown) for clip in each]
        self._shown.clear()
        if self._record is not None:
            self._record.write("validation", module.step, {**module.validation, "elapsed_s": round(module.elapsed, 3)})
            self._write_variation(self._record, module.step, variation(*zip(*shown)) if shown else {})
        self._since = time.monotonic()

    def _write_variation(self, record: RunRecord, step: int, found: Mapping[str, Variation]) -> None:
        """Record the variation of each output, and warn of outputs that do not vary."""
        line: dict[str, float | str] = {}
        for name, each in found.items():
            line |= {f"{name}_clips": each.clips, f"{name}_frames": each.frames}
            if step >= LEAST_STEPS and each.same_for is not None:
                line[f"{name}{SAME_FOR}"] = each.same_for
                LOGGER.warning(f"step {step}: {stuck(name, each.same_for)}")
        record.write("variation", step, line)


class Watch(Callback):
    """Clock and stop signals of the run, synchronised over all ranks after each step."""

    def __init__(self, writer: Writer) -> None:
        self.stop = self.lost = self._asked = False
        self._writer = writer
        self._began: float | None = None
        self._interrupt = signal.getsignal(signal.SIGINT)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Install signal handlers (Lightning restores the former ones in the end, except SIGINT's)."""
        self._asked = trainer.received_sigterm  # during the making of the first batches
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._ask)

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second request does not wait for the step
        if not self._asked:
            LOGGER.warning(f"{signal.Signals(number).name}: finishing the step, then saving")
        self._asked = True

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Restore Ctrl-C."""
        self._give_back()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Restore Ctrl-C."""
        self._give_back()

    def _give_back(self) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._interrupt)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Step,
        batch_idx: int,
    ) -> None:
        """Synchronise. The clock starts at the end of the first step."""
        module = cast(TrainingModule, pl_module)
        now = time.monotonic()
        if self._began is None:
            self._began = now - module.elapsed
        mine = [float(self._asked), float(self._writer.must_stop), now - self._began]
        stop, lost, module.elapsed = parallel.maximum(mine, module.device)
        self.stop, self.lost = bool(stop), bool(lost)


class Keeper(Callback):
    """Callback that saves the run when due and ends it by steps, time or a stop signal; must be the last one."""

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
        """Save when due; end the run."""
        module = cast(TrainingModule, pl_module)
        if self._watch.lost:
            raise UserError("a checkpoint could not be written, and loop.checkpoints.on_failure is stop")
        finished = module.share >= 1 or trainer.should_stop  # which another callback may set
        if self._watch.stop or finished or module.step % module.config.loop.epoch_steps == 0:
            trainer.save_checkpoint(step_file(self._folder, module.step), weights_only=False)
        if self._watch.stop:
            raise Stopped
        if finished:
            trainer.should_stop = True


class BestKeeper(Callback):
    """Callback that keeps the weights of the best validation, by the figure's own direction.

    The best figure so far is in the run's own record.
    """

    def __init__(self, folder: Path, figure: str) -> None:
        self._folder, self._figure = folder, figure

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Raise UserError for a figure that no validation can give, or of which no direction is better."""
        metrics = cast(TrainingModule, pl_module).metrics
        directed = ", ".join(name for name, metric in metrics.items() if metric.better is not None)
        if self._figure not in metrics:
            raise UserError(f"loop.best is {self._figure!r}, which no validation gives; choose one of {directed}")
        if metrics[self._figure].better is None:
            raise UserError(f"loop.best is {self._figure!r}, of which more is not better or worse; choose {directed}")

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save the weights if no earlier validation had a figure as good."""
        module = cast(TrainingModule, pl_module)
        metric = module.metrics[self._figure]
        if self._figure not in module.validation:
            known = ", ".join(module.validation)
            raise UserError(
                f"loop.best is {self._figure!r}, which these clips or this model do not allow; choose one of {known}"
            )
        step, value = module.step, module.validation[self._figure]
        lines = [line for line in read_metrics(self._folder) if line["split"] == "validation"]
        earlier = [line[self._figure] for line in lines if line["step"] != step and self._figure in line]
        known = [cast(float, other) for other in earlier if other is not None]
        # the first rank wrote these lines: let it decide for all
        better = [float(all(metric.beats(value, other) for other in known))]
        if parallel.from_first(better, pl_module.device)[0]:
            trainer.save_checkpoint(self._folder / BEST, weights_only=True)
