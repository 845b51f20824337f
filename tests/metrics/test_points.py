from __future__ import annotations

import math

import pytest
import roma
import torch
from torch import Tensor

from four_d import geometry
from four_d.metrics import points


def _cloud(count: int, seed: int = 0) -> Tensor:
    """Points on three walls of a room, whose normals are the axes."""
    g = torch.Generator().manual_seed(seed)
    cloud = torch.rand(count, 3, generator=g, dtype=torch.float64)
    cloud[torch.arange(count), torch.randint(0, 3, (count,), generator=g)] = 0
    return cloud + torch.tensor([0.0, 0, 2])


def _motion(degrees: float, shift: float) -> Tensor:
    turn = roma.rotvec_to_rotmat(torch.tensor([0.0, math.radians(degrees), 0], dtype=torch.float64))
    return geometry.make_pose(turn, torch.tensor([shift, -shift, shift / 2], dtype=torch.float64))


def test_accuracy_goes_to_the_truth_and_completeness_back() -> None:
    truth = torch.tensor([[0.0, 0, 1], [0, 0, 2], [0, 0, 4]])
    found = points.scores(torch.tensor([[0.0, 0, 1], [0, 3, 2]]), truth)
    assert found.accuracy == pytest.approx(1.5)
    assert found.accuracy_median == pytest.approx(1.5)
    back = [0, 1, 3]  # to the first, the first and the first point
    assert found.completeness == pytest.approx(sum(back) / 3)
    assert found.completeness_median == 1
    half = points.scores(truth[:2], truth)  # what is there is right, what is missing is not
    assert half.accuracy == 0
    assert half.completeness == pytest.approx(2 / 3)


def test_corresponding_points_of_any_similarity_align() -> None:
    truth = _cloud(200)
    other = 0.3 * geometry.transform(_motion(70, 5), truth)
    torch.testing.assert_close(points.align_corresponding(other, truth), truth)


def test_scale_and_shift_take_medians() -> None:
    truth = _cloud(301)
    depth = torch.tensor([0.0, 0, 1], dtype=torch.float64)
    torch.testing.assert_close(points.align_scale_shift(truth + 3 * depth, truth), truth)
    # a scale about the camera is undone up to where the first median leaves x and y
    scaled = points.align_scale_shift(5 * truth, truth)
    torch.testing.assert_close(scaled, truth)
    turned = points.align_scale_shift(geometry.transform(_motion(5, 0.0), truth), truth)
    assert (turned - truth).norm(dim=-1).mean() > 0.03  # no rotation is found


def test_scale_and_shift_by_hand() -> None:
    truth = torch.tensor([[0.0, 0, 1], [0, 0, 2], [0, 0, 5]])  # median z 2, distances 1, 0, 3: spread 1
    mine = torch.tensor([[0.0, 0, 10], [0, 0, 14], [0, 0, 16]])  # median 14, distances 4, 0, 2: spread 2
    expected = torch.tensor([[0.0, 0, 0], [0, 0, 2], [0, 0, 3]])
    torch.testing.assert_close(points.align_scale_shift(mine, truth), expected)


def test_icp_finds_a_small_motion_and_its_direction() -> None:
    truth = _cloud(4000)
    motion = _motion(2, 0.02)
    found = points.icp(geometry.transform(geometry.invert_pose(motion), truth), truth, 0.1)
    torch.testing.assert_close(found, motion, atol=2e-3, rtol=0)
    assert (found - geometry.invert_pose(motion)).abs().max() > 0.02


def test_icp_ignores_what_is_too_far_and_never_scales() -> None:
    truth = _cloud(2000)
    far = torch.cat([truth, truth + 10])
    torch.testing.assert_close(points.icp(far, truth, 0.1), torch.eye(4, dtype=torch.float64), atol=1e-9, rtol=0)
    nothing = points.icp(truth + 10, truth, 0.1)
    assert torch.equal(nothing, torch.eye(4, dtype=torch.float64))
    rotation = points.icp(1.02 * truth, truth, 0.1)[:3, :3]
    assert torch.det(rotation) == pytest.approx(1, abs=1e-9)


def test_normals_are_those_of_the_walls() -> None:
    cloud = _cloud(3000)
    normals = points.estimate_normals(cloud)
    torch.testing.assert_close(normals.norm(dim=-1), torch.ones(3000, dtype=torch.float64))
    wall = (cloud - torch.tensor([0.0, 0, 2], dtype=torch.float64)).argmin(-1)
    inner = ((cloud - torch.tensor([0.0, 0, 2], dtype=torch.float64)).sort(-1).values[:, 1]) > 0.25
    along = normals.abs()[torch.arange(3000), wall][inner]
    assert along.min() > 0.999


def test_normal_consistency_is_one_for_the_same_and_less_for_turned_walls() -> None:
    cloud = _cloud(3000)
    same = points.scores(cloud, _cloud(3000, seed=1), normals=True)
    assert same.normals is not None
    assert min(same.normals) > 0.95
    plane = torch.rand(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plane[:, 2] = 0
    tilted = geometry.transform(_motion(60, 0.0), plane)
    found = points.scores(tilted, plane, normals=True)
    assert found.normals == pytest.approx((0.5, 0.5), abs=0.01)


def test_normals_of_too_few_points() -> None:
    assert points.estimate_normals(torch.rand(2, 3)).tolist() == [[0, 0, 1]] * 2


def test_thinning_keeps_correspondence_and_the_ends() -> None:
    cloud = _cloud(1000)
    thin = points.thin(cloud, 10)
    assert torch.equal(thin[0], cloud[0])
    assert torch.equal(thin[-1], cloud[-1])
    assert torch.equal(points.thin(cloud + 1, 10), thin + 1)
    assert points.thin(cloud, 1000) is cloud
