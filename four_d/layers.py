"""What transformers are made of: attention, blocks, rotary positions, and the switch to full precision.

The numbers are VGGT's (arXiv 2503.11651): pre-norm blocks with layer scale, query and key normalised per head before
rotation, LayerNorm with eps 1e-5, exact GELU.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

AttentionBackend = Literal["sdpa", "matmul"]
"""Who computes attention. Chosen by configuration, never by what happens to be installed.

``sdpa`` is torch's fused kernel. ``matmul`` writes the formula out: memory grows with n·m, but training in bfloat16 on
a CPU with short sequences takes a fourth of the time (`tests/test_layers.py` holds the two equal).
"""

Rotation = tuple[Float[Tensor, "n 2 q"], Float[Tensor, "n 2 q"]]
"""Cosine and sine per token, per axis (row, column), per frequency; q is a quarter of the head's width."""


def attention(
    q: Float[Tensor, "b heads n d"],
    k: Float[Tensor, "b heads m d"],
    v: Float[Tensor, "b heads m d"],
    backend: AttentionBackend = "sdpa",
) -> Float[Tensor, "b heads n d"]:
    """softmax(q·kᵀ/√d)·v, the only place where attention is computed. Queries and keys are cast to the values' type."""
    q, k = q.to(v.dtype), k.to(v.dtype)
    match backend:
        case "sdpa":
            return functional.scaled_dot_product_attention(q, k, v)
        case "matmul":
            return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1).to(v.dtype) @ v


def grid_positions(rows: int, columns: int, special: int, device: torch.device) -> Float[Tensor, "n 2"]:
    """(row, column) of each token of a frame, counted from 1; the ``special`` tokens come first and sit at (0, 0)."""
    row = torch.arange(1, rows + 1, device=device)
    column = torch.arange(1, columns + 1, device=device)
    patches = torch.stack(torch.meshgrid(row, column, indexing="ij"), dim=-1).reshape(-1, 2)
    return functional.pad(patches, (0, 0, special, 0)).float()


def rotation_tables(positions: Float[Tensor, "n 2"], head_width: int, base: float, dtype: torch.dtype) -> Rotation:
    """The angles of 2D rotary embedding (RoFormer, arXiv 2104.09864, per axis): position · base^(-i/q)."""
    quarter = head_width // 4
    exponents = torch.arange(quarter, device=positions.device, dtype=dtype) / quarter
    angles = positions.to(dtype)[:, :, None] * base**-exponents
    return angles.cos(), angles.sin()


def rotate(x: Float[Tensor, "b heads n d"], rotation: Rotation) -> Float[Tensor, "b heads n d"]:
    """Turn queries or keys by their tokens' positions: the first half of d by the row, the second by the column.

    Within each half, channel i pairs with channel i + q ("half-split"), not with its neighbour.
    """
    cosine, sine = rotation
    first, second = x.unflatten(-1, (2, 2, -1)).unbind(-2)
    turned = torch.stack([first * cosine - second * sine, second * cosine + first * sine], dim=-2)
    return turned.flatten(-3)


def full_type(dtype: torch.dtype) -> torch.dtype:
    """The type to compute in where half precision would not do: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


@contextmanager
def full_precision(device: torch.device) -> Generator[None]:
    """Switch autocast off inside; cast what comes in with `full_type`."""
    if not torch.is_autocast_enabled(device.type):
        yield
        return
    with torch.autocast(device.type, enabled=False):
        yield


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch (arXiv 2103.17239)."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        """Scale the last axis."""
        return x * self.gamma


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b o"]:
        """Each token by itself."""
        return self.fc2(functional.gelu(self.fc1(x)))


class Attention(nn.Module):
    """Multi-head self-attention with optional rotary positions and per-head normalisation of queries and keys."""

    def __init__(self, width: int, heads: int, *, qk_norm: bool, backend: AttentionBackend = "sdpa") -> None:
        super().__init__()
        self.heads = heads
        self.backend: AttentionBackend = backend
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b n c"], rotation: Rotation | None = None) -> Float[Tensor, "b n c"]:
        """Tokens mixed within each row of the batch."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        mixed = attention(q, k, v, self.backend)
        return self.proj(mixed.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """Pre-norm transformer block: x + s₁·attention(norm x), then x + s₂·mlp(norm x). The region that is compiled."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        qk_norm: bool = False,
        layer_scale: float | None = 0.01,
        backend: AttentionBackend = "sdpa",
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, qk_norm=qk_norm, backend=backend)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio), width)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)

    def forward(self, x: Float[Tensor, "b n c"], rotation: Rotation | None = None) -> Float[Tensor, "b n c"]:
        """Tokens mixed within each row of the batch; ``rotation`` holds their positions."""
        x = x + self.ls1(self.attn(self.norm1(x), rotation))
        return x + self.ls2(self.mlp(self.norm2(x)))
