"""Export of a trained model as a folder: weights, config, card, and a `torch.export` program."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal, cast

import torch
from safetensors.torch import save
from torch import Tensor, nn

from four_d import __version__, checkpoints, fields, programs, tracing
from four_d.abilities import UNITS, ModelModule, World
from four_d.checkpoints import CARD, CONFIG, ENVIRONMENT, METRICS, WEIGHTS, ModelInfo
from four_d.errors import UserError
from four_d.metrics import catalogue
from four_d.outputs import new_folder
from four_d.progress import progress
from four_d.types import Prediction

PROGRAM, PROGRAM_NOTE = "model.pt2", "export.json"
CODE = ("command", "commit")
OF_ONE_OBJECT = """from pathlib import Path
import four_d
from four_d.objects import read_object
from four_d.pose_net import follow_object

model = four_d.load("path/to/this/folder")
gaussians = read_object(Path("path/to/the/object.glb")).gaussians
found = follow_object(model, gaussians, images, masks, intrinsics)  # found.cameras, found.ambiguous"""
"""Use of a model of one object."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def export(
    run: str | Path,
    out: str | Path,
    *,
    scores: Mapping[str, float] | None = None,
    dtype: Literal["fp32", "bf16"] = "fp32",
    program: bool = True,
    overwrite: bool = False,
) -> Path:
    """Export the newest (averaged) weights of a run, or an export again, as a folder, written atomically.

    The folder holds ``model.safetensors``, ``config.json``, ``README.md`` (the card), ``model.pt2`` (a program,
    `programs`, that `torch.export.load` reads without this package: images (1, f, 3, h, w) and times (1, f) to a dict
    of tensors, h and w those of training, f free, or the gaussian head's; a model of motion also takes query_times
    (1, 1), and one that requires hints takes those) and ``export.json`` (the program's signature and measured errors).

    Args:
        run: input of `checkpoints.read`.
        out: created, apart from ``run``; an earlier export there is replaced.
        scores: metric → value on held-out data, for the card.
        dtype: type of the weights on disk; reading gives float32 again, and the program computes with those values.
        program: also write ``model.pt2`` and ``export.json``.
        overwrite: replace also another result of four_d there, or one that was changed (`outputs.check_folder`).

    Raises:
        UserError: a folder that must not or cannot be written (before anything is read), nothing to export, or a
            program that does not agree with the model.

    """
    out = Path(out)
    with new_folder(out, "export", inputs=[run], overwrite=overwrite) as folder, progress("export", 3, "file") as bar:
        found = checkpoints.read(run)
        round_weights(found.model, DTYPES[dtype])
        info = dataclasses.replace(
            found.info,
            scores={**found.info.scores, **(scores or {})},
            recipe={**found.info.recipe, **recipe(Path(run))},
            four_d=__version__,
        )
        (folder / WEIGHTS).write_bytes(save(_stored(found.model, DTYPES[dtype])))
        checkpoints.write_info(folder / CONFIG, info)
        bar.advance()
        outputs = (
            _write_program(folder, found.model, info) if program else tracing.output_names(found.model, info.image_size)
        )
        bar.advance()
        (folder / CARD).write_text(card(info, found.model, outputs, program=program))
        bar.advance()
    return out


def round_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Round the model's weights to the values that a file of this dtype will hold."""
    for name, value in _stored(model, dtype).items():
        model.state_dict()[name].copy_(value)


def _stored(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    state = model.state_dict().items()
    return {name: (value.to(dtype) if value.is_floating_point() else value).contiguous() for name, value in state}


def recipe(run: Path) -> dict[str, str]:
    """Provenance of a run, from its folder: command, hardware, minutes, commit. Paths keep only their last part."""
    folder = run.parent.parent if run.is_file() else run
    try:
        machine = cast(dict[str, object], json.loads((folder / ENVIRONMENT).read_text()))
        lines = (folder / METRICS).read_text().splitlines()
        minutes = {f"{float(json.loads(lines[-1])['elapsed_s']) / 60:.1f}"} if lines else set[str]()
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    command = cast(list[str], machine.get("command", []))
    devices = cast(list[str], machine.get("devices") or [])
    found = {
        "command": " ".join([Path(command[0]).name, *(_shorten(part) for part in command[1:])]) if command else "",
        "hardware": ", ".join(devices) or f"{machine.get('cpus')} CPU cores ({machine.get('machine')})",
        "minutes": "".join(minutes),
        "commit": str(machine.get("commit") or ""),
    }
    return {name: value for name, value in found.items() if value}


def _shorten(argument: str) -> str:
    key, equals, value = argument.rpartition("=")
    return f"{key}{equals}…/{Path(value).name}" if value.startswith("/") else argument


def read_scores(file: Path) -> dict[str, float]:
    """Read the figures of ``four-d eval --json FILE``, or of any JSON mapping of names to numbers. UserError otherwise.

    ``image_free/NAME`` is the best image-free predictor's, ``copy/NAME`` that of the input frame nearest in time.
    """
    try:
        content = cast(object, json.loads(file.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSON ({error}); write it with four-d eval … --json FILE") from error
    figures = cast(dict[str, object], content).get("summary", content) if isinstance(content, dict) else None
    if not isinstance(figures, dict):
        raise UserError(f"{file} holds no scores; write it with four-d eval … --json FILE")
    named = cast(dict[str, object], figures)
    others = cast(dict[str, dict[str, object]], named.get("predictors") or {})
    beside = {"image_free": named.get("image_free") or {}, "copy": others.get("copy") or {}}
    for row, figures in cast(dict[str, dict[str, object]], beside).items():
        named = {**named, **{f"{row}/{name}": value for name, value in figures.items()}}
    numbers = {name: float(v) for name, v in named.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    if not numbers:
        raise UserError(f"{file} holds no scores; write it with four-d eval … --json FILE")
    return numbers


def _write_program(folder: Path, model: ModelModule, info: ModelInfo) -> tuple[str, ...]:
    """Write the program, and return the names of its outputs."""
    traced, errors = tracing.to_program(model, info.image_size)
    described = programs.describe(model, info, tuple(errors))
    programs.write(folder / PROGRAM, traced, described, info)
    note = _program_note(described.signature, errors)
    (folder / PROGRAM_NOTE).write_text(json.dumps(note, indent=1) + "\n")
    return tuple(errors)


def _usage(outputs: Collection[str], *, posed: bool, measured: bool, world: World) -> str:
    """Python snippet that loads the model and calls it on a video, with required poses and depth."""
    if world == "stored":
        return OF_ONE_OBJECT
    given = set(outputs)
    results = {"depth": "depth", "world_from_camera": "cameras", "points": "points", "motion": "tracks"}
    names = [result for name, result in results.items() if name in given]
    if {"depth", "world_from_camera"} <= given and "points" not in names:
        names.append("points")
    if "gaussian_means" in given:
        names.append("gaussians")
    shared = {label for each in fields.labels(Prediction).values() for label in each}
    names += [f"prediction.{name}" for name in outputs if name not in shared]  # of heads' own classes
    told = "  # " + ", ".join(f"result.{name}" for name in names) if names else ""
    load = 'model = four_d.load("path/to/this/folder")'
    if not posed:
        return f'import four_d\n\n{load}\nresult = model("video.mp4"){told}'
    depth = ', depth="depth"' if measured else ""
    known = f'known = Known(cameras="cameras.json"{depth})  # of each frame, as four-d infer writes them'
    call = f'result = model("video.mp4", known=known){told}'
    return f"import four_d\nfrom four_d.inference import Known\n\n{load}\n{known}\n{call}"


def card(info: ModelInfo, model: ModelModule, outputs: Collection[str], *, program: bool = True) -> str:
    """Model card: description, usage, training data, scores and limits."""
    count = sum(p.numel() for p in model.parameters())
    scores = _scores_table(info.scores) or "Not measured at export; `four-d eval` measures."
    licences = ", ".join(f"{name} is {licence}" for name, licence in info.trained_on.items())
    steps = "\n".join(f"- {name}: {f'`{value}`' if name in CODE else value}" for name, value in info.recipe.items())
    taken = tracing.signature(model.abilities, info.image_size)
    least = "two" if taken.least == 2 else taken.least
    frames = f"{least} frames or more" if taken.frames is None else f"{taken.frames} frames"
    limit = f" `{PROGRAM}` takes exactly\nthat size, and {frames}." if program else ""
    height, width = info.image_size
    measured, world = info.normalisation == "disparity", model.abilities.world
    usage = _usage(outputs, posed="poses" in taken.hints, measured=measured, world=world)
    return f"""---
library_name: four_d
tags: [video, depth, camera-pose, 4d-reconstruction]
---
# {info.name or "A four_d model"}

{count / 1e6:.2f} M parameters; video in, {", ".join(outputs)} out. Written by four_d {info.four_d}.

```python
{usage}
```

## Training

{info.steps} steps on {", ".join(info.trained_on) or "unrecorded data"}, images of {height} × {width} pixels (rows
first), at most {info.frames} frames at once. `config.json` holds the whole model config.

{steps or "The command and the hardware are not recorded."}

## Scores

{scores}

## Limits

Lengths: {UNITS[info.normalisation]}. It does best at about
{height} × {width} pixels and at most {info.frames} frames; `four_d.load` resizes to that.{limit}

## Licence

The weights may be used as their training data allow: {licences or "not recorded"}.
"""


def _scores_table(scores: Mapping[str, float]) -> str:
    """Markdown table with a row per figure, the model's value first, then the baselines'; empty without scores."""
    cells: dict[str, dict[str, str]] = {}
    for key, value in scores.items():
        row, _, name = key.rpartition("/")
        cells.setdefault(name, {})[row] = f"{value:.4g}"
    columns = list(dict.fromkeys(["", *(key.rpartition("/")[0] for key in scores)])) if scores else []
    lines = [["metric", *(column or "value" for column in columns)], ["---"] * (1 + len(columns))] if scores else []
    for name, values in cells.items():
        heading = catalogue.METRICS[name].heading if name in catalogue.METRICS else name
        lines.append([heading, *(values.get(column, "") for column in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _program_note(taken: tracing.Signature, errors: Mapping[str, float]) -> dict[str, object]:
    return {
        "format": 2,
        "torch": torch.__version__,
        "input": taken.text,
        "outputs": {name: {"largest_relative_error": error} for name, error in errors.items()},
        "traced_frames": taken.traced,
        "checked_frames": list(taken.checked),
    }
