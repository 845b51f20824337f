"""Hints, known beforehand, for the tokens: intrinsics (DePT3R, arXiv 2512.13122 §3), poses, depth, masks (ours).

Each hint may be unknown, for a whole clip or for some frames: a learned vector then takes its place, and training drops
hints at random (`data.sampling.HintProbabilities`). All are initialised to zero, so that a model tuned from
weights without hints begins with their outputs. Lengths are normalised: the model's own unit stays its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import roma
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from four_d.abilities import Hint, Use
from four_d.constants import keep, on_host, traced
from four_d.errors import UserError
from four_d.layers import full_precision
from four_d.types import Cameras, Clip

FRAME_NUMBERS = {"intrinsics": 3, "poses": 8}
"""Hint → numbers per frame."""
MAP_CHANNELS = {"depth": 2, "masks": 1}
"""Hint → numbers per pixel."""
SMALLEST = 1e-6
STILL = 1e-3
"""Mean distance of cameras below which it is not normalised to 1: a thousandth of an example's unit of length, which is
about its distance to the scene, shifts an image a thousand pixels wide by one pixel; less is noise."""


@dataclass(frozen=True, kw_only=True)
class HintsConfig:
    """Use of each hint by the model; ``required``: it refuses a clip without."""

    intrinsics: Use = "optional"
    """Focal lengths and principal point of each frame. ``optional``: the model heeds them where they are known."""
    poses: Use = "off"
    """Pose of each frame's camera."""
    depth: Use = "off"
    """Depth map of each frame, divided by its mean."""
    masks: Use = "off"
    """Mask of each frame's moving pixels."""

    @property
    def uses(self) -> dict[Hint, Use]:
        """Hints that are not off."""
        return {name: use for name, use in self.uses_by_hint.items() if use != "off"}

    @property
    def uses_by_hint(self) -> dict[Hint, Use]:
        """Use of every hint that tokens can have."""
        return cast(dict[Hint, Use], dict(vars(self)))

    def build(self, patch_size: int, width: int) -> Hints:
        """Build the module. UserError if everything is off."""
        if not self.uses:
            raise UserError(
                "backbone.hints: every hint is off; switch one to optional, or set model.backbone.hints=null"
            )
        return Hints(self.uses, patch_size, width)


def intrinsics_numbers(cameras: Cameras, size: tuple[int, int]) -> Float[Tensor, "b f 3"]:
    """Focal lengths over width and height, principal point y over height: DePT3R's choice, normalisation ours."""
    k, (height, width) = cameras.intrinsics, size
    return torch.stack([k[..., 0, 0] / width, k[..., 1, 1] / height, k[..., 1, 2] / height], dim=-1)


def pose_numbers(
    cameras: Cameras, known: Bool[Tensor, "b f"], unit: Float[Tensor, "b"] | None
) -> Float[Tensor, "b f 8"]:
    """Translation, quaternion wxyz (w ≥ 0), and 1 in clips whose ``unit`` is given (above 0).

    Translations are divided by that, or else by their mean length over the known cameras, if that is above `STILL`.
    """
    poses = cameras.world_from_camera
    lengths = poses[..., :3, 3].norm(dim=-1)
    count = (known & (lengths > SMALLEST)).sum(-1).clamp_min(1)
    mean_length = (lengths * known).sum(-1) / count
    unit = torch.zeros_like(mean_length) if unit is None else unit
    divisor = torch.where(unit > 0, unit.clamp_min(SMALLEST), mean_length.clamp_min(STILL))
    quaternion = roma.quat_xyzw_to_wxyz(roma.rotmat_to_unitquat(poses[..., :3, :3]))
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    flag = (unit > 0).to(lengths.dtype)[:, None].expand_as(lengths)
    return torch.cat([poses[..., :3, 3] / divisor[:, None, None], quaternion, flag[..., None]], dim=-1)


def mean_depth(clip: Clip) -> Float[Tensor, "b"] | None:
    """Mean depth of the valid pixels that are given, 0 in clips without any; None without depth."""
    if clip.depth is None or clip.valid is None:
        return None
    return (clip.depth * clip.valid).flatten(1).sum(-1) / clip.valid.flatten(1).sum(-1).clamp_min(1)


class FrameHint(nn.Module):
    """Addition to each frame's tokens, from a few numbers per frame; a learned vector where they are unknown."""

    def __init__(self, numbers: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(numbers, width)
        self.unknown = nn.Parameter(torch.zeros(width))
        _zero(self.project)

    def forward(self, numbers: Float[Tensor, "b f n"], known: Bool[Tensor, "b f"]) -> Float[Tensor, "b f 1 c"]:
        """One vector per frame."""
        return torch.where(known[..., None], self.project(numbers), self.unknown)[:, :, None]


class MapHint(nn.Module):
    """Addition to each patch token, from maps at the image's size; a learned vector in frames without."""

    def __init__(self, channels: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        self.unknown = nn.Parameter(torch.zeros(width))
        _zero(self.project)

    def forward(self, maps: Float[Tensor, "b f k h w"], known: Bool[Tensor, "b f"]) -> Float[Tensor, "b f p c"]:
        """One vector per patch, in row-major order."""
        tokens = self.project(maps.flatten(0, 1)).flatten(2).mT.unflatten(0, maps.shape[:2])
        return torch.where(known[..., None, None], tokens, self.unknown)


def _zero(layer: nn.Linear | nn.Conv2d) -> None:
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


def encoder(name: str, patch_size: int, width: int) -> nn.Module:
    """Encoder of a hint's values as vectors."""
    if name in FRAME_NUMBERS:
        return FrameHint(FRAME_NUMBERS[name], width)
    return MapHint(MAP_CHANNELS[name], patch_size, width)


class Hints(nn.Module):
    """Addition of hints to the tokens: poses to the camera token, all others to the patches."""

    def __init__(self, uses: Mapping[Hint, Use], patch_size: int, width: int) -> None:
        super().__init__()
        self.uses: Mapping[str, Use] = {**uses}
        self.encoders = nn.ModuleDict({name: encoder(name, patch_size, width) for name in uses})

    def forward(
        self, clip: Clip, special: Float[Tensor, "b f s c"], patches: Float[Tensor, "b f p c"]
    ) -> tuple[Float[Tensor, "b f s c"], Float[Tensor, "b f p c"]]:
        """Add hints to the special and patch tokens of all frames. UserError if the clip lacks a required hint."""
        for name, encoder in self.encoders.items():
            with full_precision(clip.images.device):
                values, known = READERS[name](clip)
            self._require(name, known)
            added = encoder(values, known).to(patches.dtype)
            if name == "poses":
                special = torch.cat([special[:, :, :1] + added, special[:, :, 1:]], dim=2)
            else:
                patches = patches + added
        return special, patches

    def _require(self, name: str, known: Bool[Tensor, "b f"]) -> None:
        if self.uses[name] == "required" and not traced() and not bool(on_host(known).all()):
            raise UserError(
                f"this model requires {name}, and a frame has none; give them, or use a model without that need"
            )


def _none_known(clip: Clip) -> Bool[Tensor, "b f"]:
    return torch.zeros_like(clip.times, dtype=torch.bool)


def _all_known(clip: Clip) -> Bool[Tensor, "b f"]:
    return keep(torch.ones_like(clip.times, dtype=torch.bool), torch.ones(clip.times.shape, dtype=torch.bool))


def read_intrinsics(clip: Clip) -> tuple[Tensor, Tensor]:
    """`intrinsics_numbers`, and the frames that have them."""
    cameras = clip.cameras
    if cameras is None:
        return clip.images.new_zeros(*clip.times.shape, FRAME_NUMBERS["intrinsics"]), _none_known(clip)
    known = cameras.known if cameras.intrinsics_known is None else cameras.intrinsics_known
    size = (clip.images.shape[-2], clip.images.shape[-1])
    return intrinsics_numbers(cameras, size), _all_known(clip) if known is None else known


def read_poses(clip: Clip) -> tuple[Tensor, Tensor]:
    """`pose_numbers`, and the frames that have them."""
    if clip.cameras is None:
        return clip.images.new_zeros(*clip.times.shape, FRAME_NUMBERS["poses"]), _none_known(clip)
    known = _all_known(clip) if clip.cameras.known is None else clip.cameras.known
    return pose_numbers(clip.cameras, known, mean_depth(clip)), known


def read_depth(clip: Clip) -> tuple[Tensor, Tensor]:
    """Log of depth over its mean (0 where invalid) and its validity, as two channels; and the frames with depth."""
    unit = mean_depth(clip)
    if clip.depth is None or clip.valid is None or unit is None:
        height, width = clip.images.shape[-2:]
        return clip.images.new_zeros(*clip.times.shape, 2, height, width), _none_known(clip)
    relative = clip.depth / unit.clamp_min(SMALLEST)[:, None, None, None]
    logarithm = torch.where(clip.valid, relative.clamp_min(SMALLEST).log(), 0)
    return torch.stack([logarithm, clip.valid.to(logarithm.dtype)], dim=2), clip.valid.flatten(2).any(-1)


def read_masks(clip: Clip) -> tuple[Tensor, Tensor]:
    """Mask of moving pixels as 1 and 0, and the frames whose mask is known."""
    if clip.dynamic is None:
        height, width = clip.images.shape[-2:]
        return clip.images.new_zeros(*clip.times.shape, 1, height, width), _none_known(clip)
    known = _all_known(clip) if clip.dynamic_known is None else clip.dynamic_known
    return clip.dynamic[:, :, None].to(clip.images.dtype), known


READERS = {"intrinsics": read_intrinsics, "poses": read_poses, "depth": read_depth, "masks": read_masks}
"""Hint → reader of its values in a clip and of the frames that have it."""
