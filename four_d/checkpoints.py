"""Models on disk: an exported folder (`model.safetensors`, `config.json`, `README.md`) or a training run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from four_d import __version__, config
from four_d.errors import UserError
from four_d.model import FourD, ModelConfig

FORMAT = 1
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
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
    name: str = ""
    licence: str = "Apache-2.0"
    """Of the weights: the strictest of what they were trained on."""
    trained_on: tuple[str, ...] = ()
    steps: int = 0
    scores: dict[str, float] = field(default_factory=dict[str, float])
    four_d: str = __version__
    """Version of the package that wrote it."""
    format: int = FORMAT


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model in eval mode and what is known of it."""

    model: FourD
    info: ModelInfo
    path: Path


def read(path: str | Path) -> Checkpoint:
    """Read an exported folder, a run folder (its newest checkpoint) or a ``.ckpt`` file of a run.

    Of a run that averages its weights, the averaged ones are taken.

    Raises:
        UserError: nothing there that is a model, or a file of it is damaged or does not fit the others.

    """
    path = Path(path)
    if path.suffix == ".ckpt" and path.is_file():
        return _read_run(path.parent.parent, path)
    if (path / CONFIG).is_file():
        return _read_export(path)
    if (path / LAST).is_file():
        return _read_run(path, path / LAST)
    if not path.exists():
        raise UserError(f"{path} does not exist; give an exported model or a run folder")
    raise UserError(f"{path} holds no model: neither {CONFIG} (an export) nor {LAST} (a run); train or export first")


def read_info(file: Path) -> ModelInfo:
    """Parse a ``config.json``. Raises UserError if it is not one, or of a newer format."""
    try:
        plain = cast(object, json.loads(file.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); export the model again") from error
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
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({error}); export the model again") from error
    return Checkpoint(model=_build(info, weights, file), info=info, path=folder)


def _read_run(folder: Path, file: Path) -> Checkpoint:
    run = config.load([folder / "config.yaml"])
    try:
        content = cast(config.Plain, torch.load(file, map_location="cpu", weights_only=True))
        stored = cast(dict[str, Tensor], content["state_dict"])
        steps = int(cast(int, content["global_step"]))
    except Exception as error:
        # torch.load of a damaged file raises whatever the unpickler or the zip reader stumbles over
        raise UserError(f"{file} cannot be read ({type(error).__name__}); resume from an earlier checkpoint") from error
    weights = {k.removeprefix("model."): v for k, v in stored.items() if k.startswith("model.")}
    info = _run_info(run, steps)
    return Checkpoint(model=_build(info, weights, file), info=info, path=folder)


def _run_info(run: config.RunConfig, steps: int) -> ModelInfo:
    return ModelInfo(
        model=run.model,
        image_size=run.data.image_size,
        frames=run.data.sampling.max_frames,
        name=run.name,
        trained_on=tuple(run.data.sources),
        steps=steps,
    )


def _build(info: ModelInfo, weights: Mapping[str, Tensor], file: Path) -> FourD:
    model = info.model.build().eval()
    expected = model.state_dict()
    for key in [*expected, *weights]:
        if key not in weights or key not in expected:
            where = "lacks" if key not in weights else "has, but the model lacks,"
            raise UserError(f"{file} {where} the weight {key}; it does not belong to the config beside it")
        if weights[key].shape != expected[key].shape:
            sizes = f"{tuple(weights[key].shape)} instead of {tuple(expected[key].shape)}"
            raise UserError(f"{file}: {key} is {sizes}; it does not belong to the config beside it")
    model.load_state_dict(dict(weights))
    return model.requires_grad_(False)
