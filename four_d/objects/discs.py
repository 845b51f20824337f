"""Triangles as flat Gaussians bound to them, so many and so wide that a closed surface lets no light through.

Six a triangle, as SuGaR (Guédon and Lepetit 2024) and DreamMesh4D; large triangles are split evenly first, since a disc
has one colour. The sizes are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import roma
import torch
from jaxtyping import Float, Int
from torch import Tensor

EACH = 6
"""Discs of a triangle, or of each part of a split one."""
WIDTH = 2.0
"""Standard deviations of a disc over those of its share of the triangle: neighbours overlap."""
OPACITY = 0.95
"""Opacity of a disc, with room to train. A plane of equilateral triangles then has an alpha of 0.94 and more."""
SCATTERED = 1.25
"""Further width of discs that are spread over the surface, and so less evenly."""
FLATTEST, THINNEST = 0.05, 0.1
"""Least ratio of a disc's second axis to its first, and of its thickness to its second: neither vanishes."""
MOST_PARTS = 256
"""Parts along an edge of a split triangle."""
_EVEN = 1 / (6 * 3**0.5)
"""Variance along an axis of an equilateral triangle of area 1."""


@dataclass(frozen=True, kw_only=True)
class Discs:
    """n flat Gaussians on triangles."""

    faces: Int[Tensor, "n"]
    weights: Float[Tensor, "n 3"]
    """Shares of the triangle's corners in a disc's centre."""
    means: Float[Tensor, "n 3"]
    quats: Float[Tensor, "n 4"]
    """Rotations whose third axis is the triangle's normal."""
    scales: Float[Tensor, "n 3"]


def cover(corners: Float[Tensor, "m 3 3"], number: int) -> tuple[Discs, bool]:
    """Cover triangles, whose areas are above 0, by about ``number`` discs, never more; True if each has its six.

    If six a triangle are too many, ``number`` points are spread over the surface evenly by area.
    """
    if EACH * len(corners) > number:
        return _spread(corners, number), False
    return _split(corners, _parts(corners, number)), True


def _parts(corners: Float[Tensor, "m 3 3"], number: int) -> Int[Tensor, "m"]:
    """Parts along the edges of each triangle, so that the longest edges of all parts are about equal."""
    longest = (corners - corners.roll(1, dims=1)).norm(dim=-1).amax(-1)

    def parts(length: float) -> Tensor:
        return (longest / length).ceil().clamp(1, MOST_PARTS).long()

    low, high = float(longest.max()) / MOST_PARTS, float(longest.max())
    for _ in range(40):  # the shortest length that needs no more than the number
        middle = (low * high) ** 0.5
        low, high = (low, middle) if EACH * int(parts(middle).square().sum()) <= number else (middle, high)
    return parts(high)


def _split(corners: Float[Tensor, "m 3 3"], parts: Int[Tensor, "m"]) -> Discs:
    # the moments of a triangle: its corners about its middle, over 12
    directions, spreads, _ = torch.linalg.svd((corners - corners.mean(1, keepdim=True)).mT)
    own = WIDTH * (spreads[:, :2] / (12 * EACH) ** 0.5) / parts[:, None]
    order = parts.argsort(stable=True)
    groups = zip(*(each.tolist() for each in parts[order].unique_consecutive(return_counts=True)), strict=True)
    weights = torch.cat([_places(count).repeat(several, 1) for count, several in groups]).to(corners)
    faces = order.repeat_interleave(EACH * parts[order].square())
    return Discs(
        faces=faces,
        weights=weights,
        means=(weights[..., None] * corners[faces]).sum(1),
        quats=_quaternions(directions)[faces],
        scales=_flat(own)[faces],
    )


def _places(parts: int) -> Float[Tensor, "p 3"]:
    """Shares of the corners in the discs' centres of a triangle split into parts² alike."""
    row, column = torch.meshgrid(torch.arange(parts), torch.arange(parts), indexing="ij")
    upright, hanging = row + column < parts, row + column < parts - 1
    unit = torch.eye(3, dtype=torch.float64)
    shapes = torch.stack([unit, 1 - unit])  # corners of a part, from its own place
    found: list[Tensor] = []
    for inside, shape in zip((upright, hanging), shapes, strict=True):
        start = torch.stack([row[inside], column[inside]], dim=-1).double()
        rest = parts - shape.sum(-1)[0] - start.sum(-1, keepdim=True)
        start = torch.cat([start, rest], dim=-1)
        found.append((start[:, None] + shape) / parts)
    return (_SIX @ torch.cat(found)).flatten(0, 1)


_SIX = torch.tensor(
    [
        *([3 / 4, 1 / 8, 1 / 8], [1 / 8, 3 / 4, 1 / 8], [1 / 8, 1 / 8, 3 / 4]),
        *([1 / 7, 3 / 7, 3 / 7], [3 / 7, 1 / 7, 3 / 7], [3 / 7, 3 / 7, 1 / 7]),
    ],
    dtype=torch.float64,
)
"""Shares of the corners in the six centres, about those that let least light through a plane of such triangles."""


def _spread(corners: Float[Tensor, "m 3 3"], number: int) -> Discs:
    across = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    order = _along(corners.mean(1))
    total = (across.norm(dim=-1)[order] / 2).cumsum(0)
    generator = torch.Generator().manual_seed(0)  # the same file gives the same object
    u, v = torch.rand(2, number, generator=generator, dtype=torch.float64).to(corners)
    steps = (torch.arange(number).to(corners) + 0.5) * (total[-1] / number)
    faces = order[torch.searchsorted(total, steps).clamp_max(len(corners) - 1)]
    root = u.sqrt()
    weights = torch.stack([1 - root, root * (1 - v), root * v], dim=-1)
    first = torch.nn.functional.normalize(corners[:, 1] - corners[:, 0], dim=-1)
    normal = torch.nn.functional.normalize(across, dim=-1)
    directions = torch.stack([first, torch.linalg.cross(normal, first), normal], dim=-1)
    size = SCATTERED * WIDTH * (_EVEN * total[-1] / number).sqrt()
    return Discs(
        faces=faces,
        weights=weights,
        means=(weights[..., None] * corners[faces]).sum(1),
        quats=_quaternions(directions)[faces],
        scales=_flat(size.expand(1, 2)).expand(number, 3),
    )


def _along(points: Float[Tensor, "m 3"]) -> Int[Tensor, "m"]:
    """Order along a curve that fills space (Morton's), so that what is evenly spaced along it is so in space."""
    low, high = points.amin(0), points.amax(0)
    cells = ((points - low) / (high - low).max().clamp_min(1e-12) * 1023).long()
    code = torch.zeros(len(points), dtype=torch.long)
    for bit in range(10):
        for axis in range(3):
            code |= ((cells[:, axis] >> bit) & 1) << (3 * bit + axis)
    return code.argsort(stable=True)


def _flat(axes: Float[Tensor, "m 2"]) -> Float[Tensor, "m 3"]:
    """Scales of discs from the standard deviations in their plane, the larger first."""
    first, second = axes.unbind(-1)
    second = torch.maximum(second, FLATTEST * first)
    return torch.stack([first, second, THINNEST * second], dim=-1)


def _quaternions(axes: Float[Tensor, "m 3 3"]) -> Float[Tensor, "m 4"]:
    """Rotations to axes in columns, of which the last is turned round where they are left-handed."""
    proper = torch.cat([axes[..., :2], axes[..., 2:] * torch.linalg.det(axes).sign()[:, None, None]], dim=-1)
    return roma.quat_xyzw_to_wxyz(roma.rotmat_to_unitquat(proper))
