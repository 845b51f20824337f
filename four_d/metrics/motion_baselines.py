"""Baselines of dense motion that ignore the image: none at all, and a prior from the training videos.

| name | predicts |
|---|---|
| ``static_motion`` | nothing moves, everything stays visible |
| ``prior_motion`` | per cell of the image and signed time gap, the displacement nearest to those of training |

Nearest means the least error that evaluation reports: the mean distance, in source units, over the dynamic pixels of
each video, averaged over videos. Its minimum is a weighted geometric median.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from four_d import fields
from four_d.abilities import Abilities, Model
from four_d.metrics import motion
from four_d.metrics.comparison import source_unit
from four_d.types import Clip, Prediction, map_tensors, same_time

GRIDS = (1, 2, 4, 8, 16)
"""Numbers of cells along each image axis that are tried."""
GAPS = 40
"""Maximum number of distinct time gaps."""
GAP_SECONDS = 1e-3
"""Difference below which time gaps are equal."""
SAMPLES = 1500
"""Maximum number of samples (pixel and query time) per video."""
HELD_OUT = 0.2
"""Fraction of the training videos, the last ones, on which grids are validated."""
ITERATIONS = 40
"""Number of Weiszfeld's iterations."""
MIN_DISTANCE = 1e-6
"""Lower limit of the distance from a sample, which bounds its weight."""


@dataclass(frozen=True, kw_only=True)
class MotionPrior(Model):
    """Displacement per cell and time gap, in the examples' unit; no output without query times."""

    gaps: Float[Tensor, "k"]
    """Seconds from a frame's time to the query time; the nearest one is used. Motion to its own time is 0."""
    table: Float[Tensor, "k g g 3"]

    @property
    def abilities(self) -> Abilities:
        """Dense motion only."""
        return Abilities(outputs=frozenset({"motion", "motion_visible"}), queried=frozenset({"motion"}))

    def __call__(self, clip: Clip) -> Prediction:
        """Predict motion to the clip's query times; every point is visible."""
        if clip.query_times is None:
            return Prediction()
        height, width = clip.images.shape[-2:]
        query, times = clip.query_times[..., :, None], clip.times[..., None, :]
        gaps = query - times
        table = self.table.to(clip.images)[nearest_gap(gaps, self.gaps)]
        table = torch.where(same_time(query, times)[..., None, None, None], torch.zeros_like(table), table)
        rows, columns = (cells(n, self.table.shape[1]).to(table.device) for n in (height, width))
        moved = table[..., rows[:, None], columns, :]
        return Prediction(motion=moved, motion_visible=torch.ones_like(moved[..., 0]))


def static() -> MotionPrior:
    """Prior without motion."""
    return MotionPrior(gaps=torch.zeros(1), table=torch.zeros(1, 1, 1, 3))


def cells(size: int, count: int) -> Int[Tensor, "n"]:
    """Index of each row or column's cell, of ``count`` equal parts of the image."""
    return torch.arange(size) * count // size


def nearest_gap(gaps: Float[Tensor, "*b"], known: Float[Tensor, "k"]) -> Int[Tensor, "*b"]:
    """Index of the nearest known gap."""
    return (gaps[..., None] - known.to(gaps)).abs().argmin(-1)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Displacements of dynamic training pixels."""

    motion: Float[Tensor, "n 3"]
    gaps: Float[Tensor, "n"]
    position: Float[Tensor, "n 2"]
    """Row and column as fractions of the image, in [0, 1)."""
    weights: Float[Tensor, "n"]
    """Weights, which sum to a video's scale, so that the weighted mean distance is in source units."""
    video: Int[Tensor, "n"]

    def groups(self, known: Float[Tensor, "k"], grid: int) -> Int[Tensor, "n"]:
        """Index of each sample's cell in a flat k × grid × grid table."""
        row, column = (self.position * grid).long().unbind(-1)
        return (nearest_gap(self.gaps, known) * grid + row) * grid + column


@dataclass
class DenseMotionStatistics:
    """Statistics of the training videos. Equal videos in equal order give equal fits."""

    videos: list[Samples] = field(default_factory=list[Samples])
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def add(self, targets: Clip) -> None:
        """Add every video whose motion is known; at most `SAMPLES` of its dynamic pixels at other times."""
        if targets.motion is None:
            return
        for index in range(len(targets.times)):
            self._add_video(map_tensors(fields.unstack(targets, index), lambda tensor: tensor.cpu()))

    def _add_video(self, targets: Clip) -> None:
        assert targets.motion is not None
        assert targets.query_times is not None
        dynamic = (motion.counted(targets) & motion.dynamic(targets)).nonzero()
        if not len(dynamic):
            return
        chosen = dynamic[torch.randperm(len(dynamic), generator=self.generator)[:SAMPLES]]
        query, frame, row, column = chosen.unbind(-1)
        size = torch.tensor(targets.motion.shape[2:4])
        scale = source_unit(targets)
        self.videos.append(
            Samples(
                motion=targets.motion[query, frame, row, column].float(),
                gaps=targets.query_times[query] - targets.times[frame],
                position=chosen[:, 2:] / size,
                weights=torch.full((len(chosen),), scale / len(chosen)),
                video=torch.full((len(chosen),), len(self.videos)),
            )
        )

    def models(self) -> dict[str, MotionPrior]:
        """Fit the prior; none where no training video has a dynamic pixel."""
        if not self.videos:
            return {}
        samples = _join(self.videos)
        known = known_gaps(samples.gaps)
        grid = choose_grid(samples, known)
        return {"prior_motion": MotionPrior(gaps=known, table=table(samples, known, grid))}


def _join(videos: Sequence[Samples]) -> Samples:
    names = ("motion", "gaps", "position", "weights", "video")
    return Samples(**{name: torch.cat([getattr(video, name) for video in videos]) for name in names})


def known_gaps(gaps: Float[Tensor, "n"]) -> Float[Tensor, "k"]:
    """Distinct gaps, to `GAP_SECONDS`; if more than `GAPS`, as many quantiles."""
    distinct = (gaps / GAP_SECONDS).round().unique() * GAP_SECONDS
    if len(distinct) <= GAPS:
        return distinct
    spread = torch.linspace(0, len(gaps) - 1, GAPS).round().long()
    return gaps.sort().values[spread].unique()


def choose_grid(samples: Samples, known: Float[Tensor, "k"]) -> int:
    """Choose the grid with the least error on held-out training videos; the coarser one of equals."""
    held_out = samples.video >= samples.video.max() * (1 - HELD_OUT)  # the last: neighbours may be of one scene
    if bool(held_out.all()):
        return GRIDS[0]
    fitting, validation = (map_tensors(samples, lambda tensor, w=mask: tensor[w]) for mask in (~held_out, held_out))
    errors = [_error(table(fitting, known, grid), validation, known) for grid in GRIDS]
    return GRIDS[errors.index(min(errors))]


def _error(fitted: Float[Tensor, "k g g 3"], samples: Samples, known: Float[Tensor, "k"]) -> float:
    predicted = fitted.flatten(0, 2)[samples.groups(known, fitted.shape[1])]
    return float(((predicted - samples.motion).norm(dim=-1) * samples.weights).sum())


def table(samples: Samples, known: Float[Tensor, "k"], grid: int) -> Float[Tensor, "k g g 3"]:
    """Weighted geometric median of every gap and cell; the gap's where a cell has no sample, else 0."""
    shape = len(known), grid, grid
    medians, filled = geometric_medians(samples, samples.groups(known, grid), len(known) * grid * grid)
    overall, _ = geometric_medians(samples, nearest_gap(samples.gaps, known), len(known))
    fallback = overall[:, None, None].expand(*shape, 3)
    return torch.where(filled.view(*shape, 1), medians.view(*shape, 3), fallback)


def geometric_medians(
    samples: Samples, groups: Int[Tensor, "n"], count: int
) -> tuple[Float[Tensor, "g 3"], Bool[Tensor, "g"]]:
    """Points with the least weighted mean distance to each group's samples, and a mask of groups that have any.

    Weiszfeld's iteration from the weighted mean (Weiszfeld 1937). A group without samples gets 0.
    """
    centres = _means(samples.motion, samples.weights, groups, count)
    for _ in range(ITERATIONS):
        pull = samples.weights / (centres[groups] - samples.motion).norm(dim=-1).clamp_min(MIN_DISTANCE)
        centres = _means(samples.motion, pull, groups, count)
    return centres, torch.bincount(groups, minlength=count) > 0


def _means(
    values: Float[Tensor, "n 3"], weights: Float[Tensor, "n"], groups: Int[Tensor, "n"], count: int
) -> Float[Tensor, "g 3"]:
    total = torch.zeros(count).index_add(0, groups, weights)
    summed = torch.zeros(count, 3).index_add(0, groups, values * weights[:, None])
    return summed / torch.where(total > 0, total, torch.ones_like(total))[:, None]
