"""Models on disk: an exported folder (`model.safetensors`, `config.json`, `README.md`) or a training run."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from four_d import __version__, config
from four_d.data.manifest import load_manifest
from four_d.data.sampling import Normalisation
from four_d.errors import UserError
from four_d.model import FourD, ModelConfig

FORMAT = 1
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
REFERENCES, MODELS = Path("checkpoints"), "models.json"
"""Where the reference models lie, and the list of them there."""
LAST = Path("checkpoints/last.ckpt")
"""Where a run folder keeps its newest checkpoint."""


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """The content of ``config.json``: all that it takes to build the model and to use it as it was trained."""

    model: ModelConfig
    image_size: tuple[int, int]
    """Height and width of the images it was trained on."""
    frames: int
    """The most frames it saw at once in training."""
    normalisation: Normalisation = "mean_distance"
    """What its unit of length is."""
    name: str = ""
    trained_on: dict[str, str] = field(default_factory=dict[str, str])
    """Source → licence of the training data, by their manifests; "unknown" where a manifest is gone."""
    steps: int = 0
    scores: dict[str, float] = field(default_factory=dict[str, float])
    recipe: dict[str, str] = field(default_factory=dict[str, str])
    """How it was made, in words: command, hardware, minutes, commit, as far as known."""
    four_d: str = __version__
    """Version of the package that wrote it."""
    format: int = FORMAT


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model in eval mode and what is known of it."""

    model: FourD
    info: ModelInfo
    path: Path


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A line of ``models.json``: one of our own models, an exported folder beside that file."""

    name: str
    """Of the folder."""
    sha256: str
    """Of its ``model.safetensors``."""
    bytes: int
    rank: int
    """1 is the best."""
    licence: str
    summary: str


def read(path: str | Path) -> Checkpoint:
    """Read an exported folder, a run folder (its newest checkpoint) or one checkpoint of a run, as ``best.ckpt``.

    Of a run that averages its weights, the averaged ones are taken.

    Raises:
        UserError: nothing there that is a model, or a file of it is damaged or does not fit the others.

    """
    path = Path(path)
    if path.is_file():
        return _read_run(path)
    if (path / CONFIG).is_file():
        return _read_export(path)
    if (path / LAST).is_file():
        return _read_run(path / LAST)
    if not path.exists():
        raise UserError(f"{path} does not exist; give an exported folder or a run folder")
    raise UserError(f"{path} holds no model: neither {CONFIG} (an export) nor {LAST} (a run); train or export first")


def read_info(file: Path) -> ModelInfo:
    """Parse a ``config.json``. Raises UserError if it is not one, or of a newer format."""
    try:
        plain = cast(object, json.loads(file.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({_short(error)}); export the model again") from error
    newer = isinstance(plain, dict) and cast(config.Plain, plain).get("format")
    if newer != FORMAT:
        raise UserError(f"{file} has format {newer}, this four_d reads {FORMAT}; update four_d or export again")
    return config.build(ModelInfo, plain, str(file))


def write_info(file: Path, info: ModelInfo) -> None:
    """The inverse of `read_info`."""
    file.write_text(json.dumps(config.to_plain(info), indent=1) + "\n")


def _read_export(folder: Path) -> Checkpoint:
    info = read_info(folder / CONFIG)
    file = folder / WEIGHTS
    _verify_reference(folder)
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({_short(error)}); export the model again") from error
    return Checkpoint(model=_build(info, weights, file), info=info, path=folder)


def _read_run(file: Path) -> Checkpoint:
    try:
        content = cast(config.Plain, torch.load(file, map_location="cpu", weights_only=True))
        run = cast(config.Plain, content["run"])
        plain, steps = run["config"], cast(int, run["step"])
        stored = cast(dict[str, Tensor], content["state_dict"])
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{file} is no checkpoint of a run or is damaged ({_short(error)}); take another one"
        ) from error
    info = _run_info(config.build(config.RunConfig, plain, f"{file}: config"), steps)
    info = _with_origin(info, cast(config.Plain, run.get("origin", {})))
    weights = {k.removeprefix("model."): v for k, v in stored.items() if k.startswith("model.")}
    return Checkpoint(model=_build(info, weights, file), info=info, path=file)


def _with_origin(info: ModelInfo, origin: config.Plain) -> ModelInfo:
    """What the weights that a run started from bring along: their licences, and that it did."""
    if not origin:
        return info
    licences = cast(dict[str, str], origin.get("trained_on", {}))
    source = f"{origin.get('name') or 'a model'} (weights' sha256 {str(origin.get('sha256'))[:16]}…)"
    return dataclasses.replace(
        info, trained_on={**licences, **info.trained_on}, recipe={**info.recipe, "started from": source}
    )


def _run_info(run: config.RunConfig, steps: int) -> ModelInfo:
    licences: dict[str, str] = {}
    for name, source in run.data.sources.items():
        licences |= _licences(name, Path(source.path))
    return ModelInfo(
        model=run.model,
        image_size=run.data.image_size,
        frames=run.data.sampling.max_frames,
        normalisation=run.data.normalisation,
        name=run.name,
        trained_on=licences,
        steps=steps,
    )


def _licences(name: str, data: Path) -> dict[str, str]:
    """Licences by the data set's manifest. A run may have been moved away from its data: then they are unknown."""
    try:
        return {source: info.licence for source, info in load_manifest(data).sources.items()}
    except UserError:
        return {name: "unknown"}


def _short(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:120] if text else type(error).__name__


def fill(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    source: str,
    *,
    fresh: Sequence[str] | None = None,
    dropped: Sequence[str] | None = None,
    copies: Mapping[str, str | None] | None = None,
) -> None:
    """Copy ``weights`` into the model, all of them into all of it, but for what the shell patterns name.

    Args:
        model: whose parameters and buffers are set.
        weights: by name.
        source: where they come from, for errors.
        fresh: the model's names that stay as they are; None: that cannot be chosen here.
        dropped: the source's names that are left out; None: likewise.
        copies: the model's names that the source lacks and that are not fresh → the source's (dropped or not) that
            they begin as; one ``*`` in each stands for the same rest. The first pattern that fits a name decides.

    Raises:
        UserError: a name that is missing, extra or of another shape (the nearest names are given), or a pattern that
            matches nothing. The model is then as it was.

    """
    expected = model.state_dict()
    wanted, given = _unmatched(expected, fresh or (), "fresh"), _unmatched(weights, dropped or (), "dropped")
    misfit = "it does not belong to the config beside it"
    lacking, extra = [name for name in wanted if name not in set(given)], set(given) - set(wanted)
    copied = _copied(copies or {}, lacking, expected, weights, source)
    for name in lacking:
        if name not in copied:
            hint = misfit if fresh is None else f"{_nearest(name, given)}, or name it in weights.fresh"
            raise UserError(f"{source} lacks the weight {name}; {hint}")
    for name in given:
        if name in extra:
            hint = misfit if dropped is None else f"{_nearest(name, wanted)}, or name it in weights.dropped"
            raise UserError(f"{source} has, but the model lacks, the weight {name}; {hint}")
        if weights[name].shape != expected[name].shape:
            sizes = f"{tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
            raise UserError(f"{source}: {name} is {sizes}; its config is of another size")
    model.load_state_dict({**expected, **{name: weights[name] for name in given}, **copied})


def _copied(
    copies: Mapping[str, str | None],
    lacking: Sequence[str],
    expected: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    source: str,
) -> dict[str, Tensor]:
    """The values of those lacking names that a pattern of ``copies`` fits."""
    found: dict[str, str] = {}
    for ours, theirs in copies.items():
        if theirs is None:
            continue
        _unmatched(expected, [ours], "copies")
        _unmatched(weights, [theirs], "copies")
        named = {name: theirs.replace("*", rest) for name in lacking if (rest := _rest(ours, name)) is not None}
        if not named:
            raise UserError(
                f"weights.copies: nothing is left for {ours!r}, for {source} has those weights or weights.fresh names "
                "them; set it to null, or name them in weights.dropped"
            )
        found = {**named, **found}
    for name, original in found.items():
        _must_fit(name, original, expected, weights, source)
    return {name: weights[original] for name, original in found.items()}


def _rest(pattern: str, name: str) -> str | None:
    """What the pattern's one ``*`` stands for in a name; None if it does not fit."""
    before, after = pattern.split("*")
    fits = len(name) >= len(before) + len(after) and name.startswith(before) and name.endswith(after)
    return name[len(before) : len(name) - len(after)] if fits else None


def _must_fit(
    name: str, original: str, expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str
) -> None:
    """UserError unless the source has the original of a copy, in the copy's shape."""
    if original not in weights:
        raise UserError(
            f"{source} lacks {original}, which {name} is to begin as (weights.copies); "
            f"{_nearest(original, weights)}, or name {name} in weights.fresh"
        )
    if weights[original].shape != expected[name].shape:
        sizes = f"{tuple(weights[original].shape)}, but {name} is {tuple(expected[name].shape)}"
        raise UserError(
            f"{source}: {original} is {sizes} (weights.copies); give both one size, or name it in weights.fresh"
        )


def _unmatched(names: Iterable[str], patterns: Sequence[str], what: str) -> list[str]:
    """The names that no pattern matches; UserError for a pattern that matches none."""
    names = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"weights.{what}: pattern {pattern!r} matches no name; {_nearest(pattern, names)}")
    return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in patterns)]


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=2, cutoff=0.3)
    return f"the nearest are {' and '.join(near)}" if near else "nothing is near it"


def _build(info: ModelInfo, weights: Mapping[str, Tensor], file: Path) -> FourD:
    model = info.model.build().eval()
    fill(model, weights, str(file))
    return model.requires_grad_(False)


def references(folder: Path = REFERENCES) -> list[Reference]:
    """What ``models.json`` lists, the best first; nothing where there is no such file. UserError if it is damaged."""
    file = folder / MODELS
    if not file.is_file():
        return []
    try:
        plain = cast(object, json.loads(file.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({_short(error)}); restore it from the repository") from error
    if not isinstance(plain, list):
        raise UserError(f"{file} holds no list of models; restore it from the repository")
    found = [config.build(Reference, each, f"{file}[{n}]") for n, each in enumerate(cast(list[object], plain))]
    return sorted(found, key=lambda each: each.rank)


def best_reference(folder: Path = REFERENCES) -> tuple[Path, Reference]:
    """Where the best reference model lies of those that are there, and what is said of it. UserError if none is."""
    listed = references(folder)
    for each in listed:
        if (folder / each.name / CONFIG).is_file() and (folder / each.name / WEIGHTS).is_file():
            return folder / each.name, each
    why = f"none of those listed in {folder / MODELS} is there" if listed else f"{folder / MODELS} lists none"
    raise UserError(f"no reference model here ({why}); name a model with --model, or go to the working copy's root")


def sha256_of(file: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _verify_reference(folder: Path) -> None:
    """UserError if the folder is listed as a reference model and its weights are others."""
    file = folder / WEIGHTS
    for each in references(folder.parent):
        if each.name == folder.name and file.is_file() and sha256_of(file) != each.sha256:
            raise UserError(f"{file} is not what {folder.parent / MODELS} lists (sha256 differs); fetch it again")
