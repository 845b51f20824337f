"""How alike places of two frames are, by features that are learned: a hint of motion before attention (ours).

Every frame is compared with the one just before it and the one just after it, and with the query frame, in a window
around the same place (as RAFT, arXiv 2003.12039, compares two frames). A loss may say where the right place was
(`losses.MatchingLoss`): so the features are learned in minutes, where motion alone takes far longer to teach them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from four_d.errors import UserError
from four_d.layers import full_precision, full_type


@dataclass(frozen=True, kw_only=True)
class CorrelationConfig:
    """Sizes of the `Features`, and how far places are compared."""

    kind: Literal["correlation"] = "correlation"
    cells: int = 2
    """Cells per patch and axis; patch_size / cells must be a power of two."""
    channels: int = 48
    depth: int = 1
    """Convolutions at the size of the cells."""
    radius: int = 4
    """Cells to each side that are compared with."""
    temperature: float = 10.0
    """Factor on likeness before a softmax, at the start; it is learned."""

    def build(self, patch_size: int) -> Features:
        """UserError if cells do not fill patches."""
        cell = patch_size // self.cells
        if patch_size % self.cells or cell & (cell - 1):
            raise UserError(
                f"correlation: patch_size {patch_size} over cells {self.cells} must be a power of two; change either"
            )
        return Features(cell, channels=self.channels, depth=self.depth, temperature=self.temperature)


class Features(nn.Module):
    """One vector per cell of every image; the product of two is the logit of their showing the same."""

    def __init__(self, cell: int, *, channels: int = 48, depth: int = 1, temperature: float = 10.0) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1)]
        for _ in range(int(math.log2(cell))):
            layers += [nn.GELU(), nn.Conv2d(channels, channels, 3, stride=2, padding=1)]
        for _ in range(depth):
            layers += [nn.GELU(), nn.Conv2d(channels, channels, 3, padding=1)]
        self.encoder = nn.Sequential(*layers)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    def forward(self, images: Float[Tensor, "b f 3 h w"]) -> Float[Tensor, "b f d r c"]:
        """Vectors of equal length, in full precision; r rows and c columns of cells."""
        maps = self.encoder(images.flatten(0, 1) - 0.5).unflatten(0, images.shape[:2])
        with full_precision(images.device):
            unit = functional.normalize(maps.to(full_type(maps.dtype)), dim=2)
            return unit * (self.log_temperature / 2).exp()


def around(
    rows: int, columns: int, radius: int, device: torch.device
) -> tuple[Int[Tensor, "p k"], Bool[Tensor, "p k"]]:
    """For each cell of a grid the (2·radius + 1)² cells around it, row-major, and which of them lie inside."""
    steps = torch.arange(-radius, radius + 1, device=device)
    y = torch.arange(rows, device=device)[:, None, None, None] + steps[:, None]
    x = torch.arange(columns, device=device)[:, None, None] + steps
    inside = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
    index = y.clamp(0, rows - 1) * columns + x.clamp(0, columns - 1)
    return index.flatten(0, 1).flatten(1), inside.flatten(0, 1).flatten(1)


def compare(
    features: Float[Tensor, "b f d r c"], references: Int[Tensor, "b f"], radius: int
) -> Float[Tensor, "b f r c k"]:
    """Logit of each cell's showing what the (2·radius + 1)² cells around its place show in the frame it refers to.

    −∞ for cells outside the image.
    """
    rows, columns = features.shape[-2:]
    flat = features.flatten(3)
    others = flat[torch.arange(len(flat), device=flat.device)[:, None], references]
    index, inside = around(rows, columns, radius, flat.device)
    logits = (flat.mT @ others).gather(-1, index.expand(*flat.shape[:2], -1, -1))
    return logits.masked_fill(~inside, -torch.inf).unflatten(2, (rows, columns))


def offsets(radius: int, like: Tensor) -> Float[Tensor, "k 2"]:
    """Displacement (x, y) in cells of each place that `compare` looks at."""
    steps = torch.arange(-radius, radius + 1, device=like.device, dtype=like.dtype)
    return torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).reshape(-1, 2)


def neighbour_frames(times: Float[Tensor, "b f"], camera_ids: Int[Tensor, "b f"], *, later: bool) -> Int[Tensor, "b f"]:
    """For each frame the next one in time of its own camera (not ``later``: the last before it); itself if none."""
    gaps = (times[:, None, :] - times[:, :, None]) * (1 if later else -1)
    usable = (gaps > 0) & (camera_ids[:, None, :] == camera_ids[:, :, None])
    nearest = torch.where(usable, gaps, torch.inf).argmin(-1)
    return torch.where(usable.any(-1), nearest, torch.arange(times.shape[1], device=times.device))


class Comparison(nn.Module):
    """What to add to the patch tokens: `compare`, and the mean displacement that it means. Zero at the start."""

    def __init__(self, cells: int, radius: int, width: int) -> None:
        super().__init__()
        self.cells, self.radius = cells, radius
        self.project = nn.Linear(((2 * radius + 1) ** 2 + 2) * cells**2, width)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, features: Float[Tensor, "b f d r c"], references: Int[Tensor, "b f"]) -> Float[Tensor, "b f p e"]:
        """Patches in row-major order."""
        with full_precision(features.device):
            logits = compare(features, references, self.radius)
            shares = logits.softmax(-1)
            found = torch.cat([shares, shares @ offsets(self.radius, shares) / self.radius], dim=-1)
        laid = functional.pixel_unshuffle(found.flatten(0, 1).movedim(-1, 1), self.cells)
        return self.project(laid.flatten(2).mT).unflatten(0, logits.shape[:2])


class Neighbours(nn.Module):
    """What to add to the patch tokens: `Comparison` with the frames of the same camera just before and just after."""

    def __init__(self, cells: int, radius: int, width: int) -> None:
        super().__init__()
        self.before, self.after = (Comparison(cells, radius, width) for _ in range(2))

    def forward(
        self, features: Float[Tensor, "b f d r c"], times: Float[Tensor, "b f"], camera_ids: Int[Tensor, "b f"]
    ) -> Float[Tensor, "b f p e"]:
        """Patches in row-major order. It is the times that count, not the frames' order."""
        earlier, later = (neighbour_frames(times, camera_ids, later=each) for each in (False, True))
        return self.before(features, earlier) + self.after(features, later)
