"""Poses of another convention are told by depth, and nothing is told where depth does not know."""

import dataclasses

import pytest
import torch

from four_d.data.agreement import pose_mistake
from four_d.data.readings import pose_mistakes
from four_d.data.truth import Truth
from four_d.geometry import invert_pose, make_pose, pixel_centres, rays
from four_d.types import Cameras


def room(count: int, size: tuple[int, int], *, step: float = 1.0) -> tuple[Cameras, torch.Tensor]:
    """Cameras that go and turn in an empty room, in float64, and the depth f h w that they see."""
    at, zero = step * torch.arange(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    angles = torch.stack([0.1 + 0.04 * at, 0.4 + 0.1 * at, zero + 0.05], dim=-1)
    turns = torch.linalg.matrix_exp(torch.linalg.cross(torch.eye(3).double().expand(count, 3, 3), -angles[:, None]))
    poses = make_pose(turns, torch.stack([0.3 * at - 1, 0.2 * at.sin() + 0.3, 0.2 * at - 0.5], dim=-1))
    height, width = size
    lens = torch.tensor([[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1]], dtype=torch.float64)
    cameras = Cameras(world_from_camera=poses, intrinsics=lens.repeat(count, 1, 1))
    local = rays(cameras.intrinsics, pixel_centres(height, width, poses).reshape(-1, 2).expand(count, -1, -1))
    ways = local @ turns.mT
    walls = ways.sign() * torch.tensor([3.0, 2, 4], dtype=torch.float64) - poses[:, None, :3, 3]
    return cameras, (walls / ways).amin(-1).unflatten(-1, size)


def told(cameras: Cameras, depth: torch.Tensor) -> str | None:
    known = Truth(times=torch.arange(len(depth)).double(), cameras=cameras, surface=None, depth=depth, dynamic=None)
    found = pose_mistake(known)
    assert found is None or found.given < found.mended - 0.25
    return None if found is None else found.remedy


FLIP = torch.diag(torch.tensor([1.0, -1, -1, 1])).double()


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        (lambda pose: pose, None),
        (invert_pose, "stored as camera_from_world: invert"),
        (lambda pose: pose @ FLIP, "camera axes are those of OpenGL"),
        (lambda pose: invert_pose(pose @ FLIP), "camera_from_world with the axes of OpenGL"),
        (lambda pose: make_pose(pose[:, :3, :3].mT, pose[:, :3, 3]), "rotations are transposed"),
    ],
)
@pytest.mark.parametrize("count", [3, 8, 20])
def test_depth_tells_how_poses_were_misread(given, remedy: str | None, count: int) -> None:  # noqa: ANN001
    cameras, depth = room(count, (24, 40), step=8 / count)
    found = told(dataclasses.replace(cameras, world_from_camera=given(cameras.world_from_camera)), depth)
    assert found is None if remedy is None else found is not None and remedy in found


def test_nothing_is_told_where_depth_does_not_know() -> None:
    cameras, depth = room(8, (24, 40))
    still = dataclasses.replace(cameras, world_from_camera=cameras.world_from_camera[:1].expand(8, 4, 4))
    assert told(still, depth[:1].expand(8, -1, -1)) is None
    apart = dataclasses.replace(cameras, world_from_camera=cameras.world_from_camera.clone())
    apart.world_from_camera[:, 0, 3] += 100 * torch.arange(8)
    assert told(apart, depth) is None, "no two frames meet"
    noise = torch.rand(depth.shape, generator=torch.Generator().manual_seed(0)).double()
    for wrong in (2 * depth, depth * (0.7 + 0.6 * noise), 1 + noise):
        assert told(cameras, wrong) is None
    few = Cameras(world_from_camera=cameras.world_from_camera[:1], intrinsics=cameras.intrinsics[:1])
    assert told(few, depth[:1]) is None


def test_mended_poses_keep_their_type() -> None:
    cameras = room(2, (8, 8))[0]
    assert {c.world_from_camera.dtype for c in pose_mistakes(cameras).values()} == {torch.float64}
