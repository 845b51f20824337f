"""Result of an evaluation: a table of predictors and metrics, with standard errors and paired differences."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from four_d.evaluation.tables import show
from four_d.metrics.catalogue import METRICS
from four_d.metrics.metric import Metric
from four_d.outputs import write_json
from four_d.similarity import LPIPS

BEST = "best_image_free"
COPY = "copy"
"""Name of the predictor that copies the nearest input frame, and so is not image-free."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Mean of a metric over videos."""

    mean: float
    """Unweighted mean over videos."""
    standard_error: float | None
    """Standard error of the mean under the choice of clips, clustered by clip; 0 for one clip. None: a figure of all
    videos together, such as FID, which has no values per video."""
    videos: int
    excluded: int
    """Number of videos whose ground truth does not allow the metric: no valid depth, no known or no moving camera."""


@dataclass(frozen=True, kw_only=True)
class LpipsFacts:
    """Identity of the network that scored renders."""

    network: str
    """Backbone: alex or vgg."""
    weights: str
    """Digest of its weights, independent of the file they came from."""

    @staticmethod
    def of(network: LPIPS | None) -> LpipsFacts | None:
        """Facts of a network with loaded weights; None for None."""
        if network is None:
            return None
        digest = hashlib.sha256()
        for name, value in sorted(network.state_dict().items()):
            digest.update(name.encode() + value.detach().float().cpu().numpy().tobytes())
        return LpipsFacts(network=network.network, weights=digest.hexdigest()[:12])


def facts(lpips: LpipsFacts | None) -> dict[str, str | None]:
    """Facts for JSON; all null without a network."""
    return {"network": None, "weights": None} if lpips is None else dict(vars(lpips))


def lpips_note(lpips: LpipsFacts | None) -> str:
    """Network of LPIPS, or the reason why there is no such figure, for the note of scored renders."""
    return (
        "LPIPS: not computed, no weights; structure takes its place" if lpips is None else f"LPIPS of {lpips.network}"
    )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of a model and of image-free predictors on the same videos."""

    name: str
    rows: dict[str, dict[str, Score]]
    """Predictor → metric → score; the model under ``name`` comes first."""
    keys: tuple[str, ...]
    """Videos in order; ``clip/camera`` if a clip gives several."""
    per_video: dict[str, dict[str, tuple[float | None, ...]]]
    """Predictor → metric → one value per video; figures of all videos together, such as FID, have none."""
    digest: str
    """Digest of keys, cameras, times and image sizes of all videos in order, of the hints given to the model, of the
    pairwise setting, and of the networks that judged renders."""
    note: str = ""
    """Description of the videos."""
    lpips: LpipsFacts | None = None
    """Network behind ``lpips`` of renders; None: ``structure`` takes its place."""
    metrics: Mapping[str, Metric] = field(default_factory=lambda: METRICS)
    """Name → metric, of all that a row may have."""

    def best_image_free(self, metric: str) -> tuple[str, Score] | None:
        """Image-free predictor with the best mean of a metric; None if none has it or no direction is better."""
        rows = {name: scores[metric] for name, scores in self.rows.items() if metric in scores}
        free = [(name, score.mean) for name, score in rows.items() if name not in (self.name, COPY)]
        best = self.metrics[metric].best(free)
        return None if best is None else (best, rows[best])

    def difference(self, metric: str, minuend: str, subtrahend: str) -> Score:
        """Mean difference of two predictors over the videos, paired: its standard error is that of the difference.

        KeyError for a figure without values per video, such as FID.
        """
        pairs = zip(self.per_video[minuend][metric], self.per_video[subtrahend][metric], strict=True)
        return score_of([None if a is None or b is None else a - b for a, b in pairs], self.keys)

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON: all metrics of all rows, the best image-free row, and the values per video."""
        rows: dict[str, object] = {
            name: {metric: vars(score) for metric, score in scores.items()} for name, scores in self.rows.items()
        }
        best = {metric: self.best_image_free(metric) for metric in self.rows[self.name]}
        rows[BEST] = {metric: {"predictor": row[0], **vars(row[1])} for metric, row in best.items() if row is not None}
        return {
            "model": self.name,
            "videos": len(self.keys),
            "clips": len({scene(key) for key in self.keys}),
            "digest": self.digest,
            "note": self.note,
            "lpips": facts(self.lpips),
            "metrics": {name: described(self.metrics[name]) for name in self.rows[self.name]},
            "summary": {**summary(self), "image_free": image_free(self), "predictors": predictors(self)},
            "rows": rows,
            "per_video": {"keys": list(self.keys), **self.per_video},
        }

    def write(self, path: Path) -> None:
        """Write `to_dict` as JSON, atomically; UserError if it cannot be written."""
        write_json(path, self.to_dict())

    def table(self) -> Table:
        """Table of the summary's metrics, one row per predictor, the model first."""
        metrics = list(summary(self))
        table = Table(title=f"{len(self.keys)} videos, digest {self.digest}", caption=self.note or None)
        table.add_column("predictor")
        for metric in metrics:
            table.add_column(self.metrics[metric].heading, justify="right")
        for name, scores in self.rows.items():
            cells = [_cell(scores.get(metric)) for metric in metrics]
            if name == self.name or any(cells):
                table.add_row(name, *cells, style="bold" if name == self.name else None, end_section=name == self.name)
        return table

    def details(self) -> Table:
        """Table of all metrics: the model, the best image-free predictor, and their paired difference."""
        table = Table(title="all metrics: mean over videos ± standard error by clips")
        for heading in ("metric", self.name, "best image-free", "", "difference", "videos"):
            table.add_column(heading, justify="left" if heading in ("metric", "") else "right")
        for metric, score in self.rows[self.name].items():
            best = self.best_image_free(metric)
            heading = self.metrics[metric].heading
            videos = f"{score.videos}" + (f" (−{score.excluded})" if score.excluded else "")
            if best is None:
                table.add_row(heading, _cell(score), "", "", "", videos)
            else:
                alone = metric in self.per_video[self.name]
                gap = self.difference(metric, self.name, best[0]) if alone else None
                table.add_row(heading, _cell(score), _cell(best[1]), best[0], _cell(gap), videos)
        return table

    def print(self) -> None:
        """Print both tables on stdout."""
        show(self.details(), self.table())


def _cell(score: Score | None) -> str:
    if score is None:
        return ""
    return f"{score.mean:.4g}" + ("" if score.standard_error is None else f" ± {score.standard_error:.2g}")


def described(metric: Metric) -> dict[str, str | None]:
    """Description of a metric for JSON: unit, better direction and meaning."""
    return {"unit": metric.unit, "better": metric.better, "description": metric.description}


def summary(evaluation: Evaluation, row: str | None = None) -> dict[str, float]:
    """Means of the summary's metrics, of the model or of another row."""
    scores = evaluation.rows[evaluation.name if row is None else row]
    return {name: score.mean for name, score in scores.items() if evaluation.metrics[name].shown == "summary"}


def image_free(evaluation: Evaluation) -> dict[str, float]:
    """Mean of the best image-free predictor for each of the summary's metrics."""
    names = dict.fromkeys(name for scores in evaluation.rows.values() for name in scores)
    best = {name: evaluation.best_image_free(name) for name in names if evaluation.metrics[name].shown == "summary"}
    return {name: row[1].mean for name, row in best.items() if row is not None}


def predictors(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """`summary` of every row but the model's, by name."""
    return {name: summary(evaluation, name) for name in evaluation.rows if name != evaluation.name}


def score_of(values: Sequence[float | None], keys: Sequence[str]) -> Score:
    """Mean and its cluster-robust standard error, clustered by clip (Liang and Zeger 1986)."""
    present = [(value, scene(key)) for value, key in zip(values, keys, strict=True) if value is not None]
    count = len(present)
    mean = sum(value for value, _ in present) / max(count, 1)
    sums: dict[str, float] = {}
    for value, name in present:
        sums[name] = sums.get(name, 0.0) + value - mean
    spread = sum(deviation**2 for deviation in sums.values()) * len(sums) / max(len(sums) - 1, 1)
    error = math.sqrt(spread) / max(count, 1) if len(sums) > 1 else 0.0
    return Score(mean=mean, standard_error=error, videos=count, excluded=len(values) - count)


def scene(key: str) -> str:
    """Clip of a video: errors of videos of one clip are correlated, so they count as one cluster."""
    return key.rpartition("/")[0] or key
