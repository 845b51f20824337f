"""DGS-LRM's backbone (arXiv 2506.09997): posed frames in space-time cubes, and attention over all of them.

The network is GS-LRM's (arXiv 2404.19702): a plain pre-norm transformer. It has no rotary or other positions: each
pixel's ray and time stamp say where and when a cube is. Comparing frames by learned features before attention is ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from four_d.backbones.hints import HintsConfig
from four_d.backbones.patches import kept_rounds, patch_grid
from four_d.correlation import Across, CorrelationConfig, Features, pick
from four_d.errors import UserError
from four_d.geometry import pixel_rays, rebase
from four_d.layers import AttentionBackend, Block, Linear, full_precision, full_type
from four_d.query import distinct_times, frames_at, kept, reference_frames
from four_d.types import Cameras, Clip, Matches, Tokens, same_time

CHANNELS = 10
"""Numbers per pixel: RGB 3, ray direction 3 and moment 3, time 1."""


@dataclass(frozen=True, kw_only=True)
class SpacetimeConfig:
    """Sizes of the `SpacetimeBackbone`; the defaults are the paper's where it says them, else GS-LRM's."""

    kind: Literal["spacetime"] = "spacetime"
    patch_size: int = 8
    stride: int = 4
    """Frames per cube: its depth in time."""
    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_ratio: float = 4.0
    qk_norm: bool = False
    layer_scale: float | None = None
    """Initial factor of every residual branch; None, as GS-LRM, leaves it out."""
    attention: AttentionBackend = "sdpa"
    correlation: CorrelationConfig | None = None
    """Tell each cube where every time shows what its first frame shows (ours): for small models."""
    times: int | None = None
    """How many times a clip has; needed with ``correlation``. The gaussian head's ``frames``."""
    checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, more time."""

    @property
    def hints(self) -> HintsConfig:
        """Cameras, whole: intrinsics and poses of every frame. Depth is not seen, but may tell the unit of length."""
        return HintsConfig(intrinsics="required", poses="required", depth="optional")

    @property
    def dynamics(self) -> None:
        """It does not look for what moves."""

    @property
    def query(self) -> None:
        """It answers all times at once."""

    def build(self) -> SpacetimeBackbone:
        """Raises UserError where sizes do not fit each other."""
        if min(self.patch_size, self.stride, self.width, self.depth, self.heads) < 1:
            raise UserError("backbone: patch_size, stride, width, depth and heads must be at least 1")
        if self.width % self.heads:
            raise UserError(f"backbone.width {self.width} must be a multiple of heads {self.heads}; change one of them")
        blocks = [
            Block(
                self.width,
                self.heads,
                mlp_ratio=self.mlp_ratio,
                qk_norm=self.qk_norm,
                layer_scale=self.layer_scale,
                backend=self.attention,
            )
            for _ in range(self.depth)
        ]
        features, across = self._comparison()
        return SpacetimeBackbone(
            blocks=blocks,
            features=features,
            across=across,
            width=self.width,
            patch_size=self.patch_size,
            stride=self.stride,
            checkpointing=self.checkpointing,
        )

    def _comparison(self) -> tuple[Features | None, Across | None]:
        if self.correlation is None:
            return None, None
        if self.times is None:
            raise UserError(
                "backbone.correlation needs to know how many times a clip has; set "
                "backbone.times=${model.heads.gaussian.frames}"
            )
        return self.correlation.build(self.patch_size), Across(self.correlation, self.width, self.times)


class SpacetimeBackbone(nn.Module):
    """``(Clip) -> Tokens``: one token per patch_size × patch_size × stride cube, one row of them per ``stride`` frames.

    A row's frames are neighbours in time, of one camera; in which order the clip holds them does not matter, but for
    the first, which carries the coordinates. Reference frames have tokens of their own, which are attended to and
    not given. There are no special tokens. A round is one block.
    """

    def __init__(
        self,
        *,
        blocks: list[Block],
        width: int,
        patch_size: int,
        stride: int,
        features: Features | None = None,
        across: Across | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.features, self.across = features, across
        self.rounds, self.token_width, self.patch_size, self.stride = len(blocks), width, patch_size, stride
        self.checkpointing = checkpointing
        self.embed = Linear(CHANNELS * stride * patch_size**2, width)
        self.blocks = nn.ModuleList(blocks)
        self.kept: tuple[int, ...] = (self.rounds - 1,)

    @property
    def queried(self) -> bool:
        """Never: all times are answered at once."""
        return False

    @property
    def takes(self) -> tuple[str, ...]:
        """Cameras."""
        return "intrinsics", "poses"

    def keep(self, rounds: Iterable[int]) -> None:
        """Give the token maps after these blocks (counted from 0), in ascending order, and hold no others in memory."""
        self.kept = kept_rounds(rounds, self.rounds)

    def at_step(self, step: int) -> None:
        """Nothing follows a schedule."""

    def forward(self, clip: Clip) -> Tokens:
        """Raises UserError if images are not RGB or their sides not multiples of the patch size, if a frame's camera is
        unknown, or if the frames cannot be parted into cubes.
        """
        grid = patch_grid(clip.images, self.patch_size)
        cubes, references = part(clip, self.stride)
        with full_precision(clip.images.device):
            pixels = describe(clip, known_cameras(clip))
        x, logits, matches = self._cubes(pixels, cubes), None, None
        if self.features is not None and self.across is not None:
            added, logits, matches = compared(clip, cubes[..., 0], self.features, self.across)
            x = x + added.flatten(1, 2).to(x.dtype)
        x = torch.cat([x, self._cubes(pixels, references[..., None])], dim=1)
        rows = cubes.shape[1]
        maps = [each[:, : rows * grid[0] * grid[1]].unflatten(1, (rows, -1)) for each in self._attend(x)]
        return Tokens(
            patches=tuple(maps),
            special=tuple(each[:, :, :0] for each in maps),
            grid=grid,
            frames=cubes[..., 0],
            rounds=self.kept,
            match_logits=logits,
            matches=matches,
        )

    def _cubes(self, pixels: Float[Tensor, "b f k h w"], frames: Int[Tensor, "b r _s"]) -> Float[Tensor, "b n c"]:
        """Tokens of the cubes that rows of frames make; a single frame stands for the whole row."""
        size = self.patch_size
        rows = torch.arange(len(frames), device=frames.device)[:, None, None]
        chosen = pixels[rows, frames.expand(-1, -1, self.stride)]
        cut = chosen.unflatten(-1, (-1, size)).unflatten(-3, (-1, size))  # b r s k rows size columns size
        return self.embed(cut.permute(0, 1, 4, 6, 2, 3, 5, 7).flatten(4).flatten(1, 3))

    def _attend(self, x: Float[Tensor, "b n c"]) -> list[Float[Tensor, "b n c"]]:
        """What the kept blocks give."""
        outputs: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            if self.checkpointing and self.training and torch.is_grad_enabled():
                x = cast(Tensor, checkpoint(block, x, use_reentrant=False))
            else:
                x = block(x)
            if index in self.kept:
                outputs.append(x)
        return outputs


def compared(
    clip: Clip, keys: Int[Tensor, "b k"], features: Features, across: Across
) -> tuple[Float[Tensor, "b k p e"], Float[Tensor, "b q k y x n"] | None, Matches]:
    """What to add to key frames' tokens for where each time shows the same; logits at the clip's query times; places.

    A time is searched in the frame of the key frame's own camera, if it has one then. UserError where the clip has
    other than ``across.times`` times, or a query time is no frame's.
    """
    times = distinct_times(clip, across.times)
    others = torch.stack([frames_for(clip, keys, time) for time in times.unbind(1)], dim=1)
    added, found = across(features(clip.images), keys, others)
    # In itself a frame shows everything where it is; nothing teaches the search there.
    itself = (others == keys[:, None])[..., None, None, None]
    steps = torch.where(itself, 0.0, found.place * (clip.images.shape[-1] // found.place.shape[-2]))
    matches = Matches(steps=steps, frames=others)
    if clip.query_times is None:
        return added, None, matches
    for query in clip.query_times.unbind(1):
        frames_at(clip, query)  # refuses times of no frame
    place = (clip.query_times[..., None] - times[:, None]).abs().argmin(-1)
    return added, pick(found.logits, place), matches


def frames_for(clip: Clip, keys: Int[Tensor, "b k"], time: Float[Tensor, "b"]) -> Int[Tensor, "b k"]:
    """For each key frame the frame of that time that shows most of the same: its own camera's."""
    there = same_time(clip.times, time[:, None]) & kept(clip)
    return reference_frames(there, clip.camera_ids).gather(1, keys)


def known_cameras(clip: Clip) -> Cameras:
    """The clip's cameras in its first frame's coordinates. UserError unless all are known, pose and intrinsics."""
    cameras = clip.cameras
    if cameras is None:
        raise UserError(_without_cameras("the clip has none"))
    if not (torch.compiler.is_compiling() or torch.compiler.is_exporting()):
        known = [each for each in (cameras.known, cameras.intrinsics_known) if each is not None]
        if not all(bool(each.all()) for each in known):
            raise UserError(_without_cameras("some are unknown"))
    return rebase(cameras)


def _without_cameras(found: str) -> str:
    return (
        f"this model needs the camera of every frame, pose and intrinsics, and {found}; give them (--cameras, in "
        "training data.hints={intrinsics: 1, poses: 1}), or take a model of configs/unified.yaml, which needs none"
    )


def part(clip: Clip, stride: int) -> tuple[Int[Tensor, "b r s"], Int[Tensor, "b k"]]:
    """Frames of each cube, and the reference frames; both by camera and time.

    UserError where a camera's frames are no multiple of ``stride``, or clips of a batch differ in their references.
    """
    order = clip.times.argsort(dim=1, stable=True)
    order = order.gather(1, clip.camera_ids.gather(1, order).argsort(dim=1, stable=True))
    references = order[:, :0]
    if clip.references is not None:
        count = equal_count(clip.references, "reference frames")
        order = order.gather(1, clip.references.gather(1, order).long().argsort(dim=1, stable=True))
        order, references = order.split([order.shape[1] - count, count], dim=1)
    if order.shape[1] % stride or not order.shape[1]:
        raise UserError(_no_fit(order.shape[1], stride, "the clip has"))
    cubes = order.unflatten(1, (-1, stride))
    ids = clip.camera_ids.gather(1, order).view_as(cubes)
    mixed = (ids != ids[..., :1]).any(-1)
    if not (torch.compiler.is_compiling() or torch.compiler.is_exporting()) and bool(mixed.any()):
        clip_index, cube = mixed.nonzero()[0].tolist()
        camera = int(ids[clip_index, cube, 0])
        raise UserError(_no_fit(int((ids[clip_index] == camera).sum()), stride, f"camera {camera} has"))
    return cubes, references


def equal_count(mask: Tensor, what: str) -> int:
    """How many are True in each row, b n. UserError if rows differ."""
    counts = mask.sum(1)
    if not (torch.compiler.is_compiling() or torch.compiler.is_exporting()) and bool((counts != counts[0]).any()):
        raise UserError(
            f"the clips of a batch have {int(counts.min())} to {int(counts.max())} {what}; give each clip as many"
        )
    return int(counts[0])


def _no_fit(count: int, stride: int, who: str) -> str:
    return (
        f"{who} {count} frames (references not counted), and this model reads {stride} at a time; give each camera "
        f"{stride}, {2 * stride}, {3 * stride} … frames"
    )


def describe(clip: Clip, cameras: Cameras) -> Float[Tensor, "b f 10 h w"]:
    """Of each pixel: colour in [−1, 1], its ray's Plücker coordinates (unit direction, moment) and `stamps`."""
    height, width = clip.images.shape[-2:]
    dtype = full_type(clip.images.dtype)
    centres, directions = pixel_rays(cameras, height, width)
    moments = torch.linalg.cross(centres[:, :, None, None].expand_as(directions), directions)
    ray = torch.cat([directions, moments], dim=-1).movedim(-1, 2)
    time = stamps(clip)[:, :, None, None, None].expand(-1, -1, 1, height, width)
    return torch.cat([2 * clip.images.to(dtype) - 1, ray.to(dtype), time.to(dtype)], dim=2)


def stamps(clip: Clip) -> Float[Tensor, "b f"]:
    """Times as numbers: −1 at the first frame that is no reference, 1 at the last; farther away logarithmic."""
    times = clip.times
    kept = torch.ones_like(times, dtype=torch.bool) if clip.references is None else ~clip.references
    first = torch.where(kept, times, torch.inf).amin(1, keepdim=True)
    last = torch.where(kept, times, -torch.inf).amax(1, keepdim=True)
    span = torch.where(last > first, last - first, torch.ones_like(last))
    place = 2 * (times - first) / span - 1
    return torch.where(place.abs() > 1, place.sign() * (1 + place.abs().clamp_min(1).log()), place)
