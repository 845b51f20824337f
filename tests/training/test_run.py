"""A run as its user sees it: what it leaves behind, how it goes on, what it refuses."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
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
import yaml
from PIL import Image

from four_d.checkpoints import read
from four_d.config import MEASURED, RunConfig, load, to_yaml
from four_d.data.loading import Step
from four_d.data.shards import ShardReader
from four_d.errors import UserError
from four_d.training import run, train
from four_d.training.module import TrainingModule
from four_d.training.record import RunRecord, alone, read_metrics
from tests.training.runs import assert_same, assert_same_end, crash, last, make_data, tiny, validated

Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def curve(config: RunConfig, split: str = "train") -> Lines:
    """The lines of a run without what depends on the machine and its clock."""
    lines = [line for line in read_metrics(config.run_folder) if line["split"] == split]
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]


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
    assert result.validation.keys() == {"loss", "camera", "depth", "depth_absrel_median_frame", "pose_rot_pairs_deg"}
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
    shapes: dict[str, object] = {"aspect": [0.5, 1.0], "image_size": [16, 24]}  # beside 2 to 4 frames
    whole = validated(data, tmp_path / "whole", shapes, loop=settings)
    broken = validated(data, tmp_path / "broken", shapes, loop=settings)
    assert len({batch.inputs.images.shape for n in range(6) for batch in run.RunData(whole).training[n].batches}) > 3
    train(whole)
    crash(monkeypatch, 5, lambda: train(broken))
    assert [line["step"] for line in curve(broken)] == [1, 2, 3, 4, 5]
    assert last(broken)["run"]["step"] == 3
    train(broken)
    assert curve(broken) == curve(whole)
    assert curve(broken, "validation") == curve(whole, "validation")
    assert_same_end(broken, whole)


def test_a_run_that_is_over_is_left_alone(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = validated(data, tmp_path)
    first = train(config)
    before = {p: p.stat().st_mtime_ns for p in config.run_folder.rglob("*")}
    assert train(config) == first
    assert {p: p.stat().st_mtime_ns for p in config.run_folder.rglob("*")} == before
    assert "is at its end already" in capsys.readouterr().err


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
    optimiser = {"lr": 1e-6, "weight_decay": 0.25, "min_warmup_steps": 0, "warmup_share": 0.0}
    config = tiny(data, tmp_path, loop={"max_steps": 8}, data={"workers": 1}, optimiser=optimiser)
    assert train(config).steps == 8
    assert "changed since the run began: loop.max_steps 6 -> 8" in capsys.readouterr().err
    lines = curve(config)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert max(line["lr"] for line in lines[6:]) <= 1e-6 < min(line["lr"] for line in lines[:6])
    groups = last(config)["optimizer_states"][0]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.25, 0.0}


def test_moments_go_with_their_weights_when_others_train(data: Path, tmp_path: Path) -> None:
    """By name, where torch goes by number: else the camera head would go on with the backbone's."""
    config = tiny(data, tmp_path, optimiser={"trainable": ["backbone.*", "heads.camera.*"]})
    train(config)
    before = moments(config)
    later = tiny(data, tmp_path, optimiser={"trainable": ["heads.*"]}, loop={"max_steps": 7})
    assert train(later).steps == 7
    after = moments(later)
    assert {name.split(".")[0] for name in after} == {"heads"}
    for name, state in after.items():
        assert int(state["step"]) == (7 if name in before else 1), name


def moments(config: RunConfig) -> dict[str, Any]:
    """Optimiser state by the parameters' names."""
    saved = last(config)["optimizer_states"][0]
    pairs = [pair for group in saved["param_groups"] for pair in zip(group["param_names"], group["params"])]
    return {name: saved["state"][index] for name, index in pairs if index in saved["state"]}


def test_a_damaged_checkpoint_is_named(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path)
    train(config)
    path = config.run_folder / "checkpoints/last.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"last\.ckpt cannot be read"):
        train(config)


class Clock:
    """A machine whose first step takes a quarter of an hour, and every look at the clock a second."""

    def __init__(self) -> None:
        self.now, self.steps = 0.0, 0

    def monotonic(self) -> float:
        self.now += 1.0 if self.steps else 0.0
        return self.now

    def after_a_step(self) -> None:
        self.now += 0.0 if self.steps else 900.0
        self.steps += 1


def test_a_clock_starts_after_the_first_step_and_bends_the_schedule(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, step = Clock(), TrainingModule.training_step

    def timed(self: TrainingModule, batch: Step, number: int) -> object:
        terms = step(self, batch, number)
        clock.after_a_step()
        return terms

    monkeypatch.setattr(TrainingModule, "training_step", timed)
    monkeypatch.setattr("four_d.training.callbacks.time", clock)
    optimiser = {"lr": 1e-3, "warmup_share": 0.05, "min_warmup_steps": 8}
    loop = {"max_steps": 1_000_000, "max_minutes": 1.0, "epoch_steps": 100_000}
    config = tiny(data, tmp_path, loop=loop, optimiser=optimiser)
    result = train(config)
    rates = [line["lr"] for line in curve(config)]
    assert 20 <= result.steps == len(rates) < 100
    assert last(config)["run"]["elapsed"] == result.seconds == pytest.approx(60, abs=5)
    # five hundredths of the minute are over after two steps; the rate is nevertheless no more than steps allow
    assert all(rate <= 1e-3 * (number + 1) / 8 + 1e-9 for number, rate in enumerate(rates))
    assert max(rates) > 0.6e-3
    assert rates[-1] < 0.1 * max(rates)


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


def test_the_datas_licence_is_known_when_the_data_are_gone(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data")
    manifest = folder / "manifest.json"
    plain = json.loads(manifest.read_text())
    (source,) = plain["sources"]
    plain["sources"][source]["licence"] = "CC-BY-4.0"
    manifest.write_text(json.dumps(plain))
    config = tiny(folder, tmp_path)
    train(config)
    shutil.rmtree(folder)
    assert read(config.run_folder).info.trained_on == {source: "CC-BY-4.0"}


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
    assert "box-000001" in "".join(line.get("skipped", "") for line in curve(config))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_ends_the_run_after_its_step_and_a_new_start_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    config = tiny(data, tmp_path, data={"workers": 1})
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)]
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
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)] == handlers
    assert train(config).exit_code == 0
    assert [line["step"] for line in curve(config)] == [1, 2, 3, 4, 5, 6]


def test_a_signal_before_the_first_step_ends_the_run_after_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run.RunData.train_dataloader

    def signalled(self: run.RunData) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return whole(self)

    config = tiny(data, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(run.RunData, "train_dataloader", signalled)
        result = train(config)
    assert (result.exit_code, result.steps, last(config)["run"]["step"]) == (143, 1, 1)
    assert train(config).steps == 6


def test_a_folder_that_another_process_trains_in_is_refused(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path)
    code = "import sys; from four_d.training.record import alone; from pathlib import Path\n"
    code += "with alone(Path(sys.argv[1])): print(1, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(config.run_folder)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
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
        while not read_metrics(config.run_folder) and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
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
    assert [row["step"] for row in rows if "validation/depth_absrel_median_frame" in row] == [3, 6]
    assert sum("pictures/clip-0" in key for row in rows for key in row) >= 2
    assert (config.run_folder / "wandb_id.txt").read_text() in file.name


# wandb leaves the process and the connection of a killed service to the collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("step", [0, 3, 6])
def test_a_killed_wandb_service_costs_its_figures_and_nothing_else(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: int
) -> None:
    """Before the first record, between two, and after the last."""
    pytest.importorskip("wandb")
    config = tiny(data, tmp_path, logging={"wandb": "offline", "every": 1})
    whole, kept = TrainingModule.training_step, RunRecord.close

    def killing(self: TrainingModule, batch: Step, index: int) -> object:
        if self.step == step:
            kill_wandb()
        return whole(self, batch, index)

    def closing(self: RunRecord, exit_code: int) -> None:
        if step == 6:
            kill_wandb()
        kept(self, exit_code)

    monkeypatch.setattr(TrainingModule, "training_step", killing)
    monkeypatch.setattr(RunRecord, "close", closing)
    result = train(config)
    assert (result.exit_code, result.steps) == (0, 6)
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: wandb ended at step")]
    assert said.endswith("and lacks figures of this run; metrics.jsonl has them all")
    assert [line["step"] for line in curve(config)] == [1, 2, 3, 4, 5, 6]


def kill_wandb() -> None:
    """The service that this process started, as the system does when memory runs out."""
    os.kill(_service_of(os.getpid()), signal.SIGKILL)


def _service_of(parent: int) -> int:
    found = subprocess.run(
        ["ps", "-eww", "-o", "pid=", "-o", "ppid=", "-o", "args="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(None, 2) for line in found.splitlines()]
    (service,) = [int(row[0]) for row in rows if int(row[1]) == parent and "wandb-core --port" in row[2]]
    return service


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


@pytest.mark.parametrize("step", [0, 3])
def test_a_killed_loader_worker_ends_the_run_with_its_name(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    config = tiny(data, tmp_path, data={"workers": 2}, loop={"max_steps": 100_000, "epoch_steps": 3})
    whole = TrainingModule.training_step

    def killing(self: TrainingModule, batch: Step, index: int) -> object:
        if self.step == step:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        return whole(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", killing)
        with pytest.raises(UserError, match=r"^data loader worker \d+ was killed by SIGKILL; most often memory .*last"):
            train(config)
    assert not multiprocessing.active_children()
    again = tiny(data, tmp_path, data={"workers": 1}, loop={"max_steps": 6, "epoch_steps": 3})
    assert train(again).steps == 6
    assert [line["step"] for line in curve(again)] == [1, 2, 3, 4, 5, 6]


def test_what_a_worker_cannot_read_is_said_in_one_line(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data", range(1))
    config = tiny(folder, tmp_path, data={"workers": 1})
    reader = ShardReader(folder)
    tar = folder / "shard-000000.tar"
    tar.write_bytes(b"\0" * tar.stat().st_size)
    with pytest.raises(UserError, match=r"^1 consecutive clips cannot be used; the last: [^\n]*$"):
        train(config)
    assert len(reader) == 1


def test_a_run_goes_on_that_began_with_a_setting_which_is_refused_today(data: Path, tmp_path: Path) -> None:
    """Nothing read it when the run began, so that leaving it out, as its refusal advises, changes nothing."""
    settings = {"sampling": {"min_frames": 2, "max_frames": 4, "one_camera_share": 1}}
    folder = train(tiny(data, tmp_path, data=settings, loop={"max_steps": 1})).folder
    content = yaml.safe_load((folder / "config.yaml").read_text())
    content["data"]["sampling"]["max_cameras"] = 2
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="max_cameras is 2, and has no effect"):
        load([folder / "config.yaml"])
    assert train(tiny(data, tmp_path, data=settings, loop={"max_steps": 2})).steps == 2
