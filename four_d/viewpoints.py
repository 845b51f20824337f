"""Views of one object that fills a crop of a picture: poses as class, rotation, offset and distance, and their crops.

The object's own axes are its world (`objects`): x right, y down, z forward, centred, of radius 1. Cameras have one
focal length, since distance and focal length cannot be told apart in a crop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import roma
import torch
from jaxtyping import Float
from torch import Tensor

from four_d.constants import vector
from four_d.geometry import invert_pose, make_pose
from four_d.types import Cameras

FOCAL = 1.5
"""Focal length of all crops, in sides of the crop: Lab4D's 384 for 256 pixels."""
FILL = 0.8
"""Part of a crop's side that the longer side of the object's bounding box fills. Ours."""
NEAREST = 1.3
"""Least distance of a camera from the centre of an object of radius 1."""


@dataclass(frozen=True, kw_only=True)
class ObjectPose:
    """Pose of an object in a crop: camera_from_object, by numbers that a crop can tell."""

    rotation: Float[Tensor, "*b 3 3"]
    """camera_from_object."""
    offset: Float[Tensor, "*b 2"]
    """Pixel of the object's centre, from the crop's, in sides of the crop."""
    log_distance: Float[Tensor, "*b"]
    """Logarithm of the centre's z-depth, for a focal length of `FOCAL`."""


def view_rotation(
    azimuth: Float[Tensor, "*b"], elevation: Float[Tensor, "*b"], roll: Float[Tensor, "*b"]
) -> Float[Tensor, "*b 3 3"]:
    """Rotation camera_from_object by angles in radians.

    All 0: the camera looks along z, at the object's front. It then goes around the object's vertical axis by
    ``azimuth``, up by ``elevation`` and turns about its own axis by ``roll``.
    """
    vectors = [
        torch.stack([torch.zeros_like(angle)] * axis + [angle] + [torch.zeros_like(angle)] * (2 - axis), dim=-1)
        for axis, angle in enumerate((elevation, azimuth, roll))
    ]
    up, around, own = (roma.rotvec_to_rotmat(vector) for vector in vectors)
    return own @ up @ around


def view_classes(azimuths: int, elevations: int, highest: float) -> Float[Tensor, "k 3 3"]:
    """Rotations camera_from_object of all view classes, row-major in elevation, azimuth; float64.

    Azimuths divide the circle from 0 on; elevations go from −``highest`` to ``highest`` (degrees), one alone is 0.
    """
    around = torch.arange(azimuths, dtype=torch.float64) * (2 * math.pi / azimuths)
    ends = math.radians(highest) if elevations > 1 else 0.0
    up = torch.linspace(-ends, ends, elevations, dtype=torch.float64)
    elevation, azimuth = torch.meshgrid(up, around, indexing="ij")
    return view_rotation(azimuth, elevation, torch.zeros_like(azimuth)).flatten(0, 1)


def view_angles(rotation: Float[Tensor, "*b 3 3"], classes: Float[Tensor, "k 3 3"]) -> Float[Tensor, "*b k"]:
    """Angles in radians between viewing directions, whatever the roll."""
    direction = rotation[..., None, 2, :]
    others = classes.to(rotation)[:, 2].expand(*direction.shape[:-2], -1, -1)
    crossed = torch.linalg.cross(direction.expand_as(others), others)
    return torch.atan2(crossed.norm(dim=-1), (direction * others).sum(-1))


def soft_classes(
    rotation: Float[Tensor, "*b 3 3"], classes: Float[Tensor, "k 3 3"], sharpness: float
) -> Float[Tensor, "*b k"]:
    """Probabilities of the view classes for a true rotation: ∝ exp(−sharpness · angle²), as BANMo's with 2."""
    return (-sharpness * view_angles(rotation, classes).square()).softmax(dim=-1)


def encode_pose(cameras: Cameras, size: tuple[int, int]) -> ObjectPose:
    """Poses of the object at the world's origin, for images of ``size`` (height, width). Inverse: `decode_pose`.

    Of cameras of another focal length the distance is that from which a camera of `FOCAL` sees the object as large.
    """
    side, centre = max(size), vector([size[1] / 2, size[0] / 2], cameras.intrinsics)
    camera_from_object = invert_pose(cameras.world_from_camera)
    shift = camera_from_object[..., :3, 3]
    z = shift[..., 2].clamp_min(1e-6)
    focal = torch.stack([cameras.intrinsics[..., 0, 0], cameras.intrinsics[..., 1, 1]], dim=-1)
    pixel = shift[..., :2] / z[..., None] * focal + cameras.intrinsics[..., :2, 2]
    return ObjectPose(
        rotation=camera_from_object[..., :3, :3],
        offset=(pixel - centre) / side,
        log_distance=(z * FOCAL * side / focal.prod(-1).clamp_min(1e-12).sqrt()).log(),
    )


def decode_pose(pose: ObjectPose, size: tuple[int, int]) -> Cameras:
    """Cameras of poses, of the focal length `FOCAL`, for images of ``size`` (height, width); world = the object's."""
    side = max(size)
    z = pose.log_distance.exp()
    shift = torch.cat([pose.offset / FOCAL * z[..., None], z[..., None]], dim=-1)
    lens = vector([FOCAL * side, 0, size[1] / 2, 0, FOCAL * side, size[0] / 2, 0, 0, 1], pose.offset).view(3, 3)
    return Cameras(
        world_from_camera=invert_pose(make_pose(pose.rotation, shift)),
        intrinsics=lens.expand(*z.shape, 3, 3).clone(),
    )


def framed(points: Float[Tensor, "n 3"], rotation: Float[Tensor, "3 3"]) -> Float[Tensor, "3"]:
    """Translation of camera_from_object by which an object's points fill a crop by the rule of inference.

    Their bounding box is in the middle, and its longer side is `FILL` of the crop's; no nearer than `NEAREST`.
    """
    turned = points @ rotation.mT
    middle = (turned.amin(0) + turned.amax(0)) / 2
    shift = torch.cat([-middle[:2], vector([2 * FOCAL / FILL], middle)])
    for _ in range(8):  # to within a thousandth: the box depends on the distance only by perspective
        seen = turned + shift
        seen = seen[:, :2] / seen[:, 2:].clamp_min(1e-3)
        low, high = seen.amin(0), seen.amax(0)
        shift = torch.cat([shift[:2] - (low + high) / 2 * shift[2], shift[2:]])
        shift = shift * (FOCAL * (high - low).max() / FILL)
        shift = torch.where(shift[2] < NEAREST, shift * (NEAREST / shift[2]), shift)
    return shift
