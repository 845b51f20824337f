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

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from four_d import __version__, config, schema
from four_d.abilities import ModelModule, Normalisation
from four_d.data.remote import read_manifest
from four_d.data.renders import RendersConfig
from four_d.errors import UserError
from four_d.model import AnyModelConfig
from four_d.sharding import SKELETON
from four_d.sharding import read as read_state

FORMAT = 1
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
PROGRAM_SUFFIX = ".pt2"
"""Ending of files of programs (`programs.read`)."""
MODELS = "models.json"
"""List of the reference models in a folder of them."""
PACKAGE = Path(__file__).parent
REFERENCES = (Path("checkpoints"), PACKAGE / "references", PACKAGE.parent / "checkpoints")
"""Folders that may hold reference models: in the working directory, in an installed package (the best one only),
in the working copy that an editable installation stands in."""
LAST = Path("checkpoints/last.ckpt")
"""Place of a run folder's newest checkpoint."""
ENVIRONMENT, METRICS = "environment.json", "metrics.jsonl"
"""Files of a run folder: machine and command, and figures with times."""


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Content of ``config.json``: all that is needed to build the model and to use it as it was trained."""

    model: AnyModelConfig
    image_size: tuple[int, int]
    """Height and width of the images it was trained on."""
    frames: int
    """Maximum number of frames per clip in training."""
    normalisation: Normalisation = "mean_distance"
    """Rule for its unit of length."""
    name: str = ""
    trained_on: dict[str, str] = field(default_factory=dict[str, str])
    """Source → licence of the training data, by their manifests; "unknown" where a manifest is gone."""
    steps: int = 0
    scores: dict[str, float] = field(default_factory=dict[str, float])
    recipe: dict[str, str] = field(default_factory=dict[str, str])
    """Provenance in words: command, hardware, minutes, commit, as far as known."""
    four_d: str = __version__
    """Version of the package that wrote it."""
    format: int = FORMAT


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Model in eval mode, with its metadata."""

    model: ModelModule
    info: ModelInfo
    path: Path


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Entry of ``models.json``: one of our own models, an exported folder beside that file."""

    name: str
    """Name of the folder."""
    sha256: str
    """Checksum of its ``model.safetensors``."""
    bytes: int
    rank: int
    """Rank; 1 is the best."""
    licence: str
    summary: str


def read(path: str | Path) -> Checkpoint:
    """Read an exported folder (or ``model.safetensors`` in it), a run folder (its newest checkpoint) or one checkpoint
    of a run, as ``best.ckpt``.

    Of a run that averages its weights, the averaged ones are taken.

    Raises:
        UserError: no model there, or a file of it is damaged or does not fit the others.

    """
    path = Path(path)
    if path.suffix == PROGRAM_SUFFIX:
        raise UserError(
            f"{path} is a program, whose weights cannot be trained or exported; name the exported folder or the run"
        )
    if path.suffix == ".onnx":
        raise UserError(
            f"{path} is for onnxruntime (docs/inference.md shows how); name the exported folder, or model.pt2"
        )
    if path.suffix == ".safetensors":
        _refuse_alone(path)
        path = path.parent
    if path.is_file() or (path / SKELETON).is_file():
        return _read_run(path)
    if (path / CONFIG).is_file():
        return _read_export(path)
    if (path / LAST).exists():
        return _read_run(path / LAST)
    if not path.exists():
        raise UserError(f"{path} does not exist; give an exported folder or a run folder")
    raise UserError(f"{path} holds no model: neither {CONFIG} (an export) nor {LAST} (a run); train or export first")


def _refuse_alone(file: Path) -> None:
    """Raise UserError for weights that are not those of an exported folder."""
    if not file.is_file():
        raise UserError(f"{file} does not exist; give an exported folder or a run folder")
    if file.name != WEIGHTS or not (file.parent / CONFIG).is_file():
        raise UserError(
            f"{file} holds weights alone, and {CONFIG} of an exported folder is not beside them; give an exported "
            "folder, or make one of other projects' weights with four-d weights convert"
        )


def read_info(file: Path) -> ModelInfo:
    """Parse a ``config.json``. UserError if it is not one, or of a newer format."""
    try:
        plain = cast(object, json.loads(file.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({_short(error)}); export the model again") from error
    newer = isinstance(plain, dict) and cast(schema.Plain, plain).get("format")
    if newer != FORMAT:
        raise UserError(f"{file} has format {newer}, this four_d reads {FORMAT}; update four_d or export again")
    return schema.build(ModelInfo, plain, str(file), recorded=True)


def write_info(file: Path, info: ModelInfo) -> None:
    """Write a ``config.json`` (`read_info`)."""
    file.write_text(json.dumps(schema.to_plain(info), indent=1) + "\n")


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
        content = read_state(file, parts=("state_dict", "run"))
        run = cast(schema.Plain, content["run"])
        plain, steps = run["config"], cast(int, run["step"])
        stored = cast(dict[str, Tensor], content["state_dict"])
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        # torch's message for a file that is no pickle is about its own settings
        why = "PyTorch cannot read it" if isinstance(error, pickle.UnpicklingError) else _short(error)
        raise UserError(f"{file} is not a checkpoint of a run, or is damaged ({why}); take another one") from error
    known = schema.build(config.RunConfig, plain, f"{file}: config", recorded=True)
    recorded = cast(dict[str, str] | None, run.get("licences"))
    info = _run_info(known, steps, licences_of(known) if recorded is None else recorded)
    info = _with_origin(info, cast(schema.Plain, run.get("origin", {})))
    published = cast(dict[str, str], run.get("pretrained", {}))
    info = dataclasses.replace(info, trained_on={**published, **info.trained_on})
    weights = {k.removeprefix("model."): v for k, v in stored.items() if k.startswith("model.")}
    return Checkpoint(model=_build(info, weights, file), info=info, path=file)


def _with_origin(info: ModelInfo, origin: schema.Plain) -> ModelInfo:
    """Add the origin of a run's initial weights: their licences and recipe."""
    if not origin:
        return info
    licences = cast(dict[str, str], origin.get("trained_on", {}))
    source = f"{origin.get('name') or 'a model'} (weights' sha256 {str(origin.get('sha256'))[:16]}…)"
    return dataclasses.replace(
        info, trained_on={**licences, **info.trained_on}, recipe={**info.recipe, "started from": source}
    )


def licences_of(run: config.RunConfig) -> dict[str, str]:
    """Source of a run's training data → its licence, by the data's manifests as they are now."""
    licences: dict[str, str] = {}
    for name, source in run.data.sources.items():
        licences |= {name: source.licence} if isinstance(source, RendersConfig) else _licences(name, source.path)
    return licences


def _run_info(run: config.RunConfig, steps: int, licences: dict[str, str]) -> ModelInfo:
    return ModelInfo(
        model=run.model,
        image_size=run.data.image_size,
        frames=run.data.sampling.max_frames,
        normalisation=run.data.normalisation,
        name=run.name,
        trained_on=licences,
        steps=steps,
    )


def _licences(name: str, data: str) -> dict[str, str]:
    """Licences by the data set's manifest; unknown if the data are not there."""
    try:
        sources = read_manifest(data, attempts=1).sources.items()
        return {source: f"{info.licence} (from {info.home})" if info.home else info.licence for source, info in sources}
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
    """Copy all ``weights`` into all of the model, except for names that the shell patterns match.

    Args:
        model: model whose parameters and buffers are set.
        weights: tensors by name.
        source: name of their source, for errors.
        fresh: the model's names that stay as they are; None: not allowed here.
        dropped: the source's names that are left out; None: not allowed here.
        copies: the model's names that the source lacks and that are not fresh → the source's (dropped or not) that
            initialise them; one ``*`` in each stands for one rest. The first matching pattern decides.

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
            if name in weights:
                raise UserError(f"{source}: {_contradiction(name, 'dropped', dropped or (), wanted)}")
            hint = misfit if fresh is None else f"{_nearest(name, given)}, or name it in weights.fresh"
            raise UserError(f"{source} lacks the weight {name}; {hint}")
    for name in given:
        if name in extra:
            if name in expected:
                raise UserError(f"{source}: {_contradiction(name, 'fresh', fresh or (), given)}")
            hint = misfit if dropped is None else f"{_nearest(name, wanted)}, or name it in weights.dropped"
            raise UserError(f"{source} has, but the model lacks, the weight {name}; {hint}")
        if weights[name].shape != expected[name].shape:
            sizes = f"{tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
            raise UserError(f"{source}: {name} is {sizes}; its config is of another size")
    model.load_state_dict({**expected, **{name: weights[name] for name in given}, **copied})


def _contradiction(name: str, what: str, patterns: Sequence[str], others: Sequence[str]) -> str:
    """Advice on a weight that both sides have and only one of fresh and dropped matches.

    ``others`` are the names of the side that those patterns do not match against.
    """
    kept = [pattern for pattern in patterns if not any(fnmatchcase(other, pattern) for other in others)]
    other = "dropped" if what == "fresh" else "fresh"
    return (
        f"the weight {name} is there and in the model, and weights.{what} would throw it away; to keep it, give "
        f"'weights.{what}=[{','.join(kept)}]'; to begin anew there all the same, name it in weights.{other} too"
    )


def _copied(
    copies: Mapping[str, str | None],
    lacking: Sequence[str],
    expected: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    source: str,
) -> dict[str, Tensor]:
    """Values of the missing names that match a pattern of ``copies``."""
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
    """Part of a name that matches the pattern's only ``*``; None if the name does not match."""
    before, after = pattern.split("*")
    fits = len(name) >= len(before) + len(after) and name.startswith(before) and name.endswith(after)
    return name[len(before) : len(name) - len(after)] if fits else None


def _must_fit(
    name: str, original: str, expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str
) -> None:
    """Raise UserError unless the source has the original of a copy, in the copy's shape."""
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
    """Names that no pattern matches; UserError for a pattern without a match."""
    names = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"weights.{what}: pattern {pattern!r} matches no name; {_nearest(pattern, names)}")
    return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in patterns)]


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=2, cutoff=0.3)
    return f"the nearest are {' and '.join(near)}" if near else "nothing is near it"


def _build(info: ModelInfo, weights: Mapping[str, Tensor], file: Path) -> ModelModule:
    model = info.model.build().eval()
    model.fit_shapes(weights)
    fill(model, weights, str(file))
    return model.requires_grad_(False)


def references(folder: Path) -> list[Reference]:
    """Read ``models.json``: models, best first; none without the file. UserError if it is damaged."""
    file = folder / MODELS
    if not file.is_file():
        return []
    try:
        plain = cast(object, json.loads(file.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({_short(error)}); restore it from the repository") from error
    if not isinstance(plain, list):
        raise UserError(f"{file} holds no list of models; restore it from the repository")
    found = [schema.build(Reference, each, f"{file}[{n}]") for n, each in enumerate(cast(list[object], plain))]
    return sorted(found, key=lambda each: each.rank)


def best_reference(folders: Sequence[Path] | None = None) -> tuple[Path, Reference]:
    """Path and entry of the best reference model in the first folder that holds any.

    The folders are `REFERENCES` unless others are given. UserError if no model is there.
    """
    folders = REFERENCES if folders is None else folders
    listed = {folder: references(folder) for folder in folders}
    for folder, found in listed.items():
        for each in found:
            if (folder / each.name / CONFIG).is_file() and (folder / each.name / WEIGHTS).is_file():
                return folder / each.name, each
    lists = [str(folder / MODELS) for folder, found in listed.items() if found]
    why = f"none of those listed in {lists[0]} is there" if lists else f"{folders[0] / MODELS} lists none"
    raise UserError(f"no reference model here ({why}); name a model with --model, or install four_d again")


def sha256_of(file: Path) -> str:
    """Hexadecimal SHA-256 of a file's content; of a folder, that of its files' names and own checksums, one a line."""
    if file.is_dir():
        listed = "".join(f"{sha256_of(each)} {each.name}\n" for each in sorted(file.iterdir()))
        return hashlib.sha256(listed.encode()).hexdigest()
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _verify_reference(folder: Path) -> None:
    """Raise UserError if the folder is listed as a reference model and its weights differ."""
    file = folder / WEIGHTS
    for each in references(folder.parent):
        if each.name == folder.name and file.is_file() and sha256_of(file) != each.sha256:
            raise UserError(f"{file} is not what {folder.parent / MODELS} lists (sha256 differs); fetch it again")
