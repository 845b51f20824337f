"""Deformable Gaussians, one per pixel of each key frame, with a translation per time (DGS-LRM, arXiv 2506.09997).

Activations are GS-LRM's (arXiv 2404.19702) where DGS-LRM gives none. Only translations change over time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from four_d.abilities import Hint, Use
from four_d.constants import move, on_host, traced, vector
from four_d.correlation import pick
from four_d.errors import UserError
from four_d.geometry import pixel_centres, pixel_rays, rays, rebase
from four_d.heads.followed import Followed
from four_d.layers import Linear, full_precision, full_type, inverse_log
from four_d.parts import EVERY_FRAME, MATCHES, SWEEP, HeadSpec, Provision, TokenShape
from four_d.query import distinct_times
from four_d.types import Clip, Gaussians, Prediction, Tokens

T = TypeVar("T", float, Tensor)
Depth = Literal["sigmoid_disparity", "sigmoid_linear", "exp"]
APPEARANCE = 11
"""Channels beside position and offsets: RGB 3, quaternion 4, scale 3, opacity 1."""
DEGREE_0 = 0.5 / math.sqrt(math.pi)
"""The constant spherical harmonic."""


@dataclass(frozen=True, kw_only=True)
class GaussianHeadConfig(HeadSpec):
    """Sizes and activations of the `GaussianHead`."""

    kind: Literal["gaussian"] = "gaussian"
    frames: int = 24
    """Number of distinct times of a clip, each with an offset; references not counted."""
    hidden: int | None = None
    """Channels between its two layers; None: the backbone's token width."""
    every: int | None = None
    """Stride of key frames among the frames of the first frame's camera, in time order. None: all frames with token
    rows, the only choice for `spacetime`, whose rows are its key frames."""
    position: Literal["ray", "point"] = "ray"
    """``ray``: a distance along the pixel's ray, for which the cameras must be known. ``point``: x, y and z as those of
    point maps, for backbones that need no cameras."""
    depth: Depth = "sigmoid_disparity"
    """Activation of the distance along the ray: a sigmoid between ``near`` and ``far``, in disparity or in distance, or
    exp."""
    near: float = 0.1
    """Least distance along the ray, in the data's unit of length; above 0 and below ``start`` (ours)."""
    far: float = 100.0
    """Largest distance along the ray, in the data's unit of length; above ``start`` (ours)."""
    start: float = 1.0
    """Initial distance of Gaussians (ours)."""
    unit: float = 1.0
    """Scales are min(exp(g + scale_start) · unit, largest). To start about a pixel wide, a tenth of ``unit`` should be
    ``start`` over the number of pixels of the longer side: at 26 pixels rendering takes forty times the work."""
    largest: float = 0.3
    """Largest scale of a Gaussian, in the data's unit of length. 0.3: GS-LRM's."""
    scale_start: float = -2.3
    """Bias of the scales' logarithms. −2.3, a tenth of ``unit``: GS-LRM's."""
    opacity_start: float = -2.0
    """Bias of the opacity, the logistic function of g + opacity_start."""
    from_pixels: bool = True
    """Initialise colours from the pixels (ours: they need not be learned then)."""
    offsets: bool = True
    """Move Gaussians over time. False: all are static, with the same network except for what ``follow`` adds."""
    follow: bool = False
    """Add a learned fraction of the backbone's matched motion to the offsets (`Followed`)."""
    sweep: bool = False
    """Move the initial distance along the ray to that of the backbone's cost volume by a learned fraction (`Swept`)."""

    def __post_init__(self) -> None:
        if any(each is not None and each < 1 for each in (self.frames, self.every, self.hidden)):
            raise UserError("frames, every and hidden must be at least 1")
        if self.position == "ray" and self.depth != "exp" and not 0 < self.near < self.start < self.far:
            raise UserError(
                f"near {self.near:g}, start {self.start:g} and far {self.far:g} are distances; choose "
                "0 < near < start < far"
            )
        if self.sweep and self.position == "point":
            raise UserError("sweep moves distances along rays; set the gaussian head's position=ray, or sweep=false")
        if min(self.start, self.unit, self.largest) <= 0:
            raise UserError("start, unit and largest must be positive")

    @property
    def without_effect(self) -> dict[str, str]:
        """Settings that nothing reads → why."""
        unread = dict[str, str]()
        if self.position == "point":
            unread |= dict.fromkeys(("depth", "near", "far"), "where position is point")
        elif self.depth == "exp":
            unread |= dict.fromkeys(("near", "far"), "where depth is exp")
        return unread if self.offsets else {**unread, "follow": "where offsets are false"}

    @property
    def provides(self) -> tuple[str, ...]:
        """Gaussians and their key frames."""
        return "gaussians", "key_frames"

    @property
    def requires(self) -> frozenset[Provision]:
        """Token rows of every frame if ``every`` chooses among them; matches with ``follow``, depths with ``sweep``."""
        return frozenset(
            ([] if self.every is None else [EVERY_FRAME.otherwise("set model.heads.{name}.every=null")])
            + ([MATCHES.otherwise(f"{MATCHES.remedy}, or model.heads.{{name}}.follow=false")] if self.follow else [])
            + ([SWEEP.otherwise(f"{SWEEP.remedy}, or model.heads.{{name}}.sweep=false")] if self.sweep else [])
        )

    @property
    def takes(self) -> Mapping[Hint, Use]:
        """Cameras, required if Gaussians lie on their rays."""
        return {"intrinsics": "required", "poses": "required"} if self.position == "ray" else {}

    @property
    def gaussian_times(self) -> int:
        """Number of times, one offset each."""
        return self.frames

    @property
    def initial(self) -> float:
        """Raw number of the distance ``start``."""
        if self.depth == "exp":
            return math.log(self.start)
        fraction = _between(self.start, self.depth, self.near, self.far)
        return math.log(fraction / (1 - fraction))

    def key_frames(self, row_stride: int) -> tuple[int, int | None]:
        """Frames of every row, or some of the first camera's."""
        return (-(-self.frames // row_stride), None) if self.every is None else (-(-self.frames // self.every), 1)

    def build(self, shape: TokenShape) -> GaussianHead:
        """Build the module, which reads the last round."""
        return GaussianHead(self, shape)


def distance(raw: Float[Tensor, "*b"], depth: Depth, near: float, far: float) -> Float[Tensor, "*b"]:
    """Positive distances: near + σ(y)·(far − near), the same of inverses with 1/far at σ = 0, or exp(y)."""
    match depth:
        case "sigmoid_linear":
            return near + raw.sigmoid() * (far - near)
        case "sigmoid_disparity":
            return 1 / (1 / far + raw.sigmoid() * (1 / near - 1 / far))
        case "exp":
            return raw.exp()


def undo_distance(target: Float[Tensor, "*b"], depth: Depth, near: float, far: float) -> Float[Tensor, "*b"]:
    """Inverse of `distance`: the raw number of a distance, of those that have none the last before the bounds."""
    return target.log() if depth == "exp" else _between(target, depth, near, far).logit(eps=1e-6)


def _between(target: T, depth: Depth, near: float, far: float) -> T:
    """Value of the sigmoid in `distance`."""
    if depth == "sigmoid_linear":
        return (target - near) / (far - near)
    return (1 / target - 1 / far) / (1 / near - 1 / far)


def forward_points(height: int, width: int, z: float, like: Tensor) -> Float[Tensor, "height width 3"]:
    """Points at depth ``z`` through all pixel centres of a camera whose focal length is the image's longer side."""
    centres = pixel_centres(height, width, like) - vector([width / 2, height / 2], like)
    return z * functional.pad(centres / max(height, width), (0, 1), value=1.0)


class GaussianHead(nn.Module):
    """Head of ``gaussians`` and ``key_frames``: LayerNorm, two linear layers, then activations, in full precision.

    Each token gives all pixels of its patch. Offsets are initialised to zero: the model begins static.
    """

    def __init__(self, config: GaussianHeadConfig, shape: TokenShape) -> None:
        super().__init__()
        self.config, self.patch_size, self.rounds = config, shape.patch_size, (shape.rounds - 1,)
        self.position_channels = 1 if config.position == "ray" else 3
        self.channels = self.position_channels + APPEARANCE + 3 * config.frames
        hidden = shape.width if config.hidden is None else config.hidden
        self.norm = nn.LayerNorm(shape.width)
        self.hidden = Linear(shape.width, hidden)
        self.out = Linear(hidden, shape.patch_size**2 * self.channels)
        follow = config.follow and config.offsets
        self.followed = Followed(hidden, patch_size=shape.patch_size, times=config.frames) if follow else None
        self.swept = Swept(hidden, shape.patch_size) if config.sweep else None
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Initialise outputs near their activations' start, and the offsets' rows at zero."""
        nn.init.normal_(self.out.weight, std=0.02)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)
        self.out.weight.unflatten(0, (-1, self.channels))[:, self.position_channels + APPEARANCE :] = 0
        quaternion = self.position_channels + 3
        self.out.bias.unflatten(0, (-1, self.channels))[:, quaternion] = 1  # the identity

    def forward(self, tokens: Tokens, clip: Clip) -> Prediction:
        """Predict Gaussians. UserError where the clip's number of times differs from the head's offsets, clips of a
        batch have different numbers of key frames, or rays need cameras that are missing.
        """
        times = distinct_times(clip, self.config.frames)
        rows, frames = key_rows(tokens, clip, self.config.every)
        index = torch.arange(len(rows), device=rows.device)[:, None]
        chosen = tokens.patches[tokens.rounds.index(self.rounds[0])][index, rows]
        with full_precision(chosen.device):
            mixed = functional.gelu(self.hidden(self.norm(chosen.to(full_type(chosen.dtype)))))
            raw = self._pixels(mixed, tokens.grid)
            if self.swept is not None:
                shift = self.swept(mixed, tokens, clip, rows, self.config)
                raw = torch.cat([raw[..., :1] + shift[..., None], raw[..., 1:]], dim=-1)
            gaussians = self._activate(raw, clip, frames, times)
            if self.followed is not None and gaussians.offsets is not None:
                means, cameras = gaussians.means.unflatten(1, raw.shape[1:4]), clip.cameras
                cameras = None if cameras is None else rebase(cameras)
                matched = self.followed(mixed, tokens.grid, means, tokens.matches, rows, cameras)
                gaussians = replace(gaussians, offsets=gaussians.offsets + matched.flatten(2, 4))
        return Prediction(gaussians=gaussians, key_frames=frames)

    def _pixels(self, mixed: Float[Tensor, "b r p c"], grid: tuple[int, int]) -> Float[Tensor, "b r h w o"]:
        """Each pixel's raw numbers."""
        raw = self.out(mixed)
        size = self.patch_size
        per_pixel = raw.unflatten(-1, (size, size, self.channels)).unflatten(2, grid)  # b r rows columns y x o
        return per_pixel.transpose(3, 4).flatten(4, 5).flatten(2, 3)

    def _activate(
        self, raw: Float[Tensor, "b k h w o"], clip: Clip, frames: Int[Tensor, "b k"], times: Float[Tensor, "b t"]
    ) -> Gaussians:
        """Activate raw numbers to Gaussians in the first frame's camera coordinates."""
        config = self.config
        means = self._rays(raw[..., 0], clip, frames) if self.position_channels == 1 else self._points(raw[..., :3])
        colour, quats, scales, opacities, moved = raw[..., self.position_channels :].split(
            [3, 4, 3, 1, 3 * config.frames], dim=-1
        )
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
        """Positions on the rays of the key frames' cameras. UserError where these are unknown."""
        config, cameras = self.config, clip.cameras
        known = None if cameras is None or traced() else cameras.known
        if cameras is None or (known is not None and not bool(on_host(known).all())):
            raise UserError(
                "this model's Gaussians lie on rays of known cameras, and a frame has none; give them "
                "(--cameras), or take a model of configs/unified.yaml, which needs none"
            )
        centres, directions = pixel_rays(rebase(cameras), raw.shape[2], raw.shape[3])
        index = torch.arange(len(frames), device=frames.device)[:, None]
        along = distance(raw + config.initial, config.depth, config.near, config.far)
        return centres[index, frames][:, :, None, None] + along[..., None] * directions[index, frames]

    def _points(self, raw: Float[Tensor, "b k h w 3"]) -> Float[Tensor, "b k h w 3"]:
        """Positions by `inverse_log`, starting from `forward_points`: in front of the first camera."""
        initial = forward_points(raw.shape[2], raw.shape[3], self.config.start, raw)
        return inverse_log(raw + initial.sign() * initial.abs().log1p())


class Swept(nn.Module):
    """Learned fraction, per pixel, of the way from the initial distance to the cost volume's, times its confidence.

    The way is that of raw numbers, before `distance`; initially 0.
    """

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.share = Linear(width, patch_size**2)
        self.patch_size = patch_size
        for parameter in self.share.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self,
        mixed: Float[Tensor, "b k p c"],
        tokens: Tokens,
        clip: Clip,
        rows: Int[Tensor, "b k"],
        config: GaussianHeadConfig,
    ) -> Float[Tensor, "b k h w"]:
        """Compute what is added to raw distances. UserError where the backbone makes no cost volume."""
        if tokens.sweep is None or clip.cameras is None:
            raise UserError(
                "the gaussian head starts from depths along rays, and the backbone finds none; set its sweep=false, "
                "or 'model.backbone.cost_volume={}' with the spacetime backbone"
            )
        size = (clip.images.shape[-2], clip.images.shape[-1])
        share = self.share(mixed).mT.unflatten(-1, tokens.grid).flatten(0, 1)
        fraction = functional.pixel_shuffle(share, self.patch_size)[:, 0].unflatten(0, rows.shape)
        depth, confidence = (
            functional.interpolate(pick(each, rows).to(mixed), size, mode="bilinear", align_corners=False)
            for each in (tokens.sweep.depth.log(), tokens.sweep.confidence)
        )
        frames = tokens.frames.expand(len(rows), -1).gather(1, rows)
        lens = pick(clip.cameras.intrinsics.to(mixed), frames)
        local = rays(lens, pixel_centres(*size, mixed).flatten(0, 1).expand(*frames.shape, -1, -1))
        along = depth.exp() * local.norm(dim=-1).unflatten(-1, size)
        way = undo_distance(along, config.depth, config.near, config.far) - config.initial
        return fraction * confidence * way


def key_rows(tokens: Tokens, clip: Clip, every: int | None) -> tuple[Int[Tensor, "b k"], Int[Tensor, "b k"]]:
    """Token rows of the key frames, in time order (`GaussianHeadConfig.every`), and these frames.

    UserError where clips of a batch differ in their number. In an exported program all rows count as one camera's, and
    none as a reference.
    """
    stride = 1 if every is None else every
    if traced():
        order, _ = _rows_by_time(tokens.frames, clip.times, clip.camera_ids, clip.references, every)
        rows = order[:, ::stride]
        return rows, tokens.frames.expand(len(rows), -1).gather(1, rows)
    references = None if clip.references is None else on_host(clip.references)
    frames, times, camera_ids = (on_host(each) for each in (tokens.frames, clip.times, clip.camera_ids))
    order, counts = _rows_by_time(frames, times, camera_ids, references, every)
    if not bool((counts == counts[0]).all()):
        raise UserError(
            f"clips of one batch have {int(counts.min())} to {int(counts.max())} frames to take Gaussians from; give "
            "each as many (in training data.sampling.one_camera_share=1)"
        )
    rows = order[:, : int(counts[0]) : stride]
    chosen = frames.expand(len(rows), -1).gather(1, rows)
    return move(rows, clip.times.device), move(chosen, clip.times.device)


def _rows_by_time(
    frames: Int[Tensor, "*b r"],
    times: Float[Tensor, "b f"],
    camera_ids: Int[Tensor, "b f"],
    references: Bool[Tensor, "b f"] | None,
    every: int | None,
) -> tuple[Int[Tensor, "b r"], Int[Tensor, "b"]]:
    """Token rows by time, those that no Gaussians are taken from last, and the number of the others."""
    frames = frames.expand(len(times), -1)
    selected = torch.ones_like(frames, dtype=torch.bool) if references is None else ~references.gather(1, frames)
    if every is not None:
        selected = selected & (camera_ids.gather(1, frames) == camera_ids[:, :1])
    return torch.where(selected, times.gather(1, frames), torch.inf).argsort(dim=1, stable=True), selected.sum(1)
