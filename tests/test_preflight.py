"""`four-d doctor CONFIG` says what a run needs, and what is too little."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

from four_d import cli, preflight
from four_d.config import to_yaml
from four_d.errors import UserError
from four_d.preflight import Question, all_reduce, disk, memory_of, place_of, shapes, shared_memory
from four_d.training.parallel import World
from tests.training.runs import make_data, tiny, validated


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.mark.slow
def test_a_run_is_planned_row_by_row(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny(data, tmp_path, data={"sampling": {"min_frames": 2, "max_frames": 2}})
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(config))
    assert cli.main(["doctor", str(file), "--memory", "20MB", "--device", "cpu"]) == 0
    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    found = {name.strip(): finding.strip() for name, finding in rows.items()}
    assert found["backbone"].endswith("parameters")
    assert "of which" in found["all"]
    assert found["memory: a step"].startswith("4 × 2 frames of 16×16 pixels on cpu in fp32")
    assert "frames fits (" in found["memory: of 20 MB"]
    assert found["batches"].startswith("2 frames × 4 clips, at most 8 images of 8; 1 sizes of images, 1 shapes")
    assert "images/s, 3 steps' data" in found["loader"]
    assert "free in" in found["disk"]
    assert not (config.run_folder / "config.yaml").exists(), "nothing is begun"


def test_flags_of_a_plan_need_a_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--memory", "80GB"]) == 2
    assert "name its config first" in capsys.readouterr().err


def test_devices_and_memory_are_those_that_are_asked_for(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path, data={"clips_multiple": 4}, loop={"strategy": "fsdp2", "accelerator": "cpu"})
    here, two = World(), World(rank=0, size=2, local_size=2)
    assert place_of(config, Question(), here).kind == "cpu"
    assert place_of(config, Question(), two).devices == 2
    many = place_of(config, Question(devices=4, memory="80GB"), here)
    assert (many.kind, many.devices, many.strategy) == ("cuda", 4, "fsdp2")
    assert place_of(config, Question(strategy="ddp"), here).strategy == "ddp"
    assert memory_of(config, Question(memory="80GB"), here) == 8e10
    assert memory_of(config, Question(devices=4), here) is None, "nobody knows that device's"
    half, whole = memory_of(config, Question(), two), memory_of(config, Question(), here)
    assert half is not None
    assert whole is not None
    assert half < 0.75 * whole
    with pytest.raises(UserError, match=r"3 processes cannot share .* set data.clips_multiple=3"):
        place_of(config, Question(devices=3), here)
    with pytest.raises(UserError, match="plan for 1 or more"):
        Question(devices=0)


def test_what_is_too_little_is_said(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = validated(data, tmp_path, data={"workers": 3})

    def nearly_full(_: object) -> SimpleNamespace:
        return SimpleNamespace(free=10_000_000)

    monkeypatch.setattr(preflight.shutil, "disk_usage", nearly_full)
    assert shared_memory(config, 800_000, tmp_path).startswith("6 workers × 2 × 800 kB = 9.6 MB of 10 MB free")
    assert shared_memory(config, 900_000, tmp_path).endswith(
        "TOO LITTLE; lower data.workers, or in docker give --shm-size"
    )
    assert "not there" in shared_memory(config, 1, tmp_path / "none")
    alone = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=0))
    assert shared_memory(alone, 10**9, tmp_path) == "none is needed (data.workers is 0)"
    found = disk(config, 4_000_000, 1_000_000)
    assert found.startswith("1 + 1 being written × 4 MB + the best 1 MB = 9 MB of 10 MB free")
    assert "TOO LITTLE; make room" in disk(config, 5_000_000, 1_000_000)


def test_shapes_of_batches_are_counted(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path, data={"aspect": [0.5, 1.0], "image_size": [32, 32], "images_per_batch": 9})
    assert shapes(config).startswith("2–4 frames × 2–4 clips, at most 9 images of 9; 2 sizes of images, 6 shapes in")
    assert all_reduce(config, World()).startswith("one process; `torchrun")
