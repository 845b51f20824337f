"""From stored clip to example: frames, coordinates, scale, batches."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from four_d import fields, geometry, surface
from four_d.data.contract import RawClip
from four_d.data.motion import with_motion
from four_d.data.sampling import (
    HINTS,
    SamplingConfig,
    choose_frames,
    collate,
    model_inputs,
    normalise,
    to_clip,
    to_example,
)
from four_d.errors import UserError
from four_d.types import Cameras, Clip, Keypoints, Tracks
from tests.helpers import box_clip, full, without_surface


@pytest.fixture(scope="module")
def raw() -> RawClip:
    return box_clip(3, frames=5, cameras=2, size=(24, 32))


def points_of(clip: Clip) -> torch.Tensor:
    assert clip.depth is not None
    assert clip.cameras is not None
    return geometry.unproject(clip.depth, clip.cameras)


def bare(raw: RawClip) -> RawClip:
    """Images alone."""
    return dataclasses.replace(raw, world_from_camera=None, intrinsics=None, surface=None)


@settings(max_examples=80)
@given(
    count=st.integers(1, 30),
    times=st.integers(1, 12),
    cameras=st.integers(1, 5),
    seed=st.integers(0, 10**6),
    shuffle=st.sampled_from([0.0, 1.0]),
)
def test_any_number_of_frames_can_be_chosen(count: int, times: int, cameras: int, seed: int, shuffle: float) -> None:
    config = SamplingConfig(max_cameras=3, max_stride=3, shuffle_share=shuffle)
    all_times, ids = np.tile(np.arange(times), cameras), np.repeat(np.arange(cameras), times)
    chosen = choose_frames((all_times / 12).tolist(), ids.tolist(), count, config, np.random.default_rng(seed))
    assert len(chosen) == count
    assert all(0 <= i < times * cameras for i in chosen)
    assert len(set(ids[chosen])) <= 3
    assert chosen == choose_frames((all_times / 12).tolist(), ids.tolist(), count, config, np.random.default_rng(seed))
    if shuffle == 0:
        assert list(all_times[chosen]) == sorted(all_times[chosen])
    if count <= times:
        assert len(set(chosen)) == count


def test_strides_and_cameras_vary_as_configured() -> None:
    times, ids = np.tile(np.arange(24), 4), np.repeat(np.arange(4), 24)
    config = SamplingConfig(max_stride=3, one_camera_share=0.5, max_cameras=3)
    drawn = [
        choose_frames((times / 12).tolist(), ids.tolist(), 6, config, np.random.default_rng(s)) for s in range(600)
    ]
    single = [frames for frames in drawn if len(set(ids[frames])) == 1]
    assert 0.42 < len(single) / len(drawn) < 0.58
    assert {len(set(ids[frames])) for frames in drawn} == {1, 2, 3}
    assert {int(d) for frames in single for d in np.diff(times[frames])} == {1, 2, 3}
    starts = {int(times[frames[0]]) for frames in single}
    assert {0, 12} <= starts


def test_the_first_frame_carries_the_coordinates_and_the_scale_is_the_mean_distance(raw: RawClip) -> None:
    clip = normalise(to_clip(raw))
    assert clip.cameras is not None
    assert clip.valid is not None
    assert clip.scale is not None
    torch.testing.assert_close(clip.cameras.world_from_camera[0], torch.eye(4))
    assert float(points_of(clip).norm(dim=-1)[clip.valid].mean()) == pytest.approx(1, abs=1e-4)
    assert raw.surface is not None
    decoded = surface.decode(raw.surface, raw.info)
    assert raw.world_from_camera is not None
    true = surface.points(decoded, torch.tensor(raw.info.times))
    first_from_world = geometry.invert_pose(torch.from_numpy(raw.world_from_camera[0])).float()
    expected = geometry.transform(first_from_world, true.flatten(0, 2)).view_as(true)
    torch.testing.assert_close(points_of(clip) * clip.scale, expected, atol=2e-4, rtol=0)


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100))
def test_a_moved_and_scaled_world_gives_the_same_example(seed: int, scale: float) -> None:
    raw = box_clip(3, frames=3, cameras=2, size=16)
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    shift = rng.normal(size=3) * 50
    assert raw.surface is not None
    assert raw.world_from_camera is not None
    poses = raw.world_from_camera.copy()
    poses[:, :3, :3] = turn @ poses[:, :3, :3]
    poses[:, :3, 3] = scale * (raw.world_from_camera[:, :3, 3] @ turn.T) + shift

    def move(points: np.ndarray) -> np.ndarray:
        return (scale * (points @ turn.T) + shift).astype(np.float32)

    stored = raw.surface
    moved = dataclasses.replace(
        raw,
        world_from_camera=poses,
        surface=dataclasses.replace(
            stored, vertices=move(stored.vertices), moving_vertices=move(stored.moving_vertices)
        ),
    )
    a, b = normalise(to_clip(raw)), normalise(to_clip(moved))
    # the moved world's own float32 vertices round at shift / scale
    tolerance = 1e-5 + 2e-6 * 50 / scale
    assert a.cameras is not None
    assert b.cameras is not None
    torch.testing.assert_close(b.cameras.world_from_camera, a.cameras.world_from_camera, atol=tolerance, rtol=0)
    assert a.depth is not None
    torch.testing.assert_close(b.depth, a.depth, atol=tolerance, rtol=0)
    assert a.scale is not None
    assert b.scale is not None
    assert float(b.scale / a.scale) == pytest.approx(scale, rel=1e-4)


def test_stored_depth_and_surface_give_the_same_clip(raw: RawClip) -> None:
    dense, flat = to_clip(raw), to_clip(without_surface(raw))
    torch.testing.assert_close(flat.depth, dense.depth, atol=1e-4, rtol=0)
    assert dense.dynamic is not None
    assert torch.equal(flat.dynamic, dense.dynamic)  # pyright: ignore[reportArgumentType]
    assert 0 < dense.dynamic.float().mean() < 1


def test_tracks_and_surface_move_with_the_cameras(raw: RawClip) -> None:
    flat = normalise(to_clip(without_surface(raw)))
    dense = normalise(to_clip(raw, with_surface=True))
    assert dense.surface is not None
    again = surface.points(dense.surface, dense.times)
    torch.testing.assert_close(again, points_of(dense), atol=1e-4, rtol=0)
    assert flat.tracks is not None
    assert flat.cameras is not None
    # a visible track lies on the depth map of the first frame
    cameras = Cameras(world_from_camera=flat.cameras.world_from_camera[0], intrinsics=flat.cameras.intrinsics[0])
    pixels, z = geometry.project(flat.tracks.points[:, 0], cameras)
    seen = flat.tracks.visible[:, 0]
    assert flat.depth is not None
    x, y = pixels[seen].floor().long().T
    torch.testing.assert_close(flat.depth[0, y, x], z[seen], atol=1e-3, rtol=0)


def test_intrinsics_without_poses_are_a_hint_and_no_camera(raw: RawClip) -> None:
    """No loss may take the stand-in poses for truth; beside a clip with poses each keeps its own flags."""
    plain = without_surface(raw)
    lenses = normalise(to_clip(dataclasses.replace(plain, world_from_camera=None)))
    assert lenses.cameras is not None
    assert lenses.cameras.known is not None
    assert lenses.cameras.intrinsics_known is not None
    assert not lenses.cameras.known.any()
    assert lenses.cameras.intrinsics_known.all()
    moved = with_motion(lenses, lenses.times[:1])
    assert moved.motion_valid is not None
    assert not moved.motion_valid.any()  # tracks in the world say nothing without poses
    hinted = model_inputs(lenses, ("intrinsics", "poses")).cameras
    assert hinted is not None
    torch.testing.assert_close(hinted.intrinsics, lenses.cameras.intrinsics)
    batch = collate([to_example(lenses, "a"), to_example(normalise(to_clip(plain)), "b")]).targets.cameras
    assert batch is not None
    assert batch.known is not None
    assert batch.known.any(1).tolist() == [False, True]


def test_without_depth_the_cameras_give_the_scale(raw: RawClip) -> None:
    posed = normalise(to_clip(dataclasses.replace(raw, surface=None)))
    assert posed.cameras is not None
    assert float(posed.cameras.world_from_camera[1:, :3, 3].norm(dim=-1).mean()) == pytest.approx(1, abs=1e-5)
    still = dataclasses.replace(raw, surface=None, world_from_camera=np.tile(np.eye(4), (10, 1, 1)))
    assert normalise(to_clip(still)).scale == 1
    assert normalise(to_clip(bare(raw))).scale == 1


def test_depth_without_cameras_is_divided_by_its_mean(raw: RawClip) -> None:
    flat = without_surface(raw)
    clip = normalise(to_clip(dataclasses.replace(flat, world_from_camera=None, intrinsics=None)))
    assert clip.depth is not None
    assert clip.valid is not None
    assert float(clip.depth[clip.valid].mean()) == pytest.approx(1, abs=1e-5)


def test_a_batch_flags_what_its_clips_lack(raw: RawClip) -> None:
    full, poor = normalise(to_clip(raw)), normalise(to_clip(bare(raw)))
    batch = collate([to_example(full, "full"), to_example(poor, "poor")])
    targets = batch.targets
    assert batch.key == ["full", "poor"]
    assert targets.cameras is not None
    assert targets.cameras.known is not None
    assert targets.cameras.known.all(-1).tolist() == [True, False]
    assert targets.valid is not None
    assert targets.valid.flatten(1).any(-1).tolist() == [True, False]
    assert targets.dynamic_known is not None
    assert targets.dynamic_known.all(-1).tolist() == [True, False]
    assert targets.depth is not None
    assert torch.equal(targets.depth[0], full.depth)  # pyright: ignore[reportArgumentType]
    given_fields = {f.name for f in dataclasses.fields(Clip) if getattr(batch.inputs, f.name) is not None}
    assert given_fields == {"images", "times", "camera_ids"}


def test_hints_that_only_some_clips_have_are_flagged(raw: RawClip) -> None:
    """A clip without a mask says that it has none; not that nothing in it moves."""
    clip = normalise(to_clip(raw))
    inputs = collate([to_example(clip, "told", ("masks", "depth")), to_example(clip, "not")]).inputs
    assert inputs.dynamic_known is not None
    assert inputs.dynamic_known.all(-1).tolist() == [True, False]
    assert inputs.valid is not None
    assert inputs.valid.flatten(1).any(-1).tolist() == [True, False]
    assert inputs.cameras is None


def test_points_to_follow_reach_the_model_and_the_losses(raw: RawClip) -> None:
    asked = torch.tensor([[0.0, 3, 4], [1, 5, 6]])
    clip = dataclasses.replace(normalise(to_clip(raw)), query_points=asked)
    batch = collate([to_example(clip, "a"), to_example(clip, "b")])
    for part in (batch.inputs, batch.targets):
        assert part.query_points is not None
        assert torch.equal(part.query_points, asked.expand(2, -1, -1))
    with pytest.raises(ValueError, match="1 of 2 values have query_points"):
        collate([to_example(clip, "a"), to_example(to_clip(raw), "b")])


def test_every_field_of_a_clip_survives_collating(raw: RawClip) -> None:
    """Whatever a clip holds, its batch of one holds; and the model sees of it what is declared an input, and hints."""
    clip = with_motion(to_clip(raw, with_surface=True), torch.tensor([0.0]), torch.tensor([0, 2]))
    frames = torch.zeros(len(clip.times), dtype=torch.bool)
    count = len(clip.times)
    named = full(Keypoints, f=count)
    clip = dataclasses.replace(
        clip,
        tracks=full(Tracks),
        references=frames,
        query_points=torch.ones(1, 3),
        keypoints=named,
        keypoint_names=named.names,
        keypoint_boxes=torch.ones(len(named.names), 2, 2),
        views=clip,
    )
    batch = collate([to_example(clip, "a")])
    names = {field.name for field in dataclasses.fields(Clip)}
    assert {name for name in names if getattr(batch.targets, name) is not None} == names
    for name, value in fields.named(clip).items():
        assert torch.equal(fields.named(fields.unstack(batch.targets, 0))[name], value), name
    shown = {name for name in names if getattr(batch.inputs, name) is not None}
    asked = {"query_times", "query_points", "keypoint_names", "keypoint_boxes"}
    assert shown == {"images", "times", "camera_ids", "references", *asked}
    assert HINTS == ("intrinsics", "poses", "depth", "masks", "boxes")
    hinted = {name for name in names if getattr(model_inputs(clip, HINTS), name) is not None} - shown
    assert hinted <= {"cameras", "depth", "valid", "dynamic", "dynamic_known"}


def test_surfaces_and_tracks_of_unequal_size_share_a_batch(raw: RawClip) -> None:
    other = box_clip(4, frames=5, cameras=2, size=(24, 32))
    with_surface = [to_clip(raw, with_surface=True), to_clip(without_surface(other))]
    batch = collate([to_example(normalise(clip), "x") for clip in with_surface]).targets
    assert batch.surface is not None
    assert (batch.surface.faces[1] == -1).all()
    assert batch.tracks is not None
    assert batch.tracks.valid.flatten(1).any(-1).tolist() == [False, True]


def test_unequal_frame_counts_are_refused(raw: RawClip) -> None:
    short = dataclasses.replace(to_clip(bare(box_clip(0, frames=2, cameras=1, size=(24, 32)))))
    with pytest.raises(ValueError, match=r"\[2, 10\] frames"):
        collate([to_example(short, "a"), to_example(to_clip(bare(raw)), "b")])


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(UserError, match="min_frames is 5, max_frames 3"):
        SamplingConfig(min_frames=5, max_frames=3)
    with pytest.raises(UserError, match="max_stride"):
        SamplingConfig(max_stride=0)
