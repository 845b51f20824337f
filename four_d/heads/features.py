"""Feature maps by convolutional fusion of several rounds' tokens (DPT, arXiv 2103.13413, as VGGT builds it).

For any head that predicts at the image's size: dense maps, tracks, and those of one's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from four_d.constants import move
from four_d.errors import UserError
from four_d.layers import full_precision, full_type, linear
from four_d.types import Tokens

LEVELS = 4
Level = tuple[Float[Tensor, "n p c"], Float[Tensor, "n _d _y _x"] | None]
"""Tokens of one level, and the encoder's map that is fused there, if any."""
EMBEDDING_GAIN = 0.1
EMBEDDING_BASE = 100.0


def spread_rounds(rounds: int) -> tuple[int, ...]:
    """Four of ``rounds``, evenly spaced, the last one last; fewer than four repeat."""
    return tuple(math.ceil(rounds * (level + 1) / LEVELS) - 1 for level in range(LEVELS))


def axis_embedding(count: int, span: float, width: int, like: Tensor) -> Float[Tensor, "count width"]:
    """Sines, then cosines, of ``count`` cell centres that fill [-span, span]."""
    edge = span * (count - 1) / count
    position = torch.linspace(-edge, edge, count, dtype=torch.float64)  # on the host, for devices without float64
    frequency = EMBEDDING_BASE ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angle = position[:, None] * frequency
    return move(torch.cat([angle.sin(), angle.cos()], dim=-1).to(like.dtype), like.device)


def add_position(x: Float[Tensor, "n c h w"], aspect: float) -> Float[Tensor, "n c h w"]:
    """Add position embeddings, in place, for an image of width over height ``aspect`` whose diagonal is 2 long."""
    channels, rows, columns = x.shape[1:]
    diagonal = math.hypot(aspect, 1)
    across = axis_embedding(columns, aspect / diagonal, channels // 2, x)
    down = axis_embedding(rows, 1 / diagonal, channels // 2, x)
    # Channels-last in memory, as the maps.
    embedding = torch.cat([across.expand(rows, -1, -1), down[:, None].expand(-1, columns, -1)], dim=-1)
    return x.add_(embedding.permute(2, 0, 1), alpha=EMBEDDING_GAIN)


def resize(x: Float[Tensor, "n c h w"], size: tuple[int, int]) -> Float[Tensor, "n c p q"]:
    """Resize bilinearly, with corner pixels aligned."""
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=True)


def sides(x: Tensor) -> tuple[int, int]:
    """Height and width of maps."""
    return x.shape[-2], x.shape[-1]


def enlarge(x: Float[Tensor, "n c h w"], size: tuple[int, int], aspect: float | None) -> Float[Tensor, "n c p q"]:
    """`resize`, then `add_position` unless ``aspect`` is None."""
    large = resize(x, size)
    return large if aspect is None else add_position(large, aspect)


def convolve_enlarged(
    x: Float[Tensor, "n c h w"], size: tuple[int, int], aspect: float | None, convolution: nn.Conv2d
) -> Float[Tensor, "n o p q"]:
    """Convolve `enlarge` (3 × 3), keeping only ``x`` for the backward pass: the large map is recomputed."""
    if torch.compiler.is_compiling():
        return convolution(enlarge(x, size, aspect))
    assert convolution.bias is not None
    weight, bias = convolution.weight.to(x.dtype), convolution.bias.to(x.dtype)
    return ConvolveEnlarged.apply(x, weight, bias, size, aspect)


class ConvolveEnlarged(torch.autograd.Function):
    """Autograd function of `convolve_enlarged`, which halves the memory of training."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401 - torch gives it no type
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        size: tuple[int, int],
        aspect: float | None,
    ) -> Tensor:
        """Convolve with one pixel of zero padding."""
        ctx.save_for_backward(x, weight)
        ctx.enlarged = (size, aspect)
        return functional.conv2d(enlarge(x, size, aspect), weight, bias, padding=1)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        """Backpropagate through the convolution, then the interpolation."""
        x, weight = ctx.saved_tensors
        needs_grad = [bool(each) for each in ctx.needs_input_grad[:3]]
        large = enlarge(x, *ctx.enlarged)
        ones = [1, 1]
        grad_large, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad, large, weight, [weight.shape[0]], ones, ones, ones, False, [0, 0], 1, needs_grad
        )
        del large
        grad_x = None
        if needs_grad[0]:
            grad_x = torch.ops.aten.upsample_bilinear2d_backward(grad_large, ctx.enlarged[0], x.shape, True)
        return grad_x, grad_weight, grad_bias, None, None


class ResidualUnit(nn.Module):
    """ReLU(x) + convolutions. The skip is *rectified*: VGGT's ReLU works in place, and its weights expect that."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Same size; ``x`` is overwritten."""
        rectified = functional.relu_(x)
        return self.conv2(functional.relu_(self.conv1(rectified))).add_(rectified)


class Fusion(nn.Module):
    """Fusion of a coarse map with the next finer level's."""

    def __init__(self, features: int, *, lateral: bool) -> None:
        super().__init__()
        self.lateral = ResidualUnit(features) if lateral else None
        self.unit = ResidualUnit(features)
        self.out_conv = nn.Conv2d(features, features, 1)

    def forward(
        self, coarse: Float[Tensor, "n c h w"] | None, level: Float[Tensor, "n c h w"]
    ) -> Float[Tensor, "n c h w"]:
        """Fuse, before upsampling; ``level`` is overwritten. Without lateral unit there is no ``coarse``."""
        x = level
        if self.lateral is not None:
            assert coarse is not None
            x = self.lateral(level).add_(coarse)
        # VGGT's 1 × 1 convolution comes after the interpolation. It commutes, and here it has a quarter of the pixels.
        return pointwise(self.unit(x), self.out_conv)


def pointwise(x: Float[Tensor, "n c h w"], convolution: nn.Conv2d) -> Float[Tensor, "n o h w"]:
    """Apply a 1 × 1 convolution; on a CPU as a matrix product, without copies of channels-last maps."""
    if x.device.type == "cuda":
        return convolution(x)  # as precise as its neighbours: matrix products have their own TF32 switch
    return linear(x.movedim(1, -1), convolution.weight.flatten(1), convolution.bias).movedim(-1, 1)


def split(level: Level, count: int) -> Iterator[Level]:
    """Split a level into pieces of ``count`` frames."""
    tokens, detail = level
    pieces = tokens.split(count)
    details = [None] * len(pieces) if detail is None else detail.split(count)
    return zip(pieces, details, strict=True)


def level_of(stride: int, patch_size: int) -> int:
    """Index of the level whose maps have this stride: they are at 4, 2, 1 or ½ times the grid's resolution.

    UserError if no level's have.
    """
    strides = [patch_size / 4, patch_size / 2, patch_size, 2 * patch_size]
    if stride not in strides:
        there = ", ".join(f"{each:g}" for each in strides)
        raise UserError(
            f"dense head: detail has a stride of {stride}, and with patch_size {patch_size} the levels have {there}; "
            "set detail=false, or other encoder.strides"
        )
    return strides.index(stride)


class DenseFeatures(nn.Module):
    """One feature map per frame from four rounds' tokens, at 1 / ``down_ratio`` of the image's size.

    ``positions``: add position embeddings to the maps. ``detail``: channels and stride of a finer map of the backbone
    that is fused too (`Tokens.detail`). Always in full precision.
    """

    def __init__(
        self,
        *,
        token_width: int,
        rounds: tuple[int, ...],
        channels: tuple[int, ...],
        features: int,
        out_features: int,
        patch_size: int,
        down_ratio: int = 1,
        chunk: int = 8,
        fine_chunk: int = 1,
        precision: Literal["full", "loop"] = "full",
        positions: bool = True,
        detail: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.rounds, self.patch_size, self.down_ratio = rounds, patch_size, down_ratio
        self.chunk, self.fine_chunk, self.precision, self.positions = chunk, fine_chunk, precision, positions
        self.norm = nn.LayerNorm(token_width)
        self.projects = nn.ModuleList(nn.Conv2d(token_width, width, 1) for width in channels)
        self.resizes = nn.ModuleList(
            [
                nn.ConvTranspose2d(channels[0], channels[0], 4, stride=4),
                nn.ConvTranspose2d(channels[1], channels[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(channels[3], channels[3], 3, stride=2, padding=1),
            ]
        )
        self.laterals = nn.ModuleList(nn.Conv2d(width, features, 3, padding=1, bias=False) for width in channels)
        self.fusions = nn.ModuleList(Fusion(features, lateral=level < LEVELS - 1) for level in range(LEVELS))
        self.narrow = nn.Conv2d(features, out_features, 3, padding=1)
        self.detail_level = None if detail is None else level_of(detail[1], patch_size)
        self.detail = None if detail is None else nn.Conv2d(detail[0], features, 3, padding=1, bias=False)

    def maps(self, tokens: Tokens) -> Float[Tensor, "b f o h w"]:
        """Decode every frame, ``chunk`` frames at once, which changes results only by rounding."""
        rows = [tokens.patches[tokens.rounds.index(index)] for index in self.rounds]
        b, f = rows[0].shape[:2]
        detail = None if self.detail is None or tokens.detail is None else tokens.detail.flatten(0, 1)
        levels: list[Level] = [
            (row.flatten(0, 1), detail if index == self.detail_level else None) for index, row in enumerate(rows)
        ]
        with full_precision(rows[0].device) if self.precision == "full" else nullcontext():
            # A loop over the frames would fix their number in an exported program.
            if torch.compiler.is_exporting():
                return self.finish(self.coarse(levels[1:], tokens.grid), levels[0], tokens.grid).unflatten(0, (b, f))
            pieces = zip(*(split(level, self.chunk) for level in levels), strict=True)
            maps = [each for piece in pieces for each in self.decode(list(piece), tokens.grid)]
            return torch.cat(maps).unflatten(0, (b, f))

    def decode(self, levels: list[Level], grid: tuple[int, int]) -> Iterator[Float[Tensor, "m o h w"]]:
        """Yield feature maps, ``fine_chunk`` frames at once, from one `Level` each, the finest first."""
        coarse = self.coarse(levels[1:], grid).split(self.fine_chunk)
        for piece, finest in zip(coarse, split(levels[0], self.fine_chunk), strict=True):
            yield self.finish(piece, finest, grid)

    def coarse(self, levels: list[Level], grid: tuple[int, int]) -> Float[Tensor, "n e h w"]:
        """Fuse all levels but the finest, from coarse to fine."""
        x = None
        for index in reversed(range(1, LEVELS)):
            x = self.join(index, x, levels[index - 1], grid)
        assert x is not None
        return x

    def join(
        self,
        index: int,
        coarse: Float[Tensor, "n e _h _w"] | None,
        level: Level,
        grid: tuple[int, int],
    ) -> Float[Tensor, "n e h w"]:
        """Fuse a level with the coarser levels' result."""
        tokens, detail = level
        x = self.level(index, tokens, grid)
        if self.detail is not None and detail is not None:
            x = x + self.detail(detail.to(x.dtype))
        return self.fusions[index](None if coarse is None else resize(coarse, sides(x)), x)

    def level(self, index: int, tokens: Float[Tensor, "n p c"], grid: tuple[int, int]) -> Float[Tensor, "n e h w"]:
        """Reassemble one level's tokens as a map at 4, 2, 1 or ½ times the grid's resolution."""
        maps = self.norm(tokens.to(full_type(tokens.dtype))).unflatten(1, grid).movedim(-1, 1)
        x = pointwise(maps, cast(nn.Conv2d, self.projects[index]))
        if self.positions:
            x = add_position(x, grid[1] / grid[0])
        return self.laterals[index](self.resizes[index](x))

    def finish(
        self, coarse: Float[Tensor, "n e _h _w"], finest: Level, grid: tuple[int, int]
    ) -> Float[Tensor, "n o h w"]:
        """Finish feature maps from the finest level and the coarser levels' result."""
        return enlarge(self.narrowed(coarse, finest, grid), *self.frame(grid))

    def narrowed(
        self, coarse: Float[Tensor, "n e _h _w"], finest: Level, grid: tuple[int, int]
    ) -> Float[Tensor, "n o h w"]:
        """Output of the last fusion, at twice the finest level's size."""
        x = self.join(0, coarse, finest, grid)
        return convolve_enlarged(x, (2 * x.shape[-2], 2 * x.shape[-1]), None, self.narrow)

    def frame(self, grid: tuple[int, int]) -> tuple[tuple[int, int], float | None]:
        """Size of the feature maps, and the image's aspect if positions are to be added."""
        height, width = grid[0] * self.patch_size, grid[1] * self.patch_size
        return (height // self.down_ratio, width // self.down_ratio), width / height if self.positions else None
