"""One step: what is averaged, what is skipped, what gets a gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from four_d.config import OptimiserConfig
from four_d.errors import UserError
from four_d.training import train
from four_d.training.module import MAX_BAD_STEPS, TrainingModule
from four_d.training.record import read_metrics
from four_d.training.run import RunData, World
from tests.training.runs import make_data, tiny, validated


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"), bare=1)


def test_weights_are_those_of_the_seed_and_leave_the_callers_randomness_alone(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (TrainingModule(tiny(data, tmp_path, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    pairs = list(zip(one.parameters(), same.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_every_weight_gets_a_gradient_even_from_clips_without_truth(data: Path, tmp_path: Path) -> None:
    module = TrainingModule(tiny(data, tmp_path))
    stream = RunData(module.config, World(), 0).training
    batches = [batch for n in range(8) for batch in stream[n].batches]
    bare = [batch for batch in batches if batch.targets.valid is not None and not batch.targets.valid.any()]
    for batch in [*batches[:2], *bare[:1]]:
        module.zero_grad()
        _, terms = module.terms(batch)
        terms["loss"].backward()
        assert [name for name, p in module.named_parameters() if p.grad is None] == []
        assert terms["loss"].isfinite()


def test_the_loss_is_the_weighted_sum_of_its_terms(data: Path, tmp_path: Path) -> None:
    module = TrainingModule(tiny(data, tmp_path))
    example = RunData(module.config, World(), 0).training[0].batches[0]
    _, terms = module.terms(example)
    expected = sum(module.config.losses[name].weight * float(terms[name].detach()) for name in ("camera", "depth"))
    assert float(terms["loss"].detach()) == pytest.approx(expected, rel=1e-6)


def test_accumulated_batches_count_alike(data: Path, tmp_path: Path) -> None:
    # one clip per batch: two accumulated batches are one batch of two, if frame counts and clips are the same
    sampling = {"min_frames": 4, "max_frames": 4}
    whole = tiny(data, tmp_path / "whole", data={"sampling": sampling})
    halves = tiny(data, tmp_path / "halves", data={"sampling": sampling, "images_per_batch": 4}, loop={"accumulate": 2})
    train(whole)
    train(halves)
    a, b = (read_metrics(config.run_folder) for config in (whole, halves))
    assert [line["loss"] for line in b] == pytest.approx([line["loss"] for line in a], rel=2e-4)


def test_a_step_without_finite_gradients_changes_nothing_and_many_end_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(data, tmp_path, loop={"max_steps": 3 * MAX_BAD_STEPS, "epoch_steps": 1})
    whole = TrainingModule.terms

    def poisoned(self: TrainingModule, example: object) -> object:
        prediction, terms = whole(self, example)  # pyright: ignore[reportArgumentType]
        factor = float("nan") if self.step >= 2 else 1.0
        return prediction, {name: value * factor for name, value in terms.items()}

    monkeypatch.setattr(TrainingModule, "terms", poisoned)
    with pytest.raises(UserError, match="no finite gradient"):
        train(config)
    run = torch.load(config.run_folder / "checkpoints/last.ckpt", weights_only=True)
    assert run["run"]["step"] == 2 + MAX_BAD_STEPS - 1
    assert all(value.isfinite().all() for value in run["state_dict"].values())
    lines = read_metrics(config.run_folder)
    assert lines[1]["loss"] is not None
    assert lines[2]["loss"] is None


def test_frozen_weights_stay_and_the_rest_moves(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path, optimiser={"lr": 1e-3, "frozen": ["backbone.*"]}, loop={"ema": 0.9})
    before = TrainingModule(config).model.state_dict()
    train(config)
    after = torch.load(config.run_folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    moved = {name for name, value in before.items() if not torch.equal(after[f"model.{name}"], value)}
    assert moved
    assert all(name.startswith("heads.") for name in moved)
    assert config.optimiser != OptimiserConfig()


def test_bf16_trains_and_validates(data: Path, tmp_path: Path) -> None:
    config = validated(data, tmp_path, loop={"precision": "bf16"})
    result = train(config)
    assert result.steps == 6
    assert {"depth_absrel_median", "rotation_deg"} <= result.validation.keys()
    weights = torch.load(result.checkpoint, weights_only=True)["state_dict"]
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}
