"""Transformer layers: attention, blocks, rotary positions; embedding of names; and the switch to full precision.

The design is VGGT's (arXiv 2503.11651): pre-norm blocks with layer scale, query and key normalised per head before
rotation, LayerNorm with eps 1e-5, exact GELU.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from four_d.devices import autocasts
from four_d.errors import UserError
from four_d.keypoints import letter_groups

AttentionBackend = Literal["sdpa", "matmul", "xformers"]
"""Implementation of attention. Chosen by configuration, never by installed packages.

``sdpa`` is torch's fused kernel. ``matmul`` is the explicit formula: memory grows with n·m, but training in bfloat16 on
a CPU with short sequences takes a fourth of the time. ``xformers`` is its memory-efficient kernel: CUDA, extra
``xformers``. `tests/test_layers.py` checks that they are equal.
"""

RankOne = tuple[Float[Tensor, "b n"], Float[Tensor, "b m"]]
"""Factors per query and per key, whose products are added to the attention logits of every head."""
FOLD = 8
"""Channels that a rank-one bias adds to each head: fused kernels need multiples of 8."""

Rotation = tuple[Float[Tensor, "n 2 q"], Float[Tensor, "n 2 q"]]
"""Cosine and sine per token, per axis (row, column), per frequency; q is a quarter of the head's width."""


def attention(
    q: Float[Tensor, "b heads n d"],
    k: Float[Tensor, "b heads m d"],
    v: Float[Tensor, "b heads m d"],
    backend: AttentionBackend = "sdpa",
    bias: RankOne | None = None,
) -> Float[Tensor, "b heads n d"]:
    """Compute softmax(q·kᵀ/√d + r·cᵀ)·v with ``bias`` (r, c), for all attention in the package.

    Queries and keys are cast to the values' type. UserError for ``xformers`` where it is not installed.
    """
    width, scale = v.shape[-1], q.shape[-1] ** -0.5
    if bias is not None:
        q, k, v = fold(q, k, v, bias)
    q, k = q.to(v.dtype), k.to(v.dtype)
    match backend:
        case "sdpa":
            mixed = functional.scaled_dot_product_attention(q, k, v, scale=scale)
        case "matmul":
            mixed = (q * scale @ k.mT).softmax(-1).to(v.dtype) @ v
        case "xformers":
            mixed = xformers_attention(q, k, v, scale)
    return mixed if bias is None else mixed[..., :width]


def fold(
    q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads m d"], v: Float[Tensor, "b heads m d"], bias: RankOne
) -> tuple[Float[Tensor, "b heads n e"], Float[Tensor, "b heads m e"], Float[Tensor, "b heads m e"]]:
    """Append a rank-one bias as a channel of queries and keys, without an n × m matrix, so that fused kernels apply.

    (PAGE-4D's released code, arXiv 2510.17568.) The channel holds r·√d and c, since logits are divided by √d.
    """
    rows, keys = (each[:, None, :, None].to(q.dtype) for each in bias)
    heads, width = q.shape[1], q.shape[-1]
    rows, keys = rows.expand(-1, heads, -1, -1), keys.expand(-1, heads, -1, -1)
    q = functional.pad(torch.cat([q, rows * width**0.5], dim=-1), (0, FOLD - 1))
    k = functional.pad(torch.cat([k.to(q.dtype), keys], dim=-1), (0, FOLD - 1))
    return q, k, functional.pad(v, (0, FOLD))


def xformers_attention(
    q: Float[Tensor, "b heads n e"], k: Float[Tensor, "b heads m e"], v: Float[Tensor, "b heads m e"], scale: float
) -> Float[Tensor, "b heads n e"]:
    """Call the memory-efficient kernel of xformers. UserError where it is not installed."""
    try:
        kernel = importlib.import_module("xformers.ops").memory_efficient_attention  # an optional dependency
    except ImportError as error:
        raise UserError(
            "attention: xformers is not installed; pip install 'four_d[xformers]' or choose sdpa"
        ) from error
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    return kernel(q, k, v, scale=scale).transpose(1, 2)


def grid_positions(rows: int, columns: int, special: int, device: torch.device) -> Float[Tensor, "n 2"]:
    """(row, column) of each token of a frame, counted from 1; the ``special`` tokens come first and sit at (0, 0)."""
    row = torch.arange(1, rows + 1, device=device)
    column = torch.arange(1, columns + 1, device=device)
    patches = torch.stack(torch.meshgrid(row, column, indexing="ij"), dim=-1).reshape(-1, 2)
    return functional.pad(patches, (0, 0, special, 0)).float()


def rotation_tables(positions: Float[Tensor, "n 2"], head_width: int, base: float, dtype: torch.dtype) -> Rotation:
    """Cosines and sines of 2D rotary embedding (RoFormer, arXiv 2104.09864, per axis): position · base^(-i/q)."""
    quarter = head_width // 4
    exponents = torch.arange(quarter, device=positions.device, dtype=dtype) / quarter
    angles = positions.to(dtype)[:, :, None] * base**-exponents
    return angles.cos(), angles.sin()


def rotate(x: Float[Tensor, "b heads n d"], rotation: Rotation) -> Float[Tensor, "b heads n d"]:
    """Rotate queries or keys by their tokens' positions: the first half of d by the row, the second by the column.

    Within each half, channel i pairs with channel i + q ("half-split"), not with its neighbour.
    """
    cosine, sine = rotation
    first, second = x.unflatten(-1, (2, 2, -1)).unbind(-2)
    turned = torch.stack([first * cosine - second * sine, second * cosine + first * sine], dim=-2)
    return turned.flatten(-3)


def full_type(dtype: torch.dtype) -> torch.dtype:
    """Type for computation that needs more than half precision: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


@contextmanager
def full_precision(device: torch.device) -> Generator[None]:
    """Disable autocast inside; cast inputs with `full_type`."""
    if not autocasts(device.type):
        yield
        return
    with torch.autocast(device.type, enabled=False):
        yield


SMALL_PRODUCT = 1 << 22
"""Number of multiplications below which the choice of a product's kernel does not matter."""


def linear(
    x: Float[Tensor, "*b c"], weight: Float[Tensor, "o c"], bias: Float[Tensor, " o"] | None = None
) -> Float[Tensor, "*b o"]:
    """Compute x·weightᵀ + bias. In float32 on a CPU by oneDNN, not MKL: twice as fast on AMD CPUs; rounding differs."""
    if not torch.compiler.is_compiling() and prefers_onednn(x, weight):
        return OneDnnLinear.apply(x.reshape(-1, x.shape[-1]).contiguous(), weight, bias).unflatten(0, x.shape[:-1])
    return functional.linear(x, weight, bias)


def prefers_onednn(x: Tensor, weight: Tensor) -> bool:
    """True if `OneDnnLinear` can compute this product and it is large enough to gain from it."""
    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * weight.shape[0] >= SMALL_PRODUCT
        and not autocasts("cpu")
        and has_onednn()
    )


@cache
def has_onednn() -> bool:
    """True if this torch has oneDNN's linear operator, which is not part of its public interface."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_product(x: Float[Tensor, "n c"], weight: Float[Tensor, "o c"], bias: Tensor | None) -> Float[Tensor, "n o"]:
    """Compute x·weightᵀ + bias without gradient; both may be transposed views."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class OneDnnLinear(torch.autograd.Function):
    """Autograd function of x·weightᵀ + bias."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401 - torch gives it no type
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """Compute the product; ``x`` has two axes and is contiguous."""
        ctx.save_for_backward(x, weight)
        return onednn_product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Compute the gradients that are needed."""
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        return (
            onednn_product(grad, weight.T, None) if ctx.needs_input_grad[0] else None,
            onednn_product(grad.T, x.T, None) if ctx.needs_input_grad[1] else None,
            grad.sum(0) if ctx.needs_input_grad[2] else None,
        )


class Linear(nn.Linear):
    """`torch.nn.Linear` by `linear`."""

    @staticmethod
    def like(layer: nn.Linear) -> Linear:
        """Build a `Linear` that shares another layer's parameters."""
        shared = Linear(layer.in_features, layer.out_features, device="meta")
        shared.weight, shared.bias = layer.weight, layer.bias  # which may be None
        return shared.train(layer.training)

    def forward(self, input: Float[Tensor, "*b c"]) -> Float[Tensor, "*b o"]:  # noqa: A002 - torch's name
        """Apply the layer to the last axis."""
        return linear(input, self.weight, self.bias)


class NormalisedLinear(Linear):
    """`Linear` with rows of a learned length times the direction of ``weight`` (weight normalisation,
    arXiv 1602.07868); initially equal to one without.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__(width, out)
        self.length = nn.Parameter(self.weight.detach().norm(dim=1))

    def forward(self, input: Float[Tensor, "*b c"]) -> Float[Tensor, "*b o"]:  # noqa: A002 - torch's name
        """Apply the layer to the last axis."""
        return linear(input, self.weight * (self.length / self.weight.norm(dim=1))[:, None], self.bias)


class LayerScale(nn.Module):
    """Learned factor per channel on a residual branch (arXiv 2103.17239)."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        """Scale the last axis."""
        return x * self.gamma


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, width: int, hidden: int, out: int, *, weight_norm: bool = False) -> None:
        super().__init__()
        layer = NormalisedLinear if weight_norm else Linear
        self.fc1 = layer(width, hidden)
        self.fc2 = layer(hidden, out)

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b o"]:
        """Apply the layers to each token."""
        return self.fc2(functional.gelu(self.fc1(x)))


class NameEmbedding(nn.Module):
    """Mean of the learned rows of a name's groups of letters (`keypoints.letter_groups`), so any name has one."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.rows = nn.Embedding(rows, width)

    def forward(self, names: Int[Tensor, "b n letters"]) -> Float[Tensor, "b n c"]:
        """Embed each name; padding gives 0."""
        there = (names > 0)[..., None]
        index = letter_groups(names, self.rows.num_embeddings)
        return torch.where(there, self.rows(index), 0).sum(-2) / there.sum(-2).clamp_min(1)


class Attention(nn.Module):
    """Multi-head self-attention with optional rotary positions and per-head normalisation of queries and keys."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        qk_norm: bool,
        weight_norm: bool = False,
        backend: AttentionBackend = "sdpa",
    ) -> None:
        super().__init__()
        layer = NormalisedLinear if weight_norm else Linear
        self.heads = heads
        self.backend: AttentionBackend = backend
        self.qkv = layer(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.proj = layer(width, width)

    def forward(
        self, x: Float[Tensor, "b n c"], rotation: Rotation | None = None, bias: RankOne | None = None
    ) -> Float[Tensor, "b n c"]:
        """Attend within each row of the batch."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        mixed = attention(q, k, v, self.backend, bias)
        return self.proj(mixed.transpose(1, 2).flatten(-2))


class ContextAttention(nn.Module):
    """Multi-head attention of ``x`` to ``context`` (to itself where that is ``x``)."""

    def __init__(self, width: int, heads: int, backend: AttentionBackend) -> None:
        super().__init__()
        self.heads = heads
        self.backend: AttentionBackend = backend
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b n c"], context: Float[Tensor, "b m c"]) -> Float[Tensor, "b n c"]:
        """Attend within each row of the batch."""
        width = x.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = functional.linear(x, weight[:width], bias[:width]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        both = functional.linear(context, weight[width:], bias[width:])
        k, v = both.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(attention(q, k, v, self.backend).transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """Pre-norm transformer block: x + s₁·attention(norm x), then x + s₂·mlp(norm x). Unit of compilation."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        qk_norm: bool = False,
        weight_norm: bool = False,
        layer_scale: float | None = 0.01,
        backend: AttentionBackend = "sdpa",
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, qk_norm=qk_norm, weight_norm=weight_norm, backend=backend)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio), width, weight_norm=weight_norm)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)

    def forward(
        self, x: Float[Tensor, "b n c"], rotation: Rotation | None = None, bias: RankOne | None = None
    ) -> Float[Tensor, "b n c"]:
        """Apply the block within each row of the batch; ``rotation`` encodes positions, ``bias`` is added to logits."""
        x = x + self.ls1(self.attn(self.norm1(x), rotation, bias))
        return x + self.ls2(self.mlp(self.norm2(x)))


def inverse_log(raw: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """sign(y)·(exp|y| − 1): linear near zero, exponential far from it."""
    return torch.sign(raw) * torch.expm1(raw.abs())
