"""Points over time: on a plane that moves rigidly before a moving camera every source says what the formula says."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import roma
import torch
from torch import Tensor

from four_d import fields, trajectories
from four_d.errors import UserError
from four_d.geometry import invert_pose, make_pose, pixel_rays, project, transform
from four_d.losses.term import GRID, LossInputs
from four_d.trajectories import Trajectories, at_times
from four_d.types import Cameras, Clip, Gaussians, Prediction, Surface, map_tensors

F, H, W = 4, 12, 16
TIMES = torch.tensor([0.0, 0.2, 0.5, 0.9], dtype=torch.float64)
KEYS = [0, 2]
QUERIES = torch.tensor([[0, 4.5, 3.5], [0, 9.5, 8.5], [2, 7.5, 5.5], [1, 6.5, 6.5]], dtype=torch.float64)
"""Pixel centres; the last is in no key frame."""
BETWEEN = torch.tensor([[0, 4.2, 3.9], [2, 9.1, 7.6], [3, 6.9, 6.2]], dtype=torch.float64)


def body(times: Tensor) -> Tensor:
    """World from body at times: the plane turns about a slanted axis and drifts."""
    turns = roma.rotvec_to_rotmat(times[..., None] * torch.tensor([0.2, -0.3, 0.15], dtype=torch.float64))
    return make_pose(turns, times[..., None] * torch.tensor([0.3, 0.1, 0.4], dtype=torch.float64))


def carried(points: Tensor, at: Tensor, to: Tensor) -> Tensor:
    """Where world points … 3 of time ``at`` … are at the times ``to`` t: … t 3. The formula."""
    moves = body(to) @ invert_pose(body(at))[..., None, :, :]
    return transform(moves, points[..., None, None, :].expand(*moves.shape[:-2], 1, 3))[..., 0, :]


def cameras() -> Cameras:
    turns = roma.rotvec_to_rotmat(0.1 * TIMES[:, None] * torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    centres = TIMES[:, None] * torch.tensor([0.2, -0.1, 0.1], dtype=torch.float64)
    intrinsics = torch.tensor([[14.0, 0, W / 2], [0, 15, H / 2], [0, 0, 1]], dtype=torch.float64).expand(F, 3, 3)
    return Cameras(world_from_camera=make_pose(turns, centres), intrinsics=intrinsics)


CORNERS = torch.tensor([[-9.0, -7, 4], [11, -7, 4.5], [0, 14, 3.5]], dtype=torch.float64)
"""Of the one triangle that fills every picture, in the body's coordinates."""


def hits(origins: Tensor, directions: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """Points of the plane on rays … 3 at times …, and their barycentric weights … 2."""
    first, second, third = transform(body(times), CORNERS.expand(*times.shape, 3, 3)).unbind(-2)
    normal = torch.linalg.cross(second - first, third - first)
    along = (normal * (first - origins)).sum(-1) / (normal * directions).sum(-1)
    points = origins + along[..., None] * directions
    matrix = torch.stack([second - first, third - first, normal], dim=-1)
    return points, torch.linalg.solve(matrix, (points - first)[..., None])[..., :2, 0]


def scene() -> Clip:
    """The truth, every field of it, a batch of one."""
    seen = cameras()
    origins, directions = pixel_rays(seen, H, W)
    at = TIMES[:, None, None].expand(F, H, W)
    points, barycentric = hits(origins[:, None, None].expand_as(directions), directions, at)
    depth = transform(invert_pose(seen.world_from_camera), points.flatten(1, 2))[..., 2].unflatten(1, (H, W))
    motion = (carried(points, at, TIMES) - points[..., None, :]).movedim(3, 0)
    clip = Clip(
        images=torch.zeros(F, 3, H, W, dtype=torch.float64),
        times=TIMES,
        camera_ids=torch.zeros(F, dtype=torch.long),
        cameras=seen,
        depth=depth,
        valid=torch.ones(F, H, W, dtype=torch.bool),
        query_times=TIMES,
        motion=motion,
        motion_valid=torch.ones(F, F, H, W, dtype=torch.bool),
        motion_visible=torch.ones(F, F, H, W, dtype=torch.bool),
        surface=Surface(
            faces=torch.zeros(F, H, W, dtype=torch.long),
            barycentric=barycentric.movedim(-1, 1),
            triangles=torch.tensor([[0, 1, 2]]),
            instances=torch.tensor([1]),
            vertices=transform(body(TIMES), CORNERS.expand(F, 3, 3)),
            times=TIMES,
        ),
    )
    return map_tensors(clip, lambda tensor: tensor[None])


def formula(clip: Clip, queries: Tensor, times: Tensor = TIMES) -> Tensor:
    """1 n t 3."""
    seen = map_tensors(clip.cameras, lambda tensor: tensor[0])
    frames = queries[:, 0].long()
    local = torch.cat(
        [(queries[:, 1:] - seen.intrinsics[frames, :2, 2]) / seen.intrinsics[frames][:, [0, 1], [0, 1]]], -1
    )
    rays = torch.nn.functional.pad(local, (0, 1), value=1.0)
    poses = seen.world_from_camera[frames]
    points, _ = hits(poses[:, :3, 3], (poses[:, :3, :3] @ rays[..., None])[..., 0], TIMES[frames])
    return carried(points, TIMES[frames], times)[None]


def prediction(clip: Clip) -> Prediction:
    """All that a model may say, and right."""
    points = transform(clip.cameras.world_from_camera, camera_points(clip)).unflatten(2, (H, W))
    n = len(KEYS) * H * W
    means = points[:, KEYS].reshape(1, n, 3) + 0.3
    offsets = clip.motion[:, :, KEYS].reshape(1, F, n, 3) - 0.3
    followed = formula(clip, QUERIES)[0]  # n t 3
    tracks = project(followed.transpose(0, 1), map_tensors(clip.cameras, lambda tensor: tensor[0]))[0]
    return Prediction(
        cameras=clip.cameras,
        depth=clip.depth,
        motion=clip.motion,
        motion_visible=torch.ones(1, F, F, H, W, dtype=torch.float64),
        pixel_tracks=tracks[None],
        gaussians=Gaussians(
            means=means,
            quats=torch.ones(1, n, 4, dtype=torch.float64),
            scales=torch.ones(1, n, 3, dtype=torch.float64),
            opacities=torch.full((1, n), 0.7, dtype=torch.float64),
            harmonics=torch.zeros(1, n, 1, 3, dtype=torch.float64),
            offsets=offsets,
            offset_times=TIMES[None],
        ),
        key_frames=torch.tensor([KEYS]),
    )


def camera_points(clip: Clip) -> Tensor:
    """1 f p 3."""
    grid = torch.stack(torch.meshgrid(torch.arange(W) + 0.5, torch.arange(H) + 0.5, indexing="xy"), -1).double()
    local = (grid - clip.cameras.intrinsics[:, :, None, None, :2, 2]) / clip.cameras.intrinsics[
        :, :, None, None, [0, 1], [0, 1]
    ]
    return (torch.nn.functional.pad(local, (0, 1), value=1.0) * clip.depth[..., None]).flatten(2, 3)


def close(found: Trajectories, expected: Tensor) -> None:
    torch.testing.assert_close(found.points[found.valid], expected[found.valid], atol=1e-9, rtol=1e-9)


def test_every_prediction_says_what_the_formula_says() -> None:
    clip = scene()
    found = trajectories.predicted(prediction(clip), clip, QUERIES[None])
    assert found.keys() == {"motion", "gaussians", "pixel_tracks"}
    for name, each in found.items():
        close(each, formula(clip, QUERIES))
        assert torch.equal(each.times, TIMES[None]), name
        assert each.points.shape == (1, len(QUERIES), F, 3)
    assert found["motion"].valid.all()
    assert found["gaussians"].valid[0].all(-1).tolist() == [True, True, True, False], "no key frame"
    assert found["gaussians"].visible[0, 0, 0] == 0.7
    assert found["pixel_tracks"].valid.float().mean() > 0.7


def test_between_pixels_a_plane_is_read_exactly() -> None:
    clip = scene()
    close(trajectories.of_motion(prediction(clip), clip, BETWEEN[None]), formula(clip, BETWEEN))


@pytest.mark.parametrize("source", ["surface", "motion"])
def test_every_truth_says_what_the_formula_says(source: str) -> None:
    clip = scene()
    found = trajectories.true(clip if source == "surface" else dataclasses.replace(clip, surface=None), QUERIES[None])
    assert found is not None
    assert found.valid.all()
    close(found, formula(clip, QUERIES))
    assert found.visible[0, torch.arange(len(QUERIES)), QUERIES[:, 0].long()].eq(1).all(), "seen where it was asked for"
    inside = project(formula(clip, QUERIES)[0].transpose(0, 1), map_tensors(clip.cameras, lambda x: x[0]))[0]
    shown = ((inside >= 0) & (inside <= torch.tensor([W, H]))).all(-1).T
    if source == "surface":
        assert torch.equal(found.visible[0] > 0, shown)


def test_each_clip_of_a_batch_has_the_truth_that_it_has() -> None:
    """A surface, stored motion at two query times, neither."""
    clip, some = scene(), [0, 2]
    stored = dataclasses.replace(
        fields.take(clip, "q", some), surface=dataclasses.replace(clip.surface, faces=clip.surface.faces - 1)
    )
    bare = dataclasses.replace(stored, motion_valid=torch.zeros_like(stored.motion_valid))
    parts = [fields.unstack(each, 0) for each in (fields.take(clip, "q", some), stored, bare)]
    for turned in (parts, parts[::-1]):
        found = trajectories.true(fields.stack(turned), QUERIES.expand(3, -1, -1))
        assert found is not None
        rows = found if turned is parts else fields.take(found, "b", [2, 1, 0])
        assert rows.points.shape == (3, len(QUERIES), F, 3)
        assert rows.valid.all((1, 2)).tolist() == [True, False, False]
        assert rows.valid[1].all(0).tolist() == [True, True, False, False]
        assert not rows.valid[2].any()
        torch.testing.assert_close(rows.points[:1], formula(clip, QUERIES))
        torch.testing.assert_close(rows.points[1:2, :, :2], formula(clip, QUERIES, TIMES[some]))
        assert rows.times[1, :2].tolist() == TIMES[some].tolist()


def test_without_truth_there_is_none_and_what_is_not_known_is_not_valid() -> None:
    clip = scene()
    assert trajectories.true(dataclasses.replace(clip, cameras=None), QUERIES[None]) is None
    assert trajectories.true(dataclasses.replace(clip, surface=None, motion=None), QUERIES[None]) is None
    valid = clip.valid.clone()
    valid[0, 0, 3, 4] = False
    rows = dataclasses.replace(
        clip,
        surface=None,
        valid=valid,
        motion=clip.motion[:, :, KEYS],
        motion_valid=clip.motion_valid[:, :, KEYS],
        motion_visible=clip.motion_visible[:, :, KEYS],
        motion_frames=torch.tensor([KEYS]),
    )
    found = trajectories.true(rows, QUERIES[None])
    assert found is not None
    assert found.valid[0].all(-1).tolist() == [False, True, True, False]
    close(found, formula(clip, QUERIES))


def test_entries_of_other_times_are_picked_where_the_point_is_seen_best() -> None:
    clip = scene()
    true = trajectories.true(clip, QUERIES[None])
    assert true is not None
    some = at_times(true, torch.tensor([[0.9, 0.2, 0.3]], dtype=torch.float64))
    close(some, formula(clip, QUERIES, torch.tensor([0.9, 0.2, 0.3], dtype=torch.float64)))
    assert some.valid[0].all(0).tolist() == [True, True, False], "there is no frame at 0.3 s"
    rig = Trajectories(
        points=torch.arange(9.0).reshape(1, 1, 3, 3),
        visible=torch.tensor([[[0.2, 0.9, 1.0]]]),
        valid=torch.tensor([[[True, True, False]]]),
        times=torch.zeros(1, 3),
    )
    best = at_times(rig, torch.zeros(1, 1))
    assert best.points.flatten().tolist() == [3, 4, 5]
    assert best.visible.item() == pytest.approx(0.9)


@pytest.mark.parametrize("source", ["motion", "gaussians", "pixel_tracks"])
def test_positions_are_differentiable_in_all_that_they_are_made_of(source: str) -> None:
    clip, given = scene(), prediction(scene())
    leaves = {
        "motion": [given.motion, given.depth, given.cameras.world_from_camera],
        "gaussians": [given.gaussians.means, given.gaussians.offsets],
        "pixel_tracks": [given.pixel_tracks, given.depth, given.cameras.world_from_camera],
    }[source]
    for leaf in leaves:
        leaf.requires_grad_()
    found = trajectories.predicted(given, clip, QUERIES[None])[source]
    loss = (found.points * found.valid[..., None]).square().sum()
    gradients = torch.autograd.grad(loss, leaves)
    assert all(bool(gradient.isfinite().all() and gradient.any()) for gradient in gradients)
    step = 1e-6
    for leaf, gradient in zip(leaves, gradients, strict=True):
        direction = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        direction = torch.where(gradient != 0, direction, 0)
        with torch.no_grad():
            leaf += step * direction
            high = trajectories.predicted(given, clip, QUERIES[None])[source]
            leaf -= 2 * step * direction
            low = trajectories.predicted(given, clip, QUERIES[None])[source]
            leaf += step * direction
            slope = sum(
                sign * float((each.points * found.valid[..., None]).square().sum())
                for sign, each in ((1, high), (-1, low))
            )
        assert slope / (2 * step) == pytest.approx(float((gradient * direction).sum()), rel=1e-4)


def test_what_says_nothing_of_pixels_is_left_out() -> None:
    clip, given = scene(), prediction(scene())
    few = dataclasses.replace(given, key_frames=torch.tensor([[0]]))
    assert trajectories.predicted(few, clip, QUERIES[None]).keys() == {"motion", "pixel_tracks"}
    every = trajectories.of_gaussians(few.gaussians, clip.times)
    assert every.points.shape == (1, len(KEYS) * H * W, F, 3)
    nowhere = dataclasses.replace(given, depth=None)
    assert trajectories.predicted(nowhere, clip, QUERIES[None]).keys() == {"gaussians"}
    with pytest.raises(UserError, match="no place to follow"):
        trajectories.of_motion(nowhere, clip, QUERIES[None])
    with pytest.raises(UserError, match="predicts no motion"):
        trajectories.of_motion(dataclasses.replace(given, motion=None), clip, QUERIES[None])


def count(calls: list[int], function: Callable[..., object]) -> Callable[..., object]:
    def counted(*args: object) -> object:
        calls.append(1)
        return function(*args)

    return counted


def test_a_term_gets_trajectories_when_it_asks_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr("four_d.losses.term.predicted", count(calls, trajectories.predicted))
    clip = dataclasses.replace(scene(), query_points=QUERIES[None])
    inputs = LossInputs(prediction=prediction(clip), targets=clip)
    assert not calls
    assert inputs.trajectories["motion"] is inputs.trajectories["motion"]
    assert len(calls) == 1
    true = inputs.true_trajectories
    assert true is not None
    close(inputs.trajectories["pixel_tracks"], true.points)


def test_followed_pixels_are_the_clips_the_models_or_a_grid() -> None:
    clip = scene()
    named = LossInputs(prediction=prediction(clip), targets=dataclasses.replace(clip, query_points=QUERIES[None]))
    assert torch.equal(named.queries, QUERIES[None])
    followed = LossInputs(prediction=prediction(clip), targets=clip)
    assert torch.equal(followed.queries[..., 1:], followed.prediction.pixel_tracks[:, 0])
    assert not followed.queries[..., 0].any()
    grid = LossInputs(prediction=dataclasses.replace(prediction(clip), pixel_tracks=None), targets=clip).queries
    assert grid.shape == (1, GRID * GRID, 3)
    assert torch.equal(grid.frac()[..., 1:], torch.full_like(grid[..., 1:], 0.5)), "centres"
    assert grid[0].amax(0).tolist() == [0, W - 0.5, H - 0.5]
    assert math.isclose(float(grid[..., 1].min()), 0.5)


def test_they_move_and_scale_with_the_world() -> None:
    clip = scene()
    found = trajectories.of_motion(prediction(clip), clip, QUERIES[None])
    assert torch.equal(fields.scale(found, 2.0).points, 2 * found.points)
    assert fields.take(found, "t", [1]).times.tolist() == [[0.2]]
