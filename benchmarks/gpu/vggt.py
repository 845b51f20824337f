"""VGGT-1B's size in bf16, random weights: time, memory and utilisation by the number of frames, beside the paper's.

336 × 518, as the paper's table. Autocast around float32 weights, as `infer --precision bf16` and training have it.
Utilisation: operations of the model (counted once, whatever is recomputed) per second, over those of a matrix product
that this process measured just before. ``heads``: precision of the dense heads, ``full`` by default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import vggt_parity as parity
from benchmarks.gpu.job import Job
from four_d.devices import computing
from four_d.types import Clip

FRAMES = (2, 4, 8, 20, 50, 100, 200)
COMPILED = (20, 2, 8, 50, 100, 200)
"""The number that matters most first: the first is compiled for itself, the second for any number."""
TRAINED = (2, 8, 24)
IMAGE = (336, 518)
Part = Callable[[Clip], object]


def forward(job: Job, *, compiled: bool) -> None:
    """Inference: the whole model, and the backbone alone, as the paper's table has it."""
    limit = job.matrix_rate()
    job.put("matrix", type="bf16", flops_per_s=limit)
    full, loop = (ours(job, heads, checkpointing=False) for heads in ("full", "loop"))
    whole, alone = polynomials(job, full)
    if compiled:
        for each in (full, loop):
            parity.compile_model(each)
    parts: list[tuple[str, nn.Module, Callable[[int], float]]] = [
        ("backbone", backbone_of(full), alone),
        ("model", full, whole),
        ("model, heads in bf16", loop, whole),
    ]
    for name, part, operations in parts:
        last = (1, 0.5)
        for frames in (1, 2) if job.tiny else COMPILED if compiled else FRAMES:
            expected = 2 * last[1] * max(1.0, frames / last[0]) ** 2  # attention's growth
            if job.left < expected:
                job.put("forward", part=name, frames=frames, failed="no time was left")
                continue
            with job.attempt("forward", part=name, frames=frames) as row:
                call = inference(job, part, parity.clip(pictures(job, frames)))
                call()  # compiles
                row["seconds"], peak = job.measure(call)
                row["bytes"] = None if peak is None else peak - torch.cuda.memory_allocated() + weights_of(part)
                row["utilisation"] = operations(frames) / row["seconds"] / limit
                row["operations"] = operations(frames)
                row["paper"] = parity.PAPER.get(frames) if name == "backbone" else None
                last = (frames, row["seconds"])


def weights_of(part: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(each.nbytes for each in part.state_dict().values())


def inference(job: Job, part: Part, clip: Clip) -> Callable[[], object]:
    """One pass without gradients."""

    def call() -> object:
        with torch.no_grad(), computing("bf16", job.device):
            return part(clip)

    return call


def eager(job: Job) -> None:
    """Measure without `torch.compile`."""
    forward(job, compiled=False)


def compiled(job: Job) -> None:
    """Measure with blocks, encoder and dense heads compiled."""
    if not job.compiles:
        raise RuntimeError("a pretended device has nothing to compile for")
    forward(job, compiled=True)


def train(job: Job) -> None:
    """Forward, backward and AdamW's update, blocks recomputed: eager, then with compiled blocks (`loop.compile`)."""
    limit = job.matrix_rate()
    job.put("matrix", type="bf16", flops_per_s=limit)
    model = ours(job, "full", checkpointing=True)
    whole, _ = polynomials(job, model)
    model.train().requires_grad_(True)
    rule = torch.optim.AdamW(model.parameters(), lr=1e-7, fused=job.device.type == "cuda" and job.compiles)

    def step(clip: Clip) -> None:
        rule.zero_grad(set_to_none=True)
        with computing("bf16", job.device):
            found = model(clip)
            outputs: Sequence[Tensor] = [getattr(found, name) for name in parity.OUTPUTS]
            loss = torch.stack([each.float().mean() for each in outputs]).sum()
        loss.backward()
        rule.step()

    for compiling in (False, True) if job.compiles else (False,):
        if compiling:
            parity.compile_blocks(model)
        for frames in (2,) if job.tiny else TRAINED:
            row = {"frames": frames, "compiled": compiling}
            if job.left < 12:
                job.put("train", **row, failed="no time was left")
                continue
            with job.attempt("train", **row) as found:
                clip = parity.clip(pictures(job, frames))
                step(clip)
                found["seconds"], found["bytes"] = job.measure(lambda on=clip: step(on))
                found["utilisation"] = 3 * whole(frames) / found["seconds"] / limit


def ours(job: Job, heads: Literal["full", "loop"], *, checkpointing: bool) -> nn.Module:
    """The model with cameras, depth and points, weights drawn on the device, frozen."""
    torch.manual_seed(0)
    with job.device:
        made = parity.Ours(size(job), checkpointing=checkpointing, precision=heads, written_out=False)
    return made.model.eval().requires_grad_(False)  # what counts operations looks for gradients


def backbone_of(model: nn.Module) -> nn.Module:
    """Encoder and alternating attention."""
    return model.get_submodule("backbone")


def size(job: Job) -> parity.Size:
    """VGGT-1B's, or the smallest."""
    return parity.SIZES["tiny" if job.tiny else "large"]


def pictures(job: Job, frames: int) -> Tensor:
    """Noise."""
    sides = (28, 42) if job.tiny else IMAGE
    generator = torch.Generator(job.device).manual_seed(0)
    return torch.rand(1, frames, 3, *sides, generator=generator, device=job.device)


def polynomials(job: Job, model: nn.Module) -> tuple[Callable[[int], float], Callable[[int], float]]:
    """Operations of a model that is not compiled, and of its backbone, by the number of frames.

    Quadratic functions through counts at three numbers. (On a CPU some kernels are not counted.)
    """
    at = (2, 3, 4)
    first, second = (through(at, [counted(job, part, frames) for frames in at]) for part in (model, backbone_of(model)))
    if job.tiny and first(7) != counted(job, model, 7):
        raise RuntimeError("operations are no quadratic function of the number of frames")
    return first, second


def counted(job: Job, part: Part, frames: int) -> int:
    """Operations of a pass."""
    with FlopCounterMode(display=False) as counter:
        inference(job, part, parity.clip(pictures(job, frames)))()
    return counter.get_total_flops()


def through(at: Sequence[int], values: Sequence[int]) -> Callable[[int], float]:
    """Quadratic function through three points a step apart."""
    zero, one, two = values
    slope, bend = one - zero, two - 2 * one + zero

    def function(frames: int) -> float:
        steps = frames - at[0]
        return zero + slope * steps + bend * steps * (steps - 1) / 2

    return function
