"""Where what a cell shows is in another frame, by features that are learned: a hint of motion before attention (ours).

A frame is searched in another, in a window around the same place (as RAFT, arXiv 2003.12039, compares two frames):
every frame in the one just before it, the one just after it and the query frame, or key frames in those of all times.
A loss may say where the right place was (`losses.MatchingLoss`): so the features are learned in minutes, where motion
alone takes far longer to teach them.
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
    """Sizes of the `Features`, and how far places are searched."""

    kind: Literal["correlation"] = "correlation"
    cells: int = 4
    """Cells per patch and axis; patch_size / cells must be a power of two."""
    channels: int = 48
    """A multiple of 8."""
    depth: int = 2
    """Residual units at the size of the cells."""
    radius: int = 6
    """Cells to each side that are compared with."""
    temperature: float = 10.0
    """Factor on likeness before a softmax, at the start; it is learned."""

    def build(self, patch_size: int) -> Features:
        """UserError if cells do not fill patches, or channels groups."""
        cell = patch_size // self.cells
        if patch_size % self.cells or cell & (cell - 1):
            raise UserError(
                f"correlation: patch_size {patch_size} over cells {self.cells} must be a power of two; change either"
            )
        if self.channels % GROUPS:
            raise UserError(f"correlation: channels {self.channels} must be a multiple of {GROUPS}")
        return Features(cell, channels=self.channels, depth=self.depth, temperature=self.temperature)


GROUPS = 8
"""Of channels, for normalisation."""
NUMBERS = 3
"""Per cell, of what a search found."""


class Unit(nn.Module):
    """x + convolutions of x, over ``dilation`` cells."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.gain = nn.Parameter(torch.full((channels, 1, 1), 0.3))

    def forward(self, x: Float[Tensor, "n d r c"]) -> Float[Tensor, "n d r c"]:
        """Same size."""
        return x + self.gain * self.conv2(functional.gelu(self.conv1(functional.gelu(self.norm(x)))))


class Features(nn.Module):
    """One vector per cell of every image; the product of two is the logit of their showing the same."""

    def __init__(self, cell: int, *, channels: int = 48, depth: int = 2, temperature: float = 10.0) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels // 2, 5, padding=2), nn.GELU()]
        narrow = channels // 2
        for _ in range(int(math.log2(cell))):
            layers += [nn.Conv2d(narrow, channels, 3, stride=2, padding=1), nn.GELU()]
            narrow = channels
        if narrow != channels:
            layers += [nn.Conv2d(narrow, channels, 3, padding=1)]
        self.encoder = nn.Sequential(*layers, *(Unit(channels, 1 + index % 2) for index in range(depth)))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    def forward(self, images: Float[Tensor, "b f 3 h w"]) -> Float[Tensor, "b f d r c"]:
        """Vectors of equal length, in full precision; r rows and c columns of cells."""
        maps = self.encoder(images.flatten(0, 1) - 0.5).unflatten(0, images.shape[:2])
        with full_precision(images.device):
            unit = functional.normalize(maps.to(full_type(maps.dtype)), dim=2)
            return unit * (self.log_temperature / 2).exp()


@dataclass(frozen=True, kw_only=True)
class Found:
    """Where another frame shows what each cell shows; in cells, from the same place."""

    logits: Float[Tensor, "*b r c k"]
    """Of each of the (2·radius + 1)² cells around the same place, row-major; −∞ outside the image."""
    place: Float[Tensor, "*b r c 2"]
    """(x, y) of the likeliest cell, refined by its neighbours."""
    share: Float[Tensor, "*b r c"]
    """How much of the probability lies there."""


def pick(values: Tensor, frames: Int[Tensor, "b *k"]) -> Tensor:
    """Of each clip the frames with these indices: of b f …, b k …"""
    rows = torch.arange(len(values), device=values.device).view(-1, *[1] * (frames.ndim - 1))
    return values[rows, frames]


def search(own: Float[Tensor, "*b d r c"], others: Float[Tensor, "*b d r c"], radius: int) -> Found:
    """For each picture of features, in its other one. Memory: cells · columns · (2·radius + 1) numbers per picture."""
    logits = compare(own, others, radius)
    index, there = around(logits.argmax(-1), radius)
    near = (logits.gather(-1, index) - logits.logsumexp(-1, keepdim=True)).exp() * there
    share = near.sum(-1)
    place = (near[..., None] * offsets(radius, near)[index]).sum(-2) / share[..., None]
    return Found(logits=logits, place=place, share=share)


def around(places: Int[Tensor, "*b"], radius: int) -> tuple[Int[Tensor, "*b 9"], Bool[Tensor, "*b 9"]]:
    """The 3 × 3 places around each of (2·radius + 1)² in row-major order, and which of them there are."""
    side = 2 * radius + 1
    steps = torch.arange(-1, 2, device=places.device)
    y, x = (places // side)[..., None] + steps, (places % side)[..., None] + steps
    y_in, x_in = (y >= 0) & (y < side), (x >= 0) & (x < side)
    index = y.clamp(0, side - 1)[..., :, None] * side + x.clamp(0, side - 1)[..., None, :]
    return index.flatten(-2), (y_in[..., :, None] & x_in[..., None, :]).flatten(-2)


def compare(
    own: Float[Tensor, "*b d r c"], others: Float[Tensor, "*b d r c"], radius: int
) -> Float[Tensor, "*b r c k"]:
    """The logits of `Found`."""
    rows, columns = own.shape[-2:]
    side = 2 * radius + 1
    cells = own.movedim(-3, -1).contiguous()
    padded = functional.pad(others, (radius,) * 4).transpose(-3, -2).contiguous()
    # Each row of cells with each row within reach. Of the products, a band along the diagonal is within reach.
    bands = [diagonals(cells @ padded[..., step : step + rows, :, :], side) for step in range(side)]
    logits = torch.stack(bands, dim=-2).flatten(-2)
    return logits.masked_fill(~inside(rows, columns, radius, own.device), -torch.inf)


def diagonals(products: Float[Tensor, "*b c m"], count: int) -> Float[Tensor, "*b c count"]:
    """Entries i to i + count − 1 of each row i."""
    columns, width = products.shape[-2:]
    skewed = functional.pad(products.flatten(-2), (0, columns)).unflatten(-1, (columns, width + 1))
    return skewed[..., :count]


def inside(rows: int, columns: int, radius: int, device: torch.device) -> Bool[Tensor, "r c k"]:
    """Which of the (2·radius + 1)² cells around each cell of a grid lie in it."""
    steps = torch.arange(-radius, radius + 1, device=device)
    y = torch.arange(rows, device=device)[:, None] + steps
    x = torch.arange(columns, device=device)[:, None] + steps
    y_in, x_in = (y >= 0) & (y < rows), (x >= 0) & (x < columns)
    return (y_in[:, None, :, None] & x_in[None, :, None, :]).flatten(2)


def offsets(radius: int, like: Tensor) -> Float[Tensor, "k 2"]:
    """Displacement (x, y) in cells of each place that `compare` looks at."""
    steps = torch.arange(-radius, radius + 1, device=like.device, dtype=like.dtype)
    return torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).reshape(-1, 2)


def fetch(
    values: Float[Tensor, "b f r c e"], references: Int[Tensor, "b f"], place: Float[Tensor, "b f r c 2"]
) -> Float[Tensor, "b f r c e"]:
    """What the frames that are referred to hold at ``place`` (`Found`), bilinearly; beyond the edge what is on it."""
    rows, columns = values.shape[2:4]
    others = pick(values, references)
    y, x = (torch.arange(count, device=values.device, dtype=values.dtype) + 0.5 for count in (rows, columns))
    own = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    unit = 2 * (own + place) / torch.stack([x.new_tensor(columns), x.new_tensor(rows)]) - 1
    maps = functional.grid_sample(
        others.flatten(0, 1).movedim(-1, 1), unit.flatten(0, 1), padding_mode="border", align_corners=False
    )
    return maps.movedim(1, -1).unflatten(0, values.shape[:2])


def neighbour_frames(times: Float[Tensor, "b f"], camera_ids: Int[Tensor, "b f"], *, later: bool) -> Int[Tensor, "b f"]:
    """For each frame the next one in time of its own camera (not ``later``: the last before it); itself if none."""
    gaps = (times[:, None, :] - times[:, :, None]) * (1 if later else -1)
    usable = (gaps > 0) & (camera_ids[:, None, :] == camera_ids[:, :, None])
    nearest = torch.where(usable, gaps, torch.inf).argmin(-1)
    return torch.where(usable.any(-1), nearest, torch.arange(times.shape[1], device=times.device))


class Comparison(nn.Module):
    """What to add to the patch tokens of what was `Found`. Zero at the start."""

    def __init__(self, config: CorrelationConfig, width: int) -> None:
        super().__init__()
        self.cells, self.radius = config.cells, config.radius
        self.project = nn.Linear(NUMBERS * config.cells**2, width)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(
        self, features: Float[Tensor, "b f d r c"], references: Int[Tensor, "b f"]
    ) -> tuple[Float[Tensor, "b f p e"], Found]:
        """Patches in row-major order, and what was found."""
        with full_precision(features.device):
            found = search(features, pick(features, references), self.radius)
        return self.project(by_patch(numbers(found, self.radius), self.cells)), found


def numbers(found: Found, radius: int) -> Float[Tensor, "*b r c _e"]:
    """What tokens are told of what was found: where (in shares of ``radius``), and how surely."""
    return torch.cat([found.place / radius, found.share[..., None]], dim=-1)


def by_patch(maps: Float[Tensor, "b f r c e"], cells: int) -> Float[Tensor, "b f p _e"]:
    """The values of each patch's cells side by side."""
    laid = functional.pixel_unshuffle(maps.flatten(0, 1).movedim(-1, 1), cells)
    return laid.flatten(2).mT.unflatten(0, maps.shape[:2])


class Neighbours(nn.Module):
    """What to add to the patch tokens: `Comparison` with the frames of the same camera just before and just after."""

    def __init__(self, config: CorrelationConfig, width: int) -> None:
        super().__init__()
        self.before, self.after = (Comparison(config, width) for _ in range(2))

    def forward(
        self, features: Float[Tensor, "b f d r c"], times: Float[Tensor, "b f"], camera_ids: Int[Tensor, "b f"]
    ) -> Float[Tensor, "b f p e"]:
        """Patches in row-major order. It is the times that count, not the frames' order."""
        earlier, later = (neighbour_frames(times, camera_ids, later=each) for each in (False, True))
        features = features.detach()  # the search in the query frame teaches them, at half the cost
        return self.before(features, earlier)[0] + self.after(features, later)[0]


class Across(nn.Module):
    """What to add to key frames' patch tokens: where each of the clip's times shows what their cells show.

    Zero at the start.
    """

    def __init__(self, config: CorrelationConfig, width: int, times: int) -> None:
        super().__init__()
        self.cells, self.radius, self.times = config.cells, config.radius, times
        self.project = nn.Linear(times * NUMBERS * config.cells**2, width)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(
        self, features: Float[Tensor, "b f d r c"], keys: Int[Tensor, "b k"], others: Int[Tensor, "b q k"]
    ) -> tuple[Float[Tensor, "b k p e"], Found]:
        """``others``: for each time and key frame the frame that is searched. What was found is b q k …"""
        with full_precision(features.device):
            own = pick(features, keys)[:, None].expand(-1, self.times, -1, -1, -1, -1)
            found = search(own, pick(features, others), self.radius)
            told = numbers(found, self.radius).movedim(1, 4).flatten(4)  # b k r c (q e)
        return self.project(by_patch(told, self.cells)), found
