"""Inputs of a rasteriser: for each image the Gaussians at its time, with their colours seen from its camera."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from four_d.geometry import in_half_space, invert_pose, quaternion_product, unit_quaternions
from four_d.kinematics import between
from four_d.rendering import harmonics
from four_d.types import Cameras, Gaussians


@dataclass(frozen=True, kw_only=True)
class Scene:
    """i images of n Gaussians each: every image has its own time, so its own means, and its own camera."""

    means: Float[Tensor, "i n 3"]
    """World positions at the image's time."""
    quats: Float[Tensor, "i n 4"]
    """Rotations at the image's time."""
    scales: Float[Tensor, "i n 3"]
    opacities: Float[Tensor, "i n"]
    values: Float[Tensor, "i n c"]
    """Values to composite: the colour seen from this camera, then any features."""
    camera_from_world: Float[Tensor, "i 4 4"]
    intrinsics: Float[Tensor, "i 3 3"]


def make_scene(
    gaussians: Gaussians, cameras: Cameras, times: Float[Tensor, "b v"], features: Float[Tensor, "b n c"] | None
) -> Scene:
    """Make the images of b sets of Gaussians by v cameras each, in row-major order of (b, v).

    An unknown camera sees nothing.
    """
    views = times.shape[1]
    opacities = _repeat_views(gaussians.opacities, views)
    if cameras.known is not None:
        opacities = torch.where(cameras.known.flatten()[:, None], opacities, 0)
    means = means_at(gaussians, times)
    eyes = cameras.world_from_camera[..., None, :3, 3]
    values = harmonics.colours(gaussians.harmonics[:, None], means - eyes)
    if features is not None:
        values = torch.cat([values, features[:, None].expand(-1, views, -1, -1)], dim=-1)
    return Scene(
        means=means.flatten(0, 1),
        quats=quats_at(gaussians, times).flatten(0, 1),
        scales=_repeat_views(gaussians.scales, views),
        opacities=opacities,
        values=values.flatten(0, 1),
        camera_from_world=invert_pose(cameras.world_from_camera).flatten(0, 1),
        intrinsics=cameras.intrinsics.flatten(0, 1),
    )


def _repeat_views(values: Tensor, views: int) -> Tensor:
    """Repeat ``b …`` to ``(b views) …``."""
    return values[:, None].expand(-1, views, *values.shape[1:]).flatten(0, 1)


def means_at(gaussians: Gaussians, times: Float[Tensor, "b v"]) -> Float[Tensor, "b v n 3"]:
    """Positions at ``times`` (s): between offset times linear, before the first and after the last the nearest."""
    if gaussians.offsets is None or gaussians.offset_times is None:
        return gaussians.means[:, None].expand(-1, times.shape[1], -1, -1)
    lower, upper, fraction = between(gaussians.offset_times, times)
    rows = torch.arange(times.shape[0], device=times.device)[:, None]
    before, after = gaussians.offsets[rows, lower], gaussians.offsets[rows, upper]
    return gaussians.means[:, None] + torch.lerp(before, after, fraction[..., None, None].to(before.dtype))


def quats_at(gaussians: Gaussians, times: Float[Tensor, "b v"]) -> Float[Tensor, "b v n 4"]:
    """Rotations at ``times`` (s), of any length: those of `means_at`'s times, turned as far as they have turned then.

    Between two offset times turns go the shorter way, as normalised linear interpolation: the one that glTF's morph
    targets can hold exactly.
    """
    if gaussians.turns is None or gaussians.offset_times is None:
        return gaussians.quats[:, None].expand(-1, times.shape[1], -1, -1)
    lower, upper, fraction = between(gaussians.offset_times, times)
    rows = torch.arange(times.shape[0], device=times.device)[:, None]
    before, after = (unit_quaternions(gaussians.turns[rows, index]) for index in (lower, upper))
    mixed = torch.lerp(before, in_half_space(after, before), fraction[..., None, None].to(before.dtype))
    return quaternion_product(unit_quaternions(mixed), gaussians.quats[:, None])


def still(gaussians: Gaussians, times: Float[Tensor, "b v"]) -> Gaussians:
    """Sets of Gaussians (b·v, in row-major order) as they are at each of ``times`` (s), without motion."""
    views = times.shape[1]
    return Gaussians(
        means=means_at(gaussians, times).flatten(0, 1),
        quats=quats_at(gaussians, times).flatten(0, 1),
        scales=_repeat_views(gaussians.scales, views),
        opacities=_repeat_views(gaussians.opacities, views),
        harmonics=_repeat_views(gaussians.harmonics, views),
    )
