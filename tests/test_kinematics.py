from __future__ import annotations

import pytest
import torch

from four_d import kinematics

TIMES = torch.tensor([0.0, 0.1, 0.35, 0.4, 1.0, 1.2], dtype=torch.float64)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_polynomials_of_the_order_are_exact_at_uneven_times(order: int) -> None:
    coefficients = torch.randn(5, 3, order + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    powers = TIMES ** torch.arange(order + 1)[:, None]
    points = (coefficients @ powers).mT  # 5 points, t, 3
    found = kinematics.derivative(points, TIMES, order)
    factorial = torch.tensor([1, 1, 2, 6])[order]
    assert found.shape == (5, len(TIMES) - order, 3)
    torch.testing.assert_close(found, (factorial * coefficients[:, None, :, -1]).expand_as(found), rtol=1e-9, atol=1e-9)


def test_a_sine_at_uneven_times_is_close() -> None:
    times = torch.linspace(0, 1, 401, dtype=torch.float64) ** 1.3
    points = torch.sin(3 * times)[:, None]
    middle = (times[2:] + times[1:-1] + times[:-2]) / 3
    found = kinematics.derivative(points, times, 2)[:, 0]
    torch.testing.assert_close(found, -9 * torch.sin(3 * middle), rtol=0, atol=1e-3)


def test_a_derivative_is_known_where_all_its_samples_are() -> None:
    valid = torch.tensor([[True, True, True, False, True, True]])
    assert kinematics.known(valid, 0).tolist() == valid.tolist()
    assert kinematics.known(valid, 1).tolist() == [[True, True, False, False, True]]
    assert kinematics.known(valid, 2).tolist() == [[True, False, False, False]]


def test_bones_of_no_length_have_a_finite_gradient() -> None:
    points = torch.tensor([[[0.0, 0, 0], [3, 4, 0], [3, 4, 0]]], requires_grad=True)
    lengths = kinematics.bone_lengths(points, torch.tensor([[0, 1], [1, 2]]))
    assert lengths.tolist() == [[5.0, 0.0]]
    lengths.sum().backward()
    assert points.grad is not None
    assert points.grad.isfinite().all()


def test_each_sample_may_have_bones_of_its_own() -> None:
    points = torch.tensor([0.0, 1, 3, 7])[:, None].expand(2, 5, 4, 3)
    edges = torch.tensor([[[0, 1], [1, 2]], [[3, 0], [2, 2]]])
    found = kinematics.bone_lengths(points, edges[:, None])
    assert found.shape == (2, 5, 2)
    torch.testing.assert_close(found[:, 0] / 3**0.5, torch.tensor([[1.0, 2.0], [7.0, 0.0]]))
