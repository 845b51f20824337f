"""Whether a picture fits the memory, asked before it is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from four_d.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Cost:
    """How many numbers a backend holds at once, forward and backward, at most (measured)."""

    per_gaussian: int
    """For each Gaussian of each picture."""
    per_pair: int
    """For each Gaussian in each tile that it reaches."""


COMPILED = Cost(per_gaussian=65, per_pair=14)
TORCH = Cost(per_gaussian=110, per_pair=30)


def check_memory(cost: Cost, shape: tuple[int, int], pairs: int, like: Tensor) -> None:
    """UserError if drawing (pictures, Gaussians) needs more than is free, in numbers and on the device of ``like``."""
    pictures, gaussians = shape
    needed = (gaussians * pictures * cost.per_gaussian + pairs * cost.per_pair) * like.element_size()
    free = free_bytes(like.device)
    if free is not None and needed > free:
        raise UserError(
            f"rendering {gaussians:,} Gaussians in {pictures} pictures needs about {needed / 1e9:.1f} GB, and"
            f" {free / 1e9:.1f} GB are free; render fewer Gaussians, or fewer or smaller pictures at a time"
        )


def free_bytes(device: torch.device) -> int | None:
    """What can still be allocated; None where the system does not tell."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    limits = [limit for limit in (_available(), _left_in_group()) if limit is not None]
    return min(limits, default=None) if device.type == "cpu" else None


def _available(path: Path = Path("/proc/meminfo")) -> int | None:
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def _left_in_group(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a container may still use (control groups, version 2); files that it has only read count as free."""
    limit, used = folder / "memory.max", folder / "memory.current"
    if not (limit.exists() and used.exists()) or limit.read_text().strip() == "max":
        return None
    statistics = folder / "memory.stat"
    lines = statistics.read_text().splitlines() if statistics.exists() else []
    files = next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    return max(int(limit.read_text()) - int(used.read_text()) + files, 0)
