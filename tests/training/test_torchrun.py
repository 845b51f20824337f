"""torchrun starts a run again whose process was killed, and it ends as an undisturbed one, to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import soak
from four_d import sharding
from four_d.checkpoints import LAST
from four_d.config import RunConfig, to_yaml
from four_d.training.record import read_metrics


def launched(config: RunConfig, file: Path) -> subprocess.Popen[bytes]:
    file.write_text(to_yaml(config))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2"]
    with file.with_suffix(".log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, *torchrun, "-m", "four_d.cli", "train", str(file)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
            stdout=log,
            stderr=log,
        )


@pytest.mark.slow
def test_a_killed_process_of_two_is_started_again(tmp_path: Path) -> None:
    data, two = soak.small_data(tmp_path / "data"), soak.Soak(processes=2, strategy="ddp")
    whole, killed = (soak.small_config(data, tmp_path / name, two) for name in ("whole", "killed"))
    assert launched(whole, tmp_path / "whole.yaml").wait() == 0
    torchrun = launched(killed, tmp_path / "killed.yaml")
    while len(read_metrics(killed.run_folder)) < 6:
        assert torchrun.poll() is None, (tmp_path / "killed.log").read_text()
        time.sleep(0.05)
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert torchrun.wait() == 0
    # torchrun reports the process that it saw end first: the killed one, or the one that lost it
    assert (tmp_path / "killed.log").read_text().count("training soak on cpu") == 2, "started twice"
    assert soak.same(*(sharding.read(each.run_folder / LAST) for each in (whole, killed)))
