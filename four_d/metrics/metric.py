"""Metrics as values: name, unit, better direction, definition and computation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Literal

from four_d.metrics.comparison import Comparison

Task = Literal["depth", "pose", "points", "mask", "motion", "pictures", "tracks"]
"""Tasks in which a held-out video can be scored."""
Better = Literal["higher", "lower"]
Shown = Literal["summary", "tables", "files"]


@dataclass(frozen=True)
class Metric:
    """One figure, with one name in training, evaluation, studies and model cards."""

    name: str
    description: str
    """Definition, in one line of Markdown."""
    _: KW_ONLY
    unit: str = ""
    """``m`` stands for the source's unit, which is the metre where the data is metric; empty for a ratio."""
    better: Better | None = None
    """Better direction; None: a fact about the data or the model, without one."""
    compute: Callable[[Comparison], float | None] | None = None
    """Function of one video's comparison, which returns None where truth or prediction does not allow the figure. None:
    several passes, renders or windows give the figure together with others."""
    task: Task | None = None
    """Task with which it is computed; None: always."""
    shown: Shown = "tables"
    """Places that show it; ``summary``: also short tables, studies and model cards; ``files``: only JSON."""

    @property
    def heading(self) -> str:
        """Name, direction and unit, for a column's heading."""
        arrow = {"higher": " ↑", "lower": " ↓", None: ""}[self.better]
        return f"{self.name}{arrow}" + (f", {self.unit}" if self.unit else "")

    def best(self, values: Iterable[tuple[str, float]]) -> str | None:
        """Name of the best value, the first of equal ones; None without values or a better direction."""
        rows = list(values)
        if not rows or self.better is None:
            return None
        return (max if self.better == "higher" else min)(rows, key=lambda row: row[1])[0]


def markdown(metrics: Iterable[Metric]) -> str:
    """Markdown table of metrics; those that differ only in their names are one row."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for metric in metrics:
        better = "" if metric.better is None else metric.better
        rows.setdefault((metric.description, metric.unit, better), []).append(f"`{metric.name}`")
    lines = ["| metric | unit | better | meaning |", "|---|---|---|---|"]
    for (description, unit, better), names in rows.items():
        lines.append(f"| {', '.join(names)} | {unit} | {better} | {description} |")
    return "\n".join(lines) + "\n"
