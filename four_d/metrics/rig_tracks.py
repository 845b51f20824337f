"""Errors of 3D tracks in the world of several cameras, as MVTracker defines them (Rajič et al. 2025).

Facts: ethz-vlg/mvtracker at commit ceea8ad, mvtracker/evaluation/{metrics,evaluator_3dpt}.py. Every score is of one
track; a group's is the mean over its tracks. A point is visible at a time if any camera of the rig sees it then; its
visibility before its query is ignored. Axes: n tracks, t times.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Tracks = Float[Tensor, "n t 3"]
Flags = Bool[Tensor, "n t"]

GROUPS = ("", "_static", "_dynamic", "_very_dynamic", "_balanced")
"""Suffixes of groups of tracks: all, by movement, and the mean of static and dynamic."""


@dataclass(frozen=True, kw_only=True)
class RigThresholds:
    """Distances of one data set, in its unit (metres but for MV-Kubric, whose unit is about 13 cm by its code)."""

    within: tuple[float, ...]
    """Distances below which a position is right."""
    survival: float
    """Distance above which a track is lost."""
    static: float | None = None
    """Movement below which a track is static; None: the set has no such group."""
    dynamic: float | None = None
    """Movement above which a track is dynamic."""
    very_dynamic: float | None = None


@dataclass(frozen=True, kw_only=True)
class RigScores:
    """Scores of each track, over times after its query except where the query's own is named."""

    jaccard: Float[Tensor, "n"]
    """AJ: mean over the distances of true positives / (truly visible + false positives)."""
    within: Float[Tensor, "n"]
    """APD: mean over the distances of the fraction of truly visible times at which the position is nearer."""
    occlusion: Float[Tensor, "n"]
    """OA: fraction of times with the right visibility."""
    median: Float[Tensor, "n"]
    """MTE: median distance over visible times, the query's among them; of an even count the lower one."""
    mean: Float[Tensor, "n"]
    """ATE: mean distance over the same."""
    final: Float[Tensor, "n"]
    """FDE: distance at the last visible time."""
    survival: Float[Tensor, "n"]
    """Fraction of the times from the query on before the first visible one that is too far away."""


def from_query(visible: Flags, queries: Int[Tensor, "n"]) -> Flags:
    """Visibility from each track's query on."""
    return visible & (torch.arange(visible.shape[1], device=visible.device) >= queries[:, None])


def counted(visible: Flags, queries: Int[Tensor, "n"]) -> Bool[Tensor, "n"]:
    """Mask of the tracks that are scored: seen at their query or later, and at another time after it."""
    return from_query(visible, queries).sum(-1) >= 2


def movement(truth: Tracks, visible: Flags) -> Float[Tensor, "n"]:
    """Length of each track's path from one visible position to the next visible one."""
    lengths = truth.new_zeros(len(truth))
    for track, (points, seen) in enumerate(zip(truth, visible, strict=True)):
        steps = points[seen]
        lengths[track] = (steps[1:] - steps[:-1]).norm(dim=-1).sum()
    return lengths


def rig_scores(
    predicted: Tracks,
    predicted_visible: Flags,
    truth: Tracks,
    visible: Flags,
    queries: Int[Tensor, "n"],
    thresholds: RigThresholds,
) -> RigScores:
    """Compute the scores of tracks that are `counted`.

    Args:
        predicted: positions in the set's world and unit, aligned if at all.
        predicted_visible: visible in the prediction.
        truth: true positions; any value where not ``visible``.
        visible: seen by any camera of the rig.
        queries: time of each track's query, at which it is visible.
        thresholds: distances of the set.

    """
    seen = from_query(visible, queries)
    times = torch.arange(truth.shape[1], device=truth.device)
    after = times > queries[:, None]
    errors = (predicted.double() - truth.double()).norm(dim=-1)
    near = torch.stack([errors < distance for distance in thresholds.within])
    right, false = near & seen & after, predicted_visible & ~(near & seen) & after
    positives = (seen & after).sum(-1)
    jaccard = (right & predicted_visible).sum(-1) / (positives + false.sum(-1))
    lost = (errors > thresholds.survival) & seen
    first_lost = torch.where(lost.any(-1), lost.int().argmax(-1), len(times))
    last = torch.where(seen, times, -1).amax(-1)
    hidden = errors.masked_fill(~seen, torch.nan)
    return RigScores(
        jaccard=jaccard.double().mean(0),
        within=(right.sum(-1) / positives).double().mean(0),
        occlusion=((predicted_visible == seen) & after).sum(-1) / after.sum(-1).double(),
        median=hidden.nanmedian(dim=-1).values,
        mean=hidden.nanmean(dim=-1),
        final=errors.gather(1, last[:, None])[:, 0],
        survival=(first_lost - queries) / (len(times) - queries).double(),
    )


def grouped(scores: RigScores, moved: Float[Tensor, "n"], thresholds: RigThresholds) -> dict[str, dict[str, float]]:
    """Means over groups of tracks: suffix of `GROUPS` → score → mean; groups without tracks are left out.

    Args:
        scores: of each track.
        moved: `movement` of each.
        thresholds: those of the set, which say what is static and what dynamic.

    """
    chosen = {"": torch.ones_like(moved, dtype=torch.bool)}
    if thresholds.static is not None:
        chosen["_static"] = moved < thresholds.static
    for suffix, least in (("_dynamic", thresholds.dynamic), ("_very_dynamic", thresholds.very_dynamic)):
        if least is not None:
            chosen[suffix] = moved > least
    names = [each.name for each in fields(scores)]
    means = {
        suffix: {name: float(getattr(scores, name)[where].mean()) for name in names}
        for suffix, where in chosen.items()
        if where.any()
    }
    if "_static" in means and "_dynamic" in means:
        still, moving = means["_static"], means["_dynamic"]
        means["_balanced"] = {name: (still[name] + moving[name]) / 2 for name in names}
    return means
