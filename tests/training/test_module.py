"""One step: what is averaged, what is skipped, what gets a gradient."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from four_d.config import OptimiserConfig
from four_d.data.loading import Step, TrainingSteps
from four_d.errors import UserError
from four_d.heads.track import TrackHeadConfig
from four_d.losses.track import TrackLossConfig
from four_d.schema import build
from four_d.training import train
from four_d.training.module import TrainingModule, _seed
from four_d.training.record import read_metrics
from four_d.training.run import RunData
from tests.training.runs import TRACKS, make_data, tiny, validated, with_more_heads


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


def test_drawing_weights_leaves_gpus_alone(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.random, "_fork_rng_warned_already", False)
    TrainingModule(tiny(data, tmp_path))


def test_every_weight_gets_a_gradient_even_from_clips_without_truth(data: Path, tmp_path: Path) -> None:
    module = TrainingModule(tiny(data, tmp_path))
    batches = RunData(module.config).training[0].batches
    bare = [
        dataclasses.replace(batch, targets=dataclasses.replace(batch.targets, depth=None, valid=None, cameras=None))
        for batch in batches
    ]
    for batch in [*batches, *bare]:
        module.zero_grad()
        _, terms = module.terms(batch)
        terms["loss"].backward()
        assert [name for name, p in module.named_parameters() if p.grad is None] == []
        assert terms["loss"].isfinite()


def test_heads_without_a_loss_stay_as_they_are_and_are_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_more_heads(data, tmp_path, loop={"max_steps": 2})
    module = TrainingModule(config)
    module.terms(RunData(config).training[0].batches[0])[1]["loss"].backward()
    assert [name for name, p in module.model.named_parameters() if p.requires_grad and p.grad is None] == []
    train(config)
    said = capsys.readouterr().err
    assert "heads.points has no loss, so its weights stay as they are; add a loss of points, or leave it out" in said
    assert "heads.track has no loss" in said
    assert "heads.depth" not in said
    trained = torch.load(config.run_folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for name, value in TrainingModule(config).model.state_dict().items():
        assert torch.equal(trained[f"model.{name}"], value) == name.startswith(("heads.points", "heads.track")), name


def test_the_loss_is_the_weighted_sum_of_its_terms(data: Path, tmp_path: Path) -> None:
    module = TrainingModule(tiny(data, tmp_path))
    example = RunData(module.config).training[0].batches[0]
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
    a, b = (
        [line for line in read_metrics(config.run_folder) if line["split"] == "train"] for config in (whole, halves)
    )
    assert [line["loss"] for line in b] == pytest.approx([line["loss"] for line in a], rel=2e-4)


def test_a_step_without_finite_gradients_changes_nothing_and_many_end_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(data, tmp_path, loop={"max_steps": 9, "epoch_steps": 1, "bad_steps": 3})
    whole = TrainingModule.terms

    def poisoned(self: TrainingModule, example: object) -> object:
        prediction, terms = whole(self, example)  # pyright: ignore[reportArgumentType]
        factor = float("nan") if self.step >= 2 else 1.0
        return prediction, {name: value * factor for name, value in terms.items()}

    monkeypatch.setattr(TrainingModule, "terms", poisoned)
    with pytest.raises(UserError, match=r"4 steps in a row gave no finite gradient.* \(step 5: .* of box-000"):
        train(config)
    run = torch.load(config.run_folder / "checkpoints/last.ckpt", weights_only=True)
    assert run["run"]["step"] == 5, "the first of the steps it looks at with as many behind it"
    assert all(value.isfinite().all() for value in run["state_dict"].values())
    lines = [line for line in read_metrics(config.run_folder) if line["split"] == "train"]
    assert lines[1]["loss"] is not None
    assert lines[2]["loss"] is None
    assert [line["skipped_steps"] for line in lines] == [0, 0, 1, 2, 3]


def test_a_clip_that_is_not_finite_is_named_and_counted(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of a batch's two clips is named, and only its step is left out; the line of figures is some steps later."""
    sampling = {"min_frames": 4, "max_frames": 4}
    config = tiny(data, tmp_path, data={"sampling": sampling}, loop={"max_steps": 6}, logging={"every": 3})
    whole, keys = TrainingSteps.__getitem__, list[str]()

    def damaged(self: TrainingSteps, index: int) -> Step:
        step = whole(self, index)
        if index == 1:
            keys.extend(step.batches[0].key)
            step.batches[0].inputs.images[1, 0, 0, 3, 3] = float("nan")
        return step

    monkeypatch.setattr(TrainingSteps, "__getitem__", damaged)
    train(config)
    lines = [line for line in read_metrics(config.run_folder) if line["split"] == "train"]
    assert [line["skipped_steps"] for line in lines] == [1, 1]
    named = f"step 1: not finite is a value of {keys[1]}, or what the model makes of it"
    assert lines[0]["skipped"] == named
    assert "skipped" not in lines[1]
    assert f"left out {named}" in capsys.readouterr().err


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
    assert {"depth_absrel_median_frame", "pose_rot_pairs_deg"} <= result.validation.keys()
    weights = torch.load(result.checkpoint, weights_only=True)["state_dict"]
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}


def test_the_backward_of_full_precision_is_in_full_precision(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning holds a training step in autocast: without care, products of the backward pass are in bfloat16."""
    heads = {**tiny(data, tmp_path).model.heads, "track": build(TrackHeadConfig, TRACKS, "track")}
    found: dict[str, torch.Tensor] = {}

    def note(self: TrainingModule) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        found.update({name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None})
        return torch.zeros(()), {}

    config = tiny(data, tmp_path, loop={"precision": "bf16", "max_steps": 1, "accelerator": "cpu"})
    losses = {**config.losses, "track": TrackLossConfig()}
    model, stream = dataclasses.replace(config.model, heads=heads), dataclasses.replace(config.data, surface=True)
    config = dataclasses.replace(config, model=model, data=stream, losses=losses)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "_clip", note)
        train(config)
    module = TrainingModule(config)
    step = RunData(config).training[0]
    torch.manual_seed(_seed(config.seed, step.index, 0))
    with torch.autocast("cpu", torch.bfloat16):
        loss = module.terms(step.batches[0])[1]["loss"]
    loss.backward()
    expected = {name: p.grad for name, p in module.model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6 * float(gradient.norm()), msg=name)
