"""Correction of predicted cameras: those given by the user are kept, and square pixels have one focal length.

A model predicts two fields of view. One that was trained on square images predicts nearly the same angle for both axes
of any image, which squeezes the geometry of a wide one. All images have square pixels here, so both focal lengths
become their geometric mean, which roughly keeps the predicted solid angle of the image. On synthetic clips of 96 × 40
to 48 × 88 pixels, that of a small reference model was 11 to 16 % off the ground truth; the longer side's own 24 to
32 % off, the shorter side's 33 to 56 %. Each frame keeps its own focal length: a lens may zoom, and the median over a
clip was no more accurate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import roma
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from four_d import fields
from four_d.constants import precise
from four_d.geometry import invert_pose, make_pose
from four_d.types import Cameras, Clip, Gaussians, Geometry, Prediction, map_tensors
from four_d.video.remarks import Remarks
from four_d.windows.align import depth_ratio

SMALLEST = 1e-3
"""RMS distance of camera centres from the first, in the model's unit, below which they determine no scale."""


def one_focal(intrinsics: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3 3"]:
    """Replace both focal lengths by their geometric mean, keeping principal points."""
    focal = (intrinsics[..., 0, 0] * intrinsics[..., 1, 1]).sqrt()
    return torch.diag_embed(torch.stack([focal, focal, torch.zeros_like(focal)], dim=-1)) + _principal(intrinsics)


def _principal(intrinsics: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3 3"]:
    """Intrinsics without focal lengths and skew."""
    points = torch.zeros_like(intrinsics)
    points[..., 2] = intrinsics[..., 2]
    return points


@dataclass(frozen=True, kw_only=True)
class Given:
    """Cameras of f frames as the user gave them: float64, original pixels, the user's own world."""

    cameras: Cameras
    """``known`` and ``intrinsics_known`` mark the given ones; the rest are placeholders."""
    origin: Float[Tensor, "4 4"]
    """Pose of the frame whose camera defines the result's world."""

    @property
    def posed(self) -> bool:
        """True if poses are given, which then include the first frame's."""
        return bool(self.cameras.known is not None and self.cameras.known[0])

    def take(self, part: slice) -> Given:
        """Cameras of some frames."""
        return dataclasses.replace(self, cameras=map_tensors(self.cameras, lambda tensor: tensor[part]))

    @staticmethod
    def join(parts: Sequence[Given | None]) -> Given | None:
        """Concatenate the frames of several parts of one world; None if no cameras were given."""
        some = [part for part in parts if part is not None]
        if not some:
            return None
        names = (f.name for f in dataclasses.fields(Cameras))
        joined = {name: torch.cat([getattr(part.cameras, name) for part in some]) for name in names}
        return Given(cameras=Cameras(**joined), origin=some[0].origin)

    def over(self, predicted: Cameras) -> Cameras:
        """Replace predicted cameras by the given ones, in float64 and original pixels."""
        given, known, lenses = self.cameras, self.cameras.known, self.cameras.intrinsics_known
        assert known is not None
        assert lenses is not None
        poses = invert_pose(self.origin) @ given.world_from_camera
        return Cameras(
            world_from_camera=torch.where(known[:, None, None], poses, predicted.world_from_camera.double()),
            intrinsics=torch.where(lenses[:, None, None], given.intrinsics, predicted.intrinsics.double()),
        )


@dataclass(frozen=True, kw_only=True)
class Correction:
    """Map of batched predictions from a model's cameras to the final ones.

    A pixel keeps its point: in its frame's camera the point keeps its depth, apart from the unit of length, and moves
    sideways onto the new camera's ray of the same pixel. Fields follow by their geometry: those with an axis of frames
    with each frame, the others with the first. Poses and quaternions only turn as the cameras do, without the effect of
    the new intrinsics; Gaussians are stretched as a whole.
    """

    cameras: Cameras | None
    """Final cameras."""
    unit: float
    """Factor from the model's lengths to those of the final cameras."""
    linear: Float[Tensor, "b f 3 3"] | None = None
    """Matrices applied to points in each frame's camera; None: only the unit changes."""
    shift: Float[Tensor, "b f 3"] | None = None
    turn: Float[Tensor, "b f 3 3"] | None = None
    """Rotations from the predicted to the final cameras' axes, in the world."""

    def __call__(self, prediction: Prediction) -> Prediction:
        """Correct a prediction for the final cameras, every field by its geometry."""
        gaussians = None if prediction.gaussians is None else self._gaussians(prediction.gaussians, prediction)
        rest = dataclasses.replace(prediction, cameras=None, gaussians=None)
        rest = fields.apply(rest, lambda leaf, tensor: self._corrected(prediction, leaf, tensor))
        return dataclasses.replace(rest, cameras=self.cameras, gaussians=gaussians)

    def _corrected(self, prediction: Prediction, leaf: fields.Leaf, tensor: Tensor) -> Tensor:
        def of(part: Tensor) -> Tensor:
            return _spread(part.to(tensor), prediction, leaf, tensor)

        if self.linear is None or self.shift is None or self.turn is None:
            return _scaled(leaf, tensor, self.unit)
        match leaf.geometry:
            case Geometry.POINT:
                return _times(of(self.linear), tensor) + of(self.shift)
            case Geometry.DISPLACEMENT:
                return _times(of(self.linear), tensor)
            case Geometry.NORMAL:  # planes, unlike vectors, go by the inverse transpose
                return functional.normalize(_times(torch.linalg.inv(of(self.linear)).mT, tensor), dim=-1)
            case Geometry.QUATERNION:
                turns = roma.rotmat_to_unitquat(of(self.turn)).expand_as(tensor)
                return roma.quat_xyzw_to_wxyz(roma.quat_product(turns, roma.quat_wxyz_to_xyzw(tensor)))
            case Geometry.TURN:
                return torch.cat([tensor[..., :1], _times(of(self.turn), tensor[..., 1:])], dim=-1)
            case Geometry.POSE:
                centres = _times(of(self.linear), tensor[..., :3, 3]) + of(self.shift)
                return make_pose(of(self.turn) @ tensor[..., :3, :3], centres)
            case _:
                return _scaled(leaf, tensor, self.unit)

    def _gaussians(self, gaussians: Gaussians, prediction: Prediction) -> Gaussians:
        if self.linear is None or self.shift is None:
            return fields.scale(gaussians, self.unit)
        frames = prediction.key_frames
        if frames is None:  # of no frame in particular: they go with the first
            frames = torch.zeros(len(self.linear), 1, dtype=torch.long, device=self.linear.device)
        clips = torch.arange(len(frames), device=frames.device)[:, None]
        each = gaussians.means.shape[1] // frames.shape[1]
        linear, shift = (part[clips, frames].repeat_interleave(each, dim=1) for part in (self.linear, self.shift))
        return stretch(gaussians, linear, shift)


def _scaled(leaf: fields.Leaf, tensor: Tensor, unit: float) -> Tensor:
    """A tensor in another unit of length; what is bound to its coordinates stays."""
    match leaf.geometry:
        case Geometry.LENGTH | Geometry.POINT | Geometry.DISPLACEMENT:
            return tensor * unit
        case Geometry.UNIT:
            return tensor / unit
        case Geometry.POSE:
            return make_pose(tensor[..., :3, :3], tensor[..., :3, 3] * unit)
        case _:
            return tensor


def _spread(
    of_frames: Float[Tensor, "b f *m"], prediction: Prediction, leaf: fields.Leaf, tensor: Tensor
) -> Float[Tensor, "*n *m"]:
    """Values of frames for each entry of a tensor of the prediction; the first frame's if it has no axis of frames.

    The leading axes are those of the tensor without what its geometry takes, of length 1 where all entries share one.
    """
    found, batch = fields.entries(prediction, leaf, tensor, "f"), leaf.dim("b", tensor)
    shape = [1] * (tensor.ndim - (2 if leaf.geometry is Geometry.POSE else 1))
    some = of_frames if batch is not None else of_frames[:1]
    if found is None:
        some = some[:, :1]
    else:
        clips = torch.arange(len(some), device=some.device)[:, None]
        some, shape[found[0]] = some[clips, found[1].to(some.device)], tensor.shape[found[0]]
    if batch is not None:
        shape[batch] = len(some)
    return some.reshape(*shape, *of_frames.shape[2:])


def _times(matrices: Float[Tensor, "*#n 3 3"], points: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
    """Apply to each point its matrix; at once where neighbours share one."""
    if matrices.shape[-3] == 1:
        return points @ matrices[..., 0, :, :].mT
    return (points[..., None, :] @ matrices.mT)[..., 0, :]


def correct(prediction: Prediction, given: Clip, unit: float = 1.0, remarks: Remarks | None = None) -> Correction:
    """Correction of a batched prediction to square pixels and to the given cameras.

    Args:
        prediction: prediction of a clip in the model's unit, for one query time or all.
        given: the clip with the user's hints, in the user's unit.
        unit: factor from the model's lengths to the user's, used if the poses do not determine it.
        remarks: log of remarks on the cameras, which is told if these do not; None: a new one.

    Given poses with depth, or of a moving camera, determine the unit of the result: by the median ratio of depths, else
    by the distances of camera centres from the first, which a model that is given the poses predicts too. Otherwise
    lengths stay the model's.

    """
    predicted, known = prediction.cameras, given.cameras
    if predicted is None:
        every = known is not None and (known.known is None or bool(known.known.all()))
        return Correction(cameras=known if every else None, unit=unit)
    known = None if known is None else map_tensors(known, lambda tensor: tensor.to(predicted.intrinsics.device))
    unit = unit if known is None else _unit(prediction, given, known, remarks or Remarks("cameras")) or unit
    held = _held(predicted, known, unit)
    before, after = predicted.world_from_camera, held.world_from_camera
    across = torch.linalg.solve_triangular(held.intrinsics, predicted.intrinsics, upper=True)
    linear = unit * after[..., :3, :3] @ across @ before[..., :3, :3].mT
    shift = after[..., :3, 3] - (linear @ before[..., :3, 3:])[..., 0]
    turn = after[..., :3, :3] @ before[..., :3, :3].mT
    return Correction(cameras=held, unit=unit, linear=linear, shift=shift, turn=turn)


def _held(predicted: Cameras, known: Cameras | None, unit: float) -> Cameras:
    poses = make_pose(predicted.world_from_camera[..., :3, :3], unit * predicted.world_from_camera[..., :3, 3])
    intrinsics = one_focal(predicted.intrinsics)
    if known is None:
        return Cameras(world_from_camera=poses, intrinsics=intrinsics)
    with_pose = torch.ones_like(poses[..., 0, 0], dtype=torch.bool) if known.known is None else known.known
    with_lens = with_pose if known.intrinsics_known is None else known.intrinsics_known
    return Cameras(
        world_from_camera=torch.where(with_pose[..., None, None], known.world_from_camera.to(poses), poses),
        intrinsics=torch.where(with_lens[..., None, None], known.intrinsics.to(intrinsics), intrinsics),
    )


def _unit(prediction: Prediction, given: Clip, known: Cameras, remarks: Remarks) -> float | None:
    """Factor from the model's lengths to those of the given poses; None without poses, or if it is undetermined."""
    predicted = prediction.cameras
    assert predicted is not None
    chosen = torch.ones_like(predicted.intrinsics[..., 0, 0], dtype=torch.bool) if known.known is None else known.known
    if not bool(chosen.any()):
        return None
    if given.depth is not None and given.valid is not None and prediction.depth is not None:
        ratio = depth_ratio(prediction.depth, given.depth, given.valid)
        if ratio is not None:
            return ratio
    wanted, own = (_reach(cameras.world_from_camera, chosen) for cameras in (known, predicted))
    if wanted > 0 and own <= SMALLEST:
        remarks.say(
            "the poses are given, and nothing tells how far away things are in their unit: depth and points stay in "
            "the model's; give depth (--depth) too"
        )
    return wanted / own if wanted > 0 and own > SMALLEST else None


def _reach(poses: Float[Tensor, "b f 4 4"], chosen: Tensor) -> float:
    """RMS distance of camera centres from the first frame's."""
    centres = poses[..., :3, 3].to(precise(poses.device))
    return float((centres - centres[:, :1])[chosen].square().sum(-1).mean().sqrt())


def stretch(gaussians: Gaussians, linear: Float[Tensor, "b n 3 3"], shift: Float[Tensor, "b n 3"]) -> Gaussians:
    """Apply an affine map x ↦ linear·x + shift to each of batched Gaussians, including covariances and offsets.

    Turns become the rotation nearest to linear·turn·linear⁻¹: exact for similarities, for Gaussians have one shape.
    """
    means = (linear @ gaussians.means[..., None])[..., 0] + shift
    offsets = gaussians.offsets
    turns = roma.unitquat_to_rotmat(roma.quat_wxyz_to_xyzw(torch.nn.functional.normalize(gaussians.quats, dim=-1)))
    exact = linear.to(precise(linear.device))
    axes = exact @ (turns * gaussians.scales[..., None, :]).to(exact)
    one = torch.eye(3, dtype=exact.dtype, device=exact.device)
    # the SVD of the mapped axes gives the axes of the mapped ellipsoid
    finite = axes.isfinite().all(-1).all(-1)
    rotation, scales, _ = torch.linalg.svd(torch.where(finite[..., None, None], axes, one))
    scales = scales.masked_fill(~finite[..., None], torch.nan)  # the writers refuse these with a clear error
    rotation = rotation * torch.det(rotation).sign()[..., None, None]
    changed = gaussians.turns
    if changed is not None:
        inner = roma.unitquat_to_rotmat(roma.quat_wxyz_to_xyzw(changed)).to(exact)
        maps = torch.where(finite[..., None, None], exact, one)[:, None]
        nearest = roma.special_procrustes(maps @ inner @ torch.linalg.inv(maps))
        changed = roma.quat_xyzw_to_wxyz(roma.rotmat_to_unitquat(nearest)).to(changed)
    return dataclasses.replace(
        gaussians,
        turns=changed,
        means=means,
        quats=roma.quat_xyzw_to_wxyz(roma.rotmat_to_unitquat(rotation)).to(gaussians.quats),
        scales=scales.to(gaussians.scales),
        offsets=None if offsets is None else (linear[:, None] @ offsets[..., None])[..., 0],
    )
