"""Known cameras, depth and masks help: after a short training, giving the truth does not raise the error."""

from __future__ import annotations

from pathlib import Path

import pytest

from four_d import load
from four_d.abilities import Hint
from four_d.data.sampling import collate, normalise, to_clip, to_example
from four_d.evaluation import evaluate
from four_d.training import train
from four_d.types import Example
from tests.helpers import box_clip
from tests.training.runs import make_data, tiny

HELPED: dict[Hint, tuple[str, float]] = {
    "intrinsics": ("depth_absrel_none_clip", 1.02),
    "poses": ("pose_rot_pairs_deg", 1.0),
    "depth": ("depth_absrel_median_frame", 0.7),
    "masks": ("depth_absrel_median_frame", 1.02),
}
"""Hint → the figure that it is about, and the most that its error may be, as a share of the error without."""


def videos(hints: tuple[Hint, ...]) -> list[Example]:
    """Worlds that were not trained on."""
    clips = [normalise(to_clip(box_clip(seed, frames=2, cameras=2, size=32))) for seed in range(40, 52)]
    return [collate([to_example(clip, str(place), hints)]) for place, clip in enumerate(clips)]


@pytest.mark.slow
def test_giving_the_truth_does_not_raise_the_error(tmp_path: Path) -> None:
    config = tiny(
        make_data(tmp_path / "data", range(24), frames=3, size=32),
        tmp_path,
        model={
            "backbone": {
                "kind": "alternating",
                "patches": {"kind": "stem", "channels": [16, 32, 64]},
                "hints": {**dict.fromkeys(HELPED, "optional")},
                "patch_size": 8,
                "width": 96,
                "rounds": 2,
                "heads": 4,
                "registers": 1,
                "layer_scale": 0.1,
                "special_std": 0.02,
            },
            "heads": {
                "camera": {"kind": "camera", "width": 96, "depth": 1, "heads": 4, "start": [0, 0, 0, 1, 0, 0, 0, 1, 1]},
                "depth": {"kind": "dense", "output": "depth", "channels": [16, 24, 32, 32], "features": 32},
            },
        },
        data={
            "sources": {"boxes": {"path": str(tmp_path / "data")}},
            "image_size": [32, 32],
            "images_per_batch": 16,
            "sampling": {"min_frames": 4, "max_frames": 4},
            "hints": dict.fromkeys(HELPED, 0.4),
        },
        losses={"camera": {"kind": "camera"}, "depth": {"kind": "depth", "weight": 0.5}},
        optimiser={"lr": 2e-3},
        loop={"max_steps": 600, "epoch_steps": 600, "precision": "fp32", "accelerator": "cpu"},
        logging={"every": 100, "pictures": 0},
    )
    assert train(config).exit_code == 0
    model = load(config.run_folder)
    without = evaluate(model, videos(()), predictors={}).rows["model"]
    for hint, (metric, most) in HELPED.items():
        given = evaluate(model, videos((hint,)), predictors={}).rows["model"]
        assert given[metric].mean <= most * without[metric].mean, hint
