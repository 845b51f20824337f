"""Figures of a demo that was run (`make demo`): its small model sees more than predictors that ignore the image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SUMMARY = Path(__file__).parents[1] / "runs" / "demo" / "summary.json"


@pytest.mark.demo
@pytest.mark.parametrize(
    ("name", "most"),
    # rotation is at 1 where the camera head says the same of every clip; 0.79 and 0.86 were measured
    [("pose_rot_pairs_deg", 0.92), ("depth_absrel_median_frame", 0.95)],
)
def test_the_demos_model_has_learnt(name: str, most: float) -> None:
    assert SUMMARY.is_file(), "make demo first"
    summary = json.loads(SUMMARY.read_text())
    assert summary[name] < most * summary["image_free"][name]
