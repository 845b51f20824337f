"""Errors of 3D keypoints over time: position, smoothness, and lengths of bones.

Points are f n 3 of one camera's frames in ascending order of time; ``valid`` marks those with truth, and only they
count. A figure without anything to count is None.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from four_d import geometry, kinematics
from four_d.keypoints import box_sides, inside_image
from four_d.types import Keypoints

Points = Float[Tensor, "f n 3"]
Valid = Bool[Tensor, "f n"]
PCK_RATIO = 0.1
"""Largest error of a correct keypoint, as a fraction of the longer side of its instance's box."""
FEWEST = 3
"""Minimum number of points of a frame for a similarity."""
SHORTEST = 1e-6
"""Length, in the points' unit, below which a bone has no logarithm."""


@dataclass(frozen=True, kw_only=True)
class SkeletonScores:
    """Figures of one video; None where nothing counts. Lengths in the points' unit."""

    mpjpe: float | None
    procrustes_mpjpe: float | None
    pck: float | None
    acceleration_error: float | None
    jerk: float | None
    bone_variance: float | None


def scores(
    predicted: Points,
    pixels: Float[Tensor, "f n 2"] | None,
    truth: Keypoints,
    true_points: Points,
    times: Float[Tensor, "f"],
    camera_ids: Int[Tensor, "f"],
    size: tuple[int, int],
) -> SkeletonScores:
    """Compute all figures of an unbatched video; those over time are means over its cameras' own frames,
    of several at one time the first. Pixels outside the image do not count, nor do those whose instance has no other
    inside it, hence no box.

    Args:
        predicted: predicted positions, in the order of ``truth``.
        pixels: predicted pixels, if there are any.
        truth: names, masks, pixels and bones.
        true_points: true positions in the unit of ``predicted``.
        times: seconds of the frames.
        camera_ids: camera of each frame.
        size: rows and columns of the images.

    """
    edges = truth.edges[truth.rigid & (truth.edges[:, 0] != truth.edges[:, 1])]
    over_time: list[tuple[float | None, float | None, float | None]] = []
    for camera in camera_ids.unique():
        own = (camera_ids == camera).nonzero()[:, 0]
        own = own[times[own].argsort(stable=True)]
        own = own[torch.cat([own[:1] >= 0, times[own].diff() > 0])]  # examples of short clips repeat frames
        mine, theirs, valid, at = predicted[own], true_points[own], truth.valid[own], times[own]
        over_time.append(
            (acceleration_error(mine, theirs, valid, at), jerk(mine, valid, at), bone_variance(mine, valid, edges))
        )
    accelerations, jerks, variances = zip(*over_time, strict=True)
    found = None
    if pixels is not None:
        here = inside_image(truth, size)
        sides = box_sides(truth, here)
        found = pck(pixels, truth.pixels, here & (sides > 0), sides, PCK_RATIO)
    return SkeletonScores(
        mpjpe=mpjpe(predicted, true_points, truth.valid),
        procrustes_mpjpe=procrustes_mpjpe(predicted, true_points, truth.valid),
        pck=found,
        acceleration_error=_average(accelerations),
        jerk=_average(jerks),
        bone_variance=_average(variances),
    )


def _average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def mpjpe(predicted: Points, truth: Points, valid: Valid) -> float | None:
    """Mean distance of predicted from true points, without alignment (Ionescu et al. 2014)."""
    return _mean((predicted - truth).norm(dim=-1), valid)


def procrustes_mpjpe(predicted: Points, truth: Points, valid: Valid) -> float | None:
    """`mpjpe` after each frame's best similarity, over frames of at least `FEWEST` valid points."""
    valid = valid & (valid.sum(-1, keepdim=True) >= FEWEST)
    # points without truth get weight 0 in the fit, but a NaN there would spread
    source, target = (torch.where(valid[..., None], each, 0).double() for each in (predicted, truth))
    fit = geometry.align_points(source, target, valid)
    return mpjpe(geometry.apply_fit(fit, source), target, valid)


def pck(
    predicted: Float[Tensor, "f n 2"],
    truth: Float[Tensor, "f n 2"],
    valid: Valid,
    sizes: Float[Tensor, "f n"],
    ratio: float,
) -> float | None:
    """Fraction of pixel positions nearer to the truth than ``ratio`` · size (Yang and Ramanan 2013).

    ``sizes`` is each point's unit in pixels: the longer side of its instance's box. A prediction that is not finite is
    wrong.
    """
    return _mean(((predicted - truth).norm(dim=-1) < ratio * sizes).double(), valid)


def acceleration_error(predicted: Points, truth: Points, valid: Valid, times: Float[Tensor, "f"]) -> float | None:
    """Mean distance between predicted and true accelerations, per s² (VIBE's and HMMR's, by seconds, not frames)."""
    mine, theirs = (_over_time(each, times, 2) for each in (predicted, truth))
    return _mean((mine - theirs).norm(dim=-1), kinematics.known(valid.mT, 2))


def jerk(points: Points, valid: Valid, times: Float[Tensor, "f"]) -> float | None:
    """Mean length of the third derivative, per s³: roughness, whatever the truth does."""
    return _mean(_over_time(points, times, 3).norm(dim=-1), kinematics.known(valid.mT, 3))


def bone_variance(points: Points, valid: Valid, edges: Int[Tensor, "e 2"]) -> float | None:
    """Mean over bones of the variance over time of the logarithm of their length: 0 for rigid bones of any scale.

    Over the frames in which both ends are valid, of bones with at least two of them.
    """
    both = valid[:, edges[:, 0]] & valid[:, edges[:, 1]]
    logs = kinematics.bone_lengths(points, edges).clamp_min(SHORTEST).log()
    count = both.sum(0)
    mean = torch.where(both, logs, 0).sum(0) / count.clamp_min(1)
    variance = torch.where(both, (logs - mean).square(), 0).sum(0) / count.clamp_min(1)
    return _mean(variance, count >= 2)


def _over_time(points: Points, times: Float[Tensor, "f"], order: int) -> Float[Tensor, "n t 3"]:
    return kinematics.derivative(points.transpose(0, 1), times, order)


def _mean(values: Tensor, counts: Bool[Tensor, "*n"]) -> float | None:
    return float(values[counts].double().mean()) if bool(counts.any()) else None
