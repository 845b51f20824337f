"""Patch embeddings, one frame at a time: a convolution, a small stem, any timm vision transformer, or the maps of an
encoder with published weights. All take RGB in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from four_d.constants import vector
from four_d.encoders import Encoder, EncoderConfig, create, read_pretrained
from four_d.errors import UserError
from four_d.layers import Linear

IMAGE_MEAN = (0.485, 0.456, 0.406)
"""ImageNet's mean, RGB."""
IMAGE_STD = (0.229, 0.224, 0.225)
"""ImageNet's standard deviation, RGB."""


def normalise_images(images: Float[Tensor, "*b 3 h w"]) -> Float[Tensor, "*b 3 h w"]:
    """Normalise RGB in [0, 1] by ImageNet's mean and standard deviation."""
    mean = vector(IMAGE_MEAN, images)[:, None, None]
    std = vector(IMAGE_STD, images)[:, None, None]
    return (images - mean) / std


def patch_grid(images: Float[Tensor, "*b k h w"], size: int) -> tuple[int, int]:
    """Rows and columns of patches. UserError if images are not RGB or their sides no multiples of ``size``."""
    channels, height, width = images.shape[-3:]
    if channels != 3:
        raise UserError(f"images have {channels} channels, the model takes RGB; convert them (and drop any alpha)")
    if height % size or width % size:
        near = (max(round(height / size), 1) * size, max(round(width / size), 1) * size)
        raise UserError(
            f"images are {height} × {width} (height × width), not multiples of the model's patch size {size}; "
            f"resize or crop them to {near[0]} × {near[1]}"
        )
    return height // size, width // size


@dataclass(frozen=True, kw_only=True)
class ConvPatchConfig:
    """One convolution whose stride is its kernel, as in VGGT's ``conv`` variant."""

    kind: Literal["conv"] = "conv"
    image_size: ClassVar[None] = None

    def build(self, patch_size: int, width: int) -> nn.Module:
        """Build the module, with ``width`` channels per patch."""
        return ConvPatches([width], patch_size)


@dataclass(frozen=True, kw_only=True)
class StemPatchConfig:
    """Stem of overlapping 3 × 3 convolutions, then one for the rest of the stride: learns faster from scratch.

    After "Early convolutions help transformers see better" (arXiv 2106.14881), without its normalisation.
    """

    kind: Literal["stem"] = "stem"
    channels: tuple[int, ...] = (32, 64, 128)
    """Channels of the 3 × 3 convolutions, each of which halves the resolution."""
    image_size: ClassVar[None] = None

    def build(self, patch_size: int, width: int) -> nn.Module:
        """Build the module. UserError if the halvings do not divide the patch size."""
        if patch_size % 2 ** len(self.channels):
            raise UserError(
                f"stem channels {list(self.channels)} halve {len(self.channels)} times, which does not divide "
                f"patch_size {patch_size}; give fewer channels"
            )
        return ConvPatches([*self.channels, width], patch_size)


@dataclass(frozen=True, kw_only=True)
class TimmPatchConfig:
    """Timm vision transformer over each frame; class and register tokens are dropped, and a projection is added if its
    width differs from the backbone's.
    """

    kind: Literal["timm"] = "timm"
    model: str = "vit_large_patch14_reg4_dinov2"
    """Name of a model in timm's list; the default is the DINOv2 that VGGT starts from."""
    pretrained: str | None = None
    """Weights that training begins with: a file, or ``timm``, which downloads them (`encoders.EncoderConfig`)."""
    image_size: int | None = None
    """Image side of the stored position embeddings, which are resampled for others. None: the model's own."""
    depth: int | None = None
    """Number of blocks; None: the named model's."""
    embed_width: int | None = None
    """Channels; None: the named model's."""
    heads: int | None = None
    """Attention heads, which must divide the channels; None: the named model's."""
    registers: int | None = None
    """Register tokens, only for a model that has some; None: the named model's."""

    def build(self, patch_size: int, width: int) -> nn.Module:
        """Build the module, with random weights. UserError if there is no such model."""
        return TimmPatches(self, patch_size, width)

    def options(self, patch_size: int) -> dict[str, Any]:
        """Options of the network."""
        return {"patch_size": patch_size, "dynamic_img_size": True, **self._overrides()}

    def _overrides(self) -> dict[str, Any]:
        sizes = {
            "img_size": self.image_size,
            "depth": self.depth,
            "embed_dim": self.embed_width,
            "num_heads": self.heads,
            "reg_tokens": self.registers,
        }
        return {name: value for name, value in sizes.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class FeaturePatchConfig:
    """Maps of an encoder with published weights, of several strides, projected to one token per patch (ours)."""

    kind: Literal["features"] = "features"
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Network, maps and weights. Each stride divides the patch size, or is a multiple of it."""
    image_size: ClassVar[None] = None

    def build(self, patch_size: int, width: int) -> FeaturePatches:
        """Build the module. UserError if there is no such encoder, or a stride does not fit the patch size."""
        for stride in self.encoder.strides:
            if patch_size % stride and stride % patch_size:
                raise UserError(
                    f"encoder.strides is {list(self.encoder.strides)}, and {stride} neither divides patch_size "
                    f"{patch_size} nor is a multiple of it; change either"
                )
        return FeaturePatches(self, patch_size, width)


PatchConfig = ConvPatchConfig | StemPatchConfig | TimmPatchConfig | FeaturePatchConfig


class ConvPatches(nn.Module):
    """Convolutions with GELU in between; all but the last halve the resolution, the last does the rest."""

    def __init__(self, channels: list[int], patch_size: int) -> None:
        super().__init__()
        self.stem = nn.ModuleList(
            nn.Conv2d(c_in, c_out, 3, stride=2, padding=1) for c_in, c_out in pairwise([3, *channels[:-1]])
        )
        last_stride = patch_size // 2 ** len(self.stem)
        self.proj = nn.Conv2d([3, *channels][-2], channels[-1], last_stride, stride=last_stride)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n p c"]:
        """Embed the patches, in row-major order."""
        x = normalise_images(images)
        for convolution in self.stem:
            x = nn.functional.gelu(convolution(x))
        return self.proj(x).flatten(2).mT


class TimmPatches(nn.Module):
    """Patch tokens after a timm transformer's last norm.

    Attributes:
        checkpointing: recompute its blocks in the backward pass.

    """

    def __init__(self, config: TimmPatchConfig, patch_size: int, width: int) -> None:
        super().__init__()
        self.config, self.patch_size = config, patch_size
        encoder = create(config.model, **config.options(patch_size))
        for module in [*encoder.modules()]:
            for name, child in module.named_children():
                if type(child) is nn.Linear:
                    setattr(module, name, Linear.like(child))
        self.encoder = encoder
        self.checkpointing = False
        inner = cast(int, encoder.num_features)
        self.dropped = cast(int, encoder.num_prefix_tokens)
        self.project = nn.Identity() if inner == width else Linear(inner, width)

    @property
    def blocks(self) -> list[nn.Module]:
        """Transformer blocks of the encoder; none where timm builds it otherwise."""
        return list(getattr(self.encoder, "blocks", nn.Identity()).children())

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n p c"]:
        """Embed the patches, in row-major order."""
        recompute = self.checkpointing and self.training and torch.is_grad_enabled()
        self.encoder.set_grad_checkpointing(recompute)  # pyright: ignore[reportCallIssue]
        tokens = self.encoder.forward_features(normalise_images(images))  # pyright: ignore[reportCallIssue]
        return self.project(tokens[:, self.dropped :])

    def load_pretrained(self) -> dict[str, str]:
        """Load the weights that the config names; see `parts.Pretrained`."""
        if self.config.pretrained is None:
            return {}
        found = read_pretrained(self.config.model, self.config.pretrained, **self.config.options(self.patch_size))
        self.encoder.load_state_dict(found.weights)
        return {found.source: found.licence}


class FeaturePatches(nn.Module):
    """One token per patch from an encoder's maps: each normalised per pixel, then projected; the sum.

    Of a finer map, a patch has several pixels; a coarser one is interpolated.
    """

    def __init__(self, config: FeaturePatchConfig, patch_size: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.encoder = Encoder(config.encoder)
        self.channels = config.encoder.channels
        """Channels of each map by stride."""
        # what comes from elsewhere has ranges of its own, and no gradient changes those of frozen maps
        self.norms = nn.ModuleDict({str(stride): nn.LayerNorm(count) for stride, count in self.channels.items()})
        per_patch = [count * max(patch_size // stride, 1) ** 2 for stride, count in self.channels.items()]
        self.project = Linear(sum(per_patch), width)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n p c"]:
        """Embed the patches, in row-major order."""
        return self.embed(self.maps(images), patch_grid(images, self.patch_size))

    def maps(self, images: Float[Tensor, "n 3 h w"]) -> dict[int, Float[Tensor, "n _c _y _x"]]:
        """Compute the encoder's maps by stride, each pixel's channels normalised."""
        found = self.encoder(images)
        return {stride: self.norms[str(stride)](each.movedim(1, -1)).movedim(-1, 1) for stride, each in found.items()}

    def embed(self, maps: dict[int, Float[Tensor, "n _c _y _x"]], grid: tuple[int, int]) -> Float[Tensor, "n p c"]:
        """Project maps to tokens of a grid of patches."""
        found = [self._on_grid(each, stride, grid) for stride, each in maps.items()]
        return self.project(torch.cat(found, dim=1).flatten(2).mT)

    def _on_grid(
        self, found: Float[Tensor, "n c _y _x"], stride: int, grid: tuple[int, int]
    ) -> Float[Tensor, "n _d rows columns"]:
        if stride <= self.patch_size:
            return functional.pixel_unshuffle(found, self.patch_size // stride)
        # An encoder pads images to whole pixels of its coarsest map, at the right and at the bottom.
        large = functional.interpolate(found, scale_factor=stride // self.patch_size, mode="bilinear")
        return large[:, :, : grid[0], : grid[1]]
