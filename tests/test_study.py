"""How studies are run and summarised, without training anything."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import former
from four_d import config

ROOT = Path(__file__).parents[1]


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("study", ROOT / "benchmarks" / "study.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["study"] = module
    spec.loader.exec_module(module)
    return module


FILES = (ROOT / "benchmarks" / "studies").glob("[!_]*.py")
STUDIES = sorted(path.stem for path in FILES if "\nSTUDY = Study(" in path.read_text())


def line(variant: str, seed: int, **values: object) -> dict[str, object]:
    figures = {"pose_ate_sim3": 1.0 + seed, "mask_iou": None, **values}
    return {"variant": variant, "seed": seed, **figures, "image_free": {"pose_ate_sim3": 0.5}, "digest": "d"}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: ANN201
    study = script()
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    from benchmarks.studies import Key, Study, Training
    from four_d.metrics.catalogue import METRICS

    value = Study(
        name="small",
        data=(),
        shared={},
        variants={"one": Training(values=()), "two": Training(values=())},
        seeds=(0, 1),
        evaluation=(),
        keys=(Key(metric=METRICS["pose_ate_sim3"], label="ATE"), Key(metric=METRICS["mask_iou"], label="IoU")),
    )
    (tmp_path / "raw").mkdir()

    def write(*lines: dict[str, object]) -> None:
        (tmp_path / "raw" / "small.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))

    return study, value, write


def test_what_has_a_line_is_not_run_again_unless_named(small) -> None:  # noqa: ANN001
    study, value, write = small
    write(line("one", 0), line("two", 1))
    names = [(run.variant, run.seed) for run in study.wanted(value, None, None)]
    assert names == [("two", 0), ("one", 1)]
    assert [(run.variant, run.seed) for run in study.wanted(value, "one", [0])] == [("one", 0)]
    with pytest.raises(SystemExit, match="choose one of one, two"):
        study.wanted(value, "three", None)


def test_the_newest_line_counts_and_means_are_over_seeds(small) -> None:  # noqa: ANN001
    study, value, write = small
    write(line("one", 0, pose_ate_sim3=9.0), line("one", 0), line("one", 1))
    summary = study.summarise(value, study.read_raw(value))
    assert summary["one"]["pose_ate_sim3"] == {"mean": 1.5, "per_seed": {"0": 1.0, "1": 2.0}}
    assert summary["one"]["mask_iou"]["mean"] is None
    assert summary["image_free"] == {"pose_ate_sim3": 0.5}
    assert "two" not in summary
    text = study.table(value, summary)
    assert "| one | 1.5 (1–2) |  |" in text
    assert "| ignoring the image | 0.5 |  |" in text


def test_runs_scored_on_different_clips_are_not_mixed(small) -> None:  # noqa: ANN001
    study, value, write = small
    write(line("one", 0), {**line("one", 1), "digest": "other"})
    with pytest.raises(SystemExit, match="different clips"):
        study.summarise(value, study.read_raw(value))


def test_the_plot_is_drawn(small, tmp_path: Path) -> None:  # noqa: ANN001
    study, value, write = small
    write(line("one", 0), line("one", 1), line("two", 0))
    study.publish(value)
    assert (tmp_path / "small.png").stat().st_size > 5000
    assert json.loads((tmp_path / "small.json").read_text())["two"]["pose_ate_sim3"]["mean"] == 1.0


@pytest.mark.parametrize("name", STUDIES)
def test_every_training_of_a_study_has_a_config_that_loads(name: str) -> None:
    study = importlib.import_module(f"benchmarks.studies.{name}").STUDY
    for training in (*study.shared.values(), *study.variants.values()):
        values = [*training.values, "weights.path=somewhere"] if training.start else [*training.values]
        loaded = config.load([v for v in values if "=" not in v], [v for v in values if "=" in v])
        assert loaded.model.build() is not None
        known = training.start is None or training.start in study.shared
        assert known or training.start in former.NAMES or "@" in training.start


def test_a_study_that_is_stopped_stops_its_commands(tmp_path: Path) -> None:
    """They would train on without it, and hold their folders against the next one."""
    started, log = tmp_path / "started", tmp_path / "log"
    child = f"import os, pathlib, time; pathlib.Path({str(started)!r}).write_text(str(os.getpid())); time.sleep(600)"
    program = f"""
import pathlib, signal, sys, threading
sys.path[:0] = [{str(ROOT)!r}]
from benchmarks import study
from benchmarks.studies import Study
signal.signal(signal.SIGTERM, study.stop)
value = Study(name="s", data=(), shared={{}}, variants={{}}, seeds=(), evaluation=(), keys=())
command = [sys.executable, "-c", {child!r}]
thread = threading.Thread(target=study.call, args=(value, command, pathlib.Path({str(log)!r})))
thread.start()
thread.join()
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path) as process:
        while not started.is_file() or not started.read_text():
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        assert process.wait() == 143
    assert not Path(f"/proc/{started.read_text()}").exists()
