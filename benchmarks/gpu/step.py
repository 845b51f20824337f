"""Gaussians in a training step: gsplat against torch in losses and gradients, whole steps at DGS-LRM's first size,
and Lightning's loop around them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks.gpu.job import Job, beside_package
from four_d.config import RunConfig, load
from four_d.constants import move
from four_d.data.shards import finalise, write_shard
from four_d.devices import computing
from four_d.layers import full_precision
from four_d.rendering import backends
from four_d.training import TrainingModule, train
from four_d.training.optimiser import make_optimiser
from four_d.training.plan import Place, Planner
from four_d.training.run import RunData
from four_d.types import Example, map_tensors

GIVEN = (
    *("data.workers=0", "weights=null", "data.validation_clips=1", "loop.compile=false", "loop.epoch_steps=4"),
    *("loop.accelerator=auto", "loop.precision=bf16", "loop.max_steps=4", "data.sampling.max_stride=1"),
)
MINI = ("overlays/dgs_lrm_mini", 6, 64, ("data.images_per_batch=6",))
"""Small enough for torch's renderer too: config, frames, side, overrides."""
PAPER = ("dgs_lrm", 24, 256, ("data.images_per_batch=24",))
TINY = (
    "overlays/dgs_lrm_mini",
    4,
    16,
    (
        *("model.backbone.width=48", "model.backbone.depth=2", "model.backbone.stride=2", "data.query_times=4"),
        *("model.heads.gaussian.frames=4", "data.image_size=16,16", "data.images_per_batch=8"),
        *("data.sampling={min_frames: 4, max_frames: 4, max_stride: 1}", "data.validation_frames=4"),
    ),
)
Case = tuple[str, int, int, tuple[str, ...]]


def configured(case: Case, folder: Path, clips: int) -> RunConfig:
    """Config of a run in the folder, on boxes that are written there."""
    name, frames, side, own = case
    data = folder / "data"
    if not data.is_dir():
        box_clip = beside_package("helpers").box_clip
        made = [box_clip(seed, frames=frames, cameras=2, size=max(side, 32)) for seed in range(clips)]
        write_shard(data, 0, made, lossless=True)
        finalise(data, "clips")
    places = (f"folder={folder}", f"data.sources.boxes.path={data}", f"data.validation.boxes.path={data}")
    return load([name], [*GIVEN, *own, *places])


def prepared(job: Job, config: RunConfig) -> tuple[TrainingModule, Example]:
    """Model and losses on the device, and a batch."""
    module = TrainingModule(config)
    example = RunData(config).training[0].batches[0]
    return module.to(job.device).train(), map_tensors(example, lambda tensor: move(tensor, job.device))


def losses(job: Job, module: TrainingModule, example: Example) -> dict[str, Tensor]:
    """Terms, and the gradients of their sum in the parameters."""
    module.zero_grad(set_to_none=True)
    with computing("bf16", job.device):
        terms = module.terms(example)[1]
    terms["loss"].backward()
    return {name: value.detach() for name, value in terms.items()}


def drawing(job: Job) -> dict[str, str | None]:
    """Name the renderer that steps on this device use, and why it is not the fast one, if so."""
    fast = "gsplat" if job.device.type == "cuda" else "compiled"
    missing = backends.missing(fast, job.device)
    return {"backend": "torch" if missing else fast, "missing": missing}


def agreement(job: Job, folder: Path) -> None:
    """Terms and all parameters' gradients with gsplat (on a CPU: our kernel) and with torch's renderer."""
    other = "rasterization" if job.device.type == "cuda" else "library"
    with job.attempt("agreement", **drawing(job)) as row:
        module, example = prepared(job, configured(TINY if job.tiny else MINI, folder, 3))
        found = losses(job, module, example)
        gradients = [each.grad.clone() for each in module.parameters() if each.grad is not None]
        with mock.patch(f"four_d.rendering.backends.{other}", return_value="to compare with"):
            truth = losses(job, module, example)
        others = [each.grad for each in module.parameters() if each.grad is not None]
        row["terms"] = {name: [found[name].item(), value.item()] for name, value in truth.items()}
        one, two = (torch.cat([each.flatten().float() for each in every]) for every in (gradients, others))
        row["gradient_cosine"] = cosine_similarity(one, two, dim=0).item()


def rate(job: Job, folder: Path) -> None:
    """Time and memory of forward, losses and backward, without the update."""
    case = TINY if job.tiny else PAPER
    with job.attempt("step", config=case[0], frames=case[1], side=case[2], **drawing(job)) as row:
        module, example = prepared(job, configured(case, folder, 1))
        row["parameters"] = sum(each.numel() for each in module.parameters())
        row["loss"] = losses(job, module, example)["loss"].item()
        row["bytes"] = job.peak(lambda: losses(job, module, example))
        row["seconds"] = job.seconds(lambda: losses(job, module, example), most=5, enough=3.0, warm=True)


def planned(job: Job, folder: Path) -> None:
    """Memory of a step, update included, beside the plan of it that `four-d doctor` makes (asked: within 15 %)."""
    case = TINY if job.tiny else PAPER
    with job.attempt("plan", config=case[0], frames=case[1], side=case[2], **drawing(job)) as row:
        config = configured(case, folder, 1)
        module, example = prepared(job, config)
        plan = Planner(config).plan(len(example.key), case[1], Place(kind="cuda"))
        optimiser = make_optimiser(module, config.optimiser)

        def step() -> None:
            optimiser.zero_grad()
            with torch.autocast(job.device.type, torch.bfloat16):
                loss = module.terms(example)[1]["loss"]
                with full_precision(job.device):
                    loss.backward()
            optimiser.step()

        step()  # makes the moments
        row["planned"], row["bytes"] = plan.total, job.peak(step)
        row["ratio"] = None if row["bytes"] is None else plan.total / row["bytes"]


def loop(job: Job, folder: Path) -> None:
    """Run `train` for four steps with a validation, as a user does."""
    with job.attempt("loop") as row:
        result = train(configured(TINY if job.tiny else MINI, folder, 3))
        row["steps"] = result.steps
        row["finite"] = all(value == value for value in (result.validation or {}).values())


def run(job: Job) -> None:
    """Agreement first."""
    for part in (agreement, rate, planned, loop):
        with tempfile.TemporaryDirectory() as folder:
            part(job, Path(folder))
