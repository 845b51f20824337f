"""The models in `checkpoints/`: whole, small, documented, and good for a video without any download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from four_d import checkpoints, load

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "checkpoints"
MODELS = checkpoints.references(FOLDER)
MOST_BYTES, MOST_BYTES_TOGETHER = 14e6, 30e6


def test_there_is_one_and_together_they_are_small() -> None:
    assert MODELS
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= MOST_BYTES_TOGETHER


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_it_is_whole_small_and_documented(model: checkpoints.Reference) -> None:
    folder = FOLDER / model.name
    weights = folder / checkpoints.WEIGHTS
    assert weights.stat().st_size == model.bytes <= MOST_BYTES
    assert checkpoints.sha256_of(weights) == model.sha256
    info = checkpoints.read(folder).info
    assert info.scores
    assert info.trained_on
    card = (folder / checkpoints.CARD).read_text()
    for word in ("Scores", "Training", "Licence", "four-d finetune"):
        assert word in card


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_it_sees_a_real_video(model: checkpoints.Reference) -> None:
    result = load(FOLDER / model.name)(ROOT / "tests/data/bikes.mp4")
    assert result.depth is not None
    assert result.cameras is not None
    near, far = np.quantile(result.depth.numpy(), (0.05, 0.95))
    assert 0 < near < far / 1.2, "a real street is not one plane"
    moving = result.prediction.dynamic
    assert moving is None or 0 <= float(moving.min()) < float(moving.max()) <= 1
    assert (result.tracks is None) == ("motion" not in checkpoints.read(FOLDER / model.name).info.model.heads)
