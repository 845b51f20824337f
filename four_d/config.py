"""A run as one typed value: `load` reads YAML files and ``key=value`` overrides, `to_yaml` writes it back.

Types stand beside the parts they configure; this module joins them and holds those of the loop. A part that comes in
several kinds is a closed union of dataclasses, told apart by ``kind``: that union is the registry.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Literal, TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from four_d.backbones.spacetime import SpacetimeConfig
from four_d.data.loading import DataConfig
from four_d.errors import UserError
from four_d.heads.camera import CameraHeadConfig
from four_d.heads.dense import DenseHeadConfig
from four_d.losses import LossConfig
from four_d.model import ModelConfig

Plain = dict[str, object]
"""Nested dicts, lists, strings, numbers, booleans and None."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """What a new run starts from. Every name of the source and of the model must be met, but for the patterns below."""

    path: str | None = None
    """An exported folder, a run folder or one checkpoint of a run; required where there is this section at all."""
    fresh: tuple[str, ...] = ()
    """Shell patterns of the model's names that stay as initialised."""
    dropped: tuple[str, ...] = ()
    """Shell patterns of the source's names that are left out."""
    copies: dict[str, str | None] = field(default_factory=dict[str, str | None])
    """Names that the source lacks → the source's names that they begin as: ``heads.motion.*: heads.points.*``. One
    ``*`` in each stands for the same rest of the name; ``fresh`` goes first; null takes out an entry."""

    def __post_init__(self) -> None:
        for each in (pattern for pair in self.copies.items() for pattern in pair if pattern is not None):
            if each.count("*") != 1 or set(each) & set("?[]"):
                raise UserError(f"copies: {each!r} must hold one *, as in heads.motion.*: heads.points.*")


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """Parameters with settings of their own; None: the run's."""

    parameters: tuple[str, ...]
    """Shell patterns of names."""
    lr: float | None = None
    weight_decay: float | None = None
    warmup_share: float | None = None

    def __post_init__(self) -> None:
        if (self.lr is not None and self.lr <= 0) or (self.weight_decay or 0) < 0:
            raise UserError("lr must be positive, weight_decay at least 0")
        if not 0 <= (self.warmup_share or 0) < 1:
            raise UserError("warmup_share is a share of 1; choose 0 ≤ warmup_share < 1")


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """AdamW with linear warm-up and cosine decay to ``final_lr_share`` of the peak."""

    lr: float = 2e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_share: float = 0.05
    """Share of the run (steps, or minutes where a budget is set) for warm-up."""
    final_lr_share: float = 0.01
    clip_norm: float = 1.0
    clip: Literal["all", "groups"] = "all"
    """Whose gradient's norm is limited: that of everything together, or of each of ``groups`` (and of the rest)."""
    groups: dict[str, GroupConfig] = field(default_factory=dict[str, GroupConfig])
    """Parts that train at another rate; what is in none is the rest."""
    trainable: tuple[str, ...] = ("*",)
    """Shell patterns of parameter names; what matches none stays frozen."""
    frozen: tuple[str, ...] = ()
    """Patterns that freeze again what ``trainable`` matched."""

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.weight_decay < 0 or self.clip_norm <= 0:
            raise UserError("lr and clip_norm must be positive, weight_decay at least 0")
        if not (0 <= self.warmup_share < 1 and 0 <= self.final_lr_share <= 1):
            raise UserError("warmup_share and final_lr_share are shares of 1; choose 0 ≤ warmup_share < 1")


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long and how: one step = one update of the weights over ``accumulate`` batches."""

    max_steps: int = 1000
    max_minutes: float | None = None
    """Wall-clock budget: whichever ends first ends the run. Runs with a budget are not reproducible to the bit."""
    epoch_steps: int = 250
    """Steps between validations and checkpoints."""
    accumulate: int = 1
    precision: Literal["fp32", "bf16"] = "bf16"
    compile: bool = False
    """Compile the backbone's blocks in place."""
    ema: float | None = None
    """Decay of the averaged weights that are validated and exported; None = no averaging."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    best: str = "loss"
    """Validation figure whose lowest value marks ``best.ckpt``: loss, a term, depth_absrel_median, rotation_deg,
    motion_ratio."""

    def __post_init__(self) -> None:
        if min(self.max_steps, self.epoch_steps, self.accumulate) < 1:
            raise UserError("max_steps, epoch_steps and accumulate must be at least 1")
        if (self.max_minutes is not None and self.max_minutes <= 0) or not (self.ema is None or 0 <= self.ema < 1):
            raise UserError("max_minutes must be positive and ema in [0, 1), or null")


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What a run writes besides its ``metrics.jsonl``."""

    every: int = 10
    """Steps between lines."""
    pictures: int = 2
    """Clips drawn at each validation."""
    wandb: Literal["off", "offline", "online"] = "off"
    wandb_project: str = "four_d"

    def __post_init__(self) -> None:
        if self.every < 1 or self.pictures < 0:
            raise UserError("every must be at least 1, pictures at least 0")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that determines a training run."""

    name: str
    model: ModelConfig
    data: DataConfig
    losses: dict[str, LossConfig]
    weights: WeightsConfig | None = None
    """None: from scratch."""
    folder: str = "runs"
    """The run lives in ``folder/name``."""
    seed: int = 0
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        for name, loss in self.losses.items():
            if getattr(loss, "needs_surface", False) and not self.data.surface:
                raise UserError(f"the loss {name} learns from correspondence; set data.surface=true or remove it")
            if getattr(loss, "needs_queries", False) and not self.data.query_times:
                raise UserError(
                    f"the loss {name} learns from motion to query times; set data.query_times=1 or remove it"
                )
        self._check_hints()

    def _check_hints(self) -> None:
        """Every hint that the data gives is taken, and every one that the model requires is given."""
        taken = self.model.backbone.hints
        other = _fixed if isinstance(self.model.backbone, SpacetimeConfig) else _taking
        for name, share in vars(self.data.hints).items():
            use = "off" if taken is None else getattr(taken, name)
            if share and use == "off":
                raise UserError(f"data.hints.{name} is {share}, and the model takes none; set it to 0{other(name)}")
            if use == "required" and share < 1:
                raise UserError(f"the model requires {name}; set data.hints.{name}=1{other(name)}")

    @property
    def run_folder(self) -> Path:
        """Where the run's files go."""
        return Path(self.folder) / self.name


def _check_unit(run: RunConfig) -> None:
    """By disparity learns only what is told poses, and says nothing of lengths but Gaussians."""
    if run.data.normalisation != "disparity":
        return
    hints = run.model.backbone.hints
    posed = hints is not None and hints.poses == "required"
    other = [name for name, head in run.model.heads.items() if isinstance(head, CameraHeadConfig | DenseHeadConfig)]
    if not posed or other:
        reason = f"model.heads.{other[0]} would answer in it" if other else "this model needs no poses"
        raise UserError(
            f"data.normalisation=disparity is a unit that only given poses and depth tell, and {reason}; "
            "set data.normalisation=mean_distance"
        )


def _taking(hint: str) -> str:
    return f", or model.backbone.hints={{kind: hints, {hint}: optional}}"


def _fixed(hint: str) -> str:
    """What the spacetime backbone takes cannot be chosen."""
    return f", or take another backbone than spacetime, which may do otherwise with {hint}"


def load(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> RunConfig:
    """Merge YAML files left to right, then ``key=value`` overrides, then check every value.

    A path that does not exist is looked up among the shipped configs: ``vggt`` or ``overlays/tiny``.

    Raises:
        UserError: unreadable file, unknown key (nearest names given), wrong type or choice, missing value.

    """
    run = build(RunConfig, load_plain(paths, overrides), "config")
    _check_unit(run)
    return run


def load_plain(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> Plain:
    """The merged, resolved and still unchecked content of config files and overrides."""
    for override in overrides:
        if not re.fullmatch(r"[\w.]+=.*", override, flags=re.DOTALL):
            raise UserError(f"override {override!r} is not key=value, as in optimiser.lr=1e-4")
    try:
        parts = [OmegaConf.load(find(path)) for path in paths]
        parts += [OmegaConf.from_dotlist([override]) for override in overrides]
        merged = reduce(_merge, (OmegaConf.to_container(part) for part in parts), {})
        plain = OmegaConf.to_container(OmegaConf.create(cast(Plain, merged)), resolve=True)
    except (OmegaConfBaseException, OSError) as error:
        raise UserError(f"cannot read config {', '.join(map(str, paths))}: {_first_line(error)}") from error
    except Exception as error:
        if type(error).__module__.startswith("yaml"):
            where = ", ".join(map(str, paths))
            raise UserError(f"config {where} is not YAML: {' '.join(str(error).split())}") from error
        raise
    if not isinstance(plain, dict):
        raise UserError(f"config {', '.join(map(str, paths))} holds {type(plain).__name__}; write a mapping of keys")
    return cast(Plain, plain)


def find(path: str | Path) -> Path:
    """The config file meant by a path or by the name of a shipped config."""
    if Path(path).is_file():
        return Path(path)
    shipped = shipped_configs()
    if str(path) in shipped:
        return shipped[str(path)]
    near = difflib.get_close_matches(str(path), shipped, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"shipped configs: {', '.join(shipped)}"
    raise UserError(f"config {path} does not exist; {hint}")


def shipped_configs() -> dict[str, Path]:
    """Name → file of the configs that come with the package (or stand in the working copy)."""
    package = Path(__file__).parent
    root = next((r for r in (package / "configs", package.parent / "configs") if r.is_dir()), None)
    if root is None:
        return {}
    return {p.relative_to(root).with_suffix("").as_posix(): p for p in sorted(root.rglob("*.yaml"))}


def build(kind: type[T], plain: object, where: str) -> T:
    """Make a config dataclass out of plain values, choosing each union's branch by its ``kind``.

    Raises:
        UserError: with the dotted name of the value at fault.

    """
    if not isinstance(plain, Mapping):
        raise UserError(f"{where} is {plain!r}; write a mapping of keys")
    values = cast(Mapping[str, object], plain)
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"choose among {', '.join(hints)}"
            raise UserError(f"{where}.{key} is not a setting; {hint}")
    parts = {key: value for key, value in values.items() if _branches(hints[key])}
    nested = {key: _nested(hints[key], value, f"{where}.{key}") for key, value in parts.items()}
    checked = {**_leaves(kind, {k: v for k, v in values.items() if k not in nested}, where), **nested}
    missing = [f.name for f in _required(kind) if f.name not in checked]
    if missing:
        raise UserError(f"{where}.{missing[0]} is missing; set it in a config file or as {missing[0]}=…")
    try:
        return kind(**checked)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def to_plain(config: object) -> object:
    """The inverse of `build`: dataclasses become dicts, tuples lists."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): to_plain(value) for key, value in cast(Mapping[object, object], config).items()}
    if isinstance(config, list | tuple):
        return [to_plain(item) for item in cast(Sequence[object], config)]
    return config


def to_yaml(config: RunConfig) -> str:
    """A run's config, whole, as YAML that `load` reads back to an equal value."""
    return OmegaConf.to_yaml(OmegaConf.create(cast(Plain, to_plain(config))))


def diff(left: object, right: object, where: str = "") -> list[tuple[str, object, object]]:
    """Dotted name, left value and right value of everything that differs between two plain values."""
    if isinstance(left, dict) and isinstance(right, dict):
        a, b = cast(Plain, left), cast(Plain, right)
        keys = [*a, *(key for key in b if key not in a)]
        return [line for key in keys for line in diff(a.get(key), b.get(key), f"{where}.{key}".lstrip("."))]
    return [] if left == right else [(where, left, right)]


def _merge(base: object, over: object) -> object:
    """``over`` on top of ``base``, mapping by mapping; another ``kind`` replaces the whole mapping, not parts of it."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    old, new = cast(Plain, base), cast(Plain, over)
    if "kind" in new and new["kind"] != old.get("kind", new["kind"]):
        return new
    return {**old, **{key: _merge(old.get(key), value) for key, value in new.items()}}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _required(kind: type) -> list[dataclasses.Field[object]]:
    missing = dataclasses.MISSING
    return [f for f in dataclasses.fields(kind) if f.default is missing and f.default_factory is missing]


def _branches(hint: object) -> list[type]:
    """The dataclasses that a type admits: itself, a union's members, or those of a dict's values."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [hint]
    if typing.get_origin(hint) is dict:
        return _branches(typing.get_args(hint)[1])
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return [branch for member in typing.get_args(hint) for branch in _branches(member)]
    return []


def _nested(hint: object, value: object, where: str) -> object:
    if typing.get_origin(hint) is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{where} is {value!r}; write a mapping of names")
        item = typing.get_args(hint)[1]
        entries = cast(Mapping[str, object], value).items()
        # null takes out an entry that an earlier file put in
        return {str(name): _nested(item, entry, f"{where}.{name}") for name, entry in entries if entry is not None}
    if value is None and type(None) in typing.get_args(hint):
        return None
    return build(_choose(_branches(hint), value, where), value, where)


def _choose(branches: list[type], value: object, where: str) -> type:
    """The union's branch that the value's ``kind`` names; a single branch needs none."""
    hints = {branch: typing.get_type_hints(branch) for branch in branches}
    kinds = {typing.get_args(hints[branch]["kind"])[0]: branch for branch in branches if "kind" in hints[branch]}
    kind = cast(Plain, value).get("kind") if isinstance(value, Mapping) else None
    if kind is None and len(branches) == 1:
        return branches[0]
    if kind not in kinds:
        given = f"{where}.kind is {kind!r}" if kind is not None else f"{where} has no kind"
        raise UserError(f"{given}; choose one of {', '.join(map(str, kinds))}")
    return kinds[kind]


def _leaves(kind: type, values: Plain, where: str) -> Plain:
    """Check and convert the plain fields of a dataclass with OmegaConf, one by one, to name the one at fault."""
    schema = OmegaConf.structured(kind)
    checked: Plain = {}
    for name, value in values.items():
        try:
            node = cast(Plain, OmegaConf.merge(schema, {name: value}))[name]
        except OmegaConfBaseException as error:
            raise UserError(f"{where}.{name} is {value!r}: {_first_line(error)}") from error
        checked[name] = OmegaConf.to_object(node) if OmegaConf.is_config(node) else node
    return checked
