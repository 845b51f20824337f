"""Pure functions on cameras, rotations, rays and trajectories. Conventions: `types`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import cast

import roma
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d.constants import precise, vector
from four_d.types import Cameras, Prediction

Points = Float[Tensor, "*b n 3"]
Pose = Float[Tensor, "*b 4 4"]
Fit = tuple[Float[Tensor, "*b"], Float[Tensor, "*b 3 3"], Float[Tensor, "*b 3"]]
"""Scale s, rotation R and translation t of similarities: target ≈ s·R·source + t."""
BEND = 0.1
"""Relative bend of inverse depth between neighbouring pixels above which a pixel lies between two surfaces."""
SMALLEST_SQUARE = 1e-24
"""Squared length below which a quaternion counts as zeros."""
DROPPED_FRACTION = 0.2
"""Fraction of each clip's pixels, the least confident ones, that is left out."""


def invert_pose(a_from_b: Pose) -> Pose:
    """Invert a rigid transform: b_from_a."""
    rotation, translation = a_from_b[..., :3, :3], a_from_b[..., :3, 3:]
    inverse = rotation.mT
    return make_pose(inverse, (-inverse @ translation)[..., 0])


def make_pose(rotation: Float[Tensor, "*b 3 3"], translation: Float[Tensor, "*b 3"]) -> Pose:
    """Assemble a 4 × 4 transform."""
    top = torch.cat([rotation, translation[..., None]], dim=-1)
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., 0, 3] = 1
    return torch.cat([top, bottom], dim=-2)


def orthonormal(pose: Pose) -> Pose:
    """Replace a pose's rotation by the nearest orthonormal matrix (in the Frobenius norm), of the same handedness."""
    left, _, right = torch.linalg.svd(pose[..., :3, :3])
    return make_pose(left @ right, pose[..., :3, 3])


def transform(a_from_b: Float[Tensor, "*#b 4 4"], points_b: Float[Tensor, "*#b n 3"]) -> Float[Tensor, "*b n 3"]:
    """Transform points from b's to a's coordinates; leading axes broadcast."""
    return points_b @ a_from_b[..., :3, :3].mT + a_from_b[..., None, :3, 3]


def rigid_part(
    rest: Float[Tensor, "*#b n 3"], places: Float[Tensor, "*b n 3"], pull: float = 1e-6
) -> Float[Tensor, "*b 4 4"]:
    """Rigid motion places_from_rest that brings points at rest nearest to their places, in least squares.

    ``pull`` to no rotation, beside the points' mean variance, decides what places do not tell, as those on one line.
    """
    middle, centre = rest.mean(-2, keepdim=True), places.mean(-2, keepdim=True)
    product = (places - centre).mT @ (rest - middle)
    size = (rest - middle).square().sum((-1, -2)).clamp_min(1e-12)[..., None, None] / 3
    eye = torch.eye(3, device=places.device, dtype=places.dtype)
    rotation = cast(Tensor, roma.special_procrustes(product + pull * size * eye))
    return make_pose(rotation, (centre - middle @ rotation.mT)[..., 0, :])


def unit_quaternions(quats: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 4"]:
    """Normalise quaternions; one of zeros becomes the identity, with no gradient."""
    squared = quats.square().sum(-1, keepdim=True)
    there = squared > SMALLEST_SQUARE
    return torch.where(there, quats * torch.where(there, squared, 1).rsqrt(), identity_quaternion(quats))


def identity_quaternion(like: Tensor) -> Float[Tensor, "4"]:
    """Identity (1, 0, 0, 0); device and dtype of ``like``."""
    return torch.eye(4, device=like.device, dtype=like.dtype)[0]


def quaternion_product(left: Float[Tensor, "*#b 4"], right: Float[Tensor, "*#b 4"]) -> Float[Tensor, "*b 4"]:
    """Multiply quaternions wxyz: the rotation ``right``, then ``left``; leading axes broadcast."""
    w1, x1, y1, z1 = left.unbind(-1)
    w2, x2, y2, z2 = right.unbind(-1)
    parts = [
        w1 * w2 - x1 * x2 - y1 * y2 - z1 * z2,
        w1 * x2 + x1 * w2 + y1 * z2 - z1 * y2,
        w1 * y2 - x1 * z2 + y1 * w2 + z1 * x2,
        w1 * z2 + x1 * y2 - y1 * x2 + z1 * w2,
    ]
    return torch.stack(parts, dim=-1)


def conjugate(quats: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 4"]:
    """Conjugate quaternions wxyz, the inverse of unit ones."""
    return quats * vector([1, -1, -1, -1], quats)


def rotate(quats: Float[Tensor, "*#b 4"], points: Float[Tensor, "*#b 3"]) -> Float[Tensor, "*b 3"]:
    """Rotate points by unit quaternions wxyz; leading axes broadcast. The identity leaves them exactly as they are."""
    w, x, y, z = quats.unbind(-1)
    a, b, c = points.unbind(-1)
    # v + w s + u × s with s = 2 u × v
    p, q, r = 2 * (y * c - z * b), 2 * (z * a - x * c), 2 * (x * b - y * a)
    parts = [a + w * p + y * r - z * q, b + w * q + z * p - x * r, c + w * r + x * q - y * p]
    return torch.stack(parts, dim=-1)


def in_half_space(quats: Float[Tensor, "*#b 4"], of: Float[Tensor, "*#b 4"]) -> Float[Tensor, "*b 4"]:
    """The one of q and −q, which are one rotation, that is nearer to another quaternion; leading axes broadcast."""
    return torch.where((quats * of).sum(-1, keepdim=True) < 0, -quats, quats)


def rebase(cameras: Cameras) -> Cameras:
    """Express cameras in the first frame's camera coordinates (axis -3 of the poses is frames)."""
    first_from_world = invert_pose(cameras.world_from_camera[..., :1, :, :])
    return dataclasses.replace(cameras, world_from_camera=first_from_world @ cameras.world_from_camera)


def resize(cameras: Cameras, before: tuple[int, int], after: tuple[int, int]) -> Cameras:
    """Adapt cameras to images (rows, columns) resized from ``before`` to ``after``."""
    scale = vector([after[1] / before[1], after[0] / before[0], 1.0], cameras.intrinsics)
    return dataclasses.replace(cameras, intrinsics=scale[:, None] * cameras.intrinsics)


def inside(pixels: Float[Tensor, "*b 2"], z: Float[Tensor, "*b"], size: tuple[int, int]) -> Bool[Tensor, "*b"]:
    """True for points in front of the camera whose pixels (x, y) lie in an image of ``size`` (height, width)."""
    limit = vector([size[1], size[0]], pixels)
    return (z > 0) & (pixels >= 0).all(-1) & (pixels < limit).all(-1)


def at_pixels(maps: Float[Tensor, "f h w"], pixels: Float[Tensor, "f n 2"]) -> Float[Tensor, "f n"]:
    """Values of each frame's map at its pixels (x, y); outside, those of the nearest pixel of the map."""
    height, width = maps.shape[-2:]
    x, y = pixels.nan_to_num().clamp(-1, max(height, width)).floor().long().unbind(-1)
    frames = torch.arange(len(maps), device=maps.device)[:, None]
    return maps[frames, y.clamp(0, height - 1), x.clamp(0, width - 1)]


def pixel_centres(height: int, width: int, like: Tensor) -> Float[Tensor, "h w 2"]:
    """(x, y) of every pixel's centre, corner origin; device and dtype of ``like``."""
    y = torch.arange(height, device=like.device, dtype=like.dtype) + 0.5
    x = torch.arange(width, device=like.device, dtype=like.dtype) + 0.5
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def rays(intrinsics: Float[Tensor, "*b 3 3"], pixels: Float[Tensor, "*b n 2"]) -> Points:
    """Directions through pixels in camera coordinates, with z = 1, so that points are z-depth times direction."""
    x = (pixels[..., 0] - intrinsics[..., 0, 2, None]) / intrinsics[..., 0, 0, None]
    y = (pixels[..., 1] - intrinsics[..., 1, 2, None]) / intrinsics[..., 1, 1, None]
    return torch.stack([x, y, torch.ones_like(x)], dim=-1)


def pixel_rays(
    cameras: Cameras, height: int, width: int
) -> tuple[Float[Tensor, "*b 3"], Float[Tensor, "*b height width 3"]]:
    """Camera centres, and unit directions through all pixel centres, both in the world."""
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


def distances(depth: Float[Tensor, "f h w"], cameras: Cameras) -> Float[Tensor, "f h w"]:
    """Distances to the world's origin of the points of z-depth maps: those of `unproject`, many times faster."""
    pixels, found = pixel_centres(depth.shape[1], depth.shape[2], depth), torch.zeros_like(depth)
    for frame, squares in enumerate(found):  # one at a time, while it is in the processor's cache
        lens, pose = cameras.intrinsics[frame], cameras.world_from_camera[frame]
        x = (pixels[0, :, 0] - lens[0, 2]) / lens[0, 0]
        y = (pixels[:, 0, 1] - lens[1, 2]) / lens[1, 1]
        for axis in pose[:3]:
            along = (axis[0] * x + axis[2]) + (axis[1] * y)[:, None]
            along.mul_(depth[frame]).add_(axis[3])
            squares.addcmul_(along, along)
        squares.sqrt_()
    return found


def world_points(prediction: Prediction) -> Float[Tensor, "*b f h w 3"] | None:
    """World points of pixels: unprojected depth if there are cameras, else the point map, else None.

    All scoring, showing and tracking of points uses this choice. Depth with cameras comes first, since it is more
    accurate (VGGT, arXiv 2503.11651 §4.2).
    """
    if prediction.depth is not None and prediction.cameras is not None:
        return unproject(prediction.depth, prediction.cameras)
    return prediction.points


NEAREST = 1e-6
"""Depth below which a point counts as having no pixel."""


def project(points_world: Points, cameras: Cameras) -> tuple[Float[Tensor, "*b n 2"], Float[Tensor, "*b n"]]:
    """Project world points to pixels (x, y) and z-depth. Behind the camera (z ≤ 0) the pixel is invalid but finite."""
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
    """Encode cameras as VGGT, in our order: translation of camera_from_world, quaternion wxyz (w ≥ 0), fov_y, fov_x.

    The principal point is taken to be the image's centre; fields of view in radians.
    """
    camera_from_world = invert_pose(cameras.world_from_camera)
    quaternion = roma.quat_xyzw_to_wxyz(roma.rotmat_to_unitquat(camera_from_world[..., :3, :3]))
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    fov_y = 2 * torch.atan(height / 2 / cameras.intrinsics[..., 1, 1])
    fov_x = 2 * torch.atan(width / 2 / cameras.intrinsics[..., 0, 0])
    return torch.cat([camera_from_world[..., :3, 3], quaternion, fov_y[..., None], fov_x[..., None]], dim=-1)


def decode_cameras(encoding: Float[Tensor, "*b 9"], height: int, width: int) -> Cameras:
    """Invert `encode_cameras`; the quaternion need not be normalised. One of zeros is the identity."""
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
) -> Fit:
    """Fit the similarity (or rigid, ``scale=False``) transform with least squared error: target ≈ s·R·source + t.

    Umeyama 1991. ``valid`` is a mask of points, or weights ≥ 0. A source whose points coincide gets scale 1 and as
    rotation the identity or an arbitrary proper one.
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


def apply_fit(fit: Fit, points: Float[Tensor, "*#b n 3"]) -> Float[Tensor, "*b n 3"]:
    """Apply the similarities of `align_points` to points."""
    scale, rotation, translation = fit
    return scale[..., None, None] * (points @ rotation.mT) + translation[..., None, :]


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Similarity a = scale · rotation · b + shift, in `constants.precise`. `fields.move` applies it to values."""

    scale: float
    rotation: Float[Tensor, "3 3"]
    shift: Float[Tensor, "3"]

    @staticmethod
    def identity() -> Similarity:
        """Identity."""
        return Similarity.of_pose(torch.eye(4, dtype=torch.float64))

    @staticmethod
    def of_pose(a_from_b: Float[Tensor, "4 4"], scale: float = 1.0) -> Similarity:
        """Scale lengths by ``scale``, then apply a rigid transform."""
        pose = a_from_b.to(precise(a_from_b.device))
        return Similarity(scale=scale, rotation=pose[:3, :3], shift=pose[:3, 3])

    def _for(self, values: Tensor) -> tuple[Float[Tensor, "3 3"], Float[Tensor, "3"]]:
        """Rotation and shift on the device of values, as precise as it allows."""
        kind = precise(values.device)
        return self.rotation.to(values.device, kind), self.shift.to(values.device, kind)

    def points(self, points: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        """Transform points from b to a."""
        rotation, shift = self._for(points)
        return ((self.scale * points).to(rotation) @ rotation.mT + shift).to(points.dtype)

    def displacements(self, steps: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        """Transform displacements from b to a."""
        rotation = self._for(steps)[0]
        return ((self.scale * steps).to(rotation) @ rotation.mT).to(steps.dtype)

    def normals(self, normals: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        """Transform unit vectors from b's axes to a's."""
        rotation = self._for(normals)[0]
        return (normals.to(rotation) @ rotation.mT).to(normals.dtype)

    def poses(self, b_from_camera: Pose) -> Pose:
        """Transform b_from_camera to a_from_camera, rigid."""
        own = self._for(b_from_camera)[0]
        pose = b_from_camera.to(own)
        return make_pose(own @ pose[..., :3, :3], self.points(pose[..., :3, 3])).to(b_from_camera.dtype)

    def quaternions(self, quats: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
        """Transform rotations from an object's axes to b's into those to a's."""
        turn = roma.rotmat_to_unitquat(self.rotation).to(quats).expand_as(quats)
        return roma.quat_xyzw_to_wxyz(roma.quat_product(turn, roma.quat_wxyz_to_xyzw(quats)))

    def turns(self, turns: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
        """Transform rotations of things in b's axes into the same in a's: the axis turns, the angle stays."""
        return torch.cat([turns[..., :1], self.normals(turns[..., 1:])], dim=-1)


def point_maps(prediction: Prediction) -> tuple[Tensor, Tensor, Tensor] | None:
    """World points f h w 3, z-depth f h w and confidence f h w of an unbatched prediction.

    Without cameras, the depth of a point map is that in the first camera.
    """
    points, cameras = world_points(prediction), prediction.cameras
    if points is None:
        return None
    if prediction.depth is not None and cameras is not None:
        depth, confidence = prediction.depth, prediction.depth_confidence
    else:
        in_cameras = points if cameras is None else _in_cameras(points, cameras)
        depth, confidence = in_cameras[..., 2], prediction.points_confidence
    return points, depth, torch.ones_like(depth) if confidence is None else confidence


def _in_cameras(points: Float[Tensor, "f h w 3"], cameras: Cameras) -> Float[Tensor, "f h w 3"]:
    """Transform each frame's points to its own camera."""
    camera_from_world = invert_pose(cameras.world_from_camera)
    return transform(camera_from_world, points.flatten(1, 2)).unflatten(1, points.shape[1:3])


def reliable(depth: Float[Tensor, "f h w"], confidence: Float[Tensor, "f h w"]) -> Bool[Tensor, "f h w"]:
    """Mask of reliable pixels: in front of the camera, not at a depth edge, not among the clip's least confident.

    Inverse depth is linear in the pixel on any plane, and bends at an edge. So the test is on its second difference,
    relative to itself.
    """
    front = depth.isfinite() & (depth > 1e-6)
    inverse = torch.where(front, 1 / depth.clamp_min(1e-6), torch.zeros_like(depth))
    bend = torch.zeros_like(inverse)
    bend[:, 1:-1] = (inverse[:, 2:] - 2 * inverse[:, 1:-1] + inverse[:, :-2]).abs()
    across = (inverse[:, :, 2:] - 2 * inverse[:, :, 1:-1] + inverse[:, :, :-2]).abs()
    bend[:, :, 1:-1] = torch.maximum(bend[:, :, 1:-1], across)
    # with equal confidences (a model without any) no pixel is left out
    sorted_confidence = confidence.flatten().sort().values
    threshold = sorted_confidence[int(DROPPED_FRACTION * (sorted_confidence.numel() - 1))]
    return front & (bend <= BEND * inverse) & (confidence >= threshold)
