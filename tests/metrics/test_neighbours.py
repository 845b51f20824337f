from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from four_d.metrics.neighbours import LEAF, k_nearest, leaves, nearest_points


@settings(max_examples=25)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 5), st.integers(0, 1000), st.booleans())
def test_the_same_as_comparing_all_pairs(n: int, m: int, k: int, seed: int, flat: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    points, queries = (torch.randn(count, 3, generator=g, dtype=torch.float64) for count in (n, m))
    if flat:  # many equal coordinates
        points = points.round()
    k = min(k, n)
    distance, index = k_nearest(queries, points, k)
    expected = torch.cdist(queries, points, compute_mode="donot_use_mm_for_euclid_dist").topk(k, largest=False).values
    torch.testing.assert_close(distance, expected)
    torch.testing.assert_close((queries[:, None] - points[index]).norm(dim=-1), distance)
    assert all(len(set(row)) == k for row in index.tolist())


def test_every_point_is_in_one_leaf_and_within_its_box() -> None:
    points = torch.randn(3 * LEAF + 7, 3, generator=torch.Generator().manual_seed(0))
    cut = leaves(points)
    assert cut.points.shape[1] <= LEAF
    assert sorted(cut.index[cut.real].tolist()) == list(range(len(points)))
    assert bool(((cut.points >= cut.low[:, None]) & (cut.points <= cut.high[:, None])).all())


def test_far_apart_sets() -> None:
    g = torch.Generator().manual_seed(0)
    points, queries = torch.randn(1000, 3, generator=g), torch.randn(300, 3, generator=g) + 1000
    distance, index = nearest_points(queries, points)
    expected, place = torch.cdist(queries.double(), points.double()).min(1)
    torch.testing.assert_close(distance.double(), expected, rtol=1e-6, atol=0)
    assert (index == place).float().mean() > 0.9  # rounding may choose between neighbours


def test_too_few_points_are_named() -> None:
    with pytest.raises(ValueError, match="3 neighbours among 2 points"):
        k_nearest(torch.zeros(1, 3), torch.zeros(2, 3), 3)
    assert nearest_points(torch.zeros(0, 3), torch.zeros(2, 3))[0].shape == (0,)
