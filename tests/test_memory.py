"""The counter behind the memory benchmark, on sizes that are known by hand."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from benchmarks.memory import FusedAttention, LiveBytes

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
