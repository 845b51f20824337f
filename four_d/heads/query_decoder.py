"""A query that enters after the shared stack: one encoding, then a light decoding for each query time (ours).

DePT3R's query enters before the stack, so every time costs a pass. Here each frame's tokens look at their own frame and
at the query frame only, in a few blocks (the idea of late queries: D4RT 2512.08924, V-DPM 2601.09499, 4RC 2602.10094).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from four_d.correlation import CorrelationConfig, Found, by_patch, fetch
from four_d.errors import UserError
from four_d.layers import AttentionBackend, Block, Linear, full_precision, full_type, grid_positions, rotation_tables
from four_d.query import Query, QueryConfig, frames_at, reference_frames
from four_d.types import Clip, Tokens


@dataclass(frozen=True, kw_only=True)
class QueryDecoderConfig:
    """Sizes of a `QueryDecoder`."""

    kind: Literal["query_decoder"] = "query_decoder"
    width: int = 512
    depth: int = 2
    """Blocks."""
    heads: int = 8
    mlp_ratio: float = 4.0
    layer_scale: float | None = 0.01
    rope_base: float = 100.0
    attention: AttentionBackend = "sdpa"
    gaps: bool = False
    """As `query.QueryConfig.gaps`."""
    correlation: CorrelationConfig | None = None
    """The backbone's, if frames are to be compared with the query frame here."""
    values: int = 16
    """Where frames are compared: numbers per cell that each frame and the query frame, where it shows the same, are
    told apart by."""

    def build(self, *, token_width: int, rounds: tuple[int, ...]) -> QueryDecoder:
        """UserError where sizes do not fit each other."""
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise UserError(
                f"query decoder: width {self.width} over {self.heads} heads must be a multiple of 4 each; change either"
            )
        blocks = [
            Block(
                self.width,
                self.heads,
                mlp_ratio=self.mlp_ratio,
                qk_norm=True,
                layer_scale=self.layer_scale,
                backend=self.attention,
            )
            for _ in range(self.depth)
        ]
        query = QueryConfig(gaps=self.gaps).build(self.width, self.correlation)
        head_width = self.width // self.heads
        change = None if self.correlation is None else Change(self.correlation.cells, self.values, self.width)
        return QueryDecoder(token_width, rounds, query, blocks, change, head_width=head_width, rope_base=self.rope_base)


class Change(nn.Module):
    """What to add to the tokens: how learned numbers differ between each cell and where the query frame shows the same.

    Motion is such a difference, that of the points' coordinates.
    """

    def __init__(self, cells: int, values: int, width: int) -> None:
        super().__init__()
        self.cells = cells
        self.values = Linear(width, values * cells**2)
        self.project = nn.Linear(values * cells**2, width)

    def forward(
        self, tokens: Float[Tensor, "b f p e"], grid: tuple[int, int], references: Int[Tensor, "b f"], found: Found
    ) -> Float[Tensor, "b f p e"]:
        """Zero where there is no difference."""
        laid = self.values(tokens).flatten(0, 1).mT.unflatten(-1, grid)
        values = functional.pixel_shuffle(laid, self.cells).movedim(1, -1).unflatten(0, tokens.shape[:2])
        with full_precision(tokens.device):
            values = values.to(full_type(values.dtype))
            change = fetch(values, references, found.place) - values
        return self.project(by_patch(change, self.cells))


class QueryDecoder(nn.Module):
    """Adds to the token maps what a query time says. It adds nothing at the start."""

    def __init__(
        self,
        token_width: int,
        rounds: tuple[int, ...],
        query: Query,
        blocks: list[Block],
        change: Change | None = None,
        *,
        head_width: int,
        rope_base: float = 100.0,
    ) -> None:
        super().__init__()
        self.rounds, self.head_width, self.rope_base = rounds, head_width, rope_base
        width = query.embedding.shape[0]
        self.norm = nn.LayerNorm(token_width)
        self.project = Linear(token_width, width)
        self.query, self.change = query, change
        self.blocks = nn.ModuleList(blocks)
        self.norm_out = nn.LayerNorm(width)
        self.out = nn.ModuleList(Linear(width, token_width) for _ in rounds)
        for layer in self.out:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tokens, clip: Clip, query: Float[Tensor, "b"]) -> Tokens:
        """The token maps of its rounds for one query time. UserError: see `query.frames_at`."""
        last = tokens.patches[tokens.rounds.index(self.rounds[-1])]
        there = reference_frames(frames_at(clip, query), clip.camera_ids)
        own = self.project(self.norm(last.to(full_type(last.dtype))))
        asked, found = self.query(clip, query, own, tokens.features)
        if self.change is not None and found is not None:
            asked = asked + self.change(own, tokens.grid, there, found).to(asked.dtype)
        own = asked
        # The same frames' tokens again, for every frame that looks at them.
        others = own[torch.arange(len(own), device=own.device)[:, None], there]
        b, f, p, _ = own.shape
        x = torch.cat([own, others], dim=2).flatten(0, 1)
        positions = grid_positions(*tokens.grid, 0, x.device).repeat(2, 1)
        rotation = rotation_tables(positions, self.head_width, self.rope_base, full_type(x.dtype))
        for block in self.blocks:
            x = block(x, rotation)
        x = self.norm_out(x[:, :p]).unflatten(0, (b, f))
        maps = list(tokens.patches)
        for round_, layer in zip(self.rounds, self.out, strict=True):
            place = tokens.rounds.index(round_)
            maps[place] = maps[place] + layer(x)
        logits = None if found is None else found.logits[:, None]
        return dataclasses.replace(tokens, patches=tuple(maps), match_logits=logits)
