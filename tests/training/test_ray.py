"""Workers of a Ray cluster train as torchrun's processes do, to the bit, also where one of them dies."""
# ruff: noqa: ARG002  # Lightning passes a hook all its arguments by position

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import lightning
import pytest
from lightning.pytorch.callbacks import Callback

from benchmarks import soak
from four_d import sharding
from four_d.checkpoints import LAST
from four_d.config import RunConfig, to_yaml
from four_d.data.loading import Step

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytest.importorskip("ray.train", reason="the extra `ray` is not installed")
from examples import ray_train  # noqa: E402

ROOT = Path(__file__).parents[2]


class Dies(Callback):
    """Kill the second worker in the third step, once."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Step, batch_idx: int
    ) -> None:
        if trainer.global_rank == 1 and batch.index == 2 and not self._mark.exists():
            self._mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster() -> Generator[None]:
    """Cluster of two processors on this machine, which sends nothing anywhere, and yields to nothing else."""
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600"}
    settings["RAY_worker_niceness"] = "0"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**settings, "PYTHONPATH": str(ROOT)}.items():
            patch.setenv(name, value)
        ray.init(num_cpus=2, include_dashboard=False)
        yield
        ray.shutdown()


def config(folder: Path, kind: Literal["ddp", "fsdp2"], name: str) -> RunConfig:
    made = soak.small_config(folder / "data", folder / name, soak.Soak(processes=2, strategy=kind))
    return replace(made, loop=replace(made.loop, max_steps=4))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's of itself
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.usefixtures("cluster")
def test_workers_end_with_the_weights_of_processes_without_ray(tmp_path: Path, kind: Literal["ddp", "fsdp2"]) -> None:
    soak.small_data(tmp_path / "data")
    plain, rays = (config(tmp_path, kind, name) for name in ("plain", "ray"))
    assert soak._ended(soak._start(plain, 2, tmp_path)) == 0
    dies = [Dies(tmp_path / "died")] if kind == "ddp" else []
    ray_train.fit(rays, 2, callbacks=dies)
    assert (tmp_path / "died").exists() == bool(dies)
    assert soak.same(*(sharding.read(each.run_folder / LAST) for each in (plain, rays)))


def test_bad_input_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(config(tmp_path, "ddp", "runs")))
    monkeypatch.setattr(ray, "init", lambda **_: None)
    assert ray_train.main([str(file), "--workers", "3"]) == 2
    assert "3 workers cannot share batches" in capsys.readouterr().err

    def refused(*_: object, **__: object) -> None:
        snippet = "Traceback (most recent call last):\n  File …\n{}\n"
        said = snippet.format("four_d.errors.UserError: runs/soak began with seed=0, now it is 3; change it back")
        raise ray.train.WorkerGroupError(said, {0: ValueError()})

    monkeypatch.setattr(ray_train, "fit", refused)
    assert ray_train.main([str(file)]) == 2
    assert capsys.readouterr().err == "ray_train: runs/soak began with seed=0, now it is 3; change it back\n"
