from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from four_d.layers import (
    Attention,
    Block,
    Linear,
    NormalisedLinear,
    attention,
    full_precision,
    grid_positions,
    rotate,
    rotation_tables,
)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_attention_backends_agree_forward_and_backward() -> None:
    results: list[list[torch.Tensor]] = []
    for backend in ("sdpa", "matmul"):
        q, k, v = (draw(2, 3, n, 16, seed=n).requires_grad_() for n in (7, 9, 9))
        k.data, v.data = k.data + 0.1, v.data - 0.1
        out = attention(q, k, v, backend)
        out.sin().sum().backward()
        results.append([out, q.grad, k.grad, v.grad])
    for one, two in zip(*results):
        torch.testing.assert_close(one, two)


def test_positions_start_at_one_and_special_tokens_sit_at_zero() -> None:
    positions = grid_positions(2, 3, 2, torch.device("cpu"))
    assert positions.tolist() == [[0, 0], [0, 0], [1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]]


def test_rotation_depends_on_difference_of_positions_only() -> None:
    """⟨R(p)q, R(s)k⟩ = ⟨R(p+t)q, R(s+t)k⟩, for rows and for columns; and it does depend on the difference."""
    q, k = draw(1, 1, 1, 16, seed=1), draw(1, 1, 1, 16, seed=2)

    def product(p: list[float], s: list[float]) -> torch.Tensor:
        turned = [
            rotate(x, rotation_tables(torch.tensor([at]), 16, 100.0, torch.float64)) for x, at in ((q, p), (k, s))
        ]
        return (turned[0] * turned[1]).sum()

    base = product([1.0, 2.0], [3.0, 5.0])
    torch.testing.assert_close(product([4.0, 2.0], [6.0, 5.0]), base)
    torch.testing.assert_close(product([1.0, 9.0], [3.0, 12.0]), base)
    assert (product([2.0, 2.0], [3.0, 5.0]) - base).abs() > 1e-3
    assert (product([1.0, 3.0], [3.0, 5.0]) - base).abs() > 1e-3


def test_rotation_at_the_origin_changes_nothing() -> None:
    x = draw(1, 2, 3, 8)
    torch.testing.assert_close(rotate(x, rotation_tables(torch.zeros(3, 2), 8, 100.0, torch.float64)), x)


def test_weight_normalisation_starts_as_the_plain_layer_and_learns_lengths_apart_from_directions() -> None:
    torch.manual_seed(0)
    plain = Linear(6, 5)
    torch.manual_seed(0)
    layer = NormalisedLinear(6, 5)
    x = torch.randn(3, 6)
    torch.testing.assert_close(layer(x), plain(x))
    with torch.no_grad():
        layer.weight.mul_(torch.arange(1.0, 6.0)[:, None])
    torch.testing.assert_close(layer(x), plain(x), msg="a direction has no length")
    with torch.no_grad():
        layer.length.mul_(2)
    torch.testing.assert_close(layer(x), 2 * plain(x) - plain.bias)
    layer(x).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in layer.parameters())
    across = (layer.weight.grad * layer.weight).sum(1)
    torch.testing.assert_close(across, torch.zeros(5), atol=1e-4, rtol=0)
    with torch.device("meta"):
        whole = Block(16, 2, weight_norm=True)
    assert {name.split(".")[-2] for name, _ in whole.named_parameters() if name.endswith("length")} == {
        *("qkv", "proj", "fc1", "fc2")
    }


def test_block_with_zero_layer_scale_is_the_identity() -> None:
    block = Block(16, 2, layer_scale=0.0).double()
    x = draw(1, 5, 16)
    assert torch.equal(block(x), x)


def test_qk_norm_makes_attention_blind_to_the_size_of_queries() -> None:
    layer = Attention(16, 2, qk_norm=True).double()
    x = draw(1, 5, 16)
    before = layer(x)
    with torch.no_grad():
        layer.qkv.weight[:16] *= 50
        layer.qkv.bias[:16] *= 50
    torch.testing.assert_close(layer(x), before, atol=1e-3, rtol=1e-3)


def test_full_precision_switches_autocast_off_and_on_again() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        with full_precision(torch.device("cpu")):
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")


COMPILE = """
import torch
from torch import nn
from four_d.layers import Block
from four_d.model import compile_blocks
torch.set_num_threads(1)
net = nn.Sequential(*(Block(16, 2, layer_scale=None) for _ in range(3)))
names = list(net.state_dict())
x = torch.randn(2, 5, 16, requires_grad=True)
def run():
    net.zero_grad()
    out = net(x)
    out.sin().sum().backward()
    return [out.detach(), *(p.grad.clone() for p in net.parameters())]
eager = run()
compile_blocks(net)
for one, two in zip(eager, run()):
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
assert list(net.state_dict()) == names
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "one graph must serve all blocks"
"""


@pytest.mark.slow
def test_compiled_blocks_give_the_same_under_the_same_names() -> None:
    """In a process of its own, without the run-time type checks of the tests."""
    subprocess.run([sys.executable, "-c", COMPILE], check=True)


VARIED = """
import torch
from torch._dynamo.testing import CompileCounter
from four_d.layers import Block, grid_positions, rotation_tables
torch.set_num_threads(1)
counter, block = CompileCounter(), Block(16, 2, qk_norm=True, layer_scale=0.1)
block.compile(backend=counter)
for rows, tokens in ((6, 20), (4, 24), (8, 12), (2, 35), (12, 16), (3, 30)):
    x = torch.randn(rows, tokens, 16, requires_grad=True)
    rotation = rotation_tables(grid_positions(1, tokens, 0, x.device), 8, 100.0, x.dtype)
    block(x, rotation).sum().backward()
assert counter.frame_count <= 3, counter.frame_count
"""


@pytest.mark.slow
def test_a_compiled_block_takes_any_number_of_rows_and_tokens() -> None:
    """Batches have many shapes, and a block is compiled a few times for all of them."""
    subprocess.run([sys.executable, "-c", VARIED], check=True)
