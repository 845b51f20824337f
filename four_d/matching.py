"""Window matching with the first frame: a hint of motion before attention.

Attention can learn correspondence by itself, but only from very many examples. With this, camera motion is nearly a
linear function of the tokens from the first step on: on rotating synthetic views (16 images of 64 × 64 a step) the
mean rotation error fell to 0.24 of a static camera's in 350 steps; without it, it stayed at 1.00. Ours, not VGGT's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from four_d.errors import UserError
from four_d.layers import full_precision, full_type

FEATURES = 3
"""Numbers per cell: displacement in x and y, and similarity."""
GAIN = 4.0
"""Displacement units per mean side of the image."""
SURE = 4
"""Exponent of the similarity by which a part's displacements are weighed."""


@dataclass(frozen=True, kw_only=True)
class MatchingConfig:
    """Window matching with the first frame, added to the patch tokens."""

    cells: int = 2
    """Cells per patch and axis. Memory per frame grows with the square of the number of cells."""
    window: int = 7
    """Side of the compared windows, in half cells; odd."""
    temperature: float = 30.0
    """Initial factor on the similarity before the softmax over all places; it is learned."""
    pooled: int | None = None
    """Side of the grid of mean matches that is added to the camera token, so that the camera head need not wait for
    attention to collect them. None: patch tokens only."""

    def build(self, patch_size: int, width: int) -> Matching:
        """Build the module. UserError if cells do not fill patches, or windows have no middle."""
        if patch_size % (2 * self.cells) or self.window % 2 == 0:
            raise UserError(
                f"matching: twice cells {self.cells} must divide patch_size {patch_size}, and window {self.window} "
                "must be odd; change one of them"
            )
        if self.pooled is not None and self.pooled < 1:
            raise UserError(f"matching: pooled must be at least 1, or null, not {self.pooled}")
        return Matching(patch_size, width, self)


def describe(images: Float[Tensor, "n 3 h w"], cell: int, window: int) -> Float[Tensor, "n d p"]:
    """Describe each cell (``cell`` pixels) by its window, normalised to zero mean per channel and unit length."""
    halves = functional.avg_pool2d(images, cell // 2)
    windows = functional.unfold(halves, window, padding=window // 2, stride=2).unflatten(1, (3, -1))
    return functional.normalize((windows - windows.mean(2, keepdim=True)).flatten(1, 2), dim=1, eps=1e-4)


def match(
    descriptors: Float[Tensor, "b f d p"], grid: tuple[int, int], temperature: Float[Tensor, ""]
) -> Float[Tensor, "b f p 3"]:
    """Match each cell with the first frame: expected displacement (x, y), and expected similarity.

    Expectations are over a softmax over all cells of the first frame; displacements are in units of the image's mean
    side over `GAIN`.
    """
    similarity = torch.einsum("bcp,bfcq->bfqp", descriptors[:, 0], descriptors)
    weights = (similarity * temperature).softmax(-1)
    rows, columns = (torch.arange(n, device=descriptors.device, dtype=descriptors.dtype) for n in grid)
    positions = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).reshape(-1, 2)
    positions = positions * (GAIN / math.sqrt(grid[0] * grid[1]))
    return torch.cat([weights @ positions - positions, (weights * similarity).sum(-1, keepdim=True)], dim=-1)


def pooled(matches: Float[Tensor, "n 3 y x"], side: int) -> Float[Tensor, "n d"]:
    """Mean displacement, weighted by similarity, and mean similarity in each part of a grid of that side."""
    similarity = matches[:, 2:]
    weight = similarity.clamp(min=0.0) ** SURE + 1e-4
    mean = functional.adaptive_avg_pool2d(torch.cat([matches[:, :2] * weight, weight, similarity], dim=1), side)
    return torch.cat([mean[:, :2] / mean[:, 2:3], mean[:, 3:]], dim=1).flatten(1)


class Matching(nn.Module):
    """Addition to the patch tokens: `match` of the cells in each patch, through a linear layer; and, where the config
    asks for it, to the camera token: the `pooled` matches of the whole frame, through another.

    Frames other than the first remain interchangeable.
    """

    def __init__(self, patch_size: int, width: int, config: MatchingConfig | None = None) -> None:
        super().__init__()
        config = MatchingConfig() if config is None else config
        self.cell, self.cells, self.window = patch_size // config.cells, config.cells, config.window
        self.log_temperature = nn.Parameter(torch.tensor(math.log(config.temperature)))
        self.project = nn.Linear(FEATURES * config.cells**2, width)
        self.side = config.pooled
        self.turn = None if config.pooled is None else nn.Linear(FEATURES * config.pooled**2, width)

    def forward(
        self, images: Float[Tensor, "b f 3 h w"]
    ) -> tuple[Float[Tensor, "b f p c"], Float[Tensor, "b f 1 c"] | None]:
        """Compute the additions, patches in row-major order, in full precision except for the last layers."""
        b, f, _, height, width = images.shape
        grid = (height // self.cell, width // self.cell)
        with full_precision(images.device):
            flat = images.to(full_type(images.dtype)).flatten(0, 1)
            descriptors = describe(flat, self.cell, self.window).unflatten(0, (b, f))
            matches = match(descriptors, grid, self.log_temperature.exp())
            maps = matches.flatten(0, 1).mT.unflatten(-1, grid)
            means = None if self.side is None else pooled(maps, self.side)
        patches = self.project(functional.pixel_unshuffle(maps, self.cells).flatten(2).mT).unflatten(0, (b, f))
        if self.turn is None or means is None:
            return patches, None
        return patches, self.turn(means).unflatten(0, (b, f))[:, :, None]
