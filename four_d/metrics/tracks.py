"""Errors of 3D point tracks, as published protocols define them.

Axes: n tracks, t times, b any. Names include the protocol, since equal words mean different things:

- **WorldTrack** (St4RTrack; DePT3R, 4RC): world coordinates (the first camera's). `epe` in metres, and `apd`: the mean
  over fixed distances of the fraction within, after `align_world`.
- **TAPVid-3D** (Koppula et al. 2024): camera coordinates; distances that project to 1, 2, 4, 8, 16 pixels of an image
  whose short side is 256: `tapvid3d`.
- **Scene flow** of HPLFlowNet, FLOT and others: `scene_flow`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from four_d import geometry
from four_d.metrics import depth

WorldAlignment = Literal["none", "global", "sim3_closed", "sim3", "per_trajectory"]
Scaling = Literal["median", "mean", "none", "per_trajectory", "local_neighborhood", "median_on_queries", "reproduce_2d"]
"""TAPVid-3D's names of the scalings of predictions (`tapvid3d`)."""
WORLD_ALIGNMENTS: dict[str, WorldAlignment] = {
    "median": "global",
    "sim3_closed": "sim3_closed",
    "sim3_ransac": "sim3",
    "per_trajectory": "per_trajectory",
    "none": "none",
}
"""Our keys for the alignments of WorldTrack."""
Tracks = Float[Tensor, "n t 3"]
Flags = Bool[Tensor, "n t"]

WORLD_THRESHOLDS = (0.1, 0.3, 0.5, 1.0)
"""Thresholds of WorldTrack's APD (m)."""
WORLD_DYNAMIC = 0.01
"""Length of a path over the clip (m) above which a track is dynamic (WorldTrack)."""
RANSAC_ITERATIONS = 1000
RANSAC_POINTS = 16384
"""Maximum number of points for RANSAC, drawn at random."""
RANSAC_INLIER = 0.05
"""Distance of an inlier (m)."""
RANSAC_CHUNK = 32
"""Number of samples evaluated at once."""
PIXELS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Distances of TAPVid-3D, in pixels of an image whose short side is `SHORT_SIDE`."""
METRES = (0.01, 0.04, 0.16, 0.64, 2.56)
"""Distances of TAPVid-3D in metres, constant over depth."""
SHORT_SIDE = 256
NEIGHBOUR_DISTANCE = 0.05
"""Metres within which points are neighbours (``local_neighborhood``)."""
NO_EXTENT = 1e-12
"""Norm below which there is no extent."""


def endpoint_errors(predicted: Float[Tensor, "*b 3"], truth: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b"]:
    """Distances of corresponding points."""
    return (predicted - truth).norm(dim=-1)


def epe(errors: Float[Tensor, "*b"], where: Bool[Tensor, "*b"]) -> Float[Tensor, ""]:
    """Mean of the errors at ``where``, which must hold somewhere."""
    return _counted(errors, where).mean()


def apd(
    errors: Float[Tensor, "*b"], where: Bool[Tensor, "*b"], thresholds: tuple[float, ...] = WORLD_THRESHOLDS
) -> Float[Tensor, ""]:
    """Mean over ``thresholds`` of the fraction of errors at ``where`` not above each; ``where`` must not be empty."""
    counted = _counted(errors, where)
    return torch.stack([(counted <= threshold).to(errors).mean() for threshold in thresholds]).mean()


def _counted(errors: Float[Tensor, "*b"], where: Bool[Tensor, "*b"]) -> Float[Tensor, "n"]:
    counted = errors[where]
    assert counted.numel(), "no error counts"
    return counted


def median_scale(predicted: Float[Tensor, "n 3"], truth: Float[Tensor, "n 3"]) -> Float[Tensor, ""]:
    """WorldTrack's global scale: median norm of the truth over that of the prediction; 1 if that has no extent.

    The median of an even count is the mean of the middle two.
    """
    predicted_extent, true_extent = (_median(points.norm(dim=-1)) for points in (predicted, truth))
    return torch.where(
        predicted_extent > NO_EXTENT,
        true_extent / predicted_extent.clamp_min(NO_EXTENT),
        torch.ones_like(predicted_extent),
    )


def _median(values: Float[Tensor, "n"]) -> Float[Tensor, ""]:
    return depth.masked_median(values, torch.ones_like(values, dtype=torch.bool))


def path_length(paths: Float[Tensor, "*b t 3"], valid: Bool[Tensor, "*b t"] | None = None) -> Float[Tensor, "*b"]:
    """Length of each path over its times, in order; a step counts where both its ends are valid."""
    steps = (paths[..., 1:, :] - paths[..., :-1, :]).norm(dim=-1)
    if valid is not None:
        steps = steps * (valid[..., 1:] & valid[..., :-1])
    return steps.sum(-1)


def moving(
    paths: Float[Tensor, "*b t 3"], valid: Bool[Tensor, "*b t"] | None = None, threshold: float = WORLD_DYNAMIC
) -> Bool[Tensor, "*b"]:
    """Mask of WorldTrack's dynamic tracks: those with a world path longer than ``threshold`` (m)."""
    return path_length(paths, valid) > threshold


def align_world(predicted: Tracks, truth: Tracks, alignment: WorldAlignment, generator: torch.Generator) -> Tracks:
    """Align the prediction by one of WorldTrack's alignments, fitted over all points and times, hidden ones too.

    ``global``: one scale (`median_scale`); ``per_trajectory``: one such scale for each track; ``sim3_closed``: the
    similarity with the least squared error (Umeyama; with a reflection St4RTrack's scale differs); ``sim3``: the one of
    `RANSAC_ROUNDS` samples of three points with most inliers among at most `RANSAC_POINTS` points, fitted again to its
    inliers. Only ``sim3`` draws from the generator.
    """
    flat_p, flat_t = predicted.flatten(0, 1), truth.flatten(0, 1)
    if alignment == "global":
        return predicted * median_scale(flat_p, flat_t)
    if alignment == "per_trajectory":
        return torch.stack([track * median_scale(track, true) for track, true in zip(predicted, truth, strict=True)])
    if alignment == "none":
        return predicted
    fit = geometry.align_points(flat_p, flat_t) if alignment == "sim3_closed" else ransac(flat_p, flat_t, generator)
    return geometry.apply_fit(fit, flat_p).unflatten(0, predicted.shape[:2])


def ransac(
    source: Float[Tensor, "n 3"],
    target: Float[Tensor, "n 3"],
    generator: torch.Generator,
    iterations: int = RANSAC_ITERATIONS,
) -> geometry.Fit:
    """Fit the similarity target ≈ s·R·source + t, as ``sim3`` of `align_world`; below 3 points by least squares."""
    if len(source) < 3:
        return geometry.align_points(source, target)
    if len(source) > RANSAC_POINTS:
        chosen = torch.randperm(len(source), generator=generator)[:RANSAC_POINTS].to(source.device)
        source, target = source[chosen], target[chosen]
    triples = _triples(len(source), iterations, generator).to(source.device)
    fits = geometry.align_points(source[triples], target[triples])
    counts = [
        (geometry.apply_fit(batch, source) - target).square().sum(-1).lt(RANSAC_INLIER**2).sum(-1)
        for batch in zip(*(component.split(RANSAC_CHUNK) for component in fits), strict=True)
    ]
    best = int(torch.cat(counts).argmax())
    fit = fits[0][best], fits[1][best], fits[2][best]
    inliers = endpoint_errors(geometry.apply_fit(fit, source), target) < RANSAC_INLIER
    return geometry.align_points(source[inliers], target[inliers]) if int(inliers.sum()) >= 3 else fit


def _triples(count: int, count_of_samples: int, generator: torch.Generator) -> Int[Tensor, "r 3"]:
    """Draw three different indices for each row."""
    first, second, third = (
        torch.randint(count - drawn, (count_of_samples,), generator=generator) for drawn in range(3)
    )
    second += second >= first
    third += third >= torch.minimum(first, second)
    third += third >= torch.maximum(first, second)
    return torch.stack([first, second, third], dim=-1)


@dataclass(frozen=True, kw_only=True)
class SceneFlowScores:
    """Scores of displacements of points."""

    epe: float
    """EPE3D, metres."""
    strict: float
    """Acc3DS: fraction with an error below 0.05 m or 5 %."""
    relaxed: float
    """Acc3DR: fraction with an error below 0.1 m or 10 %."""
    outliers: float
    """Fraction with an error above 0.3 m or 10 %."""
    tau: float
    """Any4D's inlier ratio: fraction with an error below 0.1 m."""


def scene_flow(predicted: Float[Tensor, "n 3"], truth: Float[Tensor, "n 3"]) -> SceneFlowScores:
    """Classic scores, as HPLFlowNet's code and those after it: relative errors are to the true length + 0.1 mm.

    At least one point is required.
    """
    error = endpoint_errors(predicted, truth)
    relative = error / (truth.norm(dim=-1) + 1e-4)
    return SceneFlowScores(
        epe=float(error.mean()),
        strict=_fraction((error < 0.05) | (relative < 0.05)),
        relaxed=_fraction((error < 0.1) | (relative < 0.1)),
        outliers=_fraction((error > 0.3) | (relative > 0.1)),
        tau=_fraction(error < 0.1),
    )


def _fraction(flags: Bool[Tensor, "n"]) -> float:
    return float(flags.double().mean())


@dataclass(frozen=True, kw_only=True)
class TapVid3DScores:
    """Scores of one video. If no point is truly visible, all but occlusion accuracy are 0."""

    jaccard: float
    """AJ: mean over the distances of true positives / (truly visible + false positives)."""
    within: float
    """APD: mean over the distances of the fraction of truly visible points within each."""
    occlusion: float
    """OA: fraction of points and times with correct visibility."""
    jaccard_at: tuple[float, ...]
    within_at: tuple[float, ...]


def tapvid3d(
    predicted: Tracks,
    predicted_visible: Flags,
    truth: Tracks,
    visible: Flags,
    *,
    focal: float,
    query_frames: Int[Tensor, "n"],
    scaling: Scaling = "median",
    fixed: bool = False,
) -> TapVid3DScores:
    """Compute TAPVid-3D's scores, with errors strictly below each distance.

    Predictions are first multiplied by: ``median``, ``mean``: the ratio of medians or means of the distances from the
    camera over points visible in both; ``median_on_queries``: the ratio of medians over the queries' times only;
    ``per_trajectory``: the ratio of depths at the query's time, for each track; ``reproduce_2d``: the ratio of depths
    at each time; ``none``: 1. ``local_neighborhood`` scales as ``per_trajectory``, and each track is scored with all
    points that are truly within `NEAR` of it at the same time, weighted as its own visible times.

    Args:
        predicted: in each time's camera coordinates.
        predicted_visible: visible in the prediction.
        truth: as predicted, in metres.
        visible: truly visible.
        focal: the geometric mean of fx and fy, in pixels of an image whose short side is `SHORT_SIDE`.
        query_frames: index of each track's query time.
        scaling: scaling of predictions.
        fixed: use the distances `METRES`, not those that project to `PIXELS` at the true depth.

    """
    predicted, truth = predicted.double(), truth.double()
    factor = _factor(predicted, truth, visible & predicted_visible, query_frames, scaling)
    limits = torch.tensor(METRES if fixed else PIXELS, dtype=truth.dtype, device=truth.device)[:, None, None]
    limits = limits.expand(-1, *truth.shape[:2]) if fixed else limits * truth[..., 2] / focal
    if scaling != "local_neighborhood":
        return _tapvid3d_scores(_tally(predicted * factor, predicted_visible, truth, visible, limits))
    tallies: list[Tensor] = []
    for track in range(len(truth)):
        near = (truth - truth[track]).square().sum(-1) < NEIGHBOUR_DISTANCE**2
        scaled = predicted[near] * factor[track]
        tally = _tally(scaled, predicted_visible[near], truth[near], visible[near], limits[:, near])
        tallies.append(tally * visible[track].sum() / tally[2].clamp_min(1))
    return _tapvid3d_scores(torch.stack(tallies).sum(0))


def _factor(predicted: Tracks, truth: Tracks, both: Flags, query_frames: Tensor, scaling: Scaling) -> Tensor:
    """Factor of predictions, for ``n t 3``; NaN, with which nothing is near, where no point counts."""
    at_query = torch.arange(truth.shape[1], device=truth.device) == query_frames[:, None]
    if scaling in ("per_trajectory", "local_neighborhood"):
        ratio = truth[at_query][:, 2].clamp_min(NO_EXTENT) / predicted[at_query][:, 2].clamp_min(NO_EXTENT)
        return ratio[:, None, None]
    if scaling == "reproduce_2d":
        return truth[..., 2:] / predicted[..., 2:]
    if scaling == "none":
        return torch.ones_like(truth[:1, :1, :1])
    mask = both & at_query if scaling == "median_on_queries" else both
    norms = [points[mask].norm(dim=-1).clamp_min(NO_EXTENT**0.5) for points in (truth, predicted)]
    if not len(norms[0]):
        return torch.full_like(truth[:1, :1, :1], torch.nan)
    true_extent, predicted_extent = (norm.mean() if scaling == "mean" else _median(norm) for norm in norms)
    return true_extent / predicted_extent


def _tally(
    predicted: Float[Tensor, "*b 3"],
    predicted_visible: Bool[Tensor, "*b"],
    truth: Float[Tensor, "*b 3"],
    visible: Bool[Tensor, "*b"],
    limits: Float[Tensor, "k *b"],
) -> Float[Tensor, "c"]:
    """Counts: all, with the right visibility, visible; then for each limit: near, true positives, false positives."""
    near = (predicted - truth).square().sum(-1) < limits.square()
    single = torch.stack([torch.ones_like(visible), predicted_visible == visible, visible])
    false = predicted_visible & ~(near & visible)
    counts = torch.stack([near & visible, near & visible & predicted_visible, false])
    return torch.cat([single.flatten(1).sum(-1), counts.flatten(2).sum(-1).flatten()]).double()


def _tapvid3d_scores(tally: Float[Tensor, "c"]) -> TapVid3DScores:
    every, right, visible = tally[:3]
    near, true, false = tally[3:].unflatten(0, (3, -1))
    within = near / visible.clamp_min(NO_EXTENT)
    jaccard = true / (visible + false).clamp_min(NO_EXTENT)
    return TapVid3DScores(
        jaccard=float(jaccard.mean()),
        within=float(within.mean()),
        occlusion=float(right / every.clamp_min(NO_EXTENT)),
        jaccard_at=tuple(jaccard.tolist()),
        within_at=tuple(within.tolist()),
    )
