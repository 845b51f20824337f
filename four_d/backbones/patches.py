"""Patch embeddings, one frame at a time: a convolution, a small stem, or any timm vision transformer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from four_d.errors import UserError
from four_d.layers import Linear


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
    """Local weight file; nothing is ever downloaded."""
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
        """Build the module. UserError if there is no such model or no such file."""
        import timm  # imported here because it is slow and needs torchvision

        if not timm.is_model(self.model):
            raise UserError(f"timm has no model {self.model!r}; `timm.list_models('vit*')` lists them")
        if self.pretrained is not None and not Path(self.pretrained).is_file():
            raise UserError(f"pretrained: no file {self.pretrained}; give the path of a downloaded weight file")
        encoder = timm.create_model(
            self.model,
            pretrained=self.pretrained is not None,
            pretrained_cfg_overlay=None if self.pretrained is None else {"file": self.pretrained},
            num_classes=0,
            patch_size=patch_size,
            dynamic_img_size=True,
            **self._overrides(),
        )
        return TimmPatches(encoder, width)

    def _overrides(self) -> dict[str, Any]:
        sizes = {
            "img_size": self.image_size,
            "depth": self.depth,
            "embed_dim": self.embed_width,
            "num_heads": self.heads,
            "reg_tokens": self.registers,
        }
        return {name: value for name, value in sizes.items() if value is not None}


PatchConfig = ConvPatchConfig | StemPatchConfig | TimmPatchConfig


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
        x = images
        for convolution in self.stem:
            x = nn.functional.gelu(convolution(x))
        return self.proj(x).flatten(2).mT


class TimmPatches(nn.Module):
    """Patch tokens after a timm transformer's last norm.

    Attributes:
        checkpointing: recompute its blocks in the backward pass.

    """

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        for module in [*encoder.modules()]:
            for name, child in module.named_children():
                if type(child) is nn.Linear:
                    setattr(module, name, Linear.like(child))
        self.encoder = encoder
        self.checkpointing = False
        inner = cast(int, encoder.num_features)
        self.dropped = cast(int, encoder.num_prefix_tokens)
        self.project = nn.Identity() if inner == width else Linear(inner, width)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n p c"]:
        """Embed the patches, in row-major order."""
        recompute = self.checkpointing and self.training and torch.is_grad_enabled()
        self.encoder.set_grad_checkpointing(recompute)  # pyright: ignore[reportCallIssue]
        tokens = self.encoder.forward_features(images)  # pyright: ignore[reportCallIssue]
        return self.project(tokens[:, self.dropped :])
