"""Point tracks through the video, refined by correlation (VGGT's track head, arXiv 2503.11651 §3.3).

The design is CoTracker2's (arXiv 2307.07635) as VGGSfM (arXiv 2312.04563) uses it; the numbers are VGGT's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from four_d.constants import also_kept, move, on_host, precise, vector
from four_d.errors import UserError
from four_d.heads.features import LEVELS, DenseFeatures, spread_rounds
from four_d.layers import AttentionBackend, ContextAttention, Mlp, full_precision
from four_d.parts import EVERY_FRAME, HeadSpec, Provision, TokenShape
from four_d.types import Clip, Prediction, Tokens

FLOW_SCALE = 518.0
"""Divisor of the movements as a second input of the network, whatever the image's size."""
POSITION_BASE = 10000.0
FLOW_FREQUENCY = 1000.0
"""Radians per cell that the embedding of movements comes close to."""
TOKEN_EXTRA = 4
"""Numbers of a token besides its three embeddings: the scaled movement, twice."""

Maps = Float[Tensor, "b f c h w"]
Pyramid = list[Float[Tensor, "b f c _h _w"]]
Cells = Float[Tensor, "b f n 2"]
"""(x, y) on the feature maps; (0, 0) is the *centre* of the first cell."""


@dataclass(frozen=True, kw_only=True)
class TrackHeadConfig(HeadSpec):
    """Sizes of a `TrackHead`; the defaults are VGGT-1B's, but for ``rounds`` (its own are 4, 11, 17, 23)."""

    kind: Literal["track"] = "track"
    rounds: tuple[int, ...] | None = None
    """Four rounds of the backbone, fine to coarse; None: evenly spaced, the last one last."""
    channels: tuple[int, ...] = (256, 512, 1024, 1024)
    """Channels per level before fusion."""
    features: int = 128
    """Channels of the feature maps, a multiple of 4."""
    down_ratio: int = 2
    """The feature maps have 1 / down_ratio of the image's side."""
    levels: int = 7
    """Levels of the pyramid of feature maps, each half the size of the one before."""
    radius: int = 4
    """Radius of the correlation window in cells, at every level."""
    hidden: int = 384
    """Channels of the transformer that refines, a multiple of ``heads``. 384: VGGT's."""
    depth: int = 6
    """Blocks over time, and blocks over points, of the transformer that refines."""
    heads: int = 8
    """Attention heads of each of its blocks. 8: VGGT's."""
    virtual: int = 64
    """Virtual tracks through which points exchange information."""
    iterations: int = 4
    """Refinements of the tracks, at least 1. 4: VGGT's."""
    grid: tuple[int, int] | None = None
    """Grid (rows, columns) of first-frame points to track where the clip has no query points: the middle of each cell,
    or a random pixel of it during training. None: nothing is predicted then, and nothing can be learned."""
    chunk: int = 8
    """Frames whose feature maps are computed at once (bounds memory outside training)."""
    attention: AttentionBackend = "sdpa"
    """Implementation of attention; results are equal (``model.backbone.attention``)."""

    @property
    def provides(self) -> tuple[str, ...]:
        """Tracks, their visibility and confidence, and every refinement."""
        sure = ("pixel_tracks_visible", "pixel_tracks_confidence")
        return "pixel_tracks", *sure, *(f"{name}_logits" for name in sure), "pixel_track_stages"

    @property
    def answers_points(self) -> bool:
        """True: it tracks them through the frames."""
        return True

    @property
    def requires(self) -> frozenset[Provision]:
        """Token rows of every frame."""
        return frozenset({EVERY_FRAME})

    def build(self, shape: TokenShape) -> TrackHead:
        """Build the module. UserError where sizes do not fit each other."""
        chosen = spread_rounds(shape.rounds) if self.rounds is None else self.rounds
        if len(chosen) != LEVELS or len(self.channels) != LEVELS:
            raise UserError(
                f"track head: rounds {list(chosen)} and channels {list(self.channels)} must be {LEVELS} numbers each"
            )
        if self.features % 4:
            raise UserError(f"track head: features {self.features} must be a multiple of 4")
        if self.hidden % self.heads:
            raise UserError(f"track head: {self.heads} heads do not divide hidden {self.hidden}; change one of them")
        return TrackHead(self, shape)


def sample(maps: Float[Tensor, "n c h w"], at: Float[Tensor, "n p q 2"], *, border: bool) -> Float[Tensor, "n c p q"]:
    """Sample bilinearly; outside is the border's value, or zero. Along an axis of one cell every place is that cell.

    No gradient flows to ``at``, as in the reference.
    """
    size = vector([max(extent - 1, 1) for extent in (maps.shape[-1], maps.shape[-2])], at)
    grid = at.detach().to(maps.dtype) * (2 / size.to(maps.dtype)) - 1
    padding = "border" if border else "zeros"
    return functional.grid_sample(maps, grid, mode="bilinear", padding_mode=padding, align_corners=True)


def pyramid(maps: Maps, levels: int) -> Pyramid:
    """Build the maps at full, half, quarter … size; an odd last row or column is dropped.

    UserError if the maps are too small.
    """
    smallest = min(maps.shape[-2:])
    if smallest < 2 ** (levels - 1):
        raise UserError(
            f"track head: {levels} levels need feature maps of {2 ** (levels - 1)} cells a side, not {smallest}; "
            "use larger images or fewer levels"
        )
    result = [maps]
    for _ in range(levels - 1):
        half = functional.avg_pool2d(result[-1].flatten(0, 1), 2)
        result.append(half.unflatten(0, maps.shape[:2]))
    return result


def window(radius: int, like: Tensor) -> Float[Tensor, "k 2"]:
    """The (2·radius + 1)² offsets (x, y) around a point, column by column, as VGGT's weights expect."""
    steps = torch.arange(-radius, radius + 1, device=like.device, dtype=like.dtype)
    return torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1).reshape(-1, 2)


def correlate(
    features: Float[Tensor, "b f n c"], maps: Maps, at: Cells, offsets: Float[Tensor, "k 2"]
) -> Float[Tensor, "b f n k"]:
    """Scalar product with the map, over √c, at each point's place plus each offset; 0 outside the map.

    Sampling and the scalar product commute. The smaller comes first: samples of the map (n·k·c numbers a frame) or the
    products of all points with all cells (n·h·w).
    """
    b, f, n, c = features.shape
    positions = at[..., None, :] + offsets
    targets, flat = features.flatten(0, 1), maps.flatten(0, 1)
    if maps.shape[-2] * maps.shape[-1] <= len(offsets) * c:
        products = (targets @ flat.flatten(2)).view(b * f * n, 1, *maps.shape[-2:])
        products_at = sample(products, positions.reshape(b * f * n, 1, -1, 2), border=False)
    else:
        sampled = sample(flat, positions.flatten(0, 1), border=False)
        products_at = torch.einsum("snc,scnk->snk", targets, sampled)
    return products_at.reshape(b, f, n, -1) / math.sqrt(c)


def embed_flow(flow: Float[Tensor, "*b 2"], width: int) -> Float[Tensor, "*b width"]:
    """Interleaved sines and cosines of x, then of y, at width / 4 frequencies from 0 to nearly `FLOW_FREQUENCY`."""
    steps = torch.arange(0, width // 2, 2, device=flow.device, dtype=flow.dtype)
    angle = flow[..., None] * (steps * (FLOW_FREQUENCY / (width // 2)))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-3)


def embed_axis(position: Float[Tensor, "*b"], count: int, width: int) -> Float[Tensor, "*b width"]:
    """Sines, then cosines, of whole positions 0 … count − 1, interpolated between them; beyond is as at the border."""
    kind = precise(position.device)
    frequency = POSITION_BASE ** (-torch.arange(width // 2, device=position.device, dtype=kind) * 2 / width)
    within = position.clamp(0, count - 1)
    below = within.floor()
    fraction = (within - below)[..., None]

    def at(cell: Tensor) -> Tensor:
        angle = cell.to(kind)[..., None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=-1).to(position.dtype)

    return at(below) * (1 - fraction) + at((below + 1).clamp_max(count - 1)) * fraction


def embed_position(at: Float[Tensor, "*b 2"], size: tuple[int, int], width: int) -> Float[Tensor, "*b width"]:
    """Embedding of a point's place on a map of ``size`` (rows, columns): `embed_axis` of x, then of y."""
    return torch.cat([embed_axis(at[..., i], size[1 - i], width // 2) for i in (0, 1)], dim=-1)


class TrackBlock(nn.Module):
    """Attention and MLP. The first residual is of the *normalised* input, as VGGT's weights expect."""

    def __init__(self, width: int, heads: int, *, cross: bool, backend: AttentionBackend = "sdpa") -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm_context = nn.LayerNorm(width) if cross else None
        self.attn = ContextAttention(width, heads, backend)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width, width)

    def forward(self, x: Float[Tensor, "b n c"], context: Float[Tensor, "b m c"] | None = None) -> Tensor:
        """Shape of ``x``; attends to ``context`` if the block is a crossing one, else to ``x``."""
        x = self.norm1(x)
        if self.norm_context is not None:
            assert context is not None
            context = self.norm_context(context)
        x = x + self.attn(x, x if context is None else context)
        return x + self.mlp(self.norm2(x))


class UpdateTransformer(nn.Module):
    """Transformer from a token per point and frame to its update: attention over time, then over points.

    Points attend to each other only through virtual tracks (as inducing points, arXiv 1810.00825): cost is linear in
    the number of points, and their order does not matter. Nor does that of frames.
    """

    def __init__(
        self, *, width: int, hidden: int, out: int, depth: int, heads: int, virtual: int, backend: AttentionBackend
    ) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(width)
        self.embed = nn.Linear(width, hidden)
        self.virtual_tracks = nn.Parameter(torch.randn(1, virtual, 1, hidden))

        def blocks(*, cross: bool) -> nn.ModuleList:
            return nn.ModuleList(TrackBlock(hidden, heads, cross=cross, backend=backend) for _ in range(depth))

        self.time_blocks = blocks(cross=False)
        self.virtual_from_points = blocks(cross=True)
        self.virtual_blocks = blocks(cross=False)
        self.points_from_virtual = blocks(cross=True)
        self.norm_out = nn.LayerNorm(hidden)
        self.out = nn.Linear(hidden, out)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.out.weight, std=0.001)  # small first steps

    def forward(self, tokens: Float[Tensor, "b f n c"]) -> Float[Tensor, "b f n o"]:
        """Compute one update per point and frame."""
        b, f, n, _ = tokens.shape
        start = self.embed(self.norm_in(tokens))
        virtual = self.virtual_tracks.transpose(1, 2).expand(b, f, -1, -1)
        x = torch.cat([start, virtual], dim=2)
        for index, block in enumerate(self.time_blocks):
            x = block(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (b, -1)).transpose(1, 2)
            points, virtual = x.flatten(0, 1).split([n, x.shape[2] - n], dim=1)
            virtual = self.virtual_blocks[index](self.virtual_from_points[index](virtual, points))
            points = self.points_from_virtual[index](points, virtual)
            x = torch.cat([points, virtual], dim=1).unflatten(0, (b, f))
        return self.out(self.norm_out(x[:, :, :n] + start))


class TrackHead(nn.Module):
    """Head of the ``pixel_track`` fields for ``clip.query_points``, or for its own grid. Always in full precision.

    In a query's own frame the track is the query. Points of different frames are tracked separately, each with its
    frame as the first: the transformer distinguishes only that one from the others. Without points to track nothing is
    set.
    """

    def __init__(self, config: TrackHeadConfig, shape: TokenShape) -> None:
        super().__init__()
        self.config = config
        self.rounds = spread_rounds(shape.rounds) if config.rounds is None else config.rounds
        channels = config.features
        self.features = DenseFeatures(
            token_width=shape.width,
            rounds=self.rounds,
            channels=config.channels,
            features=channels,
            out_features=channels,
            patch_size=shape.patch_size,
            down_ratio=config.down_ratio,
            chunk=config.chunk,
            positions=False,
        )
        # before the rest, so that a seed gives the same weights
        update = UpdateTransformer(
            width=3 * channels + TOKEN_EXTRA,
            hidden=config.hidden,
            out=channels + 2,
            depth=config.depth,
            heads=config.heads,
            virtual=config.virtual,
            backend=config.attention,
        )
        self.map_norm = nn.LayerNorm(channels)
        self.correlation = Mlp(config.levels * (2 * config.radius + 1) ** 2, config.hidden, channels)
        self.frame_token = nn.Parameter(torch.randn(1, 2, 3 * channels + TOKEN_EXTRA))
        """Tokens of a query's own frame, and of every other."""
        self.update = update
        self.feature_norm = nn.GroupNorm(1, channels)
        self.feature_step = nn.Linear(channels, channels)
        self.visible = nn.Linear(channels, 1)
        self.confidence = nn.Linear(channels, 1)

    def forward(self, tokens: Tokens, clip: Clip) -> Prediction:
        """Track points. UserError if they lie outside the video, or the clips of a batch query different frames."""
        queries = self.queries(clip)
        if queries is None:
            return Prediction()
        with full_precision(clip.images.device):
            maps = self.features.maps(tokens)
            maps = self.map_norm(maps.movedim(2, -1)).movedim(-1, 2)
            return self.follow_all(maps, also_kept(queries, lambda points: points.to(maps.dtype)))

    def queries(self, clip: Clip) -> Float[Tensor, "b n 3"] | None:
        """(frame, x, y) of the points to track, in pixels of the image, corner origin."""
        if clip.query_points is not None:
            check_queries(clip.query_points, clip)
            return clip.query_points
        # An exported program takes images only, of any number of frames: it tracks nothing.
        if self.config.grid is None or torch.compiler.is_exporting():
            return None
        return grid_points(self.config.grid, clip, jitter=self.training)

    def follow_all(self, maps: Maps, queries: Float[Tensor, "b n 3"]) -> Prediction:
        """Track points of any frames; results are in the clip's order of frames and points."""
        frames = on_host(queries)[0, :, 0].long()
        groups: list[list[Tensor]] = []
        chosen: list[Tensor] = []
        for frame in frames.unique().tolist():
            order = torch.arange(maps.shape[1])
            order = torch.cat([order[frame : frame + 1], order[:frame], order[frame + 1 :]])
            chosen.append((frames == frame).nonzero()[:, 0])
            points = move(chosen[-1], maps.device)
            results = self.follow(maps[:, move(order, maps.device)] if frame else maps, queries[:, points, 1:])
            groups.append([each.index_select(-3, move(order.argsort(), maps.device)) for each in results])
        order_of_points = move(torch.cat(chosen).argsort(), maps.device)
        stages, visible, confidence = (
            torch.cat(each, dim=-2).index_select(-2, order_of_points) for each in zip(*groups)
        )
        return Prediction(
            pixel_tracks=stages[-1],
            pixel_tracks_visible=visible[..., 0].sigmoid(),
            pixel_tracks_confidence=confidence[..., 0].sigmoid(),
            pixel_tracks_visible_logits=visible[..., 0],
            pixel_tracks_confidence_logits=confidence[..., 0],
            pixel_track_stages=stages,
        )

    def follow(
        self, maps: Maps, pixels: Float[Tensor, "b n 2"]
    ) -> tuple[Float[Tensor, "i b f n 2"], Float[Tensor, "b f n 1"], Float[Tensor, "b f n 1"]]:
        """Track points of the first frame of normalised ``maps``: places, and logits of the two probabilities."""
        # Only here do pixels with a corner origin meet cells counted from the first one's centre. VGGT's own pixels are
        # down_ratio times cells: half a pixel less than ours.
        ratio = self.features.down_ratio
        stages, features = self.refine(maps, (pixels - 0.5) / ratio)
        return torch.stack(stages) * ratio + 0.5, self.visible(features), self.confidence(features)

    def refine(self, maps: Maps, start: Float[Tensor, "b n 2"]) -> tuple[list[Cells], Float[Tensor, "b f n c"]]:
        """Refine places iteratively: those after every iteration, and each point's final features in each frame."""
        levels = pyramid(maps, self.config.levels)
        first = sample(maps[:, 0], start[:, :, None], border=True)[..., 0].mT
        features = first[:, None].expand(-1, maps.shape[1], -1, -1)
        position = embed_position(start, (maps.shape[-2], maps.shape[-1]), self.frame_token.shape[-1])[:, None]
        first_frame = torch.arange(maps.shape[1], device=maps.device)[:, None, None] == 0
        constant = position + torch.where(first_frame, self.frame_token[0, 0], self.frame_token[0, 1])
        at = start[:, None].expand(-1, maps.shape[1], -1, -1)
        stages: list[Tensor] = []
        for _ in range(self.config.iterations):
            at = at.detach()
            step = self.update(self.token(levels, features, at) + constant)
            features = features + self.feature_change(step[..., 2:])
            at = torch.where(first_frame, start[:, None], at + step[..., :2])
            stages.append(at)
        return stages, features

    def token(self, levels: Pyramid, features: Float[Tensor, "b f n c"], at: Cells) -> Float[Tensor, "b f n d"]:
        """Token of each point in each frame: movement, correlation with its surroundings, and features."""
        offsets = window(self.config.radius, at)
        correlations = [correlate(features, level, at / 2**index, offsets) for index, level in enumerate(levels)]
        flow = at - at[:, :1]
        scaled = flow / FLOW_SCALE
        fit = self.correlation(torch.cat(correlations, dim=-1))
        return torch.cat([embed_flow(flow, self.config.features), scaled, scaled, fit, features], dim=-1)

    def feature_change(self, raw: Float[Tensor, "b f n c"]) -> Float[Tensor, "b f n c"]:
        """Update of the features from the transformer's output."""
        normed = self.feature_norm(raw.flatten(0, 2)).unflatten(0, raw.shape[:3])
        return functional.gelu(self.feature_step(normed))


def check_queries(queries: Float[Tensor, "*b"], clip: Clip) -> None:
    """Raise UserError unless every point is a pixel of the clip, and all clips of the batch query the same frames."""
    b, f, _, height, width = clip.images.shape
    if queries.ndim != 3 or queries.shape[0] != b or queries.shape[2] != 3 or not queries.shape[1]:
        raise UserError(f"query_points are {tuple(queries.shape)}; give ({b}, n, 3) numbers: frame, x, y")
    queries = on_host(queries)
    if bool((queries[..., 0] != queries[..., 0].floor()).any()):
        raise UserError("query_points hold a frame that is not a whole number; they are (frame, x, y)")
    limits = vector([f - 1, width, height], queries)
    inside = ((queries >= 0) & (queries <= limits)).all(-1)
    if not bool(inside.all()):
        wrong = [round(value, 3) for value in queries[~inside][0].tolist()]
        raise UserError(
            f"query point {wrong} (frame, x, y) is not in the {f} frames of {width} × {height} pixels; take it out"
        )
    if bool((queries[..., 0] != queries[:1, :, 0]).any()):
        raise UserError("the clips of a batch ask for points of different frames; give each its own batch")


def grid_points(grid: tuple[int, int], clip: Clip, *, jitter: bool) -> Float[Tensor, "b n 3"]:
    """A pixel's centre in each cell of a grid over the first frame: the middle one, or with ``jitter`` any."""
    rows, columns = grid
    b, _, _, height, width = clip.images.shape
    cell = torch.stack(torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="xy"), dim=-1).reshape(-1, 2)
    # drawn on the host, so that a seed gives the same points on every device
    within = torch.rand(b, len(cell), 2) if jitter else torch.full((b, len(cell), 2), 0.5)
    size = torch.tensor([width, height])
    pixels = ((cell + within) * size / torch.tensor([columns, rows])).floor().minimum(size - 1) + 0.5
    return move(functional.pad(pixels, (1, 0)), clip.images.device)
