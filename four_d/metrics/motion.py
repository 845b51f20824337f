"""Dense motion against truth: which pixels move, and how far off predicted displacements are.

Axes: q query times, f frames, h w pixels. Lengths are in the unit of the arrays.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from four_d.metrics.tracks import WORLD_DYNAMIC
from four_d.types import Clip, same_time

Motion = Float[Tensor, "q f h w 3"]
Mask = Bool[Tensor, "q f h w"]


def own_time(query_times: Float[Tensor, "*b q"], times: Float[Tensor, "*b f"]) -> Bool[Tensor, "*b q f"]:
    """Whether a query time is the frame's own, so that the motion is 0 by definition."""
    return same_time(query_times[..., :, None], times[..., None, :])


def path_length(motion: Motion, valid: Mask, query_times: Float[Tensor, "q"]) -> Float[Tensor, "f h w"]:
    """Length of each pixel's path through the query times in their order; a step counts where both ends are valid."""
    order = query_times.argsort()
    path, known = motion[order], valid[order]
    steps = (path[1:] - path[:-1]).norm(dim=-1)
    return (steps * (known[1:] & known[:-1])).sum(0)


def dynamic(targets: Clip) -> Bool[Tensor, "f h w"]:
    """Pixels of an unbatched clip, with motion, whose surface point moves by more than `WORLD_DYNAMIC` in all."""
    assert targets.motion is not None
    assert targets.motion_valid is not None
    assert targets.query_times is not None
    unit = 1.0 if targets.scale is None else float(targets.scale)
    return path_length(targets.motion, targets.motion_valid, targets.query_times) * unit > WORLD_DYNAMIC


def counted(targets: Clip) -> Mask:
    """Where an unbatched clip's motion is known and not 0 by definition."""
    assert targets.motion_valid is not None
    assert targets.query_times is not None
    return targets.motion_valid & ~own_time(targets.query_times, targets.times)[..., None, None]
