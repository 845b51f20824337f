"""Validation of a renderer's inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from four_d.errors import UserError
from four_d.types import Cameras, Gaussians, map_tensors

T = TypeVar("T")

RIGID = 1e-2
"""Tolerance on a rotation times its transpose against the identity."""


def to_common_dtype(gaussians: Gaussians, cameras: Cameras, times: Tensor) -> tuple[Gaussians, Cameras, Tensor]:
    """Convert all to the means' type, at least float32; times to the widest of their types."""
    dtype = torch.promote_types(gaussians.means.dtype, torch.float32)
    clock = torch.promote_types(times.dtype, torch.float32)
    if gaussians.offset_times is not None:
        clock = torch.promote_types(clock, gaussians.offset_times.dtype)
    # times keep their own, possibly higher precision, on which interpolation between offset times depends
    cast = map_tensors(gaussians, lambda tensor: tensor.to(dtype))
    if gaussians.offset_times is not None:
        cast = replace(cast, offset_times=gaussians.offset_times.to(clock))
    cast_cameras = map_tensors(cameras, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
    return cast, cast_cameras, times.to(clock)


def guarded(values: T) -> tuple[T, Float[Tensor, ""]]:
    """Replace numbers that are not finite by 0; the factor of what is made of them is 1, or NaN if there were any.

    Kernels must not meet such numbers, and nobody may take what is made of them for sound. The device decides.
    """
    found: list[Tensor] = []

    def sound(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        found.append(torch.isfinite(tensor.detach()).all())
        return tensor.nan_to_num(0.0, 0.0, 0.0)

    replaced = map_tensors(values, sound)
    good = torch.stack(found).all()
    return replaced, torch.where(good, 1.0, torch.nan)


def check_gaussians(gaussians: Gaussians, *, read_back: bool = True) -> None:
    """Raise UserError unless the Gaussians are ``b n …``, finite, with opacities in [0, 1] and scales ≥ 0.

    ``read_back`` False, here as below: only shapes are checked.
    """
    _check_shapes(gaussians)
    if not read_back:
        return
    named = {
        name: getattr(gaussians, name)
        for name in ("means", "quats", "scales", "opacities", "harmonics", "offsets", "offset_times", "turns")
        if getattr(gaussians, name) is not None
    }
    for name, good in _read_back({name: torch.isfinite(value).all() for name, value in named.items()}).items():
        if not good:
            raise UserError(f"gaussians.{name} has values that are not finite; remove those Gaussians")
    if gaussians.means.shape[1]:
        _check_ranges(gaussians)


def _check_ranges(gaussians: Gaussians) -> None:
    low, high = gaussians.opacities.aminmax()
    checks = {"opacities": (low >= 0) & (high <= 1), "scales": gaussians.scales.amin() >= 0}
    if gaussians.offset_times is not None:
        checks["times"] = (gaussians.offset_times.diff(dim=-1) >= 0).all()
    good = _read_back(checks)
    if not good["opacities"]:
        raise UserError(
            f"gaussians.opacities are {float(low):.3g} to {float(high):.3g}; give them in [0, 1], not as logits"
        )
    if not good["scales"]:
        raise UserError("gaussians.scales has negative values; give lengths, not logarithms")
    if not good.get("times", True):
        raise UserError("gaussians.offset_times must ascend; sort them, and the offsets with them")


def _check_shapes(gaussians: Gaussians) -> None:
    shape = gaussians.means.shape
    if len(shape) != 3:
        raise UserError(f"gaussians.means is {tuple(shape)}; give one batch axis: b n 3")
    if (gaussians.offsets is None) != (gaussians.offset_times is None):
        raise UserError("gaussians.offsets and gaussians.offset_times go together; give both or neither")
    for name in ("quats", "scales", "opacities", "harmonics"):
        found_shape = getattr(gaussians, name).shape
        if found_shape[:2] != shape[:2]:
            raise UserError(
                f"gaussians.{name} is {tuple(found_shape)}, but the means are {tuple(shape)}: b and n must agree"
            )
    if gaussians.offsets is not None and gaussians.offset_times is not None:
        offsets_shape, times = gaussians.offsets.shape, gaussians.offset_times.shape
        if offsets_shape != (shape[0], times[-1], shape[1], 3) or times[:-1] != shape[:1]:
            raise UserError(
                f"gaussians.offsets is {tuple(offsets_shape)}, offset_times {tuple(times)}, means"
                f" {tuple(shape)}: give b t n 3 and b t"
            )
    if gaussians.turns is not None:
        if gaussians.offsets is None:
            raise UserError("gaussians.turns are those at the offset times; give offsets too, zeros if nothing moves")
        if gaussians.turns.shape != (*gaussians.offsets.shape[:-1], 4):
            raise UserError(
                f"gaussians.turns is {tuple(gaussians.turns.shape)}, but the offsets are"
                f" {tuple(gaussians.offsets.shape)}: give b t n 4"
            )


def check_cameras(cameras: Cameras, times: Tensor, means: Tensor, *, read_back: bool = True) -> None:
    """Raise UserError unless the cameras are ``b v …`` as ``times``, of the Gaussians' batch, and valid."""
    poses, intrinsics = cameras.world_from_camera, cameras.intrinsics
    if poses.shape[:-2] != times.shape or intrinsics.shape[:-2] != times.shape or times.shape[:1] != means.shape[:1]:
        raise UserError(
            f"cameras {tuple(poses.shape[:-2])} and times {tuple(times.shape)} must both be (b, v), with the"
            f" Gaussians' b = {len(means)}"
        )
    if not read_back:
        return
    rotation = poses[..., :3, :3].detach().to(torch.promote_types(poses.dtype, torch.float32))
    eye = torch.eye(3, dtype=rotation.dtype, device=poses.device)
    good = _read_back(
        {
            "finite": torch.isfinite(poses).all() & torch.isfinite(intrinsics).all(),
            "times": torch.isfinite(times).all(),
            "rigid": ((rotation @ rotation.mT - eye).abs() < RIGID).all() & (torch.linalg.det(rotation) > 0).all(),
            "focal": (intrinsics[..., 0, 0] > 0).all() & (intrinsics[..., 1, 1] > 0).all(),
        }
    )
    if not good["finite"]:
        raise UserError("a camera has values that are not finite; leave that view out")
    if not good["times"]:
        raise UserError("times has values that are not finite; give seconds")
    if not good["rigid"]:
        raise UserError(
            "a camera's pose is not a rotation and a translation; give world_from_camera without scale or reflection"
        )
    if not good["focal"]:
        raise UserError("a camera's focal length is not above 0; give intrinsics in pixels")


def check_features(features: Tensor | None, means: Tensor, *, read_back: bool = True) -> None:
    """Raise UserError unless the features are finite and there are some for each Gaussian."""
    if features is None:
        return
    if features.shape[:2] != means.shape[:2]:
        raise UserError(
            f"features is {tuple(features.shape)}, but the means are {tuple(means.shape)}: b and n must agree"
        )
    if read_back and not torch.isfinite(features).all():
        raise UserError("features has values that are not finite; remove those Gaussians")


def check_background(background: Tensor | None, batch: tuple[int, ...], *, read_back: bool = True) -> None:
    """Raise UserError unless it is one finite colour, or one for each image of the batch."""
    if background is None:
        return
    if background.shape not in ((3,), (*batch, 3)):
        raise UserError(
            f"background is {tuple(background.shape)}; give one colour (3,), or one per image {(*batch, 3)}"
        )
    if read_back and not torch.isfinite(background).all():
        raise UserError("background has values that are not finite; give colours in [0, 1]")


def _read_back(checks: dict[str, Tensor]) -> dict[str, bool]:
    """Read all checks back from the device in one synchronisation."""
    return dict(zip(checks, torch.stack(list(checks.values())).tolist()))
