"""Codes that tell points apart: by their place in the clip's first shape, and by name where they have one."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from four_d.layers import Mlp, NameEmbedding
from four_d.losses.siren_pose.consistency import Points, Weights, known

Names = Int[Tensor, "b n letters"]
BUCKETS = 2048
"""Rows of the table of groups of letters."""


class PointCode(nn.Module):
    """Learned code of each point: a function of its canonical position, plus one of its name.

    Names alone would not do: two animals in a clip have a left paw each.
    """

    def __init__(self, width: int, *, named: bool = False) -> None:
        super().__init__()
        self.place = Mlp(3, 4 * width, width)
        self.name = NameEmbedding(BUCKETS, width) if named else None

    def forward(self, points: Points, weights: Weights, names: Names | None = None) -> Float[Tensor, "b n c"]:
        """Compute the codes; a point that is never there has the centre's. Points get no gradient."""
        code = self.place(canonical(points, weights))
        if self.name is None or names is None:
            return code
        return code + self.name(names)


def canonical(points: Points, weights: Weights) -> Float[Tensor, "b n 3"]:
    """Each point's position at its first time with weight, minus their mean, over their root mean square; no gradient.

    0 for a point without weight.
    """
    there = weights > 0
    index = there.int().argmax(-1)[..., None, None].expand(-1, -1, 1, 3)
    first = known(points, weights).detach().gather(2, index)[:, :, 0]
    some = there.any(-1, keepdim=True)
    count = some.sum(1, keepdim=True).clamp_min(1)
    centred = torch.where(some, first - first.sum(1, keepdim=True) / count, 0)
    size = (centred.square().sum((1, 2), keepdim=True) / count).sqrt()
    return centred / torch.where(size > 0, size, 1)
