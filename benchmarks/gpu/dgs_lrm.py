"""DGS-LRM at its paper's size (24 frames of 512², 1.57 million Gaussians), random weights, bf16: time of a pass.

The paper states 0.495 s on one A100 for its reconstruction.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.job import Job
from four_d import config, schema
from four_d.devices import computing
from four_d.model import FourD, ModelConfig, compile_blocks
from four_d.types import Cameras, Clip

PAPER_SECONDS = 0.495
FRAMES, SIDE = 24, 512
TINY_FRAMES, TINY_SIDE = 4, 16


def model(job: Job) -> FourD:
    """`overlays/dgs_lrm_512`, drawn on the device."""
    plain = cast(dict[str, Any], config.load_plain(["overlays/dgs_lrm_512"])["model"])
    if job.tiny:
        plain["backbone"] |= {"width": 48, "depth": 2, "heads": 3, "stride": 2}
        plain["heads"]["gaussian"] |= {"frames": TINY_FRAMES}
    torch.manual_seed(0)
    with job.device:
        return schema.build(ModelConfig, plain, "config", "model").build().eval()


def posed(job: Job) -> Clip:
    """Noise, seen by a camera that moves sideways."""
    frames, side = (TINY_FRAMES, TINY_SIDE) if job.tiny else (FRAMES, SIDE)
    times = torch.linspace(0, 1, frames)
    poses = torch.eye(4).repeat(1, frames, 1, 1)
    poses[0, :, 0, 3] = 0.2 * times
    intrinsics = torch.tensor([[1.2 * side, 0, side / 2], [0, 1.2 * side, side / 2], [0, 0, 1]])
    generator = torch.Generator(job.device).manual_seed(0)
    return Clip(
        images=torch.rand(1, frames, 3, side, side, generator=generator, device=job.device),
        times=times[None].to(job.device),
        camera_ids=torch.zeros(1, frames, dtype=torch.long, device=job.device),
        cameras=Cameras(
            world_from_camera=poses.to(job.device), intrinsics=intrinsics.repeat(1, frames, 1, 1).to(job.device)
        ),
    )


def run(job: Job) -> None:
    """Reconstruction, eager and with compiled blocks."""
    limit = job.matrix_rate()
    job.put("matrix", type="bf16", flops_per_s=limit)
    network, clip = model(job), posed(job)

    def reconstruct() -> Any:  # noqa: ANN401 - a prediction
        with torch.no_grad(), computing("bf16", job.device):
            return network(clip)

    with FlopCounterMode(display=False) as counter:
        gaussians = reconstruct().gaussians
    work = counter.get_total_flops()
    job.put(
        "size",
        parameters=sum(each.numel() for each in network.parameters()),
        gaussians=gaussians.means.shape[1],
        operations=work,
        paper_seconds=PAPER_SECONDS,
    )
    for compiling in (False, True) if job.compiles else (False,):
        with job.attempt("reconstruction", compiled=compiling) as row:
            if compiling:
                compile_blocks(network)
                reconstruct()
            row["bytes"] = job.peak(reconstruct)
            row["seconds"] = job.seconds(reconstruct, most=10, enough=4.0)
            row["utilisation"] = work / row["seconds"] / limit
            with torch.no_grad(), computing("bf16", job.device):
                row["backbone_seconds"] = job.seconds(
                    lambda: network.backbone(clip, network.rounds), most=10, enough=3.0
                )
