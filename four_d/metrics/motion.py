"""Metrics of dense motion: moving pixels, and errors of predicted displacements.

Axes: q query times, f frames, h w pixels. Lengths are in the unit of the arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d import geometry
from four_d.metrics import tracks
from four_d.metrics.comparison import source_unit
from four_d.types import LIKELY, Cameras, Clip, map_tensors, same_time

Motion = Float[Tensor, "q f h w 3"]
Mask = Bool[Tensor, "q f h w"]
Points = Float[Tensor, "f h w 3"]
Pixels = Bool[Tensor, "f h w"]

MIN_EXTENT = 1e-12
"""Extent below which there is no scale."""


def own_time(query_times: Float[Tensor, "*b q"], times: Float[Tensor, "*b f"]) -> Bool[Tensor, "*b q f"]:
    """True where a query time is the frame's own, so that the motion is 0 by definition."""
    return same_time(query_times[..., :, None], times[..., None, :])


def dynamic(targets: Clip) -> Bool[Tensor, "f h w"]:
    """Mask of pixels of an unbatched clip whose surface point moves by more than `tracks.WORLD_DYNAMIC` in all.

    Length is measured along the path through the query times in their order. The clip must have motion.
    """
    assert targets.motion is not None
    assert targets.motion_valid is not None
    assert targets.query_times is not None
    order = targets.query_times.argsort()
    paths = targets.motion[order].movedim(0, -2) * source_unit(targets)
    return tracks.moving(paths, targets.motion_valid[order].movedim(0, -1))


def counted(targets: Clip) -> Mask:
    """Mask of an unbatched clip's motion that is valid and not 0 by definition."""
    assert targets.motion_valid is not None
    assert targets.query_times is not None
    return targets.motion_valid & ~own_time(targets.query_times, targets.times)[..., None, None]


class MotionScores:
    """All motion metrics of an unbatched clip, over batches of its query times in their order; keeps sums only.

    Errors are in source units, after one scale: the ratio of the medians of the points' distances from the first
    camera. Pairs in which the query time is the frame's own are left out. None where no pixel counts.
    """

    def __init__(self, points: Points | None, targets: Clip) -> None:
        """Start on a clip with true motion.

        ``points`` are the prediction's; None if it has none: then positions and scale are not scored, and its motion is
        not scaled.
        """
        self._targets, self._points = targets, points
        self._unit = source_unit(targets)
        self._counted, self._dynamic = counted(targets), dynamic(targets)
        self._true_points, self._known = true_points(targets)
        self._scale = None if points is None else scale_between(points, self._true_points, self._known)
        self._sums = {name: _Sums() for name in ("motion_{}_dynamic", "motion_{}_all", "track_{}_dynamic")}
        self._right = {name: _Sums() for name in ("all", "seen", "unseen")}
        self._queries, self._visible = 0, False

    def add(self, moved: Float[Tensor, "q f h w 3"], visible: Float[Tensor, "q f h w"] | None) -> None:
        """Add the motion to the next query times, and the probability of visibility then."""
        assert self._targets.motion is not None
        rows = slice(self._queries, self._queries + len(moved))
        self._queries = rows.stop
        counted = self._counted[rows]
        moving = counted & self._dynamic
        error = moved * (1.0 if self._scale is None else self._scale) - self._targets.motion[rows]
        lengths = error.norm(dim=-1) * self._unit
        self._sums["motion_{}_dynamic"].add(lengths[moving])
        self._sums["motion_{}_all"].add(lengths[counted])
        if self._points is not None and self._scale is not None:
            offset = self._points * self._scale - self._true_points
            self._sums["track_{}_dynamic"].add((error + offset).norm(dim=-1)[moving & self._known] * self._unit)
        if visible is not None and self._targets.motion_visible is not None:
            self._visible = True
            truth = self._targets.motion_visible[rows]
            right = ((visible > LIKELY) == truth).float()
            for name, mask in (("all", counted), ("seen", counted & truth), ("unseen", counted & ~truth)):
                self._right[name].add(right[mask])

    def result(self) -> dict[str, float | None]:
        """Scores of the added query times, which must be all of the clip's."""
        assert self._queries == len(self._counted)
        scores: dict[str, float | None] = {}
        for name in ("motion_{}_dynamic", "motion_{}_all"):
            scores |= self._sums[name].scores(name)
        scores["motion_dynamic_fraction"] = _fraction(self._dynamic[self._counted.any(0)])
        if self._points is not None:
            scores["motion_scale_error"] = None if self._scale is None else abs(math.log(self._scale))
            scores |= self._sums["track_{}_dynamic"].scores("track_{}_dynamic")
        if self._visible:
            seen, unseen = self._right["seen"].mean, self._right["unseen"].mean
            balanced = None if seen is None or unseen is None else (seen + unseen) / 2
            scores |= {"motion_visible_accuracy": self._right["all"].mean, "motion_visible_balanced": balanced}
        return scores


@dataclass
class _Sums:
    """Running sums of errors."""

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


def _fraction(flags: Bool[Tensor, "n"]) -> float | None:
    return float(flags.float().mean()) if flags.numel() else None


def true_points(targets: Clip) -> tuple[Points, Pixels]:
    """Surface point of each pixel, in the first camera's coordinates, and its validity."""
    frames, _, height, width = targets.images.shape
    cameras, depth = targets.cameras, targets.depth
    if depth is None or cameras is None:
        return torch.zeros(frames, height, width, 3), torch.zeros(frames, height, width, dtype=torch.bool)
    valid = depth > 0 if targets.valid is None else targets.valid & (depth > 0)
    if cameras.known is not None:
        valid = valid & cameras.known[:, None, None]
    plain = Cameras(world_from_camera=cameras.world_from_camera, intrinsics=cameras.intrinsics)
    return geometry.unproject(depth, map_tensors(plain, lambda t: t.to(depth))), valid


def scale_between(points: Points, truth: Points, known: Pixels) -> float | None:
    """Scale from the prediction to the truth; None where either has no extent."""
    if not bool(known.any()):
        return None
    predicted_extent, true_extent = (
        float(points[known].norm(dim=-1).median()),
        float(truth[known].norm(dim=-1).median()),
    )
    return true_extent / predicted_extent if min(predicted_extent, true_extent) > MIN_EXTENT else None
