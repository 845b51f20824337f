"""Keypoints that are asked for by name, in the images and in space (ours).

A query is a name, any name: a sum of hashed groups of letters stands for it, so names that share parts begin alike and
no vocabulary stands between data and model. With the box of its thing it is matched with every frame's patches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from four_d.abilities import Hint, Use
from four_d.constants import vector
from four_d.errors import UserError
from four_d.geometry import pixel_centres
from four_d.keypoints import NAME_BYTES, named
from four_d.layers import (
    AttentionBackend,
    Block,
    ContextAttention,
    Linear,
    Mlp,
    NameEmbedding,
    full_precision,
    full_type,
    inverse_log,
)
from four_d.parts import EVERY_FRAME, HeadSpec, Provision, TokenShape
from four_d.trajectories import asked_keypoints
from four_d.types import CERTAINTY, INTERNAL, LENGTH, NONE, PIXEL, POINT, Clip, Prediction, Tokens, truth

FREQUENCIES = 4
"""Octaves of the embedding of places in the image, whose side is 1."""
HIDDEN = -1e4
"""Attention logit that leaves padding a weight of exactly 0."""


def _true_points(clip: Clip) -> tuple[Tensor | None, Tensor | None]:
    truth = asked_keypoints(clip)
    return (None, None) if truth is None else (truth.points, truth.valid)


def _true_pixels(clip: Clip) -> tuple[Tensor | None, Tensor | None]:
    truth = asked_keypoints(clip)
    return (None, None) if truth is None else (truth.pixels, truth.pixels_valid)


@dataclass(frozen=True, kw_only=True)
class KeypointPrediction(Prediction):
    """Keypoints in the order of ``Clip.keypoint_names``; those of padding mean nothing."""

    keypoints: Float[Tensor, "*b f joints 3"] | None = field(default=None, metadata=POINT | truth(_true_points))
    """Positions at the frame's time, seen or not."""
    keypoint_pixels: Float[Tensor, "*b f joints 2"] | None = field(default=None, metadata=PIXEL | truth(_true_pixels))
    """(x, y) in the frame, seen or not."""
    keypoint_depth: Float[Tensor, "*b f joints"] | None = field(default=None, metadata=LENGTH)
    """z-depth in the frame's camera."""
    keypoint_visible: Float[Tensor, "*b f joints"] | None = field(default=None, metadata=NONE | CERTAINTY)
    """Probability that nothing hides the point and that it is inside the image."""
    keypoint_confidence: Float[Tensor, "*b f joints"] | None = field(default=None, metadata=NONE | CERTAINTY)
    """Probability that the pixel is right, to a fraction of the thing's size that the loss says."""
    keypoint_visible_logits: Float[Tensor, "*b f joints"] | None = field(default=None, metadata=NONE | INTERNAL)
    """Logits of ``keypoint_visible``, which a loss needs where the sigmoid saturates; so the next field."""
    keypoint_confidence_logits: Float[Tensor, "*b f joints"] | None = field(default=None, metadata=NONE | INTERNAL)
    keypoint_patch_logits: Float[Tensor, "*b f joints rows columns"] | None = field(
        default=None, metadata=NONE | INTERNAL
    )
    """Match of each patch, by which the pixel is their mean."""


@dataclass(frozen=True, kw_only=True)
class KeypointHeadConfig(HeadSpec):
    """Sizes of a `KeypointHead`. A clip says what to find: ``keypoint_names`` and, if they are known, their boxes."""

    kind: Literal["keypoints"] = "keypoints"
    width: int = 256
    """Channels of the head's tokens, a multiple of ``heads``."""
    depth: int = 3
    """Blocks, each over patches, over the keypoints of a frame, and over a keypoint's frames."""
    heads: int = 8
    """Attention heads of each block."""
    mlp_ratio: float = 4.0
    """Hidden channels of the blocks' perceptrons as a multiple of ``width``."""
    layer_scale: float | None = None
    """Initial factor of the blocks' residual branches; None leaves it out."""
    groups: int = 4096
    """Rows of the table of letter groups: with fewer, more groups share a row by chance."""
    attention: AttentionBackend = "sdpa"
    """Implementation of attention; results are equal (``model.backbone.attention``)."""

    @property
    def provides(self) -> tuple[str, ...]:
        """Positions in space and in the images, depth, visibility and confidence."""
        sure = ("keypoint_visible", "keypoint_confidence")
        logits = (*(f"{name}_logits" for name in sure), "keypoint_patch_logits")
        return "keypoints", "keypoint_pixels", "keypoint_depth", *sure, *logits

    @property
    def prediction(self) -> type[Prediction]:
        """Class with the fields of keypoints."""
        return KeypointPrediction

    @property
    def requires(self) -> frozenset[Provision]:
        """Token rows of every frame."""
        return frozenset({EVERY_FRAME})

    @property
    def takes(self) -> Mapping[Hint, Use]:
        """Boxes of the things whose keypoints are asked for."""
        return {"boxes": "optional"}

    def build(self, shape: TokenShape) -> KeypointHead:
        """Build the module. UserError where sizes do not fit each other."""
        if self.width % self.heads:
            raise UserError(f"keypoint head: {self.heads} heads do not divide width {self.width}; change one of them")
        if self.groups < 1:
            raise UserError(f"keypoint head: groups is {self.groups}; choose at least 1")
        return KeypointHead(self, shape)


class KeypointBlock(nn.Module):
    """Attention of every keypoint in every frame to the frame's patches, to its other keypoints, and over frames."""

    def __init__(self, config: KeypointHeadConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.look = ContextAttention(config.width, config.heads, config.attention)
        blocks = [
            Block(
                config.width,
                config.heads,
                mlp_ratio=config.mlp_ratio,
                layer_scale=config.layer_scale,
                backend=config.attention,
            )
            for _ in range(2)
        ]
        self.over_keypoints, self.over_frames = blocks

    def forward(
        self, x: Float[Tensor, "b f n c"], patches: Float[Tensor, "b f p c"], known: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "b f n c"]:
        """Apply the block; keypoints that are not ``known``, such as padding, are hidden from the others."""
        b, f = x.shape[:2]
        x = x + self.look(self.norm(x).flatten(0, 1), patches.flatten(0, 1)).unflatten(0, (b, f))
        x = self.over_keypoints(x.flatten(0, 1), None, hiding(known, x)).unflatten(0, (b, f))
        return self.over_frames(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (b, -1)).transpose(1, 2)


class KeypointHead(nn.Module):
    """Head of the fields of `KeypointPrediction`. Always in full precision; the order of names does not matter.

    A pixel is the mean of the patches' centres by how well they match, plus a step of about a patch. Positions in
    space pass VGGT's inverse logarithm, and depth an exponential. Without names nothing is set, but for training, where
    every part must have a gradient.
    """

    def __init__(self, config: KeypointHeadConfig, shape: TokenShape) -> None:
        super().__init__()
        self.config, self.rounds = config, (shape.rounds - 1,)
        width = config.width
        self.token_norm = nn.LayerNorm(shape.width)
        self.project = Linear(shape.width, width)
        self.place = Linear(4 * FREQUENCIES, width)
        self.patch_norm = nn.LayerNorm(width)
        self.name = NameEmbedding(config.groups, width)
        self.box = Mlp(8 * FREQUENCIES, width, width)
        self.blocks = nn.ModuleList(KeypointBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.match = Linear(width, width)
        self.read = Mlp(2 * width, width, width)
        self.step = Linear(width, 2)
        self.position = Linear(width, 3)
        self.depth = Linear(width, 1)
        self.visible = Linear(width, 1)
        self.confidence = Linear(width, 1)
        # at first near a unit before the first camera, where scenes are, and even odds
        for layer in (self.step, self.position, self.depth, self.visible, self.confidence):
            nn.init.normal_(layer.weight, std=1e-3)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.position.bias[2:], math.log(2))

    def forward(self, tokens: Tokens, clip: Clip) -> Prediction:
        """Find the clip's keypoints. UserError for names or boxes of another shape."""
        names = clip.keypoint_names
        if names is None or not names.shape[1]:
            if not self.training:
                return KeypointPrediction()
            names = torch.zeros(len(clip.images), 1, NAME_BYTES, dtype=torch.int64, device=clip.images.device)
            clip = replace(clip, keypoint_boxes=None)
        check_names(names, clip)
        patches = tokens.patches[tokens.rounds.index(self.rounds[0])]
        with full_precision(patches.device):
            return self.find(patches.to(full_type(patches.dtype)), tokens.grid, names, clip)

    def find(
        self,
        patches: Float[Tensor, "b f p c"],
        grid: tuple[int, int],
        names: Int[Tensor, "b n letters"],
        clip: Clip,
    ) -> KeypointPrediction:
        """Find keypoints among a frame's patches, in row-major order of ``grid`` (rows, columns)."""
        height, width = clip.images.shape[-2:]
        side = vector([grid[1], grid[0]], patches)
        centres = pixel_centres(*grid, patches).flatten(0, 1) / side
        patches = self.patch_norm(self.project(self.token_norm(patches)) + self.place(waves(centres)))
        size = vector([width, height], patches)
        x = self.queries(names, clip.keypoint_boxes, size)[:, None].expand(-1, patches.shape[1], -1, -1)
        for block in self.blocks:
            x = block(x, patches, named(names))
        x = self.norm(x)
        matches = self.match(x) @ patches.mT * patches.shape[-1] ** -0.5
        shares = matches.softmax(-1)
        x = x + self.read(torch.cat([x, shares @ patches], dim=-1))
        visible, confidence = self.visible(x)[..., 0], self.confidence(x)[..., 0]
        return KeypointPrediction(
            keypoints=inverse_log(self.position(x)),
            keypoint_pixels=(shares @ centres + self.step(x) / side) * size,
            keypoint_depth=self.depth(x)[..., 0].exp(),
            keypoint_visible=visible.sigmoid(),
            keypoint_confidence=confidence.sigmoid(),
            keypoint_visible_logits=visible,
            keypoint_confidence_logits=confidence,
            keypoint_patch_logits=matches.unflatten(-1, grid),
        )

    def queries(
        self, names: Int[Tensor, "b n letters"], boxes: Float[Tensor, "b n 2 2"] | None, size: Float[Tensor, "2"]
    ) -> Float[Tensor, "b n c"]:
        """Tokens of names and boxes; without a box that of the whole image, of ``size`` (width, height)."""
        embedded = self.name(names)
        whole = torch.stack([torch.zeros_like(size), size])
        corners = (whole.expand(*names.shape[:2], 2, 2) if boxes is None else boxes.to(size)) / size
        both = torch.cat([corners.mean(-2), corners.amax(-2) - corners.amin(-2)], dim=-1)
        return embedded + self.box(waves(both))


def check_names(names: Int[Tensor, "*b"], clip: Clip) -> None:
    """Raise UserError for names or boxes of another shape than a clip's batch needs."""
    b, boxes = len(clip.images), clip.keypoint_boxes
    if names.ndim != 3 or names.shape[0] != b or names.shape[2] != NAME_BYTES:
        raise UserError(
            f"keypoint_names are {tuple(names.shape)}; give ({b}, n, {NAME_BYTES}) bytes: keypoints.encode_names"
        )
    if boxes is not None and boxes.shape != (*names.shape[:2], 2, 2):
        raise UserError(
            f"keypoint_boxes are {tuple(boxes.shape)} for {names.shape[1]} names; give {(*names.shape[:2], 2, 2)} "
            "numbers: two corners (x, y) each, or none at all"
        )


def hiding(known: Bool[Tensor, "b n"], x: Float[Tensor, "b f n c"]) -> tuple[Tensor, Tensor]:
    """Bias (`layers.RankOne`, of b · f rows) that hides keypoints that are not known from the others of a frame."""
    keys = torch.where(known, 0.0, HIDDEN)[:, None].expand(-1, x.shape[1], -1).flatten(0, 1).to(x)
    return torch.ones_like(keys), keys


def waves(places: Float[Tensor, "*b k"]) -> Float[Tensor, "*b w"]:
    """Sines and cosines of each number at `FREQUENCIES` octaves, from half a turn over the image's side on."""
    octaves = torch.pi * 2.0 ** torch.arange(FREQUENCIES, device=places.device, dtype=places.dtype)
    angles = (places[..., None] * octaves).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
