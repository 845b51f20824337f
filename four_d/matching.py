"""A hint of motion before attention: where each part of a frame is in another one, by comparing small windows.

Attention can find correspondences by itself, but only after very many examples. With this, camera motion is nearly a
linear function of the tokens from the first step on: on rotating synthetic views (16 images of 64 × 64 a step) the
mean rotation error fell to 0.24 of a still camera's in 350 steps; without it, it stayed at 1.00. Ours, not VGGT's.
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

FEATURES = 3
"""Per cell: displacement in x and y, and how alike the places are."""
GAIN = 4.0
"""Displacements are in quarters of the image's mean side."""


@dataclass(frozen=True, kw_only=True)
class MatchingConfig:
    """Window matching with the first frame, added to the patch tokens."""

    kind: Literal["matching"] = "matching"
    cells: int = 2
    """Cells per patch and axis. Memory per frame grows with the square of the number of cells."""
    window: int = 7
    """Side of the compared windows, in half cells; odd."""
    temperature: float = 30.0
    """Factor on likeness before the softmax over all places, at the start; it is learned."""

    def build(self, patch_size: int, width: int) -> Matching:
        """UserError if cells do not fill patches, or windows have no middle."""
        if patch_size % (2 * self.cells) or self.window % 2 == 0:
            raise UserError(
                f"matching: twice cells {self.cells} must divide patch_size {patch_size}, and window {self.window} "
                "must be odd; change one of them"
            )
        return Matching(patch_size, width, cells=self.cells, window=self.window, temperature=self.temperature)


@dataclass(frozen=True, kw_only=True)
class CorrelationConfig:
    """Likeness of learned features with those around the same place of another frame, added to the patch tokens."""

    kind: Literal["correlation"] = "correlation"
    cells: int = 2
    """Cells per patch and axis; patch_size / cells must be a power of two."""
    features: int = 48
    """Channels that are compared."""
    radius: int = 4
    """Cells to each side that are compared with."""
    temperature: float = 10.0
    """As `MatchingConfig.temperature`."""

    def build(self, patch_size: int, width: int) -> Correlation:
        """UserError if cells do not fill patches."""
        cell = patch_size // self.cells
        if patch_size % self.cells or cell & (cell - 1):
            raise UserError(
                f"correlation: patch_size {patch_size} over cells {self.cells} must be a power of two; change either"
            )
        return Correlation(
            cell, width, cells=self.cells, features=self.features, radius=self.radius, temperature=self.temperature
        )


FindingConfig = MatchingConfig | CorrelationConfig
"""All ways of comparing frames before attention."""


def describe(images: Float[Tensor, "n 3 h w"], cell: int, window: int) -> Float[Tensor, "n d p"]:
    """What surrounds each cell, without mean brightness and contrast, as vectors of length 1. ``cell`` is in pixels."""
    halves = functional.avg_pool2d(images, cell // 2)
    windows = functional.unfold(halves, window, padding=window // 2, stride=2).unflatten(1, (3, -1))
    return functional.normalize((windows - windows.mean(2, keepdim=True)).flatten(1, 2), dim=1, eps=1e-4)


def match(
    descriptors: Float[Tensor, "b f d p"],
    grid: tuple[int, int],
    temperature: Float[Tensor, ""],
    references: Int[Tensor, "b f"] | None = None,
) -> Float[Tensor, "b f p 3"]:
    """Per cell: the mean displacement (x, y) to the cells of another frame that look alike, and the mean likeness.

    The other frame is the first, or ``references`` says which. The mean is weighted by a softmax over all its cells;
    displacements are in units of the mean side of the image over `GAIN`.
    """
    if references is None:
        likeness = torch.einsum("bcp,bfcq->bfqp", descriptors[:, 0], descriptors)
    else:
        others = descriptors[torch.arange(len(descriptors), device=references.device)[:, None], references]
        likeness = descriptors.mT @ others
    shares = (likeness * temperature).softmax(-1)
    rows, columns = (torch.arange(n, device=descriptors.device, dtype=descriptors.dtype) for n in grid)
    places = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).reshape(-1, 2)
    places = places * (GAIN / math.sqrt(grid[0] * grid[1]))
    return torch.cat([shares @ places - places, (shares * likeness).sum(-1, keepdim=True)], dim=-1)


class Matching(nn.Module):
    """What to add to the patch tokens: `match` of the cells in each patch, through a linear layer.

    Frames other than the first (those referred to) stay interchangeable.
    """

    def __init__(
        self, patch_size: int, width: int, *, cells: int = 2, window: int = 7, temperature: float = 30.0
    ) -> None:
        super().__init__()
        self.cell, self.cells, self.window = patch_size // cells, cells, window
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.project = nn.Linear(FEATURES * cells**2, width)

    def forward(
        self, images: Float[Tensor, "b f 3 h w"], references: Int[Tensor, "b f"] | None = None
    ) -> Float[Tensor, "b f p c"]:
        """Patches in row-major order; in full precision but for the last layer. ``references``: as for `match`."""
        b, f, _, height, width = images.shape
        grid = (height // self.cell, width // self.cell)
        with full_precision(images.device):
            flat = images.to(full_type(images.dtype)).flatten(0, 1)
            descriptors = describe(flat, self.cell, self.window).unflatten(0, (b, f))
            found = match(descriptors, grid, self.log_temperature.exp(), references)
        maps = found.flatten(0, 1).mT.unflatten(-1, grid)
        return self.project(functional.pixel_unshuffle(maps, self.cells).flatten(2).mT).unflatten(0, (b, f))


def around(grid: tuple[int, int], radius: int, device: torch.device) -> tuple[Int[Tensor, "p k"], Bool[Tensor, "p k"]]:
    """For each cell of a grid the (2·radius + 1)² cells around it, row-major, and which of them lie inside."""
    rows, columns = grid
    steps = torch.arange(-radius, radius + 1, device=device)
    y = torch.arange(rows, device=device)[:, None, None, None] + steps[:, None]
    x = torch.arange(columns, device=device)[:, None, None] + steps
    inside = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
    index = y.clamp(0, rows - 1) * columns + x.clamp(0, columns - 1)
    return index.flatten(0, 1).flatten(1), inside.flatten(0, 1).flatten(1)


class Correlation(nn.Module):
    """What to add to the patch tokens: how alike each cell is to those around the same place of another frame (as in
    RAFT, arXiv 2003.12039), and the mean displacement to them, by features that are learned.
    """

    def __init__(
        self,
        cell: int,
        width: int,
        *,
        cells: int = 2,
        features: int = 48,
        radius: int = 4,
        temperature: float = 10.0,
    ) -> None:
        super().__init__()
        self.cell, self.cells, self.radius = cell, cells, radius
        layers: list[nn.Module] = [nn.Conv2d(3, features, 3, padding=1)]
        for _ in range(int(math.log2(cell))):
            layers += [nn.GELU(), nn.Conv2d(features, features, 3, stride=2, padding=1)]
        self.encoder = nn.Sequential(*layers, nn.GELU(), nn.Conv2d(features, features, 3, padding=1))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.project = nn.Linear(((2 * radius + 1) ** 2 + 2) * cells**2, width)

    def forward(
        self, images: Float[Tensor, "b f 3 h w"], references: Int[Tensor, "b f"] | None = None
    ) -> Float[Tensor, "b f p c"]:
        """Patches in row-major order. ``references``: as for `match`."""
        b, f = images.shape[:2]
        maps = self.encoder(images.flatten(0, 1) - 0.5)
        grid = (maps.shape[-2], maps.shape[-1])
        with full_precision(images.device):
            found = self.compare(
                functional.normalize(maps.float().flatten(2), dim=1).unflatten(0, (b, f)), grid, references
            )
        laid = found.flatten(0, 1).mT.unflatten(-1, grid)
        return self.project(functional.pixel_unshuffle(laid, self.cells).flatten(2).mT).unflatten(0, (b, f))

    def compare(
        self, features: Float[Tensor, "b f d p"], grid: tuple[int, int], references: Int[Tensor, "b f"] | None
    ) -> Float[Tensor, "b f p k"]:
        """Likeness to the cells around (0 outside the image), and the mean displacement (x, y) over the radius."""
        if references is None:
            references = torch.zeros(features.shape[:2], dtype=torch.long, device=features.device)
        others = features[torch.arange(len(features), device=features.device)[:, None], references]
        index, inside = around(grid, self.radius, features.device)
        likeness = (features.mT @ others).gather(-1, index.expand(*features.shape[:2], -1, -1))
        logits = (likeness * self.log_temperature.exp()).masked_fill(~inside, -torch.inf)
        steps = torch.arange(-self.radius, self.radius + 1, device=features.device, dtype=features.dtype)
        offsets = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).reshape(-1, 2) / self.radius
        return torch.cat([likeness.masked_fill(~inside, 0), logits.softmax(-1) @ offsets], dim=-1)
