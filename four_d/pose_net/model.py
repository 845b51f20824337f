"""PoseNet: view class, rotation, distance and place of one object in every picture, with the error to expect.

After PAD3R (arXiv 2509.25183) and Lab4D's ``predictor``; docs/pad3r.md says which part is whose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import roma
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from four_d.abilities import Abilities, ModelModule, ModelSpec
from four_d.backbones.patches import PatchConfig, StemPatchConfig, patch_grid
from four_d.errors import UserError
from four_d.layers import full_precision, full_type
from four_d.types import CERTAINTY, FIXED, INTERNAL, NONE, Clip, Prediction
from four_d.viewpoints import FILL, FOCAL, ObjectPose, decode_pose, view_classes

POOLED = 4
"""Rows and columns of the features that the outputs see: where things are matters to a rotation."""
GROUP = 16
"""Channels that are normalised together."""


@dataclass(frozen=True, kw_only=True)
class PosePrediction(Prediction):
    """Poses of an object of radius 1, whose centre is the world's origin. ``cameras`` have the likeliest ones.

    Hypotheses, one per view class, are for losses and `pose_net.follow`.
    """

    pose_uncertainty: Float[Tensor, "*b f"] | None = field(default=None, metadata=NONE | CERTAINTY)
    """Expected error of the likeliest rotation, in radians."""
    pose_logits: Float[Tensor, "*b f views"] | None = field(default=None, metadata=FIXED | INTERNAL)
    """Logits of the view classes."""
    pose_rotations: Float[Tensor, "*b f views 3 3"] | None = field(default=None, metadata=FIXED | INTERNAL)
    """Rotation camera_from_object, if the view is of this class."""
    pose_classes: Float[Tensor, "*b f views 3 3"] | None = field(default=None, metadata=FIXED | INTERNAL)
    """Rotation camera_from_object in the middle of each class, the same everywhere."""
    pose_offset: Float[Tensor, "*b f 2"] | None = field(default=None, metadata=FIXED | INTERNAL)
    """Pixel of the object's centre from the picture's, in sides of the picture."""
    pose_log_distance: Float[Tensor, "*b f"] | None = field(default=None, metadata=FIXED | INTERNAL)
    """Logarithm of the centre's z-depth."""


@dataclass(frozen=True, kw_only=True)
class PoseNetConfig(ModelSpec):
    """Encoder of single pictures, a few convolutions, and a hypothesis per view class."""

    kind: Literal["pose_net"] = "pose_net"
    patches: PatchConfig = field(default_factory=lambda: StemPatchConfig(channels=(32, 64)))
    """Encoder; ``{kind: timm, model: vit_small_patch14_dinov2, pretrained: FILE}`` is Lab4D's, of ``patch_size`` 14."""
    patch_size: int = 8
    """Pixels a side of a patch."""
    width: int = 128
    """Channels of patches and convolutions, a multiple of 16."""
    depth: int = 2
    """Residual blocks of convolutions over the patches."""
    hidden: int = 512
    """Features of a picture that the outputs are made of."""
    azimuths: int = 12
    """View classes around the object."""
    elevations: int = 3
    """View classes from below to above."""
    elevation: float = 45.0
    """Elevation of the lowest and highest class, ± degrees, where there are several."""

    def __post_init__(self) -> None:
        if min(self.patch_size, self.hidden, self.azimuths, self.elevations) < 1 or self.depth < 0:
            raise UserError("patch_size, hidden, azimuths and elevations must be at least 1, depth at least 0")
        if self.width < 1 or self.width % GROUP:
            raise UserError(f"width is {self.width}; choose a multiple of {GROUP}")
        if not 0 < self.elevation < 90:
            raise UserError(f"elevation is {self.elevation}; choose degrees above 0 and below 90")

    @property
    def without_effect(self) -> dict[str, str]:
        """Settings that nothing reads → why."""
        return {"elevation": "where elevations is 1"} if self.elevations == 1 else {}

    @property
    def abilities(self) -> Abilities:
        """Cameras about the object, and their uncertainty."""
        return Abilities(
            outputs=frozenset({"cameras", "pose_uncertainty"}),
            predictions=(PosePrediction,),
            multiple=self.patch_size,
            normalisation="stored",
            world="stored",
        )

    def build(self) -> PoseNet:
        """Build the model. UserError as of its encoder."""
        return PoseNet(self)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(nn.GroupNorm(width // GROUP, width) for _ in range(2))

    def forward(self, maps: Float[Tensor, "n c y x"]) -> Float[Tensor, "n c y x"]:
        inner = self.first(functional.gelu(self.norms[0](maps)))
        return maps + self.second(functional.gelu(self.norms[1](inner)))


class PoseNet(ModelModule):
    """The model of a `PoseNetConfig`. Every frame is by itself; pictures are crops by the rule of `viewpoints`."""

    classes: Tensor

    def __init__(self, config: PoseNetConfig) -> None:
        super().__init__()
        self.config = config
        self.patches = config.patches.build(config.patch_size, config.width)
        self.blocks = nn.Sequential(*(_Residual(config.width) for _ in range(config.depth)))
        self.norm = nn.GroupNorm(config.width // GROUP, config.width)
        self.joined = nn.Linear(config.width * POOLED**2, config.hidden)
        views = view_classes(config.azimuths, config.elevations, config.elevation).float()
        self.register_buffer("classes", views, persistent=False)
        self.logits = nn.Linear(config.hidden, len(views))
        self.turns = nn.Linear(config.hidden, 6 * len(views))
        self.place = nn.Linear(config.hidden, 4)
        with torch.no_grad():
            for layer in (self.turns, self.place):
                layer.weight.mul_(0.1)
                layer.bias.zero_()
            self.turns.bias.view(-1, 6).copy_(torch.eye(3)[:, :2].flatten())
            self.place.bias[2] = math.log(2 * FOCAL / FILL)

    @property
    def abilities(self) -> Abilities:
        """Cameras about the object, and their uncertainty."""
        return self.config.abilities

    def forward(self, clip: Clip) -> PosePrediction:
        """Predict the pose in every frame. UserError for sides that are no multiples of the patch size."""
        size = (clip.images.shape[-2], clip.images.shape[-1])
        images = clip.images.flatten(0, 1)
        grid = patch_grid(images, self.config.patch_size)
        maps = self.blocks(self.patches(images).mT.unflatten(-1, grid))
        maps = functional.adaptive_avg_pool2d(functional.gelu(self.norm(maps)), POOLED)
        features = functional.gelu(self.joined(maps.flatten(1)))
        with full_precision(features.device):
            features = features.to(full_type(features.dtype)).unflatten(0, clip.images.shape[:2])
            return self.poses(features, size)

    def poses(self, features: Float[Tensor, "b f c"], size: tuple[int, int]) -> PosePrediction:
        """Outputs from a picture's features: a rotation of the camera away from the middle of each class."""
        logits, place = self.logits(features), self.place(features)
        turns = roma.special_gramschmidt(self.turns(features).unflatten(-1, (-1, 3, 2)))
        classes = self.classes.to(features)
        rotations = turns @ classes
        best = logits.argmax(-1)[..., None, None, None].expand(*logits.shape[:-1], 1, 3, 3)
        offset, log_distance = place[..., :2], place[..., 2]
        pose = ObjectPose(rotation=rotations.gather(-3, best)[..., 0, :, :], offset=offset, log_distance=log_distance)
        return PosePrediction(
            cameras=decode_pose(pose, size),
            pose_uncertainty=functional.softplus(place[..., 3]),
            pose_logits=logits,
            pose_rotations=rotations,
            pose_classes=classes.expand_as(rotations),
            pose_offset=offset,
            pose_log_distance=log_distance,
        )
