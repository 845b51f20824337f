"""Two machines that lose each other: torchrun starts the run again, and it ends as an undisturbed one, to the bit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import nodes, soak
from four_d import sharding
from four_d.checkpoints import LAST


@pytest.mark.slow
def test_a_run_goes_on_after_its_network_was_cut(tmp_path: Path) -> None:
    reason = nodes.missing()
    if reason is not None:
        pytest.skip(reason)
    data = soak.small_data(tmp_path / "data")
    whole, cut = (nodes.config(data, tmp_path / name, "ddp") for name in ("whole", "cut"))
    assert soak._ended(soak._start(whole, 2, tmp_path)) == 0
    with nodes.Network(f"test{os.getpid()}") as network:
        outcome = nodes.run(network, cut, tmp_path, nodes.cut, after=3)
    assert outcome.at < soak.STEPS
    logs = "".join((tmp_path / f"cut.{number}.log").read_text() for number in range(2))
    assert "lost the others" in logs
    assert "exitcode: 2" in logs
    assert soak.same(*(sharding.read(each.run_folder / LAST) for each in (whole, cut)))
