"""Export of a trained model as a folder: weights, config, card, and programs in several formats."""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import save
from torch import Tensor, nn

from four_d import __version__, checkpoints, fields, hub, portable, programs, tracing
from four_d.abilities import UNITS, ModelModule, World
from four_d.checkpoints import CARD, CONFIG, ENVIRONMENT, METRICS, WEIGHTS, ModelInfo
from four_d.datasets.facts import STRICTEST
from four_d.errors import UserError
from four_d.metrics import catalogue
from four_d.model import FourD, ModelConfig
from four_d.outputs import new_folder
from four_d.progress import Bar, progress
from four_d.types import Prediction

LOGGER = logging.getLogger(__name__)

Format = Literal["safetensors", "pt2", "onnx", "aoti"]
FORMATS: tuple[Format, ...] = ("safetensors", "pt2", "onnx", "aoti")
PROGRAM, NOTE = "model.pt2", "export.json"
FILES: dict[Format, str] = {"safetensors": WEIGHTS, "pt2": PROGRAM, "onnx": portable.ONNX, "aoti": portable.AOTI}
NOT_COMMERCIAL = next(words for kind, words in STRICTEST if kind == "non-commercial")
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
HEAD = "---\nlibrary_name: four_d\n"
"""Beginning of a card."""
HUB_LICENCES = frozenset(
    {
        *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-4.0"),
        *("cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
    }
)
"""Licences by the names that the hub has for them, of those that data have."""


def export(
    run: str | Path,
    out: str | Path,
    *,
    scores: Mapping[str, float] | None = None,
    dtype: Literal["fp32", "bf16"] = "fp32",
    formats: Collection[str] = ("safetensors", "pt2"),
    refine: bool = True,
    overwrite: bool = False,
) -> Path:
    """Export the newest (averaged) weights of a run, or an export again, as a folder, written atomically.

    The folder holds ``model.safetensors``, ``config.json``, ``README.md`` (the card), a program in each further format,
    and ``export.json``: what programs take, and how far and how fast each format is from the model as it runs here. A
    program is a function of images (1, f, 3, h, w) and times (1, f), h and w those of training, f free, or the gaussian
    head's; a model of motion also takes query_times (1, 1), and one that requires hints takes those.

    ``pt2`` is ``model.pt2``, a program that `torch.export.load` reads without this package; ``onnx`` is ``model.onnx``;
    ``aoti`` is ``model.aoti.pt2``, compiled for this kind of processor (`portable`).

    Args:
        run: input of `checkpoints.read`.
        out: created, apart from ``run``; an earlier export there is replaced.
        scores: metric → value on held-out data, for the card.
        dtype: type of the weights on disk; reading gives float32 again, and the program computes with those values.
        formats: what to write; the weights, ``safetensors``, always are.
        refine: False leaves out ``model.refine``: every format, the weights too, is of the heads' own cameras and mask.
        overwrite: replace also another result of four_d there, or one that was changed (`outputs.check_folder`).

    Raises:
        UserError: a folder that must not or cannot be written, or a package or compiler that a format needs and that is
            missing (before anything is read); nothing to export, or to leave out; or a format that cannot express the
            model, or does not agree with it (`tracing.compare`).

    """
    out = Path(out)
    chosen = check_formats(formats)
    with (
        new_folder(out, "export", inputs=[run], overwrite=overwrite) as folder,
        progress("export", 2 + len(chosen), "file") as bar,
    ):
        found = checkpoints.read(run) if refine else unrefined(checkpoints.read(run))
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
        note = _note(info, found.model)
        outputs = _write_formats(folder, found.model, info, chosen, note, bar)
        (folder / NOTE).write_text(json.dumps(note, indent=1) + "\n")
        (folder / CARD).write_text(card(info, found.model, outputs, program="pt2" in chosen))
        bar.advance()
    _tell(note)
    return out


def unrefined(found: checkpoints.Checkpoint) -> checkpoints.Checkpoint:
    """Checkpoint without ``model.refine``, and without the scores that it has with it. UserError if it has none."""
    config, model = found.info.model, found.model
    if not isinstance(config, ModelConfig) or not isinstance(model, FourD) or config.refine is None:
        raise UserError("this model refines nothing after its heads; leave --no-refine (refine=False) out")
    model.refine = None
    info = dataclasses.replace(found.info, model=dataclasses.replace(config, refine=None), scores={})
    return dataclasses.replace(found, info=info)


def check_formats(formats: Collection[str]) -> tuple[Format, ...]:
    """Formats in the order in which they are written. UserError for one that is unknown or lacks what it needs."""
    wrong = sorted(set(formats) - set(FORMATS))
    if wrong:
        raise UserError(f"no format {wrong[0]!r}; choose among {', '.join(FORMATS)}")
    chosen: tuple[Format, ...] = tuple(name for name in FORMATS if {name} & {*formats, "safetensors"})
    if "onnx" in chosen:
        portable.check_onnx()
    if "aoti" in chosen:
        portable.check_aoti()
    return chosen


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
        lines = [cast(dict[str, float], json.loads(line)) for line in (folder / METRICS).read_text().splitlines()]
        elapsed = [line["elapsed_s"] for line in lines if "elapsed_s" in line]  # histograms have none
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    command = cast(list[str], machine.get("command", []))
    devices = cast(list[str], machine.get("devices") or [])
    found = {
        "command": " ".join([Path(command[0]).name, *(_shorten(part) for part in command[1:])]) if command else "",
        "hardware": ", ".join(devices) or f"{machine.get('cpus')} CPU cores ({machine.get('machine')})",
        "minutes": f"{elapsed[-1] / 60:.1f}" if elapsed else "",
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


def push(source: str | Path, name: str, *, private: bool = False, licence: str | None = None) -> str:
    """Put a model on the Hugging Face hub in one commit, with its card and licence, and return its address.

    Args:
        source: exported folder, whose weights, config, card and programs go there as they are, but for ``aoti``'s, of
            one kind of processor; or input of `checkpoints.read`, which is exported first, without a program.
        name: ``org/name`` on the hub.
        private: of a model that is not there yet: only its owner sees it.
        licence: the weights', by the hub's name for it; None: that of all training data, if it is one and known there,
            else ``other``, whose text is the card.

    Raises:
        UserError: no model at ``source``, training data of unknown licence where none is given, or as `hub.upload`.

    """
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(source)
        if not (ready / CONFIG).is_file():
            ready = export(source, Path(folder) / "model", formats=["safetensors"])
        info = checkpoints.read(ready).info  # refuses what would not load
        names = [each for each in (WEIGHTS, CONFIG, PROGRAM, portable.ONNX, NOTE) if (ready / each).is_file()]
        text = (ready / CARD).read_text() if (ready / CARD).is_file() else HEAD + "---\n"
        text = _card_on_hub(text, name, licence or _licence(info))
        return hub.upload({CARD: text.encode(), **{each: ready / each for each in names}}, name, private=private)


def _licence(info: ModelInfo) -> str:
    """Hub's name of the licence that all training data have. UserError where one is not known."""
    unknown = [source for source, each in info.trained_on.items() if each.strip().lower() in ("", "unknown")]
    if unknown or not info.trained_on:
        which = f"the licence of {unknown[0]}" if unknown else "what it was trained on"
        raise UserError(f"{which} is not known; name the licence of the weights, as --licence cc-by-4.0")
    licences = {each.partition(" (")[0].strip().lower() for each in info.trained_on.values()}
    return next(iter(licences)) if len(licences) == 1 and licences <= HUB_LICENCES else "other"


def _card_on_hub(text: str, name: str, licence: str) -> str:
    """Card with the hub's metadata of its licence, and with its name there in the example."""
    said = f"license: {licence}\n" + (f"license_name: see-card\nlicense_link: {CARD}\n" if licence == "other" else "")
    text = text if text.startswith(HEAD) else HEAD + "---\n" + text
    return text.replace(HEAD, HEAD + said, 1).replace('load("path/to/this/folder")', f'load("{name}")')


def _note(info: ModelInfo, model: ModelModule) -> dict[str, object]:
    """Content of ``export.json`` that does not depend on the formats."""
    taken = tracing.signature(model.abilities, info.image_size)
    frames = {"exactly": taken.frames} if taken.frames is not None else {"at_least": taken.least}
    return {
        "format": 3,
        "torch": torch.__version__,
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "input": taken.text,
        "shapes": taken.shapes,
        "frames": frames,
        "licences": info.trained_on,
        "not_commercial": restricted(info),
        "traced_frames": taken.traced,
        "checked_frames": list(taken.checked),
        "tolerance": tracing.TOLERANCE,
        "formats": {},
    }


def restricted(info: ModelInfo) -> list[str]:
    """Ancestors of the weights (data, or models that they were tuned from) whose licence forbids commercial use."""
    return [f"{name}: {licence}" for name, licence in info.trained_on.items() if re.search(NOT_COMMERCIAL, licence)]


def _write_formats(
    folder: Path, model: ModelModule, info: ModelInfo, chosen: Sequence[Format], note: dict[str, object], bar: Bar
) -> tuple[str, ...]:
    """Write the programs, note how they differ from the model, and return the names of its outputs."""
    size, entries = info.image_size, cast(dict[str, object], note["formats"])
    outputs = tracing.output_names(model, size)
    taken = tracing.signature(model.abilities, size)
    if outputs:
        again = tracing.as_function(checkpoints.read(folder).model, taken)
        fewest = taken.checked[:1]  # it is the same code
        differences = tracing.compare(model, size, again, "safetensors file", fewest)
        entries["safetensors"] = _entry(folder / WEIGHTS, differences)
    bar.advance()
    if chosen == ("safetensors",):
        return outputs
    program = tracing.trace(model, size)
    run: tracing.Runner
    for name in chosen[1:]:
        file, kind = folder / FILES[name], f"{name} program"
        if name == "pt2":
            programs.write(file, program, programs.describe(model, info, outputs), info)
            run, kind = cast(tracing.Runner, program.module()), "exported program"
        elif name == "onnx":
            run = portable.write_onnx(file, program, taken, outputs)
        else:
            run = portable.write_aoti(file, program)
        differences = tracing.compare(model, size, run, kind)
        entries[name] = {**_entry(file, differences), **_speed(*tracing.timed(model, size, run))}
        bar.advance()
    return outputs


def _entry(file: Path, differences: Mapping[str, tracing.Difference]) -> dict[str, object]:
    return {
        "file": file.name,
        "bytes": file.stat().st_size,
        "differences": {name: dataclasses.asdict(each) for name, each in differences.items()},
    }


def _speed(eager: float, seconds: float) -> dict[str, object]:
    return {"seconds": seconds, "eager_seconds": eager, "times_eager": round(eager / seconds, 3)}


def _tell(note: Mapping[str, object]) -> None:
    """Say on stderr how each format compares, and what the weights may not be used for."""
    for name, entry in cast(dict[str, dict[str, Any]], note["formats"]).items():
        worst = max((each["relative"] for each in entry["differences"].values()), default=0.0)
        speed = f", {entry['times_eager']:.2f} times as fast" if "times_eager" in entry else ""
        LOGGER.warning(f"{name}: {entry['file']}, largest relative difference from the model {worst:.1e}{speed}")
    for ancestor in cast(list[str], note["not_commercial"]):
        LOGGER.warning(f"warning: not for commercial use in any format: {ancestor}")


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
