"""Tracing of models: what a `torch.export` program takes, the program itself, and its check against the model."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from four_d import fields
from four_d.abilities import HINTS, Abilities, Hint, ModelModule
from four_d.errors import UserError
from four_d.geometry import make_pose
from four_d.query import query_times
from four_d.types import Cameras, Clip

TRACED_FRAMES, CHECKED_FRAMES = 3, 17
"""Number of frames of the trace, and of the check beside that with the fewest."""
TOLERANCE = 1e-3
"""Maximum error of the program's outputs, relative to the largest value of each."""
IGNORED_WARNINGS = ("isinstance\\(treespec, LeafSpec\\)", "The tensor attributes? .* (was|were) assigned during export")
"""Torch's own warnings while exporting, which are harmless here."""
GIVEN: dict[Hint, tuple[str, ...]] = {
    "intrinsics": ("intrinsics",),
    "poses": ("world_from_camera", "intrinsics"),
    "depth": ("depth",),
    "masks": ("dynamic",),
    "boxes": ("keypoint_boxes",),
}
"""Inputs of a program for each hint that its model requires."""


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Inputs of a program."""

    image_size: tuple[int, int]
    frames: int | None = None
    """Exact number of frames; None: ``least`` or more."""
    least: int = 2
    """Minimum number of frames: two, or as many as two rows of tokens take."""
    query: bool = False
    """True if the query time is an input."""
    hints: tuple[str, ...] = ()
    """Hints that are inputs: those that the model requires."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in the order of the call."""
        given = dict.fromkeys(name for hint in self.hints for name in GIVEN[cast(Hint, hint)])
        return ("images", "times", *(("query_times",) if self.query else ()), *given)

    @property
    def text(self) -> str:
        """Description in words."""
        height, width = self.image_size
        f = "f" if self.frames is None else str(self.frames)
        words = {
            "images": f"float32 (1, {f}, 3, {height}, {width}), RGB in [0, 1]{f', f >= {self.least}' * (f == 'f')}",
            "times": f"float32 (1, {f}), seconds from the first frame's",
            "query_times": "float32 (1, 1), the time of a frame, which motion is to",
            "world_from_camera": f"float32 (1, {f}, 4, 4)",
            "intrinsics": f"in pixels, float32 (1, {f}, 3, 3)",
            "depth": f"float32 (1, {f}, {height}, {width}), 0 where unknown",
            "dynamic": f"bool (1, {f}, {height}, {width}), true where things move",
        }
        return "; ".join(f"{name}: {words[name]}" for name in self.inputs)

    @property
    def shapes(self) -> dict[str, list[int | str]]:
        """Shape of each input; an axis of any length is its name."""
        height, width = self.image_size
        frames: int | str = "frames" if self.frames is None else self.frames
        inner: dict[str, list[int]] = {
            "images": [3, height, width],
            "times": [],
            "world_from_camera": [4, 4],
            "intrinsics": [3, 3],
            "depth": [height, width],
            "dynamic": [height, width],
        }
        return {name: [1, 1] if name == "query_times" else [1, frames, *inner[name]] for name in self.inputs}

    @property
    def traced(self) -> int:
        """Number of frames of the trace."""
        return max(TRACED_FRAMES, self.least) if self.frames is None else self.frames

    @property
    def checked(self) -> tuple[int, ...]:
        """Numbers of frames of the checks."""
        return (self.least, CHECKED_FRAMES) if self.frames is None else (self.frames,)

    def example(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Make inputs of ``count`` frames: a texture that moves, at uneven times, and cameras that do so a little."""
        height, width = self.image_size
        # not noise: pixels must be found again in other frames, or what refines cameras by them is never compared
        coarse = torch.rand(1, 3, -(-height // 4), -(-width // 4), generator=generator)
        texture = nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
        images = torch.stack([texture.roll((frame, 2 * frame), (-2, -1)) for frame in range(count)])[None]
        steps = 0.02 + 0.04 * torch.rand(count, generator=generator)
        times = (steps.cumsum(0) - steps[0])[None]
        axes = 0.2 * torch.rand(count, 1, 3, generator=generator).expand(count, 3, 3)
        turns = torch.linalg.matrix_exp(torch.linalg.cross(torch.eye(3).expand(count, 3, 3), axes))
        lens = torch.tensor([[float(width), 0, width / 2], [0, float(width), height / 2], [0, 0, 1]])
        made = {
            "images": images,
            "times": times,
            "query_times": times[:, count // 2, None],
            "world_from_camera": make_pose(turns, torch.rand(count, 3, generator=generator))[None],
            "intrinsics": lens.repeat(1, count, 1, 1),
            "depth": 1 + torch.rand(1, count, height, width, generator=generator),
            "dynamic": torch.rand(1, count, height, width, generator=generator) > 0.5,
        }
        return tuple(made[name] for name in self.inputs)


def signature(able: Abilities, image_size: tuple[int, int]) -> Signature:
    """Signature of the program of a model with these abilities."""
    return Signature(
        image_size=image_size,
        frames=able.times,
        least=able.stride + 1,
        query=bool(able.queried),
        hints=tuple(hint for hint in HINTS if hint in able.required),
    )


def output_names(model: ModelModule, image_size: tuple[int, int]) -> tuple[str, ...]:
    """Names of a model's outputs as its program would give them."""
    taken = signature(model.abilities, image_size)
    inputs = taken.example(taken.frames or taken.least, torch.Generator().manual_seed(0))
    with torch.no_grad():
        return tuple(as_function(model, taken)(*inputs))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Largest difference of an output from the model's."""

    absolute: float
    relative: float
    """Ratio of that to the largest absolute value of the model's."""


Runner = Callable[..., Mapping[str, Tensor]]
"""Function of the inputs of a `Signature`, in order, that gives outputs by name."""


def trace(model: ModelModule, image_size: tuple[int, int]) -> torch.export.ExportedProgram:
    """Trace a model into a program."""
    taken = signature(model.abilities, image_size)
    with eagerly():
        inputs = taken.example(taken.traced, torch.Generator().manual_seed(0))
        free = {1: torch.export.Dim("frames", min=taken.least)} if taken.frames is None else None
        shapes = tuple(None if name == "query_times" else free for name in taken.inputs)
        return torch.export.export(as_function(model, taken), inputs, dynamic_shapes=(shapes,))


def compare(
    model: ModelModule, image_size: tuple[int, int], run: Runner, kind: str, counts: Sequence[int] | None = None
) -> dict[str, Difference]:
    """Compare what runs for a model with it, on inputs of their own, at these numbers of frames (`Signature.checked`).

    ``kind`` is its name in the error.

    Raises:
        UserError: an output differs by more than `TOLERANCE`, or there is none.

    """
    taken, generator = signature(model.abilities, image_size), torch.Generator().manual_seed(1)
    module, found = as_function(model, taken), dict[str, Difference]()
    with eagerly():
        for count in taken.checked if counts is None else counts:
            inputs = taken.example(count, generator)
            expected, given = module(*inputs), run(*inputs)
            for name, value in expected.items():
                before = found.get(name, Difference(absolute=0.0, relative=0.0))
                found[name] = Difference(
                    absolute=max(before.absolute, absolute_error(given[name], value)),
                    relative=max(before.relative, relative_error(given[name], value)),
                )
    if not found:
        raise UserError("a program would give nothing: all that this model predicts is of query points; leave it out")
    worst = max(found, key=lambda name: found[name].relative)
    if not found[worst].relative <= TOLERANCE:
        off = f"{worst} is off by {found[worst].relative:.2g} (> {TOLERANCE})"
        raise UserError(f"the {kind}'s {off}; not written")
    return found


def to_program(
    model: ModelModule, image_size: tuple[int, int]
) -> tuple[torch.export.ExportedProgram, dict[str, Difference]]:
    """Trace a model, and compare the program with it. UserError as `compare`."""
    program = trace(model, image_size)
    return program, compare(model, image_size, cast(Runner, program.module()), "exported program")


CALLS, SECONDS = 3, 2.0
"""Fewest calls of each side that are timed, and the time that more may take."""


def timed(model: ModelModule, image_size: tuple[int, int], run: Runner) -> tuple[float, float]:
    """Median seconds of a call of the model and of what runs for it, in turn, on the frames of the trace."""
    taken = signature(model.abilities, image_size)
    module, inputs = as_function(model, taken), taken.example(taken.traced, torch.Generator().manual_seed(2))
    times: list[tuple[float, float]] = []
    with eagerly():
        for each in (module, run):  # the first calls make things ready
            each(*inputs)
        while len(times) < CALLS or (sum(map(sum, times)) < SECONDS and len(times) < 10 * CALLS):
            began = time.perf_counter()
            module(*inputs)
            between = time.perf_counter()
            run(*inputs)
            times.append((between - began, time.perf_counter() - between))
    return statistics.median(each[0] for each in times), statistics.median(each[1] for each in times)


@contextmanager
def eagerly() -> Generator[None]:
    """Run models without gradients and uncompiled, and silence what torch says while it exports."""
    # blocks compiled in place are traced, and compared, uncompiled
    with warnings.catch_warnings(), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for message in IGNORED_WARNINGS:
            warnings.filterwarnings("ignore", message=f".*{message}")
        yield


def absolute_error(given: Tensor, expected: Tensor) -> float:
    """Largest absolute difference; infinite if shapes differ."""
    if given.shape != expected.shape:
        return float("inf")
    return float((given.float() - expected.float()).abs().max()) if expected.numel() else 0.0


def relative_error(given: Tensor, expected: Tensor) -> float:
    """Largest absolute difference relative to the largest absolute expected value; infinite if shapes differ."""
    if given.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    given, expected = given.float(), expected.float()  # truth values too
    return float((given - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def as_function(model: ModelModule, taken: Signature) -> nn.Module:
    """Model as a module from the inputs of a signature to tensors by name, in evaluation mode."""
    return _Named(model, taken).eval()


class _Named(nn.Module):
    """Module from tensors to tensors by name, since exported programs cannot pass dataclasses."""

    def __init__(self, model: ModelModule, taken: Signature) -> None:
        super().__init__()
        self.model, self.taken = model, taken

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        # a program is asked for no points, and a head that then tracks some of its own choice does not while traced
        prediction = self.model(clip_of(dict(zip(self.taken.inputs, inputs, strict=True))))
        return fields.named(fields.without(fields.delivered(prediction), "n"))


def clip_of(given: Mapping[str, Tensor]) -> Clip:
    """Clip of one camera out of a program's inputs."""
    times, poses, lens, depth = given["times"], given.get("world_from_camera"), given.get("intrinsics"), None
    cameras = None
    if lens is not None:
        unposed = poses is None
        poses = torch.eye(4).to(lens).expand(*lens.shape[:2], 4, 4) if poses is None else poses
        known = torch.full_like(times, not unposed, dtype=torch.bool)
        cameras = Cameras(
            world_from_camera=poses, intrinsics=lens, known=known, intrinsics_known=torch.ones_like(known)
        )
    depth = given.get("depth")
    return Clip(
        images=given["images"],
        times=times,
        camera_ids=torch.zeros_like(times, dtype=torch.long),
        query_times=given.get("query_times"),
        cameras=cameras,
        depth=depth,
        valid=None if depth is None else depth > 0,
        dynamic=given.get("dynamic"),
    )


def inputs_of(clip: Clip, taken: Signature) -> tuple[Tensor, ...]:
    """Inputs of a program out of a clip of one, the inverse of `clip_of`. UserError for a hint that it lacks."""
    cameras = clip.cameras
    depth = None if clip.depth is None or clip.valid is None else clip.depth.masked_fill(~clip.valid, 0)
    poses, lens = (None, None) if cameras is None else (cameras.world_from_camera, cameras.intrinsics)
    known = None if cameras is None else cameras.known
    lens_known = known if cameras is None or cameras.intrinsics_known is None else cameras.intrinsics_known
    available: dict[str, tuple[Tensor | None, Tensor | None]] = {
        "images": (clip.images, None),
        "times": (clip.times, None),
        "query_times": (query_times(clip), None),
        "world_from_camera": (poses, known),
        "intrinsics": (lens, lens_known),
        "depth": (depth, None),
        "dynamic": (clip.dynamic, clip.dynamic_known),
    }
    for name in taken.inputs:
        value, there = available[name]
        if value is None or (there is not None and not bool(there.all())):
            raise UserError(
                f"this program takes {' and '.join(taken.hints)} of every frame, and a frame comes without; give them"
            )
    return tuple(cast(Tensor, available[name][0]) for name in taken.inputs)
