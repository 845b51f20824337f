"""PAGE-4D's checkpoints: VGGT's names, and those of the mask head."""

from __future__ import annotations

import dataclasses

from four_d.backbones.dynamics import DynamicsConfig
from four_d.heads.dynamic import DynamicHeadConfig
from four_d.model import ModelConfig
from four_d.state_dicts.adapter import Fresh, Rule, State
from four_d.weights import vggt
from four_d.weights.dinov2 import common

MASK_HEAD = "aggregator.spatial_mask_head.head0."

ADAPTER = dataclasses.replace(
    vggt.ADAPTER,
    rules=(Rule(theirs=MASK_HEAD + "{rest}", ours="backbone.dynamics.head.{rest}"), *vggt.ADAPTER.rules),
    fresh=(
        Fresh(
            ours="backbone.dynamics.alpha",
            reason="the release does not store how far its mask was faded out, and evaluates with the mask fully on",
            value=1.0,
        ),
    ),
)


def mask_width(state: State) -> int | None:
    """Number of channels in the mask head; None if there is none."""
    at = MASK_HEAD.replace(".", r"\.")
    return common(state, (at + r"2\.\w+", 0), (at + r"4\.weight", 1))


def infer(state: State) -> ModelConfig:
    """Infer as `vggt.infer`, with the mask's released rounds if there is a mask head (one checkpoint has none)."""
    plain, hidden = vggt.infer(state), mask_width(state)
    if hidden is None:
        return plain
    backbone = dataclasses.replace(vggt.infer_backbone(state), dynamics=DynamicsConfig(hidden=hidden, hold=None))
    return ModelConfig(backbone=backbone, heads={**plain.heads, "dynamic": DynamicHeadConfig()})
