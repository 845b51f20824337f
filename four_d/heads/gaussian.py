"""Deformable Gaussians, one per pixel of each key frame, with a translation per time (DGS-LRM, arXiv 2506.09997).

Activations are GS-LRM's (arXiv 2404.19702) where DGS-LRM says nothing. Only translations change over time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from four_d.errors import UserError
from four_d.geometry import pixel_centres, pixel_rays, rebase
from four_d.heads.dense import inverse_log
from four_d.heads.followed import Followed
from four_d.layers import Linear, full_precision, full_type
from four_d.query import distinct_times, kept
from four_d.types import Clip, Gaussians, Prediction, Tokens

Depth = Literal["sigmoid_disparity", "sigmoid_linear", "exp"]
REST = 11
"""Channels beside position and offsets: RGB 3, quaternion 4, scale 3, opacity 1."""
DEGREE_0 = 0.5 / math.sqrt(math.pi)
"""The constant spherical harmonic."""


@dataclass(frozen=True, kw_only=True)
class GaussianHeadConfig:
    """Sizes and activations of the `GaussianHead`."""

    kind: Literal["gaussian"] = "gaussian"
    frames: int = 24
    """Times that a clip has, each of which gets an offset; references not counted."""
    hidden: int | None = None
    """Channels between its two layers; None: the backbone's token width."""
    every: int | None = None
    """Key frames are each every-th frame of the first frame's camera, in time order. None: all frames that the backbone
    gives tokens of; for `spacetime`, whose tokens are of its key frames, there is no other choice."""
    position: Literal["ray", "point"] = "ray"
    """``ray``: a distance along the pixel's ray, for which the cameras must be known. ``point``: x, y and z as those of
    point maps, for backbones that need no cameras."""
    depth: Depth = "sigmoid_disparity"
    """From a number to a distance along the ray: between ``near`` and ``far`` evenly in its inverse or in itself, or
    its logarithm."""
    near: float = 0.1
    far: float = 100.0
    start: float = 1.0
    """Distance at which Gaussians start out (ours)."""
    unit: float = 1.0
    """Scales are min(exp(g + scale_start) · unit, largest)."""
    largest: float = 0.3
    scale_start: float = -2.3
    opacity_start: float = -2.0
    """Opacity is the logistic function of g + opacity_start."""
    from_pixels: bool = True
    """Colours start out as the pixels' own (ours: they need not be learned then)."""
    offsets: bool = True
    """False: nothing moves, the network being the same but for what ``follow`` adds."""
    follow: bool = False
    """Offsets begin from a learned share of the motion that the backbone found by comparing frames (`Followed`)."""

    def __post_init__(self) -> None:
        if any(each is not None and each < 1 for each in (self.frames, self.every, self.hidden)):
            raise UserError("frames, every and hidden must be at least 1")
        if self.depth != "exp" and not 0 < self.near < self.start < self.far:
            raise UserError(
                f"near {self.near:g}, start {self.start:g} and far {self.far:g} are distances; choose "
                "0 < near < start < far"
            )
        if min(self.start, self.unit, self.largest) <= 0:
            raise UserError("start, unit and largest must be positive")

    def build(self, *, token_width: int, rounds: int, patch_size: int) -> GaussianHead:
        """It reads the last round."""
        return GaussianHead(self, token_width=token_width, last_round=rounds - 1, patch_size=patch_size)


def distance(raw: Float[Tensor, "*b"], depth: Depth, near: float, far: float) -> Float[Tensor, "*b"]:
    """Positive distances: near + σ(y)·(far − near), the same of inverses with 1/far at σ = 0, or exp(y)."""
    match depth:
        case "sigmoid_linear":
            return near + raw.sigmoid() * (far - near)
        case "sigmoid_disparity":
            return 1 / (1 / far + raw.sigmoid() * (1 / near - 1 / far))
        case "exp":
            return raw.exp()


def undo_distance(wanted: float, depth: Depth, near: float, far: float) -> float:
    """The number of which `distance` makes ``wanted``."""
    if depth == "exp":
        return math.log(wanted)
    ends = (near, far, wanted) if depth == "sigmoid_linear" else (1 / far, 1 / near, 1 / wanted)
    share = (ends[2] - ends[0]) / (ends[1] - ends[0])
    return math.log(share / (1 - share))


def forward_points(height: int, width: int, z: float, like: Tensor) -> Float[Tensor, "height width 3"]:
    """Where a camera whose focal length is the image's longer side sees all pixels' centres at depth ``z``."""
    centres = pixel_centres(height, width, like) - torch.tensor([width / 2, height / 2], device=like.device)
    return z * functional.pad(centres / max(height, width), (0, 1), value=1.0)


class GaussianHead(nn.Module):
    """Sets ``gaussians`` and ``key_frames``: LayerNorm, two linear layers, then activations. Always in full precision.

    Each token gives all pixels of its patch. Offsets start out as nothing: the model begins static.
    """

    def __init__(self, config: GaussianHeadConfig, *, token_width: int, last_round: int, patch_size: int) -> None:
        super().__init__()
        self.rounds, self.queried = (last_round,), False
        self.config, self.patch_size = config, patch_size
        self.place = 1 if config.position == "ray" else 3
        self.channels = self.place + REST + 3 * config.frames
        hidden = token_width if config.hidden is None else config.hidden
        self.norm = nn.LayerNorm(token_width)
        self.hidden = Linear(token_width, hidden)
        self.out = Linear(hidden, patch_size**2 * self.channels)
        follow = config.follow and config.offsets
        self.followed = Followed(hidden, patch_size=patch_size, times=config.frames) if follow else None
        self._begin()

    @torch.no_grad()
    def _begin(self) -> None:
        """Everything near its activation's start, and the offsets' rows at zero."""
        nn.init.normal_(self.out.weight, std=0.02)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)
        self.out.weight.unflatten(0, (-1, self.channels))[:, self.place + REST :] = 0
        quaternion = self.place + 3
        self.out.bias.unflatten(0, (-1, self.channels))[:, quaternion] = 1  # the identity

    def forward(self, tokens: Tokens, clip: Clip) -> Prediction:
        """UserError where the clip has not as many times as the head gives offsets for, where clips of a batch have
        different numbers of key frames, or where rays are asked for and there are no cameras.
        """
        times = distinct_times(clip, self.config.frames)
        rows = key_rows(tokens, clip, self.config.every)
        index = torch.arange(len(rows), device=rows.device)[:, None]
        frames = tokens.frames.expand(len(rows), -1).gather(1, rows)
        chosen = tokens.patches[tokens.rounds.index(self.rounds[0])][index, rows]
        with full_precision(chosen.device):
            mixed = functional.gelu(self.hidden(self.norm(chosen.to(full_type(chosen.dtype)))))
            raw = self._pixels(mixed, tokens.grid)
            gaussians = self._activate(raw, clip, frames, times)
            if self.followed is not None and gaussians.offsets is not None:
                means, cameras = gaussians.means.unflatten(1, raw.shape[1:4]), clip.cameras
                cameras = None if cameras is None else rebase(cameras)
                found = self.followed(mixed, tokens.grid, means, tokens.matches, rows, cameras)
                gaussians = replace(gaussians, offsets=gaussians.offsets + found.flatten(2, 4))
        return Prediction(gaussians=gaussians, key_frames=frames)

    def _pixels(self, mixed: Float[Tensor, "b r p c"], grid: tuple[int, int]) -> Float[Tensor, "b r h w o"]:
        """Each pixel's raw numbers."""
        raw = self.out(mixed)
        size = self.patch_size
        laid = raw.unflatten(-1, (size, size, self.channels)).unflatten(2, grid)  # b r rows columns y x o
        return laid.transpose(3, 4).flatten(4, 5).flatten(2, 3)

    def _activate(
        self, raw: Float[Tensor, "b k h w o"], clip: Clip, frames: Int[Tensor, "b k"], times: Float[Tensor, "b t"]
    ) -> Gaussians:
        """In the first frame's camera coordinates."""
        config = self.config
        means = self._rays(raw[..., 0], clip, frames) if self.place == 1 else self._points(raw[..., :3])
        colour, quats, scales, opacities, moved = raw[..., self.place :].split([3, 4, 3, 1, 3 * config.frames], dim=-1)
        if config.from_pixels:
            index = torch.arange(len(frames), device=frames.device)[:, None]
            colour = colour + (clip.images[index, frames].movedim(2, -1).to(colour.dtype) - 0.5) / DEGREE_0
        offsets = moved.flatten(1, 3).unflatten(-1, (config.frames, 3)).movedim(2, 1)
        sizes = (scales + config.scale_start + math.log(config.unit)).clamp_max(math.log(config.largest))
        return Gaussians(
            means=means.flatten(1, 3),
            quats=quats.flatten(1, 3),
            scales=sizes.exp().flatten(1, 3),
            opacities=(opacities + config.opacity_start).sigmoid().flatten(1),
            harmonics=colour.flatten(1, 3)[:, :, None],
            offsets=offsets if config.offsets else torch.zeros_like(offsets),
            offset_times=times,
        )

    def _rays(
        self, raw: Float[Tensor, "b k h w"], clip: Clip, frames: Int[Tensor, "b k"]
    ) -> Float[Tensor, "b k h w 3"]:
        """On the rays of the key frames' cameras. UserError where they are unknown."""
        config, cameras = self.config, clip.cameras
        if cameras is None or (cameras.known is not None and not _every(cameras.known)):
            raise UserError(
                "this model's Gaussians lie on rays of known cameras, and a frame comes without; give them "
                "(--cameras), or take a model of configs/unified.yaml, which needs none"
            )
        centres, directions = pixel_rays(rebase(cameras), raw.shape[2], raw.shape[3])
        index = torch.arange(len(frames), device=frames.device)[:, None]
        begin = undo_distance(config.start, config.depth, config.near, config.far)
        along = distance(raw + begin, config.depth, config.near, config.far)
        return centres[index, frames][:, :, None, None] + along[..., None] * directions[index, frames]

    def _points(self, raw: Float[Tensor, "b k h w 3"]) -> Float[Tensor, "b k h w 3"]:
        """`inverse_log`, starting from `forward_points`: where the first camera might see them."""
        begin = forward_points(raw.shape[2], raw.shape[3], self.config.start, raw)
        return inverse_log(raw + begin.sign() * begin.abs().log1p())


def _every(mask: Tensor) -> bool:
    return torch.compiler.is_compiling() or torch.compiler.is_exporting() or bool(mask.all())


def key_rows(tokens: Tokens, clip: Clip, every: int | None) -> Int[Tensor, "b k"]:
    """Token rows of the key frames, in time order (`GaussianHeadConfig.every`).

    UserError where clips of a batch differ in their number. In a program that is exported all rows count as one
    camera's, and none as a reference.
    """
    frames = tokens.frames.expand(len(clip.times), -1)
    wanted, times = kept(clip).gather(1, frames), clip.times.gather(1, frames)
    if every is not None:
        wanted = wanted & (clip.camera_ids.gather(1, frames) == clip.camera_ids[:, :1])
    counts = wanted.sum(1)
    if not _every(counts == counts[0]):
        raise UserError(
            f"clips of one batch have {int(counts.min())} to {int(counts.max())} frames to take Gaussians from; give "
            "each as many (in training data.sampling.one_camera_share=1)"
        )
    order = torch.where(wanted, times, torch.inf).argsort(dim=1, stable=True)
    count = order.shape[1] if torch.compiler.is_exporting() else int(counts[0])
    return order[:, : count : 1 if every is None else every]
