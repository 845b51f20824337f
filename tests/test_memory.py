"""Memory: the counter on sizes that are known by hand, the estimate of a pass beside the true one, what is free."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from four_d import memory
from four_d.data.shards import finalise, write_shard
from four_d.devices import TooLarge, told_when_full
from four_d.errors import UserError
from four_d.evaluation import EvaluationConfig, Videos
from four_d.evaluation.published import stretch
from four_d.inference import LoadedModel
from four_d.inference import model as inference_model
from four_d.memory import FusedAttention, LiveBytes, free_bytes, pass_bytes
from four_d.types import Clip
from tests.helpers import box_clip
from tests.test_segments import TINY, loaded

KB = 1024


def test_storages_count_from_birth_to_death_and_views_once() -> None:
    there = torch.ones(KB)
    with LiveBytes([there]) as live:
        one = there + there
        view = one[:10]
        one.add_(1)
        assert (live.now, live.peak) == (4 * KB, 4 * KB)
        two = one.double()
        assert live.now == 12 * KB
        del one
        assert live.now == 12 * KB  # the view holds it
        del view
        assert live.now == 8 * KB
        three = two.bfloat16()
    del two, three
    assert (live.now, live.peak) == (0, 12 * KB)


@pytest.mark.parametrize("fake", [False, True])
def test_what_the_backward_pass_needs_is_alive(fake: bool) -> None:
    def run(x: torch.Tensor, *, again: bool) -> int:
        with LiveBytes([x]) as live:
            y = checkpoint(chain, x, use_reentrant=False) if again else chain(x)
            kept = live.now
            y.sum().backward()
        return kept

    def chain(x: torch.Tensor) -> torch.Tensor:
        return x.sin().sin().sin()

    def both() -> None:
        x = torch.ones(KB, requires_grad=True)
        assert run(x, again=False) == 3 * 4 * KB  # two inputs of a sine, one result
        assert run(x, again=True) == 4 * KB

    if fake:
        with FakeTensorMode():
            both()
    else:
        both()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_attention_makes_no_square(dtype: torch.dtype) -> None:
    n, heads, width = 4096, 2, 64
    with FakeTensorMode(), torch.device("cuda:0"):
        q, k, v = (torch.rand(1, heads, n, width, dtype=dtype) for _ in range(3))
        with torch.no_grad(), FusedAttention(), LiveBytes([q, k, v]) as live:
            functional.scaled_dot_product_attention(q, k, v, scale=0.1)
        assert q.nbytes <= live.peak < 2 * q.nbytes


@pytest.fixture(scope="module")
def unified() -> LoadedModel:
    # at so few pixels the search for windows would be most of the memory
    return loaded(["overlays/unified_mini"], [*TINY, "model.refine=null"])


def noise(frames: int, side: int, queries: int = 1) -> Clip:
    times = torch.arange(frames).float()[None]
    return Clip(
        images=torch.rand(1, frames, 3, side, side),
        times=times,
        camera_ids=torch.zeros(1, frames, dtype=torch.long),
        query_times=times[:, :queries],
    )


def test_a_pass_without_values_counts_what_a_real_one_takes(unified: LoadedModel) -> None:
    """Every head, written-out attention, chunks and queries."""
    for model, clip in ((unified, noise(6, 24, 2)), (unified.without("gaussians"), noise(9, 32, 2))):
        there = [*model.model.parameters(), *model.model.buffers(), clip.images]
        with torch.no_grad(), LiveBytes(there) as live:
            first = None
            for prediction in model.model.passes(clip):
                first = first or prediction
                del prediction
        assert pass_bytes(model.model, clip) == pytest.approx(live.peak, rel=0.02)


MEASURE = """
import sys
import torch
from benchmarks.vggt_parity import peak_of
from four_d.inference import load
from four_d.memory import pass_bytes
from tests.test_memory import noise

model, clip = load(sys.argv[1]).without("gaussians").model, noise(int(sys.argv[2]), int(sys.argv[3]), 2)

def passes():
    with torch.no_grad():
        first = None
        for prediction in model.passes(clip):
            first = first or prediction
            del prediction

expected = pass_bytes(model, clip)
passes()
print(expected, peak_of(passes, "cpu"))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("frames", "side"), [(24, 128), (6, 160)])
def test_the_estimate_is_near_what_the_process_takes(frames: int, side: int) -> None:
    """The search for matches takes 5 MB a frame whatever its size, more than small pictures do; nothing counts it."""
    command = [sys.executable, "-c", MEASURE, "checkpoints/unified-base", str(frames), str(side)]
    exact = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 16), "MALLOC_TRIM_THRESHOLD_": "0"}
    root = Path(__file__).parents[1]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=root, env=exact)
    expected, measured = map(int, printed.stdout.split())
    assert 0.8 < measured / expected < 1.25


def test_what_would_not_fit_is_refused_before_it_begins(unified: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_model, "_FITTING", set())
    monkeypatch.setattr(memory, "free_bytes", lambda _: 1_000_000)
    clip = noise(12, 48, 2)
    with pytest.raises(TooLarge, match=r"12 frames of 48×48 pixels at once need about 0\.\d+ GB .* 0\.001 GB are free"):
        unified.without("gaussians")(clip)
    with pytest.raises(UserError, match="are free; take fewer"), told_when_full("take fewer"):
        unified.without("gaussians").passes(clip)
    unified(noise(6, 24))  # as in training
    monkeypatch.setattr(memory, "free_bytes", lambda _: 10**12)
    with torch.inference_mode():
        unified.without("gaussians").check_fits(noise(12, 48, 2))
    monkeypatch.setattr(memory, "free_bytes", lambda _: 1_000_000)
    unified.without("gaussians").check_fits(clip)  # once a clip of its kind has begun, none is stopped
    monkeypatch.setattr(LoadedModel, "device", torch.device("cuda"))
    with pytest.raises(TooLarge):
        unified.without("gaussians").check_fits(clip)


def test_pictures_that_would_not_fit_are_not_made(tmp_path: Path) -> None:
    """The system would promise the memory of 12 frames at a long side of 100,000, and then end the process."""
    with pytest.raises(TooLarge, match=r"12 frames of 100000×75000 pixels at once need about 1\.2e\+03 GB as pictures"):
        stretch(np.zeros((12, 3, 4, 3), np.uint8), (75000, 100000))
    write_shard(tmp_path, 0, [box_clip(0, frames=3, cameras=1, size=16)])
    finalise(tmp_path, "boxes")
    config = EvaluationConfig(data=str(tmp_path), size=(200000, 200000))
    with pytest.raises(TooLarge, match=r"3 frames of 200000×200000 pixels"):
        Videos.open(tmp_path, config, None)


def test_a_container_counts_as_the_memory_that_it_leaves(tmp_path: Path) -> None:
    assert memory._left_in_group(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("100\n")
    assert memory._left_in_group(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory._left_in_group(tmp_path) == 900
    (tmp_path / "memory.stat").write_text("anon 70\ninactive_file 30\n")
    assert memory._left_in_group(tmp_path) == 930
    info = tmp_path / "meminfo"
    info.write_text("MemTotal:  99 kB\nMemAvailable:  2 kB\n")
    assert memory._available(info) == 2048


def test_the_groups_of_a_batch_job_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, job = tmp_path / "own", tmp_path / "memory" / "slurm" / "job_7"
    own.write_text("9:cpu,memory:/slurm/job_7/step\n0::/user.slice/a.scope\n")
    groups = memory._groups(own, tmp_path)
    assert {tmp_path, job, job / "step", tmp_path / "user.slice" / "a.scope"} <= set(groups)
    job.mkdir(parents=True)
    (job / "memory.limit_in_bytes").write_text("500\n")
    (job / "memory.usage_in_bytes").write_text("100\n")
    (job / "memory.stat").write_text("total_inactive_file 20\n")
    monkeypatch.setattr(memory, "_groups", lambda: groups)
    assert free_bytes(torch.device("cpu")) == 420
