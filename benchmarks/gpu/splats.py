"""gsplat against our renderer in torch: agreement of pictures and gradients, then times. On a CPU: our kernel."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks.gpu.job import Job
from benchmarks.rendering import scene
from four_d.rendering import render
from four_d.types import Cameras, Gaussians, map_tensors

LEAVES = ("means", "quats", "scales", "opacities", "harmonics")
FORWARD, COSINE = 2e-4, 0.999
"""Largest difference of a colour or of alpha; least cosine between gradients."""
AGREE = ((2000, 80), (16384, 128))
"""(Gaussians, side of the picture)."""
TIMED = ((16384, 128), (262_144, 512), (1_572_864, 512))
SLOW = 20_000
"""More Gaussians than torch's renderer is timed with."""

World = tuple[Gaussians, Cameras, Tensor]


def world(job: Job, count: int, side: int) -> World:
    """The scene of `benchmarks.rendering`, its Gaussians the smaller the more there are."""
    gaussians, cameras, times = scene(count, side, 0)
    shrunk = dataclasses.replace(gaussians, scales=gaussians.scales * min(1.0, (16384 / count) ** 0.5))
    return tuple(map_tensors(each, lambda one: one.to(job.device)) for each in (shrunk, cameras, times))  # pyright: ignore


def drawn(given: World, side: int, backend: str) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Colours, alpha, and the gradients of both and depth by all that is drawn and the pose."""
    gaussians, cameras, times = given
    leaves = {name: getattr(gaussians, name).clone().requires_grad_() for name in LEAVES}
    pose = cameras.world_from_camera.clone().requires_grad_()
    view = render(
        dataclasses.replace(gaussians, **leaves),
        dataclasses.replace(cameras, world_from_camera=pose),
        times,
        (side, side),
        backend=backend,
    )
    weight = torch.linspace(-1, 1, view.colour.numel(), device=pose.device).view_as(view.colour)
    total = (view.colour * weight).sum() + view.depth.mean() + view.alpha.mean()
    return view.colour.detach(), view.alpha.detach(), list(torch.autograd.grad(total, [*leaves.values(), pose]))


def agreement(job: Job, fast: str) -> None:
    """Differences beside the allowed ones."""
    for count, side in ((200, 20),) if job.tiny else AGREE:
        with job.attempt("agreement", backend=fast, gaussians=count, side=side) as row:
            given = world(job, count, side)
            (colour, alpha, found), (true_colour, true_alpha, truth) = (drawn(given, side, b) for b in (fast, "torch"))
            row["colour"] = (colour - true_colour).abs().max().item()
            row["alpha"] = (alpha - true_alpha).abs().max().item()
            cosines = [cosine_similarity(one.flatten(), two.flatten(), dim=0).item() for one, two in zip(found, truth)]
            row["cosines"] = dict(zip((*LEAVES, "pose"), cosines))
            row["agree"] = max(row["colour"], row["alpha"]) < FORWARD and min(cosines) > COSINE


def times(job: Job, fast: str) -> None:
    """Seconds of a picture, and of it with its backward pass."""
    for count, side in ((200, 20),) if job.tiny else TIMED:
        given = world(job, count, side)
        for backend in (fast, "torch"):
            if (backend == "torch" and count > SLOW) or job.left < 8:
                continue
            with job.attempt("times", backend=backend, gaussians=count, side=side) as row:
                with torch.no_grad():
                    row["seconds"] = job.seconds(lambda on=given, s=side, b=backend: render(*on, (s, s), backend=b))
                row["with_backward"] = job.seconds(lambda on=given, s=side, b=backend: drawn(on, s, b))
                row["bytes"] = job.peak(lambda on=given, s=side, b=backend: drawn(on, s, b))


def run(job: Job) -> None:
    """Agreement first."""
    fast = "gsplat" if job.device.type == "cuda" else "compiled"
    agreement(job, fast)
    times(job, fast)
