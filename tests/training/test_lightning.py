"""Lightning is open: a run takes callbacks, loggers and a profiler, and its parts work in a trainer of one's own."""

from __future__ import annotations

from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import SimpleProfiler

from examples import own_trainer
from four_d import load
from four_d.training import LAST, train
from tests.training.runs import make_data, validated


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


class Counting(Callback):
    """Counts steps, over all starts of a run, and asks for the end after some."""

    def __init__(self, most: int) -> None:
        self.seen, self._most = 0, most

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        self.seen += 1
        trainer.should_stop = trainer.should_stop or self.seen == self._most

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.seen = state_dict["seen"]


def test_a_run_takes_callbacks_loggers_and_a_profiler(data: Path, tmp_path: Path) -> None:
    config, profiler = validated(data, tmp_path), SimpleProfiler()
    first = train(config, callbacks=[Counting(2)], logger=CSVLogger(tmp_path / "csv"), profiler=profiler)
    assert first.steps == 2, "a callback may end a run, which is saved then"
    assert torch.load(tmp_path / "test" / LAST, weights_only=True)["run"]["step"] == 2
    counting = Counting(5)
    assert train(config, callbacks=[counting]).steps == 5
    assert counting.seen == 5, "what callbacks remember is in the checkpoint"
    metrics = next((tmp_path / "csv").rglob("metrics.csv")).read_text()
    assert "train/loss" in metrics
    assert any("training_step" in action for action in profiler.recorded_durations)


def test_figures_have_the_names_that_lightnings_callbacks_look_for(data: Path, tmp_path: Path) -> None:
    stopping = EarlyStopping("validation/loss", divergence_threshold=-100.0)  # which every loss is beyond
    assert train(validated(data, tmp_path), callbacks=[stopping]).steps == 3


@pytest.mark.filterwarnings("ignore:")  # Lightning's advice on the trainer is its user's
def test_the_module_and_the_data_work_in_a_trainer_of_ones_own(data: Path, tmp_path: Path) -> None:
    """With the same weights as a run of ours, also when it goes on from a checkpoint, and a checkpoint that loads."""
    train(validated(data, tmp_path))
    ours = torch.load(tmp_path / "test" / LAST, weights_only=True)["state_dict"]
    half = own_trainer.fit(validated(data, tmp_path, loop={"max_steps": 6, "epoch_steps": 3}), tmp_path / "own")
    theirs = torch.load(half, weights_only=True)["state_dict"]
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    part = next((tmp_path / "own" / "checkpoints").glob("*step=3*"))
    again = torch.load(own_trainer.fit(validated(data, tmp_path), tmp_path / "own", part), weights_only=True)
    assert again["run"]["step"] == 6
    assert all(torch.equal(ours[name], again["state_dict"][name]) for name in ours)
    assert load(half).info is not None
