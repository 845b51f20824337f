"""Metrics as values: one name each; pages list them (``python -m tests.metrics.test_catalogue`` writes the lists)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from four_d.metrics.catalogue import GROUPS, METRICS, VALIDATION
from four_d.metrics.metric import Metric, markdown

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("evaluation.md", "training.md")
BLOCK = re.compile(r"(<!-- metrics: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """The page with its tables of metrics written anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{markdown(GROUPS[found[2]])}{found[3]}", page)


@pytest.mark.parametrize("name", PAGES)
def test_pages_list_the_metrics_as_they_are(name: str) -> None:
    page = (DOCS / name).read_text()
    assert with_tables(page) == page, "python -m tests.metrics.test_catalogue writes them"


def test_every_metric_is_on_a_page() -> None:
    text = "".join((DOCS / name).read_text() for name in PAGES)
    assert not [name for name in METRICS if f"`{name}`" not in text]


def test_a_name_means_one_metric() -> None:
    assert all(METRICS[metric.name] is metric for group in GROUPS.values() for metric in group)
    assert all(metric.better == "lower" for metric in VALIDATION), "as training takes them"


def test_the_best_is_asked_of_the_metric() -> None:
    rows = [("a", 1.0), ("b", 3.0), ("c", 3.0)]
    assert Metric("x", "", better="higher").best(rows) == "b"
    assert Metric("x", "", better="lower").best(rows) == "a"
    assert Metric("x", "").best(rows) is None
    assert Metric("x", "", better="lower").best([]) is None
    assert Metric("x", "", unit="m", better="higher").heading == "x ↑, m"
    assert Metric("x", "").heading == "x"


if __name__ == "__main__":
    for each in PAGES:
        (DOCS / each).write_text(with_tables((DOCS / each).read_text()))
