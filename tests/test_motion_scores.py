from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from four_d import evaluation
from four_d.data.shards import finalise, write_shard
from four_d.evaluation import EvaluationConfig, Scores, evaluate, image_free, summary
from four_d.metrics import baselines
from four_d.types import Clip, Example, Prediction, map_tensors
from tests.helpers import Says, box_clip, score_clip
from tests.motion_scene import FRAMES, HEIGHT, SPEED, TIMES, WIDTH, Oracle, scene

ASKED = {"motion_epe_dynamic", "motion_apd_dynamic", "track_epe_dynamic", "motion_scale_error", "seconds_per_clip"}


def first(example: Example) -> Clip:
    return map_tensors(example.targets, lambda tensor: tensor[0])


def said(example: Example) -> Prediction:
    return map_tensors(Oracle(example)(example.inputs), lambda tensor: tensor[0])


def scores_of(prediction: Prediction, example: Example) -> Scores:
    return score_clip(prediction, first(example))


def value(scores: Scores, metric: str) -> float:
    found = scores[metric]
    assert found is not None
    return found


def test_the_truth_scores_perfectly() -> None:
    example = scene()
    for points in (True, False):
        scores = evaluate(Oracle(example, points=points), [example]).rows["model"]
        for metric in ("motion_epe_dynamic", "motion_epe_all", "track_epe_dynamic", "motion_scale_error"):
            assert scores[metric].mean < 1e-5
        for metric in ("motion_apd_dynamic", "motion_apd_all", "track_apd_dynamic"):
            assert scores[metric].mean == 1
        assert scores["motion_visible_accuracy"].mean == scores["motion_visible_balanced"].mean == 1
        assert scores["motion_dynamic_fraction"].mean == 0.5


def test_static_errs_by_the_mean_displacement_in_source_units() -> None:
    example = scene(scale=2.0)
    scores = evaluate(Says(), [example]).rows["static_motion"]
    gaps = (TIMES[:, None] - TIMES).abs()
    mean = SPEED * gaps.sum().item() / (FRAMES * (FRAMES - 1))  # pairs of a frame and its own time do not count
    assert scores["motion_epe_dynamic"].mean == pytest.approx(2 * mean, rel=1e-5)
    assert scores["motion_epe_all"].mean == pytest.approx(mean, rel=1e-5)
    distances = 2 * SPEED * gaps[gaps > 0]
    shares = [(distances < threshold).float().mean().item() for threshold in (0.1, 0.3, 0.5, 1.0)]
    assert scores["motion_apd_dynamic"].mean == pytest.approx(sum(shares) / 4)
    assert "motion_scale_error" not in scores  # it says no points, so it is taken as it is


def test_another_unit_is_a_scale_error_and_nothing_else() -> None:
    example = scene()
    rough = said(example)
    assert rough.motion is not None
    rough = dataclasses.replace(rough, motion=rough.motion + 0.1)
    one = scores_of(rough, example)
    twice = map_tensors(rough, lambda t: t)
    assert twice.points is not None
    assert twice.motion is not None
    two = scores_of(dataclasses.replace(twice, points=2 * twice.points, motion=2 * twice.motion), example)
    for metric in one:
        if metric.startswith(("motion_", "track_")) and metric != "motion_scale_error":
            assert two[metric] == pytest.approx(one[metric], rel=1e-4)
    assert value(one, "motion_epe_all") == pytest.approx(0.2 * math.sqrt(3), rel=1e-4)
    assert two["motion_scale_error"] == pytest.approx(math.log(2), rel=1e-4)
    assert one["motion_scale_error"] == pytest.approx(0, abs=1e-5)


def test_positions_err_by_geometry_and_motion_together() -> None:
    example = scene(scale=3.0)
    right = said(example)
    assert right.points is not None
    assert right.motion is not None
    shift = torch.tensor([0.0, 0, 0.2])
    away = dataclasses.replace(right, motion=right.motion + shift)
    assert scores_of(away, example)["track_epe_dynamic"] == pytest.approx(0.6, rel=1e-4)
    order = right.points.norm(dim=-1).flatten().argsort()
    moved = right.points.clone().flatten(0, 2)
    moved[order[len(order) // 2 + 1 :]] *= 1.5  # points beyond the median: the scale does not see it
    farther = dataclasses.replace(right, points=moved.view(right.points.shape))
    scores = scores_of(farther, example)
    assert value(scores, "track_epe_dynamic") > 0.1
    assert value(scores, "motion_epe_dynamic") < 1e-5


def test_only_pixels_that_are_known_count() -> None:
    example = scene()
    wrong = said(example)
    assert wrong.motion is not None
    assert example.targets.motion_valid is not None
    motion, valid = wrong.motion.clone(), example.targets.motion_valid.clone()
    motion[1, 2, 3, 1] += 5
    motion[torch.eye(FRAMES, dtype=torch.bool)] += 7  # to a frame's own time
    wrong = dataclasses.replace(wrong, motion=motion)
    assert value(scores_of(wrong, example), "motion_epe_all") > 0.01
    valid[0, 1, 2, 3, 1] = False
    unknown = dataclasses.replace(example, targets=dataclasses.replace(example.targets, motion_valid=valid))
    assert value(scores_of(wrong, unknown), "motion_epe_all") < 1e-5


def test_visibility_is_judged_apart_for_what_is_seen_and_what_is_not() -> None:
    example = scene()
    assert example.targets.motion_visible is not None
    away = ~torch.eye(FRAMES, dtype=torch.bool)
    share = example.targets.motion_visible[0][away].float().mean().item()
    always = dataclasses.replace(said(example), motion_visible=torch.ones(FRAMES, FRAMES, HEIGHT, WIDTH))
    scores = scores_of(always, example)
    assert scores["motion_visible_accuracy"] == pytest.approx(share)
    assert scores["motion_visible_balanced"] == 0.5
    silent = scores_of(dataclasses.replace(always, motion_visible=None), example)
    assert "motion_visible_accuracy" not in silent


def test_a_video_in_which_nothing_moves_is_excluded_and_counted() -> None:
    moving, still = scene(), scene(seed=1)
    assert still.targets.motion is not None
    quiet = dataclasses.replace(still.targets, motion=torch.zeros_like(still.targets.motion))
    still = dataclasses.replace(still, targets=quiet)
    scores = evaluate(Oracle(moving), [moving, still]).rows["static_motion"]
    counts = {metric: (score.videos, score.excluded) for metric, score in scores.items()}
    assert counts["motion_epe_dynamic"] == counts["motion_apd_dynamic"] == (1, 1)
    assert counts["motion_epe_all"] == counts["motion_dynamic_fraction"] == (2, 0)
    assert scores["motion_dynamic_fraction"].mean == 0.25


def test_the_prior_beats_static_where_all_training_videos_drift_alike() -> None:
    def drifting(seed: int) -> Example:
        example = scene(seed)
        assert example.targets.motion is not None
        drift = (TIMES[:, None] - TIMES)[..., None, None, None] * torch.tensor([1.0, 0, 0])
        return dataclasses.replace(
            example, targets=dataclasses.replace(example.targets, motion=example.targets.motion + drift)
        )

    predictors = baselines.fit_baselines([drifting(seed) for seed in range(6)])
    result = evaluate(Says(), [drifting(7), drifting(8)], predictors=predictors)
    prior, static = (result.rows[row]["motion_epe_dynamic"].mean for row in ("prior_motion", "static_motion"))
    assert prior < 0.6 * static
    best = result.best_image_free("motion_epe_dynamic")
    assert best is not None
    assert best[1].mean <= prior
    assert "track_epe_dynamic" in result.rows["line_points"]


def test_studies_find_the_figures_of_motion() -> None:
    example = scene()
    result = evaluate(Oracle(example), [example])
    mine, free = summary(result), image_free(result)
    assert mine["motion_epe_dynamic"] < 1e-5 < free["motion_epe_dynamic"]
    assert mine["motion_apd_dynamic"] == 1 > free["motion_apd_dynamic"]
    assert mine["track_epe_dynamic"] < 1e-4 < free["track_epe_dynamic"]
    assert mine["motion_dynamic_fraction"] == 0.5
    assert mine["seconds_per_clip"] > 0
    assert "seconds_per_clip" not in free
    assert result.best_image_free("seconds_per_clip") is None, "being fast is no contest"
    assert result.best_image_free("motion_dynamic_fraction") is None, "a fact"


def test_a_model_that_was_not_asked_pays_nothing_and_is_not_scored() -> None:
    example = scene()
    quiet = Example(
        inputs=dataclasses.replace(example.inputs, query_times=None),
        targets=dataclasses.replace(
            example.targets, query_times=None, motion=None, motion_valid=None, motion_visible=None
        ),
        key=example.key,
    )
    result = evaluate(Oracle(example), [quiet])
    assert not any(metric.startswith(("motion", "track", "sec")) for row in result.rows.values() for metric in row)


def test_the_page_explains_every_metric_of_motion() -> None:
    page = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text()
    example = scene()
    result = evaluate(Oracle(example), [example], predictors=baselines.fit_baselines([example]))
    assert set(result.rows["model"]) >= ASKED
    assert "prior_motion" in result.rows
    for row, scores in result.rows.items():
        assert f"`{row}`" in page or row == "model"
        assert all(f"`{metric}`" in page for metric in scores if metric.startswith(("motion", "track", "sec")))


def test_run_asks_for_the_times_of_all_frames_and_gives_hints(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, [box_clip(0, frames=5, size=(16, 24))])
    finalise(tmp_path, "boxes")
    shown: list[Clip] = []

    def model(clip: Clip) -> Prediction:
        shown.append(clip)
        return Prediction()

    config = EvaluationConfig(data=str(tmp_path), frames=6, cameras=2, clips=1, hints=("intrinsics", "masks"))
    told = Says(model, hints={"intrinsics": "optional", "masks": "optional"})
    evaluation.run(told, config)
    assert shown[0].query_times is None  # it has no motion head
    result = evaluation.run(told, dataclasses.replace(config, motion=True))
    plain, asked = shown
    assert asked.query_times is not None
    assert asked.times.shape == (1, 6)
    assert asked.query_times.tolist() == asked.times[:, :3].tolist()  # two cameras share three times
    for clip in (plain, asked):
        assert clip.dynamic is not None
        assert clip.depth is None
        assert clip.cameras is not None
        assert clip.cameras.intrinsics_known is not None
        assert bool(clip.cameras.intrinsics_known.all())
        assert clip.cameras.known is None or not bool(clip.cameras.known.any())
    assert "given intrinsics, masks" in result.note
    static = result.rows["static_motion"]
    assert static["motion_epe_dynamic"].mean > static["motion_epe_all"].mean > 0
    assert 0 < static["motion_dynamic_fraction"].mean < 1


def test_run_shows_pairs_if_told_to(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, [box_clip(0, frames=4, cameras=1, size=(16, 24))])
    finalise(tmp_path, "boxes")
    frames: list[int] = []

    def model(clip: Clip) -> Prediction:
        frames.append(clip.times.shape[-1])
        return baselines.untrained()["static_camera"](clip)

    result = evaluation.run(Says(model), EvaluationConfig(data=str(tmp_path), frames=4, pairwise=True))
    assert set(frames) == {2}
    assert "two frames at a time" in result.note


def test_only_what_is_asked_for_is_scored() -> None:
    example = scene()
    found = evaluate(Oracle(example), [example], tasks=("motion",))
    assert {metric.split("_")[0] for metric in found.rows["model"]} == {"motion", "track", "seconds"}


def test_a_model_is_scored_one_query_time_after_the_other() -> None:
    """As all at once, and an earlier time's motion is gone when the next is made."""
    example = scene(scale=2.0)
    whole = Oracle(example)(example.inputs)
    assert whole.motion is not None
    assert whole.motion_visible is not None
    noise = 0.1 * torch.randn(whole.motion.shape, generator=torch.Generator().manual_seed(0))
    whole = dataclasses.replace(whole, motion=whole.motion + noise, motion_visible=1 - whole.motion_visible)
    alive: list[weakref.ref[torch.Tensor]] = []

    class Passing(Says):
        def __call__(self, clip: Clip) -> Prediction:  # noqa: ARG002
            raise AssertionError("all times at once")

        def passes(self, clip: Clip) -> Iterator[Prediction]:  # noqa: ARG002
            assert whole.motion is not None
            assert whole.motion_visible is not None
            for query in range(whole.motion.shape[1]):
                assert all(reference() is None for reference in alive), "an earlier time's motion is still held"
                moved = whole.motion[:, query : query + 1].clone()
                alive.append(weakref.ref(moved))
                seen = whole.motion_visible[:, query : query + 1]
                rest = whole if query == 0 else Prediction()
                yield dataclasses.replace(rest, motion=moved, motion_visible=seen)
                del moved

    together = evaluate(Says(lambda _: whole), [example]).rows["model"]
    passing = evaluate(Passing(), [example]).rows["model"]
    assert len(alive) == whole.motion.shape[1] > 1
    for metric in together.keys() - {"seconds_per_clip"}:
        assert passing[metric].mean == pytest.approx(together[metric].mean, rel=1e-6), metric
