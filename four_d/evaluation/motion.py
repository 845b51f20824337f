"""The scores of dense motion of one video, under one scale for the whole of it."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d import geometry
from four_d.metrics import motion, tracks
from four_d.types import Cameras, Clip, Prediction, map_tensors

METRICS = (
    "motion_epe_dynamic",
    "motion_apd_dynamic",
    "motion_epe_all",
    "motion_apd_all",
    "motion_dynamic_share",
)
TRACK_METRICS = ("track_epe_dynamic", "track_apd_dynamic")
VISIBLE_METRICS = ("motion_visible_accuracy", "motion_visible_balanced")
SCALE_METRIC = "motion_scale_error"
SEEN = 0.5
"""Probability above which a point counts as seen."""
LEAST = 1e-12
"""Scales below are none."""

Points = Float[Tensor, "f h w 3"]
Mask = Bool[Tensor, "f h w"]


def motion_scores(prediction: Prediction, points: Points | None, targets: Clip) -> dict[str, float | None]:
    """All motion metrics of an unbatched clip; none at all where the prediction or the truth has no motion.

    ``points`` are the prediction's, None where it says none: then positions and scale are not scored, and its motion is
    taken as it is. Errors are in source units, after one scale: the ratio of the medians of the points' distances from
    the first camera. Pairs in which the query time is the frame's own are left out. None where no pixel counts.
    """
    if prediction.motion is None or targets.motion is None:
        return {}
    unit = 1.0 if targets.scale is None else float(targets.scale)
    counted, dynamic = motion.counted(targets), motion.dynamic(targets)
    moving = counted & dynamic
    scores: dict[str, float | None] = dict.fromkeys(METRICS)
    true_points, known = _true_points(targets)
    scale = None if points is None else _scale(points, true_points, known)
    error = prediction.motion * (1.0 if scale is None else scale) - targets.motion
    lengths = error.norm(dim=-1) * unit
    for part, where in (("dynamic", moving), ("all", counted)):
        scores |= _errors(f"motion_{{}}_{part}", lengths[where])
    pixels = counted.any(0)
    scores["motion_dynamic_share"] = _share(dynamic[pixels])
    if points is not None:
        scores |= dict.fromkeys(TRACK_METRICS)
        scores[SCALE_METRIC] = None if scale is None else abs(math.log(scale))
    if points is not None and scale is not None:
        offset, where = points * scale - true_points, moving & known
        scores |= _errors("track_{}_dynamic", (error + offset).norm(dim=-1)[where] * unit)
    return scores | _visibility(prediction, targets, counted)


def _errors(name: str, errors: Float[Tensor, "n"]) -> dict[str, float | None]:
    some = errors.numel() > 0
    return {
        name.format("epe"): float(errors.mean()) if some else None,
        name.format("apd"): float(tracks.apd(errors, torch.ones_like(errors, dtype=torch.bool))) if some else None,
    }


def _share(flags: Bool[Tensor, "n"]) -> float | None:
    return float(flags.float().mean()) if flags.numel() else None


def _true_points(targets: Clip) -> tuple[Points, Mask]:
    """What each pixel shows, in the first camera's coordinates, and where that is known."""
    frames, _, height, width = targets.images.shape
    cameras, depth = targets.cameras, targets.depth
    if depth is None or cameras is None:
        return torch.zeros(frames, height, width, 3), torch.zeros(frames, height, width, dtype=torch.bool)
    valid = depth > 0 if targets.valid is None else targets.valid & (depth > 0)
    if cameras.known is not None:
        valid = valid & cameras.known[:, None, None]
    plain = Cameras(world_from_camera=cameras.world_from_camera, intrinsics=cameras.intrinsics)
    return geometry.unproject(depth, map_tensors(plain, lambda t: t.to(depth))), valid


def _scale(points: Points, truth: Points, known: Mask) -> float | None:
    """Of the prediction to the truth; None where either has no extent."""
    if not bool(known.any()):
        return None
    mine, true = float(points[known].norm(dim=-1).median()), float(truth[known].norm(dim=-1).median())
    return true / mine if min(mine, true) > LEAST else None


def _visibility(prediction: Prediction, targets: Clip, counted: Bool[Tensor, "q f h w"]) -> dict[str, float | None]:
    """Shares of pixels and query times whose visibility is right: of all; and of the seen and the unseen, averaged."""
    if prediction.motion_visible is None or targets.motion_visible is None:
        return {}
    truth, right = targets.motion_visible, (prediction.motion_visible > SEEN) == targets.motion_visible
    seen, unseen = _of(right, counted & truth), _of(right, counted & ~truth)
    balanced = None if seen is None or unseen is None else (seen + unseen) / 2
    return dict(zip(VISIBLE_METRICS, (_of(right, counted), balanced), strict=True))


def _of(flags: Bool[Tensor, "q f h w"], where: Bool[Tensor, "q f h w"]) -> float | None:
    """Share of the flags that are set, of those at ``where``; None where that is nowhere."""
    count = int(where.sum())
    return int((flags & where).sum()) / count if count else None
