"""The bars of a reference model: what is read from an evaluation, and when each is met."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import held_out
from four_d.abilities import Abilities
from four_d.evaluation import Evaluation, Score


def score(mean: float) -> Score:
    return Score(mean=mean, standard_error=0.0, videos=1, excluded=0)


def found(**rows: dict[str, float]) -> Evaluation:
    named = {row: {metric: score(value) for metric, value in each.items()} for row, each in rows.items()}
    return Evaluation(name="model", rows=named, keys=("a",), per_video={}, digest="")


def test_figures_have_the_rows_that_bars_are_set_by() -> None:
    rows = {
        "model": {"depth_absrel_median_frame": 0.2, "render_psnr": 20.0, "pose_rot_pairs_deg": 2.0},
        "mean_depth": {"depth_absrel_median_frame": 0.5},
        "median_depth": {"depth_absrel_median_frame": 0.4},
        "copy": {"render_psnr": 17.0},
        "still": {"pose_rot_pairs_deg": 5.0},
    }
    table = held_out.figures(found(**rows))
    assert table["depth_absrel_median_frame"] == {
        "model": 0.2,
        "mean_depth": 0.5,
        "best": 0.4,
        "best_is": "median_depth",
    }
    assert table["render_psnr"] == {"model": 20.0, "copy": 17.0}
    assert table["pose_rot_pairs_deg"] == {"model": 2.0, "best": 5.0, "best_is": "still"}


@pytest.mark.parametrize(
    ("way", "metric", "figures", "met"),
    [
        ("steady", "depth_absrel_median_frame", {"model": 0.22, "mean_depth": 0.5}, True),
        ("fast", "depth_absrel_median_frame", {"model": 0.23, "mean_depth": 0.5}, False),
        ("fast", "pose_rot_pairs_deg", {"model": 3.4, "best": 10.0}, True),
        ("curved", "pose_ate_sim3", {"model": 0.08, "best": 0.1}, False),
        ("steady", "mask_iou", {"model": 0.6}, True),
        ("steady", "motion_epe_dynamic", {"model": 0.14, "best": 0.27}, False),
        ("steady", "render_psnr", {"model": 20.9, "copy": 16.0}, False),
        ("steady", "render_psnr_dynamic", {"model": 18.1, "copy": 16.0}, True),
    ],
)
def test_a_bar_is_met_or_missed(way: str, metric: str, figures: dict[str, float], met: bool) -> None:
    lines = held_out.judged({f"{way}_64": {metric: figures}})
    assert [(line["scored"], line["metric"], line["met"]) for line in lines] == [(f"{way}_64", metric, met)]


def test_bars_of_what_was_not_scored_are_left_out() -> None:
    assert held_out.judged({"fast_64": {"pose_rot_pairs_deg": {"model": 3.0}, "mask_iou": {"model": 0.1}}}) == []


def test_worlds_differ_in_size_alone() -> None:
    for way in held_out.WAYS.values():
        other = held_out.at(way.held_out, size="96")
        changed = [(place, b) for place, (a, b) in enumerate(zip(way.held_out, other, strict=True)) if a != b]
        assert changed == [(way.held_out.index("--size") + 1, "96")]
        assert "--held-out" in way.held_out
        assert "--held-out" not in way.train


def test_a_model_is_given_what_it_takes_and_what_it_needs() -> None:
    way = held_out.WAYS["steady"]
    unposed = Abilities(outputs=frozenset({"depth"}))
    posed = Abilities(outputs=frozenset({"gaussians"}), hints={"poses": "required", "intrinsics": "required"})
    taken = [held_out.settings(way, each, 64, Path("a"), Path("b")).hints for each in (unposed, posed)]
    assert taken == [(), ("intrinsics", "poses")]
