"""Synthetic multi-view video with exact ground truth: rooms of moving bodies, seen by several cameras."""

from __future__ import annotations

from data_prep.synthetic.clip import generate
from data_prep.synthetic.make import clip_seed, make
from data_prep.synthetic.settings import HELD_OUT_SEED, WorldSettings

__all__ = ["HELD_OUT_SEED", "WorldSettings", "clip_seed", "generate", "make"]
