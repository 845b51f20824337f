"""The VGGT family's backbone (arXiv 2503.11651 §3.2): attention within each frame and over all frames, in turn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from four_d.backbones.dynamics import Dynamics, DynamicsConfig, patch_shares
from four_d.backbones.hints import Hints, HintsConfig
from four_d.backbones.patches import ConvPatchConfig, PatchConfig, TimmPatches, kept_rounds, patch_grid
from four_d.correlation import CorrelationConfig, Features, Found, Neighbours
from four_d.errors import UserError
from four_d.layers import AttentionBackend, Block, RankOne, Rotation, full_type, grid_positions, rotation_tables
from four_d.matching import MatchingConfig
from four_d.query import Query, QueryConfig, asked
from four_d.types import Clip, Tokens

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
"""ImageNet's, RGB."""


@dataclass(frozen=True, kw_only=True)
class AlternatingConfig:
    """Sizes of the `AlternatingBackbone`; the defaults are VGGT-1B's but for the patch embedding."""

    kind: Literal["alternating"] = "alternating"
    patches: PatchConfig = field(default_factory=ConvPatchConfig)
    matching: MatchingConfig | None = None
    """Add to the patch tokens where the first frame's content has gone. None, as in VGGT: leave that to attention."""
    correlation: CorrelationConfig | None = None
    """Add to the patch tokens how alike the frames just before and after are, and the query frame if there is a query.
    None, as in VGGT: leave that to attention."""
    dynamics: DynamicsConfig | None = None
    """Keep what moves from steering the cameras, as PAGE-4D. None: VGGT."""
    query: QueryConfig | None = None
    """Let the tokens know the query time from the start, as DePT3R: every query time then takes a pass of its own."""
    hints: HintsConfig | None = None
    """Take intrinsics and other things known beforehand. None: they are not looked at."""
    patch_size: int = 14
    width: int = 1024
    rounds: int = 24
    """A round is one frame block and one global block."""
    heads: int = 16
    mlp_ratio: float = 4.0
    registers: int = 4
    group: int = 1
    """Frame blocks run before the global blocks' turn comes (VGGT's ``aa_block_size``)."""
    qk_norm: bool = True
    layer_scale: float | None = 0.01
    """Initial factor of every residual branch; None leaves it out. Small values learn slowly from scratch."""
    special_std: float = 1e-6
    """Standard deviation of the camera and register tokens at the start."""
    rope_base: float = 100.0
    attention: AttentionBackend = "sdpa"
    checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, more time."""

    def build(self) -> AlternatingBackbone:
        """Raises UserError where sizes do not fit each other."""
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise UserError(
                f"backbone.width {self.width} over {self.heads} heads must be a multiple of 4 each; change one of them"
            )
        if self.rounds % self.group:
            raise UserError(f"backbone.rounds {self.rounds} must be a multiple of group {self.group}")
        if self.dynamics is not None and self.group != 1:
            raise UserError(f"backbone.dynamics needs group 1, it is {self.group}; change one of them")
        patches = self.patches.build(self.patch_size, self.width)
        if isinstance(patches, TimmPatches):
            patches.checkpointing = self.checkpointing
        blocks = [
            Block(
                self.width,
                self.heads,
                mlp_ratio=self.mlp_ratio,
                qk_norm=self.qk_norm,
                layer_scale=self.layer_scale,
                backend=self.attention,
            )
            for _ in range(2 * self.rounds)
        ]
        return AlternatingBackbone(
            patches=patches,
            matching=None if self.matching is None else self.matching.build(self.patch_size, self.width),
            features=None if self.correlation is None else self.correlation.build(self.patch_size),
            neighbours=None if self.correlation is None else Neighbours(self.correlation, self.width),
            dynamics=None if self.dynamics is None else self.dynamics.build(self.width, self.rounds),
            query=None if self.query is None else self.query.build(self.width, self.correlation),
            hints=None if self.hints is None else self.hints.build(self.patch_size, self.width),
            patch_size=self.patch_size,
            frame_blocks=blocks[: self.rounds],
            global_blocks=blocks[self.rounds :],
            width=self.width,
            head_width=self.width // self.heads,
            registers=self.registers,
            group=self.group,
            special_std=self.special_std,
            rope_base=self.rope_base,
            checkpointing=self.checkpointing,
        )


def normalise_images(images: Float[Tensor, "*b 3 h w"]) -> Float[Tensor, "*b 3 h w"]:
    """RGB in [0, 1] to ImageNet's mean and deviation."""
    mean = torch.tensor(IMAGE_MEAN, device=images.device, dtype=images.dtype)[:, None, None]
    std = torch.tensor(IMAGE_STD, device=images.device, dtype=images.dtype)[:, None, None]
    return (images - mean) / std


class AlternatingBackbone(nn.Module):
    """``(Clip) -> Tokens``: per frame a camera token, registers and patches; frame and global attention in turn.

    A round's token map is its frame block's output beside its global block's, 2 · width channels. The first frame has
    special tokens of its own, by which the network knows whose coordinates to use; the other frames are
    interchangeable.
    """

    def __init__(
        self,
        *,
        patches: nn.Module,
        patch_size: int,
        frame_blocks: Sequence[nn.Module],
        global_blocks: Sequence[nn.Module],
        width: int,
        head_width: int,
        matching: nn.Module | None = None,
        features: Features | None = None,
        neighbours: Neighbours | None = None,
        dynamics: Dynamics | None = None,
        query: Query | None = None,
        hints: Hints | None = None,
        registers: int = 4,
        group: int = 1,
        special_std: float = 1e-6,
        rope_base: float = 100.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.rounds, self.token_width, self.patch_size = len(frame_blocks), 2 * width, patch_size
        self.head_width, self.group, self.rope_base = head_width, group, rope_base
        self.checkpointing = checkpointing
        self.patches, self.matching, self.dynamics = patches, matching, dynamics
        self.query, self.hints, self.features, self.neighbours = query, hints, features, neighbours
        self.camera_token = nn.Parameter(special_std * torch.randn(1, 2, 1, width))
        self.register_token = nn.Parameter(special_std * torch.randn(1, 2, registers, width))
        self.frame_blocks = nn.ModuleList(frame_blocks)
        self.global_blocks = nn.ModuleList(global_blocks)
        self.kept: tuple[int, ...] = (self.rounds - 1,)

    @property
    def queried(self) -> bool:
        """Whether tokens depend on the query time; it is then the first of the clip's."""
        return self.query is not None

    @property
    def takes(self) -> tuple[str, ...]:
        """The hints that are not off."""
        return () if self.hints is None else tuple(self.hints.uses)

    def keep(self, rounds: Iterable[int]) -> None:
        """Give the token maps of these rounds (counted from 0), in ascending order, and hold no others in memory."""
        self.kept = kept_rounds(rounds, self.rounds)

    def forward(self, clip: Clip) -> Tokens:
        """Raises UserError if images are not RGB or their sides not multiples of the patch size, if the query time is
        no frame's, or if a hint is required that the clip lacks.
        """
        grid = patch_grid(clip.images, self.patch_size)
        features = None if self.features is None else self.features(clip.images)
        x, found = self._embed(clip, features)
        special = 1 + self.register_token.shape[2]
        maps, dynamic_logits = self._alternate(x, grid, special, clip)
        return Tokens(
            patches=tuple(each[:, :, special:] for each in maps),
            special=tuple(each[:, :, :special] for each in maps),
            grid=grid,
            frames=torch.arange(x.shape[1], device=x.device),
            rounds=self.kept,
            dynamic_logits=dynamic_logits,
            features=features,
            match_logits=None if found is None else found.logits[:, None],
        )

    def at_step(self, step: int) -> None:
        """Tell the schedule of `Dynamics`, if there is one, which training step comes."""
        if self.dynamics is not None:
            self.dynamics.at_step(step)

    def _embed(
        self, clip: Clip, features: Float[Tensor, "b f d y x"] | None
    ) -> tuple[Float[Tensor, "b f n c"], Found | None]:
        """Camera token, registers, patches of every frame; first and other frames differ in the former two. And where
        the query frame shows the same.
        """
        b, f = clip.images.shape[:2]
        normalised = normalise_images(clip.images)
        patches = self.patches(normalised.flatten(0, 1)).unflatten(0, (b, f))
        if self.matching is not None:
            patches = patches + self.matching(normalised)
        if self.neighbours is not None and features is not None:
            patches = patches + self.neighbours(features, clip.times, clip.camera_ids).to(patches.dtype)
        slots = (torch.arange(f, device=clip.images.device) > 0).long()
        special = torch.cat([self.camera_token, self.register_token], dim=2)[:, slots]
        special = special.to(patches.dtype).expand(b, -1, -1, -1)
        if self.hints is not None:
            special, patches = self.hints(clip, special, patches)
        found = None
        if self.query is not None:
            patches, found = self.query(clip, asked(clip)[:, 0], patches, features)
        return torch.cat([special, patches], dim=2), found

    def _alternate(
        self, x: Float[Tensor, "b f n c"], grid: tuple[int, int], special: int, clip: Clip
    ) -> tuple[list[Float[Tensor, "b f n d"]], Float[Tensor, "b f p"] | None]:
        """The kept rounds' token maps, and logits of what moves."""
        b, f, n, _ = x.shape
        positions = grid_positions(*grid, special, x.device)
        in_frame = rotation_tables(positions, self.head_width, self.rope_base, full_type(x.dtype))
        cosine, sine = (table.repeat(f, 1, 1) for table in in_frame)
        maps: list[Tensor] = []
        logits, bias = None, None
        for start in range(0, self.rounds, self.group):
            span = range(start, start + self.group)
            x, local = self._run(self.frame_blocks, span, x.reshape(b * f, n, -1), in_frame)
            if self.dynamics is not None and start == self.dynamics.after:
                logits = self.dynamics(x.unflatten(0, (b, f))[:, :, special:], grid)
                bias = self._bias(self.dynamics, logits, grid, special, clip)
            drawn = bias if self.dynamics is not None and start in self.dynamics.masked else None
            x, common = self._run(self.global_blocks, span, x.reshape(b, f * n, -1), (cosine, sine), drawn)
            maps += [
                torch.cat([one.reshape(b, f, n, -1), two.reshape(b, f, n, -1)], dim=-1)
                for one, two in zip(local, common)
            ]
        return maps, logits

    @staticmethod
    def _bias(
        dynamics: Dynamics, logits: Float[Tensor, "b f p"], grid: tuple[int, int], special: int, clip: Clip
    ) -> RankOne:
        """By the user's own mask in the frames that have one, else by the predicted one."""
        if clip.dynamic is None:
            return dynamics.bias(logits, special)
        if clip.dynamic.shape[-2:] != clip.images.shape[-2:]:
            sizes = " and ".join(f"{h} × {w}" for h, w in (clip.dynamic.shape[-2:], clip.images.shape[-2:]))
            raise UserError(f"the mask of what moves and the images are {sizes} (height × width); resize the mask")
        return dynamics.bias(logits, special, patch_shares(clip.dynamic, grid), clip.dynamic_known)

    def _run(
        self,
        blocks: nn.ModuleList,
        span: range,
        x: Float[Tensor, "r n c"],
        rotation: Rotation,
        bias: RankOne | None = None,
    ) -> tuple[Float[Tensor, "r n c"], list[Float[Tensor, "r n c"]]]:
        """Apply the blocks of ``span``; also what the kept ones of them gave."""
        outputs: list[Tensor] = []
        for index in span:
            block = blocks[index]
            if self.checkpointing and self.training and torch.is_grad_enabled():
                x = cast(Tensor, checkpoint(block, x, rotation, bias, use_reentrant=False))
            else:
                x = block(x, rotation, bias)
            if index in self.kept:
                outputs.append(x)
        return x, outputs
