"""Verbs that train, score and export models: train, finetune, submit, eval, export, push."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from four_d.cli.common import Verb, Verbs, add_verb, check_figures, placed, split
from four_d.cli.flags import Form
from four_d.cli.values import names
from four_d.errors import UserError

if TYPE_CHECKING:
    from four_d.cli.job import Submit
    from four_d.schema import Plain
    from four_d.training import TrainResult


@dataclass(frozen=True, kw_only=True)
class Train:
    """Flags of train and finetune."""

    values: Annotated[tuple[str, ...], Form(positional=True, metavar="CONFIG|key=value")]
    """Config files, merged left to right, and settings."""
    device: Literal["auto", "cpu", "cuda", "mps"] | None = None
    """Device (default: loop.accelerator, auto: cuda if there is a GPU, else Apple's (mps), else the CPU)."""
    resume: Literal["auto", "never", "always"] = "auto"
    """auto: resume if there is a checkpoint; never: start in an empty folder; always: require a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Flags of eval."""

    checkpoint: Annotated[Path, Form(positional=True)]
    """Exported folder, its program (model.pt2), run folder, or org/name of the Hugging Face hub."""
    values: Annotated[tuple[str, ...], Form(positional=True, metavar="key=value")]
    """data=DIR with train_data=DIR, frames=8, clips=64; or protocol=sintel root=DIR with sequences=a,b tasks=pose."""
    device: str = "auto"
    """Device, as cpu, cuda, cuda:1 or mps; auto: cuda if there is a GPU, else Apple's (mps), else the CPU."""
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
    formats: Annotated[
        tuple[str, ...], Form(parse=names, metavar="NAME,…", several=False, separator=",", name="format")
    ] = ("safetensors", "pt2")
    """Formats, of safetensors (always written), pt2 (torch.export), onnx and aoti (compiled here)."""
    refine: bool = True
    """Keep what model.refine adds after the heads, as cameras by matched pixels, which ONNX cannot express."""
    overwrite: bool = False
    """Replace whatever four_d wrote there; other files are never removed."""


@dataclass(frozen=True, kw_only=True)
class Push:
    """Flags of push."""

    source: Annotated[Path, Form(positional=True, metavar="MODEL")]
    """Exported folder, run folder or checkpoint."""
    name: Annotated[str, Form(positional=True, metavar="ORG/NAME")]
    """Name of the model on the hub; it is made if there is none."""
    private: bool = False
    """Show a model that is made to its owner only."""
    licence: str | None = None
    """Licence of the weights by the hub's name for it, as cc-by-4.0 (default: that of all training data, or other)."""


def add_verbs(verbs: Verbs[Verb]) -> None:
    """Add train, finetune, submit, eval, export and push."""
    text = "Train what the configs say; continue if the run folder has a checkpoint."
    add_verb(verbs, "train", _train, text, lambda: Train)
    text = "Train from weights=PATH; score them on held-out clips before and after."
    add_verb(verbs, "finetune", _finetune, text, lambda: Train)
    text = "Train as a job of a cluster, which goes on by itself after each time limit."
    options = Form(parse=lambda given: tuple(given.split(",")), several=False, metavar="NAME=VALUE,…", name="options")
    add_verb(verbs, "submit", _submit, text, _submit_flags, {"options": options})
    text = "Score a checkpoint on held-out shards or under a published protocol."
    add_verb(verbs, "eval", _eval, text, lambda: Eval)
    add_verb(verbs, "export", _export, "Write weights, config, model card and programs of a model.", lambda: Export)
    add_verb(verbs, "push", _push, "Put a model with its card on the Hugging Face hub.", lambda: Push)


def _train(arguments: Train) -> int:
    from four_d.config import load
    from four_d.training import train

    return _trained(train(load(*given(arguments)), resume=arguments.resume))


def _submit_flags() -> type[Submit]:
    from four_d.cli.job import Submit

    return Submit


def _submit(arguments: Submit) -> int:
    from four_d.config import load
    from four_d.training.slurm import submit

    files, overrides = split(arguments.values)
    text, path = submit(arguments.job, load(files, overrides), arguments.values, dry_run=arguments.dry_run)
    print(text if arguments.dry_run else path, end="" if arguments.dry_run else "\n")
    return 0


def _finetune(arguments: Train) -> int:
    from four_d.config import load
    from four_d.training import finetune

    return _trained(finetune(load(*given(arguments)), resume=arguments.resume))


def given(arguments: Train) -> tuple[list[str], list[str]]:
    """Config files and overrides."""
    files, overrides = split(arguments.values)
    return files, overrides if arguments.device is None else [*overrides, f"loop.accelerator={arguments.device}"]


def _trained(result: TrainResult) -> int:
    """Print the run folder, on rank 0 only."""
    from four_d.training import parallel

    if parallel.discover().rank == 0:
        print(result.folder)
    return result.exit_code


def _eval(arguments: Eval) -> int:
    from four_d import evaluation
    from four_d.config import load_plain
    from four_d.data.remote import read_manifest
    from four_d.devices import usable
    from four_d.inference import load
    from four_d.schema import build

    values = load_plain([], [f"device={arguments.device}", *arguments.values], evaluation.EvaluationConfig)
    if "protocol" in values:
        return _eval_published(arguments, values)
    settings = build(evaluation.EvaluationConfig, values, "eval")
    networks = [settings.lpips_weights, settings.fid_network, settings.fvd_network]
    read = [settings.data, settings.train_data, *networks, arguments.checkpoint]
    check_figures(arguments.json, "digest", read)
    for data in (settings.data, settings.train_data):
        if data is not None:
            read_manifest(data)
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
    out = export(
        arguments.run,
        arguments.out,
        scores=scores,
        dtype=arguments.dtype,
        formats=arguments.formats,
        refine=arguments.refine,
        overwrite=arguments.overwrite,
    )
    weights = out / WEIGHTS
    print(out, f"{weights.name}: {weights.stat().st_size} bytes, sha256 {sha256_of(weights)}", sep="\n")
    return 0


def _push(arguments: Push) -> int:
    from four_d.exporting import push

    print(push(arguments.source, arguments.name, private=arguments.private, licence=arguments.licence))
    return 0
