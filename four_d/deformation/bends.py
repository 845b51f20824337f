"""Random bends of an object at rest: parts that hang together along its surface turn about where they join the rest.

No skeleton is known of an object's file. A part is what lies within some distance of one of its points, counted along
the surface and not through the air, so that a limb is one and the limb beside it is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from four_d.deformation.nodes import ROWS, farthest_points
from four_d.geometry import quaternion_product, rotate

NEIGHBOURS = 8
"""Points to which each one is joined."""
CENTRES = 48
"""Points that parts are about, evenly spread over the object, its ends among them."""
AT_ONCE = 1 << 22
"""Steps between neighbours that are considered at once."""
RAMP = 0.25
"""Share of a part's reach, at its border, over which the turn falls to nothing."""


@dataclass(frozen=True, kw_only=True)
class Bends:
    """Distances along an object's surface, by which `bend` finds parts."""

    distances: Float[Tensor, "c n"]
    """From each of c centres to each of n points; infinite beyond the longest reach."""

    @staticmethod
    @torch.no_grad()
    def of(points: Float[Tensor, "n 3"], longest: float) -> Bends:
        """Measure distances up to ``longest``."""
        return Bends(distances=along_surface(points, farthest_points(points, CENTRES), longest))

    def bend(
        self,
        means: Float[Tensor, "n 3"],
        quats: Float[Tensor, "n 4"],
        centre: int,
        reach: float,
        turn: Float[Tensor, "3"],
    ) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 4"]]:
        """Turn the part within ``reach`` of a centre by a rotation vector, about the middle of its border.

        Points in the outer `RAMP` of the part turn by less. A part without a border, as the whole object is, stays.
        """
        rising = ((reach - self.distances[centre]) / (RAMP * reach)).clamp(0, 1)
        share = rising.square() * (3 - 2 * rising)
        border = (share > 0) & (share < 1)
        angle = turn.norm()
        if not bool(border.any()) or not angle > 0:
            return means, quats
        joint = means[border].mean(0)
        inside = share.nonzero()[:, 0]
        half = share[inside] * angle / 2
        own = torch.cat([half.cos()[:, None], half.sin()[:, None] * (turn / angle)], dim=-1)
        bent = joint + rotate(own, means[inside] - joint)
        return means.index_copy(0, inside, bent), quats.index_copy(0, inside, quaternion_product(own, quats[inside]))


def along_surface(points: Float[Tensor, "n 3"], sources: Int[Tensor, "c"], longest: float) -> Float[Tensor, "c n"]:
    """Distances from some of the points to all, over steps between near neighbours; infinite beyond ``longest``."""
    count = min(NEIGHBOURS + 1, len(points))
    nearest = [torch.cdist(part, points).topk(count, largest=False) for part in points.split(ROWS // 8)]
    lengths, ends = (torch.cat([each[k][:, 1:] for each in nearest]).flatten() for k in (0, 1))
    starts = torch.arange(len(points)).repeat_interleave(count - 1)
    lengths, starts, ends = lengths.repeat(2), torch.cat([starts, ends]), torch.cat([ends, starts])
    found: list[Tensor] = []
    for some in sources.split(max(AT_ONCE // max(len(starts), 1), 1)):
        distances = points.new_full((len(some), len(points)), torch.inf)
        distances[torch.arange(len(some)), some] = 0
        done = False
        while not done:
            further = distances[:, starts] + lengths
            further[further > longest] = torch.inf
            shorter = distances.scatter_reduce(1, ends.expand_as(further), further, "amin")
            done, distances = torch.equal(shorter, distances), shorter
        found.append(distances)
    return torch.cat(found)
