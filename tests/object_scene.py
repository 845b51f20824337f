"""Objects of a few hundred Gaussians, as tensors and as files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from four_d.formats.splats import write_ply
from four_d.objects.discs import cover
from four_d.rendering import harmonics
from four_d.types import Gaussians

SIDES = torch.tensor(
    [[1.0, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.2, 1.0], [1.0, 0.9, 0.1], [0.9, 0.1, 0.9], [0.1, 0.9, 0.9]]
)
"""Colours of a box's sides: right, left, down, up, back, front (+x, −x, +y, −y, +z, −z)."""


def box(sides: Tensor = SIDES, half: tuple[float, float, float] = (0.8, 0.5, 0.33), number: int = 600) -> Gaussians:
    """A box about the origin, unbatched, covered by flat Gaussians."""
    corners: list[Tensor] = []
    for axis in range(3):
        for sign in (1, -1):
            u, v = torch.eye(3)[(axis + 1) % 3], torch.eye(3)[(axis + 2) % 3]
            quad = [sign * torch.eye(3)[axis] + a * u + b * v for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
            corners += [torch.stack([quad[0], quad[i], quad[i + 1]]) * torch.tensor(half) for i in (1, 2)]
    discs, _ = cover(torch.stack(corners).double(), number)
    colours = sides.repeat_interleave(2, 0)[discs.faces]
    return Gaussians(
        means=discs.means.float(),
        quats=discs.quats.float(),
        scales=discs.scales.float(),
        opacities=torch.full((len(discs.means),), 0.95),
        harmonics=harmonics.constant(colours),
    )


def write_box(path: Path, sides: Tensor = SIDES) -> Path:
    """Write such a box as a PLY of Gaussians, in our axes."""
    write_ply(path, box(sides))
    return path
