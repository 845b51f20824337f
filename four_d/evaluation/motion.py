"""The scores of dense motion of one video, under one scale for the whole of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
    found = MotionScores(points, targets)
    found.add(prediction.motion, prediction.motion_visible)
    return found.result()


class MotionScores:
    """`motion_scores`, told of some query times after the other, in their order: keeps sums only."""

    def __init__(self, points: Points | None, targets: Clip) -> None:
        self._targets, self._points = targets, points
        self._unit = 1.0 if targets.scale is None else float(targets.scale)
        self._counted, self._dynamic = motion.counted(targets), motion.dynamic(targets)
        self._true_points, self._known = true_points(targets)
        self._scale = None if points is None else scale_between(points, self._true_points, self._known)
        self._sums = {name: _Sums() for name in ("motion_{}_dynamic", "motion_{}_all", "track_{}_dynamic")}
        self._right = {name: _Sums() for name in ("all", "seen", "unseen")}
        self._queries, self._visible = 0, False

    def add(self, moved: Float[Tensor, "q f h w 3"], visible: Float[Tensor, "q f h w"] | None) -> None:
        """The motion to the next query times, and the probability of being seen then."""
        assert self._targets.motion is not None
        part = slice(self._queries, self._queries + len(moved))
        self._queries = part.stop
        counted = self._counted[part]
        moving = counted & self._dynamic
        error = moved * (1.0 if self._scale is None else self._scale) - self._targets.motion[part]
        lengths = error.norm(dim=-1) * self._unit
        self._sums["motion_{}_dynamic"].add(lengths[moving])
        self._sums["motion_{}_all"].add(lengths[counted])
        if self._points is not None and self._scale is not None:
            offset = self._points * self._scale - self._true_points
            self._sums["track_{}_dynamic"].add((error + offset).norm(dim=-1)[moving & self._known] * self._unit)
        if visible is not None and self._targets.motion_visible is not None:
            self._visible = True
            truth = self._targets.motion_visible[part]
            right = ((visible > SEEN) == truth).float()
            for name, where in (("all", counted), ("seen", counted & truth), ("unseen", counted & ~truth)):
                self._right[name].add(right[where])

    def result(self) -> dict[str, float | None]:
        """Of all that was added, which must be all of the clip's query times."""
        assert self._queries == len(self._counted)
        scores: dict[str, float | None] = dict.fromkeys(METRICS)
        for name in ("motion_{}_dynamic", "motion_{}_all"):
            scores |= self._sums[name].scores(name)
        scores["motion_dynamic_share"] = _share(self._dynamic[self._counted.any(0)])
        if self._points is not None:
            scores |= dict.fromkeys(TRACK_METRICS)
            scores[SCALE_METRIC] = None if self._scale is None else abs(math.log(self._scale))
            scores |= self._sums["track_{}_dynamic"].scores("track_{}_dynamic")
        if self._visible:
            seen, unseen = self._right["seen"].mean, self._right["unseen"].mean
            balanced = None if seen is None or unseen is None else (seen + unseen) / 2
            scores |= dict(zip(VISIBLE_METRICS, (self._right["all"].mean, balanced), strict=True))
        return scores


@dataclass
class _Sums:
    """Of errors, one by one."""

    count: int = 0
    total: float = 0.0
    within: float = 0.0

    def add(self, errors: Float[Tensor, "n"]) -> None:
        if errors.numel():
            self.count += errors.numel()
            self.total += float(errors.double().sum())
            self.within += float(tracks.apd(errors, torch.ones_like(errors, dtype=torch.bool))) * errors.numel()

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    def scores(self, name: str) -> dict[str, float | None]:
        apd = self.within / self.count if self.count else None
        return {name.format("epe"): self.mean, name.format("apd"): apd}


def _share(flags: Bool[Tensor, "n"]) -> float | None:
    return float(flags.float().mean()) if flags.numel() else None


def true_points(targets: Clip) -> tuple[Points, Mask]:
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


def scale_between(points: Points, truth: Points, known: Mask) -> float | None:
    """Of the prediction to the truth; None where either has no extent."""
    if not bool(known.any()):
        return None
    mine, true = float(points[known].norm(dim=-1).median()), float(truth[known].norm(dim=-1).median())
    return true / mine if min(mine, true) > LEAST else None
