"""Limits of the machine: matrix products, memory, copies from the host, time to start a kernel."""

from __future__ import annotations

import torch

from benchmarks.gpu.job import Job
from four_d.devices import tensor_cores


def run(job: Job) -> None:
    """Measure each."""
    job.put("matrix", type="bf16", flops_per_s=job.matrix_rate())
    for precision in ("tf32", "fp32"):
        with job.attempt("matrix", type=precision) as row, tensor_cores(precision):
            row["flops_per_s"] = job.matrix_rate(torch.float32)
    size = 1 << (20 if job.tiny else 32)
    source = torch.empty(size, dtype=torch.uint8, device=job.device).random_()
    target = torch.empty_like(source)
    job.put("memory", bytes_per_s=2 * size / job.seconds(lambda: target.copy_(source)))
    del source, target
    with job.attempt("host_to_device") as row:
        size >>= 3
        host = torch.empty(size, dtype=torch.uint8)
        host = host.pin_memory() if job.device.type == "cuda" else host
        there = torch.empty(size, dtype=torch.uint8, device=job.device)
        row["bytes_per_s"] = size / job.seconds(lambda: there.copy_(host, non_blocking=True))
    small = torch.zeros(16, device=job.device)

    def thousand() -> None:
        for _ in range(1000):
            small.add_(1)

    job.put("launch", seconds=job.seconds(thousand) / 1000)
