"""Config of a run as one typed value: `load` reads YAML files and ``key=value`` overrides, `to_yaml` writes it back.

Config types are defined beside the parts they configure; this module joins them and holds those of the loop. `schema`
makes them out of plain values.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from pathlib import Path
from typing import Literal, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from four_d import fields
from four_d.abilities import HINTS, Abilities
from four_d.data.loading import DataConfig
from four_d.errors import UserError, first_line
from four_d.losses import LossConfig
from four_d.metrics.catalogue import METRICS
from four_d.model import AnyModelConfig
from four_d.overlays import stack
from four_d.schema import Plain, build, merge, to_plain
from four_d.types import Gaussians, Geometry

MEASURED = frozenset(
    {"elapsed_s", "steps_per_s", "images_per_s", "tokens_per_s", "data_wait_s", "tflops_per_device", "mfu"}
    | {"step_s_p50", "step_s_p95", "step_s_max"}
    | {f"{place}_memory_{kind}gb" for place in ("host", "device") for kind in ("", "peak_")}
)
"""Names in lines of ``metrics.jsonl`` whose values depend on the machine and its clock."""
RECORDED = MEASURED | {"split", "step", "loss", "lr", "gradient_norm", "skipped_samples", "skipped", "skipped_steps"}
"""Names in lines of ``metrics.jsonl``, which no loss can have; nor can it have a metric's."""


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """Initial weights of a new run. All names of source and model must match, except for the patterns below."""

    path: str | None = None
    """An exported folder, a run folder or one checkpoint of a run; required where there is this section at all."""
    fresh: tuple[str, ...] = ()
    """Shell patterns of the model's names that stay as initialised."""
    dropped: tuple[str, ...] = ()
    """Shell patterns of the source's names that are left out."""
    copies: dict[str, str | None] = field(default_factory=dict[str, str | None])
    """Names that the source lacks → the source's names that initialise them: ``heads.motion.*: heads.points.*``. One
    ``*`` in each stands for one rest of the name; ``fresh`` takes precedence; null removes an entry."""

    def __post_init__(self) -> None:
        for each in (pattern for pair in self.copies.items() for pattern in pair if pattern is not None):
            if each.count("*") != 1 or set(each) & set("?[]"):
                raise UserError(f"copies: {each!r} must hold one *, as in heads.motion.*: heads.points.*")


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """Parameter group with its own settings; None: the run's."""

    parameters: tuple[str, ...]
    """Shell patterns of parameter names."""
    lr: float | None = None
    """Peak learning rate."""
    weight_decay: float | None = None
    """Weight decay, at least 0, of those that decay at all (`OptimiserConfig.weight_decay`)."""
    warmup_share: float | None = None
    """Fraction of the run for warm-up."""

    def __post_init__(self) -> None:
        if (self.lr is not None and self.lr <= 0) or (self.weight_decay or 0) < 0:
            raise UserError("lr must be positive, weight_decay at least 0")
        if not 0 <= (self.warmup_share or 0) < 1:
            raise UserError("warmup_share is a share of 1; choose 0 ≤ warmup_share < 1")


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """AdamW with linear warm-up and cosine decay to ``final_lr_share`` of the peak."""

    lr: float = 2e-4
    """Peak learning rate."""
    weight_decay: float = 0.05
    """Weight decay of the ``weight`` of linear, convolution and transposed-convolution layers and of their subclasses.
    Nothing else decays: no bias, norm, scale or token, and of modules of one's own no ``nn.Parameter`` of any shape, no
    ``nn.Embedding``, no ``in_proj_weight`` of ``nn.MultiheadAttention``."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the averages of gradients and of their squares."""
    warmup_share: float = 0.05
    """Fraction of the run (of its steps, or of its minutes where a budget is set) spent in warm-up; 0: none."""
    min_warmup_steps: int = 100
    """Minimum length of warm-up in steps, but no more than a fifth of ``loop.max_steps``. A fraction of a short run, or
    of the clock of a busy machine, may be two steps, and fresh heads die of the full rate
    (docs/results/rotation_in_minutes.md)."""
    final_lr_share: float = 0.01
    """Learning rate at the end, as a fraction of the peak."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    clip: Literal["all", "groups"] = "all"
    """Scope of gradient-norm clipping: all parameters together, or each of ``groups`` (and the rest) by itself."""
    groups: dict[str, GroupConfig] = field(default_factory=dict[str, GroupConfig])
    """Parameter groups with their own rate; the rest uses ``lr``. Learned weights of losses are ``losses.NAME.…``."""
    trainable: tuple[str, ...] = ("*",)
    """Shell patterns of parameter names to train; the others are frozen. Weights of losses train in any case."""
    frozen: tuple[str, ...] = ()
    """Patterns that freeze what would train, also weights of losses (``losses.NAME.…``)."""

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.weight_decay < 0 or self.clip_norm <= 0:
            raise UserError("lr and clip_norm must be positive, weight_decay at least 0")
        if self.min_warmup_steps < 0:
            raise UserError(f"min_warmup_steps is {self.min_warmup_steps}; choose 0 or more")
        if not (0 <= self.warmup_share < 1 and 0 <= self.final_lr_share <= 1):
            raise UserError("warmup_share and final_lr_share are shares of 1; choose 0 ≤ warmup_share < 1")

    @property
    def without_effect(self) -> dict[str, str]:
        """Settings that nothing reads → why."""
        unread = {} if self.groups else {"clip": "without groups"}
        warms = self.warmup_share or any(group.warmup_share for group in self.groups.values())
        if self.min_warmup_steps and not warms:  # 0 is what holds then
            unread["min_warmup_steps"] = "where warmup_share is 0"
        return unread


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints of a run, ``checkpoints/step-NNNNNNN.ckpt``; ``last.ckpt`` is a link to the newest."""

    keep: int = 1
    """Number of newest ones that stay, beside ``best.ckpt``."""
    background: bool = True
    """Write while training goes on, from a copy in the machine's memory; false: training waits, and no copy stays."""
    sharded: bool = True
    """With ``loop.strategy`` fsdp2: a folder to which every process writes its part; false: one file, gathered."""
    on_failure: Literal["continue", "stop"] = "continue"
    """Reaction to one that cannot be written, as on a full disk: continue and try again at the next, or stop the run.
    The last one of a run must be written in either case."""

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise UserError(f"keep is {self.keep}; choose 1 or more")


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """Steps of a run that torch's profiler records, in the first process."""

    start: int = 20
    """Steps after the run's start, or its going on, before the first one that is recorded."""
    steps: int = 5
    """Number of steps that are recorded: each takes some 10 MB."""

    def __post_init__(self) -> None:
        if self.start < 0 or not 1 <= self.steps <= MOST_PROFILED:
            raise UserError(f"start must be at least 0, steps from 1 to {MOST_PROFILED}")


MOST_PROFILED = 100
"""Limit of recorded steps, whose trace is held in memory."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Length and mode of training: one step = one update of the weights over ``accumulate`` batches."""

    max_steps: int = 1000
    """Number of weight updates after which the run ends."""
    max_minutes: float | None = None
    """Wall-clock budget from the end of the first step; the run ends at whichever limit comes first. Runs with a budget
    are not bitwise reproducible."""
    epoch_steps: int = 250
    """Steps between validations and checkpoints."""
    accumulate: int = 1
    """Batches whose gradients are averaged for one update."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic precision (`devices.Precision`); in bf16 the backward pass of float32 parts is in float32 too."""
    compile: bool = False
    """Compile the backbone's blocks in place."""
    ema: float | None = None
    """Decay of the exponential moving average of weights, which is validated and exported; None = no averaging."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device; auto: CUDA where there is a GPU, else Apple's (mps), else the CPU. ``four-d train --device`` sets it."""
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    """Division of a run among several processes. ddp: each has all weights; fsdp2: each has its part of weights,
    moments and averages, and gathers a block's weights for its pass. One process is alone, whatever this is."""
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints: their writing, and the number that stays."""
    bad_steps: int = 20
    """Steps in a row without a finite gradient after which the run ends. Such a step changes nothing, and its clips are
    named."""
    stall_seconds: float = 120.0
    """Time without progress after which the process that the others wait for is named; within half as much again."""
    timeout_seconds: float = 1800.0
    """Time after which an exchange between processes that does not end, as over a network that is cut, is an error on
    all that wait for it: the launcher can start them again. More than the slowest start, compilation or save."""
    flight_recorder: bool = False
    """Record the last collectives of NCCL, to be written to the run's folder when one times out."""
    profile: ProfileConfig | None = None
    """Record some steps with torch's profiler: ``{}`` or ``{start: 20, steps: 5}``. None: none."""
    best: str = "loss"
    """Validation figure whose best value, lowest or highest, marks ``best.ckpt``: loss, a term,
    depth_absrel_median_frame, pose_rot_pairs_deg, motion_epe_relative, object_rot_deg, or a metric given to the
    training."""

    def __post_init__(self) -> None:
        if min(self.max_steps, self.epoch_steps, self.accumulate) < 1:
            raise UserError("max_steps, epoch_steps and accumulate must be at least 1")
        if (self.max_minutes is not None and self.max_minutes <= 0) or not (self.ema is None or 0 <= self.ema < 1):
            raise UserError("max_minutes must be positive and ema in [0, 1), or null")
        for name in ("stall_seconds", "timeout_seconds"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name):g}; choose more than 0")
        if self.bad_steps < 1:
            raise UserError(f"bad_steps is {self.bad_steps}; choose 1 or more")


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Records of a run besides its ``metrics.jsonl``."""

    every: int = 10
    """Steps between lines."""
    pictures: int = 2
    """Clips drawn at each validation."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Copy figures and images to Weights & Biases."""
    wandb_project: str = "four_d"
    """Weights & Biases project."""
    tensorboard: bool = False
    """Copy figures and images to TensorBoard's files, in ``tensorboard/`` of the run's folder; an extra."""
    media_count: int = 200
    """Most images of a run that are copied."""
    media_side: int = 1024
    """Longest side in pixels of those copies; larger images are reduced."""
    peak_tflops: float | None = None
    """Peak rate of one device in the loop's precision, in 10¹² operations per second, of which ``mfu`` is a share.
    None: by data sheet for GPUs that are known (`training.work.PEAKS`), else no ``mfu``."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.pictures < 0 or self.media_count < 0 or self.media_side < 1:
            raise UserError("every and media_side must be at least 1, pictures and media_count at least 0")
        if self.peak_tflops is not None and self.peak_tflops <= 0:
            raise UserError(f"peak_tflops is {self.peak_tflops:g}; choose more than 0, or null")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that determines a training run."""

    name: str
    """Name of the run and of its folder."""
    model: AnyModelConfig
    """Model to train: a backbone and heads, or a ``kind`` of your own (`four_d.extend`)."""
    data: DataConfig
    """Training and validation data: which sets, how clips are cut from them, and what goes with them."""
    losses: dict[str, LossConfig]
    """Loss terms, each with its weight, under names of your choice."""
    weights: WeightsConfig | None = None
    """Initial weights; None: from scratch."""
    folder: str = "runs"
    """Parent of the run's folder, ``folder/name``."""
    seed: int = 0
    """Seed of the initial weights and of all random draws."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    """Optimiser: learning rates, their schedule, and which parameters train."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """Length, precision and rhythm of the run."""
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    """Records of the run: how often lines are written, and where else they go."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; choose 0 or more")
        for name, loss in self.losses.items():
            if name in RECORDED or name in METRICS or "." in name or hasattr(nn.ModuleDict(), name):
                raise UserError(f"a loss cannot be called {name!r}, which means something else; choose another name")
            if isinstance(loss.weight, int | float) and loss.weight < 0:
                raise UserError(f"losses.{name}.weight is {loss.weight:g}; a loss is minimised: choose 0 or more")
            if "surface" in loss.needs and not self.data.surface:
                raise UserError(
                    f"the loss {name} learns from correspondence; set data.surface=true or losses.{name}=null"
                )
            if "motion" in loss.needs and not self.data.query_times:
                raise UserError(
                    f"the loss {name} learns from motion to query times; set data.query_times=1 or losses.{name}=null"
                )
            if "views" in loss.needs and self.data.views is None:
                raise UserError(
                    f"the loss {name} compares pictures; set 'data.views={{count: 4}}' or losses.{name}=null"
                )
        self._check_hints()
        self._check_motion()
        self._check_world()

    def _check_motion(self) -> None:
        """Check that ``data.motion_every``, unless null, is the stride of the model's token rows."""
        every, stride = self.data.motion_every, self.model.abilities.stride
        if every not in (None, stride):
            has = "gives tokens of all frames" if stride == 1 else f"has stride {stride}"
            raise UserError(f"data.motion_every is {every}, and the backbone {has}; set data.motion_every=null")

    def _check_world(self) -> None:
        """Check that examples are in the coordinates of the model's outputs, and in a unit that these have."""
        world = self.model.abilities.world
        if self.data.world != world:
            raise UserError(f"data.world is {self.data.world}, and the model's outputs are not; set data.world={world}")
        if world == "stored" and self.data.normalisation != "stored":
            raise UserError(
                f"data.normalisation is {self.data.normalisation}, a unit of each example's own, and the model's world "
                "has one; set data.normalisation=stored"
            )

    def _check_hints(self) -> None:
        """Check that the model takes every hint of the data, and that the data always gives the required ones."""
        abilities = self.model.abilities
        for name in HINTS:
            share, use = getattr(self.data.hints, name), abilities.hints.get(name, "off")
            other = f"take other parts, which may do otherwise with {name}"
            if name in abilities.hint_settings:
                other = f"'model.{abilities.hint_settings[name]}={{{name}: optional}}'"
            if share and use == "off":
                raise UserError(
                    f"data.hints.{name} is {share}, and the model takes none; set data.hints.{name}=0, or {other}"
                )
            if use == "required" and share < 1:
                raise UserError(f"the model requires {name}; set data.hints.{name}=1, or {other}")

    @property
    def run_folder(self) -> Path:
        """Folder of the run's files."""
        return Path(self.folder) / self.name


def check_unit(run: RunConfig) -> None:
    """Check normalisation by disparity, which needs poses as inputs and Gaussians as the only outputs with lengths."""
    if run.data.normalisation != "disparity":
        return
    abilities = run.model.abilities
    other = sorted(_with_lengths(abilities))
    if "poses" not in abilities.required or other:
        reason = f"the model's {other[0]} would be in it" if other else "this model needs no poses"
        raise UserError(
            f"data.normalisation=disparity is a unit that only given poses and depth tell, and {reason}; "
            "set data.normalisation=mean_distance"
        )


SIZED = frozenset({Geometry.LENGTH, Geometry.POINT, Geometry.DISPLACEMENT, Geometry.POSE})


def _with_lengths(abilities: Abilities) -> set[str]:
    """Outputs, Gaussians excepted, that hold lengths, as the classes of its predictions declare."""
    found: set[str] = set()
    for each in itertools.chain.from_iterable(map(fields.declared, abilities.predictions)):
        within = [each] if each.kind is None else fields.declared(each.kind)
        if each.kind is not Gaussians and any(some.geometry in SIZED for some in within):
            found.add(each.name)
    return found & abilities.outputs


def load(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> RunConfig:
    """Merge YAML files left to right, then ``key=value`` overrides, then check every value.

    A path that does not exist is looked up among the shipped configs: ``vggt`` or ``overlays/tiny``. A first file
    loads its bases (`overlays`).

    Raises:
        UserError: unreadable file, a base that is missing or out of order, unknown key (nearest names given), wrong
            type or choice, missing value.

    """
    run = build(RunConfig, load_plain(paths, overrides), "config")
    check_unit(run)
    return run


def load_plain(paths: Sequence[str | Path], overrides: Sequence[str] = (), kind: type = RunConfig) -> Plain:
    """Merge and resolve config files and overrides of a dataclass, unchecked.

    Another ``kind`` of a part leaves nothing of the one before. The order of overrides does not matter to that: those
    of a part hold for the kind that one of them sets.
    """
    for override in overrides:
        if not re.fullmatch(r"[\w.]+=.*", override, flags=re.DOTALL):
            raise UserError(f"override {override!r} is not key=value, as in optimiser.lr=1e-4")
    layers = stack(paths)
    try:
        parts = [OmegaConf.to_container(OmegaConf.from_dotlist([each])) for each in _kinds_first(overrides)]
        given = (*(layer.content for layer in layers), *cast(list[Plain], parts))
        merged = reduce(partial(merge, kind), given, dict[str, object]())
        return cast(Plain, _at_home(OmegaConf.to_container(OmegaConf.create(merged), resolve=True)))
    except OmegaConfBaseException as error:
        raise UserError(f"cannot read config {', '.join(map(str, paths))}: {first_line(error)}") from error


def _kinds_first(overrides: Sequence[str]) -> list[str]:
    """Order overrides so that a part's ``kind`` comes before other settings of the part."""
    ordered: list[str] = []
    for override in overrides:
        part, kind, _ = override.partition(".kind=")
        settings = (
            place
            for place, each in enumerate(ordered)
            if kind and each.startswith(f"{part}.") and not each.startswith(f"{part}.kind=")
        )
        ordered.insert(next(settings, len(ordered)), override)
    return ordered


def _at_home(value: object) -> object:
    """Expand texts that begin with ``~/``, which shells do only at the beginning of a word."""
    if isinstance(value, dict):
        return {key: _at_home(each) for key, each in cast(Plain, value).items()}
    if isinstance(value, list):
        return [_at_home(each) for each in cast(list[object], value)]
    return str(Path(value).expanduser()) if isinstance(value, str) and value.startswith("~/") else value


def recipe(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> Plain:
    """Plain values of a config with all defaults, which may lack ``data.sources``, as shipped recipes do.

    Raises:
        UserError: as `load`.

    """
    plain = load_plain(paths, overrides)
    data = plain.get("data", {})
    lacking = isinstance(data, dict) and not cast(Plain, data).get("sources")
    if lacking:
        plain = {**plain, "data": {**cast(Plain, data), "sources": {"any": {"path": "any"}}}}
    run = build(RunConfig, plain, "config")
    check_unit(run)
    whole = cast(Plain, to_plain(run))
    if lacking:
        cast(Plain, whole["data"])["sources"] = {}
    return whole


def to_yaml(config: RunConfig) -> str:
    """Write a run's complete config as YAML that `load` reads back to an equal value."""
    return OmegaConf.to_yaml(OmegaConf.create(cast(Plain, to_plain(config))))
