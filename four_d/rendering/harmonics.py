"""View-dependent colours: real spherical harmonics to degree 3, in 3DGS's order."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from four_d.errors import UserError

COUNTS = (1, 4, 9, 16)
"""Number of coefficients of degree 0, 1, 2 and 3."""


def colours(harmonics: Float[Tensor, "*#b n k 3"], directions: Float[Tensor, "*#b n 3"]) -> Float[Tensor, "*b n 3"]:
    """Evaluate max(0, ½ + Σ basis·coefficient) for directions of any length > 0, from the eye to the Gaussian."""
    count = harmonics.shape[-2]
    if count not in COUNTS:
        raise UserError(f"{count} harmonics per Gaussian; give 1, 4, 9 or 16 (degree 0 to 3)")
    if count == 1:
        flat = (harmonics[..., 0, :] * DEGREE_0 + 0.5).clamp_min(0)
        return flat.expand(*torch.broadcast_shapes(flat.shape, directions.shape))
    bases = basis(torch.nn.functional.normalize(directions, dim=-1), count)
    return ((bases[..., None] * harmonics).sum(-2) + 0.5).clamp_min(0)


def constant(colours: Float[Tensor, "*b n 3"]) -> Float[Tensor, "*b n 1 3"]:
    """Harmonics of degree 0 that give these colours from everywhere."""
    return ((colours - 0.5) / DEGREE_0)[..., None, :]


def basis(unit: Float[Tensor, "*b 3"], count: int) -> Float[Tensor, "*b k"]:
    """Evaluate the first ``count`` real spherical harmonics at unit directions, by degree, order −l to l."""
    x, y, z = unit.unbind(-1)
    terms = [torch.full_like(x, DEGREE_0)]
    if count > 1:
        terms += [-_DEGREE_1 * y, _DEGREE_1 * z, -_DEGREE_1 * x]
    if count > 4:
        terms += _degree_2(x, y, z)
    if count > 9:
        terms += _degree_3(x, y, z)
    return torch.stack(terms, dim=-1)


DEGREE_0 = 0.28209479177387814
"""Constant basis function."""
_DEGREE_1 = 0.4886025119029199


def _degree_2(x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
    c = 1.0925484305920792
    return [
        c * x * y,
        -c * y * z,
        0.31539156525252005 * (3 * z * z - 1),
        -c * x * z,
        0.5462742152960396 * (x * x - y * y),
    ]


def _degree_3(x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
    a, b, c = 0.5900435899266435, 2.890611442640554, 0.4570457994644658
    xx, yy, zz = x * x, y * y, z * z
    return [
        -a * y * (3 * xx - yy),
        b * x * y * z,
        -c * y * (5 * zz - 1),
        0.3731763325901154 * z * (5 * zz - 3),
        -c * x * (5 * zz - 1),
        b / 2 * z * (xx - yy),
        -a * x * (xx - 3 * yy),
    ]
