from __future__ import annotations

import dataclasses

import pytest
import torch

from four_d.errors import UserError
from four_d.geometry import pixel_centres
from four_d.rendering import compositing, contributors, render
from tests.rendering.scenes import cloud, dense, one, straight, together

SIZE = (16, 19)
"""Twice the principal point of `cloud`'s cameras."""


def test_the_contributors_of_every_pixel_are_those_of_a_plain_loop() -> None:
    gaussians, cameras, times = cloud(70, size=0.2)
    pixels = pixel_centres(*SIZE, gaussians.means).reshape(1, 1, -1, 2)
    found = contributors(gaussians, cameras, times, pixels, 4)
    _, _, _, weights = dense(gaussians, cameras, SIZE)
    expected, order = weights.flatten(0, 1).topk(4, dim=1)
    torch.testing.assert_close(found.weights[0, 0], expected)
    where = expected > 0
    assert (found.indices[0, 0][where] == order[where]).all()
    assert (found.indices[0, 0][~where] == -1).all()
    assert where.any()
    assert (~where).any()


def test_all_weights_of_a_pixel_sum_to_its_alpha(monkeypatch: pytest.MonkeyPatch) -> None:
    gaussians, cameras, times = cloud(50, batch=2, views=2, size=0.2, moves=True, turns=True)
    pixels = pixel_centres(*SIZE, gaussians.means).reshape(1, 1, -1, 2).expand(2, 2, -1, 2)
    alpha = render(gaussians, cameras, times, SIZE, backend="torch").alpha.flatten(2)
    found = contributors(gaussians, cameras, times, pixels, 60)
    torch.testing.assert_close(found.weights.sum(-1), alpha)
    assert found.indices.max() < 50
    monkeypatch.setattr(compositing, "WORK", 7)
    pieces = contributors(gaussians, cameras, times, pixels, 60)
    torch.testing.assert_close(pieces.weights, found.weights)


def test_between_centres_weights_are_those_of_a_picture_that_has_its_centres_there() -> None:
    gaussians, cameras, times = cloud(300, size=0.02)
    pixels = pixel_centres(*SIZE, gaussians.means).reshape(1, 1, -1, 2)
    for shift in ((-0.5, -0.5), (0.49, 0.0), (0.3, 0.49)):
        moved = cameras.intrinsics.clone()
        moved[..., :2, 2] -= torch.tensor(shift, dtype=torch.float64)
        alpha = render(gaussians, dataclasses.replace(cameras, intrinsics=moved), times, SIZE, backend="torch").alpha
        found = contributors(gaussians, cameras, times, pixels + torch.tensor(shift), 40)
        torch.testing.assert_close(found.weights.sum(-1), alpha.flatten(2))


def test_a_gaussian_with_fewer_than_asked_for_and_none() -> None:
    cameras, times = straight()
    gaussians = together(one(3.0, 0.5, 0.05), one(2.0, 0.6, 0.05))
    pixels = torch.tensor([[[[5.5, 4.5], [-300.0, 2000.0]]]])
    found = contributors(gaussians, cameras, times, pixels, 3, size=(9, 11))
    assert found.indices[0, 0].tolist() == [[1, 0, -1], [-1, -1, -1]]
    torch.testing.assert_close(found.weights[0, 0, 0], torch.tensor([0.6, 0.2, 0.0], dtype=torch.float64))


def test_no_pixels_have_no_contributors() -> None:
    gaussians, cameras, times = cloud(5)
    assert contributors(gaussians, cameras, times, torch.zeros(1, 1, 0, 2), 2).indices.shape == (1, 1, 0, 2)


def test_bad_questions_are_refused() -> None:
    gaussians, cameras, times = cloud(5)
    with pytest.raises(UserError, match="ask for 1 or more"):
        contributors(gaussians, cameras, times, torch.zeros(1, 1, 1, 2), 0)
    with pytest.raises(UserError, match="pixels has values that are not finite"):
        contributors(gaussians, cameras, times, torch.full((1, 1, 1, 2), torch.nan), 1)
    with pytest.raises(UserError, match="scales"):
        contributors(
            dataclasses.replace(gaussians, scales=-gaussians.scales), cameras, times, torch.zeros(1, 1, 1, 2), 1
        )
