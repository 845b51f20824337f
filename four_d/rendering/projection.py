"""Gaussians as ellipses on the image: elliptical weighted averaging (Zwicker et al. 2001), with 3DGS's numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d.rendering.scene import Scene

BLUR = 0.3
"""Variance in pixels² added to both axes of every ellipse."""
NEAR = 0.01
"""z-depth at or below which a Gaussian is culled."""
GUARD_BAND = 0.3
"""Margin beside the image, in half images, within which the Jacobian is taken at a Gaussian's own centre."""
FAINTEST = 1 / 255
"""Alpha below which a Gaussian does not count."""


@dataclass(frozen=True, kw_only=True)
class Splats:
    """n ellipses on each of i images: alpha(x) = opacity · exp(−½ (x − centre)ᵀ conic (x − centre))."""

    centres: Float[Tensor, "i n 2"]
    """(x, y) in pixels, corner origin."""
    conics: Float[Tensor, "i n 3"]
    """The inverse covariance's xx, xy and yy, in pixels⁻²."""
    opacities: Float[Tensor, "i n"]
    depths: Float[Tensor, "i n"]
    """z-depths; 1 where not ``drawn``."""
    reach: Float[Tensor, "i n 2"]
    """Pixels in x and y beyond which alpha is below `FAINTEST`; without gradient."""
    drawn: Bool[Tensor, "i n"]
    """Mask of Gaussians in front of the camera and not too faint."""


def project(scene: Scene, size: tuple[int | Tensor, int | Tensor]) -> Splats:
    """Project to ellipses on images of ``size`` (height, width), each one number or ``i 1``. Reach has no gradient."""
    rotation = scene.camera_from_world[:, :3, :3]
    camera = scene.means @ rotation.mT + scene.camera_from_world[:, None, :3, 3]
    drawn = (camera[..., 2] > NEAR) & (scene.opacities >= FAINTEST)
    x, y = camera[..., 0], camera[..., 1]
    z = torch.where(drawn, camera[..., 2], torch.ones_like(x))
    axes = rotation[:, None] @ _axes(scene.quats, scene.scales)
    fx, fy, cx, cy = (scene.intrinsics[:, r, c, None] for r, c in ((0, 0), (1, 1), (0, 2), (1, 2)))
    row_x = _slope(axes[..., 0, :], axes[..., 2, :], x / z, z, fx, cx, size[1])
    row_y = _slope(axes[..., 1, :], axes[..., 2, :], y / z, z, fy, cy, size[0])
    conics, variances = _conics(row_x, row_y)
    return Splats(
        centres=torch.stack([fx * x / z + cx, fy * y / z + cy], dim=-1),
        conics=conics,
        opacities=scene.opacities,
        depths=z,
        reach=_reach(variances.detach(), scene.opacities.detach()),
        drawn=drawn,
    )


def _axes(quats: Float[Tensor, "i n 4"], scales: Float[Tensor, "i n 3"]) -> Float[Tensor, "i n 3 3"]:
    """Half axes of the ellipsoids in the world, as columns; a quaternion of zeros is the identity."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3)) * scales[..., None, :]


def _slope(
    across: Tensor, along: Tensor, ratio: Tensor, z: Tensor, focal: Tensor, centre: Tensor, pixels: int | Tensor
) -> Float[Tensor, "i n 3"]:
    """Derivative of one pixel coordinate along the three half axes, taken at most `BESIDE` beside the image."""
    margin = GUARD_BAND * 0.5 * pixels / focal
    ratio = torch.minimum(torch.maximum(ratio, -centre / focal - margin), (pixels - centre) / focal + margin)
    return (focal / z)[..., None] * (across - ratio[..., None] * along)


def _conics(row_x: Tensor, row_y: Tensor) -> tuple[Float[Tensor, "i n 3"], Float[Tensor, "i n 2"]]:
    """Inverse covariances of the blurred ellipses and their variances in x and y.

    The determinant is a sum of squares (Cauchy–Binet): positive for needles, where the usual difference is not.
    """
    xx, yy, xy = (row_x * row_x).sum(-1), (row_y * row_y).sum(-1), (row_x * row_y).sum(-1)
    area = torch.linalg.cross(row_x, row_y)
    determinant = (area * area).sum(-1) + BLUR * (xx + yy) + BLUR * BLUR
    conics = torch.stack([yy + BLUR, -xy, xx + BLUR], dim=-1) / determinant[..., None]
    return conics, torch.stack([xx, yy], dim=-1) + BLUR


def _reach(variances: Float[Tensor, "i n 2"], opacities: Float[Tensor, "i n"]) -> Float[Tensor, "i n 2"]:
    return (2 * (opacities / FAINTEST).clamp_min(1).log()[..., None] * variances).sqrt()
