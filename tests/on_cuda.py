"""Every config on a pretended CUDA device, at the smallest sizes: what fails there, and how often a step waits for it.

    python -m tests.on_cuda CONFIG FOLDER    # one JSON object on stdout

A process of its own for each, since a device can be pretended only before the process's first backward pass.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from four_d import checkpoints, evaluation, inference
from four_d.config import RunConfig, load
from four_d.data.shards import finalise, write_shard
from four_d.exporting import export
from four_d.fitting.stages import FRAME_PSNR, run_config, write_inputs, write_start
from four_d.inference.hints import Known
from four_d.metrics.metric import Metric
from four_d.rendering.in_torch import TorchRasteriser
from four_d.rendering.on_cuda import Rasterization
from four_d.rendering.scene import Scene
from four_d.training import train
from tests.helpers import box_clip
from tests.keypoint_scene import chain_clip
from tests.object_scene import write_box
from tests.pretend_cuda import Seen, Wait, pretend_cuda
from tests.test_scene import footage, scene, tracks

REFERENCES = Path("checkpoints")
BIKES = Path(__file__).parent / "data" / "bikes.mp4"
IN_TORCH = ":torch"
"""Ending of a config's name: draw Gaussians in plain torch, not as by gsplat."""
STEPS = 5
PLAIN_STEP, RECORDED_STEP = 3, 4
"""A step of which nothing but its update is asked, and one that also writes a line of figures.

It is the second that does: at the first Lightning registers the figures.
"""

SMALL = [
    *("model.backbone.width=48", "data.images_per_batch=8", "data.workers=0", "weights=null", "data.image_size=32,32"),
    "data.sampling={min_frames: 4, max_frames: 4, max_stride: 1}",
    *("optimiser.trainable=['*']", "data.validation_clips=1", "data.validation_frames=4", "loop.compile=false"),
]
LOOP = [
    *(f"loop.max_steps={STEPS}", f"loop.epoch_steps={STEPS}", "loop.accelerator=auto", "loop.precision=bf16"),
    *(f"logging.every={RECORDED_STEP // 2}", "logging.pictures=1", "loop.ema=0.9"),
]
MASK = "model.backbone.dynamics={after: 0, rounds: [1, 2], hidden: 8}"
DENSE = "channels: [8, 8, 8, 8], features: 8, last_features: 8"
TRACK = (
    "model.heads.track={kind: track, channels: [8, 8, 8, 8], features: 8, levels: 2, radius: 1, hidden: 16, depth: 1, "
    "heads: 2, virtual: 2, iterations: 2, grid: [3, 3]}"
)
COUNTED = "logging.peak_tflops=1"
"""With a peak rate the model's operations are counted, beside the step of which waits are."""
NETWORKS = ["losses.siren_pose.siren_network.width=16", "losses.siren_pose.graph_network.width=16"]

BOXES: dict[str, tuple[list[str], list[str]]] = {
    "page_4d": (["page_4d", "overlays/tiny"], [MASK, "loop.accumulate=2"]),
    "vggt": (["vggt", "overlays/tiny"], [TRACK, "data.surface=true", "losses.track={kind: track}", COUNTED]),
    "dept3r": (["dept3r", "overlays/tiny"], [f"model.heads.motion={{{DENSE}}}"]),
    "dgs_lrm": (
        ["overlays/dgs_lrm_mini"],
        [
            *("model.backbone.depth=2", "model.backbone.stride=2", "data.query_times=4"),
            *("model.heads.gaussian.frames=4", "data.image_size=16,16"),
        ],
    ),
    "unified": (
        ["unified", "overlays/tiny"],
        [
            *(MASK, f"model.heads.motion={{{DENSE}}}", "model.heads.gaussian={frames: 4, every: 2, hidden: 16}"),
            "data.image_size=16,16",
        ],
    ),
    "siren_pose": (
        ["siren_pose", "overlays/tiny"],
        [MASK, "model.heads.keypoints={width: 16, depth: 1, heads: 2, groups: 64}", *NETWORKS],
    ),
}
"""Files and overrides of the configs that learn from shards."""
CONFIGS = (*BOXES, "pose_net", "pad3r")
DRAWN = {"dgs_lrm": 1, "unified": 1, "pad3r": 3}
"""Configs that list Gaussians in a step, and how often without gsplat."""
ASKED = {"pad3r": 1}
"""The same with gsplat: which Gaussians a tracked pixel shows is asked of our own lists."""


@dataclass
class Report:
    """Actions of a config on the device."""

    config: str
    waits: list[str] = field(default_factory=list[str])
    """Each wait of a step of training, with its line."""
    recorded: list[str] = field(default_factory=list[str])
    """The same of a step that also writes a line of figures."""
    doubles: list[str] = field(default_factory=list[str])
    """Lines that compute in float64 in a step."""
    operations: int = 0
    """Operations of a step on the device."""
    done: list[str] = field(default_factory=list[str])
    """Actions that were done there."""


class Steps(Callback):
    """Callback that keeps what is seen from the end of one step to the end of the next, by the number of the step."""

    def __init__(self, seen: Seen) -> None:
        self.seen, self.of = seen, dict[int, tuple[Counter[Wait], Counter[str], int]]()

    def on_train_batch_end(self, *given: Any) -> None:
        """Keep, and begin anew."""
        self.of[given[1].step] = (self.seen.blocking(), self.seen.doubles, self.seen.operations)
        self.seen.clear()


def exercise(name: str, folder: Path, *, gsplat: bool = True) -> Report:
    """Train, validate, resume, evaluate, export and use a config on the device.

    Gaussians are drawn as by gsplat (`gsplat_stand_in`) or, without it, by our code in torch.
    """
    report = Report(name)
    with standing_in(gsplat=gsplat) as seen:
        config, metrics = configured(name, folder)
        steps = Steps(seen)
        result = train(config(STEPS), metrics=metrics, callbacks=[steps])
        assert result.steps == STEPS
        waits, doubles, report.operations = steps.of[PLAIN_STEP]
        report.waits, report.recorded = lines(waits), lines(steps.of[RECORDED_STEP][0])
        report.doubles = sorted(doubles)
        report.done += ["train", *(["validate"] if result.validation else [])]
        assert train(config(STEPS + 1), metrics=metrics).steps == STEPS + 1
        report.done.append("resume")
        export(result.folder, folder / "export", formats=["safetensors"])
        report.done.append("export")
        used(name, folder, report)
    return report


@contextmanager
def standing_in(*, gsplat: bool = True) -> Generator[Seen]:
    """Pretend the device, and gsplat on it; its memory, which is none, is never full."""
    with (
        pretend_cuda() as seen,
        mock.patch("four_d.rendering.backends.rasterization") as rasterization,
        mock.patch("four_d.inference.model.check_fits"),
    ):
        rasterization.return_value = gsplat_stand_in(seen) if gsplat else "a pretended device has no kernels"
        yield seen


def gsplat_stand_in(seen: Seen) -> Rasterization:
    """Function that draws as gsplat's ``rasterization`` does, which no host waits for, by our own code in torch."""

    def rasterization(**given: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
        names = ("means", "quats", "scales", "opacities")
        scene = Scene(
            **{name: given[name] for name in names},
            values=given["colors"],
            camera_from_world=given["viewmats"][:, 0],
            intrinsics=given["Ks"][:, 0],
        )
        with seen.pause():
            raster = TorchRasteriser()(scene, (given["height"], given["width"]))
        images = torch.cat([raster.values, raster.depth[:, None]], dim=1).permute(0, 2, 3, 1)
        return images[:, None], raster.alpha[:, None, ..., None], {}

    return rasterization


def lines(waits: Counter[Wait]) -> list[str]:
    """Waits as text, one each."""
    return sorted(" | ".join(wait) for wait in waits.elements())


def configured(name: str, folder: Path) -> tuple[Callable[[int], RunConfig], Sequence[Metric]]:
    """Give the config by its number of steps, and metrics of its own; its data are written to the folder."""
    if name == "pad3r":
        request, out = footage(folder / "video"), folder / "fit"
        out.mkdir()
        clip, file = write_inputs(request, out), folder / "tracks.npz"
        np.savez(file, **{**np.load(tracks(scene(), folder)), "times": clip.times})
        given = [*LOOP, "model.deformation.nodes=12", "data.sampling.max_stride=1", "data.images_per_batch=4"]
        for name, kind in (("tracks", "tracked_pixels"), ("flow", "rendered_flow")):
            given.append(f"losses.{name}={{kind: {kind}, file: {file}}}")
        write_start(request, clip, out, given)
        begun: Any = checkpoints.read_info(out / "start" / checkpoints.CONFIG).model
        return lambda steps: run_config(request, begun, out, [*given, f"loop.max_steps={steps}"]), [FRAME_PSNR]
    files, own = ([name], list[str]()) if name == "pose_net" else BOXES[name]
    if name == "pose_net":
        own = [f"data.sources.renders.path={write_box(folder / 'box.ply')}", "data.sources.renders.gaussians=100"]
        own += ["model.width=32", "model.hidden=64", "model.depth=1", "data.images_per_batch=4", "data.workers=0"]
        own += ["data.validation_clips=1", "data.sources.renders.size=32"]
    else:
        shards = write_clips(folder / "data", with_keypoints=name == "siren_pose")
        own = [*SMALL, *own, f"data.sources.boxes.path={shards}", f"data.validation.boxes.path={shards}"]
    return lambda steps: load(files, [*own, *LOOP, f"folder={folder}", f"loop.max_steps={steps}"]), ()


def write_clips(folder: Path, *, with_keypoints: bool = False) -> Path:
    """Write a few small clips as shards."""
    clips = [
        chain_clip(seed, frames=4, surface=True)
        if with_keypoints and seed
        else box_clip(seed, frames=4, cameras=2, size=32)
        for seed in range(3)
    ]
    write_shard(folder, 0, clips, lossless=True)
    finalise(folder, "clips")
    return folder


def used(name: str, folder: Path, report: Report) -> None:
    """Evaluate the exported model, and run it on a video, where it takes one."""
    model = inference.load(folder / "export").to("auto", "bf16")
    assert model.device.type == "cuda"
    if name == "pose_net":
        return
    if name == "pad3r":
        inference.infer(model, folder / "video" / "frames", folder / "out")
        report.done.append("infer")
        return
    config = evaluation.EvaluationConfig(
        data=str(folder / "data"),
        frames=4,
        clips=1,
        size=model.info.image_size,
        lpips_weights=None,
        hints=("intrinsics", "poses") if model.abilities.required else (),
    )
    evaluation.run(model, config)
    report.done.append("evaluate")


def references(folder: Path) -> Report:
    """Run each reference model on a small video, on the device; one that needs cameras takes those of another."""
    report = Report("references")
    models = sorted(checkpoints.references(REFERENCES), key=lambda each: each.name, reverse=True)
    with standing_in() as seen:
        for each in models:
            model, first = inference.load(REFERENCES / each.name).to("cuda"), folder / models[0].name
            known = Known(cameras=first / "cameras.json", depth=first / "depth") if model.abilities.required else None
            frames = inference.Selection(max_frames=9)
            request = inference.Request(video=(BIKES,), selection=frames, known=known, window=6, overlap=3)
            inference.infer(model, request, folder / each.name, novel_views=False)
            report.done.append(each.name)
        report.doubles = sorted(seen.doubles)
    return report


def run(name: str, folder: Path) -> Report:
    """Exercise a config, ``references``, or a config with `IN_TORCH` behind its name, in a process of its own.

    RuntimeError with its last lines if it fails.
    """
    done = subprocess.run([sys.executable, "-m", "tests.on_cuda", name, str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-3000:]}")
    return Report(**json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, folder = sys.argv[1].removesuffix(IN_TORCH), Path(sys.argv[2])
    report = references(folder) if name == "references" else exercise(name, folder, gsplat=name == sys.argv[1])
    print(json.dumps(asdict(report)))
