"""Late query decoder: one encoding by the shared backbone, then a light decoding for each query time (ours).

DePT3R's query enters before the backbone, so every time costs a pass. Here each frame's tokens attend to their own
frame and to the query frame only, in a few blocks (late queries: D4RT 2512.08924, V-DPM 2601.09499, 4RC 2602.10094).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from four_d.correlation import CorrelationConfig, SoftMatches, by_patch, fetch
from four_d.errors import UserError
from four_d.layers import AttentionBackend, Block, Linear, full_precision, full_type, grid_positions, rotation_tables
from four_d.query import Query, QueryConfig, frames_at, reference_frames
from four_d.types import Clip, Tokens


@dataclass(frozen=True, kw_only=True)
class QueryDecoderConfig:
    """Sizes of a `QueryDecoder`."""

    width: int = 512
    """Channels of the decoder's tokens, a multiple of four times ``heads``."""
    depth: int = 2
    """Number of blocks."""
    heads: int = 8
    """Attention heads of each block."""
    mlp_ratio: float = 4.0
    """Hidden channels of the blocks' perceptrons as a multiple of ``width``."""
    layer_scale: float | None = 0.01
    """Initial factor of the blocks' residual branches; None leaves it out. Small values learn slowly from scratch."""
    rope_base: float = 100.0
    """Base of the rotary position embedding's frequencies (rows and columns of patches); the backbone's default."""
    attention: AttentionBackend = "sdpa"
    """Implementation of attention; results are equal (``model.backbone.attention``)."""
    gaps: bool = False
    """Encode the seconds between each frame and the query (`query.QueryConfig.gaps`)."""
    correlation: CorrelationConfig | None = None
    """Config equal to the backbone's, to match frames with the query frame here; None: no matching."""
    values: int = 16
    """Learned numbers per cell whose difference between a frame and its match in the query frame is used (`Change`)."""

    @property
    def without_effect(self) -> dict[str, str]:
        """Settings that nothing reads → why."""
        return {} if self.correlation is not None else {"values": "without correlation"}

    def build(self, *, token_width: int, rounds: tuple[int, ...]) -> QueryDecoder:
        """Build the module. UserError where sizes do not fit each other."""
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
    """Addition to the tokens: difference of learned numbers between each cell and its match in the query frame.

    Motion is such a difference, of the points' coordinates.
    """

    def __init__(self, cells: int, values: int, width: int) -> None:
        super().__init__()
        self.cells = cells
        self.values = Linear(width, values * cells**2)
        self.project = nn.Linear(values * cells**2, width)

    def forward(
        self,
        tokens: Float[Tensor, "b f p e"],
        grid: tuple[int, int],
        references: Int[Tensor, "b f"],
        matches: SoftMatches,
    ) -> Float[Tensor, "b f p e"]:
        """Compute the addition; zero where there is no difference."""
        maps = self.values(tokens).flatten(0, 1).mT.unflatten(-1, grid)
        values = functional.pixel_shuffle(maps, self.cells).movedim(1, -1).unflatten(0, tokens.shape[:2])
        with full_precision(tokens.device):
            values = values.to(full_type(values.dtype))
            change = fetch(values, references, matches.displacement) - values
        return self.project(by_patch(change, self.cells))


class QueryDecoder(nn.Module):
    """Conditioning of token maps on a query time. Initially it adds nothing."""

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
        """Condition the token maps of its rounds on one query time. UserError: see `query.frames_at`."""
        last = tokens.patches[tokens.rounds.index(self.rounds[-1])]
        query_rows = reference_frames(frames_at(clip, query), clip.camera_ids)
        frame_tokens = self.project(self.norm(last.to(full_type(last.dtype))))
        conditioned, matches = self.query(clip, query, frame_tokens, tokens.features)
        if self.change is not None and matches is not None:
            conditioned = conditioned + self.change(frame_tokens, tokens.grid, query_rows, matches).to(
                conditioned.dtype
            )
        frame_tokens = conditioned
        # Repeat the query frames' tokens for every frame that attends to them.
        query_tokens = frame_tokens[torch.arange(len(frame_tokens), device=frame_tokens.device)[:, None], query_rows]
        b, f, p, _ = frame_tokens.shape
        x = torch.cat([frame_tokens, query_tokens], dim=2).flatten(0, 1)
        positions = grid_positions(*tokens.grid, 0, x.device).repeat(2, 1)
        rotation = rotation_tables(positions, self.head_width, self.rope_base, full_type(x.dtype))
        for block in self.blocks:
            x = block(x, rotation)
        x = self.norm_out(x[:, :p]).unflatten(0, (b, f))
        maps = list(tokens.patches)
        for round_, layer in zip(self.rounds, self.out, strict=True):
            position = tokens.rounds.index(round_)
            maps[position] = maps[position] + layer(x)
        logits = None if matches is None else matches.logits[:, None]
        return dataclasses.replace(tokens, patches=tuple(maps), match_logits=logits)
