"""Attention: agreement of all implementations with float32, and their rates, at the shapes of VGGT-1B and DGS-LRM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu.job import Job
from four_d.layers import attention, fold, xformers_attention

Three = tuple[Tensor, Tensor, Tensor]
Kernel = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""Function of queries, keys, values, and the factor of their products."""
SDPA = {
    "sdpa": None,
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
}
"""``sdpa`` chooses by itself."""
SHAPES = {
    "vggt frame, 20 frames": (20, 16, 893, 64),
    "vggt global, 20 frames": (1, 16, 20 * 893, 64),
    "dgs_lrm, 24 frames of 512²": (1, 16, 6 * 64 * 64, 64),
}
"""(batch, heads, tokens, channels of a head)."""
PARITY = (2, 16, 893, 64)
TINY = (2, 2, 40, 16)
FORWARD, BACKWARD = 4, 10
"""Operations per batch · heads · n² · channels: two products forward, five backward (the scores again)."""
LARGEST = 12e9
"""Bytes of the n × n matrix beyond which the formula written out is not tried."""


@cache
def _flex(*, compiles: bool) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiles else flex_attention


def kernels(*, compiles: bool) -> dict[str, Kernel]:
    """Implementations by name."""

    def by_torch(backend: SDPBackend | None) -> Kernel:
        def run(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
            with nullcontext() if backend is None else sdpa_kernel(backend):
                return scaled_dot_product_attention(q, k, v, scale=scale)

        return run

    return {
        **{name: by_torch(backend) for name, backend in SDPA.items()},
        "xformers": xformers_attention,
        "flex": lambda q, k, v, scale: _flex(compiles=compiles)(q, k, v, scale=scale),
        "matmul": lambda q, k, v, scale: (q * scale @ k.mT).softmax(-1) @ v,
    }


def inputs(job: Job, shape: tuple[int, ...]) -> Three:
    """Queries, keys and values in bfloat16."""
    generator = torch.Generator(job.device).manual_seed(0)
    q, k, v = (torch.randn(shape, generator=generator, device=job.device).bfloat16() for _ in range(3))
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def error(found: Tensor, truth: Tensor) -> float:
    """Norm of the difference over the norm."""
    return ((found.float() - truth.float()).norm() / truth.float().norm()).item()


def gradients(out: Tensor, leaves: Three) -> tuple[Tensor, ...]:
    """Gradients of a sum with changing weights."""
    weight = torch.linspace(-1, 1, out.shape[-1], device=out.device)
    return torch.autograd.grad((out.float() * weight).sum(), leaves)


def parity(job: Job, names: Sequence[str]) -> None:
    """Errors of outputs and gradients, from the formula in float32; also with a rank-one bias, folded in (PAGE-4D)."""
    leaves = inputs(job, TINY if job.tiny else PARITY)
    a, b, c = (each.detach().float().requires_grad_() for each in leaves)
    batch, _, tokens, width = leaves[0].shape
    factors = torch.randn(2, batch, tokens, device=job.device)
    for bias in (None, (factors[0], factors[1])):
        truth = attention(a, b, c, "matmul", bias)
        truths = gradients(truth, (a, b, c))
        for name in names:
            kernel = kernels(compiles=job.compiles)[name]
            with job.attempt("parity", kernel=name, bias=bias is not None) as row:
                q, k, v = leaves if bias is None else fold(leaves[0], leaves[1], leaves[2], bias)
                out = kernel(q, k, v, width**-0.5)[..., :width]
                row["error"] = error(out, truth)
                row["gradient_error"] = max(map(error, gradients(out, leaves), truths))


def rates(job: Job, names: Sequence[str], limit: float) -> None:
    """Operations per second, forward and with the backward pass, beside a matrix product's."""
    for where, shape in SHAPES.items():
        for name in names:
            kernel = kernels(compiles=job.compiles)[name]
            b, h, n, d = TINY if job.tiny else shape
            if job.left < 8:
                job.put("rate", shape=where, kernel=name, failed="no time was left")
                continue
            if name == "matmul" and b * h * n * n * 2 > LARGEST:
                continue
            leaves = inputs(job, (b, h, n, d))
            work: dict[str, Any] = {"shape": where, "kernel": name}
            with job.attempt("rate", **work) as row, torch.no_grad():
                row["seconds"] = job.seconds(
                    lambda run=kernel, on=leaves, s=d**-0.5: run(on[0], on[1], on[2], s), enough=0.5
                )
                row["flops_per_s"] = FORWARD * b * h * n * n * d / row["seconds"]
                row["share"] = row["flops_per_s"] / limit
            with job.attempt("train_rate", **work) as row:
                row["seconds"] = job.seconds(
                    lambda run=kernel, on=leaves, s=d**-0.5: gradients(run(on[0], on[1], on[2], s), on), enough=0.5
                )
                row["flops_per_s"] = (FORWARD + BACKWARD) * b * h * n * n * d / row["seconds"]
                row["share"] = row["flops_per_s"] / limit


def run(job: Job) -> None:
    """Agreement before rates; flex attention, which takes long to compile, after all others."""
    limit = job.matrix_rate()
    job.put("matrix", type="bf16", flops_per_s=limit)
    rest = [name for name in kernels(compiles=job.compiles) if name != "flex"]
    for names in (rest, ["flex"]):
        parity(job, names)
        rates(job, names, limit)
