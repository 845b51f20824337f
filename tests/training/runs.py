"""Small runs for the tests of training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from four_d.config import RunConfig
from four_d.data.loading import Step
from four_d.data.shards import finalise, write_shard
from four_d.schema import Plain, build, to_plain
from four_d.training.module import TrainingModule
from tests.helpers import box_clip

TRACKS: Plain = {
    "channels": (8, 8, 8, 8),
    "features": 8,
    "levels": 2,
    "radius": 1,
    "hidden": 16,
    "depth": 1,
    "heads": 2,
    "virtual": 2,
    "iterations": 2,
    "grid": (3, 3),
}
"""Sizes of the smallest track head."""


def make_data(folder: Path, seeds: range = range(4), frames: int = 6, size: int = 32, bare: int | None = None) -> Path:
    """A data set of box worlds; clip ``bare`` has only images."""
    clips = [box_clip(seed, frames=frames, cameras=2, size=size) for seed in seeds]
    if bare is not None:
        clips[bare] = dataclasses.replace(clips[bare], world_from_camera=None, intrinsics=None, surface=None)
    write_shard(folder, 0, clips, lossless=True)
    finalise(folder, "boxes")
    return folder


def tiny(shards: Path, folder: Path, features: int = 16, **sections: object) -> RunConfig:
    """A model that steps in milliseconds; ``sections`` are merged into those of the config, one level deep."""
    plain: dict[str, dict[str, object]] = {
        "model": {
            "backbone": {
                "kind": "alternating",
                "patches": {"kind": "conv"},
                "patch_size": 8,
                "width": 32,
                "rounds": 2,
                "heads": 2,
                "registers": 1,
            },
            "heads": {
                "camera": {"kind": "camera", "width": 32, "depth": 1, "heads": 2},
                "depth": {"kind": "dense", "output": "depth", "channels": [8, 8, 16, 16], "features": features},
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
    scalars = {name: value for name, value in sections.items() if not isinstance(value, dict)}
    nested = {name: value for name, value in sections.items() if isinstance(value, dict)}
    merged = {name: {**plain.get(name, {}), **nested.get(name, {})} for name in {*plain, *nested}}
    return build(RunConfig, {"name": "test", "folder": str(folder), **merged, **scalars}, "config")


def with_more_heads(shards: Path, folder: Path, **sections: object) -> RunConfig:
    """`tiny` with heads that no loss teaches: as ``vggt overlays/large``, which has VGGT's track head."""
    points = {"kind": "dense", "output": "points", "channels": [8, 8, 16, 16], "features": 16}
    more = {"points": points, "track": {"kind": "track", **TRACKS, "grid": None}}
    model = to_plain(tiny(shards, folder).model)
    return tiny(shards, folder, model={"heads": {**cast(Plain, model["heads"]), **more}}, **sections)


def validated(shards: Path, folder: Path, data: dict[str, object] | None = None, **sections: object) -> RunConfig:
    """`tiny` with two validation clips."""
    held_out = {"validation": {"boxes": {"path": str(shards)}}, "validation_frames": 3, "validation_clips": 2}
    return tiny(shards, folder, data={**held_out, **(data or {})}, **sections)


def last(config: RunConfig) -> dict[str, Any]:
    """The last checkpoint of a run."""
    return torch.load(config.run_folder / "checkpoints/last.ckpt", weights_only=True)


def crash(monkeypatch: pytest.MonkeyPatch, step: int, start: Callable[[], object]) -> None:
    """Start a run that breaks off as it begins the step of this number."""
    whole = TrainingModule.training_step

    def failing(self: TrainingModule, batch: Step, number: int) -> object:
        if self.step == step:
            raise RuntimeError("the machine burns down")
        return whole(self, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", failing)
        with pytest.raises(RuntimeError, match="burns down"):
            start()


def assert_same(left: object, right: object) -> None:
    """Equal to the bit, however nested."""
    if isinstance(left, torch.Tensor):
        assert isinstance(right, torch.Tensor)
        assert torch.equal(left, right)
    elif isinstance(left, Mapping):
        assert isinstance(right, Mapping)
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert isinstance(right, list | tuple)
        assert len(left) == len(right)
        for a, b in zip(left, right):
            assert_same(a, b)
    else:
        assert left == right


def assert_same_end(one: RunConfig, other: RunConfig) -> None:
    """Two runs ended with the same weights, averages and optimiser, to the bit."""
    left, right = last(one), last(other)
    for key in ("state_dict", "optimizer_states"):
        assert_same(left[key], right[key])
    assert_same(left["run"]["trained"], right["run"]["trained"])
