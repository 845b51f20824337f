"""DINOv2's image encoder: its authors' names and timm's, and a VGGT built around it."""

from __future__ import annotations

import re
from collections import Counter

import torch
from torch import Tensor

from four_d.backbones.alternating import AlternatingConfig
from four_d.backbones.patches import TimmPatchConfig
from four_d.errors import UserError
from four_d.heads.camera import CameraHeadConfig
from four_d.heads.dense import DenseHeadConfig
from four_d.model import ModelConfig
from four_d.weights.adapter import Adapter, Dropped, Fresh, Rule, State, same, under

OURS = "backbone.patches.encoder."
SIZES = {384: ("small", 12), 768: ("base", 12), 1024: ("large", 24)}
"""Width → name and depth of the encoders that timm has under DINOv2's name."""
HEAD_WIDTH = 64
REGISTERS = 4
"""Of the encoders with registers; there are none with another number."""

ENCODER = (
    Rule(theirs="register_tokens", ours="reg_token"),
    *same("reg_token", "cls_token", "pos_embed", "patch_embed.proj.{rest}", "blocks.{n}.{rest}", "norm.{rest}"),
)
"""Their names (the authors', and timm's where they differ) ↔ timm's, which are ours."""
UNUSED = Dropped(theirs="mask_token", reason="only pretraining hides patches")


def fold(state: State, prefix: str = "") -> dict[str, Tensor]:
    """Timm's encoders with registers keep the class token's position within the class token."""
    names = [f"{prefix}{name}" for name in ("register_tokens", "cls_token", "pos_embed")]
    if any(name not in state for name in names):
        return dict(state)
    _, token, position = names
    if state[position].ndim != 3 or state[token].shape != state[position][:, :1].shape:
        return dict(state)
    return {**state, token: state[token] + state[position][:, :1], position: state[position][:, 1:]}


def unfold(state: State, prefix: str = "") -> dict[str, Tensor]:
    """A class position of zeros, the token being where it belongs already; and a mask token, used by nobody."""
    token, position = f"{prefix}cls_token", f"{prefix}pos_embed"
    if token not in state:
        return dict(state)
    result = {**state, f"{prefix}mask_token": torch.zeros_like(state[token][:, 0])}
    if f"{prefix}register_tokens" in state:
        result[position] = torch.cat([torch.zeros_like(state[token]), state[position]], dim=1)
    return result


def encoder_rules(prefix: str) -> tuple[Rule, ...]:
    """`ENCODER` where it sits under ``prefix`` in their names."""
    return under(prefix, OURS, ENCODER)


ADAPTER = Adapter(
    rules=encoder_rules(""),
    dropped=(UNUSED,),
    fresh=tuple(
        Fresh(ours=name, reason="DINOv2 is an image encoder alone")
        for name in (
            "backbone.camera_token",
            "backbone.register_token",
            "backbone.frame_blocks.*",
            "backbone.global_blocks.*",
            "backbone.patches.project.*",
            "heads.*",
        )
    ),
    fold=fold,
    unfold=unfold,
)


def common(state: State, *places: tuple[str, int]) -> int | None:
    """The most frequent size at some places: tensors whose names match, and an axis. What is misshapen is outvoted."""
    sizes = Counter(
        value.shape[axis]
        for pattern, axis in places
        for name, value in state.items()
        if re.fullmatch(pattern, name) and axis < value.ndim
    )
    return sizes.most_common(1)[0][0] if sizes else None


def count(state: State, prefix: str) -> int:
    """Modules of a list: one more than its highest number."""
    numbers = [int(found[1]) for name in state if (found := re.match(rf"{re.escape(prefix)}(\d+)\.", name))]
    return max(numbers, default=-1) + 1


def infer_encoder(
    state: State, prefix: str = "", head_width: int = HEAD_WIDTH, *, registered: bool | None = None
) -> tuple[TimmPatchConfig, int, int]:
    """Config, patch size and width of the encoder under ``prefix``; ``registered``: it must have registers."""
    at = re.escape(prefix)
    width, depth = common(state, (rf"{at}blocks\.\d+\.norm[12]\.weight", 0)), count(state, f"{prefix}blocks.")
    if width is None:
        raise UserError(f"these weights have no {prefix}blocks.0.norm1.weight: no DINOv2 encoder; give other weights")
    patch = common(state, (rf"{at}patch_embed\.proj\.weight", 3)) or 14
    if registered is None:
        registered = f"{prefix}register_tokens" in state or f"{prefix}reg_token" in state
    cells = common(state, (rf"{at}pos_embed", 1)) or 1370
    side = patch * max(round(max(cells - (f"{prefix}reg_token" not in state), 0) ** 0.5), 1)
    return encoder_config(width, depth, side, registered=registered, heads=width // head_width), patch, width


def encoder_config(width: int, depth: int, side: int, *, registered: bool, heads: int) -> TimmPatchConfig:
    """Timm's encoder of these sizes; position embeddings of a square image of ``side`` pixels."""
    name, usual = SIZES.get(width, ("large", 0))
    model = f"vit_{name}_patch14{'_reg4' if registered else ''}_dinov2"
    if (depth, heads * HEAD_WIDTH) == (usual, width):
        return TimmPatchConfig(model=model, image_size=side)
    return TimmPatchConfig(model=model, image_size=side, depth=depth, embed_width=width, heads=heads)


def infer(state: State) -> ModelConfig:
    """VGGT's design around the encoder: as many rounds as it has blocks, of its width."""
    patches, patch_size, width = infer_encoder(state)
    rounds = count(state, "blocks.")
    dense = dense_rounds(rounds)
    return ModelConfig(
        backbone=AlternatingConfig(
            patches=patches, patch_size=patch_size, width=width, rounds=rounds, heads=max(width // HEAD_WIDTH, 1)
        ),
        heads={
            "camera": CameraHeadConfig(),
            "depth": DenseHeadConfig(rounds=dense),
            "points": DenseHeadConfig(output="points", rounds=dense),
        },
    )


def dense_rounds(rounds: int) -> tuple[int, ...] | None:
    """What VGGT-1B's dense heads read; None: evenly spaced."""
    return (4, 11, 17, 23) if rounds == 24 else None
