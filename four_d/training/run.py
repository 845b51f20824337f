"""`train`: one run from its config to its last checkpoint, begun anew or continued."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, TypedDict, Unpack, cast

import lightning
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from rich.table import Table
from torch import distributed
from torch.utils.data import DataLoader

from four_d import checkpoints, sharding
from four_d.checkpoints import ENVIRONMENT, LAST, METRICS
from four_d.config import LoopConfig, RunConfig, check_unit, load_plain
from four_d.constants import move
from four_d.data.loading import FromStep, Step, TrainingSteps, ValidationClips, loader
from four_d.data.remote import locate
from four_d.data.sources import Sources
from four_d.devices import announce, emulates_bf16, tensor_cores, told_when_full, usable
from four_d.errors import UserError, first_line
from four_d.metrics.metric import Metric
from four_d.outputs import keep_apart
from four_d.progress import progress
from four_d.schema import Plain, build, diff, to_plain, unread
from four_d.training import parallel
from four_d.training.agreement import FREE, Agreement
from four_d.training.callbacks import BEST, BestKeeper, Keeper, Reporter, Stopped, Watch
from four_d.training.copies import check_copies
from four_d.training.heartbeat import Heartbeat, record_flights
from four_d.training.module import TrainingModule
from four_d.training.parallel import World
from four_d.training.profiling import Profiling
from four_d.training.record import CONFIG, RunRecord, alone, read_metrics
from four_d.training.saving import Writer, clean, readable
from four_d.training.strategies import Fsdp2, strategy, timeout
from four_d.training.supervision import unsupervised
from four_d.training.validation import validation_metrics
from four_d.training.variation import SAME_FOR, stuck
from four_d.types import map_tensors

LOGGER = logging.getLogger(__name__)

Resume = Literal["auto", "never", "always"]
WORSE = 1e-3
"""Fraction of a figure by which it may get worse before that is reported."""
STOPPED = 143
"""Exit code of a run that a signal ended: 128 + SIGTERM, which launchers understand."""

_FIXED = ("model", "data", "seed")
"""Settings that must not change when a run continues, except `agreement.FREE`."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Result of a run. ``exit_code`` is 0, or 143 where a signal ended it after saving."""

    folder: Path
    checkpoint: Path
    best: Path | None
    steps: int
    seconds: float
    """Seconds of training and validation, over all starts of the run, each from the end of its first step."""
    validation: dict[str, float]
    """Figures of the last validation; empty without one."""
    before: dict[str, float] = field(default_factory=dict[str, float])
    """Figures of the initial weights; empty for a run from scratch or without validation."""
    constant: dict[str, str] = field(default_factory=dict[str, str])
    """Outputs that were constant in the last validation → "clip" or "frame", the index that they do not depend on."""
    exit_code: int = 0
    metrics: Mapping[str, Metric] = field(default_factory=validation_metrics)
    """Figures that validation may give, by name."""

    @property
    def worse(self) -> tuple[str, ...]:
        """Figures that got worse since the start, in their own direction, by more than a thousandth, or no number."""
        found: list[str] = []
        for name, before in self.before.items():
            after, better = self.validation.get(name, math.nan), self.metrics[name].better
            sign = {"lower": 1, "higher": -1, None: 0}[better]
            if better is not None and not sign * (after - before) <= WORSE * abs(before):
                found.append(name)
        return tuple(found)


class TrainerOptions(TypedDict, total=False):
    """Options of Lightning's trainer besides those of the config, and metrics of the caller's own."""

    metrics: Sequence[Metric]
    """Metrics that validation computes beside the catalogue's, by which ``loop.best`` may choose too."""

    callbacks: Sequence[Callback]
    """Callbacks, called after the run's own, but before its checkpoints are written. Their state is stored there, so it
    must be plain values and tensors."""
    logger: Logger | Iterable[Logger]
    """Loggers, beside ``metrics.jsonl``, of ``train/NAME`` every ``logging.every`` steps and of ``validation/NAME``."""
    profiler: Profiler | str
    strategy: DDPStrategy | Fsdp2
    """Replacement of the strategy of ``loop.strategy``, with options of its own."""


@dataclass(frozen=True)
class _Start:
    """Starting point of a run."""

    step: int = 0
    elapsed: float = 0.0
    checkpoint: Path | None = None


class RunData(lightning.LightningDataModule):
    """The run's stream of steps from the `TrainingModule`'s position, and its validation list.

    ``world`` None: the trainer's ranks, once known.
    """

    def __init__(self, config: RunConfig, world: World | None = None) -> None:
        super().__init__()
        self._config, self._given = config, world

    @property
    def _world(self) -> World:
        if self._given is not None or self.trainer is None:
            return self._given or World()
        return World(rank=self.trainer.global_rank, size=self.trainer.world_size)

    @cached_property
    def training(self) -> TrainingSteps:
        """Training stream of this process."""
        config, world = self._config, self._world
        steps = TrainingSteps(
            config.data,
            config.seed,
            accumulate=config.loop.accumulate,
            rank=world.rank,
            world_size=world.size,
            nodes=world.nodes,
            patch_size=config.model.abilities.multiple,
        )
        self._check_times(steps.sources)
        return steps

    @cached_property
    def validation(self) -> ValidationClips | None:
        """Held-out clips of this process; None without any."""
        world = self._world
        if not self._config.data.validation:
            return None
        clips = ValidationClips(self._config.data, rank=world.rank, world_size=world.size)
        self._check_times(clips.sources)
        return clips

    def _check_times(self, sources: Sources) -> None:
        times = self._config.model.abilities.times
        if times is not None:
            sources.check_times(times)

    def train_dataloader(self) -> DataLoader[Step]:
        """Loader of endless steps, in order."""
        module = None if self.trainer is None else self.trainer.lightning_module
        return self._loader(self.training, FromStep(module.step if isinstance(module, TrainingModule) else 0))

    def val_dataloader(self) -> list[DataLoader[Step]]:
        """Loader of the fixed validation list."""
        return [] if self.validation is None else [self._loader(self.validation, range(len(self.validation)))]

    def transfer_batch_to_device(
        self,
        batch: Step,
        device: torch.device,
        dataloader_idx: int,  # noqa: ARG002  # Lightning passes it
    ) -> Step:
        """Move a batch to the device, since Lightning cannot move frozen dataclasses."""
        return map_tensors(batch, lambda tensor: move(tensor, device))

    def _loader(self, data: TrainingSteps | ValidationClips, sampler: Iterable[int]) -> DataLoader[Step]:
        return loader(data, sampler, self._config.data.workers, pin_memory=torch.cuda.is_available())


@told_when_full(
    "lower data.images_per_batch (loop.accumulate makes up for it), or set model.backbone.checkpointing=true"
)
def train(config: RunConfig, *, resume: Resume = "auto", **options: Unpack[TrainerOptions]) -> TrainResult:
    """Train as configured, in ``config.run_folder``.

    ``auto`` continues from the folder's checkpoint if it has one, ``always`` requires one, ``never`` requires none. One
    call works alone and under torchrun. `TrainerOptions` are passed to Lightning's trainer, but for ``metrics``.

    Raises:
        UserError: the run's folder is, contains or lies in an input, or holds files of its names that no run wrote;
            its checkpoint belongs to another model, seed or data; another process trains there; one of ``metrics``
            has no function or the name of another figure; or bad input of any part.

    """
    world, device = parallel.discover(), usable(config.loop.accelerator)
    parallel.tell_tasks(world)
    _keep_from_inputs(config)
    if world.rank == 0:  # a slower process would take the first one's new files for another's
        _refuse_foreign_files(config.run_folder)
    check_unit(config)
    check_copies(config.logging)
    own = options.get("metrics", ())
    metrics = validation_metrics(config.losses, own)
    if config.weights is not None and config.weights.path is None:
        raise UserError("weights.path is missing; give weights=PATH, or weights=null to train from scratch")
    start = _find_start(config, resume, told=world.rank == 0)
    _refuse_other_size(config, start, world)
    data = RunData(config, world)
    _refuse_other_data(config.run_folder, data.training.sources.fingerprint(config.data.shuffle_shards), start, world)
    if _is_over(config, start):
        if world.rank == 0:
            told = f"{config.run_folder} is at its end already ({start.step} steps, {start.elapsed / 60:.1f} minutes)"
            LOGGER.warning(f"{told}: nothing is trained; raise loop.max_steps or loop.max_minutes to go on")
        return _result(config, metrics, start.step, start.elapsed, 0)
    if world.rank == 0:
        announce(device, config.loop.precision, f"training {config.name}")
        for line in (
            *unsupervised(config.losses, config.data, data.training.sources),
            *slow_precision(config.loop, device),
        ):
            LOGGER.warning(line)
    with quiet(), tensor_cores(config.loop.precision):
        module = TrainingModule(config, _weights(config, start), own, resumed=start.checkpoint is not None)
        with alone(config.run_folder) if world.rank == 0 else nullcontext():
            if world.rank == 0 and _find_start(config, resume, told=False) != start:
                raise UserError(f"{config.run_folder} was trained by another process meanwhile; start again")
            if world.rank == 0:
                clean(config.run_folder)
            return _fit(module, world, data, start, options)


def slow_precision(loop: LoopConfig, device: torch.device) -> list[str]:
    """Line that advises float32 where the processor emulates bfloat16."""
    if loop.precision != "bf16" or not emulates_bf16(device):
        return []
    return ["this processor has no AVX-512 and emulates bfloat16, which is far slower; set loop.precision=fp32"]


def _keep_from_inputs(config: RunConfig) -> None:
    """Raise UserError for a run folder that overlaps the inputs."""
    weights, data = None if config.weights is None else config.weights.path, config.data
    places = [locate(each.path) for each in (*data.sources.values(), *data.validation.values())]
    keep_apart(config.run_folder, [weights, *(place for place in places if isinstance(place, Path))])


def _refuse_foreign_files(folder: Path) -> None:
    """Raise UserError for a run folder that holds files of a run's names and no run."""
    if (folder / ENVIRONMENT).is_file() or (folder / LAST).exists():
        return
    for name in (CONFIG, METRICS, BEST):
        if (folder / name).exists():
            raise UserError(
                f"{folder / name} is there, and no run was begun in {folder}; choose another name or folder"
            )


def finetune(config: RunConfig, *, resume: Resume = "auto", **options: Unpack[TrainerOptions]) -> TrainResult:
    """Train from given weights (`train`), with figures on the validation data before and after.

    Figures that got worse are reported on stderr.

    Raises:
        UserError: no weights or no validation data; and what `train` raises.

    """
    if config.weights is None or config.weights.path is None:
        raise UserError("fine-tuning starts from weights; give weights=PATH (an exported folder or a run folder)")
    if not config.data.validation:
        raise UserError("fine-tuning is judged on held-out clips; give data.validation.NAME.path=DIR (or use train)")
    result = train(config, resume=resume, **options)
    if result.exit_code == 0 and parallel.discover().rank == 0:
        compare(result)
    return result


def compare(result: TrainResult) -> None:
    """Print the figures before and after; report those that got worse on stderr."""
    table = Table(title=f"{result.folder}: held-out clips")
    for heading in ("", "before", "after"):
        table.add_column(heading, justify="right" if heading else "left")
    for name in {**result.before, **result.validation}:
        before, after = (f"{f[name]:.4g}" if name in f else "–" for f in (result.before, result.validation))
        table.add_row(result.metrics[name].heading, before, f"{after}{' ✗' if name in result.worse else ''}")
    Console().print(table)
    for output, same_for in result.constant.items():
        LOGGER.warning(f"warning: {stuck(output, same_for)}")
    if result.worse:
        LOGGER.warning(
            f"warning: worse than the weights it started from: {', '.join(result.worse)}; the best of the run is in "
            f"{result.best or result.checkpoint}. Train longer, at a lower optimiser.lr, or on more data"
        )


def _fit(module: TrainingModule, world: World, data: RunData, start: _Start, options: TrainerOptions) -> TrainResult:
    config = module.config
    folder, loop = config.run_folder, config.loop
    fingerprint = data.training.sources.fingerprint(config.data.shuffle_shards)
    record = RunRecord(folder, config, fingerprint, start.step, world.size) if world.rank == 0 else None
    if loop.flight_recorder:
        record_flights(folder)
    writer = Writer(folder, loop.checkpoints, timeout(loop))
    exit_code, met_before = 1, distributed.is_initialized()
    try:
        with progress(f"training {config.name}", loop.max_steps, "step", shown=world.rank == 0) as bar:
            bar.resume(start.step)
            watch, best = Watch(writer), BestKeeper(folder, loop.best)
            own = [metric.name for metric in options.get("metrics", ())]
            reporter = Reporter(record, bar, own, lambda: watch.stop)
            first: list[Callback] = [Agreement(start.step, fingerprint), watch, reporter, best]
            if loop.profile is not None and world.rank == 0:
                first.insert(2, Profiling(folder / "profile", loop.profile))
            if world.size > 1:
                first.append(Heartbeat(folder, world, loop.stall_seconds))
            callbacks = [*first, *options.get("callbacks", ()), Keeper(folder, watch)]
            trainer = make_trainer(config, world, {**options, "callbacks": callbacks}, writer)
            exit_code = _run(trainer, module, data, start)
        # launchers end all processes when one ends: none does before the last checkpoint is complete
        parallel.together(writer.close())
    finally:
        writer.wait()
        if record is not None:
            record.close(exit_code)
        if distributed.is_initialized() and not met_before:
            distributed.destroy_process_group()
    return _result(config, module.metrics, module.step, module.elapsed, exit_code)


def _weights(config: RunConfig, start: _Start) -> checkpoints.Checkpoint | None:
    """Weights that a new run starts from."""
    if start.checkpoint is not None or config.weights is None or config.weights.path is None:
        return None
    return checkpoints.read(config.weights.path)


def _run(trainer: lightning.Trainer, module: TrainingModule, data: RunData, start: _Start) -> int:
    checkpoint = None if start.checkpoint is None else str(start.checkpoint)
    try:
        if module.origin and checkpoint is None and data.validation is not None:
            trainer.validate(module, datamodule=data, verbose=False)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except (Stopped, SIGTERMException):  # Lightning's: before the first step there is nothing to save
        return STOPPED
    except RuntimeError as error:
        if not parallel.is_of_others(error):
            raise
        raise UserError(
            f"process {trainer.global_rank} lost the others ({first_line(error)}): one of them ended, or the network "
            "between them is cut; started again, the run goes on from its last checkpoint"
        ) from error
    return 0


def make_trainer(
    config: RunConfig, world: World, options: TrainerOptions, writer: Writer | None = None
) -> lightning.Trainer:
    """Make Lightning's Trainer as a thin shell: one endless epoch; callbacks do figures, checkpoints and the end."""
    loop, callbacks = config.loop, list(options.get("callbacks", ()))
    return lightning.Trainer(
        accelerator=loop.accelerator,
        devices=world.local_size,
        num_nodes=world.nodes,
        strategy=options.get("strategy") or strategy(world, loop),
        plugins=[parallel.environment(world), *([] if writer is None else [writer])],
        precision="bf16-mixed" if loop.precision == "bf16" else "32-true",
        callbacks=callbacks,
        max_epochs=1,
        val_check_interval=loop.epoch_steps,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if config.data.validation else 0,
        num_sanity_val_steps=0,
        inference_mode=False,  # in trainer.validate no loss term could differentiate
        use_distributed_sampler=False,
        logger=options.get("logger", False),
        log_every_n_steps=config.logging.every,
        profiler=options.get("profiler"),
        enable_checkpointing=any(isinstance(each, Checkpoint) for each in callbacks),
        enable_progress_bar=any(isinstance(each, ProgressBar) for each in callbacks),
        enable_model_summary=False,
        default_root_dir=str(config.run_folder),
    )


def _find_start(config: RunConfig, resume: Resume, *, told: bool) -> _Start:
    folder, path = config.run_folder, config.run_folder / LAST
    if not path.exists():
        if resume == "always":
            raise UserError(f"{folder} has no checkpoint to go on from; start with --resume auto")
        return _Start()
    if resume == "never":
        raise UserError(f"{folder} already has a checkpoint; choose another name, or --resume auto to go on from it")
    # built, not compared as text: settings that did not exist when the run began have their defaults
    began = build(RunConfig, load_plain([folder / CONFIG]), str(folder / CONFIG), recorded=True)
    idle = unread(began) | unread(config)
    changes = [change for change in diff(to_plain(began), to_plain(config)) if change[0] not in idle]
    for name, old, new in changes:
        if name.split(".")[0] in _FIXED and not FREE.fullmatch(name):
            raise UserError(f"{folder} began with {name}={old}, now it is {new}; change it back or choose another name")
    if told:
        for name, old, new in changes:
            LOGGER.warning(f"changed since the run began: {name} {old} -> {new}")
    run = _read_run(path)
    return _Start(cast(int, run["step"]), cast(float, run["elapsed"]), path)


def _read_run(path: Path) -> Plain:
    with readable(path):
        return cast(Plain, sharding.read_skeleton(path)["run"])


def _refuse_other_data(folder: Path, fingerprint: str, start: _Start, world: World) -> None:
    path = folder / ENVIRONMENT
    if start.checkpoint is None or not path.is_file():
        return
    described = json.loads(path.read_text())
    if described.get("data") != fingerprint:
        raise UserError(f"the clips of data.sources are not those that {folder} began with; choose another name")
    before = described.get("processes", world.size)
    if before != world.size and world.rank == 0:
        told = "batches and their order are the same, sums over processes differ by rounding"
        LOGGER.warning(f"changed since the run began: processes {before} -> {world.size}; {told}")


def _refuse_other_size(config: RunConfig, start: _Start, world: World) -> None:
    """Raise UserError for a run that goes on with a number of processes that its batches cannot be divided among.

    A new run would be told to set ``data.clips_multiple``, which must not change any more.
    """
    multiple = config.data.clips_multiple
    if start.checkpoint is not None and multiple % world.size:
        sizes = ", ".join(str(size) for size in range(1, multiple + 1) if multiple % size == 0)
        raise UserError(
            f"{config.run_folder} cannot go on with {world.size} processes: its batches are clips in multiples of "
            f"{multiple} (data.clips_multiple), and stay so; start one of {sizes} processes"
        )


def _is_over(config: RunConfig, start: _Start) -> bool:
    minutes = config.loop.max_minutes
    return start.step >= config.loop.max_steps or (minutes is not None and start.elapsed >= 60 * minutes)


def _result(
    config: RunConfig, metrics: Mapping[str, Metric], steps: int, seconds: float, exit_code: int
) -> TrainResult:
    folder = config.run_folder
    lines = [line for line in read_metrics(folder) if line["split"] == "validation"]
    first = [line for line in lines[:1] if line["step"] == 0]
    return TrainResult(
        folder=folder,
        checkpoint=folder / LAST,
        best=folder / BEST if (folder / BEST).is_file() else None,
        steps=steps,
        seconds=seconds,
        validation=_figures(lines[-1:], metrics),
        before=_figures(first, metrics),
        constant=_constant([line for line in read_metrics(folder) if line["split"] == "variation"][-1:]),
        exit_code=exit_code,
        metrics=metrics,
    )


def _figures(lines: list[Plain], metrics: Mapping[str, Metric]) -> dict[str, float]:
    named = [item for line in lines for item in line.items()]
    return {name: value for name, value in named if isinstance(value, float) and name in metrics}


def _constant(lines: list[Plain]) -> dict[str, str]:
    named = [item for line in lines for item in line.items()]
    return {name.removesuffix(SAME_FOR): str(value) for name, value in named if name.endswith(SAME_FOR)}


@contextmanager
def quiet() -> Generator[None]:
    """Silence Lightning's notes, and its warnings about deliberate choices or its own code."""
    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # lightning 2.6.6 on torch >= 2.13, in its own code
            warnings.filterwarnings("ignore", message=".*LeafSpec.*deprecated.*")
            # a frozen encoder stays in eval mode
            warnings.filterwarnings("ignore", message="Found .* module.* in eval mode at the start of training.*")
            # a cluster's machine, where processes are started by torchrun or by our own script
            warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
            # Lightning's means are not asked for: the module reduces its own figures
            warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
            # fewer workers than cores can be right, and is the user's choice
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
