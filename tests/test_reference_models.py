"""The models in `checkpoints/`: whole, small, documented, and good for a video without any download."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from four_d import checkpoints, cli, config, load
from four_d.evaluation import EvaluationConfig, run
from four_d.training.module import TrainingModule

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "checkpoints"
MODELS = checkpoints.references(FOLDER)
MOST_BYTES, MOST_BYTES_TOGETHER = 25e6, 45e6


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


UNPOSED = [model for model in MODELS if model.name != "dgs_lrm-base"]


@pytest.mark.parametrize("model", UNPOSED, ids=lambda model: model.name)
def test_it_sees_a_real_video(model: checkpoints.Reference) -> None:
    result = load(FOLDER / model.name)(ROOT / "tests/data/bikes.mp4")
    assert result.depth is not None
    assert result.cameras is not None
    near, far = np.quantile(result.depth.numpy(), (0.05, 0.95))
    assert 0 < near < far / 1.2, "a real street is not one plane"
    moving = result.prediction.dynamic
    assert moving is None or 0 <= float(moving.min()) < float(moving.max()) <= 1
    assert (result.tracks is None) == ("motion" not in checkpoints.read(FOLDER / model.name).info.model.heads)


def tuning(model: checkpoints.Reference) -> list[str]:
    """The words of the card's own command for going on, as a shell gives them."""
    card = (FOLDER / model.name / checkpoints.CARD).read_text()
    block = next(part.split("```")[0] for part in card.split("```sh\n")[1:])
    return shlex.split(block.replace("\\\n", " "))[2:]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_the_cards_tuning_command_keeps_all_that_was_learned(
    model: checkpoints.Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    words = [re.sub(r"^weights=", "weights.path=", word) for word in tuning(model)]
    run_config = config.load([w for w in words if "=" not in w], [w for w in words if "=" in w])
    source = checkpoints.read(FOLDER / model.name)
    tuned = TrainingModule(run_config, source).model.state_dict()
    for name, value in source.model.state_dict().items():
        torch.testing.assert_close(tuned[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_the_cards_tuning_command_runs_as_printed(
    model: checkpoints.Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").symlink_to(FOLDER)
    for name in ("train", "held_out"):
        worlds(tmp_path / "data" / name, 3, 2, frames=12, duration_s=(0.5, 0.9))
    # types that pytest checks at run time cannot be compiled
    short = [
        "loop.max_steps=1",
        "loop.epoch_steps=1",
        "loop.compile=false",
        "data.workers=0",
        "data.images_per_batch=12",
    ]
    assert cli.main(["finetune", *tuning(model), *short, "data.validation_clips=1"]) == 0


def worlds(folder: Path, seed: int, clips: int, **settings: Any) -> Path:
    """A shard of held-out clips of 64 × 64 pixels, seen by two hand-held or fixed cameras."""
    synthetic = pytest.importorskip("data_prep.synthetic", reason="needs the extra synth")
    kind = synthetic.WorldSettings(width=64, height=64, cameras=2, paths=("handheld", "static"), **settings)
    synthetic.make(folder, shards=range(1), seed=seed, clips_per_shard=clips, workers=1, settings=kind, held_out=True)
    return folder


@pytest.mark.slow
def test_known_intrinsics_do_not_raise_the_error_of_motion(tmp_path: Path) -> None:
    data = str(worlds(tmp_path, 7, 6, frames=6, moving=(0.1, 0.55), duration_s=(0.2, 0.35)))
    model = load(FOLDER / "unified-base")
    own = model.info.image_size
    scores = {
        hints: run(model, EvaluationConfig(data=data, frames=6, size=own, hints=hints, tasks=("motion", "depth"))).rows
        for hints in ((), ("intrinsics",))
    }
    without, given = (rows["model"] for rows in scores.values())
    for metric in ("motion_epe_dynamic", "motion_epe_all", "track_epe_dynamic", "depth_absrel_none_clip"):
        assert given[metric].mean <= 1.02 * without[metric].mean, metric


def test_posed_gaussians_show_the_second_camera_better_than_copies_do(tmp_path: Path) -> None:
    falling = {"objects": (3, 6), "starts": ("dropped", "thrown", "slid"), "spin": 0.2}
    data = str(worlds(tmp_path, 9, 4, frames=12, moving=(0.12, 0.55), duration_s=(0.5, 0.9), rig_m=0.5, **falling))
    model = load(FOLDER / "dgs_lrm-base")
    seen: dict[str, Any] = {"size": model.info.image_size, "hints": ("intrinsics", "poses")}
    rows = run(model, EvaluationConfig(data=data, frames=6, stride=2, tasks=("pictures",), **seen)).rows
    assert rows["model"]["render_psnr"].mean > rows["copy"]["render_psnr"].mean
