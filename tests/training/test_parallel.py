"""Two processes do what one does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import lightning
import pytest
import torch

from four_d import sharding
from four_d.checkpoints import LAST
from four_d.config import MEASURED, RunConfig, to_yaml
from four_d.errors import UserError
from four_d.extension import extend
from four_d.schema import Plain
from four_d.training import agreement, module, train
from four_d.training.agreement import Agreement
from four_d.training.parallel import World, discover
from four_d.training.record import read_metrics
from tests.test_extension import PathLossConfig, with_paths
from tests.training.runs import make_data, tiny, validated, with_more_heads


def torchrun(config: RunConfig, folder: Path, *program: str) -> subprocess.CompletedProcess[str]:
    """Two processes of a program, without one of ``four-d train``, with the config's file as its last argument."""
    file = folder / "run.yaml"
    file.write_text(to_yaml(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--no-python"]
    command += [*(program or (str(Path(sys.executable).parent / "four-d"), "train")), str(file)]
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_give_the_curve_of_one(tmp_path: Path, kind: str) -> None:
    # the third clip has neither depth nor cameras: what a rank lacks must not change the weight of what it has
    data = make_data(tmp_path / "data", bare=2)
    settings: Plain = {"images_per_batch": 12, "clips_multiple": 2}
    one = validated(data, tmp_path / "one", data=settings, loop={"accumulate": 2, "ema": 0.9})
    two = validated(data, tmp_path / "two", data=settings, loop={"accumulate": 2, "ema": 0.9, "strategy": kind})
    train(one)
    finished = torchrun(two, tmp_path)
    assert finished.returncode == 0, finished.stderr[-3000:]
    left, right = (  # histograms are of how long steps took
        [line for line in read_metrics(run.run_folder) if line["split"] != "histogram"] for run in (one, two)
    )
    assert [(line["split"], line["step"]) for line in left] == [(line["split"], line["step"]) for line in right]
    for a, b in zip(left, right):
        for name in a.keys() - {"split", "step"} - MEASURED:
            expected = None if a[name] is None else pytest.approx(a[name], rel=2e-4, abs=1e-6)
            assert b[name] == expected, (name, a["step"])
    weights = [sharding.read(run.run_folder / LAST)["state_dict"] for run in (one, two)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=2e-3, atol=2e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_weights_of_terms_are_the_same_on_two_processes_as_on_one(tmp_path: Path, kind: str) -> None:
    extend(PathLossConfig)
    data = make_data(tmp_path / "data", bare=2)
    split: Plain = {"images_per_batch": 12, "clips_multiple": 2}
    one, two = (with_paths(data, tmp_path / name, data=split, strategy=kind) for name in ("one", "two"))
    train(one)
    script = tmp_path / "own.py"
    script.write_text(
        "import sys\nfrom four_d.config import load\nfrom four_d.extension import extend\n"
        "from four_d.training import train\nfrom tests.test_extension import PathLossConfig\n"
        "extend(PathLossConfig)\ntrain(load([sys.argv[1]]))\n"
    )
    finished = torchrun(two, tmp_path, sys.executable, str(script))
    assert finished.returncode == 0, finished.stderr[-3000:]
    left, right = (sharding.read(run.run_folder / LAST) for run in (one, two))
    for weights, others in (
        (left["state_dict"], right["state_dict"]),
        (left["run"]["trained"], right["run"]["trained"]),
    ):
        assert any(name.startswith("losses.path.") for name in weights)
        for name, value in weights.items():
            torch.testing.assert_close(others[name], value, rtol=2e-3, atol=2e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_a_head_without_a_loss_does_not_stop_two_processes(tmp_path: Path, kind: str) -> None:
    data = make_data(tmp_path / "data")
    loop: Plain = {"max_steps": 3, "epoch_steps": 3, "strategy": kind, "accelerator": "cpu", "precision": "fp32"}
    config = with_more_heads(data, tmp_path, data={"clips_multiple": 2}, loop=loop)
    finished = torchrun(config, tmp_path)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stderr.count("heads.track has no loss") == 1


def launched(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """As by torchrun, with these ranks and sizes."""
    for name, value in {"LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500", **variables}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set, and RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not"),
        ({"RANK": "1"}, "RANK=1 is set, and WORLD_SIZE, LOCAL_RANK"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two is not a number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0 is set"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK=-1 is not a number"),
    ],
)
def test_incomplete_launch_variables_are_one_line(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        discover()


def test_launch_variables_that_contradict_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ({"RANK": "2"}, {"LOCAL_WORLD_SIZE": "3"}, {"LOCAL_WORLD_SIZE": "0"}):
        launched(monkeypatch, {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", **wrong})
        with pytest.raises(UserError, match="contradict each other"):
            discover()


SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NNODES": "1",
}


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (SLURM, "SLURM_NTASKS=4, and torchrun started none of them: this process trains alone"),
        ({**SLURM, "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"}, "SLURM_STEP_NUM_TASKS=4"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, "OMPI_COMM_WORLD_SIZE=2"),
        ({"WORLD_SIZE": "1"}, ""),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, ""),
        ({**SLURM, "SLURM_NTASKS": "1"}, ""),
    ],
)
def test_one_process_in_a_cluster_trains_alone(
    tmp_path: Path,
    variables: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = make_data(tmp_path / "data", range(1))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert train(validated(data, tmp_path, loop={"max_steps": 1, "epoch_steps": 1})).exit_code == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "torchrun" in line]
    assert len(lines) == bool(said)
    assert said in "".join(lines)


def test_a_batch_that_does_not_split_evenly_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data(tmp_path / "data", range(1))
    launched(monkeypatch, {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"})
    with pytest.raises(UserError, match=r"set data\.clips_multiple=2"):
        train(validated(data, tmp_path))


def test_a_run_that_goes_on_with_more_processes_than_its_batches_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data(tmp_path / "data", range(2))
    config = tiny(data, tmp_path, data={"clips_multiple": 2}, loop={"max_steps": 1})
    train(config)
    longer = replace(config, loop=replace(config.loop, max_steps=2))
    launched(monkeypatch, {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"})
    with pytest.raises(UserError, match=r"cannot go on with 3 processes: .* multiples of 2 .* start one of 1, 2 proc"):
        train(longer)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer\nmore"),
        RuntimeError("Application timeout caused pair closure"),
        torch.distributed.DistBackendError("NCCL error: remote process exited"),
    ],
    ids=["gloo", "gloo again", "nccl"],
)
def test_a_process_that_loses_the_others_says_so_in_one_line(
    tmp_path: Path, error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise error

    monkeypatch.setattr(module.TrainingModule, "training_step", lost)
    with pytest.raises(
        UserError, match=r"process 0 lost the others \(.*(closed by peer|pair closure|exited)\): one of them ended"
    ):
        train(tiny(make_data(tmp_path / "data", range(1)), tmp_path))


def test_a_slower_process_does_not_refuse_what_the_first_has_begun_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = validated(
        make_data(tmp_path / "data"), tmp_path / "runs", data={"images_per_batch": 12, "clips_multiple": 2}
    )
    config.run_folder.mkdir(parents=True)
    (config.run_folder / "config.yaml").write_text(to_yaml(config))  # rank 0's first file

    class ReachedTheLoopError(Exception):
        pass

    def loop(*_: object) -> None:
        raise ReachedTheLoopError

    monkeypatch.setattr("four_d.training.run._fit", loop)
    for rank, error in (("1", ReachedTheLoopError), ("0", UserError)):
        launched(monkeypatch, {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"})
        with pytest.raises(error):
            train(config)


def test_the_world_is_read_from_the_launchers_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert discover() == World(rank=0, size=1, local_size=1)
    launched(monkeypatch, {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"})
    assert discover() == World(rank=5, size=8, local_size=4)
    assert discover().nodes == 2


def rendering(rank: int, folder: str, lacking: int | None) -> None:
    """Note when each process looks for the rasteriser, and what it is told; ``lacking`` does not find it."""

    def look(_: torch.device) -> str | None:
        with (Path(folder) / "order.txt").open("a") as file:
            file.write(f"{rank} begins\n")
            file.flush()
            time.sleep(0.5 if rank == 1 else 0.0)
            file.write(f"{rank} ends\n")
        return "no compiled: no compiler" if rank == lacking else None

    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    module.fastest_missing = look
    try:
        module.ready_to_render(torch.device("cpu"), first=rank == 1)
    except UserError as error:
        (Path(folder) / f"rank-{rank}.txt").write_text(str(error))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("lacking", [None, 0, 1])
def test_one_process_builds_the_rasteriser_and_none_makes_do_with_torch(tmp_path: Path, lacking: int | None) -> None:
    torch.multiprocessing.start_processes(rendering, (str(tmp_path), lacking), nprocs=2, start_method="forkserver")
    assert (tmp_path / "order.txt").read_text().split("\n")[:4] == ["1 begins", "1 ends", "0 begins", "0 ends"]
    said = [(tmp_path / f"rank-{rank}.txt") for rank in range(2)]
    assert [file.exists() for file in said] == [lacking is not None] * 2
    if lacking is not None:
        assert (
            "1 of 2 processes would render in plain torch, which is too slow to share a run (no compiled: no compiler)"
            in said[lacking].read_text()
        )


def disagreeing(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    agreement.versions = lambda: {"four_d": "1", "torch": f"2.{10 + rank}"}
    try:
        Agreement(0, "").setup(lightning.Trainer.__new__(lightning.Trainer), lightning.LightningModule(), "fit")
    except UserError as error:
        (Path(folder) / f"rank-{rank}.txt").write_text(str(error))
    torch.distributed.destroy_process_group()


def test_processes_of_other_versions_all_say_of_what(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(disagreeing, (str(tmp_path),), nprocs=2, start_method="forkserver")
    for rank in range(2):
        said = (tmp_path / f"rank-{rank}.txt").read_text()
        assert "disagree on torch: 2.10 on rank 0, 2.11 on 1; install the same on every machine" in said
