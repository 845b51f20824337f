"""A process that stops is named, by the others' clock alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from four_d.config import to_yaml
from four_d.training.heartbeat import Beat, Heartbeat, Watcher, describe, record_flights
from four_d.training.parallel import World
from four_d.training.record import read_metrics
from tests.training.runs import make_data, tiny

BEATS = {rank: Beat(rank=rank, host=f"node-{rank}", pid=100 + rank, place=7, alive=1) for rank in range(3)}


def told(*looks: tuple[float, dict[int, Beat]]) -> list[int]:
    """Ranks named at the last of several looks at a run whose limit is 10 seconds."""
    watcher, found = Watcher(10.0), list[Beat]()
    for now, beats in looks:
        found = watcher.stopped(beats, now)
    return [beat.rank for beat in found]


def alive(beats: dict[int, Beat], by: int = 1) -> dict[int, Beat]:
    return {rank: replace(beat, alive=beat.alive + by) for rank, beat in beats.items()}


def test_the_one_that_others_wait_for_is_named() -> None:
    behind = {**BEATS, 1: replace(BEATS[1], place=6, doing="loading the clips of step 4")}
    assert told((0.0, behind), (9.0, alive(behind))) == []
    assert told((0.0, behind), (6.0, alive(behind)), (11.0, alive(behind, 2))) == [1]
    assert told((0.0, BEATS), (6.0, alive(BEATS)), (11.0, alive(BEATS, 2))) == [0, 1, 2], "none is behind"


def test_one_that_says_nothing_is_named_though_the_others_move() -> None:
    later = {rank: replace(beat, place=9, alive=5) for rank, beat in BEATS.items()} | {2: BEATS[2]}
    assert told((0.0, BEATS), (11.0, later)) == [2]
    assert told((0.0, BEATS), (11.0, later), (12.0, alive(later))) == []


def test_a_machine_whose_clock_is_an_hour_off_is_judged_by_the_others_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = (Heartbeat(tmp_path, World(rank=rank, size=2, local_size=1), 10.0) for rank in range(2))
    (tmp_path / "processes").mkdir()
    watcher, true = Watcher(10.0), time.time()

    def write(hours: int) -> None:
        """Move on, on a machine with this clock, whose disk has it too."""
        with monkeypatch.context() as patch:
            for name in ("time", "monotonic"):
                patch.setattr(time, name, lambda: true + 3600 * hours)
            writer.reach("in a backward pass")
            writer._write()
        os.utime(tmp_path / "processes/rank-00001.json", (true + 3600 * hours,) * 2)

    def named(now: float) -> list[int]:
        reader.reach("in a backward pass")
        reader._write()
        return [beat.rank for beat in watcher.stopped(reader._read(), now)]

    for now, hours in ((0.0, 1), (6.0, -1), (12.0, 1), (18.0, 1)):
        write(hours)
        assert named(now) == []
    assert named(24.0) == []
    assert named(29.0) == [1]


def test_the_line_names_process_machine_and_place() -> None:
    one = replace(BEATS[1], doing="loading the clips of step 4")
    line = describe([one], 3, 10.0, Path("runs/a/processes"))
    assert "waited 10 s or more for process 1 (node-1, pid 101), last loading the clips of step 4" in line
    assert "all are starting" in describe(list(BEATS.values()), 3, 10.0, Path())


def test_a_file_is_written_while_the_loop_runs_and_removed_after_it(tmp_path: Path) -> None:
    heart = Heartbeat(tmp_path, World(), 0.02)
    file = tmp_path / "processes/rank-00000.json"
    heart.reach("loading the clips of step 5")
    heart.start()
    while not file.is_file():
        time.sleep(0.01)
    assert json.loads(file.read_text())["doing"] == "loading the clips of step 5"
    heart.close()
    assert not file.exists()


def test_the_flight_recorder_is_set_by_the_environment(tmp_path: Path) -> None:
    found: dict[str, str] = {}
    record_flights(tmp_path, found.setdefault)
    assert found["TORCH_FR_BUFFER_SIZE"] == found["TORCH_NCCL_TRACE_BUFFER_SIZE"] == "2000"
    assert found["TORCH_FR_DUMP_ON_TIMEOUT"] == found["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
    assert found["TORCH_FR_DUMP_TEMP_FILE"] == str(tmp_path / "processes/collectives-")
    assert (tmp_path / "processes").is_dir()


@pytest.mark.slow
def test_a_process_that_is_stopped_is_named(tmp_path: Path) -> None:
    loop = {"max_steps": 1_000_000, "epoch_steps": 1_000_000, "stall_seconds": 4.0}
    config = tiny(make_data(tmp_path / "data"), tmp_path, loop=loop, data={"clips_multiple": 2})
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", "-m", "four_d.cli", "train", str(tmp_path / "run.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    log, file = tmp_path / "log.txt", config.run_folder / "processes/rank-00001.json"
    with log.open("w") as output:
        run = subprocess.Popen(command, stderr=output, stdout=output, env=environment)
    victim = 0
    try:
        while not (file.is_file() and len(read_metrics(config.run_folder)) > 2) and run.poll() is None:
            time.sleep(0.1)
        victim = json.loads(file.read_text())["pid"]
        os.kill(victim, signal.SIGSTOP)
        while "waited 4 s or more for process 1" not in log.read_text() and run.poll() is None:
            time.sleep(0.1)
        assert run.poll() is None, log.read_text()[-3000:]
        assert f"pid {victim}" in log.read_text()
        assert "four_d/training" in (config.run_folder / "processes/rank-00000.stacks.txt").read_text()
    finally:
        if victim:
            os.kill(victim, signal.SIGKILL)
        run.terminate()
        run.wait()
