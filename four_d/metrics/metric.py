"""Metrics as values: name, unit, better direction, definition and computation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal

from four_d.errors import UserError
from four_d.metrics.comparison import Comparison

Task = Literal["depth", "pose", "points", "mask", "motion", "pictures", "tracks", "keypoints"]
"""Tasks in which a held-out video can be scored."""
Validation = Literal["no", "also", "only"]
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
    validation: Validation = "no"
    """Use of a metric of the catalogue in training's validation: none, there as well as in evaluation, or only there.
    A caller's own metric is computed wherever it is given."""

    @property
    def arrow(self) -> str:
        """Arrow towards better values, ↑ or ↓; empty without a better direction."""
        return {"higher": "↑", "lower": "↓", None: ""}[self.better]

    @property
    def heading(self) -> str:
        """Name, direction and unit, for a column's heading."""
        return f"{self.name} {self.arrow}".rstrip() + (f", {self.unit}" if self.unit else "")

    def beats(self, value: float, other: float) -> bool:
        """True where a value is better than another one; never for NaN, nor without a better direction."""
        return {"higher": value > other, "lower": value < other, None: False}[self.better]

    def best(self, values: Iterable[tuple[str, float]]) -> str | None:
        """Name of the best value, the first of equal ones; None without values or a better direction."""
        rows = list(values)
        if not rows or self.better is None:
            return None
        return (max if self.better == "higher" else min)(rows, key=lambda row: row[1])[0]


def check_own(own: Sequence[Metric], taken: Collection[str]) -> None:
    """Raise UserError for a caller's metric whose name another figure has (``taken``), or that has no function."""
    names = [*taken]
    for metric in own:
        if metric.name in names:
            raise UserError(f"there is a figure {metric.name} already; give your metric another name")
        if metric.compute is None:
            raise UserError(f"the metric {metric.name} has no function; give it compute=…")
        names.append(metric.name)


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
