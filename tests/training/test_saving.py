"""Checkpoints on disk: whole or not there, the newest ones kept, a full disk told, kills at any moment survived."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import soak
from four_d.checkpoints import LAST
from four_d.config import CheckpointConfig
from four_d.errors import UserError
from four_d.training import saving, train
from four_d.training.saving import Writer, clean, step_file
from tests.training.runs import last, make_data, tiny, validated


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"), range(2))


def written(folder: Path) -> list[str]:
    return sorted(each.name for each in (folder / LAST.parent).iterdir())


def state(step: int) -> dict[str, Any]:
    return {"state_dict": {"weight": torch.full((3,), float(step))}, "run": {"step": step}}


def test_the_newest_are_kept_and_last_is_a_link_to_the_newest(tmp_path: Path) -> None:
    writer = Writer(tmp_path, CheckpointConfig(keep=2))
    for step in (1, 2, 3):
        writer.save_checkpoint(state(step), step_file(tmp_path, step))
    writer.save_checkpoint(state(2), tmp_path / "checkpoints/best.ckpt")
    assert writer.close() is None
    assert written(tmp_path) == ["best.ckpt", "last.ckpt", "step-0000002.ckpt", "step-0000003.ckpt"]
    assert (tmp_path / LAST).readlink() == Path("step-0000003.ckpt")
    assert torch.load(tmp_path / LAST, weights_only=True)["run"]["step"] == 3


def test_what_is_written_later_is_as_it_was_when_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, may_write = saving.write_file, threading.Event()

    def waiting(content: dict[str, Any], path: Path) -> None:
        may_write.wait()
        write(content, path)

    monkeypatch.setattr(saving, "write_file", waiting)
    writer, given = Writer(tmp_path, CheckpointConfig()), state(1)
    writer.save_checkpoint(given, step_file(tmp_path, 1))  # returns before anything is written
    given["state_dict"]["weight"].zero_()
    assert not (tmp_path / LAST).exists()
    may_write.set()
    assert writer.close() is None
    assert torch.load(tmp_path / LAST, weights_only=True)["state_dict"]["weight"].tolist() == [1.0] * 3


def test_what_a_killed_process_left_is_removed(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path, loop={"max_steps": 1, "epoch_steps": 1})
    folder = config.run_folder / "checkpoints"
    (folder / ".step-0000001.ckpt.partial").mkdir(parents=True)
    (folder / ".step-0000001.ckpt.partial" / "__0_0.distcp").write_bytes(b"half")
    (folder / ".best.ckpt.partial").write_bytes(b"half")
    (folder / ".last.ckpt.partial").symlink_to("nowhere")
    (folder / "step-0000009.ckpt").write_bytes(b"of a run that had come further, and was not linked")
    train(config)
    assert written(config.run_folder) == ["last.ckpt", "step-0000001.ckpt"]
    clean(tmp_path / "nothing")


def full(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Let the disk be full when the checkpoints of these steps are written, half of each after it was."""
    write = saving.write_state

    def filling(content: dict[str, Any], path: Path) -> None:
        write(content, path)
        if content["run"]["step"] in steps:
            path.write_bytes(path.read_bytes()[:100])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(saving, "write_state", filling)


def test_a_full_disk_leaves_the_older_one_and_training_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full(monkeypatch, 2)
    loop = {"max_steps": 3, "epoch_steps": 1, "checkpoints": {"keep": 5}}
    config = tiny(data, tmp_path, loop=loop)
    assert train(config).steps == 3
    assert written(config.run_folder) == ["last.ckpt", "step-0000001.ckpt", "step-0000003.ckpt"]
    said = capsys.readouterr().err
    assert "step-0000002.ckpt cannot be written ([Errno 28] No space left on device" in said
    assert "older checkpoints are as they were, training goes on" in said


def test_a_full_disk_stops_a_run_that_asks_for_it(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full(monkeypatch, 1)
    checkpoints = {"on_failure": "stop", "background": False}
    config = validated(data, tmp_path, loop={"max_steps": 9, "epoch_steps": 1, "checkpoints": checkpoints})
    with pytest.raises(UserError, match="on_failure is stop"):
        train(config)
    assert not (config.run_folder / LAST).exists()
    monkeypatch.undo()
    assert train(config).steps == 9


def test_a_last_checkpoint_that_cannot_be_written_is_an_error(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full(monkeypatch, 2)
    config = tiny(data, tmp_path, loop={"max_steps": 2, "epoch_steps": 1})
    with pytest.raises(UserError, match=r"step-0000002\.ckpt cannot be written .*No space.* start again"):
        train(config)
    assert last(config)["run"]["step"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "kind"), [(1, "ddp"), (2, "fsdp2")])
def test_kills_at_random_moments_lose_nothing(tmp_path: Path, processes: int, kind: str) -> None:
    found = soak.run(tmp_path, kills=10 if processes == 1 else 4, processes=processes, strategy=kind)
    assert found.failures == []
    assert found.survived == found.kills > 0
    assert found.finished > 0
