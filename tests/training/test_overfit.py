"""The whole chain learns: on two clips depth and relative poses become ten times better."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from four_d.config import OptimiserConfig, RunConfig
from four_d.data.augment import NO_AUGMENT
from four_d.training import train
from tests.training.runs import make_data, validated


def overfitting(folder: Path) -> RunConfig:
    """Two box worlds, always the same six frames of two cameras."""
    data = make_data(folder / "data", range(2), frames=3, size=32)
    config = validated(
        data,
        folder,
        data={"image_size": [32, 32], "images_per_batch": 12, "clips_multiple": 2, "validation_frames": 6},
        model={
            "backbone": {
                "kind": "alternating",
                "patches": {"kind": "stem", "channels": [16, 32, 64]},
                "matching": {},
                "patch_size": 8,
                "width": 96,
                "rounds": 2,
                "heads": 4,
                "registers": 1,
                "layer_scale": 0.1,
                "special_std": 0.02,
            },
            "heads": {
                "camera": {
                    "kind": "camera",
                    "width": 96,
                    "depth": 1,
                    "heads": 4,
                    "layer_scale": 0.1,
                    "start": [0, 0, 0, 1, 0, 0, 0, 1, 1],
                },
                "depth": {
                    "kind": "dense",
                    "output": "depth",
                    "channels": [16, 24, 32, 32],
                    "features": 48,
                    "last_features": 32,
                    "down_ratio": 1,
                },
            },
        },
        losses={
            "camera": {"kind": "camera"},
            # every pixel counts in the figure, so none may be trimmed; and depth must not drown the camera's gradient
            "depth": {"kind": "depth", "weight": 0.5, "pixels": {"quantile": None}},
        },
        loop={"max_steps": 500, "epoch_steps": 250, "precision": "fp32", "accelerator": "cpu"},
        logging={"every": 50, "pictures": 2},
    )
    sampling = dataclasses.replace(config.data.sampling, min_frames=6, max_frames=6, one_camera_share=0.0)
    still = dataclasses.replace(config.data, sampling=sampling, augment=NO_AUGMENT)
    optimiser = OptimiserConfig(lr=3e-3, weight_decay=0.0, warmup_share=0.1)
    return dataclasses.replace(config, data=still, optimiser=optimiser)


@pytest.mark.slow
def test_two_clips_are_learnt(tmp_path: Path) -> None:
    config = overfitting(tmp_path)
    # before any step the first validation would come at step 0: one step at a negligible rate stands for it
    begin = dataclasses.replace(
        config,
        name="begin",
        optimiser=OptimiserConfig(lr=1e-9),
        loop=dataclasses.replace(config.loop, max_steps=1),
    )
    before, after = train(begin).validation, train(config).validation
    assert after["depth_absrel_median_frame"] < before["depth_absrel_median_frame"] / 10
    assert after["pose_rot_pairs_deg"] < before["pose_rot_pairs_deg"] / 10
