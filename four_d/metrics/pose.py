"""Errors of camera trajectories (`world_from_camera` over frames), after a stated alignment or with none.

Two families:

- **after alignment** of the whole trajectory by Umeyama's method on camera centres (``sim3`` with scale, ``se3``
  without): `ate`, `rpe`, as in the RGB-D SLAM benchmark (Sturm et al. 2012). The alignment may fit even a straight line
  to the truth, so these scores mean little without those of image-free baselines beside them.
- **without alignment**, over relative poses of all pairs of frames: `pair_errors`, and from them RRA@τ, RTA@τ and
  AUC@30 as in PoseDiffusion and VGGT.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import roma
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from four_d import geometry
from four_d.errors import UserError

Alignment = Literal["none", "se3", "sim3"]
Trajectory = Float[Tensor, "*b f 4 4"]

NO_LENGTH = 1e-9
"""Default length below which a translation has no direction."""
STILL = 1e-3
"""Extent, as a fraction of a scene's mean distance, below which a camera is static. For trajectories in that unit."""


@dataclass(frozen=True, kw_only=True)
class PairErrors:
    """Errors of the relative poses of all pairs of frames i < j, in the order (0, 1), (0, 2), …, (1, 2), …"""

    rotation_deg: Float[Tensor, "*b p"]
    translation_deg: Float[Tensor, "*b p"]
    """Angle between translation directions up to sign, in [0, 90]; 90 where the prediction does not move."""
    moving: Bool[Tensor, "*b p"]
    """Pairs whose true translation has a direction; elsewhere ``translation_deg`` is 0 and means nothing."""


@dataclass(frozen=True, kw_only=True)
class RelativePoseErrors:
    """Root mean squares over consecutive frames."""

    translation: Float[Tensor, "*b"]
    """Translation error in the target's unit."""
    rotation_deg: Float[Tensor, "*b"]


def extent(trajectory: Trajectory) -> Float[Tensor, "*b"]:
    """RMS distance of the camera centres from their mean: the ATE of a static prediction."""
    centres = trajectory[..., :3, 3]
    return _rms((centres - centres.mean(-2, keepdim=True)).norm(dim=-1))


def align_trajectory(prediction: Trajectory, target: Trajectory, alignment: Alignment) -> Trajectory:
    """Move (and with ``sim3`` scale) the prediction so that its centres fit the target's in the least squares sense.

    A static prediction keeps scale 1 and comes to rest at the target's mean.
    """
    if alignment == "none":
        return prediction
    centres = prediction[..., :3, 3]
    fit = geometry.align_points(centres, target[..., :3, 3], scale=alignment == "sim3")
    turned = fit[1][..., None, :, :] @ prediction[..., :3, :3]
    return geometry.make_pose(turned, geometry.apply_fit(fit, centres))


def ate(prediction: Trajectory, target: Trajectory, alignment: Alignment) -> Float[Tensor, "*b"]:
    """Absolute trajectory error: RMS distance of camera centres after ``alignment``, in the target's unit.

    Under ``sim3`` a static target gives 0 to anything: leave such clips out (`extent`).
    """
    aligned = align_trajectory(prediction, target, alignment)
    return _rms((aligned[..., :3, 3] - target[..., :3, 3]).norm(dim=-1))


def rpe(
    prediction: Trajectory,
    target: Trajectory,
    alignment: Alignment,
    consecutive: Bool[Tensor, "*b f-1"] | None = None,
) -> RelativePoseErrors:
    """Relative pose error at distance one frame, after ``alignment`` of the whole trajectory.

    With relative poses Q = target, P = aligned prediction, the error of a step is Q⁻¹P. ``consecutive`` marks the steps
    that count (both ends of one camera); all do by default. The value is 0 where none does.
    """
    errors = geometry.invert_pose(_steps(target)) @ _steps(align_trajectory(prediction, target, alignment))
    if consecutive is None:
        consecutive = torch.ones_like(errors[..., 0, 0], dtype=torch.bool)
    return RelativePoseErrors(
        translation=_rms(errors[..., :3, 3].norm(dim=-1), consecutive),
        rotation_deg=_rms(geometry.rotation_angle(errors[..., :3, :3]).rad2deg(), consecutive),
    )


def _steps(trajectory: Trajectory) -> Float[Tensor, "*b f-1 4 4"]:
    """Each frame's pose in the camera before it."""
    return geometry.invert_pose(trajectory[..., :-1, :, :]) @ trajectory[..., 1:, :, :]


def _rms(values: Float[Tensor, "*b n"], valid: Bool[Tensor, "*b n"] | None = None) -> Float[Tensor, "*b"]:
    if valid is None:
        return values.square().mean(-1).sqrt()
    return (torch.where(valid, values, 0).square().sum(-1) / valid.sum(-1).clamp_min(1)).sqrt()


def pair_errors(prediction: Trajectory, target: Trajectory, still: float = NO_LENGTH) -> PairErrors:
    """Errors of relative poses of all pairs i < j, without alignment: neither world frame nor scale matters.

    Relative poses are (world_from_i)⁻¹ (world_from_j). A true translation no longer than ``still`` (target's unit) has
    no direction; nor has a predicted one no longer than `NO_LENGTH`.
    """
    first, second = torch.triu_indices(target.shape[-3], target.shape[-3], offset=1, device=target.device)
    relative_p = geometry.invert_pose(prediction[..., first, :, :]) @ prediction[..., second, :, :]
    relative_g = geometry.invert_pose(target[..., first, :, :]) @ target[..., second, :, :]
    turn = relative_g[..., :3, :3].mT @ relative_p[..., :3, :3]
    moving = relative_g[..., :3, 3].norm(dim=-1) > still
    direction = _direction_error_deg(relative_p[..., :3, 3], relative_g[..., :3, 3])
    return PairErrors(
        rotation_deg=geometry.rotation_angle(turn).rad2deg(),
        translation_deg=torch.where(moving, direction, torch.zeros_like(direction)),
        moving=moving,
    )


def _direction_error_deg(a: Float[Tensor, "*b 3"], b: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b"]:
    """Angle between the lines along ``a`` and ``b``; 90 where ``a`` has no length. By atan2, accurate near 0."""
    across = torch.linalg.cross(a, b).norm(dim=-1)
    angle = torch.atan2(across, (a * b).sum(-1).abs()).rad2deg()
    return torch.where(a.norm(dim=-1) > NO_LENGTH, angle, torch.full_like(angle, 90.0))


def rra(errors: PairErrors, threshold_deg: float | int) -> Float[Tensor, "*b"]:
    """Relative rotation accuracy: fraction of pairs whose rotation error is below the threshold."""
    return (errors.rotation_deg < threshold_deg).to(errors.rotation_deg.dtype).mean(-1)


def rta(errors: PairErrors, threshold_deg: float | int) -> Float[Tensor, "*b"]:
    """Relative translation accuracy: fraction of moving pairs with a direction error below the threshold; 0 if none."""
    right = (errors.translation_deg < threshold_deg) & errors.moving
    return right.sum(-1) / errors.moving.sum(-1).clamp_min(1).to(errors.rotation_deg.dtype)


def auc(errors: PairErrors, limit_deg: int = 30) -> Float[Tensor, "*b"]:
    """Area under the accuracy curve: mean over 1, 2, …, ``limit_deg`` of the fraction of pairs below that many degrees.

    A pair's error is the larger of rotation and translation error (rotation alone where the truth does not move).
    """
    worse = torch.maximum(errors.rotation_deg, errors.translation_deg)
    limits = torch.arange(1, limit_deg + 1, device=worse.device, dtype=worse.dtype)
    return (worse[..., None] < limits).to(worse.dtype).mean((-2, -1))


def read_tum(path: Path) -> tuple[Float[Tensor, "n"], Float[Tensor, "n 4 4"]]:
    """Read times (s) and camera-to-world poses of a text file with lines ``time tx ty tz qx qy qz qw``; float64.

    Lines that begin with # are comments. UserError names file and line where a line is not eight numbers.
    """
    rows: list[list[float]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            row = [float(word) for word in line.split()]
        except ValueError:
            row = []
        if len(row) != 8 or not any(row[4:]) or not np.isfinite(row).all():
            raise UserError(f"{path}:{number} is not 'time tx ty tz qx qy qz qw', eight finite numbers: {line[:60]!r}")
        rows.append(row)
    if not rows:
        raise UserError(f"{path} holds no pose; expected lines 'time tx ty tz qx qy qz qw'")
    values = torch.tensor(rows, dtype=torch.float64)
    quaternions = torch.nn.functional.normalize(values[:, 4:], dim=-1)
    return values[:, 0], geometry.make_pose(roma.unitquat_to_rotmat(quaternions), values[:, 1:4])


def associate(
    times_a: Float[Tensor, "n"], times_b: Float[Tensor, "m"], max_difference_s: float = 0.01
) -> tuple[Int[Tensor, "k"], Int[Tensor, "k"]]:
    """Associate times: indices into both lists, each time of the shorter one with the nearest of the other.

    Pairs further apart than ``max_difference_s`` are dropped. Both lists ascend.
    """
    if len(times_a) > len(times_b):
        index_b, index_a = associate(times_b, times_a, max_difference_s)
        return index_a, index_b
    short, long = times_a.numpy(), times_b.numpy()
    after = np.searchsorted(long, short).clip(1, max(len(long) - 1, 1))
    before = after - 1
    after = after.clip(max=len(long) - 1)
    nearest = np.where(np.abs(long[before] - short) <= np.abs(long[after] - short), before, after)
    close = np.flatnonzero(np.abs(long[nearest] - short) <= max_difference_s)
    return torch.from_numpy(close), torch.from_numpy(nearest[close])
