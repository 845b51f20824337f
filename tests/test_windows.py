"""Windows of a long video become one result in the first one's coordinates, in memory that the window bounds."""

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from four_d.errors import UserError
from four_d.geometry import make_pose, pixel_centres, rays, rotation_angle, unproject
from four_d.inference.fit import fit
from four_d.inference.windows import (
    Part,
    Seam,
    Similarity,
    Windows,
    align,
    border,
    choose,
    join,
    join_frames,
    take_frames,
)
from four_d.types import Cameras, Prediction

SIZE = 12, 16
RADIUS, CENTRE = 6.0, torch.tensor([0.0, 0.0, 3.0], dtype=torch.float64)


def turn(axis: Tensor, angle: float) -> Tensor:
    return torch.linalg.matrix_exp(torch.linalg.cross(torch.eye(3, dtype=axis.dtype), axis.expand(3, 3)).mT * angle)


def truth(count: int) -> Prediction:
    """A camera that wanders and turns inside a ball, whose wall it sees: exact cameras and depth, in float64."""
    poses = []
    for index in range(count):
        centre = torch.tensor([math.sin(index / 9), 0.4 * math.sin(index / 5), index / count], dtype=torch.float64)
        axis = torch.tensor([0.2, 1.0, 0.1], dtype=torch.float64)
        poses.append(make_pose(turn(axis / axis.norm(), 0.05 * index), centre))
    world = torch.stack(poses)
    world = torch.linalg.inv(world[0]) @ world
    height, width = SIZE
    intrinsics = torch.tensor([[14.0, 0, width / 2], [0, 14, height / 2], [0, 0, 1]], dtype=torch.float64)
    cameras = Cameras(world_from_camera=world, intrinsics=intrinsics.expand(count, 3, 3))
    pixels = pixel_centres(height, width, intrinsics).reshape(-1, 2)
    ways = rays(cameras.intrinsics, pixels.expand(count, -1, 2)) @ world[:, :3, :3].mT
    away = world[:, None, :3, 3] - CENTRE
    a, b, c = (ways**2).sum(-1), (ways * away).sum(-1), (away**2).sum(-1) - RADIUS**2
    depth = (-b + (b**2 - a * c).sqrt()) / a
    return Prediction(cameras=cameras, depth=depth.unflatten(-1, SIZE))


def of_window(whole: Prediction, frames: range, scale: float) -> Prediction:
    """What a perfect model says of some frames: in the first one's camera and its own unit."""
    assert whole.cameras is not None
    assert whole.depth is not None
    part = slice(frames.start, frames.stop)
    poses = whole.cameras.world_from_camera[part]
    poses = torch.linalg.inv(poses[0]) @ poses
    poses = torch.cat([poses[:, :3, :3], poses[:, :3, 3:] / scale], dim=-1)
    poses = make_pose(poses[:, :, :3], poses[:, :, 3])
    depth = whole.depth[part] / scale
    cameras = Cameras(world_from_camera=poses.float(), intrinsics=whole.cameras.intrinsics[part].float())
    return Prediction(cameras=cameras, depth=depth.float(), depth_confidence=torch.ones_like(depth).float())


def frames_of(prediction: Prediction, start: int, stop: int) -> Prediction:
    return take_frames(prediction, slice(start, stop))


def part_of(frames: range, prediction: Prediction) -> Part:
    count = len(frames)
    return Part(
        frames=frames,
        fit=fit(SIZE, SIZE, 4),
        prediction=prediction,
        images=torch.zeros(count, 3, *SIZE),
        originals=np.zeros((count, *SIZE, 3), np.uint8),
    )


def perfect_windows(whole: Prediction, plan: list[range], seed: int = 0) -> Iterator[Part]:
    generator = torch.Generator().manual_seed(seed)
    scales = 4 ** (2 * torch.rand(len(plan), generator=generator) - 1)
    scales[0] = 1
    for frames, scale in zip(plan, scales.tolist(), strict=True):
        yield part_of(frames, of_window(whole, frames, scale))


# cutting


@given(st.integers(1, 300), st.integers(2, 40), st.integers(1, 39))
def test_every_frame_is_taken_once_from_the_window_in_whose_middle_it_lies(count: int, size: int, overlap: int) -> None:
    windows = Windows(frames=size, overlap=min(overlap, size - 1))
    plan = windows.plan(count)
    assert plan[0].start == 0
    assert plan[-1].stop == count
    if count <= size:
        assert plan == [range(count)]
        return
    assert all(len(frames) == size for frames in plan)
    assert all(later.start <= earlier.stop - windows.overlap for earlier, later in itertools.pairwise(plan))
    borders = [0, *(border(*pair) for pair in itertools.pairwise(plan)), count]
    assert borders == sorted(set(borders)), "every window gives some frame"
    for frames, start, stop in zip(plan, borders, borders[1:], strict=False):
        for frame in range(start, stop):
            away = [abs(frame - (other.start + other.stop - 1) / 2) for other in plan]
            assert frame in frames
            assert abs(frame - (frames.start + frames.stop - 1) / 2) == min(away)


def test_default_windows_are_those_of_training_twice_and_never_short() -> None:
    assert choose(None, None, 6) == Windows(frames=24, overlap=6)
    assert choose(None, None, 40) == Windows(frames=80, overlap=20)
    assert choose(2, None, 40) == Windows(frames=2, overlap=1)


@pytest.mark.parametrize(
    ("frames", "overlap", "message"),
    [(1, 1, "window is 1; take at least 2"), (8, 8, "overlap is 8, and a window has 8"), (8, 0, "overlap is 0")],
)
def test_windows_that_cannot_be_joined_are_refused(frames: int, overlap: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose(frames, overlap, 8)


# aligning


def test_a_perfect_models_windows_become_the_truth() -> None:
    """100 windows, each in the coordinates of its own first frame and in a unit of its own."""
    whole = truth(304)
    plan = Windows(frames=7, overlap=4).plan(304)
    seams: list[Seam] = []
    parts = list(join(perfect_windows(whole, plan), seams))
    assert len(plan) == 100
    assert [part.frames.start for part in parts[1:]] == [part.frames.stop for part in parts[:-1]]
    joined = join_frames([part.prediction for part in parts])
    assert joined.cameras is not None
    assert joined.depth is not None
    assert whole.cameras is not None
    assert whole.depth is not None
    torch.testing.assert_close(joined.depth.double(), whole.depth, atol=1e-4, rtol=0)
    poses, expected = joined.cameras.world_from_camera.double(), whole.cameras.world_from_camera
    torch.testing.assert_close(poses, expected, atol=1e-4, rtol=0)
    points = unproject(joined.depth, joined.cameras).double()
    torch.testing.assert_close(points, unproject(whole.depth, whole.cameras), atol=1e-4, rtol=0)
    assert all(seam.method == "points" for seam in seams)
    assert max(seam.residual or 0 for seam in seams) < 1e-4


def test_point_maps_and_motion_are_carried_along() -> None:
    whole = truth(12)
    assert whole.cameras is not None
    assert whole.depth is not None
    first, second = (of_window(whole, frames, scale) for frames, scale in ((range(8), 1.0), (range(4, 12), 2.5)))
    as_points = [
        Prediction(points=unproject(one.depth, one.cameras), points_confidence=one.depth_confidence)
        for one in (first, second)
        if one.depth is not None and one.cameras is not None
    ]
    steps = torch.randn(1, 8, *SIZE, 3, generator=torch.Generator().manual_seed(0))
    pose = whole.cameras.world_from_camera[4]
    local = (steps.double() @ pose[:3, :3] / 2.5).float()
    predictions = [as_points[0], dataclasses.replace(as_points[1], motion=local)]
    predictions[0] = dataclasses.replace(predictions[0], motion=torch.zeros_like(steps))
    seams: list[Seam] = []
    frames = [range(8), range(4, 12)]
    parts = list(join([part_of(*pair) for pair in zip(frames, predictions, strict=True)], seams))
    joined = join_frames([part.prediction for part in parts])
    assert joined.points is not None
    assert joined.motion is not None
    torch.testing.assert_close(joined.points.double(), unproject(whole.depth, whole.cameras), atol=1e-4, rtol=0)
    assert joined.motion.shape == (1, 12, *SIZE, 3)
    torch.testing.assert_close(joined.motion[:, 6:], steps[:, 2:], atol=1e-4, rtol=0)
    assert seams[0].scale == pytest.approx(2.5, rel=1e-4)


def test_a_third_of_wrong_points_does_not_move_a_window() -> None:
    """Such as a thing that moves and that the two windows see differently; and what says to move counts for less."""
    whole = truth(12)
    first, second = of_window(whole, range(8), 1.0), of_window(whole, range(4, 12), 2.0)
    assert second.depth is not None
    generator = torch.Generator().manual_seed(0)
    noisy = second.depth * (1 + 0.01 * torch.randn(second.depth.shape, generator=generator))
    noisy[:, :, :5] *= 0.6
    before, after = frames_of(first, 4, 8), frames_of(dataclasses.replace(second, depth=noisy), 0, 4)
    move, seam = align(before, after)
    assert move.scale == pytest.approx(2, rel=0.01)
    assert whole.cameras is not None
    turned = rotation_angle(move.rotation @ whole.cameras.world_from_camera[4, :3, :3].mT)
    assert float(turned.rad2deg()) < 0.5
    assert seam.residual is not None
    assert seam.residual < 0.03 < (seam.residual_90 or 0)


def test_without_points_cameras_align_and_without_those_depth() -> None:
    whole = truth(12)
    first, second = of_window(whole, range(8), 1.0), of_window(whole, range(4, 12), 2.5)
    expected, _ = align(frames_of(first, 4, 8), frames_of(second, 0, 4))
    for field in ("depth", "cameras"):
        only = [Prediction(**{field: getattr(one, field)}) for one in (first, second)]
        parts = [part_of(range(8), only[0]), part_of(range(4, 12), only[1])]
        seams: list[Seam] = []
        list(join(parts, seams))
        assert seams[0].method == field
        assert seams[0].scale == pytest.approx(expected.scale, rel=1e-3)
    poses = [Prediction(cameras=one.cameras) for one in (first, second)]
    move, seam = align(frames_of(poses[0], 4, 8), frames_of(poses[1], 0, 4))
    torch.testing.assert_close(move.rotation, expected.rotation, atol=1e-3, rtol=0)
    torch.testing.assert_close(move.shift, expected.shift, atol=1e-3, rtol=0)
    assert (seam.camera_shift or 0) < 1e-3


def test_a_seam_with_nothing_to_align_by_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    nothing = Prediction(depth=torch.zeros(8, *SIZE))
    seams: list[Seam] = []
    parts = list(join([part_of(range(8), nothing), part_of(range(4, 12), nothing)], seams))
    assert seams == [dataclasses.replace(seams[0], method="none", scale=1.0, residual=None)]
    assert "frames 4 to 7, on which two windows meet, show nothing to align by" in capfd.readouterr().err
    assert sum(len(part.frames) for part in parts) == 12


def test_windows_that_contradict_each_other_are_said_to(capfd: pytest.CaptureFixture[str]) -> None:
    whole = truth(12)
    first, second = of_window(whole, range(8), 1.0), of_window(whole, range(4, 12), 1.0)
    generator = torch.Generator().manual_seed(0)
    depth = torch.nn.functional.interpolate(0.5 + 3 * torch.rand(1, 8, 3, 4, generator=generator), SIZE, mode="bicubic")
    seams: list[Seam] = []
    list(join([part_of(range(8), first), part_of(range(4, 12), dataclasses.replace(second, depth=depth[0]))], seams))
    assert "frames 4 to 7, on which two windows meet, fit badly" in capfd.readouterr().err


def test_a_similarity_keeps_what_a_camera_sees() -> None:
    whole = truth(3)
    rotation = turn(torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64), 0.7)
    move = Similarity(scale=3.0, rotation=rotation, shift=torch.tensor([1.0, 2, 3], dtype=torch.float64))
    moved = move.prediction(whole)
    assert moved.depth is not None
    assert moved.cameras is not None
    assert whole.depth is not None
    assert whole.cameras is not None
    torch.testing.assert_close(
        unproject(moved.depth, moved.cameras), move.points(unproject(whole.depth, whole.cameras))
    )
