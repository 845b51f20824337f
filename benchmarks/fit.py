"""Cost of ``four-d fit``: seconds and memory beside the renderer's own time, at two sizes and two lengths of video.

    python benchmarks/fit.py [--steps 40] [--sizes 96,256] [--frames 30,300] [--seed 0] [--note TEXT]

The video is the study's dog (`studies/pad3r_clips.py`), 140° of view, rendered at the size, as long as the most
``--frames``, of which fewer are taken evenly; its object file and tracks are given. Each case is fitted in a process of
its own, with one thread: `WARM` steps, then ``--steps`` that are timed. Seconds are the process's own (CPU time), since
other work may share the machine; wall-clock seconds stand beside them. The renderer's time is that of `render` and of
its backward pass, from the gradient of the picture to that of Gaussians and cameras. Results go to
``docs/results/fit.json``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.generate import commit, processor  # noqa: E402 - this script is run by its path
from benchmarks.studies import pad3r_clips as clips  # noqa: E402
from four_d import checkpoints, fields  # noqa: E402
from four_d.fitting import FitRequest, fit  # noqa: E402
from four_d.fitting.stages import START, run_config  # noqa: E402
from four_d.formats.splats import write_ply  # noqa: E402
from four_d.geometry import project  # noqa: E402
from four_d.losses import term, tracked_pixels  # noqa: E402
from four_d.rendering import Contributors, contributors, render  # noqa: E402
from four_d.rendering.scene import means_at  # noqa: E402
from four_d.scene import DeformableSceneConfig  # noqa: E402
from four_d.training.run import train  # noqa: E402
from four_d.types import Cameras, Gaussians, Views, map_tensors  # noqa: E402

RESULT = ROOT / "docs" / "results" / "fit.json"
WARM = 5
"""Steps that are not timed."""


@dataclass
class Timer:
    """CPU seconds of renders, forward and backward."""

    contributors: float = 0.0
    """Finding the Gaussians of the tracks' pixels."""
    forward: float = 0.0
    backward: float = 0.0
    renders: int = 0

    def find(self, *arguments: Any, **more: Any) -> Contributors:  # noqa: ANN401
        """Find contributors, and note how long that takes."""
        started = time.process_time()
        found = contributors(*arguments, **more)
        self.contributors += time.process_time() - started
        return found

    def render(
        self,
        gaussians: Gaussians,
        cameras: Cameras,
        times: Tensor,
        size: tuple[int, int],
        *,
        features: Tensor | None = None,
        read_back: bool = True,
    ) -> Views:
        """Render, and note how long that and its backward pass take."""
        run = _Run(self)
        own = map_tensors(gaussians, lambda tensor: cast(Tensor, _End.apply(tensor, run)))
        seen = map_tensors(cameras, lambda tensor: cast(Tensor, _End.apply(tensor, run)))
        started = time.process_time()
        views = render(own, seen, times, size, features=features, read_back=read_back)
        self.forward += time.process_time() - started
        self.renders += times.numel()
        return map_tensors(views, lambda tensor: cast(Tensor, _Begin.apply(tensor, run)))


@dataclass
class _Run:
    """One render: when the gradient of its picture was there, and how long it took from then to now."""

    timer: Timer
    began: float | None = None
    took: float = 0.0


class _Begin(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: Tensor, run: _Run) -> Tensor:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        context.run = run
        return value.view_as(value)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        # the last of the outputs' gradients starts the renderer's own pass
        context.run.began = time.process_time()
        return gradient, None


class _End(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: Tensor, run: _Run) -> Tensor:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        context.run = run
        return value.view_as(value)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        run = cast(_Run, context.run)
        if run.began is not None:  # autograd runs a render's nodes before all that were made earlier, such as these
            took = time.process_time() - run.began
            run.timer.backward += took - run.took
            run.took = took
        return gradient, None


class Clock(Callback):
    """CPU and wall-clock seconds of the timed steps, and where they go."""

    def __init__(self, timer: Timer, timed: int) -> None:
        self.timer, self.timed = timer, timed
        self.parts = dict.fromkeys(("data", "step", "validation"), 0.0)
        self.done, self._last, self._wall, self.wall = 0, 0.0, 0.0, 0.0

    def on_train_batch_start(
        self,
        trainer: lightning.Trainer,  # noqa: ARG002 - Lightning's names, of this and the next
        pl_module: lightning.LightningModule,  # noqa: ARG002
        batch: object,  # noqa: ARG002
        batch_idx: int,
    ) -> None:
        """Read the clock."""
        now = time.process_time()
        if batch_idx == WARM:
            self.timer.forward = self.timer.backward = self.timer.contributors = 0.0
            self.timer.renders, self._wall = 0, time.monotonic()
        elif batch_idx > WARM:
            self.parts["data"] += now - self._last
        self._last = now

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,  # noqa: ARG002
        pl_module: lightning.LightningModule,  # noqa: ARG002
        outputs: object,  # noqa: ARG002
        batch: object,  # noqa: ARG002
        batch_idx: int,
    ) -> None:
        """Read the clock."""
        now = time.process_time()
        if batch_idx >= WARM:
            self.parts["step"] += now - self._last
            self.done, self.wall = self.done + 1, time.monotonic() - self._wall
        self._last = now

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """Read the clock."""
        self._last = time.process_time()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """Read the clock."""
        self.parts["validation"] = time.process_time() - self._last


def make(frames: int, size: int, out: Path, seed: int) -> None:
    """Frames, masks, object and exact tracks of the dog."""
    thing, times = clips.THINGS["dog"](), torch.arange(frames) / clips.RATE
    poses = torch.stack([clips.camera(20 + 140 * (index / (frames - 1) - 0.5), 12) for index in range(frames)])
    focal = clips.FOCAL * size / clips.SIZE
    lens = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    write_ply(out / "object.ply", clips.perturbed(thing.gaussians, seed))
    tracks = list[Tensor]()
    for name in ("frames", "masks"):
        (out / name).mkdir()
    for index in range(frames):
        now = times[index : index + 1]
        shown = Cameras(world_from_camera=poses[None, index : index + 1], intrinsics=lens[None, None])
        exact = clips.at_times(thing, now)
        with torch.no_grad():
            views = render(exact, shown, now[None], (size, size))
        picture = (views.colour[0, 0].clamp(0, 1).movedim(0, -1) * 255).byte().numpy()
        Image.fromarray(picture).save(out / "frames" / f"{index:03d}.png")
        Image.fromarray(((views.alpha[0, 0] > 0.5) * 255).byte().numpy()).save(out / "masks" / f"{index:03d}.png")
        tracks.append(project(means_at(exact, now[None])[0, :, ::13], fields.unstack(shown, 0))[0][0])
    pixels = torch.stack(tracks)
    np.savez(out / "tracks.npz", tracks=pixels.numpy(), visibility=np.ones(pixels.shape[:2], bool))


def measure(source: Path, frames: int, size: int, steps: int, seed: int) -> dict[str, float]:
    """Fit, and say what the timed steps took."""
    torch.set_num_threads(1)
    loaded = peak()
    request = FitRequest(
        video=source / "frames",
        object=source / "object.ply",
        mask=source / "masks",
        tracks=source / "tracks.npz",
        max_frames=frames,
        size=size,
        focal=clips.FOCAL / clips.SIZE,
        gaussians=clips.GIVEN,
        pose_steps=0,
        steps=1,
        seed=seed,
    )
    out, total = source / f"fit-{frames}", WARM + steps
    fit(request, out)
    model = checkpoints.read_info(out / START / checkpoints.CONFIG).model
    assert isinstance(model, DeformableSceneConfig)
    own = (f"loop.epoch_steps={total}", "name=timed")
    timer = Timer()
    clock = Clock(timer, steps)
    with (
        patch.object(term, "render", timer.render),
        patch.object(tracked_pixels, "contributors", timer.find),
    ):
        train(run_config(replace(request, steps=total), model, out, own), callbacks=[clock])
    used = clock.parts["data"] + clock.parts["step"]
    return {
        "seconds_per_1000_steps": 1000 * used / clock.done,
        "wall_seconds_per_1000_steps": 1000 * clock.wall / clock.done,
        "render_share": (timer.forward + timer.backward) / used,
        "render_forward_ms": 1000 * timer.forward / clock.done,
        "render_backward_ms": 1000 * timer.backward / clock.done,
        "contributors_ms": 1000 * timer.contributors / clock.done,
        "renders_per_step": timer.renders / clock.done,
        "data_ms": 1000 * clock.parts["data"] / clock.done,
        "rest_ms": 1000 * (clock.parts["step"] - timer.forward - timer.backward - timer.contributors) / clock.done,
        "validation_s": clock.parts["validation"],
        "imports_mib": loaded,
        "peak_mib": peak(),
    }


def peak() -> float:
    """Largest resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(*words: object) -> str:
    """Last line of this script in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, *map(str, words)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--sizes", type=numbers, default=[96, 256])
    parser.add_argument("--frames", type=numbers, default=[30, 300])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", default="", help="what else the machine did")
    parser.add_argument("--case", choices=("make", "measure"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case == "make":
        make(given.frames[0], given.sizes[0], given.folder, given.seed)
    elif given.case == "measure":
        print(json.dumps(measure(given.folder, given.frames[0], given.sizes[0], given.steps, given.seed)))
    else:
        report(given)


def report(given: argparse.Namespace) -> None:
    """Measure all cases and write them."""
    cases = list[dict[str, Any]]()
    for size in given.sizes:
        with tempfile.TemporaryDirectory() as folder:
            words = ("--folder", folder, "--sizes", size, "--seed", given.seed, "--steps", given.steps)
            child("--case", "make", *words, "--frames", max(given.frames))
            for frames in given.frames:
                found = json.loads(child("--case", "measure", *words, "--frames", frames))
                rounded = {name: round(value, 3) for name, value in found.items()}
                cases.append({"size": size, "frames": frames, **rounded})
                print(json.dumps(cases[-1]), flush=True)
    facts = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "machine": f"{os.cpu_count()} × {processor()}, Python {platform.python_version()}, torch {torch.__version__}",
        "note": given.note,
        "command": shlex.join(["python", "benchmarks/fit.py", *sys.argv[1:]]),
        "seed": given.seed,
        "steps": given.steps,
        "threads": 1,
        "gaussians": clips.GIVEN,
        "cases": cases,
    }
    RESULT.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
