"""Cameras and the mask of what moves, refined after all heads by the model's own geometry (ours).

Cameras: a pixel's point is known twice, by depth and intrinsics in the frame's own camera, and by the point map in the
first one's. The pose is the rigid motion from the one to the other, a weighted Procrustes problem (Kabsch 1976; weights
by iterated reweighting, Holland and Welsch 1977), solved in closed form and differentiable. What it does not tell, as
where all points lie on one line, the camera head's own pose decides. Or, without points: the poses in which frames'
depth is seen where their pixels are found again in other frames (`registration`). The mask: once cameras are known,
pixels that other frames do not show where a still scene would (`registration.changes`) tell a small network what moves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast

import roma
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from four_d.constants import traced
from four_d.errors import UserError
from four_d.geometry import encode_cameras, make_pose, pixel_centres, rays, transform
from four_d.memory import without_values
from four_d.registration.changes import CHANNELS, changes
from four_d.registration.video import register
from four_d.types import Cameras, Clip, Prediction

By = Literal["points", "matches"]
NEEDS: dict[By, tuple[str, ...]] = {
    "points": ("cameras", "pose_encodings", "depth", "points"),
    "matches": ("cameras", "pose_encodings", "depth"),
}
"""Outputs without which cameras are not refined."""
MASK_NEEDS = ("dynamic", "dynamic_logits")
"""More outputs without which the mask is not refined."""
FRAMES = 8
"""Frames whose mask is corrected at once, for memory."""
Points = Float[Tensor, "*b n 3"]
Weights = Float[Tensor, "*b n"]


@dataclass(frozen=True, kw_only=True)
class MaskRefinementConfig:
    """Sizes of a `MaskRefinement`."""

    channels: int = 16
    """Channels of each convolution."""
    depth: int = 4
    """Convolutions of 3 × 3, each with twice the distance between its pixels; one more without distance smooths."""

    def __post_init__(self) -> None:
        if min(self.channels, self.depth) < 1:
            raise UserError("refine.mask: channels and depth must be at least 1")


class MaskRefinement(nn.Module):
    """Correction of the mask's logits by what changes where a still scene would not. Initially it corrects nothing."""

    def __init__(self, config: MaskRefinementConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1 + CHANNELS
        for apart in (*(2**index for index in range(config.depth)), 1):
            # what lies outside is like the border: zeros, as changes, would say that it stands still
            layer = nn.Conv2d(channels, config.channels, 3, padding=apart, dilation=apart, padding_mode="replicate")
            layers += [layer, nn.GELU()]
            channels = config.channels
        self.layers = nn.Sequential(*layers)
        self.out = nn.Conv2d(channels, 1, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(cast(Tensor, self.out.bias))

    def forward(
        self, logits: Float[Tensor, "b f h w"], changed: Float[Tensor, "b f 4 h w"]
    ) -> Float[Tensor, "b f h w"]:
        """Correct logits; ``changed`` is of `registration.changes`, without unit, 0 to 1."""
        # roots, since small changes tell much and large ones little more
        maps = torch.cat([(logits[:, :, None] / 4).tanh(), changed.sqrt()], dim=2).flatten(0, 1)
        added = torch.cat([self.out(self.layers(part)) for part in maps.split(FRAMES)])
        return logits + added[:, 0].unflatten(0, logits.shape[:2])


@dataclass(frozen=True, kw_only=True)
class RefinementConfig:
    """Refinement of the cameras by depth, and of the mask by the cameras, after all heads."""

    by: By = "points"
    """Place where a pixel's depth must lie as well: at its own point (``points``), or on the rays of the same camera's
    other frames on which a small window of pixels is found again (``matches``); nothing of that is learned, and the
    other settings are those of points."""
    iterations: int = 3
    """Weighted fits, each with less weight for points that the one before left far off."""
    pixels: int = 32
    """Rows and columns of the pixels that are used, at most."""
    pull: float = 0.01
    """Weight of the camera head's rotation beside the points' mean variance, and of its translation beside their sum of
    weights."""

    mask: MaskRefinementConfig | None = None
    """Correct the mask of what moves by the changes that these cameras and depth do not explain; null: leave it."""

    def __post_init__(self) -> None:
        if min(self.iterations, self.pixels) < 1 or self.pull <= 0:
            raise UserError("refine: iterations and pixels must be at least 1, and pull above 0")

    @property
    def needs(self) -> tuple[str, ...]:
        """Outputs of the heads that are refined, or by which."""
        return NEEDS[self.by] if self.mask is None else (*NEEDS[self.by], *MASK_NEEDS)

    def build(self) -> Refinement:
        """Build the module, which has weights for the mask alone."""
        return Refinement(self)


class Refinement(nn.Module):
    """Better cameras and a better mask, from the prediction of all heads."""

    def __init__(self, config: RefinementConfig) -> None:
        super().__init__()
        self.config = config
        self.mask = None if config.mask is None else MaskRefinement(config.mask)

    def forward(self, prediction: Prediction, clip: Clip) -> Prediction:
        """Refine what is there; fields of heads that are absent stay so.

        In training, matches teach the heads nothing: they are sought for a mask that learns only, and cameras stay.
        """
        learning = self.mask is not None and any(each.requires_grad for each in self.mask.parameters())
        idle = self.training and self.config.by == "matches"
        if idle and not learning:
            return prediction
        found = refined(prediction, clip, self.config)
        better = self.with_mask(found, clip)
        if not idle:
            return better
        return replace(prediction, dynamic=better.dynamic, dynamic_logits=better.dynamic_logits)

    def with_mask(self, prediction: Prediction, clip: Clip) -> Prediction:
        """Prediction whose mask (``dynamic`` and its logits, b f h w) is corrected at the image's size."""
        cameras, depth, logits = prediction.cameras, prediction.depth, prediction.dynamic_logits
        if self.mask is None or cameras is None or depth is None or logits is None:
            return prediction
        if logits.shape[-2:] != depth.shape[-2:]:
            logits = functional.interpolate(logits, size=depth.shape[-2:], mode="bilinear")
        logits = self.mask(logits, changes(clip, cameras, depth.detach()).to(logits))
        return replace(prediction, dynamic=logits.sigmoid(), dynamic_logits=logits)


def weighted_rigid(
    rest: Points, places: Points, weights: Weights, prior: Float[Tensor, "*b 4 4"], pull: float
) -> Float[Tensor, "*b 4 4"]:
    """Rigid motion places_from_rest with the least weighted sum of squared distances.

    ``pull`` to ``prior`` decides what points do not tell: no weights give the prior. Gradients are finite everywhere.
    """
    total = weights.sum(-1, keepdim=True).clamp_min(1e-12)
    share = (weights / total)[..., None]
    middle, centre = (share * rest).sum(-2, keepdim=True), (share * places).sum(-2, keepdim=True)
    product = (share * (places - centre)).mT @ (rest - middle)
    size = (share * (rest - middle).square()).sum((-1, -2)).clamp_min(1e-12)[..., None, None] / 3
    there = (total / (total + 1e-6))[..., None]  # 0 where nothing has a weight
    turn = prior[..., :3, :3]
    rotation = cast(Tensor, roma.special_procrustes(there * product + (pull * size + 1e-12) * turn))
    fitted = (centre - middle @ rotation.mT)[..., 0, :]
    kept = pull / (1 + pull) + (1 - there[..., 0]) / (1 + pull)
    return make_pose(rotation, fitted + kept * (prior[..., :3, 3] - fitted))


def robust_rigid(
    rest: Points, places: Points, weights: Weights, prior: Float[Tensor, "*b 4 4"], *, iterations: int, pull: float
) -> Float[Tensor, "*b 4 4"]:
    """Motion of `weighted_rigid` with weights times 1 / (1 + (r / s)²)², of distances r and twice their median s.

    The first weights of that kind are by the prior. Distances are relative to the points' own from the camera (rest).
    """
    pose, reach = prior, rest.norm(dim=-1).clamp_min(1e-6)
    for _ in range(iterations):
        with torch.no_grad():  # weights are chosen, not learned
            left = (transform(pose, rest) - places).norm(dim=-1) / reach
            scale = 2 * left.median(-1, keepdim=True).values.clamp_min(1e-4)
            kept = (1 + (left / scale).square()).square().reciprocal()
        pose = weighted_rigid(rest, places, weights * kept, prior, pull)
    return pose


def refined(prediction: Prediction, clip: Clip, config: RefinementConfig) -> Prediction:
    """Prediction with cameras fitted to its depth, and their encoding as one more of ``pose_encodings``.

    The first camera remains the origin. By points, weights are the product of the confidences, and of the probability
    that a pixel does not move, and intrinsics stay; by matches see `registration.video.register`. Clips whose poses are
    known in all frames keep these, as far apart as the fitted ones: the model's unit of length is its own.
    """
    cameras, encodings, depth = (getattr(prediction, name) for name in NEEDS["matches"])
    if cameras is None or depth is None or encodings is None:
        return prediction
    if config.by == "points" and prediction.points is None:
        return prediction
    if config.by == "matches" and traced() and not isinstance(depth.shape[1], int):
        raise UserError(
            "cameras by matched pixels (model.refine.by=matches) make a program of a fixed number of frames alone, "
            "as Gaussians have it; export the weights alone (--format safetensors), or without them (--no-refine)"
        )
    if config.by == "points":
        fitted = replace(cameras, world_from_camera=_by_points(prediction, cameras, depth, config))
    elif without_values(depth) and not traced():  # memory is counted, of which windows of pixels take next to none
        fitted = cameras
    else:
        still = None if prediction.dynamic is None else 1 - prediction.dynamic
        fitted = register(clip, cameras, depth, still)
    found = replace(fitted, world_from_camera=_from_first(_known_poses(clip, fitted.world_from_camera)))
    added = encode_cameras(found, depth.shape[-2], depth.shape[-1])[None]
    return replace(prediction, cameras=found, pose_encodings=torch.cat([encodings, added.to(encodings.dtype)]))


def _known_poses(clip: Clip, poses: Float[Tensor, "b f 4 4"]) -> Float[Tensor, "b f 4 4"]:
    """Poses of the clips whose own are known in all frames, as far apart as ``poses``; of other clips ``poses``."""
    if clip.cameras is None:
        return poses
    given, found = _from_first(clip.cameras.world_from_camera.to(poses)), _from_first(poses)
    lengths = [each[..., :3, 3].square().sum((-1, -2)).sqrt() for each in (found, given)]
    unit = torch.where(lengths[1] > 1e-6, lengths[0] / lengths[1].clamp_min(1e-6), 1.0)[:, None, None]
    told = make_pose(given[..., :3, :3], given[..., :3, 3] * unit)
    if clip.cameras.known is None:
        return told
    return torch.where(clip.cameras.known.all(1)[:, None, None, None], told, poses)


def _sure(prediction: Prediction, depth: Float[Tensor, "b f h w"], *others: Tensor | None) -> Float[Tensor, "b f h w"]:
    """Weights of pixels: the product of the depth's and ``others``' confidence and of the probability to be still."""
    weights = torch.ones_like(depth)
    for confidence in (prediction.depth_confidence, *others):
        weights = weights if confidence is None else weights * confidence.detach()
    return weights if prediction.dynamic is None else weights * (1 - prediction.dynamic.detach())


def _by_points(
    prediction: Prediction,
    cameras: Cameras,
    depth: Float[Tensor, "b f h w"],
    config: RefinementConfig,
) -> Float[Tensor, "b f 4 4"]:
    """Poses that carry depth onto points."""
    height, width = depth.shape[-2:]
    steps = (max(1, -(-side // config.pixels)) for side in (height, width))
    rows, columns = (torch.arange(0, n, step, device=depth.device) for n, step in zip((height, width), steps))
    grid = (rows[:, None] * width + columns).flatten()
    pixels = pixel_centres(height, width, depth).reshape(-1, 2)[grid]
    rest = rays(cameras.intrinsics, pixels.expand(*depth.shape[:-2], -1, -1)) * depth.flatten(-2)[..., grid, None]
    places = cast(Tensor, prediction.points).flatten(-3, -2)[..., grid, :]
    weights = _sure(prediction, depth, prediction.points_confidence).flatten(-2)[..., grid]
    prior = cameras.world_from_camera.detach()
    return robust_rigid(rest, places, weights, prior, iterations=config.iterations, pull=config.pull)


def _from_first(poses: Float[Tensor, "*b f 4 4"]) -> Float[Tensor, "*b f 4 4"]:
    """Poses in the first frame's coordinates."""
    first = poses[..., :1, :, :]
    turn = first[..., :3, :3].mT
    back = make_pose(turn, -(turn @ first[..., :3, 3:])[..., 0])
    return back @ poses
