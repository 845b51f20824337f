"""Small runs for the tests of training."""

from __future__ import annotations

from pathlib import Path

from four_d.config import RunConfig, build
from four_d.data.shards import finalise, write_shard
from tests.helpers import box_clip


def make_data(folder: Path, seeds: range = range(4), frames: int = 6, size: int = 32) -> Path:
    """A data set of box worlds."""
    write_shard(folder, 0, [box_clip(seed, frames=frames, cameras=2, size=size) for seed in seeds], lossless=True)
    finalise(folder, "boxes")
    return folder


def tiny(shards: Path, folder: Path, **sections: dict[str, object]) -> RunConfig:
    """A model that steps in milliseconds; ``sections`` are merged into those of the config, one level deep."""
    plain: dict[str, dict[str, object]] = {
        "model": {
            "backbone": {
                "patches": {"kind": "conv"},
                "patch_size": 8,
                "width": 32,
                "rounds": 2,
                "heads": 2,
                "registers": 1,
            },
            "heads": {
                "camera": {"kind": "camera", "width": 32, "depth": 1, "heads": 2},
                "depth": {"kind": "dense", "output": "depth", "channels": [8, 8, 16, 16], "features": 16},
            },
        },
        "data": {
            "sources": {"boxes": {"path": str(shards)}},
            "image_size": [16, 16],
            "images_per_batch": 8,
            "sampling": {"min_frames": 2, "max_frames": 4},
        },
        "losses": {"camera": {"kind": "camera", "min_valid": 0}, "depth": {"kind": "depth"}},
        "optimiser": {"lr": 1e-3},
        "loop": {"max_steps": 6, "epoch_steps": 3, "precision": "fp32", "accelerator": "cpu"},
        "logging": {"every": 1, "pictures": 1},
    }
    merged = {name: {**plain.get(name, {}), **sections.get(name, {})} for name in {*plain, *sections}}
    return build(RunConfig, {"name": "test", "folder": str(folder), **merged}, "config")
