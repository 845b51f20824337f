"""Every config on a pretended CUDA device: nothing is on the wrong device, and a step hardly ever waits for it."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.on_cuda import ASKED, CONFIGS, DRAWN, IN_TORCH, run
from tests.pretend_cuda import lacking, pretend_cuda

pytestmark = pytest.mark.skipif(lacking() is not None, reason=lacking() or "")
MOST_WAITS = 2
"""Waits of a step of training for the device."""


def rules() -> None:
    """Check the pretended device, in a process of its own."""
    with pretend_cuda("test_on_cuda") as seen:
        layer = nn.Linear(3, 2).to("cuda")
        there, here = torch.ones(4, 3, device="cuda"), torch.ones(4, 3)
        assert layer.weight.device == there.device == torch.device("cuda:0")
        for wrong in (lambda: layer(here), lambda: there + here, lambda: here[there.bool()]):
            with pytest.raises(RuntimeError, match="same device"):
                wrong()
        with pytest.raises(TypeError, match="to host memory first"):
            there.numpy()
        with pytest.raises(RuntimeError, match=r"not implemented for torch\.int64"):
            there.long() @ there.long().mT
        with pytest.raises(RuntimeError, match="'cuda' device type for generator"):
            torch.rand(2, device="cuda", generator=torch.Generator())
        assert (there + torch.tensor(1.0)).sum() == 24, "a number of the host goes with any device"
        seen.clear()
        optimiser = torch.optim.AdamW(layer.parameters(), fused=True)
        with torch.autocast("cuda", torch.bfloat16):
            out = layer(there)
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
        optimiser.step()
        assert layer.weight.grad is not None
        assert layer.weight.grad.device.type == "cuda"
        assert copy.deepcopy(layer).weight.device.type == "cuda"
        here.pin_memory().to("cuda", non_blocking=True)
        assert not seen.blocking(), seen.report()
        for kind, waiting in WAITING.items():
            seen.clear()
            waiting(there)
            assert [wait.kind for wait in seen.blocking().elements()] == [kind], seen.report()
        with seen.pause():
            there.sum().item()
        assert seen.blocking().total() == 1
        assert not seen.doubles
        there.double().sum()
        assert seen.doubles
        saved = pickle.loads(pickle.dumps(there))
        assert saved.device.type == "cpu"
        assert torch.equal(saved, there.cpu())
    assert not torch.cuda.is_available()


WAITING: dict[str, Callable[[Tensor], object]] = {
    "number": lambda there: there.sum().item(),
    "boolean index": lambda there: there[there > 1],
    "size or check": lambda there: there.nonzero(),
    "host to device": lambda there: there[torch.tensor([0])],
    "device to host": lambda there: there.cpu(),
}
"""Kinds of waits, with an operation each."""


def test_the_device_has_cudas_rules_and_every_wait_is_counted() -> None:
    code = f"from {__name__} import rules; rules()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_trains_resumes_and_is_used_and_a_step_hardly_waits(name: str, tmp_path: Path) -> None:
    report = run(name, tmp_path)
    assert {"train", "validate", "resume", "export"} <= {*report.done}
    assert len(report.waits) <= MOST_WAITS, "\n".join(report.waits)
    assert len([wait for wait in report.waits if "rendering/" in wait]) == ASKED.get(name, 0), "\n".join(report.waits)
    assert len(report.recorded) <= len(report.waits) + 1, "figures come back in one wait"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(DRAWN.keys() - {"unified"}))  # which renders as dgs_lrm does
def test_without_gsplat_the_host_waits_once_for_each_list_of_gaussians(name: str, tmp_path: Path) -> None:
    drawn = [wait for wait in run(f"{name}{IN_TORCH}", tmp_path).waits if "rendering/" in wait]
    assert len(drawn) == DRAWN[name], "\n".join(drawn)
    assert all("tiles.py" in wait for wait in drawn), "for the lengths of the lists alone"


@pytest.mark.slow
def test_reference_models_see_a_video_there(tmp_path: Path) -> None:
    assert len(run("references", tmp_path).done) == 2
