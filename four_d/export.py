"""A trained model as a folder that others use: weights, config, card, and a `torch.export` program."""

from __future__ import annotations

import dataclasses
import io
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor, nn

from four_d import __version__, checkpoints
from four_d.backbones.spacetime import SpacetimeBackbone
from four_d.checkpoints import CARD, CONFIG, WEIGHTS, ModelInfo
from four_d.data.sampling import UNITS
from four_d.errors import UserError
from four_d.formats.folders import new_folder
from four_d.geometry import make_pose
from four_d.model import FourD
from four_d.progress import progress
from four_d.types import Cameras, Clip, Prediction

PROGRAM, PROGRAM_NOTE = "model.pt2", "export.json"
CODE = ("command", "commit")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ENVIRONMENT, METRICS = "environment.json", "metrics.jsonl"
"""Of a run folder: where it ran and by which command, and how long."""
TRACED_FRAMES, CHECKED_FRAMES = 3, (2, 17)
"""Frames of the trace, and of the checks against the model itself."""
TOLERANCE = 1e-3
"""Largest error of the program's outputs, relative to the largest value of each, that is let through."""
IGNORED_WARNINGS = ("isinstance\\(treespec, LeafSpec\\)", "The tensor attributes? .* (was|were) assigned during export")
"""What torch itself warns of while exporting, without meaning for us."""


def export(
    run: str | Path,
    out: str | Path,
    *,
    scores: Mapping[str, float] | None = None,
    dtype: Literal["fp32", "bf16"] = "fp32",
    program: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write the newest (averaged) weights of a run, or an export anew, as a folder that appears whole or not at all.

    The folder holds ``model.safetensors``, ``config.json``, ``README.md`` (the card), ``model.pt2`` (a program that
    `torch.export.load` reads without this package; images (1, f, 3, h, w) to a dict of tensors, f ≥ 2 free, h and w
    those of training; of a model with Gaussians f is their head's, and one that needs poses also takes
    world_from_camera (1, f, 4, 4) and intrinsics (1, f, 3, 3)) and ``export.json`` (the program's signature and
    measured errors).

    Args:
        run: what `checkpoints.read` reads.
        out: is made; an earlier export there is replaced.
        scores: metric → value on held-out data, for the card.
        dtype: of the weights on disk; reading them gives float32 again, and the program computes with what is read.
        program: also write ``model.pt2`` and ``export.json``.
        overwrite: replace whatever ``out`` holds.

    Raises:
        UserError: nothing to export, a folder that cannot be written, or a program that does not agree with the model.

    """
    found = checkpoints.read(run)
    round_weights(found.model, DTYPES[dtype])
    info = dataclasses.replace(
        found.info,
        scores={**found.info.scores, **(scores or {})},
        recipe={**found.info.recipe, **recipe(Path(run))},
        four_d=__version__,
    )
    out = Path(out)
    with new_folder(out, "export", overwrite=overwrite) as folder, progress("export", 3, "file") as bar:
        (folder / WEIGHTS).write_bytes(save(_stored(found.model, DTYPES[dtype])))
        checkpoints.write_info(folder / CONFIG, info)
        bar.advance()
        outputs = _write_program(folder, found.model, info) if program else output_names(found.model, info.image_size)
        bar.advance()
        (folder / CARD).write_text(card(info, found.model, outputs, program=program))
        bar.advance()
    return out


def round_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Let the model compute, in its own precision, with the values that a file of this dtype will hold."""
    for name, value in _stored(model, dtype).items():
        model.state_dict()[name].copy_(value)


def _stored(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    state = model.state_dict().items()
    return {name: (value.to(dtype) if value.is_floating_point() else value).contiguous() for name, value in state}


def recipe(run: Path) -> dict[str, str]:
    """How a run was made, of what it left in its folder; paths of the machine are cut to their last part."""
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
    """The figures of ``four-d eval --json FILE``, or of any JSON mapping of names to numbers. UserError otherwise."""
    try:
        content = cast(object, json.loads(file.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSON ({error}); write it with four-d eval … --json FILE") from error
    figures = cast(dict[str, object], content).get("summary", content) if isinstance(content, dict) else None
    if not isinstance(figures, dict):
        raise UserError(f"{file} holds no scores; write it with four-d eval … --json FILE")
    named = cast(dict[str, object], figures)
    free = cast(dict[str, object], named.get("image_free") or {})
    scores = {**named, **{f"image_free_{name}": value for name, value in free.items()}}
    numbers = {name: float(v) for name, v in scores.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    if not numbers:
        raise UserError(f"{file} holds no scores; write it with four-d eval … --json FILE")
    return numbers


def _write_program(folder: Path, model: FourD, info: ModelInfo) -> tuple[str, ...]:
    """The names of the program's outputs."""
    program, errors = to_program(model, info.image_size)
    taken = signature(model, info.image_size)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    (folder / PROGRAM).write_bytes(buffer.getvalue())
    (folder / PROGRAM_NOTE).write_text(json.dumps(_program_note(taken, errors), indent=1) + "\n")
    return tuple(errors)


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What a program takes."""

    image_size: tuple[int, int]
    frames: int | None = None
    """Exactly so many; None: two or more."""
    cameras: bool = False
    """Also the cameras of all frames."""

    @property
    def text(self) -> str:
        """In words."""
        height, width = self.image_size
        f = "f" if self.frames is None else str(self.frames)
        images = f"images: float32 (1, {f}, 3, {height}, {width}), RGB in [0, 1]{', f >= 2' if f == 'f' else ''}"
        cameras = f"; world_from_camera: float32 (1, {f}, 4, 4); intrinsics in pixels: float32 (1, {f}, 3, 3)"
        return images + (cameras if self.cameras else "")

    @property
    def traced(self) -> int:
        """Frames of the trace."""
        return TRACED_FRAMES if self.frames is None else self.frames

    @property
    def checked(self) -> tuple[int, ...]:
        """Frames of the checks."""
        return CHECKED_FRAMES if self.frames is None else (self.frames,)

    def example(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Such inputs of ``count`` frames: noise, and cameras that move and turn a little."""
        height, width = self.image_size
        images = torch.rand(1, count, 3, height, width, generator=generator)
        if not self.cameras:
            return (images,)
        axes = 0.2 * torch.rand(count, 1, 3, generator=generator).expand(count, 3, 3)
        turns = torch.linalg.matrix_exp(torch.linalg.cross(torch.eye(3).expand(count, 3, 3), axes))
        poses = make_pose(turns, torch.rand(count, 3, generator=generator))
        lens = torch.tensor([[float(width), 0, width / 2], [0, float(width), height / 2], [0, 0, 1]])
        return images, poses[None], lens.repeat(1, count, 1, 1)


def signature(model: FourD, image_size: tuple[int, int]) -> Signature:
    """What the program of a model takes."""
    head = model.gaussian
    rays = head is not None and head.position == "ray"
    return Signature(
        image_size=image_size,
        frames=None if head is None else head.frames,
        cameras=rays or isinstance(model.backbone, SpacetimeBackbone),
    )


def output_names(model: FourD, image_size: tuple[int, int]) -> tuple[str, ...]:
    """What a model gives, by name."""
    taken = signature(model, image_size)
    inputs = taken.example(taken.frames or 2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        return tuple(_Named(model).eval()(*inputs))


def to_program(model: FourD, image_size: tuple[int, int]) -> tuple[torch.export.ExportedProgram, dict[str, float]]:
    """Trace a model; compare it with the model on other inputs, at other numbers of frames where that is free.

    Returns:
        The program and, per output, its largest absolute error relative to the largest absolute value.

    Raises:
        UserError: an output differs by more than `TOLERANCE`.

    """
    module, taken = _Named(model).eval(), signature(model, image_size)
    generator = torch.Generator().manual_seed(0)
    errors: dict[str, float] = {}
    # blocks that were compiled in place are traced, and compared, as they were written
    with warnings.catch_warnings(), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for message in IGNORED_WARNINGS:
            warnings.filterwarnings("ignore", message=f".*{message}")
        inputs = taken.example(taken.traced, generator)
        free = {1: torch.export.Dim("frames", min=2)} if taken.frames is None else None
        program = torch.export.export(module, inputs, dynamic_shapes=(free,) * len(inputs))
        runnable = program.module()
        for count in taken.checked:
            inputs = taken.example(count, generator)
            expected, given = module(*inputs), runnable(*inputs)
            for name, value in expected.items():
                errors[name] = max(errors.get(name, 0.0), relative_error(given[name], value))
    worst = max(errors, key=lambda name: errors[name])
    if not errors[worst] <= TOLERANCE:
        raise UserError(f"the exported program's {worst} is off by {errors[worst]:.2g} (> {TOLERANCE}); not written")
    return program, errors


def relative_error(given: Tensor, expected: Tensor) -> float:
    """Largest absolute difference relative to the largest absolute expected value; infinite if shapes differ."""
    if given.shape != expected.shape:
        return float("inf")
    return float((given - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def _usage(outputs: Iterable[str], *, posed: bool, measured: bool) -> str:
    """Python that loads the model and calls it on a video, whose poses, and then also depth, may have to be given."""
    given = set(outputs)
    results = {"depth": "depth", "world_from_camera": "cameras", "points": "points", "motion": "tracks"}
    names = [result for name, result in results.items() if name in given]
    if {"depth", "world_from_camera"} <= given and "points" not in names:
        names.append("points")
    if "gaussian_means" in given:
        names.append("gaussians")
    told = "  # " + ", ".join(f"result.{name}" for name in names) if names else ""
    load = 'model = four_d.load("path/to/this/folder")'
    if not posed:
        return f'import four_d\n\n{load}\nresult = model("video.mp4"){told}'
    depth = ', depth="depth"' if measured else ""
    known = f'known = Known(cameras="cameras.json"{depth})  # of each frame, as four-d infer writes them'
    call = f'result = model("video.mp4", known=known){told}'
    return f"import four_d\nfrom four_d.inference import Known\n\n{load}\n{known}\n{call}"


def card(info: ModelInfo, model: nn.Module, outputs: Iterable[str], *, program: bool = True) -> str:
    """The model card: what it is, how to use it, what it was trained on, what it scores, what it cannot."""
    count = sum(p.numel() for p in model.parameters())
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in info.scores.items())
    scores = f"| metric | value |\n| --- | --- |\n{rows}" if rows else "Not measured at export; `four-d eval` measures."
    licences = ", ".join(f"{name} is {licence}" for name, licence in info.trained_on.items())
    steps = "\n".join(f"- {name}: {f'`{value}`' if name in CODE else value}" for name, value in info.recipe.items())
    taken = signature(model, info.image_size) if isinstance(model, FourD) else None
    number = None if taken is None else taken.frames
    frames = "two frames or more" if number is None else f"{number} frames"
    limit = f" `{PROGRAM}` takes exactly\nthat size, and {frames}." if program else ""
    height, width = info.image_size
    return f"""---
library_name: four_d
tags: [video, depth, camera-pose, 4d-reconstruction]
---
# {info.name or "A four_d model"}

{count / 1e6:.2f} M parameters; video in, {", ".join(outputs)} out. Written by four_d {info.four_d}.

```python
{_usage(outputs, posed=taken is not None and taken.cameras, measured=info.normalisation == "disparity")}
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


def _program_note(taken: Signature, errors: Mapping[str, float]) -> dict[str, object]:
    return {
        "format": 1,
        "torch": torch.__version__,
        "input": taken.text,
        "outputs": {name: {"largest_relative_error": error} for name, error in errors.items()},
        "traced_frames": taken.traced,
        "checked_frames": list(taken.checked),
    }


def _outputs(prediction: Prediction) -> dict[str, Tensor]:
    """The fields a program gives, by name; cameras as their two tensors."""
    cameras: Cameras | None = prediction.cameras
    named = {
        "depth": prediction.depth,
        "depth_confidence": prediction.depth_confidence,
        "points": prediction.points,
        "points_confidence": prediction.points_confidence,
        "dynamic": prediction.dynamic,
        "motion": prediction.motion,
        "motion_visible": prediction.motion_visible,
        "world_from_camera": None if cameras is None else cameras.world_from_camera,
        "intrinsics": None if cameras is None else cameras.intrinsics,
        "key_frames": prediction.key_frames,
    }
    if prediction.gaussians is not None:
        named |= {f"gaussian_{name}": value for name, value in vars(prediction.gaussians).items()}
    return {name: value for name, value in named.items() if value is not None}


FRAME_RATE = 25.0
"""Frames per second of a program's images: it is given no times."""


class _Named(nn.Module):
    """Images in, tensors by name out: dataclasses do not cross the border of an exported program.

    The frames count as consecutive ones of one camera, `FRAME_RATE` a second; motion is that to the first one's time,
    and Gaussians move to each frame's.
    """

    def __init__(self, model: FourD) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        images: Float[Tensor, "1 f 3 h w"],
        world_from_camera: Float[Tensor, "1 f 4 4"] | None = None,
        intrinsics: Float[Tensor, "1 f 3 3"] | None = None,
    ) -> dict[str, Tensor]:
        times = (torch.arange(images.shape[1], device=images.device) / FRAME_RATE)[None]
        cameras = None
        if world_from_camera is not None and intrinsics is not None:
            cameras = Cameras(world_from_camera=world_from_camera, intrinsics=intrinsics)
        one = torch.zeros_like(times, dtype=torch.long)
        return _outputs(self.model(Clip(images=images, times=times, camera_ids=one, cameras=cameras)))
