"""MVTracker's scores of single tracks, computed by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from four_d.metrics.rig_tracks import RigThresholds, counted, from_query, grouped, movement, rig_scores

THRESHOLDS = RigThresholds(within=(0.05, 0.1, 0.2, 0.4, 0.8), survival=0.25, static=0.5, dynamic=1.5, very_dynamic=5.0)
VISIBLE = torch.tensor([[True, True, False, True], [True, True, True, True]])
QUERIES = torch.tensor([0, 1])


def test_a_track_by_hand() -> None:
    """Asked for at 0; errors of 0, .03, .5 (hidden, but said to be seen) and .3 (seen, but said to be hidden)."""
    truth = torch.zeros(2, 4, 3)
    truth[0, :, 0] = torch.tensor([0.0, 1, 9, 2])
    predicted = truth.clone()
    predicted[0, :, 1] = torch.tensor([0, 0.03, 0.5, 0.3])
    predicted[1, 0] = 7  # before the query nothing counts
    said = torch.tensor([[True, True, True, False], [False, True, True, True]])
    found = rig_scores(predicted, said, truth, VISIBLE, QUERIES, THRESHOLDS)
    by_hand = {
        "jaccard": 1 / 3,
        "within": (1 / 2 + 1 / 2 + 1 / 2 + 1 + 1) / 5,
        "occlusion": 1 / 3,
        "median": 0.03,
        "mean": 0.33 / 3,
        "final": 0.3,
        "survival": 3 / 4,
    }
    perfect = dict.fromkeys(by_hand, 1.0) | dict.fromkeys(("median", "mean", "final"), 0.0)
    for name, value in by_hand.items():
        assert getattr(found, name).tolist() == pytest.approx([value, perfect[name]], abs=1e-6), name
    moved = movement(truth, from_query(VISIBLE, QUERIES))
    assert moved.tolist() == [2, 0]  # the hidden detour is no movement
    means = grouped(found, moved, THRESHOLDS)
    assert list(means) == ["", "_static", "_dynamic", "_balanced"]  # nothing is very dynamic
    for name, value in by_hand.items():
        assert means["_dynamic"][name] == pytest.approx(value)
        assert means["_static"][name] == pytest.approx(perfect[name])
        assert means["_balanced"][name] == means[""][name] == pytest.approx((value + perfect[name]) / 2)


def test_a_set_without_movement_thresholds_has_one_group() -> None:
    plain = dataclasses.replace(THRESHOLDS, static=None, dynamic=None, very_dynamic=None)
    truth = torch.zeros(2, 4, 3)
    found = rig_scores(truth, VISIBLE, truth, VISIBLE, QUERIES, plain)
    assert list(grouped(found, torch.zeros(2), plain)) == [""]


def test_tracks_that_are_seen_once_from_their_query_on_do_not_count() -> None:
    visible = torch.tensor([[True, True, False], [True, False, True], [True, True, True]])
    assert counted(visible, torch.tensor([1, 0, 2])).tolist() == [False, True, False]
