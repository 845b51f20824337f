from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import roma
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from four_d import fields, geometry
from four_d.types import Cameras, Gaussians

SEEDS = st.integers(0, 100_000)
F64 = torch.float64


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def _rotations(*batch: int, seed: int) -> Tensor:
    return roma.unitquat_to_rotmat(torch.nn.functional.normalize(_random(*batch, 4, seed=seed), dim=-1))


def _poses(*batch: int, seed: int) -> Tensor:
    return geometry.make_pose(_rotations(*batch, seed=seed), 3 * _random(*batch, 3, seed=seed + 1))


def _cameras(*batch: int, seed: int) -> Cameras:
    """Focal lengths 20 to 80, principal point near the middle of 12 × 16 pixels."""
    draw = torch.rand(*batch, 4, generator=torch.Generator().manual_seed(seed), dtype=F64)
    intrinsics = torch.zeros(*batch, 3, 3, dtype=F64)
    intrinsics[..., 0, 0], intrinsics[..., 1, 1] = 20 + 60 * draw[..., 0], 20 + 60 * draw[..., 1]
    intrinsics[..., 0, 2], intrinsics[..., 1, 2] = 7 + 2 * draw[..., 2], 5 + 2 * draw[..., 3]
    intrinsics[..., 2, 2] = 1
    return Cameras(world_from_camera=_poses(*batch, seed=seed + 1), intrinsics=intrinsics)


def _angle_between(a: Tensor, b: Tensor) -> Tensor:
    return geometry.rotation_angle(a.mT @ b)


@given(seed=SEEDS)
@settings(max_examples=20)
def test_poses_invert_and_compose(seed: int) -> None:
    a, b = _poses(5, seed=seed), _poses(5, seed=seed + 10)
    torch.testing.assert_close(geometry.invert_pose(a) @ a, torch.eye(4, dtype=F64).expand(5, 4, 4))
    torch.testing.assert_close(geometry.invert_pose(a @ b), geometry.invert_pose(b) @ geometry.invert_pose(a))
    points = _random(5, 7, 3, seed=seed)
    torch.testing.assert_close(geometry.transform(a @ b, points), geometry.transform(a, geometry.transform(b, points)))


@given(seed=SEEDS)
@settings(max_examples=20)
def test_projection_undoes_unprojection(seed: int) -> None:
    cameras = _cameras(2, 3, seed=seed)
    depth = 0.1 + 10 * torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(seed), dtype=F64)
    points = geometry.unproject(depth, cameras)
    pixels, z = geometry.project(points.flatten(2, 3), cameras)
    torch.testing.assert_close(z.unflatten(-1, (12, 16)), depth)
    expected = geometry.pixel_centres(12, 16, depth).expand(2, 3, -1, -1, -1)
    torch.testing.assert_close(pixels.unflatten(-2, (12, 16)), expected)


@given(seed=SEEDS)
@settings(max_examples=20)
def test_a_rigid_move_of_the_world_changes_no_pixel(seed: int) -> None:
    cameras, points = _cameras(3, seed=seed), _random(3, 20, 3, seed=seed)
    move = _poses(seed=seed + 5)
    moved = Cameras(world_from_camera=move @ cameras.world_from_camera, intrinsics=cameras.intrinsics)
    pixels, z = geometry.project(points, cameras)
    pixels_moved, z_moved = geometry.project(geometry.transform(move, points), moved)
    torch.testing.assert_close(z_moved, z)
    front = z.abs() > 1e-3
    torch.testing.assert_close(pixels_moved[front], pixels[front], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(geometry.rebase(moved).world_from_camera, geometry.rebase(cameras).world_from_camera)


def test_rebasing_puts_the_first_camera_at_the_origin_of_every_clip() -> None:
    cameras = _cameras(2, 4, seed=1)
    marks = torch.tensor([True, False, True, True]).expand(2, -1)
    marked = geometry.rebase(dataclasses.replace(cameras, known=marks, intrinsics_known=~marks))
    assert marked.known is marks
    assert marked.intrinsics_known is not None
    assert torch.equal(marked.intrinsics_known, ~marks), "what is known stays so"
    rebased = geometry.rebase(cameras)
    torch.testing.assert_close(rebased.world_from_camera[:, 0], torch.eye(4, dtype=F64).expand(2, 4, 4))
    relative = geometry.invert_pose(cameras.world_from_camera[:, 1]) @ cameras.world_from_camera[:, 3]
    again = geometry.invert_pose(rebased.world_from_camera[:, 1]) @ rebased.world_from_camera[:, 3]
    torch.testing.assert_close(again, relative)


def test_distances_are_those_of_the_points() -> None:
    cameras, depth = _cameras(3, seed=4), _random(3, 12, 16, seed=5).relu()
    expected = geometry.unproject(depth, cameras).norm(dim=-1)
    torch.testing.assert_close(geometry.distances(depth, cameras), expected)


def test_rays_have_unit_z_and_the_principal_ray_is_the_axis() -> None:
    cameras = _cameras(seed=2)
    middle = cameras.intrinsics[:2, 2]
    directions = geometry.rays(cameras.intrinsics, torch.stack([middle, middle + 5]))
    torch.testing.assert_close(directions[0], torch.tensor([0.0, 0, 1], dtype=F64))
    assert directions[1, 2] == 1


def test_points_behind_or_beside_the_camera_project_to_finite_pixels() -> None:
    cameras = Cameras(world_from_camera=torch.eye(4), intrinsics=torch.eye(3))
    pixels, z = geometry.project(torch.tensor([[1.0, 1, 0], [1, 1, -1], [0, 0, 0]]), cameras)
    assert bool(pixels.isfinite().all())
    assert z.tolist() == [0, -1, 0]


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_rotation_angle_is_accurate_from_zero_to_pi(dtype: torch.dtype) -> None:
    smallest = 1e-3 if dtype == torch.float32 else 1e-7
    angles = torch.tensor([0, smallest, 0.1, math.pi / 2, 3, math.pi - smallest, math.pi], dtype=F64)
    axis = torch.nn.functional.normalize(_random(3, seed=3), dim=0)
    rotations = roma.rotvec_to_rotmat(angles[:, None] * axis).to(dtype)
    tolerance = 3e-6 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(geometry.rotation_angle(rotations).double(), angles, rtol=0, atol=tolerance)


@given(seed=SEEDS)
@settings(max_examples=20)
def test_rotation_angle_does_not_depend_on_the_frame(seed: int) -> None:
    r, q = _rotations(9, seed=seed), _rotations(9, seed=seed + 1)
    torch.testing.assert_close(geometry.rotation_angle(q @ r @ q.mT), geometry.rotation_angle(r))
    torch.testing.assert_close(geometry.rotation_angle(r.mT), geometry.rotation_angle(r))
    torch.testing.assert_close(geometry.rotation_angle(r), roma.rotmat_to_rotvec(r).norm(dim=-1))


def test_rotation_angle_has_a_finite_gradient_at_the_identity() -> None:
    rotation = torch.eye(3, dtype=F64, requires_grad=True)
    geometry.rotation_angle(rotation).backward()
    assert rotation.grad is not None
    assert bool(rotation.grad.isfinite().all())


def _centred(*batch: int, seed: int, height: int, width: int) -> Cameras:
    """As `_cameras`, with the principal point in the middle, which the encoding takes for granted."""
    cameras = _cameras(*batch, seed=seed)
    intrinsics = cameras.intrinsics.clone()
    intrinsics[..., 0, 2], intrinsics[..., 1, 2] = width / 2, height / 2
    return Cameras(world_from_camera=cameras.world_from_camera, intrinsics=intrinsics)


@given(seed=SEEDS, height=st.integers(1, 2000), width=st.integers(1, 2000))
@settings(max_examples=20)
def test_the_pose_encoding_decodes(seed: int, height: int, width: int) -> None:
    cameras = _centred(2, 3, seed=seed, height=height, width=width)
    encoding = geometry.encode_cameras(cameras, height, width)
    decoded = geometry.decode_cameras(encoding, height, width)
    torch.testing.assert_close(decoded.world_from_camera, cameras.world_from_camera, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(decoded.intrinsics, cameras.intrinsics, rtol=1e-9, atol=1e-9)
    assert bool((encoding[..., 3] >= 0).all())
    torch.testing.assert_close(encoding[..., 3:7].norm(dim=-1), torch.ones(2, 3, dtype=F64))
    longer = encoding * torch.tensor([1, 1, 1, 7, 7, 7, 7, 1, 1], dtype=F64)
    again = geometry.decode_cameras(longer, height, width)
    torch.testing.assert_close(again.world_from_camera, decoded.world_from_camera)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("angle", [0.0, 1e-6, 1e-3, math.pi - 1e-3, math.pi - 1e-6, math.pi])
def test_the_pose_encoding_decodes_at_extreme_rotations(angle: float, dtype: torch.dtype) -> None:
    axes = torch.cat([torch.eye(3, dtype=F64), -torch.eye(3, dtype=F64), _random(6, 3, seed=4)])
    axes = torch.nn.functional.normalize(axes, dim=-1)
    rotations = roma.rotvec_to_rotmat(angle * axes).to(dtype)
    cameras = Cameras(
        world_from_camera=geometry.make_pose(rotations, axes.to(dtype)),
        intrinsics=_centred(12, seed=5, height=12, width=16).intrinsics.to(dtype),
    )
    decoded = geometry.decode_cameras(geometry.encode_cameras(cameras, 12, 16), 12, 16)
    torch.testing.assert_close(decoded.world_from_camera, cameras.world_from_camera, rtol=0, atol=2e-6)


@pytest.mark.parametrize("field_deg", [0.2, 1.0, 90.0, 170.0, 179.0])
def test_the_pose_encoding_decodes_at_extreme_fields_of_view(field_deg: float) -> None:
    focal = 8 / math.tan(math.radians(field_deg) / 2)
    intrinsics = torch.tensor([[focal, 0, 8], [0, focal, 6], [0, 0, 1]], dtype=F64)
    cameras = Cameras(world_from_camera=torch.eye(4, dtype=F64), intrinsics=intrinsics)
    encoding = geometry.encode_cameras(cameras, 12, 16)
    assert encoding[8].item() == pytest.approx(math.radians(field_deg))
    torch.testing.assert_close(geometry.decode_cameras(encoding, 12, 16).intrinsics, intrinsics, rtol=1e-9, atol=1e-9)


def test_decoding_whatever_a_network_says_is_finite_and_a_camera() -> None:
    wild = torch.cat([_random(50, 9, seed=6) * 100, torch.zeros(1, 9, dtype=F64)])
    wild.requires_grad_()
    cameras = geometry.decode_cameras(wild, 12, 16)
    assert bool(cameras.world_from_camera.isfinite().all())
    assert bool((cameras.intrinsics.diagonal(dim1=-2, dim2=-1) > 0).all())
    rotations = cameras.world_from_camera[:, :3, :3]
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3, dtype=F64).expand(51, 3, 3))
    cameras.world_from_camera.sum().backward()
    assert wild.grad is not None
    assert bool(wild.grad.isfinite().all())


@given(seed=SEEDS, scale=st.floats(0.01, 100), with_scale=st.booleans())
@settings(max_examples=25)
def test_alignment_recovers_the_transform(seed: int, scale: float, with_scale: bool) -> None:
    source, rotation, shift = _random(4, 9, 3, seed=seed), _rotations(4, seed=seed + 1), _random(4, 3, seed=seed + 2)
    true_scale = scale if with_scale else 1.0
    target = true_scale * source @ rotation.mT + shift[:, None]
    valid = torch.rand(4, 9, generator=torch.Generator().manual_seed(seed)) > 0.3
    valid[:, :4] = True
    target = torch.where(valid[..., None], target, 1e3)
    s, r, t = geometry.align_points(source, target, valid, scale=with_scale)
    torch.testing.assert_close(s, torch.full((4,), true_scale, dtype=F64), rtol=1e-9, atol=0)
    torch.testing.assert_close(r, rotation, rtol=0, atol=1e-9)
    torch.testing.assert_close(t, shift, rtol=0, atol=1e-7 * max(1, scale))


@given(seed=SEEDS)
@settings(max_examples=20)
def test_alignment_has_the_least_error_and_never_mirrors(seed: int) -> None:
    source, target = _random(8, 3, seed=seed), _random(8, 3, seed=seed + 1)

    def error(s: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return (s * source @ r.mT + t - target).square().sum()

    s, r, t = geometry.align_points(source, target)
    assert torch.det(r).item() == pytest.approx(1)
    for index in range(10):
        turn = roma.rotvec_to_rotmat(0.05 * _random(3, seed=seed + index))
        assert error(s, turn @ r, t) >= error(s, r, t)
        assert error(s * (1 + 0.05 * _random(1, seed=seed + index)), r, t) >= error(s, r, t)
        assert error(s, r, t + 0.05 * _random(3, seed=seed + index)) >= error(s, r, t)


@pytest.mark.parametrize("points", [1, 2, 5])
def test_alignment_of_degenerate_points_is_finite_and_proper(points: int) -> None:
    same = torch.ones(points, 3, dtype=F64)
    line = torch.arange(points, dtype=F64)[:, None] * torch.tensor([1.0, 2, 3], dtype=F64)
    for source, target in ((same, line), (line, same), (line, -2 * line), (same, same)):
        s, r, t = geometry.align_points(source, target)
        assert bool(torch.cat([s[None], r.flatten(), t]).isfinite().all())
        assert torch.det(r).item() == pytest.approx(1)
        if source is line and target is not same:
            torch.testing.assert_close(s * source @ r.mT + t, target)
    none_valid = torch.zeros(points, dtype=torch.bool)
    assert all(bool(x.isfinite().all()) for x in geometry.align_points(line, line, none_valid))


def test_a_weight_of_alignment_counts_as_so_many_points() -> None:
    source, target = _random(6, 3, seed=4), _random(6, 3, seed=5)
    weights = torch.tensor([3.0, 1, 0, 2, 1, 1], dtype=F64)
    chosen = torch.repeat_interleave(torch.arange(6), weights.long())
    weighed = geometry.align_points(source, target, weights)
    for mine, repeated in zip(weighed, geometry.align_points(source[chosen], target[chosen]), strict=True):
        torch.testing.assert_close(mine, repeated)


def test_alignment_of_a_mirror_image_is_a_rotation() -> None:
    source = _random(6, 3, seed=7)
    mirrored = source * torch.tensor([-1.0, 1, 1], dtype=F64)
    s, r, _ = geometry.align_points(source, mirrored)
    assert torch.det(r).item() == pytest.approx(1)
    assert s > 0


@pytest.mark.parametrize("scale", [True, False])
def test_gradient_of_alignment(scale: bool) -> None:
    source, target = _random(2, 5, 3, seed=8).requires_grad_(), _random(2, 5, 3, seed=9).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: geometry.align_points(a, b, scale=scale), (source, target))


def test_gradients_of_projection_and_encoding() -> None:
    cameras = _cameras(2, seed=10)
    depth = (1 + torch.rand(2, 2, 3, dtype=F64, generator=torch.Generator().manual_seed(0))).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: geometry.unproject(d, cameras), (depth,))
    points = geometry.transform(cameras.world_from_camera, _random(2, 4, 3, seed=11) * 0.2 + torch.tensor([0, 0, 2.0]))
    assert torch.autograd.gradcheck(lambda p: geometry.project(p, cameras), (points.detach().requires_grad_(),))
    encoding = geometry.encode_cameras(_centred(2, seed=12, height=12, width=16), 12, 16).requires_grad_()

    def decode(e: Tensor) -> tuple[Tensor, Tensor]:
        decoded = geometry.decode_cameras(e, 12, 16)
        return decoded.world_from_camera, decoded.intrinsics

    assert torch.autograd.gradcheck(decode, (encoding,))


def test_pixel_centres_are_x_then_y() -> None:
    grid = geometry.pixel_centres(2, 3, torch.zeros(1)).numpy()
    expected = np.stack(np.meshgrid([0.5, 1.5, 2.5], [0.5, 1.5]), axis=-1)
    np.testing.assert_array_equal(grid, expected)


def test_gaussians_are_brought_into_another_world() -> None:
    generator = torch.Generator().manual_seed(0)
    pose = torch.eye(4)
    pose[:3, :3] = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    pose[:3, 3] = torch.tensor([1.0, 2, 3])
    own = Gaussians(
        means=torch.randn(4, 3, generator=generator),
        quats=torch.tensor([2.0, 0, 0, 0]).expand(4, 4),
        scales=torch.rand(4, 3, generator=generator),
        opacities=torch.rand(4, generator=generator),
        harmonics=torch.rand(4, 1, 3, generator=generator),
        offsets=torch.randn(2, 4, 3, generator=generator),
        offset_times=torch.tensor([0.0, 1]),
    )
    found = fields.move(own, geometry.Similarity.of_pose(pose, 2.0))
    assert found.offsets is not None
    assert own.offsets is not None
    torch.testing.assert_close(
        found.means + found.offsets[1], geometry.transform(pose, 2 * (own.means + own.offsets[1])), atol=1e-5, rtol=1e-5
    )
    half = 0.5**0.5
    torch.testing.assert_close(found.quats[0], torch.tensor([2 * half, 0, 2 * half, 0]))
    torch.testing.assert_close(found.scales, 2 * own.scales)
    torch.testing.assert_close(found.harmonics, own.harmonics)
