"""The VGGT family's backbone (arXiv 2503.11651 §3.2): attention within each frame and over all frames, in turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from four_d.abilities import Hint, Use
from four_d.backbones.dynamics import Dynamics, DynamicsConfig, patch_fractions
from four_d.backbones.hints import HintsConfig
from four_d.backbones.patches import (
    ConvPatchConfig,
    FeaturePatchConfig,
    FeaturePatches,
    PatchConfig,
    TimmPatches,
    normalise_images,
    patch_grid,
)
from four_d.constants import keep
from four_d.correlation import CorrelationConfig, Neighbours, SoftMatches
from four_d.errors import UserError
from four_d.layers import AttentionBackend, Block, RankOne, Rotation, full_type, grid_positions, rotation_tables
from four_d.matching import MatchingConfig
from four_d.parts import (
    CAMERA_TOKEN,
    DETAIL,
    DYNAMICS,
    EVERY_FRAME,
    FEATURES,
    QUERY,
    BackboneSpec,
    Provision,
    TokenShape,
)
from four_d.query import QueryConfig, query_times
from four_d.types import Clip, Tokens


@dataclass(frozen=True, kw_only=True)
class AlternatingConfig(BackboneSpec):
    """Sizes of the `AlternatingBackbone`; the defaults are VGGT-1B's but for the patch embedding."""

    kind: Literal["alternating"] = "alternating"
    patches: PatchConfig = field(default_factory=ConvPatchConfig)
    """Embedding of each frame's patches before attention. VGGT-1B's is ``timm``, a pretrained DINOv2; ``features`` are
    maps of any encoder of timm's list."""
    matching: MatchingConfig | None = None
    """Add each cell's match in the first frame to the patch tokens. None, as in VGGT: leave that to attention."""
    correlation: CorrelationConfig | None = None
    """Add matches with the frames just before and after, and with any query frame, to the patch tokens. None, as in
    VGGT: leave that to attention."""
    dynamics: DynamicsConfig | None = None
    """Keep what moves from steering the cameras, as PAGE-4D. None: VGGT."""
    query: QueryConfig | None = None
    """Condition the tokens on the query time before attention, as DePT3R: every query time then takes its own pass."""
    hints: HintsConfig | None = None
    """Inputs known beforehand, such as intrinsics. None: they are ignored."""
    patch_size: int = 14
    """Side of a patch in pixels; images' sides must be multiples of it. 14: VGGT's, and DINOv2's."""
    width: int = 1024
    """Channels of the tokens, a multiple of four times ``heads``. 1024: VGGT-1B's."""
    rounds: int = 24
    """A round is one frame block and one global block."""
    heads: int = 16
    """Attention heads of each block. 16: VGGT-1B's."""
    mlp_ratio: float = 4.0
    """Hidden channels of the blocks' perceptrons as a multiple of ``width``. 4: VGGT's."""
    registers: int = 4
    """Register tokens of each frame beside its camera token, read by no head; at least 0. 4: VGGT's."""
    group: int = 1
    """Consecutive frame blocks, followed by as many global blocks (VGGT's ``aa_block_size``)."""
    qk_norm: bool = True
    """Normalise queries and keys of each head before their rotation, as VGGT: attention logits stay bounded."""
    layer_scale: float | None = 0.01
    """Initial factor of every residual branch; None leaves it out. Small values learn slowly from scratch."""
    special_std: float = 1e-6
    """Initial standard deviation of the camera and register tokens."""
    rope_base: float = 100.0
    """Base of the rotary position embedding's frequencies (rows and columns of patches). 100: VGGT's."""
    attention: AttentionBackend = "sdpa"
    """Implementation of attention; results are equal. ``sdpa``: torch's fused kernel; ``matmul``: the formula, faster
    in bf16 for short sequences on a CPU; ``xformers``: CUDA only."""
    checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, more time."""

    @property
    def shape(self) -> TokenShape:
        """A round's map is its frame block's output beside its global block's."""
        side, detail = self.patches.image_size, self._detail
        return TokenShape(
            width=2 * self.width,
            rounds=self.rounds,
            patch_size=self.patch_size,
            image_size=side,
            detail=0 if detail is None else detail.encoder.channels[detail.encoder.strides[0]],
            detail_stride=0 if detail is None else detail.encoder.strides[0],
        )

    @property
    def special(self) -> int:
        """Camera token and registers."""
        return 1 + self.registers

    @property
    def provides(self) -> frozenset[Provision]:
        """Token rows of every frame, with camera tokens, and the provisions of the options that are set."""
        switched = {
            QUERY: self.query,
            DYNAMICS: self.dynamics,
            DETAIL: self._detail,
            self._features: self.correlation,
        }
        return frozenset({EVERY_FRAME, CAMERA_TOKEN, *(each for each, config in switched.items() if config)})

    @property
    def idle(self) -> frozenset[Provision]:
        """Correlation features, which only matching with the query frame trains."""
        return frozenset() if self.correlation is None or self.query is not None else frozenset({self._features})

    @property
    def _detail(self) -> FeaturePatchConfig | None:
        """Patch embedding whose finest map is finer than patches, if it is one."""
        patches = self.patches
        finer = isinstance(patches, FeaturePatchConfig) and patches.encoder.strides[0] < self.patch_size
        return patches if isinstance(patches, FeaturePatchConfig) and finer else None

    @property
    def _features(self) -> Provision:
        return replace(FEATURES, detail=self.correlation)

    @property
    def takes(self) -> Mapping[Hint, Use]:
        """The hints that are not off."""
        return {} if self.hints is None else self.hints.uses

    @property
    def hint_settings(self) -> Mapping[Hint, str]:
        """Config section of the hints."""
        return dict.fromkeys(HintsConfig().uses_by_hint, "hints")

    @property
    def masks(self) -> bool:
        """True if a user's mask replaces the predicted one or enters as a hint."""
        return self.dynamics is not None or "masks" in self.takes

    def build(self) -> AlternatingBackbone:
        """Build the module. UserError where sizes do not fit each other."""
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise UserError(
                f"backbone.width {self.width} over {self.heads} heads must be a multiple of 4 each; change one of them"
            )
        if self.rounds % self.group:
            raise UserError(f"backbone.rounds {self.rounds} must be a multiple of group {self.group}")
        if self.dynamics is not None and self.group != 1:
            raise UserError(f"backbone.dynamics needs group 1, it is {self.group}; change one of them")
        return AlternatingBackbone(self)


class AlternatingBackbone(nn.Module):
    """``(Clip) -> Tokens``: per frame a camera token, registers and patches; frame and global attention in turn.

    A round's token map is its frame block's output beside its global block's, 2 · width channels. The first frame has
    special tokens of its own, by which the network knows whose coordinates to use; the other frames are
    interchangeable.
    """

    def __init__(self, config: AlternatingConfig) -> None:
        super().__init__()
        self.config = config
        width, size, search = config.width, config.patch_size, config.correlation
        # Built in this order to keep a seed's weights, stored in another to keep the order of older optimiser states.
        patches = config.patches.build(size, width)
        if isinstance(patches, TimmPatches):
            patches.checkpointing = config.checkpointing
        blocks = [
            Block(
                width,
                config.heads,
                mlp_ratio=config.mlp_ratio,
                qk_norm=config.qk_norm,
                layer_scale=config.layer_scale,
                backend=config.attention,
            )
            for _ in range(2 * config.rounds)
        ]
        matching = None if config.matching is None else config.matching.build(size, width)
        encoded = patches.channels if isinstance(patches, FeaturePatches) else None
        features = None if search is None else search.build(size, encoded)
        neighbours = None if search is None else Neighbours(search, width)
        self.patches, self.matching = patches, matching
        self.dynamics = None if config.dynamics is None else config.dynamics.build(width, config.rounds)
        self.query = None if config.query is None else config.query.build(width, search)
        self.hints = None if config.hints is None else config.hints.build(size, width)
        self.features, self.neighbours = features, neighbours
        self.camera_token = nn.Parameter(config.special_std * torch.randn(1, 2, 1, width))
        self.register_token = nn.Parameter(config.special_std * torch.randn(1, 2, config.registers, width))
        self.frame_blocks = nn.ModuleList(blocks[: config.rounds])
        self.global_blocks = nn.ModuleList(blocks[config.rounds :])

    def forward(self, clip: Clip, rounds: tuple[int, ...] | None = None) -> Tokens:
        """Encode a clip: token maps of ``rounds`` (counted from 0; None: the last).

        UserError if images are not RGB or their sides not multiples of the patch size, if the query time is no frame's,
        or if a hint is required that the clip lacks.
        """
        rounds = (self.config.rounds - 1,) if rounds is None else rounds
        grid = patch_grid(clip.images, self.config.patch_size)
        maps = self.patches.maps(clip.images.flatten(0, 1)) if isinstance(self.patches, FeaturePatches) else None
        features = None if self.features is None else self.features(clip.images, maps)
        x, matches = self._embed(clip, maps, features)
        special = 1 + self.register_token.shape[2]
        tokens, dynamic_logits = self._alternate(x, grid, special, clip, rounds)
        return Tokens(
            patches=tuple(each[:, :, special:] for each in tokens),
            special=tuple(each[:, :, :special] for each in tokens),
            grid=grid,
            frames=keep(torch.arange(x.shape[1], device=x.device), torch.arange(x.shape[1])),
            rounds=rounds,
            dynamic_logits=dynamic_logits,
            detail=None if maps is None else maps[min(maps)].unflatten(0, x.shape[:2]),
            features=features,
            match_logits=None if matches is None else matches.logits[:, None],
        )

    def at_step(self, step: int) -> None:
        """Set the training step of the schedule of `Dynamics`, if any."""
        if self.dynamics is not None:
            self.dynamics.at_step(step)

    def _embed(
        self,
        clip: Clip,
        maps: dict[int, Float[Tensor, "_n _c _y _x"]] | None,
        features: Float[Tensor, "b f d y x"] | None,
    ) -> tuple[Float[Tensor, "b f n c"], SoftMatches | None]:
        """Camera token, registers and patches of every frame, and the matches in the query frame. The first frame's
        camera token and registers differ from the others'.
        """
        b, f = clip.images.shape[:2]
        if isinstance(self.patches, FeaturePatches) and maps is not None:
            patches = self.patches.embed(maps, patch_grid(clip.images, self.config.patch_size))
        else:
            patches = self.patches(clip.images.flatten(0, 1))
        patches = patches.unflatten(0, (b, f))
        turn = None
        if self.matching is not None:
            matched, turn = self.matching(normalise_images(clip.images))
            patches = patches + matched
        if self.neighbours is not None and features is not None:
            patches = patches + self.neighbours(features, clip.times, clip.camera_ids).to(patches.dtype)
        # slot 0 is the first frame's, whose coordinates the outputs are in; slot 1 serves all others
        slots = (torch.arange(f, device=clip.images.device) > 0).long()
        special = torch.cat([self.camera_token, self.register_token], dim=2)[:, slots]
        special = special.to(patches.dtype).expand(b, -1, -1, -1)
        if turn is not None:
            special = torch.cat([special[:, :, :1] + turn, special[:, :, 1:]], dim=2)
        if self.hints is not None:
            special, patches = self.hints(clip, special, patches)
        matches = None
        if self.query is not None:
            patches, matches = self.query(clip, query_times(clip)[:, 0], patches, features)
        return torch.cat([special, patches], dim=2), matches

    def _alternate(
        self,
        x: Float[Tensor, "b f n c"],
        grid: tuple[int, int],
        special: int,
        clip: Clip,
        rounds: tuple[int, ...],
    ) -> tuple[list[Float[Tensor, "b f n d"]], Float[Tensor, "b f p"] | None]:
        """Token maps of ``rounds``, and logits of the mask of moving patches."""
        b, f, n, _ = x.shape
        positions = grid_positions(*grid, special, x.device)
        config = self.config
        in_frame = rotation_tables(positions, config.width // config.heads, config.rope_base, full_type(x.dtype))
        # every frame has the same positions: global attention tells frames apart by their content only
        cosine, sine = (table.repeat(f, 1, 1) for table in in_frame)
        maps: list[Tensor] = []
        logits, bias = None, None
        for start in range(0, config.rounds, config.group):
            span = range(start, start + config.group)
            x, local = self._run(self.frame_blocks, span, x.reshape(b * f, n, -1), in_frame, rounds)
            if self.dynamics is not None and start == self.dynamics.after:
                logits = self.dynamics(x.unflatten(0, (b, f))[:, :, special:], grid)
                bias = self._bias(self.dynamics, logits, grid, special, clip)
            active_bias = bias if self.dynamics is not None and start in self.dynamics.masked else None
            x, common = self._run(
                self.global_blocks, span, x.reshape(b, f * n, -1), (cosine, sine), rounds, active_bias
            )
            maps += [
                torch.cat([frame_map.reshape(b, f, n, -1), global_map.reshape(b, f, n, -1)], dim=-1)
                for frame_map, global_map in zip(local, common)
            ]
        return maps, logits

    @staticmethod
    def _bias(
        dynamics: Dynamics, logits: Float[Tensor, "b f p"], grid: tuple[int, int], special: int, clip: Clip
    ) -> RankOne:
        """Attention bias by the user's mask in the frames that have one, else by the predicted mask."""
        if clip.dynamic is None:
            return dynamics.bias(logits, special)
        if clip.dynamic.shape[-2:] != clip.images.shape[-2:]:
            sizes = " and ".join(f"{h} × {w}" for h, w in (clip.dynamic.shape[-2:], clip.images.shape[-2:]))
            raise UserError(f"the mask of what moves and the images are {sizes} (height × width); resize the mask")
        return dynamics.bias(logits, special, patch_fractions(clip.dynamic, grid), clip.dynamic_known)

    def _run(
        self,
        blocks: nn.ModuleList,
        span: range,
        x: Float[Tensor, "r n c"],
        rotation: Rotation,
        rounds: tuple[int, ...],
        bias: RankOne | None = None,
    ) -> tuple[Float[Tensor, "r n c"], list[Float[Tensor, "r n c"]]]:
        """Apply the blocks of ``span``; also return the outputs of those in ``rounds``."""
        outputs: list[Tensor] = []
        for index in span:
            block = blocks[index]
            if self.config.checkpointing and self.training and torch.is_grad_enabled():
                x = cast(Tensor, checkpoint(block, x, rotation, bias, use_reentrant=False))
            else:
                x = block(x, rotation, bias)
            if index in rounds:
                outputs.append(x)
        return x, outputs
