"""DGS-LRM's backbone (arXiv 2506.09997): posed frames as space-time cubes, and attention over all of them.

The network is GS-LRM's (arXiv 2404.19702): a plain pre-norm transformer. It has no position embeddings: each pixel's
ray and time stamp place a cube in space and time. Matching frames by learned features before attention is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from four_d.abilities import Hint, Use
from four_d.backbones.patches import FeaturePatchConfig, FeaturePatches, patch_grid
from four_d.constants import also_kept, move, on_host, traced
from four_d.correlation import Across, CorrelationConfig, Features, pick
from four_d.cost_volume import CostVolume, CostVolumeConfig
from four_d.errors import UserError
from four_d.geometry import pixel_rays, rebase
from four_d.layers import AttentionBackend, Block, Linear, full_precision, full_type
from four_d.parts import MATCHES, SWEEP, BackboneSpec, Provision, TokenShape
from four_d.query import check_query_times, distinct_times, non_references, reference_frames
from four_d.types import Cameras, Clip, Matches, Tokens, same_time

CHANNELS = 10
"""Numbers per pixel: RGB 3, ray direction 3 and moment 3, time 1."""


@dataclass(frozen=True, kw_only=True)
class SpacetimeConfig(BackboneSpec):
    """Sizes of the `SpacetimeBackbone`; the defaults are the paper's where given, else GS-LRM's."""

    kind: Literal["spacetime"] = "spacetime"
    patch_size: int = 8
    """Side of a cube in pixels; images' sides must be multiples of it. 8: GS-LRM's."""
    stride: int = 4
    """Frames per cube: its depth in time."""
    width: int = 1024
    """Channels of the tokens, a multiple of ``heads``. 1024: GS-LRM's."""
    depth: int = 24
    """Number of transformer blocks. 24: DGS-LRM's."""
    heads: int = 16
    """Attention heads of each block. 16: GS-LRM's."""
    mlp_ratio: float = 4.0
    """Hidden channels of the blocks' perceptrons as a multiple of ``width``."""
    qk_norm: bool = False
    """Normalise queries and keys of each head, which bounds attention logits; GS-LRM does not."""
    weight_norm: bool = False
    """Rows of the blocks' linear layers are a learned length times a direction (`layers.NormalisedLinear`)."""
    layer_scale: float | None = None
    """Initial factor of every residual branch; None, as GS-LRM, leaves it out."""
    attention: AttentionBackend = "sdpa"
    """Implementation of attention; results are equal. ``sdpa``: torch's fused kernel; ``matmul``: the formula, faster
    in bf16 for short sequences on a CPU; ``xformers``: CUDA only."""
    correlation: CorrelationConfig | None = None
    """Add the matches of a cube's first frame at every time to its token (ours): for small models."""
    cost_volume: CostVolumeConfig | None = None
    """Add depths of a cube's first frame, found along its rays by the features of ``correlation``, to its token (as
    MVSplat); the gaussian head's ``sweep`` starts from them."""
    patches: FeaturePatchConfig | None = None
    """Maps of an encoder of single images whose projections, of a cube's frames, are added to its token (ours)."""
    times: int | None = None
    """Number of distinct times of a clip; needed with ``correlation``. Equal to the gaussian head's ``frames``."""
    checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, more time."""

    @property
    def shape(self) -> TokenShape:
        """Sizes of the tokens; a round is one block."""
        return TokenShape(width=self.width, rounds=self.depth, patch_size=self.patch_size)

    @property
    def provides(self) -> frozenset[Provision]:
        """Matches of all times, with ``correlation``; depths along rays, with ``cost_volume``."""
        given = {MATCHES: self.correlation, SWEEP: self.cost_volume}
        return frozenset(provision for provision, config in given.items() if config is not None)

    @property
    def takes(self) -> Mapping[Hint, Use]:
        """Intrinsics and poses of every frame, required. Optional depth can only determine the unit of length."""
        return {"intrinsics": "required", "poses": "required", "depth": "optional"}

    @property
    def row_stride(self) -> int:
        """Frames per cube, each of which gives a row of tokens."""
        return self.stride

    @property
    def gaussian_times(self) -> int | None:
        """Number of times of the correlation, if there is one."""
        return None if self.correlation is None else self.times

    @property
    def without_effect(self) -> dict[str, str]:
        """Settings that nothing reads → why."""
        return {} if self.correlation is not None else {"times": "without correlation"}

    def build(self) -> SpacetimeBackbone:
        """Build the module. UserError where sizes do not fit each other."""
        if min(self.patch_size, self.stride, self.width, self.depth, self.heads) < 1:
            raise UserError("backbone: patch_size, stride, width, depth and heads must be at least 1")
        if self.width % self.heads:
            raise UserError(f"backbone.width {self.width} must be a multiple of heads {self.heads}; change one of them")
        if self.correlation is not None and self.times is None:
            raise UserError(
                "backbone.correlation needs to know how many times a clip has; set "
                "backbone.times=${model.heads.gaussian.frames}"
            )
        if self.cost_volume is not None and self.correlation is None:
            raise UserError(
                "backbone.cost_volume compares the features of backbone.correlation; set "
                "'model.backbone.correlation={}', or model.backbone.cost_volume=null"
            )
        return SpacetimeBackbone(self)


class SpacetimeBackbone(nn.Module):
    """``(Clip) -> Tokens``: one token per patch_size × patch_size × stride cube, one row of them per ``stride`` frames.

    A row's frames are neighbours in time, of one camera; their order in the clip does not matter, except for the first
    frame, which carries the coordinates. Reference frames have tokens of their own, which are attended to but not
    returned. There are no special tokens. A round is one block.
    """

    def __init__(self, config: SpacetimeConfig) -> None:
        super().__init__()
        self.config = config
        blocks = [
            Block(
                config.width,
                config.heads,
                mlp_ratio=config.mlp_ratio,
                qk_norm=config.qk_norm,
                weight_norm=config.weight_norm,
                layer_scale=config.layer_scale,
                backend=config.attention,
            )
            for _ in range(config.depth)
        ]
        self.features: Features | None = None
        self.across: Across | None = None
        if config.correlation is not None and config.times is not None:
            encoded = None if config.patches is None else config.patches.encoder.channels
            self.features = config.correlation.build(config.patch_size, encoded)
            self.across = Across(config.correlation, config.width, config.times)
        self.embed = Linear(CHANNELS * config.stride * config.patch_size**2, config.width)
        self.patches: FeaturePatches | None = None
        if config.patches is not None:
            self.patches = config.patches.build(config.patch_size, config.width)
            self.join = Linear(config.stride * config.width, config.width)
        self.blocks = nn.ModuleList(blocks)
        self.cost_volume: CostVolume | None = None
        if config.cost_volume is not None and config.correlation is not None:
            self.cost_volume = config.cost_volume.build(config.width, config.correlation.cells)

    def at_step(self, step: int) -> None:
        """Do nothing: no part follows a schedule."""

    def forward(self, clip: Clip, rounds: tuple[int, ...] | None = None) -> Tokens:
        """Encode a clip: token maps after the blocks ``rounds`` (counted from 0; None: the last).

        UserError if images are not RGB or their sides not multiples of the patch size, if a frame's camera is
        unknown, or if the frames cannot be parted into cubes.
        """
        rounds = (self.config.depth - 1,) if rounds is None else rounds
        grid = patch_grid(clip.images, self.config.patch_size)
        cubes, references = split_cubes(clip, self.config.stride)
        with full_precision(clip.images.device):
            cameras = known_cameras(clip)
            pixels = describe(clip, cameras)
        x = torch.cat([self._cubes(pixels, cubes), self._cubes(pixels, references[..., None])], dim=1)
        maps = None if self.patches is None else self.patches.maps(clip.images.flatten(0, 1))
        if self.patches is not None and maps is not None:
            tokens = self.patches.embed(maps, grid).unflatten(0, clip.images.shape[:2])
            x = x + torch.cat([self._joined(tokens, cubes), self._joined(tokens, references[..., None])], dim=1)
        logits, matches, sweep = None, None, None
        if self.features is not None and self.across is not None:
            found = self.features(clip.images, maps)
            added, logits, matches = add_matches(clip, cubes[..., 0], found, self.across)
            if self.cost_volume is not None:
                more, sweep = self.cost_volume(found, clip, cameras, cubes[..., 0])
                added = added + more
            added = functional.pad(added.flatten(1, 2), (0, 0, 0, references.shape[1] * grid[0] * grid[1]))
            x = x + added.to(x.dtype)
        rows = cubes.shape[1]
        rows_of = [each[:, : rows * grid[0] * grid[1]].unflatten(1, (rows, -1)) for each in self._attend(x, rounds)]
        return Tokens(
            patches=tuple(rows_of),
            special=tuple(each[:, :, :0] for each in rows_of),
            grid=grid,
            frames=also_kept(cubes, lambda frames: frames[..., 0]),
            rounds=rounds,
            match_logits=logits,
            matches=matches,
            sweep=sweep,
        )

    def _cubes(self, pixels: Float[Tensor, "b f k h w"], frames: Int[Tensor, "b r _s"]) -> Float[Tensor, "b n c"]:
        """Embed rows of frames as cube tokens; a single frame stands for the whole row."""
        size = self.config.patch_size
        rows = torch.arange(len(frames), device=frames.device)[:, None, None]
        chosen = pixels[rows, frames.expand(-1, -1, self.config.stride)]
        cut = chosen.unflatten(-1, (-1, size)).unflatten(-3, (-1, size))  # b r s k rows size columns size
        return self.embed(cut.permute(0, 1, 4, 6, 2, 3, 5, 7).flatten(4).flatten(1, 3))

    def _joined(self, tokens: Float[Tensor, "b f p c"], frames: Int[Tensor, "b r _s"]) -> Float[Tensor, "b n c"]:
        """Join the tokens of each row's frames, per patch; a single frame stands for the whole row."""
        chosen = pick(tokens, frames.expand(-1, -1, self.config.stride))  # b r s p c
        return self.join(chosen.transpose(2, 3).flatten(3)).flatten(1, 2)

    def _attend(self, x: Float[Tensor, "b n c"], rounds: tuple[int, ...]) -> list[Float[Tensor, "b n c"]]:
        """Outputs of the blocks in ``rounds``."""
        outputs: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            if self.config.checkpointing and self.training and torch.is_grad_enabled():
                x = cast(Tensor, checkpoint(block, x, use_reentrant=False))
            else:
                x = block(x)
            if index in rounds:
                outputs.append(x)
        return outputs


def add_matches(
    clip: Clip, keys: Int[Tensor, "b k"], features: Float[Tensor, "b f d r c"], across: Across
) -> tuple[Float[Tensor, "b k p e"], Float[Tensor, "b q k y x n"] | None, Matches]:
    """Additions to key frames' tokens from their matches at each time; logits at the clip's query times; the matches.

    ``features`` are those of `correlation.Features`.
    At each time the frame of the key frame's own camera is searched, if there is one. UserError where the clip has
    other than ``across.times`` times, or a query time is no frame's.
    """
    times = distinct_times(clip, across.times)
    searched = torch.stack([frames_for(clip, keys, time) for time in times.unbind(1)], dim=1)
    added, found_matches = across(features, keys, searched)
    # A frame's matches in itself are trivial; nothing trains the search there.
    itself = (searched == keys[:, None])[..., None, None, None]
    steps = torch.where(
        itself, 0.0, found_matches.displacement * (clip.images.shape[-1] // found_matches.displacement.shape[-2])
    )
    matches = Matches(steps=steps, frames=searched)
    if clip.query_times is None:
        return added, None, matches
    check_query_times(clip)
    time_index = (clip.query_times[..., None] - times[:, None]).abs().argmin(-1)
    return added, pick(found_matches.logits, time_index), matches


def frames_for(clip: Clip, keys: Int[Tensor, "b k"], time: Float[Tensor, "b"]) -> Int[Tensor, "b k"]:
    """Choose the frame at a time to search for each key frame: its own camera's, if there is one."""
    at_time = same_time(clip.times, time[:, None]) & non_references(clip)
    return reference_frames(at_time, clip.camera_ids).gather(1, keys)


def known_cameras(clip: Clip) -> Cameras:
    """The clip's cameras in its first frame's coordinates. UserError unless all are known, pose and intrinsics."""
    cameras = clip.cameras
    if cameras is None:
        raise UserError(_without_cameras("the clip has none"))
    if not traced():
        known = [on_host(each) for each in (cameras.known, cameras.intrinsics_known) if each is not None]
        if not all(bool(each.all()) for each in known):
            raise UserError(_without_cameras("some are unknown"))
    return rebase(cameras)


def _without_cameras(reason: str) -> str:
    return (
        f"this model needs the camera of every frame, pose and intrinsics, and {reason}; give them (--cameras, in "
        "training data.hints={intrinsics: 1, poses: 1}), or take a model of configs/unified.yaml, which needs none"
    )


def split_cubes(clip: Clip, stride: int) -> tuple[Int[Tensor, "b r s"], Int[Tensor, "b k"]]:
    """Frames of each cube, and the reference frames; both by camera and time.

    UserError where a camera's frames are no multiple of ``stride``, or clips of a batch differ in their references.
    """
    times, camera_ids, is_reference = clip.times, clip.camera_ids, clip.references
    if not traced():  # the host must know how many there are
        times, camera_ids = on_host(times), on_host(camera_ids)
        is_reference = None if is_reference is None else on_host(is_reference)
    order = times.argsort(dim=1, stable=True)
    order = order.gather(1, camera_ids.gather(1, order).argsort(dim=1, stable=True))
    references = order[:, :0]
    if is_reference is not None:
        count = equal_count(is_reference, "reference frames")
        order = order.gather(1, is_reference.gather(1, order).long().argsort(dim=1, stable=True))
        order, references = order.split([order.shape[1] - count, count], dim=1)
    if order.shape[1] % stride or not order.shape[1]:
        raise UserError(_no_fit(order.shape[1], stride, "the clip has"))
    cubes = order.unflatten(1, (-1, stride))
    if not traced():
        _check_cameras(camera_ids.gather(1, order).view_as(cubes), stride)
    return move(cubes, clip.times.device), move(references, clip.times.device)


def _check_cameras(ids: Int[Tensor, "b r s"], stride: int) -> None:
    """Raise UserError unless the frames of each cube are of one camera, by their ids."""
    of_several_cameras = (ids != ids[..., :1]).any(-1)
    if bool(of_several_cameras.any()):
        clip_index, cube = of_several_cameras.nonzero()[0].tolist()
        camera = int(ids[clip_index, cube, 0])
        raise UserError(_no_fit(int((ids[clip_index] == camera).sum()), stride, f"camera {camera} has"))


def equal_count(mask: Tensor, noun: str) -> int:
    """Number of True entries in each row of b n. UserError if rows differ."""
    counts = mask.sum(1)
    if not traced() and bool((counts != counts[0]).any()):
        raise UserError(
            f"the clips of a batch have {int(counts.min())} to {int(counts.max())} {noun}; give each clip as many"
        )
    return int(counts[0])


def _no_fit(count: int, stride: int, subject: str) -> str:
    return (
        f"{subject} {count} frames (references not counted), and this model takes {stride} at a time; give each camera "
        f"{stride}, {2 * stride}, {3 * stride} … frames"
    )


def describe(clip: Clip, cameras: Cameras) -> Float[Tensor, "b f 10 h w"]:
    """Channels of each pixel: colour in [−1, 1], its ray's Plücker coordinates (unit direction, moment), `stamps`."""
    height, width = clip.images.shape[-2:]
    dtype = full_type(clip.images.dtype)
    centres, directions = pixel_rays(cameras, height, width)
    moments = torch.linalg.cross(centres[:, :, None, None].expand_as(directions), directions)
    ray = torch.cat([directions, moments], dim=-1).movedim(-1, 2)
    time = stamps(clip)[:, :, None, None, None].expand(-1, -1, 1, height, width)
    return torch.cat([2 * clip.images.to(dtype) - 1, ray.to(dtype), time.to(dtype)], dim=2)


def stamps(clip: Clip) -> Float[Tensor, "b f"]:
    """Normalised times: −1 at the first frame that is no reference, 1 at the last, logarithmic beyond."""
    times = clip.times
    timed = torch.ones_like(times, dtype=torch.bool) if clip.references is None else ~clip.references
    first = torch.where(timed, times, torch.inf).amin(1, keepdim=True)
    last = torch.where(timed, times, -torch.inf).amax(1, keepdim=True)
    span = torch.where(last > first, last - first, torch.ones_like(last))
    normalised = 2 * (times - first) / span - 1
    return torch.where(normalised.abs() > 1, normalised.sign() * (1 + normalised.abs().clamp_min(1).log()), normalised)
