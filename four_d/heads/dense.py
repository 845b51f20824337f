"""Depth, points, motion or what moves, at the image's size.

All by convolutional fusion of several rounds' tokens (`DenseFeatures`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from four_d.errors import UserError
from four_d.heads.features import LEVELS, DenseFeatures, Level, convolve_enlarged, pointwise, resize, spread_rounds
from four_d.heads.query_decoder import QueryDecoderConfig
from four_d.layers import full_precision, full_type, inverse_log
from four_d.parts import DETAIL, EVERY_FRAME, FEATURES, QUERY, HeadSpec, Provision, TokenShape
from four_d.query import query_times
from four_d.types import Clip, Prediction, Tokens


@dataclass(frozen=True, kw_only=True)
class DenseHeadConfig(HeadSpec):
    """Sizes of a `DenseHead`; the defaults are VGGT-1B's, but for ``rounds`` (its own are 4, 11, 17, 23)."""

    kind: Literal["dense"] = "dense"
    output: Literal["depth", "points", "motion", "dynamic"] = "depth"
    """Field that the head predicts: z-depth, points in the first camera's coordinates, or each pixel's motion to the
    query times, with its visibility then, all with their confidence; or the probability that a pixel moves (ours; a
    head of kind ``dynamic`` gives the backbone's own mask, of whole patches)."""
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
    detail: bool = False
    """Fuse the encoder's finest map too, in the level of its stride (patches of kind ``features``; ours): outlines
    that tokens of whole patches blur."""
    chunk: int = 8
    """Frames decoded at once from tokens to the second finest level (bounds memory outside training)."""
    fine_chunk: int = 1
    """Frames decoded at once from there to the image's size, where maps are large."""
    precision: Literal["full", "loop"] = "full"
    """``full``: float32 whatever the loop's precision (with TF32 products on NVIDIA GPUs, unless that is fp32).
    ``loop``: follow the loop's precision; faster, less exact."""

    @property
    def provides(self) -> tuple[str, ...]:
        """Output maps with confidence; for motion also visibility, for what moves logits."""
        if self.output == "dynamic":
            return "dynamic", "dynamic_logits"
        visible = ("motion_visible", "motion_visible_logits") if self.queried else ()
        return self.output, f"{self.output}_confidence", *visible

    @property
    def requires(self) -> frozenset[Provision]:
        """Token rows of every frame; for motion without a decoder also tokens conditioned on the query time."""
        needs = {EVERY_FRAME, DETAIL} if self.detail else {EVERY_FRAME}
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
        return OUTPUTS[self.output].queried

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
        if self.decoder is not None and not self.queried:
            raise UserError(f"dense head: {self.output} does not depend on a query; remove decoder, or output: motion")
        return DenseHead(self, shape)


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


def mask_maps(raw: Float[Tensor, "b f 1 h w"]) -> Prediction:
    """Decode the mask of what moves by the logistic function."""
    return Prediction(dynamic=raw[:, :, 0].sigmoid(), dynamic_logits=raw[:, :, 0])


@dataclass(frozen=True)
class DenseOutput:
    """Reading of raw channels as a field of the prediction."""

    channels: int
    """Channels of the last layer. Motion's are as many as those of points, from which it may start."""
    decode: Callable[[Tensor], Prediction]
    """Fields from the last layer's channels, and that of visibility if there is one."""
    queried: bool = False
    """True if it answers a query time; a layer of visibility then stands beside the last one."""


OUTPUTS: dict[str, DenseOutput] = {
    "depth": DenseOutput(2, depth_maps),
    "points": DenseOutput(4, point_maps),
    "motion": DenseOutput(4, motion_maps, queried=True),
    "dynamic": DenseOutput(1, mask_maps),
}


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
            detail=(shape.detail, shape.detail_stride) if config.detail else None,
        )
        self.config = config
        output = OUTPUTS[config.output]
        self.last = nn.Conv2d(config.features // 2, config.last_features, 3, padding=1)
        self.out = nn.Conv2d(config.last_features, output.channels, 1)
        self.visible = nn.Conv2d(config.last_features, 1, 1) if output.queried else None
        self.decoder, self.decode_output = decoder, output.decode

    def forward(self, tokens: Tokens, clip: Clip) -> Prediction:
        """Predict maps of every frame. With a decoder, UserError for a query time that is no frame's."""
        if self.decoder is not None:
            tokens = self.decoder(tokens, clip, query_times(clip)[:, 0])
        raw = self.maps(tokens)
        with full_precision(raw.device):
            prediction = self.decode_output(raw.to(full_type(raw.dtype)))
        return prediction if self.decoder is None else replace(prediction, match_logits=tokens.match_logits)

    def finish(
        self, coarse: Float[Tensor, "n e _h _w"], finest: Level, grid: tuple[int, int]
    ) -> Float[Tensor, "n o h w"]:
        """Raw output channels at the image's size, from the finest level and the coarser levels' result."""
        x = convolve_enlarged(self.narrowed(coarse, finest, grid), *self.frame(grid), self.last)
        x = functional.relu_(x)
        outputs = [pointwise(x, layer) for layer in (self.out, self.visible) if layer is not None]
        x = torch.cat(outputs, dim=1)
        return x if self.down_ratio == 1 else resize(x, (grid[0] * self.patch_size, grid[1] * self.patch_size))
