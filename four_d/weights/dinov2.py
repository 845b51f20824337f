"""DINOv2's image encoder, in its authors' names and timm's, and a VGGT built around it."""

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
from four_d.state_dicts.adapter import Adapter, Dropped, Fresh, Rule, State, same, under

ENCODER_PREFIX = "backbone.patches.encoder."
SIZES = {384: ("small", 12), 768: ("base", 12), 1024: ("large", 24)}
"""Width → name and depth of the encoders that timm has under DINOv2's name."""
HEAD_WIDTH = 64
REGISTERS = 4
"""Number of register tokens in timm's encoders that have any; others may have another number."""

ENCODER = (
    Rule(theirs="register_tokens", ours="reg_token"),
    *same("reg_token", "cls_token", "pos_embed", "patch_embed.proj.{rest}", "blocks.{n}.{rest}", "norm.{rest}"),
)
"""Rules from their names (the authors', and timm's where they differ) to timm's, which are ours."""
UNUSED = Dropped(theirs="mask_token", reason="only pretraining hides patches")


def fold(state: State, prefix: str = "") -> dict[str, Tensor]:
    """Add the class token's position to the class token, as in timm's encoders with registers."""
    names = [f"{prefix}{name}" for name in ("register_tokens", "cls_token", "pos_embed")]
    if any(name not in state for name in names):
        return dict(state)
    _, token, position = names
    if state[position].ndim != 3 or state[token].shape != state[position][:, :1].shape:
        return dict(state)
    return {**state, token: state[token] + state[position][:, :1], position: state[position][:, 1:]}


def unfold(state: State, prefix: str = "") -> dict[str, Tensor]:
    """Add a class position of zeros, since the token includes it, and an unused mask token."""
    token, position = f"{prefix}cls_token", f"{prefix}pos_embed"
    if token not in state:
        return dict(state)
    result = {**state, f"{prefix}mask_token": torch.zeros_like(state[token][:, 0])}
    if f"{prefix}register_tokens" in state:
        result[position] = torch.cat([torch.zeros_like(state[token]), state[position]], dim=1)
    return result


def encoder_rules(prefix: str) -> tuple[Rule, ...]:
    """Rules of `ENCODER` under ``prefix`` in their names."""
    return under(prefix, ENCODER_PREFIX, ENCODER)


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


def common(state: State, *locations: tuple[str, int]) -> int | None:
    """Most frequent size at some places (name pattern and axis), so that malformed tensors are outvoted."""
    sizes = Counter(
        value.shape[axis]
        for pattern, axis in locations
        for name, value in state.items()
        if re.fullmatch(pattern, name) and axis < value.ndim
    )
    return sizes.most_common(1)[0][0] if sizes else None


def count(state: State, prefix: str) -> int:
    """Number of modules in a list: one more than its highest index."""
    numbers = [int(match[1]) for name in state if (match := re.match(rf"{re.escape(prefix)}(\d+)\.", name))]
    return max(numbers, default=-1) + 1


def infer_encoder(
    state: State, prefix: str = "", head_width: int = HEAD_WIDTH, *, registers: int = 0
) -> tuple[TimmPatchConfig, int, int]:
    """Infer config, patch size and width of the encoder under ``prefix``; ``registers`` is their number where it has
    none.
    """
    at = re.escape(prefix)
    width, depth = common(state, (rf"{at}blocks\.\d+\.norm[12]\.weight", 0)), count(state, f"{prefix}blocks.")
    if width is None:
        raise UserError(
            f"these weights have no {prefix}blocks.0.norm1.weight: not a DINOv2 encoder; give other weights"
        )
    patch = common(state, (rf"{at}patch_embed\.proj\.weight", 3)) or 14
    stored_registers = common(state, (rf"{at}register_tokens", 1), (rf"{at}reg_token", 1))
    cells = common(state, (rf"{at}pos_embed", 1)) or 1370
    side = patch * max(round(max(cells - (f"{prefix}reg_token" not in state), 0) ** 0.5), 1)
    stored_registers = registers if stored_registers is None else stored_registers
    return encoder_config(width, depth, side, registers=stored_registers, heads=width // head_width), patch, width


def encoder_config(width: int, depth: int, side: int, *, registers: int, heads: int) -> TimmPatchConfig:
    """Config of timm's encoder of these sizes, with position embeddings of a square image of ``side`` pixels."""
    name, usual_depth = SIZES.get(width, ("large", 0))
    model = f"vit_{name}_patch14{'_reg4' if registers else ''}_dinov2"
    register_override = None if registers in (0, REGISTERS) else registers
    if (depth, heads * HEAD_WIDTH) == (usual_depth, width):
        return TimmPatchConfig(model=model, image_size=side, registers=register_override)
    return TimmPatchConfig(
        model=model, image_size=side, depth=depth, embed_width=width, heads=heads, registers=register_override
    )


def infer(state: State) -> ModelConfig:
    """Infer VGGT's design around the encoder: as many rounds as it has blocks, of its width."""
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
    """Rounds that VGGT-1B's dense heads read; None: evenly spaced."""
    return (4, 11, 17, 23) if rounds == 24 else None
