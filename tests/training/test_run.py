"""A run as its user sees it: what it leaves behind, how it goes on, what it refuses."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from four_d.config import RunConfig, load, to_yaml
from four_d.data.loading import Step
from four_d.errors import UserError
from four_d.training import run, train
from four_d.training.module import TrainingModule
from four_d.training.record import alone, read_metrics
from tests.training.runs import make_data, tiny, validated

Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def curve(config: RunConfig, split: str = "train") -> Lines:
    """The lines of a run without what depends on the clock."""
    clock = {"steps_per_s", "images_per_s", "elapsed_s"}
    lines = [line for line in read_metrics(config.run_folder) if line["split"] == split]
    return [{k: v for k, v in line.items() if k not in clock} for line in lines]


def last(config: RunConfig) -> dict[str, Any]:
    return torch.load(config.run_folder / "checkpoints/last.ckpt", weights_only=True)


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


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    whole = TrainingModule.training_step

    def failing(self: TrainingModule, batch: Step, number: int) -> object:
        if self.step == step:
            raise RuntimeError("the machine burns down")
        return whole(self, batch, number)

    monkeypatch.setattr(TrainingModule, "training_step", failing)


def test_a_run_leaves_config_environment_figures_checkpoints_and_pictures(data: Path, tmp_path: Path) -> None:
    config = validated(data, tmp_path)
    result = train(config)
    folder = config.run_folder
    assert load([folder / "config.yaml"]) == config
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert len(environment["data"]) == 64
    assert [line["step"] for line in curve(config)] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in curve(config, "validation")] == [3, 6]
    assert {"loss", "camera", "depth", "lr", "gradient_norm", "skipped_samples"} <= curve(config)[0].keys()
    assert result.exit_code == 0
    assert result.steps == 6
    assert result.validation.keys() == {"loss", "camera", "depth", "depth_absrel_median", "rotation_deg"}
    assert result.best is not None
    pictures = sorted((folder / "pictures").iterdir())
    assert [p.name for p in pictures] == ["clip-0-0000003.png", "clip-0-0000006.png"]
    assert np.asarray(Image.open(pictures[0])).std() > 20
    assert not [p for p in folder.rglob("*") if "tmp" in p.name]


def test_a_killed_and_resumed_run_ends_with_the_same_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "ema": 0.9,
        "accumulate": 2,
        "max_steps": 6,
        "epoch_steps": 3,
        "precision": "fp32",
        "accelerator": "cpu",
    }
    whole = validated(data, tmp_path / "whole", loop=settings)
    broken = validated(data, tmp_path / "broken", loop=settings)
    train(whole)
    with monkeypatch.context() as patch:
        crash_at(patch, 5)
        with pytest.raises(RuntimeError, match="burns down"):
            train(broken)
    assert [line["step"] for line in curve(broken)] == [1, 2, 3, 4, 5]
    assert last(broken)["run"]["step"] == 3
    train(broken)
    assert curve(broken) == curve(whole)
    assert curve(broken, "validation") == curve(whole, "validation")
    for key in ("state_dict", "optimizer_states"):
        assert_same(last(broken)[key], last(whole)[key])
    assert_same(last(broken)["run"]["trained"], last(whole)["run"]["trained"])


def test_a_run_that_is_over_is_left_alone(data: Path, tmp_path: Path) -> None:
    config = validated(data, tmp_path)
    first = train(config)
    before = {p: p.stat().st_mtime_ns for p in config.run_folder.rglob("*")}
    assert train(config) == first
    assert {p: p.stat().st_mtime_ns for p in config.run_folder.rglob("*")} == before


def test_workers_change_nothing(data: Path, tmp_path: Path) -> None:
    alone, helped = tiny(data, tmp_path / "a"), tiny(data, tmp_path / "b", data={"workers": 2})
    train(alone)
    train(helped)
    assert curve(alone) == curve(helped)


def test_a_folder_of_another_model_seed_or_data_is_refused(data: Path, tmp_path: Path) -> None:
    train(tiny(data, tmp_path))
    with pytest.raises(UserError, match=r"began with model\.heads\.depth\.features=16, now it is 8"):
        train(tiny(data, tmp_path, features=8))
    with pytest.raises(UserError, match=r"began with data\.images_per_batch=8, now it is 12"):
        train(tiny(data, tmp_path, data={"images_per_batch": 12}))
    with pytest.raises(UserError, match="began with seed=0, now it is 1"):
        train(tiny(data, tmp_path, seed=1))
    with pytest.raises(UserError, match="already has a checkpoint"):
        train(tiny(data, tmp_path), resume="never")
    with pytest.raises(UserError, match="no checkpoint to go on from"):
        train(tiny(data, tmp_path / "elsewhere"), resume="always")
    other = make_data(tmp_path / "other", range(10, 12))
    with pytest.raises(UserError, match=r"are not those that .* began with"):
        train(tiny(data, tmp_path, data={"sources": {"boxes": {"path": str(other)}}}))


def test_other_changes_are_printed_and_taken(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny(data, tmp_path))
    config = tiny(data, tmp_path, loop={"max_steps": 8}, data={"workers": 1})
    assert train(config).steps == 8
    assert "changed since the run began: loop.max_steps 6 -> 8" in capsys.readouterr().err
    assert [line["step"] for line in curve(config)] == list(range(1, 9))


def test_a_damaged_checkpoint_is_named(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path)
    train(config)
    path = config.run_folder / "checkpoints/last.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"last\.ckpt cannot be read"):
        train(config)


def test_a_time_budget_ends_the_run_and_bends_the_schedule(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path, loop={"max_steps": 1_000_000, "max_minutes": 8 / 60, "epoch_steps": 100_000})
    began = time.monotonic()
    result = train(config)
    assert 7.9 < time.monotonic() - began < 60
    assert 1 < result.steps < 100_000
    rates = [line["lr"] for line in curve(config)]
    assert max(rates) == pytest.approx(1e-3, rel=0.1)
    assert rates[-1] < 0.1 * max(rates)
    assert last(config)["run"]["elapsed"] >= 8


def test_the_average_is_what_is_saved_and_validated(data: Path, tmp_path: Path) -> None:
    config = validated(data, tmp_path, loop={"ema": 0.5, "max_steps": 3, "epoch_steps": 3})
    train(config)
    saved = last(config)
    trained = saved["run"]["trained"]
    differing = [key for key, value in trained.items() if not torch.equal(value, saved["state_dict"][f"model.{key}"])]
    assert len(differing) > len(trained) / 2
    best = torch.load(config.run_folder / "checkpoints/best.ckpt", weights_only=True)
    assert_same(best["state_dict"], saved["state_dict"])
    assert "optimizer_states" not in best


def test_checkpoints_hold_plain_values_only(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path)
    train(config)

    def plain(value: object) -> bool:
        if isinstance(value, Mapping):
            return all(isinstance(k, str | int) and plain(v) for k, v in value.items())
        if isinstance(value, list | tuple):
            return all(map(plain, value))
        return value is None or isinstance(value, torch.Tensor | str | int | float | bool)

    assert plain(last(config))


def test_a_corrupt_sample_is_named_counted_and_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_data(tmp_path / "data")
    sidecar = json.loads((folder / "shard-000000.json").read_text())
    for frame in range(12):
        offset = sidecar["samples"][1]["members"][f"f{frame:03d}.image.png"][0]
        with (folder / "shard-000000.tar").open("r+b") as file:
            file.seek(offset + 20)
            file.write(b"\0" * 40)
    config = tiny(folder, tmp_path, data={"workers": 1})
    assert train(config).steps == 6
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped")]
    assert said
    assert all("shard-000000.tar" in line and "box-000001" in line for line in said)
    assert len(said) == len(set(said))
    counts = [line["skipped_samples"] for line in curve(config)]
    assert counts[-1] >= len(said)
    assert counts == sorted(counts)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_ends_the_run_after_its_step_and_a_new_start_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    config = tiny(data, tmp_path, data={"workers": 1})
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)]
    whole = TrainingModule.training_step

    def signalled(self: TrainingModule, batch: Step, index: int) -> object:
        if self.step == 1:
            os.kill(os.getpid(), number)
        return whole(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", signalled)
        result = train(config)
    assert (result.exit_code, result.steps) == (143, 2)
    assert last(config)["run"]["step"] == 2
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)] == handlers
    assert train(config).exit_code == 0
    assert [line["step"] for line in curve(config)] == [1, 2, 3, 4, 5, 6]


def test_a_folder_that_another_process_trains_in_is_refused(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path)
    code = "import sys, time; from four_d.training.record import alone; from pathlib import Path\n"
    code += "with alone(Path(sys.argv[1])): print(1, flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(config.run_folder)], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UserError, match="is being trained by another process; stop that one"):
            train(config)
        assert not list(config.run_folder.iterdir())
    finally:
        other.kill()
        other.communicate()
    assert train(config).exit_code == 0


def test_processes_that_were_forked_do_not_keep_the_folder(tmp_path: Path) -> None:
    code = "import os, sys, time; from four_d.training.record import alone; from pathlib import Path\n"
    code += "with alone(Path(sys.argv[1])): os.fork() or print(1, flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as first:
        assert first.stdout is not None
        first.stdout.readline()
        with pytest.raises(UserError, match="another process"), alone(tmp_path / "run"):
            pass
        first.kill()
        first.wait()
        with alone(tmp_path / "run"):
            pass
        os.killpg(first.pid, signal.SIGKILL)


def test_a_folder_trained_meanwhile_is_not_gone_on_with(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(data, tmp_path, loop={"max_steps": 2, "epoch_steps": 2})

    def meanwhile(folder: Path) -> contextlib.AbstractContextManager[None]:
        with monkeypatch.context() as patch:
            patch.setattr(run, "alone", alone)
            train(config)
        return alone(folder)

    monkeypatch.setattr(run, "alone", meanwhile)
    with pytest.raises(UserError, match="was trained by another process meanwhile; start again"):
        train(config)
    assert [line["step"] for line in curve(config)] == [1, 2]


def test_sigterm_exits_with_143_from_the_command_line(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path, loop={"max_steps": 100_000, "epoch_steps": 100_000}, data={"workers": 1})
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    command = [str(Path(sys.executable).parent / "four-d"), "train", str(tmp_path / "run.yaml")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 60
        while not read_metrics(config.run_folder) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 143, errors
    assert "Traceback" not in errors
    run = last(config)["run"]
    lines = curve(config)
    assert run["step"] == lines[-1]["step"] > 0


def test_wandb_offline_holds_figures_and_pictures(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    config = validated(data, tmp_path, logging={"wandb": "offline", "every": 2, "pictures": 1})
    train(config)
    (file,) = config.run_folder.glob("wandb/offline-run-*/run-*.wandb")
    rows = _read_wandb(file)
    losses = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert losses == {line["step"]: line["loss"] for line in curve(config)}
    assert [row["step"] for row in rows if "validation/depth_absrel_median" in row] == [3, 6]
    assert sum("pictures/clip-0" in key for row in rows for key in row) >= 2
    assert (config.run_folder / "wandb_id.txt").read_text() in file.name


def _read_wandb(path: Path) -> Lines:
    """History rows of an offline run: protocol buffers in LevelDB's log format, blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, record, rows = path.read_bytes(), 7, b"", []
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            parsed = Record()
            parsed.ParseFromString(record)
            record = b""
            if parsed.HasField("history"):
                items = parsed.history.item
                rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows
