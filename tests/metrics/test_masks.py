from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from four_d.metrics import masks


def _square(top: int, left: int, size: int, height: int = 40, width: int = 60) -> Tensor:
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[0, top : top + size, left : left + size] = True
    return mask


def test_region_is_intersection_over_union() -> None:
    a, b = _square(5, 5, 10), _square(5, 10, 10)
    assert masks.region(a, b).item() == pytest.approx(50 / 150)
    assert masks.region(a, a).item() == 1
    assert masks.region(a, ~a).item() == 0
    empty = torch.zeros_like(a)
    assert masks.region(empty, empty).item() == 1
    assert masks.region(a, empty).item() == masks.region(empty, a).item() == 0


def test_boundary_is_the_pixel_left_of_or_above_a_change() -> None:
    edge = masks.boundary(_square(2, 3, 2, height=6, width=8))[0]
    expected = torch.tensor(
        [
            [0, 0, 0, 0, 0, 0, 0, 0],
            [0, 0, 1, 1, 1, 0, 0, 0],
            [0, 0, 1, 0, 1, 0, 0, 0],
            [0, 0, 1, 1, 1, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 0, 0],
        ]
    )
    assert torch.equal(edge.int(), expected.int())
    full = torch.ones(1, 4, 5, dtype=torch.bool)
    assert not masks.boundary(full).any()


def test_dilation_is_a_disk() -> None:
    dot = _square(20, 30, 1)
    for radius in (0, 1, 3, 8):
        y, x = torch.meshgrid(torch.arange(40) - 20, torch.arange(60) - 30, indexing="ij")
        assert torch.equal(masks.dilate(dot, radius)[0], x**2 + y**2 <= radius**2)
    assert masks.dilate(_square(0, 0, 1), 2)[0].sum() == 6  # cut by the corner


def test_contours_within_the_tolerance_count() -> None:
    a = _square(5, 5, 20)
    radius = math.ceil(0.008 * math.hypot(40, 60))
    assert radius == 1
    assert masks.contour(a, a).item() == 1
    assert masks.contour(a, _square(5, 6, 20)).item() == 1  # one pixel aside
    aside = masks.contour(a, _square(5, 8, 20)).item()
    assert 0.4 < aside < 0.7  # the horizontal sides still agree
    assert masks.contour(a, _square(5, 8, 20), tolerance=0.05).item() == 1


def test_contour_is_the_harmonic_mean_of_precision_and_recall() -> None:
    one = _square(5, 5, 10)
    both = one | _square(25, 40, 10)
    assert masks.contour(one, both).item() == pytest.approx(2 / 3)  # precision 1, recall ½
    assert masks.contour(both, one).item() == pytest.approx(2 / 3)


def test_empty_contours() -> None:
    a = _square(5, 5, 10)
    empty = torch.zeros_like(a)
    assert masks.contour(empty, empty).item() == 1
    assert masks.contour(a, empty).item() == masks.contour(empty, a).item() == 0


def test_frames_are_scored_each_alone() -> None:
    a, b = _square(5, 5, 10), _square(5, 10, 10)
    prediction, target = torch.cat([a, a, b]), torch.cat([a, b, b])
    assert masks.region(prediction, target).tolist() == pytest.approx([1, 1 / 3, 1])
    assert masks.contour(prediction, target)[[0, 2]].tolist() == [1, 1]
