"""`train`: one run from its config to its last checkpoint, begun anew or continued."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import warnings
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

import lightning
import torch
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from rich.console import Console
from rich.table import Table
from torch import distributed
from torch.utils.data import DataLoader

from four_d import checkpoints
from four_d.checkpoints import Checkpoint
from four_d.config import Plain, RunConfig, build, diff, load_plain, to_plain
from four_d.data.loading import FromStep, Step, TrainingSteps, ValidationClips, loader
from four_d.errors import UserError
from four_d.progress import progress
from four_d.training import parallel
from four_d.training.callbacks import BEST, LAST, BestKeeper, Keeper, Reporter, Stopped, Watch
from four_d.training.module import TrainingModule
from four_d.training.parallel import World
from four_d.training.record import CONFIG, ENVIRONMENT, RunRecord, alone, read_metrics
from four_d.types import map_tensors

Resume = Literal["auto", "never", "always"]
STOPPED = 143
"""Exit code of a run that a signal ended: 128 + SIGTERM, which launchers understand."""

_FIXED = ("model", "data", "seed")
"""What a continued run must not change …"""
_FREE = re.compile(r"data\.workers|data\.(sources|validation)\.[^.]+\.path")
"""… but for these: the clips themselves are compared instead of their path."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run came to. ``exit_code`` is 0, or 143 where a signal ended it after saving."""

    folder: Path
    checkpoint: Path
    best: Path | None
    steps: int
    seconds: float
    """Of training and validation, over all starts of the run."""
    validation: dict[str, float]
    """Figures of the last validation; empty without one."""
    before: dict[str, float] = field(default_factory=dict[str, float])
    """Figures of the weights that a run started from; empty where it started from scratch or has no validation."""
    exit_code: int = 0

    @property
    def worse(self) -> tuple[str, ...]:
        """Figures that got worse since the start, by more than a thousandth, or infinite; all of them are errors."""
        limits = {name: value + 1e-3 * abs(value) for name, value in self.before.items()}
        return tuple(name for name, most in limits.items() if not self.validation.get(name, math.inf) <= most)


@dataclass(frozen=True)
class _Start:
    """Where a run goes on."""

    step: int = 0
    elapsed: float = 0.0
    checkpoint: Path | None = None


class RunData(lightning.LightningDataModule):
    """The run's stream from a given step on, and its validation list."""

    def __init__(self, config: RunConfig, world: World, start: int) -> None:
        super().__init__()
        data, loop = config.data, config.loop
        self._workers, self._start = data.workers, start
        self.training = TrainingSteps(
            data, config.seed, accumulate=loop.accumulate, rank=world.rank, world_size=world.size
        )
        self.validation = ValidationClips(data, rank=world.rank, world_size=world.size) if data.validation else None
        gaussian = config.model.gaussian
        for part in (self.training, self.validation):
            if part is not None and gaussian is not None:
                part.sources.check_times(gaussian.frames)

    def train_dataloader(self) -> DataLoader[Step]:
        """Steps in order, from where the run stands; callbacks end the run, not the stream."""
        return self._loader(self.training, FromStep(self._start))

    def val_dataloader(self) -> list[DataLoader[Step]]:
        """The fixed list."""
        return [] if self.validation is None else [self._loader(self.validation, range(len(self.validation)))]

    def transfer_batch_to_device(
        self,
        batch: Step,
        device: torch.device,
        dataloader_idx: int,  # noqa: ARG002  # Lightning passes it
    ) -> Step:
        """Lightning cannot move frozen dataclasses."""
        return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))

    def _loader(self, data: TrainingSteps | ValidationClips, sampler: Iterable[int]) -> DataLoader[Step]:
        return loader(data, sampler, self._workers, pin_memory=torch.cuda.is_available())


def train(config: RunConfig, *, resume: Resume = "auto") -> TrainResult:
    """Train what ``config`` says in ``config.run_folder``.

    ``auto`` goes on from the folder's checkpoint if it has one, ``always`` insists on one, ``never`` on none. The same
    call works alone and under torchrun.

    Raises:
        UserError: the folder's checkpoint belongs to another model, seed or data; another process trains there; or bad
            input of any part.

    """
    world = parallel.discover()
    if config.weights is not None and config.weights.path is None:
        raise UserError("weights.path is missing; give weights=PATH, or weights=null to train from scratch")
    start = _find_start(config, resume, told=world.rank == 0)
    data = RunData(config, world, start.step)
    _refuse_other_data(config.run_folder, data.training.sources.fingerprint(), start)
    if _is_over(config, start):
        return _result(config, start.step, start.elapsed, 0)
    with quiet():
        module = TrainingModule(config, _weights(config, start))
        with alone(config.run_folder) if world.rank == 0 else nullcontext():
            if world.rank == 0 and _find_start(config, resume, told=False) != start:
                raise UserError(f"{config.run_folder} was trained by another process meanwhile; start again")
            return _fit(module, world, data, start)


def finetune(config: RunConfig, *, resume: Resume = "auto") -> TrainResult:
    """`train` from given weights, which are scored on the validation data before and after.

    Says on stderr which figures got worse.

    Raises:
        UserError: no weights or no validation data; and what `train` raises.

    """
    if config.weights is None or config.weights.path is None:
        raise UserError("fine-tuning starts from weights; give weights=PATH (an exported folder or a run folder)")
    if not config.data.validation:
        raise UserError("fine-tuning is judged on held-out clips; give data.validation.NAME.path=DIR (or use train)")
    result = train(config, resume=resume)
    if result.exit_code == 0 and parallel.discover().rank == 0:
        compare(result)
    return result


def compare(result: TrainResult) -> None:
    """Print the figures before and after; say on stderr which got worse."""
    table = Table(title=f"{result.folder}: held-out clips, lower is better")
    for heading in ("", "before", "after"):
        table.add_column(heading, justify="right" if heading else "left")
    for name in {**result.before, **result.validation}:
        before, after = (figures.get(name, math.nan) for figures in (result.before, result.validation))
        table.add_row(name, f"{before:.4g}", f"{after:.4g}{' ✗' if name in result.worse else ''}")
    Console().print(table)
    if result.worse:
        print(
            f"warning: worse than the weights it started from: {', '.join(result.worse)}; the best of the run is in "
            f"{result.best or result.checkpoint}. Train longer, at a lower optimiser.lr, or on more data",
            file=sys.stderr,
        )


def _fit(module: TrainingModule, world: World, data: RunData, start: _Start) -> TrainResult:
    config = module.config
    folder, loop = config.run_folder, config.loop
    fingerprint = data.training.sources.fingerprint()
    record = RunRecord(folder, config, fingerprint, start.step) if world.rank == 0 else None
    exit_code = 1
    try:
        with progress(f"training {config.name}", loop.max_steps, "step", shown=world.rank == 0) as bar:
            bar.resume(start.step)
            clips = data.validation.total if data.validation is not None else 0
            reporter = Reporter(record, bar, clips)
            watch, best = Watch(), BestKeeper(folder, reporter, loop.best)
            callbacks = [Agreement(start.step, fingerprint), watch, reporter, best, Keeper(folder, watch)]
            trainer = make_trainer(config, world, callbacks)
            exit_code = _run(trainer, module, data, start)
    finally:
        if record is not None:
            record.close(exit_code)
        if world.size > 1 and distributed.is_initialized():
            distributed.destroy_process_group()
    return _result(config, module.step, module.elapsed, exit_code)


def _weights(config: RunConfig, start: _Start) -> Checkpoint | None:
    """What a new run starts from."""
    if start.checkpoint is not None or config.weights is None or config.weights.path is None:
        return None
    return checkpoints.read(config.weights.path)


def _run(trainer: lightning.Trainer, module: TrainingModule, data: RunData, start: _Start) -> int:
    checkpoint = None if start.checkpoint is None else str(start.checkpoint)
    try:
        if module.origin and checkpoint is None and data.validation is not None:
            trainer.validate(module, datamodule=data, verbose=False)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except Stopped:
        return STOPPED
    return 0


def make_trainer(config: RunConfig, world: World, callbacks: Sequence[lightning.Callback]) -> lightning.Trainer:
    """Lightning's Trainer as a thin shell: one endless epoch; figures, checkpoints and the end are our callbacks'."""
    loop = config.loop
    return lightning.Trainer(
        accelerator=loop.accelerator,
        devices=world.local_size,
        num_nodes=world.nodes,
        strategy=parallel.strategy(world, loop.accelerator),
        plugins=[TorchElasticEnvironment()] if world.size > 1 else None,
        precision="bf16-mixed" if loop.precision == "bf16" else "32-true",
        callbacks=list(callbacks),
        max_epochs=1,
        val_check_interval=loop.epoch_steps,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if config.data.validation else 0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(config.run_folder),
    )


class Agreement(lightning.Callback):
    """Before the first step all processes must mean the same run: one that does not would hang the others later."""

    def __init__(self, step: int, fingerprint: str) -> None:
        self._facts = {"the step to go on from": step, "the list of training clips": int(fingerprint[:15], 16)}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Compare."""
        loop = cast(TrainingModule, pl_module).config.loop
        validation = trainer.num_val_batches
        facts = {
            **self._facts,
            "loop.max_steps": loop.max_steps,
            "loop.epoch_steps": loop.epoch_steps,
            "the number of validation clips": int(validation[0]) if validation else 0,
        }
        parallel.must_agree(facts, pl_module.device)


def _find_start(config: RunConfig, resume: Resume, *, told: bool) -> _Start:
    folder, path = config.run_folder, config.run_folder / LAST
    if not path.is_file():
        if resume == "always":
            raise UserError(f"{folder} has no checkpoint to go on from; start with --resume auto")
        return _Start()
    if resume == "never":
        raise UserError(f"{folder} already has a checkpoint; choose another name, or --resume auto to go on from it")
    # built, not compared as text: settings that did not exist when the run began have their defaults
    began = build(RunConfig, load_plain([folder / CONFIG]), str(folder / CONFIG))
    changes = diff(to_plain(began), to_plain(config))
    for name, old, new in changes:
        if name.split(".")[0] in _FIXED and not _FREE.fullmatch(name):
            raise UserError(f"{folder} began with {name}={old}, now it is {new}; change it back or choose another name")
    if told:
        for name, old, new in changes:
            print(f"changed since the run began: {name} {old} -> {new}", file=sys.stderr)
    run = _read_run(path)
    return _Start(cast(int, run["step"]), cast(float, run["elapsed"]), path)


def _read_run(path: Path) -> Plain:
    try:
        return cast(dict[str, Plain], torch.load(path, map_location="cpu", mmap=True, weights_only=True))["run"]
    except Exception as error:
        # a damaged file raises whatever the zip reader or the unpickler stumbles over
        raise UserError(f"{path} cannot be read ({type(error).__name__}); remove it to begin anew") from error


def _refuse_other_data(folder: Path, fingerprint: str, start: _Start) -> None:
    path = folder / ENVIRONMENT
    if start.checkpoint is None or not path.is_file():
        return
    if json.loads(path.read_text()).get("data") != fingerprint:
        raise UserError(f"the clips of data.sources are not those that {folder} began with; choose another name")


def _is_over(config: RunConfig, start: _Start) -> bool:
    minutes = config.loop.max_minutes
    return start.step >= config.loop.max_steps or (minutes is not None and start.elapsed >= 60 * minutes)


def _result(config: RunConfig, steps: int, seconds: float, exit_code: int) -> TrainResult:
    folder = config.run_folder
    lines = [line for line in read_metrics(folder) if line["split"] == "validation"]
    first = [line for line in lines[:1] if line["step"] == 0]
    return TrainResult(
        folder=folder,
        checkpoint=folder / LAST,
        best=folder / BEST if (folder / BEST).is_file() else None,
        steps=steps,
        seconds=seconds,
        validation=_figures(lines[-1:]),
        before=_figures(first),
        exit_code=exit_code,
    )


def _figures(lines: list[Plain]) -> dict[str, float]:
    named = [item for line in lines for item in line.items()]
    return {name: value for name, value in named if isinstance(value, float) and name != "elapsed_s"}


@contextmanager
def quiet() -> Generator[None]:
    """Without Lightning's notes and adverts, and without its warnings of what we chose or cannot mend from here."""
    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # lightning 2.6.6 on torch >= 2.13, in its own code
            warnings.filterwarnings("ignore", message=".*LeafSpec.*deprecated.*")
            # fewer workers than cores can be right, and is the user's choice
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
