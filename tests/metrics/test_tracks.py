from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import roma
import torch
from torch import Tensor

from four_d.metrics import tracks

DATA = Path(__file__).parents[1] / "data"
"""Results of published code on random arrays; `SOURCE.md` there."""
FOCAL = math.sqrt(210.0 * 190.0)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _walk(count: int = 30, times: int = 6) -> Tensor:
    g = _generator()
    start = torch.rand(count, 1, 3, generator=g, dtype=torch.float64) + torch.tensor([0.0, 0, 2])
    return start + 0.1 * torch.randn(count, times, 3, generator=g, dtype=torch.float64).cumsum(1)


def _turned(points: Tensor) -> Tensor:
    turn = roma.rotvec_to_rotmat(torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64))
    return 0.4 * (points @ turn.mT) + torch.tensor([1.0, -2, 0.5])


def test_epe_is_a_mean_and_apd_counts_the_limit_itself() -> None:
    truth = torch.zeros(4, 3)
    predicted = torch.tensor([[0.0, 0, 0.5], [0, 0.25, 0], [2.0, 0, 0], [0, 0, 7]])
    errors = tracks.endpoint_errors(predicted, truth)
    where = torch.tensor([True, True, True, False])
    assert float(tracks.epe(errors, where)) == pytest.approx((0.5 + 0.25 + 2) / 3)
    # within 0.1: none; 0.3: one; 0.5: two, one of them exactly there; 1: two
    assert float(tracks.apd(errors, where)) == pytest.approx((0 + 1 + 2 + 2) / 3 / 4)
    assert float(tracks.apd(errors, where, (2.0,))) == 1
    with pytest.raises(AssertionError):
        tracks.epe(errors, torch.zeros(4, dtype=torch.bool))


def test_the_global_scale_is_a_ratio_of_medians() -> None:
    truth = torch.tensor([[0.0, 0, 1], [0, 2, 0], [0, 0, 4], [8, 0, 0]])
    predicted = torch.tensor([[0.0, 0, 1], [0, 1, 0], [0, 0, 1], [0, 0, 100]])
    assert float(tracks.median_scale(predicted, truth)) == pytest.approx(3)  # (2 + 4) / 2 over 1
    assert float(tracks.median_scale(torch.zeros(4, 3), truth)) == 1


def test_tracks_move_by_the_length_of_their_paths() -> None:
    paths = torch.zeros(3, 5, 3)
    paths[1, ::2, 0] = 0.004  # there and back: 4 steps
    paths[2, :, 1] = torch.linspace(0, 0.009, 5)
    assert tracks.path_length(paths).tolist() == pytest.approx([0, 0.016, 0.009])
    assert tracks.moving(paths).tolist() == [False, True, False]
    valid = torch.ones(3, 5, dtype=torch.bool)
    valid[1, 2] = False  # two of its steps are not known
    assert not tracks.moving(paths, valid).any()


@pytest.mark.parametrize("alignment", ["sim3_closed", "sim3"])
def test_a_similarity_undoes_unit_and_world(alignment: tracks.WorldAlignment) -> None:
    truth = _walk()
    aligned = tracks.align_world(_turned(truth), truth, alignment, _generator())
    torch.testing.assert_close(aligned, truth)


def test_ransac_is_not_moved_by_outliers() -> None:
    truth = _walk(200)
    predicted = _turned(truth)
    wrong = predicted.clone()
    wrong[::4] += torch.tensor([3.0, 0, 1])
    robust = tracks.align_world(wrong, truth, "sim3", _generator())
    kept = torch.arange(200) % 4 > 0
    torch.testing.assert_close(robust[kept], truth[kept])
    least_squares = tracks.align_world(wrong, truth, "sim3_closed", _generator())
    assert tracks.endpoint_errors(least_squares, truth)[kept].mean() > 0.1
    two = tracks.align_world(predicted[:1, :2], truth[:1, :2], "sim3", _generator())
    torch.testing.assert_close(two, truth[:1, :2])
    many = torch.rand(tracks.RANSAC_POINTS + 500, 3, generator=_generator(), dtype=torch.float64)
    scale, _, _ = tracks.ransac(_turned(many), many, _generator(), iterations=5)
    assert float(scale) == pytest.approx(2.5)


def test_scales_of_all_and_of_each_track() -> None:
    truth = _walk()
    torch.testing.assert_close(tracks.align_world(0.3 * truth, truth, "global", _generator()), truth)
    own = torch.linspace(0.5, 2, len(truth), dtype=torch.float64)[:, None, None] * truth
    torch.testing.assert_close(tracks.align_world(own, truth, "per_trajectory", _generator()), truth)
    assert (tracks.align_world(own, truth, "global", _generator()) - truth).abs().max() > 0.1
    assert tracks.align_world(own, truth, "none", _generator()) is own


def _world_arrays(seed: int, noise: float, count: int = 60, times: int = 10) -> tuple[Tensor, Tensor]:
    """The arrays of the golden file: half of the tracks move, the prediction is in another unit and a little turned."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform([-1, -1, 1.5], [1, 1, 4], (count, 1, 3)).repeat(times, 1)
    moves = rng.random(count) < 0.5
    truth[moves] += rng.normal(0, 0.05, (int(moves.sum()), times, 3)).cumsum(1)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turn *= np.linalg.det(turn)
    left, _, right = np.linalg.svd(np.eye(3) + 0.1 * (turn - np.eye(3)))
    predicted = 0.6 * (truth + rng.normal(0, noise, truth.shape)) @ (left @ right).T + 0.05
    return torch.from_numpy(predicted), torch.from_numpy(truth)


@pytest.mark.parametrize(
    "row",
    json.loads((DATA / "worldtrack_scores.json").read_text()),
    ids=lambda row: f"{row['alignment']}-{row['subset']}-{row['seed']}",
)
def test_worldtrack_agrees_with_the_published_code(row: dict[str, Any]) -> None:
    predicted, truth = _world_arrays(row["seed"], row["noise"])
    chosen = tracks.moving(truth) if row["subset"] == "dynamic" else torch.ones(len(truth), dtype=torch.bool)
    alignment = cast(tracks.WorldAlignment, row["alignment"])
    aligned = tracks.align_world(predicted[chosen], truth[chosen], alignment, _generator())
    errors = tracks.endpoint_errors(aligned, truth[chosen])
    where = torch.ones_like(errors, dtype=torch.bool)
    assert float(tracks.apd(errors, where)) == pytest.approx(row["apd"], abs=1e-11)
    assert float(tracks.epe(errors, where)) == pytest.approx(row["epe"], abs=1e-11)


def test_scene_flow_takes_absolute_or_relative_errors() -> None:
    truth = torch.tensor([[1.0, 0, 0], [2.0, 0, 0], [0.2, 0, 0], [10.0, 0, 0]])
    predicted = truth + torch.tensor([[0.0, 0.04, 0], [0, 0, 0.08], [0, 0.08, 0], [0, 0, 0.35]])
    found = tracks.scene_flow(predicted, truth)
    assert found.epe == pytest.approx((0.04 + 0.08 + 0.08 + 0.35) / 4)
    assert found.strict == 0.75  # 4 cm; 4 %; neither; 3.5 %
    assert found.relaxed == 1
    assert found.outliers == 0.5  # 40 %; 0.35 m


def _arrays(seed: int, noise: float, count: int = 40, times: int = 12) -> tuple[Tensor, ...]:
    """The arrays of the golden file, half of the tracks beside the others."""
    rng = np.random.default_rng(seed)
    start = rng.uniform([-1, -1, 1.5], [1, 1, 4], (count, 1, 3))
    start[count // 2 :] = start[: count - count // 2] + rng.normal(0, 0.02, (count - count // 2, 1, 3))
    truth = start + rng.normal(0, 0.02, (count, times, 3)).cumsum(1)
    predicted = 0.6 * (truth + rng.normal(0, noise, truth.shape))
    visible, said = rng.random((count, times)) < 0.7, rng.random((count, times)) < 0.8
    arrays = predicted, said, truth, visible, rng.integers(0, times, count)
    return tuple(torch.from_numpy(array) for array in arrays)


@pytest.mark.parametrize(
    "row", json.loads((DATA / "tapvid3d_scores.json").read_text()), ids=lambda row: f"{row['scaling']}-{row['seed']}"
)
def test_tapvid3d_agrees_with_the_published_code(row: dict[str, Any]) -> None:
    predicted, said, truth, visible, queries = _arrays(row["seed"], row["noise"])
    found = tracks.tapvid3d(
        predicted,
        said,
        truth,
        visible,
        focal=FOCAL,
        query_frames=queries,
        scaling=cast(tracks.Scaling, row["scaling"]),
        fixed=row["fixed"],
    )
    for name, value in vars(found).items():
        assert value == pytest.approx(row[name] if isinstance(value, float) else tuple(row[name]), abs=1e-11), name


def test_tapvid3d_by_hand() -> None:
    """One track, four times, at a depth of 2 m with a focal length of 200: distances are 1, 2, 4, 8, 16 cm."""
    truth = torch.tensor([[0.0, 0, 2]]).expand(1, 4, 3)
    predicted = truth + torch.tensor([[[0.0, 0, 0], [0.03, 0, 0], [0, 0, 0], [0.5, 0, 0]]])
    visible = torch.tensor([[True, True, False, True]])
    said = torch.tensor([[True, True, True, False]])
    queries = torch.tensor([0])
    found = tracks.tapvid3d(predicted, said, truth, visible, focal=200.0, query_frames=queries, scaling="none")
    assert found.occlusion == 0.5
    assert found.within_at == pytest.approx((1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3))
    # false positives: the hidden time, and the second where it is not near
    assert found.jaccard_at == pytest.approx((1 / 5, 1 / 5, 2 / 4, 2 / 4, 2 / 4))
    assert found.jaccard == pytest.approx(sum(found.jaccard_at) / 5)


def test_nothing_visible_scores_nothing() -> None:
    truth, hidden = torch.ones(2, 3, 3), torch.zeros(2, 3, dtype=torch.bool)
    queries = torch.zeros(2, dtype=torch.long)
    found = tracks.tapvid3d(truth, hidden, truth, hidden, focal=200.0, query_frames=queries)
    assert (found.jaccard, found.within, found.occlusion) == (0, 0, 1)


def test_ransac_fits_again_to_what_is_within_five_centimetres() -> None:
    truth = _walk(200)
    predicted = truth + 0.005 * torch.randn(truth.shape, generator=_generator(), dtype=torch.float64)
    everything = tracks.align_world(_turned(predicted), truth, "sim3_closed", _generator())
    torch.testing.assert_close(tracks.align_world(_turned(predicted), truth, "sim3", _generator()), everything)
    kept = torch.arange(200) % 4 > 0
    predicted[~kept] += torch.tensor([0.15, 0, 0], dtype=torch.float64)
    good = tracks.align_world(_turned(predicted[kept]), truth[kept], "sim3_closed", _generator())
    found = tracks.align_world(_turned(predicted), truth, "sim3", _generator())
    torch.testing.assert_close(found[kept], good)


def test_a_sample_is_of_three_different_points() -> None:
    three = _walk(3)[:, 0]
    for seed in range(20):
        scale, _, _ = tracks.ransac(_turned(three), three, torch.Generator().manual_seed(seed), iterations=1)
        assert float(scale) == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("length", "strict", "relaxed", "outlier"), [(0.0, 0.05, 0.1, 1e-5), (1.0, 0.05, 0.1, 0.1), (5.0, 0.25, 0.5, 0.3)]
)
def test_scene_flow_has_the_published_limits(length: float, strict: float, relaxed: float, outlier: float) -> None:
    """Acc3DS 0.05 m or 5 %, Acc3DR 0.1 m or 10 %, outliers 0.3 m or 10 %, to the true length + 0.1 mm (HPLFlowNet)."""
    truth = torch.tensor([[length, 0.0, 0.0]], dtype=torch.float64)
    for limit, name, inside in ((strict, "strict", 1.0), (relaxed, "relaxed", 1.0), (outlier, "outliers", 0.0)):
        for share in (0.99, 1.01):
            off = torch.tensor([[0.0, share * limit, 0.0]], dtype=torch.float64)
            value = getattr(tracks.scene_flow(truth + off, truth), name)
            assert value == (inside if share < 1 else 1 - inside), (name, share)
