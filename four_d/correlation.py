"""Learned local correlation: find each cell's match in another frame, a hint of motion before attention (ours).

Each cell is matched within a window around the same place (as RAFT, arXiv 2003.12039, compares two frames): every
frame with the one just before it, the one just after it and the query frame, or key frames with those of all times.
`losses.MatchingLoss` supervises the matches directly: features train in minutes, where a loss on motion alone takes far
longer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from four_d.constants import vector
from four_d.errors import UserError
from four_d.layers import full_precision, full_type


@dataclass(frozen=True, kw_only=True)
class CorrelationConfig:
    """Sizes of the `Features`, and the search radius."""

    cells: int = 4
    """Cells per patch and axis; patch_size / cells must be a power of two."""
    channels: int = 48
    """Channels of the features, a multiple of 8."""
    depth: int = 2
    """Residual units at the size of the cells."""
    radius: int = 6
    """Cells to each side that are compared."""
    temperature: float = 10.0
    """Initial factor on the similarity before the softmax; it is learned."""
    encoded: bool = False
    """Compare also by the encoder's map whose stride is a cell; the patch embedding must be of kind ``features``."""

    def build(self, patch_size: int, encoded: Mapping[int, int] | None = None) -> Features:
        """Build the module; ``encoded`` has the channels of the encoder's maps by stride.

        UserError if cells do not fill patches, channels do not fill groups, or a map is needed that is not there.
        """
        cell = patch_size // self.cells
        if patch_size % self.cells or cell & (cell - 1):
            raise UserError(
                f"correlation: patch_size {patch_size} over cells {self.cells} must be a power of two; change either"
            )
        if self.channels % GROUPS:
            raise UserError(f"correlation: channels {self.channels} must be a multiple of {GROUPS}")
        channels = (encoded or {}).get(cell) if self.encoded else 0
        if channels is None:
            there = f"has maps of strides {sorted(encoded)}" if encoded else "has no encoder"
            raise UserError(
                f"correlation.encoded needs a map of stride {cell} (patch_size {patch_size} over cells {self.cells}), "
                f"and the patch embedding {there}; set correlation.encoded=false, or patches of kind features with it"
            )
        return Features(cell, channels=self.channels, depth=self.depth, temperature=self.temperature, encoded=channels)


GROUPS = 8
"""Groups of channels, for normalisation."""
NUMBERS = 3
"""Numbers per cell that describe its match (`numbers`)."""


class Unit(nn.Module):
    """x + convolutions of x, over ``dilation`` cells."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.gain = nn.Parameter(torch.full((channels, 1, 1), 0.3))

    def forward(self, x: Float[Tensor, "n d r c"]) -> Float[Tensor, "n d r c"]:
        """Apply the unit; the size stays."""
        return x + self.gain * self.conv2(functional.gelu(self.conv1(functional.gelu(self.norm(x)))))


class Features(nn.Module):
    """One vector per cell of every image; the dot product of two is the logit of their match.

    ``encoded``: channels of an encoder's map of cells that enters beside the image; 0: none does.
    """

    def __init__(
        self, cell: int, *, channels: int = 48, depth: int = 2, temperature: float = 10.0, encoded: int = 0
    ) -> None:
        super().__init__()
        self.cell = cell
        layers: list[nn.Module] = [nn.Conv2d(3, channels // 2, 5, padding=2), nn.GELU()]
        narrow = channels // 2
        for _ in range(int(math.log2(cell))):
            layers += [nn.Conv2d(narrow, channels, 3, stride=2, padding=1), nn.GELU()]
            narrow = channels
        if narrow != channels:
            layers += [nn.Conv2d(narrow, channels, 3, padding=1)]
        self.begin = len(layers)
        self.encoder = nn.Sequential(*layers, *(Unit(channels, 1 + index % 2) for index in range(depth)))
        self.project = nn.Conv2d(encoded, channels, 1) if encoded else None
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    def forward(
        self, images: Float[Tensor, "b f 3 h w"], encoded: Mapping[int, Float[Tensor, "n _c _r _c"]] | None = None
    ) -> Float[Tensor, "b f d r c"]:
        """Compute vectors of equal length, in full precision; r rows and c columns of cells.

        ``encoded`` has the encoder's maps of all frames (b f) by stride.
        """
        x = self.encoder[: self.begin](images.flatten(0, 1) - 0.5)
        if self.project is not None and encoded is not None:
            x = x + self.project(encoded[self.cell])
        maps = self.encoder[self.begin :](x).unflatten(0, images.shape[:2])
        with full_precision(images.device):
            unit = functional.normalize(maps.to(full_type(maps.dtype)), dim=2)
            return unit * (self.log_temperature / 2).exp()


@dataclass(frozen=True, kw_only=True)
class SoftMatches:
    """Match of each cell in another frame, as a distribution over the cells around the same place; lengths in cells."""

    logits: Float[Tensor, "*b r c k"]
    """Logit of each of the (2·radius + 1)² cells around the same place, row-major; −∞ outside the image."""
    displacement: Float[Tensor, "*b r c 2"]
    """(x, y) to the likeliest cell, refined by its neighbours."""
    mass: Float[Tensor, "*b r c"]
    """Probability mass at ``displacement``: of the 3 × 3 cells around the likeliest."""


def pick(values: Tensor, frames: Int[Tensor, "b *k"]) -> Tensor:
    """Select each clip's frames by index: b f … becomes b k …"""
    rows = torch.arange(len(values), device=values.device).view(-1, *[1] * (frames.ndim - 1))
    return values[rows, frames]


def search(features: Float[Tensor, "*b d r c"], other_features: Float[Tensor, "*b d r c"], radius: int) -> SoftMatches:
    """Match each feature map with its other one. Memory: cells · columns · (2·radius + 1) numbers per map."""
    logits = compare(features, other_features, radius)
    index, exists = around(logits.argmax(-1), radius)
    near = (logits.gather(-1, index) - logits.logsumexp(-1, keepdim=True)).exp() * exists
    mass = near.sum(-1)
    displacement = (near[..., None] * offsets(radius, near)[index]).sum(-2) / mass[..., None]
    return SoftMatches(logits=logits, displacement=displacement, mass=mass)


def around(indices: Int[Tensor, "*b"], radius: int) -> tuple[Int[Tensor, "*b 9"], Bool[Tensor, "*b 9"]]:
    """Indices of the 3 × 3 neighbours of each of (2·radius + 1)² places, row-major, and a mask of those that exist."""
    side = 2 * radius + 1
    steps = torch.arange(-1, 2, device=indices.device)
    y, x = (indices // side)[..., None] + steps, (indices % side)[..., None] + steps
    y_in, x_in = (y >= 0) & (y < side), (x >= 0) & (x < side)
    index = y.clamp(0, side - 1)[..., :, None] * side + x.clamp(0, side - 1)[..., None, :]
    return index.flatten(-2), (y_in[..., :, None] & x_in[..., None, :]).flatten(-2)


def compare(
    features: Float[Tensor, "*b d r c"], other_features: Float[Tensor, "*b d r c"], radius: int
) -> Float[Tensor, "*b r c k"]:
    """Compute the logits of `SoftMatches`."""
    rows, columns = features.shape[-2:]
    side = 2 * radius + 1
    cells = features.movedim(-3, -1).contiguous()
    padded = functional.pad(other_features, (radius,) * 4).transpose(-3, -2).contiguous()
    # Multiply each row of cells with each row within reach; of the products, a band along the diagonal is within reach.
    bands = [diagonals(cells @ padded[..., step : step + rows, :, :], side) for step in range(side)]
    logits = torch.stack(bands, dim=-2).flatten(-2)
    return logits.masked_fill(~inside(rows, columns, radius, features.device), -torch.inf)


def diagonals(products: Float[Tensor, "*b c m"], count: int) -> Float[Tensor, "*b c count"]:
    """Take entries i to i + count − 1 of each row i."""
    columns, width = products.shape[-2:]
    # read back with rows one longer, each row begins one entry later than the one before: the diagonal is a column
    skewed = functional.pad(products.flatten(-2), (0, columns)).unflatten(-1, (columns, width + 1))
    return skewed[..., :count]


def inside(rows: int, columns: int, radius: int, device: torch.device) -> Bool[Tensor, "r c k"]:
    """Mask of the (2·radius + 1)² cells around each cell that lie inside the grid."""
    steps = torch.arange(-radius, radius + 1, device=device)
    y = torch.arange(rows, device=device)[:, None] + steps
    x = torch.arange(columns, device=device)[:, None] + steps
    y_in, x_in = (y >= 0) & (y < rows), (x >= 0) & (x < columns)
    return (y_in[:, None, :, None] & x_in[None, :, None, :]).flatten(2)


def offsets(radius: int, like: Tensor) -> Float[Tensor, "k 2"]:
    """Displacement (x, y), in cells, of each place that `compare` covers."""
    steps = torch.arange(-radius, radius + 1, device=like.device, dtype=like.dtype)
    return torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).reshape(-1, 2)


def fetch(
    values: Float[Tensor, "b f r c e"], references: Int[Tensor, "b f"], displacement: Float[Tensor, "b f r c 2"]
) -> Float[Tensor, "b f r c e"]:
    """Sample the referenced frames at ``displacement`` (`SoftMatches`), bilinearly, clamped to the edge."""
    rows, columns = values.shape[2:4]
    referenced = pick(values, references)
    y, x = (torch.arange(count, device=values.device, dtype=values.dtype) + 0.5 for count in (rows, columns))
    centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    unit = 2 * (centres + displacement) / vector([columns, rows], x) - 1
    maps = functional.grid_sample(
        referenced.flatten(0, 1).movedim(-1, 1), unit.flatten(0, 1), padding_mode="border", align_corners=False
    )
    return maps.movedim(1, -1).unflatten(0, values.shape[:2])


def neighbour_frames(times: Float[Tensor, "b f"], camera_ids: Int[Tensor, "b f"], *, later: bool) -> Int[Tensor, "b f"]:
    """Index of each frame's successor in time from the same camera (not ``later``: predecessor); itself if none."""
    gaps = (times[:, None, :] - times[:, :, None]) * (1 if later else -1)
    usable = (gaps > 0) & (camera_ids[:, None, :] == camera_ids[:, :, None])
    nearest = torch.where(usable, gaps, torch.inf).argmin(-1)
    return torch.where(usable.any(-1), nearest, torch.arange(times.shape[1], device=times.device))


class Comparison(nn.Module):
    """Addition to the patch tokens, projected from matches (`SoftMatches`). Initialised to zero."""

    def __init__(self, config: CorrelationConfig, width: int) -> None:
        super().__init__()
        self.cells, self.radius = config.cells, config.radius
        self.project = nn.Linear(NUMBERS * config.cells**2, width)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(
        self, features: Float[Tensor, "b f d r c"], references: Int[Tensor, "b f"]
    ) -> tuple[Float[Tensor, "b f p e"], SoftMatches]:
        """Compute the addition, patches in row-major order, and the matches."""
        with full_precision(features.device):
            matches = search(features, pick(features, references), self.radius)
        return self.project(by_patch(numbers(matches, self.radius), self.cells)), matches


def numbers(matches: SoftMatches, radius: int) -> Float[Tensor, "*b r c _e"]:
    """Describe matches to tokens: displacement (x, y) as a fraction of ``radius``, and its probability."""
    return torch.cat([matches.displacement / radius, matches.mass[..., None]], dim=-1)


def by_patch(maps: Float[Tensor, "b f r c e"], cells: int) -> Float[Tensor, "b f p _e"]:
    """Concatenate the values of each patch's cells."""
    per_patch = functional.pixel_unshuffle(maps.flatten(0, 1).movedim(-1, 1), cells)
    return per_patch.flatten(2).mT.unflatten(0, maps.shape[:2])


class Neighbours(nn.Module):
    """Addition to the patch tokens: `Comparison` with the frames of the same camera just before and just after."""

    def __init__(self, config: CorrelationConfig, width: int) -> None:
        super().__init__()
        self.before, self.after = (Comparison(config, width) for _ in range(2))

    def forward(
        self, features: Float[Tensor, "b f d r c"], times: Float[Tensor, "b f"], camera_ids: Int[Tensor, "b f"]
    ) -> Float[Tensor, "b f p e"]:
        """Compute the addition, patches in row-major order. Neighbours follow the times, not the frames' order."""
        earlier, later = (neighbour_frames(times, camera_ids, later=each) for each in (False, True))
        features = features.detach()  # the query frame's search trains them, at half the cost
        return self.before(features, earlier)[0] + self.after(features, later)[0]


class Across(nn.Module):
    """Addition to key frames' patch tokens: the matches of their cells at each of the clip's times.

    Initialised to zero.
    """

    def __init__(self, config: CorrelationConfig, width: int, times: int) -> None:
        super().__init__()
        self.cells, self.radius, self.times = config.cells, config.radius, times
        self.project = nn.Linear(times * NUMBERS * config.cells**2, width)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(
        self, features: Float[Tensor, "b f d r c"], keys: Int[Tensor, "b k"], searched: Int[Tensor, "b q k"]
    ) -> tuple[Float[Tensor, "b k p e"], SoftMatches]:
        """Compute the addition and the matches b q k …; ``searched`` is the frame to search per time and key frame."""
        with full_precision(features.device):
            key_features = pick(features, keys)[:, None].expand(-1, self.times, -1, -1, -1, -1)
            matches = search(key_features, pick(features, searched), self.radius)
            described = numbers(matches, self.radius).movedim(1, 4).flatten(4)  # b k r c (q e)
        return self.project(by_patch(described, self.cells)), matches
