"""Two processes do what one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from four_d.config import RunConfig, to_yaml
from four_d.errors import UserError
from four_d.training import train
from four_d.training.parallel import World, discover, must_agree
from four_d.training.record import read_metrics
from tests.training.runs import make_data, validated


def torchrun(config: RunConfig, folder: Path) -> subprocess.CompletedProcess[str]:
    file = folder / "run.yaml"
    file.write_text(to_yaml(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--no-python"]
    command += [str(Path(sys.executable).parent / "four-d"), "train", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=240)


def test_two_processes_give_the_curve_of_one(tmp_path: Path) -> None:
    # the third clip has neither depth nor cameras: what a rank lacks must not change the weight of what it has
    data = make_data(tmp_path / "data", bare=2)
    settings = {"images_per_batch": 12, "clips_multiple": 2}
    one = validated(data, tmp_path / "one", data=settings, loop={"accumulate": 2, "ema": 0.9})
    two = validated(data, tmp_path / "two", data=settings, loop={"accumulate": 2, "ema": 0.9})
    train(one)
    finished = torchrun(two, tmp_path)
    assert finished.returncode == 0, finished.stderr[-3000:]
    left, right = read_metrics(one.run_folder), read_metrics(two.run_folder)
    assert [(line["split"], line["step"]) for line in left] == [(line["split"], line["step"]) for line in right]
    for a, b in zip(left, right):
        for name in a.keys() - {"split", "step", "steps_per_s", "images_per_s", "elapsed_s"}:
            assert b[name] == pytest.approx(a[name], rel=2e-4, abs=1e-6), (name, a["step"])
    weights = [
        torch.load(run.run_folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in (one, two)
    ]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=2e-3, atol=2e-5, msg=name)


def test_a_batch_that_does_not_split_evenly_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data(tmp_path / "data", range(1))
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"set data\.clips_multiple=2"):
        train(validated(data, tmp_path))


def test_the_world_is_read_from_the_launchers_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert discover() == World(rank=0, size=1, local_size=1)
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert discover() == World(rank=5, size=8, local_size=4)
    assert discover().nodes == 2


def disagreeing(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        must_agree({"the seed": 3, "the number of clips": 10 + rank}, torch.device("cpu"))
    except UserError as error:
        (Path(folder) / f"rank-{rank}.txt").write_text(str(error))
    torch.distributed.destroy_process_group()


def test_processes_that_disagree_all_say_on_what(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(disagreeing, (str(tmp_path),), nprocs=2, start_method="fork")
    for rank in range(2):
        said = (tmp_path / f"rank-{rank}.txt").read_text()
        assert "disagree on the number of clips: 10 on rank 0, other on 1" in said
