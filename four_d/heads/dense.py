"""Dense maps by convolutional fusion of several rounds' tokens (DPT, arXiv 2103.13413, as VGGT builds it)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from four_d.errors import UserError
from four_d.layers import full_precision, full_type
from four_d.types import Clip, Prediction, Tokens

LEVELS = 4
EMBEDDING_GAIN = 0.1
EMBEDDING_BASE = 100.0


@dataclass(frozen=True, kw_only=True)
class DenseHeadConfig:
    """Sizes of a `DenseHead`; the defaults are VGGT-1B's, but for ``rounds`` (its own are 4, 11, 17, 23)."""

    kind: Literal["dense"] = "dense"
    output: Literal["depth", "points"] = "depth"
    rounds: tuple[int, ...] | None = None
    """Four rounds of the backbone, fine to coarse; None: evenly spaced, the last one last."""
    channels: tuple[int, ...] = (256, 512, 1024, 1024)
    """Channels per level before fusion, each a multiple of 4."""
    features: int = 256
    """Channels of the fusion; half of it must be a multiple of 4."""
    last_features: int = 32
    down_ratio: int = 1
    """Compute at 1 / down_ratio of the image's side, then enlarge: cheaper, softer."""
    chunk: int = 8
    """Frames at once (bounds memory outside training)."""

    def build(self, *, token_width: int, rounds: int, patch_size: int) -> DenseHead:
        """Raises UserError where sizes do not fit each other."""
        chosen = spread_rounds(rounds) if self.rounds is None else self.rounds
        if len(chosen) != LEVELS or len(self.channels) != LEVELS:
            raise UserError(
                f"dense head: rounds {list(chosen)} and channels {list(self.channels)} must be {LEVELS} numbers each"
            )
        if any(width % 4 for width in (*self.channels, self.features // 2)) or self.features % 2:
            raise UserError(f"dense head: channels {list(self.channels)} and half of features must be multiples of 4")
        return DenseHead(
            output=self.output,
            token_width=token_width,
            rounds=tuple(chosen),
            channels=self.channels,
            features=self.features,
            last_features=self.last_features,
            patch_size=patch_size,
            down_ratio=self.down_ratio,
            chunk=self.chunk,
        )


def spread_rounds(rounds: int) -> tuple[int, ...]:
    """Four of ``rounds``, evenly spaced, the last one last; fewer than four repeat."""
    return tuple(math.ceil(rounds * (level + 1) / LEVELS) - 1 for level in range(LEVELS))


def inverse_log(raw: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """sign(y)·(exp|y| − 1): linear near zero, exponential far from it."""
    return torch.sign(raw) * torch.expm1(raw.abs())


def confidence(raw: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """1 + exp(y) ("expp1"), above 1."""
    return 1 + raw.exp()


def depth_maps(raw: Float[Tensor, "b f 2 h w"]) -> Prediction:
    """exp, and `confidence`."""
    return Prediction(depth=raw[:, :, 0].exp(), depth_confidence=confidence(raw[:, :, 1]))


def point_maps(raw: Float[Tensor, "b f 4 h w"]) -> Prediction:
    """`inverse_log`, and `confidence`."""
    points = inverse_log(raw[:, :, :3]).movedim(2, -1)
    return Prediction(points=points, points_confidence=confidence(raw[:, :, 3]))


OUTPUTS: dict[str, tuple[int, Callable[[Tensor], Prediction]]] = {"depth": (2, depth_maps), "points": (4, point_maps)}
"""Channels of the last layer, and what becomes of them."""


def axis_embedding(count: int, span: float, width: int, like: Tensor) -> Float[Tensor, "count width"]:
    """Sines, then cosines, of ``count`` cell centres that fill [-span, span]."""
    edge = span * (count - 1) / count
    position = torch.linspace(-edge, edge, count, device=like.device, dtype=torch.float64)
    frequency = EMBEDDING_BASE ** (-torch.arange(width // 2, device=like.device, dtype=torch.float64) / (width // 2))
    angle = position[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1).to(like.dtype)


def add_position(x: Float[Tensor, "n c h w"], aspect: float) -> Float[Tensor, "n c h w"]:
    """Add where each cell is in the image, whose width over height is ``aspect``; its diagonal is 2 long."""
    channels, rows, columns = x.shape[1:]
    diagonal = math.hypot(aspect, 1)
    across = axis_embedding(columns, aspect / diagonal, channels // 2, x)
    down = axis_embedding(rows, 1 / diagonal, channels // 2, x)
    embedding = torch.cat(
        [across.T[:, None, :].expand(-1, rows, -1), down.T[:, :, None].expand(-1, -1, columns)], dim=0
    )
    return x + EMBEDDING_GAIN * embedding


def resize(x: Float[Tensor, "n c h w"], size: tuple[int, int]) -> Float[Tensor, "n c p q"]:
    """Bilinear, corner pixels on corner pixels."""
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=True)


class ResidualUnit(nn.Module):
    """ReLU(x) + convolutions. The skip is *rectified*: VGGT's ReLU works in place, and its weights expect that."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Same size."""
        rectified = functional.relu(x)
        return rectified + self.conv2(functional.relu(self.conv1(rectified)))


class Fusion(nn.Module):
    """Join a coarse map with the next finer level's, then enlarge."""

    def __init__(self, features: int, *, lateral: bool) -> None:
        super().__init__()
        self.lateral = ResidualUnit(features) if lateral else None
        self.unit = ResidualUnit(features)
        self.out_conv = nn.Conv2d(features, features, 1)

    def forward(
        self, coarse: Float[Tensor, "n c h w"] | None, level: Float[Tensor, "n c h w"], size: tuple[int, int]
    ) -> Float[Tensor, "n c p q"]:
        """``size`` is the result's; without lateral unit there is no ``coarse``."""
        x = level
        if self.lateral is not None:
            assert coarse is not None
            x = coarse + self.lateral(level)
        # The 1 × 1 convolution commutes with the interpolation; this side of it, it has a quarter of the pixels.
        return resize(self.out_conv(self.unit(x)), size)


class DenseFeatures(nn.Module):
    """One feature map per frame out of four rounds' tokens, at 1 / ``down_ratio`` of the image's size.

    ``positions``: add to the maps where in the image each cell is. Always in full precision.
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
        positions: bool = True,
    ) -> None:
        super().__init__()
        self.rounds, self.patch_size, self.down_ratio, self.chunk = rounds, patch_size, down_ratio, chunk
        self.positions = positions
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

    def maps(self, tokens: Tokens) -> Float[Tensor, "b f o h w"]:
        """`decode` of every frame; ``chunk`` frames at once, which changes results only by rounding."""
        levels = [tokens.patches[tokens.rounds.index(index)] for index in self.rounds]
        b, f = levels[0].shape[:2]
        flat = [level.flatten(0, 1) for level in levels]
        with full_precision(flat[0].device):
            # A loop over the frame count would fix it in an exported program.
            if torch.compiler.is_exporting():
                return self.decode(flat, tokens.grid).unflatten(0, (b, f))
            pieces = zip(*(level.split(self.chunk) for level in flat), strict=True)
            return torch.cat([self.decode(list(piece), tokens.grid) for piece in pieces]).unflatten(0, (b, f))

    def decode(self, levels: list[Float[Tensor, "n p c"]], grid: tuple[int, int]) -> Float[Tensor, "n o h w"]:
        """Feature maps, from one token map per level."""
        height, width = grid[0] * self.patch_size, grid[1] * self.patch_size
        x = self.fuse([self.lay_out(index, level, grid) for index, level in enumerate(levels)])
        x = resize(self.narrow(x), (height // self.down_ratio, width // self.down_ratio))
        return add_position(x, width / height) if self.positions else x

    def lay_out(self, index: int, level: Float[Tensor, "n p c"], grid: tuple[int, int]) -> Float[Tensor, "n e h w"]:
        """One level's tokens as an image of its own resolution: 4, 2, 1 and ½ of the grid."""
        x = self.projects[index](self.norm(level.to(full_type(level.dtype))).mT.unflatten(-1, grid))
        if self.positions:
            x = add_position(x, grid[1] / grid[0])
        return self.laterals[index](self.resizes[index](x))

    def fuse(self, levels: list[Float[Tensor, "n c _h _w"]]) -> Float[Tensor, "n c h w"]:
        """From the coarsest level to the finest, and once more to twice its size."""
        sizes = [(level.shape[-2], level.shape[-1]) for level in levels]
        targets = [(2 * sizes[0][0], 2 * sizes[0][1]), *sizes[:-1]]
        x = None
        for fusion, level, size in zip(reversed(self.fusions), reversed(levels), reversed(targets)):
            x = fusion(x, level, size)
        assert x is not None
        return x


class DenseHead(DenseFeatures):
    """Sets depth or points, with confidence, at the image's size. Always in full precision.

    Depth is exp(y), points are sign(y)(exp|y| − 1), confidences 1 + exp(y).
    """

    def __init__(
        self,
        *,
        output: Literal["depth", "points"],
        token_width: int,
        rounds: tuple[int, ...],
        channels: tuple[int, ...],
        features: int,
        last_features: int,
        patch_size: int,
        down_ratio: int = 1,
        chunk: int = 8,
    ) -> None:
        super().__init__(
            token_width=token_width,
            rounds=rounds,
            channels=channels,
            features=features,
            out_features=features // 2,
            patch_size=patch_size,
            down_ratio=down_ratio,
            chunk=chunk,
        )
        last_width, self.interpret = OUTPUTS[output]
        self.last = nn.Conv2d(features // 2, last_features, 3, padding=1)
        self.out = nn.Conv2d(last_features, last_width, 1)

    def forward(self, tokens: Tokens, clip: Clip) -> Prediction:  # noqa: ARG002 - all heads have one signature
        """Maps of every frame."""
        raw = self.maps(tokens)
        with full_precision(raw.device):
            return self.interpret(raw)

    def decode(self, levels: list[Float[Tensor, "n p c"]], grid: tuple[int, int]) -> Float[Tensor, "n o h w"]:
        """Raw output channels at the image's size, from one token map per level."""
        x = self.out(functional.relu(self.last(super().decode(levels, grid))))
        return x if self.down_ratio == 1 else resize(x, (grid[0] * self.patch_size, grid[1] * self.patch_size))
