"""Common operations of all formats of Gaussians: validation, state at one time, and axes that point up and back."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from four_d.errors import UserError
from four_d.geometry import conjugate, in_half_space, quaternion_product, unit_quaternions
from four_d.rendering.scene import means_at, quats_at
from four_d.types import Gaussians, map_tensors

LOGGER = logging.getLogger(__name__)

COEFFICIENTS = (1, 4, 9, 16)
"""Number of spherical harmonics to degree 0, 1, 2 and 3."""
_FLIPS = (1, -1, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1)
"""Sign of each basis function at (x, -y, -z) relative to (x, y, z)."""


def sound(gaussians: Gaussians) -> Gaussians:
    """Validate Gaussians and bring them to the CPU in float32 with unit quaternions, ready to be written.

    A quaternion of zeros is the identity. Opacities are clamped to [0, 1].

    Raises:
        ValueError: a batch.
        UserError: values that are not finite, negative scales, or harmonics that are not of degree 0 to 3.

    """
    if gaussians.means.ndim != 2:
        raise ValueError(f"means are {tuple(gaussians.means.shape)}; files hold one scene, so take one of the batch")
    fields = {f.name: getattr(gaussians, f.name) for f in dataclasses.fields(gaussians)}
    values = {name: v.detach().to("cpu", torch.float32) for name, v in fields.items() if v is not None}
    for name, value in values.items():
        if not value.isfinite().all():
            raise UserError(
                f"{name} of the Gaussians are not finite; leave such Gaussians out or, if they are a model's, train it "
                "further"
            )
    if (values["scales"] < 0).any():
        raise UserError("scales of the Gaussians are negative; give standard deviations, not their logarithms")
    count = values["harmonics"].shape[-2]
    if count not in COEFFICIENTS:
        raise UserError(f"the Gaussians have {count} harmonics each; files take 1, 4, 9 or 16")
    values["quats"] = unit_quaternions(values["quats"])
    if "turns" in values:
        values["turns"] = unit_quaternions(values["turns"])
    values["opacities"] = values["opacities"].clamp(0, 1)
    return Gaussians(**values)


def finite(gaussians: Gaussians, path: Path) -> Gaussians:
    """Leave out a file's Gaussians with values that are not finite, with their number on stderr.

    UserError if none are left, or if a file that should hold standard deviations holds negative ones.
    """
    good = gaussians.opacities.isfinite() & gaussians.harmonics.isfinite().all(-1).all(-1)
    for rows in (gaussians.means, gaussians.quats, gaussians.scales):
        good &= rows.isfinite().all(-1)
    if gaussians.offsets is not None:
        good &= gaussians.offsets.isfinite().all(-1).all(0)
    if gaussians.turns is not None:
        good &= gaussians.turns.isfinite().all(-1).all(0)
    if (gaussians.scales[good] < 0).any():
        raise UserError(f"{path} has negative scales where the format has standard deviations; write it again, as PLY")
    if good.all():
        return gaussians
    summary = f"{int((~good).sum()):,} of {len(good):,} Gaussians are not finite"
    if not good.any():
        raise UserError(f"{path} has no Gaussian left: {summary}; write it again")
    LOGGER.warning(f"{path}: {summary} and left out")
    return take(gaussians, good.nonzero()[:, 0])


def take(gaussians: Gaussians, index: Int[Tensor, "m"]) -> Gaussians:
    """Select unbatched Gaussians by index."""
    names = ("means", "quats", "scales", "opacities", "harmonics")
    fields = {name: getattr(gaussians, name)[index] for name in names}
    offsets = None if gaussians.offsets is None else gaussians.offsets[:, index]
    turns = None if gaussians.turns is None else gaussians.turns[:, index]
    return dataclasses.replace(gaussians, **fields, offsets=offsets, turns=turns)


def thin(gaussians: Gaussians, most: int) -> Gaussians:
    """Subsample unbatched Gaussians evenly in their order; each stands for its neighbours too, and grows with them."""
    count = len(gaussians.means)
    if count <= most:
        return gaussians
    thinned = take(gaussians, torch.linspace(0, count - 1, most).long())
    return dataclasses.replace(thinned, scales=thinned.scales * (count / most) ** 0.5)


def turned(first: Gaussians, quats: Sequence[Float[Tensor, "n 4"]]) -> Float[Tensor, "t n 4"] | None:
    """Turns from the rotations of ``first`` to those of each time; None if they are the same at all."""
    if all(torch.equal(each.nan_to_num(), first.quats.nan_to_num()) for each in quats):
        return None
    own = unit_quaternions(first.quats)
    return torch.stack([quaternion_product(unit_quaternions(each), conjugate(own)) for each in quats])


def rotations(gaussians: Gaussians) -> list[Float[Tensor, "n 4"]]:
    """Rotations at the offset times of Gaussians that turn, each the one of q and −q that is nearer to the last."""
    assert gaussians.turns is not None
    found = [gaussians.quats]
    for each in quaternion_product(gaussians.turns, gaussians.quats):
        found.append(in_half_space(each, found[-1]))
    return found[1:]


def state_at(gaussians: Gaussians, time: float) -> Gaussians:
    """State of unbatched Gaussians at a time in seconds, without offsets and turns.

    Motion is linear between offset times, and constant before the first and after the last.
    """
    batch = map_tensors(gaussians, lambda tensor: tensor[None])
    at = torch.tensor([[time]], device=gaussians.means.device)
    means, quats = means_at(batch, at)[0, 0], quats_at(batch, at)[0, 0]
    return dataclasses.replace(gaussians, means=means, quats=quats, offsets=None, offset_times=None, turns=None)


def flip(gaussians: Gaussians) -> Gaussians:
    """Convert a scene to axes (x, -y, -z): from ours, y down and z forward, to y up and z back, or vice versa.

    Quaternions and harmonics turn with the axes, so that a camera turned with them sees the same image.
    """
    axes = gaussians.means.new_tensor([1, -1, -1])
    signs = gaussians.harmonics.new_tensor(_FLIPS[: gaussians.harmonics.shape[-2]])
    return dataclasses.replace(
        gaussians,
        means=gaussians.means * axes,
        quats=gaussians.quats * gaussians.quats.new_tensor([1, 1, -1, -1]),
        harmonics=gaussians.harmonics * signs[:, None],
        offsets=None if gaussians.offsets is None else gaussians.offsets * axes,
        turns=None if gaussians.turns is None else gaussians.turns * gaussians.turns.new_tensor([1, 1, -1, -1]),
    )
