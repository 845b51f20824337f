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
from four_d.heads.query_decoder import QueryDecoderConfig
from four_d.layers import full_precision, full_type, linear
from four_d.parts import EVERY_FRAME, FEATURES, QUERY, HeadSpec, Provision, TokenShape
from four_d.query import query_times
from four_d.types import Clip, Prediction, Tokens

LEVELS = 4
EMBEDDING_GAIN = 0.1
EMBEDDING_BASE = 100.0


@dataclass(frozen=True, kw_only=True)
class DenseHeadConfig(HeadSpec):
    """Sizes of a `DenseHead`; the defaults are VGGT-1B's, but for ``rounds`` (its own are 4, 11, 17, 23)."""

    kind: Literal["dense"] = "dense"
    output: Literal["depth", "points", "motion"] = "depth"
    """Field that the head predicts, with its confidence: z-depth, points in the first camera's coordinates, or each
    pixel's motion to the query times, with its visibility then."""
    decoder: QueryDecoderConfig | None = None
    """Decoder that conditions motion on the query. None, as in DePT3R: the backbone does that (``backbone.query``)."""
    rounds: tuple[int, ...] | None = None
    """Four rounds of the backbone, fine to coarse; None: evenly spaced, the last one last."""
    channels: tuple[int, ...] = (256, 512, 1024, 1024)
    """Channels per level before fusion, each a multiple of 4."""
    features: int = 256
    """Channels of the fusion; half of it must be a multiple of 4."""
    last_features: int = 32
    """Channels of the last layer before the output, at full size: they cost the most memory. 32: VGGT's."""
    down_ratio: int = 1
    """Compute at 1 / down_ratio of the image's side, then upsample: cheaper, softer."""
    chunk: int = 8
    """Frames decoded at once from tokens to the second finest level (bounds memory outside training)."""
    fine_chunk: int = 1
    """Frames decoded at once from there to the image's size, where maps are large."""
    precision: Literal["full", "loop"] = "full"
    """``full``: float32 whatever the loop's precision (with TF32 products on NVIDIA GPUs, unless that is fp32).
    ``loop``: follow the loop's precision; faster, less exact."""

    @property
    def provides(self) -> tuple[str, ...]:
        """Output maps with confidence; for motion also visibility."""
        visible = ("motion_visible", "motion_visible_logits") if self.queried else ()
        return self.output, f"{self.output}_confidence", *visible

    @property
    def requires(self) -> frozenset[Provision]:
        """Token rows of every frame; for motion without a decoder also tokens conditioned on the query time."""
        needs = {EVERY_FRAME}
        if self.queried and self.decoder is None:
            decoder = "or 'model.heads.{name}.decoder={{}}'"
            needs |= {QUERY.otherwise(f"{QUERY.remedy}, {decoder}")}
        if self.decoder is not None and self.decoder.correlation is not None:
            same = "set 'model.heads.{name}.decoder.correlation=${{model.backbone.correlation}}'"
            needs |= {replace(FEATURES, remedy=same, detail=self.decoder.correlation)}
        return frozenset(needs)

    @property
    def excludes(self) -> frozenset[Provision]:
        """Conditioning on the query time, if the head's own decoder does it."""
        remedy = "set model.backbone.query=null, or model.heads.{name}.decoder=null"
        return frozenset() if self.decoder is None else frozenset({QUERY.otherwise(remedy)})

    @property
    def queried(self) -> bool:
        """True for motion."""
        return self.output == "motion"

    @property
    def answers_points(self) -> bool:
        """True for motion, from which points' tracks are read."""
        return self.queried

    def build(self, shape: TokenShape) -> DenseHead:
        """Build the module. UserError where sizes do not fit each other."""
        chosen = spread_rounds(shape.rounds) if self.rounds is None else self.rounds
        if len(chosen) != LEVELS or len(self.channels) != LEVELS:
            raise UserError(
                f"dense head: rounds {list(chosen)} and channels {list(self.channels)} must be {LEVELS} numbers each"
            )
        if any(width % 4 for width in (*self.channels, self.features // 2)) or self.features % 2:
            raise UserError(f"dense head: channels {list(self.channels)} and half of features must be multiples of 4")
        if self.decoder is not None and self.output != "motion":
            raise UserError(f"dense head: {self.output} does not depend on a query; remove decoder, or output: motion")
        return DenseHead(self, shape)


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
    """Decode depth by exp, and `confidence`."""
    return Prediction(depth=raw[:, :, 0].exp(), depth_confidence=confidence(raw[:, :, 1]))


def point_maps(raw: Float[Tensor, "b f 4 h w"]) -> Prediction:
    """Decode points by `inverse_log`, and `confidence`."""
    points = inverse_log(raw[:, :, :3]).movedim(2, -1)
    return Prediction(points=points, points_confidence=confidence(raw[:, :, 3]))


def motion_maps(raw: Float[Tensor, "b f 5 h w"]) -> Prediction:
    """Decode motion to one query time as `point_maps`, and visibility by the logistic function."""
    motion = inverse_log(raw[:, :, :3]).movedim(2, -1)
    logits = raw[:, None, :, 4]
    return Prediction(
        motion=motion[:, None],
        motion_confidence=confidence(raw[:, :, 3])[:, None],
        motion_visible=logits.sigmoid(),
        motion_visible_logits=logits,
    )


OUTPUTS: dict[str, tuple[int, bool, Callable[[Tensor], Prediction]]] = {
    "depth": (2, False, depth_maps),
    "points": (4, False, point_maps),
    "motion": (4, True, motion_maps),
}
"""Output → channels of the last layer, True if it has a visibility layer beside it, and the decoding of both. Motion's
last layer has the shape of that of points, from which it may start."""


def axis_embedding(count: int, span: float, width: int, like: Tensor) -> Float[Tensor, "count width"]:
    """Sines, then cosines, of ``count`` cell centres that fill [-span, span]."""
    edge = span * (count - 1) / count
    position = torch.linspace(-edge, edge, count, device=like.device, dtype=torch.float64)
    frequency = EMBEDDING_BASE ** (-torch.arange(width // 2, device=like.device, dtype=torch.float64) / (width // 2))
    angle = position[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1).to(like.dtype)


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


class DenseFeatures(nn.Module):
    """One feature map per frame from four rounds' tokens, at 1 / ``down_ratio`` of the image's size.

    ``positions``: add position embeddings to the maps. Always in full precision.
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
        """Decode every frame, ``chunk`` frames at once, which changes results only by rounding."""
        levels = [tokens.patches[tokens.rounds.index(index)] for index in self.rounds]
        b, f = levels[0].shape[:2]
        flat = [level.flatten(0, 1) for level in levels]
        with full_precision(flat[0].device) if self.precision == "full" else nullcontext():
            # A loop over the frames would fix their number in an exported program.
            if torch.compiler.is_exporting():
                return self.finish(self.coarse(flat[1:], tokens.grid), flat[0], tokens.grid).unflatten(0, (b, f))
            pieces = zip(*(level.split(self.chunk) for level in flat), strict=True)
            maps = [each for piece in pieces for each in self.decode(list(piece), tokens.grid)]
            return torch.cat(maps).unflatten(0, (b, f))

    def decode(self, levels: list[Float[Tensor, "n p c"]], grid: tuple[int, int]) -> Iterator[Float[Tensor, "m o h w"]]:
        """Yield feature maps, ``fine_chunk`` frames at once, from one token map per level, the finest first."""
        coarse = self.coarse(levels[1:], grid).split(self.fine_chunk)
        for piece, finest in zip(coarse, levels[0].split(self.fine_chunk), strict=True):
            yield self.finish(piece, finest, grid)

    def coarse(self, levels: list[Float[Tensor, "n p c"]], grid: tuple[int, int]) -> Float[Tensor, "n e h w"]:
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
        tokens: Float[Tensor, "n p c"],
        grid: tuple[int, int],
    ) -> Float[Tensor, "n e h w"]:
        """Fuse a level with the coarser levels' result."""
        level = self.level(index, tokens, grid)
        return self.fusions[index](None if coarse is None else resize(coarse, sides(level)), level)

    def level(self, index: int, tokens: Float[Tensor, "n p c"], grid: tuple[int, int]) -> Float[Tensor, "n e h w"]:
        """Reassemble one level's tokens as a map at 4, 2, 1 or ½ times the grid's resolution."""
        maps = self.norm(tokens.to(full_type(tokens.dtype))).unflatten(1, grid).movedim(-1, 1)
        x = pointwise(maps, cast(nn.Conv2d, self.projects[index]))
        if self.positions:
            x = add_position(x, grid[1] / grid[0])
        return self.laterals[index](self.resizes[index](x))

    def finish(
        self, coarse: Float[Tensor, "n e _h _w"], finest: Float[Tensor, "n p c"], grid: tuple[int, int]
    ) -> Float[Tensor, "n o h w"]:
        """Finish feature maps from the finest level's tokens and the coarser levels' result."""
        return enlarge(self.narrowed(coarse, finest, grid), *self.frame(grid))

    def narrowed(
        self, coarse: Float[Tensor, "n e _h _w"], finest: Float[Tensor, "n p c"], grid: tuple[int, int]
    ) -> Float[Tensor, "n o h w"]:
        """Output of the last fusion, at twice the finest level's size."""
        x = self.join(0, coarse, finest, grid)
        return convolve_enlarged(x, (2 * x.shape[-2], 2 * x.shape[-1]), None, self.narrow)

    def frame(self, grid: tuple[int, int]) -> tuple[tuple[int, int], float | None]:
        """Size of the feature maps, and the image's aspect if positions are to be added."""
        height, width = grid[0] * self.patch_size, grid[1] * self.patch_size
        return (height // self.down_ratio, width // self.down_ratio), width / height if self.positions else None


class DenseHead(DenseFeatures):
    """Head of depth, points or motion, with confidence, at the image's size. Always in full precision.

    Depth is exp(y), points and motion are sign(y)(exp|y| − 1), confidences 1 + exp(y). Motion is to the first query
    time, with the probability of being visible then.
    """

    def __init__(self, config: DenseHeadConfig, shape: TokenShape) -> None:
        rounds = spread_rounds(shape.rounds) if config.rounds is None else config.rounds
        # before the rest, to keep a seed's weights
        decoder = None if config.decoder is None else config.decoder.build(token_width=shape.width, rounds=rounds)
        super().__init__(
            token_width=shape.width,
            rounds=rounds,
            channels=config.channels,
            features=config.features,
            out_features=config.features // 2,
            patch_size=shape.patch_size,
            down_ratio=config.down_ratio,
            chunk=config.chunk,
            fine_chunk=config.fine_chunk,
            precision=config.precision,
        )
        self.config = config
        last_width, predicts_visibility, self.interpret = OUTPUTS[config.output]
        self.last = nn.Conv2d(config.features // 2, config.last_features, 3, padding=1)
        self.out = nn.Conv2d(config.last_features, last_width, 1)
        self.visible = nn.Conv2d(config.last_features, 1, 1) if predicts_visibility else None
        self.decoder = decoder

    def forward(self, tokens: Tokens, clip: Clip) -> Prediction:
        """Predict maps of every frame. With a decoder, UserError for a query time that is no frame's."""
        if self.decoder is not None:
            tokens = self.decoder(tokens, clip, query_times(clip)[:, 0])
        raw = self.maps(tokens)
        with full_precision(raw.device):
            prediction = self.interpret(raw.to(full_type(raw.dtype)))
        return prediction if self.decoder is None else replace(prediction, match_logits=tokens.match_logits)

    def finish(
        self, coarse: Float[Tensor, "n e _h _w"], finest: Float[Tensor, "n p c"], grid: tuple[int, int]
    ) -> Float[Tensor, "n o h w"]:
        """Raw output channels at the image's size, from the finest level's tokens and the coarser levels' result."""
        x = convolve_enlarged(self.narrowed(coarse, finest, grid), *self.frame(grid), self.last)
        x = functional.relu_(x)
        outputs = [pointwise(x, layer) for layer in (self.out, self.visible) if layer is not None]
        x = torch.cat(outputs, dim=1)
        return x if self.down_ratio == 1 else resize(x, (grid[0] * self.patch_size, grid[1] * self.patch_size))
