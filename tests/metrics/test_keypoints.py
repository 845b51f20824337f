from __future__ import annotations

import pytest
import torch

from four_d.metrics import keypoints


def test_pck_by_hand() -> None:
    """The limit of a picture of 360 × 480 is 24 pixels, and 24 is too far."""
    truth = torch.zeros(5, 2)
    predicted = torch.tensor([[0.0, 23.9], [24.0, 0.0], [20.0, 20.0], [14.0, -14.0], [torch.nan, 0.0]])
    assert keypoints.pck(predicted, truth, (480, 360)).item() == pytest.approx(0.4)
    assert keypoints.pck(predicted, truth, (360, 480), ratio=0.06).item() == pytest.approx(0.8)
    with pytest.raises(AssertionError, match="no keypoint"):
        keypoints.pck(truth[:0], truth[:0], (4, 4))


def test_pairs_are_ordered_and_share_a_keypoint() -> None:
    visible = torch.tensor([[True, True, False], [False, True, True], [True, False, False]])
    found = [(i, j, shared.tolist()) for i, j, shared in keypoints.pairs(visible)]
    assert found == [
        (0, 1, [False, True, False]),
        (0, 2, [True, False, False]),
        (1, 0, [False, True, False]),
        (2, 0, [True, False, False]),
    ]


def test_a_video_counts_its_pairs_alike() -> None:
    """Two keypoints in frames 0 and 1, one in frame 2: a pair of one keypoint weighs as much as one of two."""
    visible = torch.tensor([[True, True], [True, True], [True, False]])
    points = torch.tensor([[[10.0, 10], [50, 50]], [[20, 10], [60, 50]], [[30, 10], [0, 0]]])
    carried = points[None].expand(3, -1, -1, -1).clone()
    carried[0, 1, 1] += 30  # wrong: half of pair (0, 1)
    carried[2, 0, 0] += 30  # wrong: all of pair (2, 0)
    carried[0, 2, 1] = torch.nan  # not seen in both
    found = keypoints.pck_of_video(carried, points, visible, (100, 80))
    assert found.item() == pytest.approx((0.5 + 1 + 1 + 1 + 0 + 1) / 6)
