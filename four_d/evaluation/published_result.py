"""What an evaluation under a published protocol gives: rows of scores, their means, and what is missing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from four_d.data.manifest import atomic
from four_d.evaluation.result import LOG_WIDTH, LpipsFacts, facts, higher_is_better
from four_d.protocols.sequence import Task

NEITHER = ("track_scale", "track_dynamic_share")
"""Metrics that are neither better when higher nor when lower."""
DETAILS = "sceneflow_"
"""What metrics begin with that only the JSON has: tables would be too wide."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The scores of one sequence in one task."""

    sequence: str
    task: Task
    frames: int
    scores: dict[str, float]
    weight: float = 1.0
    """In the mean: valid pixels for depth, the sequence's own for tracks, 1 elsewhere."""
    baselines: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    """What predictors that need no motion, or no image, score on the same sequence."""
    lacks: str | None = None
    """Why a metric that the sequence has truth for is not there."""


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A sequence that has no scores in a task, and why."""

    sequence: str
    task: Task
    reason: str


@dataclass(frozen=True, kw_only=True)
class Published:
    """All rows of a run; the mean of a metric is over the sequences that have it."""

    protocol: str
    source: str
    """Whose published code was followed."""
    note: str
    """What was run, in words."""
    lpips: LpipsFacts | None = None
    """What scored ``lpips`` of pictures; None: nothing did."""
    rows: list[Row] = field(default_factory=list[Row])
    skipped: list[Missing] = field(default_factory=list[Missing])
    """What the protocol leaves out, such as cameras that stand still, or that the model does not predict."""
    failed: list[Missing] = field(default_factory=list[Missing])
    """What went wrong: damaged files, predictions that are not finite."""

    def means(self, baseline: str | None = None, source: str | None = None) -> dict[str, float]:
        """Metric → weighted mean over sequences: the model's, or a baseline's; of all, or of one of `sources`."""
        rows = [row for row in self.rows if source is None or source_of(row.sequence) == source]
        kept = [(row.scores if baseline is None else row.baselines.get(baseline, {}), row.weight) for row in rows]
        metrics = dict.fromkeys(metric for scores, _ in kept for metric in scores)
        return {metric: _mean(metric, kept) for metric in metrics}

    def baselines(self) -> list[str]:
        """Predictors beside the model."""
        return list(dict.fromkeys(name for row in self.rows for name in row.baselines))

    def sources(self) -> list[str]:
        """The data sets that tracks come from, which papers list apart."""
        return list(dict.fromkeys(source_of(row.sequence) for row in self.rows if row.task == "tracks"))

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON."""
        return {
            "protocol": self.protocol,
            "source": self.source,
            "note": self.note,
            "lpips": facts(self.lpips),
            "means": self.means(),
            "baselines": {name: self.means(name) for name in self.baselines()},
            "sources": {source: self.means(source=source) for source in self.sources()},
            "sequences": [vars(row) for row in self.rows],
            "skipped": [vars(missing) for missing in self.skipped],
            "failed": [vars(missing) for missing in self.failed],
        }

    def write(self, path: Path) -> None:
        """`to_dict` as JSON; the file appears whole or not at all. `UserError` where it cannot be written."""
        with atomic(path) as file:
            file.write((json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n").encode())

    def tables(self) -> Iterator[Table]:
        """One table per task: sequences, then means: of each source, of all, of the predictors beside the model."""
        for task in dict.fromkeys(row.task for row in self.rows):
            rows = [row for row in self.rows if row.task == task]
            found = dict.fromkeys(metric for row in rows for metric in row.scores)
            metrics = [metric for metric in found if not metric.startswith(DETAILS)]
            table = Table(title=f"{self.protocol}: {task}, {len(rows)} sequences", caption=f"after {self.source}")
            table.add_column("sequence")
            for metric in metrics:
                table.add_column(f"{metric} {_arrow(metric)}".rstrip(), justify="right")
            for row in rows:
                table.add_row(row.sequence, *_cells(row.scores, metrics), end_section=row is rows[-1])
            for source in self.sources() if task == "tracks" else ():
                table.add_row(f"mean of {source}", *_cells(self.means(source=source), metrics))
            table.add_row("mean", *_cells(self.means(), metrics), style="bold")
            for name in dict.fromkeys(name for row in rows for name in row.baselines):
                table.add_row(f"mean, {name}", *_cells(self.means(name), metrics))
            yield table

    def print(self) -> None:
        """The tables, and what is missing from them, on stdout."""
        console = Console()
        if not console.is_terminal:
            console = Console(width=LOG_WIDTH)
        for table in self.tables():
            console.print(table)
        console.print(self.note, highlight=False)
        for word, part in (("skipped", self.skipped), ("FAILED", self.failed)):
            for reason in dict.fromkeys(missing.reason for missing in part):
                who = [f"{missing.sequence} ({missing.task})" for missing in part if missing.reason == reason]
                console.print(f"{word} {len(who)}: {reason}: {', '.join(who)}", markup=False, highlight=False)


class Skip(Exception):  # noqa: N818  # nothing went wrong
    """The protocol leaves this sequence out; the message says why."""


def source_of(sequence: str) -> str:
    """The data set that a sequence named ``source/clip`` is of."""
    return sequence.partition("/")[0]


def _mean(metric: str, rows: list[tuple[dict[str, float], float]]) -> float:
    found = [(scores[metric], weight) for scores, weight in rows if metric in scores]
    return sum(value * weight for value, weight in found) / sum(weight for _, weight in found)


def _cells(scores: dict[str, float], metrics: list[str]) -> list[str]:
    return [f"{scores[metric]:.4g}" if metric in scores else "" for metric in metrics]


def _arrow(metric: str) -> str:
    if metric in NEITHER:
        return ""
    return "↑" if higher_is_better(metric) else "↓"
