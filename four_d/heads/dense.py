"""Dense maps by convolutional fusion of several rounds' tokens (DPT, arXiv 2103.13413, as VGGT builds it)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from four_d.errors import UserError
from four_d.heads.query_decoder import QueryDecoder, QueryDecoderConfig
from four_d.layers import full_precision, full_type, linear
from four_d.query import asked
from four_d.types import Clip, Prediction, Tokens

LEVELS = 4
EMBEDDING_GAIN = 0.1
EMBEDDING_BASE = 100.0


@dataclass(frozen=True, kw_only=True)
class DenseHeadConfig:
    """Sizes of a `DenseHead`; the defaults are VGGT-1B's, but for ``rounds`` (its own are 4, 11, 17, 23)."""

    kind: Literal["dense"] = "dense"
    output: Literal["depth", "points", "motion"] = "depth"
    decoder: QueryDecoderConfig | None = None
    """For motion: let the query in here. None, as in DePT3R: the backbone knows it already (``backbone.query``)."""
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
    """Frames at once on the way from tokens to the second finest level (bounds memory outside training)."""
    fine_chunk: int = 1
    """Frames at once from there to the image's size, where maps are large."""
    precision: Literal["full", "loop"] = "full"
    """``full``: float32 whatever the loop's precision is. ``loop``: follow it; faster, and less exact."""

    def build(self, *, token_width: int, rounds: int, patch_size: int) -> DenseHead:
        """Raises UserError where sizes do not fit each other."""
        chosen = spread_rounds(rounds) if self.rounds is None else self.rounds
        if len(chosen) != LEVELS or len(self.channels) != LEVELS:
            raise UserError(
                f"dense head: rounds {list(chosen)} and channels {list(self.channels)} must be {LEVELS} numbers each"
            )
        if any(width % 4 for width in (*self.channels, self.features // 2)) or self.features % 2:
            raise UserError(f"dense head: channels {list(self.channels)} and half of features must be multiples of 4")
        if self.decoder is not None and self.output != "motion":
            raise UserError(f"dense head: {self.output} does not depend on a query; remove decoder, or output: motion")
        decoder = None
        if self.decoder is not None:
            decoder = self.decoder.build(token_width=token_width, rounds=tuple(chosen))
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
            fine_chunk=self.fine_chunk,
            precision=self.precision,
            decoder=decoder,
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


def motion_maps(raw: Float[Tensor, "b f 5 h w"]) -> Prediction:
    """As `point_maps`, for one query time, and the logistic function for visibility."""
    motion = inverse_log(raw[:, :, :3]).movedim(2, -1)
    seen = raw[:, :, 4].sigmoid()
    return Prediction(
        motion=motion[:, None], motion_confidence=confidence(raw[:, :, 3])[:, None], motion_visible=seen[:, None]
    )


OUTPUTS: dict[str, tuple[int, bool, Callable[[Tensor], Prediction]]] = {
    "depth": (2, False, depth_maps),
    "points": (4, False, point_maps),
    "motion": (4, True, motion_maps),
}
"""Channels of the last layer, whether there is one for visibility beside it, and what becomes of both. Motion's last
layer is shaped like that of points, from which it may start."""


def axis_embedding(count: int, span: float, width: int, like: Tensor) -> Float[Tensor, "count width"]:
    """Sines, then cosines, of ``count`` cell centres that fill [-span, span]."""
    edge = span * (count - 1) / count
    position = torch.linspace(-edge, edge, count, device=like.device, dtype=torch.float64)
    frequency = EMBEDDING_BASE ** (-torch.arange(width // 2, device=like.device, dtype=torch.float64) / (width // 2))
    angle = position[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1).to(like.dtype)


def add_position(x: Float[Tensor, "n c h w"], aspect: float) -> Float[Tensor, "n c h w"]:
    """Add where each cell is in the image, whose width over height is ``aspect``; its diagonal is 2 long. In place."""
    channels, rows, columns = x.shape[1:]
    diagonal = math.hypot(aspect, 1)
    across = axis_embedding(columns, aspect / diagonal, channels // 2, x)
    down = axis_embedding(rows, 1 / diagonal, channels // 2, x)
    # Channels lie side by side in memory here, as in the maps.
    embedding = torch.cat([across.expand(rows, -1, -1), down[:, None].expand(-1, columns, -1)], dim=-1)
    return x.add_(embedding.permute(2, 0, 1), alpha=EMBEDDING_GAIN)


def resize(x: Float[Tensor, "n c h w"], size: tuple[int, int]) -> Float[Tensor, "n c p q"]:
    """Bilinear, corner pixels on corner pixels."""
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
    """A 3 × 3 convolution of `enlarge`, of which the backward pass keeps only ``x``: the large map is made again."""
    if torch.compiler.is_compiling():
        return convolution(enlarge(x, size, aspect))
    assert convolution.bias is not None
    weight, bias = convolution.weight.to(x.dtype), convolution.bias.to(x.dtype)
    return ConvolveEnlarged.apply(x, weight, bias, size, aspect)


class ConvolveEnlarged(torch.autograd.Function):
    """`convolve_enlarged`: with nothing but convolutions kept, training holds half of what it would."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401 - torch gives it no type
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        size: tuple[int, int],
        aspect: float | None,
    ) -> Tensor:
        """One pixel of zeros around."""
        ctx.save_for_backward(x, weight)
        ctx.enlarged = (size, aspect)
        return functional.conv2d(enlarge(x, size, aspect), weight, bias, padding=1)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        """The convolution's own, then the interpolation's."""
        x, weight = ctx.saved_tensors
        wanted = [bool(each) for each in ctx.needs_input_grad[:3]]
        large = enlarge(x, *ctx.enlarged)
        ones = [1, 1]
        grad_large, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad, large, weight, [weight.shape[0]], ones, ones, ones, False, [0, 0], 1, wanted
        )
        del large
        grad_x = None
        if wanted[0]:
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
    """Join a coarse map with the next finer level's."""

    def __init__(self, features: int, *, lateral: bool) -> None:
        super().__init__()
        self.lateral = ResidualUnit(features) if lateral else None
        self.unit = ResidualUnit(features)
        self.out_conv = nn.Conv2d(features, features, 1)

    def forward(
        self, coarse: Float[Tensor, "n c h w"] | None, level: Float[Tensor, "n c h w"]
    ) -> Float[Tensor, "n c h w"]:
        """Still to be enlarged; ``level`` is overwritten. Without lateral unit there is no ``coarse``."""
        x = level
        if self.lateral is not None:
            assert coarse is not None
            x = self.lateral(level).add_(coarse)
        # VGGT's 1 × 1 convolution comes after the interpolation. It commutes, and here it has a quarter of the pixels.
        return pointwise(self.unit(x), self.out_conv)


def pointwise(x: Float[Tensor, "n c h w"], convolution: nn.Conv2d) -> Float[Tensor, "n o h w"]:
    """A 1 × 1 convolution as what it is, a product; free of copies where channels lie side by side."""
    return linear(x.movedim(1, -1), convolution.weight.flatten(1), convolution.bias).movedim(-1, 1)


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
        fine_chunk: int = 1,
        precision: Literal["full", "loop"] = "full",
        positions: bool = True,
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

    def maps(self, tokens: Tokens) -> Float[Tensor, "b f o h w"]:
        """`decode` of every frame; ``chunk`` frames at once, which changes results only by rounding."""
        levels = [tokens.patches[tokens.rounds.index(index)] for index in self.rounds]
        b, f = levels[0].shape[:2]
        flat = [level.flatten(0, 1) for level in levels]
        with full_precision(flat[0].device) if self.precision == "full" else nullcontext():
            # A loop over the frame count would fix it in an exported program.
            if torch.compiler.is_exporting():
                return self.finish(self.coarse(flat[1:], tokens.grid), flat[0], tokens.grid).unflatten(0, (b, f))
            pieces = zip(*(level.split(self.chunk) for level in flat), strict=True)
            maps = [each for piece in pieces for each in self.decode(list(piece), tokens.grid)]
            return torch.cat(maps).unflatten(0, (b, f))

    def decode(self, levels: list[Float[Tensor, "n p c"]], grid: tuple[int, int]) -> Iterator[Float[Tensor, "m o h w"]]:
        """Feature maps, ``fine_chunk`` frames at once, from one token map per level, the finest first."""
        coarse = self.coarse(levels[1:], grid).split(self.fine_chunk)
        for piece, finest in zip(coarse, levels[0].split(self.fine_chunk), strict=True):
            yield self.finish(piece, finest, grid)

    def coarse(self, levels: list[Float[Tensor, "n p c"]], grid: tuple[int, int]) -> Float[Tensor, "n e h w"]:
        """All levels but the finest, fused, from the coarsest to the finest."""
        x = None
        for index in reversed(range(1, LEVELS)):
            x = self.join(index, x, levels[index - 1], grid)
        assert x is not None
        return x

    def join(
        self,
        index: int,
        coarse: Float[Tensor, "n e _h _w"] | None,
        tokens: Float[Tensor, "n p c"],
        grid: tuple[int, int],
    ) -> Float[Tensor, "n e h w"]:
        """Fuse a level with what is coarser."""
        level = self.level(index, tokens, grid)
        return self.fusions[index](None if coarse is None else resize(coarse, sides(level)), level)

    def level(self, index: int, tokens: Float[Tensor, "n p c"], grid: tuple[int, int]) -> Float[Tensor, "n e h w"]:
        """One level's tokens as an image of its own resolution: 4, 2, 1 and ½ of the grid."""
        laid = self.norm(tokens.to(full_type(tokens.dtype))).unflatten(1, grid).movedim(-1, 1)
        x = pointwise(laid, cast(nn.Conv2d, self.projects[index]))
        if self.positions:
            x = add_position(x, grid[1] / grid[0])
        return self.laterals[index](self.resizes[index](x))

    def finish(
        self, coarse: Float[Tensor, "n e _h _w"], finest: Float[Tensor, "n p c"], grid: tuple[int, int]
    ) -> Float[Tensor, "n o h w"]:
        """Feature maps at their own size, of the finest level's tokens and what is coarser."""
        return enlarge(self.narrowed(coarse, finest, grid), *self.frame(grid))

    def narrowed(
        self, coarse: Float[Tensor, "n e _h _w"], finest: Float[Tensor, "n p c"], grid: tuple[int, int]
    ) -> Float[Tensor, "n o h w"]:
        """The last fusion, at twice the finest level's size."""
        x = self.join(0, coarse, finest, grid)
        return convolve_enlarged(x, (2 * x.shape[-2], 2 * x.shape[-1]), None, self.narrow)

    def frame(self, grid: tuple[int, int]) -> tuple[tuple[int, int], float | None]:
        """Size of the feature maps, and the image's aspect if positions are to be added."""
        height, width = grid[0] * self.patch_size, grid[1] * self.patch_size
        return (height // self.down_ratio, width // self.down_ratio), width / height if self.positions else None


class DenseHead(DenseFeatures):
    """Sets depth, points or motion, with confidence, at the image's size. Always in full precision.

    Depth is exp(y), points and motion are sign(y)(exp|y| − 1), confidences 1 + exp(y). Motion is that to the first
    query time, with the probability of being seen then.
    """

    def __init__(
        self,
        *,
        output: Literal["depth", "points", "motion"],
        token_width: int,
        rounds: tuple[int, ...],
        channels: tuple[int, ...],
        features: int,
        last_features: int,
        patch_size: int,
        down_ratio: int = 1,
        chunk: int = 8,
        fine_chunk: int = 1,
        precision: Literal["full", "loop"] = "full",
        decoder: QueryDecoder | None = None,
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
            fine_chunk=fine_chunk,
            precision=precision,
        )
        last_width, sees, self.interpret = OUTPUTS[output]
        self.last = nn.Conv2d(features // 2, last_features, 3, padding=1)
        self.out = nn.Conv2d(last_features, last_width, 1)
        self.visible = nn.Conv2d(last_features, 1, 1) if sees else None
        self.decoder = decoder
        self.queried = output == "motion"

    def forward(self, tokens: Tokens, clip: Clip) -> Prediction:
        """Maps of every frame. UserError for a query time that is no frame's, where there is a decoder."""
        if self.decoder is not None:
            tokens = self.decoder(tokens, clip, asked(clip)[:, 0])
        raw = self.maps(tokens)
        with full_precision(raw.device):
            found = self.interpret(raw)
        return found if self.decoder is None else replace(found, match_logits=tokens.match_logits)

    def finish(
        self, coarse: Float[Tensor, "n e _h _w"], finest: Float[Tensor, "n p c"], grid: tuple[int, int]
    ) -> Float[Tensor, "n o h w"]:
        """Raw output channels at the image's size, of the finest level's tokens and what is coarser."""
        x = convolve_enlarged(self.narrowed(coarse, finest, grid), *self.frame(grid), self.last)
        x = functional.relu_(x)
        outputs = [pointwise(x, layer) for layer in (self.out, self.visible) if layer is not None]
        x = torch.cat(outputs, dim=1)
        return x if self.down_ratio == 1 else resize(x, (grid[0] * self.patch_size, grid[1] * self.patch_size))
