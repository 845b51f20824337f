"""Result of an evaluation under a published protocol: rows of scores, their means, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from four_d.datasets.sequence import Task
from four_d.evaluation.result import LpipsFacts, facts
from four_d.evaluation.tables import show
from four_d.metrics.catalogue import METRICS
from four_d.outputs import write_json

TRACKED: tuple[Task, ...] = ("tracks", "pixel_tracks")
"""Tasks whose sequences are named ``source/clip``."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Scores of one sequence in one task."""

    sequence: str
    task: Task
    frames: int
    scores: dict[str, float]
    weight: float = 1.0
    """Weight in the mean: number of valid pixels for depth, the sequence's own weight for tracks, else 1."""
    baselines: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    """Scores on this sequence of predictors that need no motion, or no image."""
    lacks: str | None = None
    """Reason why a metric is missing although the sequence has ground truth for it."""


@dataclass(frozen=True, kw_only=True)
class Missing:
    """Sequence without scores in a task, and the reason."""

    sequence: str
    task: Task
    reason: str


@dataclass(frozen=True, kw_only=True)
class Published:
    """Result of an evaluation; the mean of a metric is over the sequences that have it."""

    protocol: str
    source: str
    """Published code that the protocol follows."""
    note: str
    """Description of the evaluation."""
    digest: str = ""
    """Digest of the protocol, its settings and the sequences: only figures of one digest compare."""
    lpips: LpipsFacts | None = None
    """Network behind ``lpips`` of renders; None without one."""
    rows: list[Row] = field(default_factory=list[Row])
    skipped: list[Missing] = field(default_factory=list[Missing])
    """Sequences that the protocol leaves out, such as those of static cameras, or that the model does not predict."""
    failed: list[Missing] = field(default_factory=list[Missing])
    """Sequences that failed: damaged files, predictions that are not finite."""

    def means(self, baseline: str | None = None, source: str | None = None) -> dict[str, float]:
        """Metric → weighted mean over sequences, of the model or a baseline, over all or one of `sources`."""
        rows = [row for row in self.rows if source is None or source_of(row.sequence) == source]
        return means((row.scores if baseline is None else row.baselines.get(baseline, {}), row.weight) for row in rows)

    def baselines(self) -> list[str]:
        """Names of the predictors beside the model."""
        return list(dict.fromkeys(name for row in self.rows for name in row.baselines))

    def sources(self) -> list[str]:
        """Source data sets of tracks, which papers list separately."""
        return list(dict.fromkeys(source_of(row.sequence) for row in self.rows if row.task in TRACKED))

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON."""
        return {
            "protocol": self.protocol,
            "source": self.source,
            "note": self.note,
            "digest": self.digest,
            "lpips": facts(self.lpips),
            "means": self.means(),
            "baselines": {name: self.means(name) for name in self.baselines()},
            "sources": {source: self.means(source=source) for source in self.sources()},
            "sequences": [vars(row) for row in self.rows],
            "skipped": [vars(missing) for missing in self.skipped],
            "failed": [vars(missing) for missing in self.failed],
        }

    def write(self, path: Path) -> None:
        """Write `to_dict` as JSON, atomically; UserError if it cannot be written."""
        write_json(path, self.to_dict())

    def tables(self) -> Iterator[Table]:
        """One table per task: sequences, then means of each source, of all, and of the predictors beside the model."""
        for task in dict.fromkeys(row.task for row in self.rows):
            rows = [row for row in self.rows if row.task == task]
            found = dict.fromkeys(metric for row in rows for metric in row.scores)
            metrics = [metric for metric in found if METRICS[metric].shown != "files"]
            title = f"{self.protocol}: {task}, {len(rows)} sequences, digest {self.digest}"
            table = Table(title=title, caption=f"after {self.source}")
            table.add_column("sequence")
            for metric in metrics:
                table.add_column(METRICS[metric].heading, justify="right")
            for row in rows:
                table.add_row(row.sequence, *_cells(row.scores, metrics), end_section=row is rows[-1])
            for source in self.sources() if task in TRACKED else ():
                table.add_row(f"mean of {source}", *_cells(self.means(source=source), metrics))
            table.add_row("mean", *_cells(self.means(), metrics), style="bold")
            for name in dict.fromkeys(name for row in rows for name in row.baselines):
                table.add_row(f"mean, {name}", *_cells(self.means(name), metrics))
            yield table

    def print(self) -> None:
        """Print the tables and the missing sequences on stdout."""
        show(*self.tables())
        print(self.note)
        for word, part in (("skipped", self.skipped), ("FAILED", self.failed)):
            for reason in dict.fromkeys(missing.reason for missing in part):
                who = [f"{missing.sequence} ({missing.task})" for missing in part if missing.reason == reason]
                print(f"{word} {len(who)}: {reason}: {', '.join(who)}")


class Skip(Exception):  # noqa: N818  # nothing went wrong
    """Sequence that the protocol leaves out; the message gives the reason."""


def source_of(sequence: str) -> str:
    """Data set of a sequence named ``source/clip``."""
    return sequence.partition("/")[0]


def means(rows: Iterable[tuple[Mapping[str, float], float]]) -> dict[str, float]:
    """Metric → weighted mean over the rows that have it."""
    sums: dict[str, tuple[float, float]] = {}
    for scores, weight in rows:
        for metric, value in scores.items():
            total, weights = sums.get(metric, (0.0, 0.0))
            sums[metric] = total + value * weight, weights + weight
    return {metric: total / weights for metric, (total, weights) in sums.items()}


def _cells(scores: dict[str, float], metrics: list[str]) -> list[str]:
    return [f"{scores[metric]:.4g}" if metric in scores else "" for metric in metrics]
