"""Cameras refined by the model's own geometry: the pose that carries a frame's depth onto its points (ours).

A pixel's point is known twice: by depth and intrinsics in the frame's own camera, and by the point map in the first
one's. The pose is the rigid motion from the one to the other, a weighted Procrustes problem (Kabsch 1976; weights by
iterated reweighting, Holland and Welsch 1977), solved in closed form and differentiable. What it does not tell, as
where all points lie on one line, the camera head's own pose decides. Or, without points: the poses in which frames'
depth is seen where their pixels are found again in other frames (`registration`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast

import roma
import torch
from jaxtyping import Float
from torch import Tensor

from four_d.errors import UserError
from four_d.geometry import encode_cameras, make_pose, pixel_centres, rays, transform
from four_d.memory import without_values
from four_d.registration.video import register
from four_d.types import Cameras, Clip, Prediction

By = Literal["points", "matches"]
NEEDS: dict[By, tuple[str, ...]] = {
    "points": ("cameras", "pose_encodings", "depth", "points"),
    "matches": ("cameras", "pose_encodings", "depth"),
}
"""Outputs without which cameras are not refined."""
Points = Float[Tensor, "*b n 3"]
Weights = Float[Tensor, "*b n"]


@dataclass(frozen=True, kw_only=True)
class RefinementConfig:
    """Refinement of the cameras by depth, after all heads."""

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

    def __post_init__(self) -> None:
        if min(self.iterations, self.pixels) < 1 or self.pull <= 0:
            raise UserError("refine: iterations and pixels must be at least 1, and pull above 0")


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
    that a pixel does not move, and intrinsics stay; by matches see `registration.video.register`.
    """
    cameras, encodings, depth = (getattr(prediction, name) for name in NEEDS["matches"])
    if cameras is None or depth is None or encodings is None:
        return prediction
    if config.by == "points" and prediction.points is None:
        return prediction
    if config.by == "points":
        fitted = replace(cameras, world_from_camera=_by_points(prediction, cameras, depth, config))
    elif without_values(depth):  # memory is being counted, of which windows of pixels take next to none
        fitted = cameras
    else:
        still = None if prediction.dynamic is None else 1 - prediction.dynamic
        fitted = register(clip, cameras, depth, still)
    found = replace(fitted, world_from_camera=_from_first(fitted.world_from_camera))
    added = encode_cameras(found, depth.shape[-2], depth.shape[-1])[None]
    return replace(prediction, cameras=found, pose_encodings=torch.cat([encodings, added.to(encodings.dtype)]))


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
