"""Dense motion that ignores the image: none at all, and what the training videos have in common.

| name | predicts |
|---|---|
| ``static_motion`` | nothing moves, everything stays visible |
| ``prior_motion`` | per cell of the image and signed time gap, the displacement nearest to those of training |

Nearest means the least error that evaluation reports: the mean distance, in source units, over the dynamic pixels of
each video, every video alike. Its minimum is a weighted geometric median.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from four_d.metrics import motion
from four_d.types import Clip, Prediction, map_tensors, same_time

GRIDS = (1, 2, 4, 8, 16)
"""Cells along each image axis that are tried."""
GAPS = 40
"""Most time gaps that are told apart."""
GAP_SECONDS = 1e-3
"""Gaps nearer than this are one."""
SAMPLES = 1500
"""Pixels and query times of each video that are looked at."""
JUDGES = 0.2
"""Share of the training videos, the last ones, that judges the grids."""
ROUNDS = 40
"""Of Weiszfeld's iteration."""
NEAR = 1e-6
"""Distance from a sample below which it pulls no harder."""


@dataclass(frozen=True, kw_only=True)
class MotionPrior:
    """A displacement per cell and time gap, in the examples' unit; nothing where motion is not asked for."""

    gaps: Float[Tensor, "k"]
    """Seconds from a frame's time to the query time; the nearest one counts. To its own time nothing moves."""
    table: Float[Tensor, "k g g 3"]

    def __call__(self, clip: Clip) -> Prediction:
        """Motion to the clip's query times; every point is visible."""
        if clip.query_times is None:
            return Prediction()
        height, width = clip.images.shape[-2:]
        asked, times = clip.query_times[..., :, None], clip.times[..., None, :]
        gaps = asked - times
        table = self.table.to(clip.images)[nearest(gaps, self.gaps)]
        table = torch.where(same_time(asked, times)[..., None, None, None], torch.zeros_like(table), table)
        rows, columns = (cells(n, self.table.shape[1]).to(table.device) for n in (height, width))
        moved = table[..., rows[:, None], columns, :]
        return Prediction(motion=moved, motion_visible=torch.ones_like(moved[..., 0]))


def static() -> MotionPrior:
    """Nothing moves."""
    return MotionPrior(gaps=torch.zeros(1), table=torch.zeros(1, 1, 1, 3))


def cells(size: int, count: int) -> Int[Tensor, "n"]:
    """Which of ``count`` equal parts of the image each row or column lies in."""
    return torch.arange(size) * count // size


def nearest(gaps: Float[Tensor, "*b"], known: Float[Tensor, "k"]) -> Int[Tensor, "*b"]:
    """Which of the known gaps is nearest."""
    return (gaps[..., None] - known.to(gaps)).abs().argmin(-1)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Displacements of dynamic training pixels."""

    motion: Float[Tensor, "n 3"]
    gaps: Float[Tensor, "n"]
    place: Float[Tensor, "n 2"]
    """Row and column as shares of the image, in [0, 1)."""
    weights: Float[Tensor, "n"]
    """Those of one video add up to its scale, so that the weighted mean distance is in source units."""
    video: Int[Tensor, "n"]

    def groups(self, known: Float[Tensor, "k"], grid: int) -> Int[Tensor, "n"]:
        """Place of each sample in a flat k × grid × grid table."""
        row, column = (self.place * grid).long().unbind(-1)
        return (nearest(self.gaps, known) * grid + row) * grid + column


@dataclass
class DenseMotionStatistics:
    """What is kept of the training videos. The same videos in the same order give the same fit."""

    parts: list[Samples] = field(default_factory=list[Samples])
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def add(self, targets: Clip) -> None:
        """Take in every video whose motion is known; at most `SAMPLES` of its dynamic pixels at other times."""
        if targets.motion is None:
            return
        part = Clip(
            images=targets.images,
            times=targets.times,
            camera_ids=targets.camera_ids,
            query_times=targets.query_times,
            motion=targets.motion,
            motion_valid=targets.motion_valid,
            scale=targets.scale,
        )
        for index in range(len(targets.times)):
            self._add_video(map_tensors(part, lambda tensor, i=index: tensor[i].cpu()))

    def _add_video(self, targets: Clip) -> None:
        assert targets.motion is not None
        assert targets.query_times is not None
        where = (motion.counted(targets) & motion.dynamic(targets)).nonzero()
        if not len(where):
            return
        chosen = where[torch.randperm(len(where), generator=self.generator)[:SAMPLES]]
        query, frame, row, column = chosen.unbind(-1)
        size = torch.tensor(targets.motion.shape[2:4])
        scale = 1.0 if targets.scale is None else float(targets.scale)
        self.parts.append(
            Samples(
                motion=targets.motion[query, frame, row, column].float(),
                gaps=targets.query_times[query] - targets.times[frame],
                place=chosen[:, 2:] / size,
                weights=torch.full((len(chosen),), scale / len(chosen)),
                video=torch.full((len(chosen),), len(self.parts)),
            )
        )

    def models(self) -> dict[str, MotionPrior]:
        """The fitted prior; none where no training video has a dynamic pixel."""
        if not self.parts:
            return {}
        samples = _join(self.parts)
        known = known_gaps(samples.gaps)
        grid = choose_grid(samples, known)
        return {"prior_motion": MotionPrior(gaps=known, table=table(samples, known, grid))}


def _join(parts: Sequence[Samples]) -> Samples:
    names = ("motion", "gaps", "place", "weights", "video")
    return Samples(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def known_gaps(gaps: Float[Tensor, "n"]) -> Float[Tensor, "k"]:
    """The gaps that occur, to `GAP_SECONDS`; of more than `GAPS` that many quantiles."""
    distinct = (gaps / GAP_SECONDS).round().unique() * GAP_SECONDS
    if len(distinct) <= GAPS:
        return distinct
    spread = torch.linspace(0, len(gaps) - 1, GAPS).round().long()
    return gaps.sort().values[spread].unique()


def choose_grid(samples: Samples, known: Float[Tensor, "k"]) -> int:
    """The grid with the least error on training videos that its table was not fitted on; the coarser one of equals."""
    judging = samples.video >= samples.video.max() * (1 - JUDGES)  # in order, for neighbours may be of one scene
    if bool(judging.all()):
        return GRIDS[0]
    fitting, judges = (map_tensors(samples, lambda tensor, w=where: tensor[w]) for where in (~judging, judging))
    errors = [_error(table(fitting, known, grid), judges, known) for grid in GRIDS]
    return GRIDS[errors.index(min(errors))]


def _error(fitted: Float[Tensor, "k g g 3"], samples: Samples, known: Float[Tensor, "k"]) -> float:
    said = fitted.flatten(0, 2)[samples.groups(known, fitted.shape[1])]
    return float(((said - samples.motion).norm(dim=-1) * samples.weights).sum())


def table(samples: Samples, known: Float[Tensor, "k"], grid: int) -> Float[Tensor, "k g g 3"]:
    """The weighted geometric median of every gap and cell; that of the gap where a cell has no sample, else 0."""
    shape = len(known), grid, grid
    found, filled = geometric_medians(samples, samples.groups(known, grid), len(known) * grid * grid)
    overall, _ = geometric_medians(samples, nearest(samples.gaps, known), len(known))
    fallback = overall[:, None, None].expand(*shape, 3)
    return torch.where(filled.view(*shape, 1), found.view(*shape, 3), fallback)


def geometric_medians(
    samples: Samples, groups: Int[Tensor, "n"], count: int
) -> tuple[Float[Tensor, "g 3"], Bool[Tensor, "g"]]:
    """Per group, the point with the least weighted mean distance to its samples, and whether it has any.

    Weiszfeld's iteration from the weighted mean (Weiszfeld 1937). A group without samples gets 0.
    """
    centres = _means(samples.motion, samples.weights, groups, count)
    for _ in range(ROUNDS):
        pull = samples.weights / (centres[groups] - samples.motion).norm(dim=-1).clamp_min(NEAR)
        centres = _means(samples.motion, pull, groups, count)
    return centres, torch.bincount(groups, minlength=count) > 0


def _means(
    values: Float[Tensor, "n 3"], weights: Float[Tensor, "n"], groups: Int[Tensor, "n"], count: int
) -> Float[Tensor, "g 3"]:
    total = torch.zeros(count).index_add(0, groups, weights)
    summed = torch.zeros(count, 3).index_add(0, groups, values * weights[:, None])
    return summed / torch.where(total > 0, total, torch.ones_like(total))[:, None]
