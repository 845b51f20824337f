"""Verbs that train, score and export models: train, finetune, eval, export."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from four_d.cli.common import Verb, Verbs, add_verb, check_figures, placed, split
from four_d.cli.flags import Form
from four_d.errors import UserError

if TYPE_CHECKING:
    from four_d.schema import Plain
    from four_d.training import TrainResult


@dataclass(frozen=True, kw_only=True)
class Train:
    """Flags of train and finetune."""

    values: Annotated[tuple[str, ...], Form(positional=True, metavar="CONFIG|key=value")]
    """Config files, merged left to right, and settings."""
    resume: Literal["auto", "never", "always"] = "auto"
    """auto: resume if there is a checkpoint; never: start in an empty folder; always: require a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Flags of eval."""

    checkpoint: Annotated[Path, Form(positional=True)]
    """Exported folder, its program (model.pt2) or run folder."""
    values: Annotated[tuple[str, ...], Form(positional=True, metavar="key=value")]
    """data=DIR with train_data=DIR, frames=8, clips=64; or protocol=sintel root=DIR with sequences=a,b tasks=pose."""
    json: Annotated[Path | None, Form(metavar="FILE")] = None
    """Write all scores to this file."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Flags of export."""

    run: Annotated[Path, Form(positional=True)]
    """Run folder."""
    out: Annotated[Path, Form(metavar="DIR")]
    """Folder to write."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Data type of the weights on disk."""
    scores: Annotated[Path | None, Form(metavar="FILE")] = None
    """Scores from four-d eval --json, for the model card."""
    program: bool = True
    """Write the torch.export program."""
    overwrite: bool = False
    """Replace whatever four_d wrote there; other files are never removed."""


def add_verbs(verbs: Verbs[Verb]) -> None:
    """Add train, finetune, eval and export."""
    text = "Train what the configs say; continue if the run folder has a checkpoint."
    add_verb(verbs, "train", _train, text, lambda: Train)
    text = "Train from weights=PATH; score them on held-out clips before and after."
    add_verb(verbs, "finetune", _finetune, text, lambda: Train)
    text = "Score a checkpoint on held-out shards or under a published protocol."
    add_verb(verbs, "eval", _eval, text, lambda: Eval)
    add_verb(verbs, "export", _export, "Write weights, config, model card and a torch.export program.", lambda: Export)


def _train(arguments: Train) -> int:
    from four_d.config import load
    from four_d.training import train

    files, overrides = split(arguments.values)
    return _trained(train(load(files, overrides), resume=arguments.resume))


def _finetune(arguments: Train) -> int:
    from four_d.config import load
    from four_d.training import finetune

    files, overrides = split(arguments.values)
    return _trained(finetune(load(files, overrides), resume=arguments.resume))


def _trained(result: TrainResult) -> int:
    """Print the run folder, on rank 0 only."""
    from four_d.training import parallel

    if parallel.discover().rank == 0:
        print(result.folder)
    return result.exit_code


def _eval(arguments: Eval) -> int:
    from four_d import evaluation
    from four_d.config import load_plain
    from four_d.data.manifest import load_manifest
    from four_d.devices import usable
    from four_d.inference import load
    from four_d.schema import build

    values = load_plain([], arguments.values, evaluation.EvaluationConfig)
    if "protocol" in values:
        return _eval_published(arguments, values)
    settings = build(evaluation.EvaluationConfig, values, "eval")
    networks = [settings.lpips_weights, settings.fid_network, settings.fvd_network]
    read = [settings.data, settings.train_data, *networks, arguments.checkpoint]
    check_figures(arguments.json, "digest", read)
    for data in (settings.data, settings.train_data):
        if data is not None:
            load_manifest(Path(data))
    device = usable(settings.device)  # all this before the model is loaded
    model = placed(load(arguments.checkpoint), device, settings.precision)
    if "size" not in values:
        settings = dataclasses.replace(settings, size=model.info.image_size)
    result = evaluation.run(model, settings)
    if arguments.json is not None:  # before printing, which fails if the reader closed the pipe
        result.write(arguments.json)
    result.print()
    return 0


def _eval_published(arguments: Eval, values: Plain) -> int:
    from four_d import evaluation
    from four_d.devices import usable
    from four_d.inference import load
    from four_d.schema import build

    settings = build(evaluation.PublishedConfig, values, "eval")
    check_figures(arguments.json, "protocol", [settings.root, settings.lpips_weights, arguments.checkpoint])
    if not Path(settings.root).is_dir():
        raise UserError(f"root is {settings.root}, which is not a folder; give the one that holds the set")
    device = usable(settings.device)  # before the model is loaded
    model = placed(load(arguments.checkpoint), device, settings.precision)
    patch, trained = model.abilities.multiple, model.info.image_size
    result = evaluation.run_protocol(model, settings, patch=patch, trained=trained)
    if arguments.json is not None:  # before printing, which fails if the reader closed the pipe
        result.write(arguments.json)
    result.print()
    return 1 if result.failed or not result.rows else 0


def _export(arguments: Export) -> int:
    from four_d.checkpoints import WEIGHTS, sha256_of
    from four_d.exporting import export, read_scores
    from four_d.outputs import keep_apart

    keep_apart(arguments.out, [arguments.scores])
    scores = None if arguments.scores is None else read_scores(arguments.scores)
    dtype, program, overwrite = arguments.dtype, arguments.program, arguments.overwrite
    out = export(arguments.run, arguments.out, scores=scores, dtype=dtype, program=program, overwrite=overwrite)
    weights = out / WEIGHTS
    print(out, f"{weights.name}: {weights.stat().st_size} bytes, sha256 {sha256_of(weights)}", sep="\n")
    return 0
