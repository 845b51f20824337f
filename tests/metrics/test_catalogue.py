"""Metrics as values: one name each; pages list them (``python -m tests.metrics.test_catalogue`` writes the lists)."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import get_args

import pytest

from four_d.errors import UserError
from four_d.metrics.catalogue import GROUPS, KEYPOINTS, METRICS, VALIDATION, VIDEO, of_validation, of_video
from four_d.metrics.comparison import Comparison
from four_d.metrics.metric import Better, Metric, check_own, markdown
from four_d.training.validation import validation_metrics

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("evaluation.md", "training.md")
BLOCK = re.compile(r"(<!-- metrics: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """The page with its tables of metrics written anew."""
    tables = {**GROUPS, "validation": VALIDATION}
    return BLOCK.sub(lambda found: f"{found[1]}{markdown(tables[found[2]])}{found[3]}", page)


@pytest.mark.parametrize("name", PAGES)
def test_pages_list_the_metrics_as_they_are(name: str) -> None:
    page = (DOCS / name).read_text()
    assert with_tables(page) == page, "python -m tests.metrics.test_catalogue writes them"


def test_every_metric_is_on_a_page() -> None:
    text = "".join((DOCS / name).read_text() for name in PAGES)
    assert not [name for name in METRICS if f"`{name}`" not in text]


def test_a_name_means_one_metric() -> None:
    assert all(METRICS[metric.name] is metric for group in GROUPS.values() for metric in group)


def test_a_metric_with_a_function_is_computed_wherever_it_stands() -> None:
    def compute(video: Comparison) -> float | None:
        return float(len(video.targets.times))

    plain, also, only, together = (
        Metric("plain", "", compute=compute),
        Metric("also", "", compute=compute, validation="also"),
        Metric("only", "", compute=compute, validation="only"),
        Metric("together", ""),
    )
    assert of_video((plain, also, only, together)) == (plain, also)
    assert of_validation((plain, also, only, together)) == (also, only)
    computed = {name for name, metric in METRICS.items() if metric.compute is not None}
    assert {metric.name for metric in (*VIDEO, *VALIDATION)} == computed
    assert [metric.name for metric in VALIDATION] == [
        "depth_absrel_median_frame",
        "pose_rot_pairs_deg",
        "motion_epe_relative",
        "object_rot_deg",
    ]


def test_every_metric_of_a_video_belongs_to_a_task() -> None:
    assert not [metric.name for metric in VIDEO if metric.task is None], "tasks=[…] would not leave them out"
    assert {metric.task for metric in KEYPOINTS} == {"keypoints"}


def test_the_best_is_asked_of_the_metric() -> None:
    rows = [("a", 1.0), ("b", 3.0), ("c", 3.0)]
    assert Metric("x", "", better="higher").best(rows) == "b"
    assert Metric("x", "", better="lower").best(rows) == "a"
    assert Metric("x", "").best(rows) is None
    assert Metric("x", "", better="lower").best([]) is None
    assert Metric("x", "", unit="m", better="higher").heading == "x ↑, m"
    assert Metric("x", "").heading == "x"
    assert Metric("x", "", better="higher").beats(2.0, 1.0)
    assert Metric("x", "", better="lower").beats(1.0, 2.0)
    assert not Metric("x", "").beats(1.0, 2.0)
    assert not any(Metric("x", "", better=better).beats(math.nan, 1.0) for better in get_args(Better))


def test_metrics_of_ones_own_need_a_function_and_a_name_of_their_own() -> None:
    def compute(_: Comparison) -> float | None:
        return None

    mine = Metric("mine", "", compute=compute)
    check_own([mine], METRICS)
    for wrong, message in (
        ([Metric("mine", "")], "the metric mine has no function"),
        ([mine, mine], "there is a figure mine already"),
        ([Metric("mask_iou", "", compute=compute)], "there is a figure mask_iou already"),
    ):
        with pytest.raises(UserError, match=message):
            check_own(wrong, METRICS)
    for taken in ("loss", "camera", "elapsed_s", "mask_iou"):
        with pytest.raises(UserError, match=f"there is a figure {taken} already"):
            validation_metrics(["camera"], [Metric(taken, "", compute=compute)])


if __name__ == "__main__":
    for each in PAGES:
        (DOCS / each).write_text(with_tables((DOCS / each).read_text()))
