"""Whether a picture fits the memory, asked before it is drawn."""

from __future__ import annotations

from pathlib import Path

import torch

from four_d.errors import UserError

PER_GAUSSIAN = 110
"""Numbers that projecting one Gaussian into one picture takes, with its derivative's (measured, rounded up)."""
PER_PAIR = 30
"""Numbers that one Gaussian in one tile takes, with its gradient (measured, rounded up)."""


def check_memory(gaussians: int, pictures: int, pairs: int, element: int, device: torch.device) -> None:
    """UserError if drawing needs more than is free: ``pairs`` Gaussians in tiles, numbers of ``element`` bytes."""
    needed = (gaussians * pictures * PER_GAUSSIAN + pairs * PER_PAIR) * element
    free = free_bytes(device)
    if free is not None and needed > free:
        raise UserError(
            f"rendering {gaussians:,} Gaussians in {pictures} pictures needs about {needed / 1e9:.1f} GB, and"
            f" {free / 1e9:.1f} GB are free; render fewer Gaussians, or fewer or smaller pictures at a time"
        )


def free_bytes(device: torch.device) -> int | None:
    """What can still be allocated; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = [limit for limit in (_available(), _left_in_group()) if limit is not None]
    return min(limits, default=None) if device.type == "cpu" else None


def _available(path: Path = Path("/proc/meminfo")) -> int | None:
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def _left_in_group(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a container may still use (control groups, version 2)."""
    limit, used = folder / "memory.max", folder / "memory.current"
    if not (limit.exists() and used.exists()) or limit.read_text().strip() == "max":
        return None
    return max(int(limit.read_text()) - int(used.read_text()), 0)
