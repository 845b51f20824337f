"""Pure functions on cameras, rotations, rays and trajectories. Conventions: `types`."""

from __future__ import annotations

import dataclasses

import roma
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d.errors import UserError
from four_d.types import Cameras, Gaussians, Prediction

Points = Float[Tensor, "*b n 3"]
Pose = Float[Tensor, "*b 4 4"]


def invert_pose(a_from_b: Pose) -> Pose:
    """The inverse of a rigid transform, b_from_a."""
    rotation, translation = a_from_b[..., :3, :3], a_from_b[..., :3, 3:]
    inverse = rotation.mT
    return make_pose(inverse, (-inverse @ translation)[..., 0])


def make_pose(rotation: Float[Tensor, "*b 3 3"], translation: Float[Tensor, "*b 3"]) -> Pose:
    """A 4 × 4 transform out of its parts."""
    top = torch.cat([rotation, translation[..., None]], dim=-1)
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., 0, 3] = 1
    return torch.cat([top, bottom], dim=-2)


def transform(a_from_b: Float[Tensor, "*#b 4 4"], points_b: Float[Tensor, "*#b n 3"]) -> Float[Tensor, "*b n 3"]:
    """Points of b in a's coordinates; leading axes broadcast."""
    return points_b @ a_from_b[..., :3, :3].mT + a_from_b[..., None, :3, 3]


def rebase(cameras: Cameras) -> Cameras:
    """The same cameras in the first frame's camera coordinates (axis -3 of the poses is frames)."""
    first_from_world = invert_pose(cameras.world_from_camera[..., :1, :, :])
    return dataclasses.replace(cameras, world_from_camera=first_from_world @ cameras.world_from_camera)


def pixel_centres(height: int, width: int, like: Tensor) -> Float[Tensor, "h w 2"]:
    """(x, y) of every pixel's centre, corner origin; device and dtype of ``like``."""
    y = torch.arange(height, device=like.device, dtype=like.dtype) + 0.5
    x = torch.arange(width, device=like.device, dtype=like.dtype) + 0.5
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def rays(intrinsics: Float[Tensor, "*b 3 3"], pixels: Float[Tensor, "*b n 2"]) -> Points:
    """Directions through pixels in camera coordinates, with z = 1: times z-depth they are the points."""
    x = (pixels[..., 0] - intrinsics[..., 0, 2, None]) / intrinsics[..., 0, 0, None]
    y = (pixels[..., 1] - intrinsics[..., 1, 2, None]) / intrinsics[..., 1, 1, None]
    return torch.stack([x, y, torch.ones_like(x)], dim=-1)


def pixel_rays(
    cameras: Cameras, height: int, width: int
) -> tuple[Float[Tensor, "*b 3"], Float[Tensor, "*b height width 3"]]:
    """Where cameras are, and unit directions through all pixel centres, both in the world."""
    poses = cameras.world_from_camera
    pixels = pixel_centres(height, width, poses).reshape(-1, 2)
    local = rays(cameras.intrinsics, pixels.expand(*poses.shape[:-2], -1, -1))
    directions = torch.nn.functional.normalize(local @ poses[..., :3, :3].mT, dim=-1)
    return poses[..., :3, 3], directions.unflatten(-2, (height, width))


def unproject(depth: Float[Tensor, "*b h w"], cameras: Cameras) -> Float[Tensor, "*b h w 3"]:
    """World points of a z-depth map; zero depth gives the camera's centre."""
    height, width = depth.shape[-2:]
    pixels = pixel_centres(height, width, depth).reshape(-1, 2)
    directions = rays(cameras.intrinsics, pixels.expand(*depth.shape[:-2], -1, -1))
    points_camera = directions * depth.flatten(-2)[..., None]
    return transform(cameras.world_from_camera, points_camera).unflatten(-2, (height, width))


def world_points(prediction: Prediction) -> Float[Tensor, "*b f h w 3"] | None:
    """Where what each pixel shows is in the world: depth seen from the cameras, else the point map, else None.

    The only place that chooses: whatever scores, shows or follows points means these. Depth with cameras goes first,
    for it is the more accurate one (VGGT, arXiv 2503.11651 §4.2).
    """
    if prediction.depth is not None and prediction.cameras is not None:
        return unproject(prediction.depth, prediction.cameras)
    return prediction.points


def project(points_world: Points, cameras: Cameras) -> tuple[Float[Tensor, "*b n 2"], Float[Tensor, "*b n"]]:
    """Pixels (x, y) and z-depth of world points. Behind the camera (z ≤ 0) the pixel means nothing but is finite."""
    points_camera = transform(invert_pose(cameras.world_from_camera), points_world)
    z = points_camera[..., 2]
    safe = torch.where(z.abs() < 1e-9, torch.full_like(z, 1e-9), z)
    xy = points_camera[..., :2] / safe[..., None]
    focal = torch.stack([cameras.intrinsics[..., 0, 0], cameras.intrinsics[..., 1, 1]], dim=-1)
    return xy * focal[..., None, :] + cameras.intrinsics[..., None, :2, 2], z


def rotation_angle(rotation: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b"]:
    """Angle of a rotation in radians, accurate near 0 and π."""
    skew = torch.stack(
        [
            rotation[..., 2, 1] - rotation[..., 1, 2],
            rotation[..., 0, 2] - rotation[..., 2, 0],
            rotation[..., 1, 0] - rotation[..., 0, 1],
        ],
        dim=-1,
    )
    trace = rotation.diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.atan2(skew.norm(dim=-1), trace - 1)


def encode_cameras(cameras: Cameras, height: int, width: int) -> Float[Tensor, "*b 9"]:
    """VGGT's pose encoding in our order: translation of camera_from_world, quaternion wxyz with w ≥ 0, fov_y, fov_x.

    The principal point is taken to be the image's centre; fields of view in radians.
    """
    camera_from_world = invert_pose(cameras.world_from_camera)
    quaternion = roma.quat_xyzw_to_wxyz(roma.rotmat_to_unitquat(camera_from_world[..., :3, :3]))
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    fov_y = 2 * torch.atan(height / 2 / cameras.intrinsics[..., 1, 1])
    fov_x = 2 * torch.atan(width / 2 / cameras.intrinsics[..., 0, 0])
    return torch.cat([camera_from_world[..., :3, 3], quaternion, fov_y[..., None], fov_x[..., None]], dim=-1)


def decode_cameras(encoding: Float[Tensor, "*b 9"], height: int, width: int) -> Cameras:
    """The inverse of `encode_cameras`; the quaternion need not be normalised. One of zeros is the identity."""
    quaternion = encoding[..., 3:7]
    identity = torch.eye(4, device=encoding.device, dtype=encoding.dtype)[0]
    quaternion = torch.where(quaternion.norm(dim=-1, keepdim=True) > 1e-12, quaternion, identity)
    quaternion = torch.nn.functional.normalize(quaternion, dim=-1)
    camera_from_world = make_pose(roma.unitquat_to_rotmat(roma.quat_wxyz_to_xyzw(quaternion)), encoding[..., :3])
    half = (encoding[..., 7:9] / 2).clamp(1e-3, torch.pi / 2 - 1e-3)
    intrinsics = torch.zeros(*encoding.shape[:-1], 3, 3, device=encoding.device, dtype=encoding.dtype)
    intrinsics[..., 0, 0] = width / 2 / torch.tan(half[..., 1])
    intrinsics[..., 1, 1] = height / 2 / torch.tan(half[..., 0])
    intrinsics[..., 0, 2] = width / 2
    intrinsics[..., 1, 2] = height / 2
    intrinsics[..., 2, 2] = 1
    return Cameras(world_from_camera=invert_pose(camera_from_world), intrinsics=intrinsics)


def align_points(
    source: Points,
    target: Points,
    valid: Bool[Tensor, "*b n"] | Float[Tensor, "*b n"] | None = None,
    *,
    scale: bool = True,
) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b 3 3"], Float[Tensor, "*b 3"]]:
    """The similarity (or rigid, ``scale=False``) transform with least squared error: target ≈ s·R·source + t.

    Umeyama 1991. ``valid`` says which points count, or as weights ≥ 0 how much. A source whose points coincide gets
    scale 1 and the rotation identity or an arbitrary proper one.
    """
    weight = torch.ones_like(source[..., 0]) if valid is None else valid.to(source.dtype)
    total = weight.sum(-1).clamp_min(1e-12)[..., None]
    source_mean = (source * weight[..., None]).sum(-2) / total
    target_mean = (target * weight[..., None]).sum(-2) / total
    source_centred = source - source_mean[..., None, :]
    target_centred = target - target_mean[..., None, :]
    covariance = target_centred.mT @ (source_centred * weight[..., None]) / total[..., None]
    u, singular, vh = torch.linalg.svd(covariance)
    sign = torch.ones_like(singular)
    sign[..., 2] = torch.det(u @ vh).sign()
    rotation = (u * sign[..., None, :]) @ vh
    variance = (source_centred**2 * weight[..., None]).sum((-1, -2)) / total[..., 0]
    factor = torch.ones_like(variance)
    if scale:
        factor = torch.where(variance > 1e-12, (singular * sign).sum(-1) / variance.clamp_min(1e-12), factor)
    translation = target_mean - factor[..., None] * (rotation @ source_mean[..., None])[..., 0]
    return factor, rotation, translation


def scale_gaussians(gaussians: Gaussians, factor: float) -> Gaussians:
    """All lengths times ``factor``."""
    offsets = None if gaussians.offsets is None else gaussians.offsets * factor
    return dataclasses.replace(
        gaussians, means=gaussians.means * factor, scales=gaussians.scales * factor, offsets=offsets
    )


def move_gaussians(gaussians: Gaussians, a_from_b: Float[Tensor, "4 4"], factor: float = 1.0) -> Gaussians:
    """Unbatched Gaussians of coordinates b, lengths times ``factor``, then in coordinates a, of that new unit.

    UserError for colours that depend on the direction: they would have to be turned too.
    """
    if gaussians.harmonics.shape[-2] > 1:
        raise UserError("Gaussians whose colours depend on the direction cannot be turned; give those of degree 0")
    sized, pose = scale_gaussians(gaussians, factor), a_from_b.double()
    rotation = pose[:3, :3]
    turn = roma.rotmat_to_unitquat(rotation).to(sized.quats).expand_as(sized.quats)
    quats = roma.quat_product(turn, roma.quat_wxyz_to_xyzw(sized.quats))
    offsets = sized.offsets
    return dataclasses.replace(
        sized,
        means=transform(pose, sized.means.double()).to(sized.means.dtype),
        quats=roma.quat_xyzw_to_wxyz(quats),
        offsets=None if offsets is None else (offsets.double() @ rotation.mT).to(offsets.dtype),
    )
