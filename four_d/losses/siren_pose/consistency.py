"""Consistency of trajectories: position, depth, pixels, velocity, acceleration and lengths of bones.

SirenPose (arXiv 2512.20531) names these parts; the formulas are ours, for the paper publishes none.

Every function returns one value per clip, the weighted mean of its errors: an exact 0 with a gradient path where every
weight is 0, and a point of weight 0 gets exactly the gradient 0, whatever its position, even NaN. Axes: b clips,
n points, t times, ascending where the weight is positive; positions and times are in units of the caller's choice.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from four_d.constants import vector
from four_d.geometry import NEAREST, invert_pose, transform
from four_d.keypoints import NEIGHBOURS, nearest_pairs
from four_d.kinematics import at_ends, bone_lengths, derivative
from four_d.losses.gaussian import in_space
from four_d.types import Cameras

Points = Float[Tensor, "b n t 3"]
Weights = Float[Tensor, "b n t"]
Times = Float[Tensor, "b t"]
Edges = Int[Tensor, "b e 2"]

SOFT = 1e-3
"""Distance at which `charbonnier` turns from a square into a distance."""
BEFORE = 0.1
"""Depth, as a fraction of a point's distance from the camera, from which on it counts as before it: 6° from its plane,
where no image reaches."""
LEAST_DISTANCE = 0.01
"""Least distance from a camera as a fraction of the mean one of a clip: a point at its centre would have none."""
LEAST_LENGTH = 1e-6
"""Length below which the logarithm of a bone's length is constant."""


def charbonnier(vectors: Float[Tensor, "*b c"]) -> Float[Tensor, "*b"]:
    """Norm over the last axis, smooth at 0: √(‖x‖² + `SOFT`²) − `SOFT`."""
    return (vectors.square().sum(-1) + SOFT**2).sqrt() - SOFT


def weighted_mean(values: Float[Tensor, "b *c"], weights: Float[Tensor, "b *c"]) -> Float[Tensor, "b"]:
    """Weighted mean of each clip's values; 0 where all weights are, with a gradient path. Weights get no gradient."""
    weights = weights.detach().flatten(1)
    total = torch.where(weights > 0, values.flatten(1) * weights, 0).sum(-1)
    return total / torch.where(weights.sum(-1) > 0, weights.sum(-1), 1)


def known(points: Points, weights: Weights) -> Points:
    """Replace points of weight 0 by the origin, so that nothing of theirs reaches a value or a gradient."""
    return torch.where(weights[..., None] > 0, points, 0)


def position(points: Points, reference: Points, weights: Weights) -> Float[Tensor, "b"]:
    """Mean Charbonnier distance ρ(‖x − x*‖), in the unit of the points."""
    return weighted_mean(charbonnier(known(points, weights) - known(reference, weights)), weights)


def depth(
    values: Float[Tensor, "b n f"], reference: Float[Tensor, "b n f"], weights: Float[Tensor, "b n f"], *, free: bool
) -> Float[Tensor, "b"]:
    """Mean |log z − log z* − s| of z-depths in each frame's camera.

    s is 0; with ``free`` the weighted median of log z − log z* over the clip, without gradient: depth up to a scale.
    """
    one, other = (in_space(torch.where(weights > 0, each, 1), "log") for each in (values, reference))
    ratio = one - other
    if free:
        ratio = ratio - weighted_median(ratio.detach().flatten(1), weights.flatten(1))[:, None, None]
    return weighted_mean(ratio.abs(), weights)


def reprojection(
    points: Points,
    cameras: Cameras,
    pixels: Float[Tensor, "b n f 2"],
    sides: Float[Tensor, "b n f"],
    weights: Weights,
) -> Float[Tensor, "b"]:
    """Mean ρ(‖π(x) − u*‖ / a) of the pixels π(x) of world points in the frame's camera from the true ones u*.

    ``sides`` are the lengths a in pixels. A point behind the camera, or within 6° of its plane, has its pixel as if it
    were at the depth z₀ of a point at 6° (`BEFORE` of its distance, without gradient), and 1 − z / z₀ is a third
    component of the error: all is finite, continuous, and draws it before the camera.
    """
    used = (weights > 0).mT[..., None]  # b f n 1
    local = transform(invert_pose(cameras.world_from_camera.to(points)), known(points, weights).transpose(1, 2))
    local = torch.where(used, local, vector([0.0, 0.0, 1.0], local))
    distance = local.detach().norm(dim=-1)
    mean = weighted_mean(distance.mT, weights)[:, None, None]
    least = BEFORE * distance.maximum(LEAST_DISTANCE * mean).clamp_min(NEAREST)
    z = local[..., 2]
    before = z >= least
    lenses = cameras.intrinsics.to(points)[:, :, None]
    flat = local[..., :2] / torch.where(before, z, least)[..., None]
    found = flat * lenses[..., [0, 1], [0, 1]] + lenses[..., :2, 2]
    away = (found - torch.where(used, pixels.transpose(1, 2), 0)) / sides.mT[..., None]
    behind = torch.where(before, 0, 1 - z / least)
    return weighted_mean(charbonnier(torch.cat([away, behind[..., None]], dim=-1)).mT, weights)


def weighted_median(values: Float[Tensor, "b n"], weights: Float[Tensor, "b n"]) -> Float[Tensor, "b"]:
    """Lower weighted median: the least value below or at which half of the weight lies; any value without weight."""
    if not values.shape[1]:
        return values.sum(1)
    ordered, order = values.sort(-1)
    reached = weights.gather(1, order).cumsum(-1)
    index = (reached >= reached[:, -1:] / 2).int().argmax(-1, keepdim=True)
    return ordered.gather(1, index)[:, 0]


def advancing(times: Times) -> Times:
    """Put each time that does not come after the one before it 1 later, and those that follow as much.

    No difference quotient then divides by 0; times that ascend stay as they are.
    """
    gaps = times.diff()
    return times + functional.pad(torch.where(gaps > 0, 0, 1 - gaps).cumsum(-1), (1, 0))


def velocities(
    points: Points, times: Times, weights: Weights
) -> tuple[Float[Tensor, "b n s 3"], Float[Tensor, "b n s"]]:
    """D¹, the difference quotient of neighbouring times (s = t − 1 of them), and its weights: 0 unless time advances.

    It is the velocity at the middle of the interval up to second order.
    """
    pairs = weights[..., 1:] * weights[..., :-1] * (times.diff() > 0)[:, None]
    return derivative(known(points, weights), advancing(times)[:, None], 1), pairs


def accelerations(
    points: Points, times: Times, weights: Weights
) -> tuple[Float[Tensor, "b n s 3"], Float[Tensor, "b n s"]]:
    """D², the second difference quotient at inner times (s = t − 2 of them), and its weights; exact for parabolas.

    D²xₛ = (D¹xₛ₊½ − D¹xₛ₋½) / ((hₛ₊½ + hₛ₋½) / 2) with intervals h of any lengths.
    """
    advances = (times.diff() > 0)[:, None]
    triples = weights[..., 2:] * weights[..., 1:-1] * weights[..., :-2] * advances[..., 1:] * advances[..., :-1]
    return derivative(known(points, weights), advancing(times)[:, None], 2), triples


def velocity(points: Points, times: Times, weights: Weights, reference: Points) -> Float[Tensor, "b"]:
    """Mean ρ(‖D¹x − D¹x*‖), in the unit of the points by that of the times. Invariant to a translation."""
    ours, pairs = velocities(points, times, weights)
    return weighted_mean(charbonnier(ours - velocities(reference, times, weights)[0]), pairs)


def joint_velocity(points: Points, times: Times, weights: Weights, edges: Edges) -> Float[Tensor, "b"]:
    """Mean ρ(‖D¹x − m‖) with the componentwise median m of the neighbours' velocities: `velocity` without a truth.

    It is 0 for a translation of the whole. A point none of whose neighbours has a velocity does not count.
    """
    ours, pairs = velocities(points, times, weights)
    if not points.shape[1]:
        return weighted_mean(ours, torch.zeros_like(ours))
    near = adjacency(edges, points.shape[1])[..., None] & (pairs > 0)[:, None]  # b n n t: point, neighbour, time
    some = near.any(2)
    # a point without neighbours takes all, for a median of nothing is no number; it has no weight
    beside = torch.where((near | ~some[:, :, None])[..., None], ours[:, None], torch.nan)
    return weighted_mean(charbonnier(ours - beside.nanmedian(2).values), pairs * some)


def acceleration(points: Points, times: Times, weights: Weights, reference: Points | None = None) -> Float[Tensor, "b"]:
    """Mean ‖D²x − D²x*‖², of D²x alone without a reference. Invariant to a translation, and then to a velocity."""
    ours, triples = accelerations(points, times, weights)
    if reference is not None:
        ours = ours - accelerations(reference, times, weights)[0]
    return weighted_mean(ours.square().sum(-1), triples)


def bone_variance(
    points: Points, weights: Weights, edges: Edges, reference: Points | None = None
) -> Float[Tensor, "b"]:
    """Variance over time of the logarithm of each edge's length, averaged over the edges seen at two times or more.

    With a reference, of the logarithm of the ratio to its length, which may then change over time. An edge weighs as
    much as the sum of the products of its ends' weights. Invariant to rigid motion of each time and to the scale of
    all. (0, 0) is padding.
    """
    if not edges.shape[1] or not points.shape[2]:
        return weighted_mean(points, torch.zeros_like(points))
    one, other = at_ends(weights, edges).unbind(2)
    seen = torch.where(real(edges)[..., None], one * other, 0)  # b e t
    lengths = log_lengths(known(points, weights), edges)
    if reference is not None:
        lengths = lengths - log_lengths(known(reference, weights), edges)
    lengths = torch.where(seen > 0, lengths, 0)
    total = seen.sum(-1)
    shares = seen / torch.where(total > 0, total, 1)[..., None]
    spread = lengths - (shares * lengths).sum(-1, keepdim=True)
    return weighted_mean((shares * spread.square()).sum(-1), total * ((seen > 0).sum(-1) > 1))


def log_lengths(points: Points, edges: Edges) -> Float[Tensor, "b e t"]:
    """Logarithm of each edge's length at each time, at least of `LEAST_LENGTH`."""
    return bone_lengths(points.transpose(1, 2), edges[:, None]).clamp_min(LEAST_LENGTH).log().mT


def real(edges: Edges) -> Bool[Tensor, "b e"]:
    """Mask of the edges that are no padding."""
    return edges[..., 0] != edges[..., 1]


def adjacency(edges: Edges, count: int) -> Bool[Tensor, "b n n"]:
    """Symmetric mask of the pairs of points that an edge joins."""
    found = torch.zeros(len(edges), count * count + 1, dtype=torch.bool, device=edges.device)
    for one, other in (edges.unbind(-1), edges.flip(-1).unbind(-1)):
        # padding goes to a place of its own
        found = found.scatter(1, torch.where(real(edges), one * count + other, count * count), True)
    return found[:, :-1].unflatten(1, (count, count))


def nearest_edges(points: Points, weights: Weights, neighbours: int = NEIGHBOURS) -> Edges:
    """Edges of each clip by `keypoints.nearest_pairs`, of its entries with weight, padded with (0, 0)."""
    places, there = known(points, weights).detach().transpose(1, 2), (weights > 0).mT
    return torch.stack([nearest_pairs(*each, neighbours) for each in zip(places, there, strict=True)])
