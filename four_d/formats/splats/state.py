"""What every format of Gaussians needs: sound values, their state at one time, and axes that point up and back."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from four_d.errors import UserError
from four_d.rendering.scene import means_at
from four_d.types import Gaussians, map_tensors

COEFFICIENTS = (1, 4, 9, 16)
"""Spherical harmonics of degree 0, 1, 2 and 3."""
_FLIPS = (1, -1, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1)
"""Sign of each basis function at (x, -y, -z) as against (x, y, z)."""


def sound(gaussians: Gaussians) -> Gaussians:
    """The same Gaussians on the CPU in float32 with unit quaternions, fit to be written.

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
            raise UserError(f"{name} of the Gaussians are not finite; train the model further or take other weights")
    if (values["scales"] < 0).any():
        raise UserError("scales of the Gaussians are negative; give standard deviations, not their logarithms")
    count = values["harmonics"].shape[-2]
    if count not in COEFFICIENTS:
        raise UserError(f"the Gaussians have {count} harmonics each; files take 1, 4, 9 or 16")
    values["quats"] = _unit(values["quats"])
    values["opacities"] = values["opacities"].clamp(0, 1)
    return Gaussians(**values)


def _unit(quats: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
    length = quats.norm(dim=-1, keepdim=True)
    identity = torch.tensor([1.0, 0, 0, 0]).expand_as(quats)
    return torch.where(length > 1e-12, quats / length.clamp_min(1e-12), identity)


def state_at(gaussians: Gaussians, time: float) -> Gaussians:
    """Unbatched Gaussians where they are at a time in seconds, without offsets.

    Between two offset times linear in time; before the first and after the last as there.
    """
    batch = map_tensors(gaussians, lambda tensor: tensor[None])
    means = means_at(batch, torch.tensor([[time]], device=gaussians.means.device))[0, 0]
    return dataclasses.replace(gaussians, means=means, offsets=None, offset_times=None)


def flip(gaussians: Gaussians) -> Gaussians:
    """The same scene in axes (x, -y, -z): from ours, y down and z forward, to y up and z back, or from there to ours.

    Quaternions and harmonics turn with the axes, so that every camera that is turned likewise sees the same.
    """
    axes = gaussians.means.new_tensor([1, -1, -1])
    signs = gaussians.harmonics.new_tensor(_FLIPS[: gaussians.harmonics.shape[-2]])
    return dataclasses.replace(
        gaussians,
        means=gaussians.means * axes,
        quats=gaussians.quats * gaussians.quats.new_tensor([1, 1, -1, -1]),
        harmonics=gaussians.harmonics * signs[:, None],
        offsets=None if gaussians.offsets is None else gaussians.offsets * axes,
    )
