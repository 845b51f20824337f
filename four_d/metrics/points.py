"""Errors of point maps: distances from predicted points to the nearest true ones, and back.

Point maps correspond pixel by pixel, and alignments use that; *accuracy* (prediction → nearest truth) and
*completeness* (truth → nearest prediction) do not: they compare sets. Distances are Euclidean, in the truth's unit.

Alignments: `align_corresponding` (Sim(3) over all pixels), `align_scale_shift` (medians, as Spann3R and CUT3R), `icp`
(rigid, as Open3D runs it), and for DyCheck the similarity of the cameras (`pose.align_trajectory`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from four_d import geometry
from four_d.metrics import neighbours

Points = Float[Tensor, "n 3"]

MAX_POINTS = 10_000
"""Maximum number of points of each set in held-out evaluation; published protocols take all."""
NEIGHBOURS = 30
"""Points to which a normal is fitted, itself included: Open3D's default."""
ICP_ITERATIONS = 30
ICP_TOLERANCE = 1e-6
"""Change of fitness and of RMSE below which ICP ends."""


@dataclass(frozen=True, kw_only=True)
class PointScores:
    """Means and medians over points; an even count has the mean of the middle two as median."""

    accuracy: float
    """Distance from predicted points to the nearest true one."""
    accuracy_median: float
    completeness: float
    """Distance from true points to the nearest predicted one."""
    completeness_median: float
    normals: tuple[float, float] | None = None
    """NC1 and NC2: mean |n · n'| of the pairs of accuracy and of completeness. 1 is best."""
    normals_median: tuple[float, float] | None = None


def scores(prediction: Float[Tensor, "n 3"], target: Float[Tensor, "m 3"], *, normals: bool = False) -> PointScores:
    """Both distances of two aligned sets, and optionally normal consistency. Neither set may be empty."""
    to_target, nearest_target = neighbours.nearest_points(prediction, target)
    to_prediction, nearest_prediction = neighbours.nearest_points(target, prediction)
    result = PointScores(
        accuracy=float(to_target.mean()),
        accuracy_median=_median(to_target),
        completeness=float(to_prediction.mean()),
        completeness_median=_median(to_prediction),
    )
    if not normals:
        return result
    of_prediction, of_target = estimate_normals(prediction), estimate_normals(target)
    first = (of_prediction * of_target[nearest_target]).sum(-1).abs()
    second = (of_target * of_prediction[nearest_prediction]).sum(-1).abs()
    return replace(
        result,
        normals=(float(first.mean()), float(second.mean())),
        normals_median=(_median(first), _median(second)),
    )


def _median(values: Float[Tensor, "n"]) -> float:
    ordered = values.sort().values
    return float(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def thin(points: Points, count: int = MAX_POINTS) -> Float[Tensor, "k 3"]:
    """Subsample to at most ``count`` points, evenly spaced. Corresponding sets stay corresponding."""
    if len(points) <= count:
        return points
    return points[torch.linspace(0, len(points) - 1, count, dtype=torch.float64).round().long()]


def align_corresponding(prediction: Points, target: Points) -> Points:
    """Align by the similarity with the least squared error over corresponding points (Umeyama)."""
    return geometry.apply_fit(geometry.align_points(prediction, target), prediction)


def align_scale_shift(prediction: Points, target: Points) -> Points:
    """Align the prediction to the target's median z and spread, as published for 7-Scenes and NRGBD.

    Both sets, in the first camera's coordinates, are moved along z so that their median z is 0; the prediction is then
    scaled about the origin by the ratio of spreads (median distance from the medians of x, y, z; the prediction's at
    least 1e-3, at most 1e3), and moved by the target's median z. The median of an even count is the lower middle one.
    """
    depth = torch.tensor([0.0, 0.0, 1.0], dtype=target.dtype, device=target.device)
    middle, target_middle = (points[:, 2].median() * depth for points in (prediction, target))
    scale = _spread(target) / _spread(prediction).clamp(1e-3, 1e3)
    return scale * (prediction - middle) + target_middle


def _spread(points: Points) -> Float[Tensor, ""]:
    return (points - points.median(dim=0).values).norm(dim=-1).median()


def icp(prediction: Float[Tensor, "n 3"], target: Float[Tensor, "m 3"], distance: float) -> Float[Tensor, "4 4"]:
    """Rigid alignment target_from_prediction by iterative closest points, from the identity.

    Point to point; pairs further apart than ``distance`` do not count. Ends after `ICP_ROUNDS` or when neither the
    fraction of pairs nor their RMSE changes by `ICP_TOLERANCE`: as ``registration_icp`` of Open3D ends.
    """
    motion = torch.eye(4, dtype=prediction.dtype, device=prediction.device)
    distances, index = neighbours.nearest_points(prediction, target)
    for _ in range(ICP_ITERATIONS):
        near = distances < distance
        if int(near.sum()) < 3:
            break
        moved = geometry.transform(motion, prediction)
        _, rotation, translation = geometry.align_points(moved[near], target[index[near]], scale=False)
        motion = geometry.make_pose(rotation, translation) @ motion
        before = _fitness(distances, distance)
        distances, index = neighbours.nearest_points(geometry.transform(motion, prediction), target)
        changes = [abs(a - b) for a, b in zip(before, _fitness(distances, distance), strict=True)]
        if max(changes) < ICP_TOLERANCE:
            break
    return motion


def _fitness(distances: Float[Tensor, "n"], distance: float) -> tuple[float, float]:
    """Fraction of pairs within ``distance``, and their RMSE."""
    near = distances[distances < distance]
    rmse = float(near.square().mean().sqrt()) if len(near) else 0.0
    return len(near) / len(distances), rmse


def estimate_normals(points: Points, count: int = NEIGHBOURS) -> Float[Tensor, "n 3"]:
    """Estimate unit normals of arbitrary sign: the least principal axis of the ``count`` nearest (itself included).

    Sets of fewer than 3 points get (0, 0, 1).
    """
    if len(points) < 3:
        return torch.tensor([0.0, 0.0, 1.0], dtype=points.dtype, device=points.device).expand(len(points), 3)
    normals: list[Tensor] = []
    _, index = neighbours.k_nearest(points, points, min(count, len(points)))
    for rows in index.split(1 << 16):
        near = points[rows]
        centred = near - near.mean(dim=1, keepdim=True)
        normals.append(torch.linalg.eigh((centred.mT @ centred).double()).eigenvectors[..., 0])
    return torch.cat(normals).to(points.dtype)
