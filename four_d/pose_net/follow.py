"""Poses of an object throughout a video: the model's hypotheses, pruned by its belief, by looks and by smoothness."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from four_d.abilities import Model
from four_d.errors import UserError
from four_d.geometry import pixel_centres, rotation_angle
from four_d.pose_net.crops import GREY, Crops, crop_cameras, crop_object
from four_d.pose_net.model import PosePrediction
from four_d.rendering import render
from four_d.types import Cameras, Clip, Gaussians, Views, map_tensors
from four_d.viewpoints import FOCAL, ObjectPose, decode_pose, framed

LOGGER = logging.getLogger(__name__)

APART = math.radians(25)
"""Angle from which two rotations are different hypotheses."""
AT_ONCE, PASSES = 32, 2
"""Frames per pass of the model; renders by which a silhouette is fitted to a mask."""


@dataclass(frozen=True, kw_only=True)
class FollowConfig:
    """Choice among hypotheses. All values are ours."""

    hypotheses: int = 6
    """Maximum number of rotations per frame, at least `APART`."""
    smoothness: float = 0.1
    """Cost of a turn between neighbouring frames per radian, in units of `picture_errors`."""
    likelihood: float = 0.05
    """Cost of a hypothesis per unit of the negative logarithm of the model's probability for it, in the same units: the
    model knows deformed objects from training, and the rendered ones are at rest."""
    margin: float = 0.03
    """Poses are ambiguous if other ones, different in every frame, look no worse by this, in the mean over frames."""

    def __post_init__(self) -> None:
        if self.hypotheses < 1 or min(self.smoothness, self.likelihood, self.margin) < 0:
            raise UserError("hypotheses must be at least 1, smoothness, likelihood and margin at least 0")


@dataclass(frozen=True, kw_only=True)
class ObjectPath:
    """Cameras of a video's f frames about its object, whose own coordinates are the world."""

    cameras: Cameras
    """Axis f; frames without object repeat the nearest one's pose relative to the camera."""
    seen: Bool[Tensor, "f"]
    """True for frames with a mask of the object."""
    errors: Float[Tensor, "f"]
    """`picture_errors` of the pose, 0 (equal) to 2; 2 where the object is not seen."""
    uncertainty: Float[Tensor, "f"]
    """Error of the likeliest rotation that the model expects, in radians; π where the object is not seen."""
    ambiguous: bool
    """True if other poses, different in every frame, look as good: the object is symmetric, or seen too poorly."""
    alternative: Cameras | None
    """Such other poses, the best of them."""

    @property
    def confidence(self) -> Float[Tensor, "f"]:
        """1 for a pose that looks like the picture, 0 for one that does not at all, or of an ambiguous object."""
        return torch.zeros_like(self.errors) if self.ambiguous else (1 - self.errors / 2).clamp(0, 1)


def follow_object(
    model: Model,
    gaussians: Gaussians,
    images: Float[Tensor, "f 3 h w"],
    masks: Bool[Tensor, "*masks"],
    intrinsics: Float[Tensor, "*lenses"] | None = None,
    *,
    size: int = 64,
    config: FollowConfig | None = None,
) -> ObjectPath:
    """Find the camera of every frame about an object that a `PoseNet` was trained on.

    Frames are cropped about their masks; the model's different rotations are rendered, placed as the model says and as
    the mask does, whichever looks better; and the sequence of least cost through the frames is taken: of looks, of what
    the model believes, and of turns.

    Args:
        model: the trained model.
        gaussians: the object, unbatched, of radius 1 (`objects.read_object`).
        images: RGB in [0, 1], in order of time.
        masks: the object's pixels, ``f h w``.
        intrinsics: ``f 3 3``, in pixels; None: focal length `viewpoints.FOCAL` times the longer side.
        size: side of the crops, that of the training's pictures.
        config: None: the default.

    Raises:
        UserError: shapes that do not fit each other, no frame that shows the object, or a model of another kind.

    """
    config = config or FollowConfig()
    _check_shapes(images, masks, intrinsics)
    seen = masks.flatten(1).any(-1)
    if not bool(seen.any()):
        raise UserError("no mask shows the object; give masks of it, one for each frame")
    lenses = _assumed(images) if intrinsics is None else intrinsics
    crops = crop_object(images[seen], masks[seen], lenses[seen], size)
    with torch.no_grad():
        poses, errors, surprise, uncertainty = _hypotheses(model, gaussians, crops, config)
    relative = crops.camera_from_crop[:, None] @ poses.rotation
    best = cheapest(errors + config.likelihood * surprise, relative, config.smoothness)
    other = _other(errors, relative, best, config)
    rows = torch.arange(len(best))

    def cameras(chosen: Int[Tensor, "f"]) -> Cameras:
        pose = map_tensors(poses, lambda values: values[rows, chosen])
        return _spread(crop_cameras(pose, crops, lenses[seen]), seen, lenses)

    if other is not None:
        LOGGER.warning(
            "the object's poses are ambiguous: quite different ones look as good in every frame, as of a symmetric "
            "object; an object with a texture, or other frames, would tell them apart"
        )
    return ObjectPath(
        cameras=cameras(best),
        seen=seen,
        errors=_filled(errors[rows, best], seen, 2.0),
        uncertainty=_filled(uncertainty, seen, math.pi),
        ambiguous=other is not None,
        alternative=None if other is None else cameras(other),
    )


def place_object(
    gaussians: Gaussians,
    rotations: Float[Tensor, "f 3 3"],
    masks: Bool[Tensor, "f h w"],
    intrinsics: Float[Tensor, "f 3 3"],
    *,
    size: int = 64,
) -> Cameras:
    """Cameras of known rotations about an object, placed where its silhouette has the mask's centre and area.

    Args:
        gaussians: the object, unbatched, of radius 1.
        rotations: camera_from_object of each frame.
        masks: the object's pixels; frames without any repeat the nearest one's pose relative to the camera.
        intrinsics: in pixels of the masks.
        size: side of the crops in which silhouettes are compared.

    Raises:
        UserError: no mask shows the object.

    """
    seen = masks.flatten(1).any(-1)
    if not bool(seen.any()):
        raise UserError("no mask shows the object; give masks of it, one for each frame")
    blank = torch.zeros(int(seen.sum()), 3, *masks.shape[1:])
    crops = crop_object(blank, masks[seen], intrinsics[seen], size)
    with torch.no_grad():
        pose = _fitted(gaussians, (crops.camera_from_crop.mT @ rotations[seen])[:, None], crops)
    alone = map_tensors(pose, lambda values: values[:, 0])
    return _spread(crop_cameras(alone, crops, intrinsics[seen]), seen, intrinsics)


def _check_shapes(images: Tensor, masks: Tensor, intrinsics: Tensor | None) -> None:
    """Raise UserError unless there is one mask of its size, and one camera, for each frame."""
    frames, _, height, width = images.shape
    if masks.shape != (frames, height, width):
        raise UserError(
            f"masks are {tuple(masks.shape)} and images {tuple(images.shape)}; give one mask of its size for each frame"
        )
    if intrinsics is not None and intrinsics.shape != (frames, 3, 3):
        raise UserError(f"intrinsics are {tuple(intrinsics.shape)}; give one matrix for each of {frames} frames")


def _assumed(images: Float[Tensor, "f 3 h w"]) -> Float[Tensor, "f 3 3"]:
    height, width = images.shape[-2:]
    focal = FOCAL * max(height, width)
    lens = images.new_tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    return lens.repeat(len(images), 1, 1)


def _hypotheses(
    model: Model, gaussians: Gaussians, crops: Crops, config: FollowConfig
) -> tuple[ObjectPose, Float[Tensor, "f m"], Float[Tensor, "f m"], Float[Tensor, "f"]]:
    """Different rotations of each frame, each in its better place, their errors, and what the model thinks of them.

    That is the negative logarithm of their probabilities, and the uncertainty of the first.
    """
    found: list[ObjectPose] = []
    surprise: list[Tensor] = []
    uncertainty: list[Tensor] = []
    for images in crops.images.split(AT_ONCE):
        times = torch.zeros(len(images), 1)
        prediction = model(Clip(images=images[:, None], times=times, camera_ids=torch.zeros_like(times).long()))
        pose, unlikely = different(prediction, config.hypotheses)
        found.append(map_tensors(pose, lambda values: values.cpu()))
        surprise.append(unlikely.cpu())
        uncertainty.append(cast(Tensor, prediction.pose_uncertainty)[:, 0].cpu())  # pyright: ignore[reportAttributeAccessIssue]
    said = ObjectPose(
        rotation=torch.cat([each.rotation for each in found]),
        offset=torch.cat([each.offset for each in found]),
        log_distance=torch.cat([each.log_distance for each in found]),
    )
    fitted = _fitted(gaussians, said.rotation, crops)
    errors = torch.stack([picture_errors(gaussians, pose, crops) for pose in (said, fitted)])
    better = errors[1] < errors[0]
    pose = ObjectPose(
        rotation=said.rotation,
        offset=torch.where(better[..., None], fitted.offset, said.offset),
        log_distance=torch.where(better, fitted.log_distance, said.log_distance),
    )
    return pose, errors.amin(0), torch.cat(surprise), torch.cat(uncertainty)


def different(prediction: object, most: int) -> tuple[ObjectPose, Float[Tensor, "b m"]]:
    """Poses ``b m`` of a prediction of one frame each, of the likeliest rotations that are `APART`, likeliest first.

    Where fewer than ``most`` are, the first is repeated. The second value is the negative logarithm of their classes'
    probabilities. UserError for a prediction of another model.
    """
    if not isinstance(prediction, PosePrediction) or prediction.pose_logits is None:
        raise UserError("this model predicts no poses of one object; train one with model.kind=pose_net")
    logits, rotations = prediction.pose_logits[:, 0], cast(Tensor, prediction.pose_rotations)[:, 0]
    order = logits.argsort(-1, descending=True)
    chosen, unlikely = list[Tensor](), list[Tensor]()
    for ranks, each, surprise in zip(order, rotations, -logits.log_softmax(-1)):
        kept: list[int] = []
        for rank in ranks.tolist():
            if len(kept) < most and all(float(rotation_angle(each[rank].mT @ each[k])) >= APART for k in kept):
                kept.append(rank)
        kept += [kept[0]] * (most - len(kept))
        chosen.append(each[kept])
        unlikely.append(surprise[kept])
    offset, distance = cast(Tensor, prediction.pose_offset), cast(Tensor, prediction.pose_log_distance)
    pose = ObjectPose(
        rotation=torch.stack(chosen), offset=offset.expand(-1, most, -1), log_distance=distance.expand(-1, most)
    )
    return pose, torch.stack(unlikely)


def _framed(gaussians: Gaussians, rotations: Float[Tensor, "f m 3 3"]) -> ObjectPose:
    """Poses in which the object fills the crop as its mask does (`viewpoints.framed`)."""
    points = gaussians.means[gaussians.opacities >= min(0.5, float(gaussians.opacities.max()))]
    shifts = torch.stack([framed(points, each) for each in rotations.flatten(0, 1)]).unflatten(0, rotations.shape[:2])
    z = shifts[..., 2]
    return ObjectPose(rotation=rotations, offset=FOCAL * shifts[..., :2] / z[..., None], log_distance=z.log())


def _fitted(gaussians: Gaussians, rotations: Float[Tensor, "f m 3 3"], crops: Crops) -> ObjectPose:
    """Poses in which the object's silhouette has the mask's centre and area, begun with `_framed`."""
    pose = _framed(gaussians, rotations)
    pixels = pixel_centres(crops.masks.shape[-2], crops.masks.shape[-1], crops.masks)
    centre, area = _moments(crops.masks, pixels)
    for _ in range(PASSES):
        alphas = torch.stack([views.alpha[0] for views in _rendered(gaussians, pose, crops)])
        own_centre, own_area = _moments(alphas, pixels)
        pose = ObjectPose(
            rotation=rotations,
            offset=pose.offset + (centre[:, None] - own_centre) / crops.masks.shape[-1],
            log_distance=pose.log_distance + (own_area / area[:, None]).log() / 2,
        )
    return pose


def _moments(masks: Float[Tensor, "*b h w"], pixels: Float[Tensor, "h w 2"]) -> tuple[Tensor, Tensor]:
    """Centre and area of masks, of one pixel at least."""
    area = masks.sum((-1, -2)).clamp_min(1)
    return (masks[..., None] * pixels).sum((-2, -3)) / area[..., None], area


def _rendered(gaussians: Gaussians, pose: ObjectPose, crops: Crops) -> Iterator[Views]:
    """Yield each frame's views of the object in all its poses."""
    size = (crops.images.shape[-2], crops.images.shape[-1])
    cameras = decode_pose(pose, size)
    batched = map_tensors(gaussians, lambda tensor: tensor[None])
    for frame in range(len(pose.rotation)):
        own = map_tensors(cameras, lambda tensor, frame=frame: tensor[frame][None])
        times = torch.zeros(own.intrinsics.shape[:2])
        yield render(batched, own, times, size, background=torch.full((3,), GREY))


def picture_errors(gaussians: Gaussians, pose: ObjectPose, crops: Crops) -> Float[Tensor, "f m"]:
    """Difference of the object in each pose from the frame's crop, 0 to 2.

    It is the mean absolute difference of colours where either is, plus one minus the intersection over union of masks.
    """
    rows: list[Tensor] = []
    for frame, views in enumerate(_rendered(gaussians, pose, crops)):
        alpha, mask = views.alpha[0], crops.masks[frame]
        union = torch.maximum(alpha, mask)
        total = union.sum((-1, -2)).clamp_min(1e-6)
        colours = (views.colour[0].clamp(0, 1) - crops.images[frame]).abs().mean(1)
        rows.append((colours * union).sum((-1, -2)) / total + 1 - torch.minimum(alpha, mask).sum((-1, -2)) / total)
    return torch.stack(rows)


def cheapest(errors: Float[Tensor, "f m"], rotations: Float[Tensor, "f m 3 3"], smoothness: float) -> Int[Tensor, "f"]:
    """Choose one hypothesis per frame, with the least sum of errors and of turns between neighbours.

    A turn costs ``smoothness`` per radian. Dynamic programming over the frames finds the least of all sequences.
    """
    total, before = errors[0], list[Tensor]()
    for frame in range(1, len(errors)):
        turns = rotation_angle(rotations[frame - 1, :, None].mT @ rotations[frame, None])
        least = (total[:, None] + smoothness * turns).min(0)
        before.append(least.indices)
        total = least.values + errors[frame]
    path = [int(total.argmin())]
    for indices in reversed(before):
        path.append(int(indices[path[-1]]))
    return torch.tensor(path[::-1])


def _other(
    errors: Float[Tensor, "f m"], rotations: Float[Tensor, "f m 3 3"], best: Int[Tensor, "f"], config: FollowConfig
) -> Int[Tensor, "f"] | None:
    """Cheapest sequence that differs from the best one in every frame; None if it looks worse by the margin."""
    rows = torch.arange(len(best))
    apart = rotation_angle(rotations[rows, best][:, None].mT @ rotations) >= APART
    if not bool(apart.any(-1).all()):
        return None
    other = cheapest(torch.where(apart, errors, torch.inf), rotations, config.smoothness)
    worse = float((errors[rows, other] - errors[rows, best]).mean())
    return other if worse <= config.margin else None


def _filled(values: Float[Tensor, "k"], seen: Bool[Tensor, "f"], otherwise: float) -> Float[Tensor, "f"]:
    whole = torch.full(seen.shape, otherwise, dtype=values.dtype)
    whole[seen] = values
    return whole


def _spread(cameras: Cameras, seen: Bool[Tensor, "f"], lenses: Float[Tensor, "f 3 3"]) -> Cameras:
    """Cameras of all frames: those without object have the nearest one's, the earlier of two."""
    frames = torch.arange(len(seen))
    nearest = (frames[:, None] - frames[seen]).abs().argmin(-1)
    return Cameras(world_from_camera=cameras.world_from_camera[nearest], intrinsics=lenses)
