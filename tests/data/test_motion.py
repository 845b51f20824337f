"""Truth of dense motion against ray casting of the same world, and sparse tracks against dense correspondence."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from four_d import geometry, surface
from four_d.backbones.spacetime import split_cubes
from four_d.data.motion import choose_times, key_frames, with_motion
from four_d.data.sampling import HintProbabilities, collate, model_inputs, normalise, to_clip, to_example
from four_d.errors import UserError
from four_d.types import Cameras, Clip, Tracks, map_tensors
from tests.helpers import box_clip, without_surface


@pytest.fixture(scope="module")
def clip() -> Clip:
    return normalise(to_clip(box_clip(3, frames=5, cameras=2, size=(24, 32)), with_surface=True))


def of_one_camera(clip: Clip) -> Clip:
    """The first camera's pictures, without depth or surface."""
    return Clip(
        images=clip.images[:5],
        times=clip.times[:5],
        camera_ids=clip.camera_ids[:5],
        cameras=map_tensors(clip.cameras, lambda tensor: tensor[:5]),
    )


def points_of(clip: Clip) -> torch.Tensor:
    return geometry.unproject(clip.depth, clip.cameras)


def test_motion_leads_to_where_the_surface_point_is_then(clip: Clip) -> None:
    moved = with_motion(clip, clip.times[:5])
    for q in range(5):
        torch.testing.assert_close(
            (points_of(clip) + moved.motion[q])[clip.valid],
            surface.points(clip.surface, clip.times[q].expand(10))[clip.valid],
            atol=1e-3,
            rtol=0,
        )
    assert moved.motion_valid.equal(clip.valid.expand(5, -1, -1, -1))


def test_static_points_have_none_and_own_times_have_none(clip: Clip) -> None:
    moved = with_motion(clip, clip.times[:5])
    still = surface.instances(clip.surface) <= 1  # the room and the box that stands
    assert float(moved.motion[:, still].abs().max()) == 0
    flying = surface.instances(clip.surface) == 2
    own = (clip.times == clip.times[:5, None])[..., None, None]
    assert float((moved.motion.norm(dim=-1) * own).abs().max()) == 0
    away = moved.motion.norm(dim=-1)[0][flying & ~own[0]]
    assert float(away.min()) > 0.01


def test_a_pixel_sees_itself_and_hidden_points_keep_their_motion(clip: Clip) -> None:
    moved = with_motion(clip, clip.times[:5])
    own = (clip.times == clip.times[:5, None])[..., None, None] & moved.motion_valid
    assert moved.motion_visible[own].float().mean() > 0.999
    hidden = moved.motion_valid & ~moved.motion_visible
    assert hidden.any()
    assert moved.motion[hidden].abs().max() > 0.01, "motion is known also where nobody sees the point"


def test_two_cameras_see_more_than_one(clip: Clip) -> None:
    one = dataclasses.replace(clip, times=clip.times.clone())
    alone = with_motion(dataclasses.replace(one, times=torch.cat([one.times[:5], one.times[5:] + 0])), one.times[:1])
    first = with_motion(one, one.times[:1])
    assert torch.equal(alone.motion_visible, first.motion_visible)
    only_first = surface.visible(
        dataclasses.replace(clip.surface, faces=clip.surface.faces[:1], barycentric=clip.surface.barycentric[:1]),
        dataclasses.replace(
            clip.cameras,
            world_from_camera=clip.cameras.world_from_camera[:1],
            intrinsics=clip.cameras.intrinsics[:1],
        ),
        clip.times[:1],
        (points_of(clip) + first.motion[0]).flatten(0, 2)[None],
        clip.surface.faces.flatten(),
    )[0].view(clip.valid.shape)
    assert (first.motion_visible[0] & ~only_first).any(), "the second camera sees points that the first does not"


@pytest.mark.parametrize("truth", ["surface", "tracks"])
def test_motion_of_some_frames_is_made_of_those_alone(clip: Clip, truth: str) -> None:
    if truth == "tracks":
        clip = normalise(to_clip(without_surface(box_clip(3, frames=5, cameras=2, size=(24, 32)))))
    frames = torch.tensor([7, 0, 4])
    every, some = with_motion(clip, clip.times[:3]), with_motion(clip, clip.times[:3], frames)
    for name in ("motion", "motion_valid", "motion_visible"):
        assert torch.equal(getattr(some, name), getattr(every, name)[:, frames]), name
    assert bool(some.motion_valid.any())
    assert torch.equal(some.motion_frames, frames)
    assert every.motion_frames is None


def test_key_frames_are_those_of_the_spacetime_backbone() -> None:
    times = torch.tensor([0.2, 0.0, 0.3, 0.1, 0.1, 0.3, 0.0, 0.2, 9.0])
    cameras = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 0])
    references = torch.arange(9) == 8
    rig = Clip(images=torch.zeros(9, 3, 8, 8), times=times, camera_ids=cameras, references=references)
    cubes, _ = split_cubes(map_tensors(rig, lambda tensor: tensor[None]), 2)
    assert key_frames(rig, 2).tolist() == cubes[0, :, 0].tolist() == [1, 0, 6, 7]


def test_sparse_tracks_give_what_correspondence_gives_where_they_fall(clip: Clip) -> None:
    raw = box_clip(3, frames=5, cameras=2, size=(24, 32))
    sparse = normalise(to_clip(without_surface(raw)))
    assert sparse.surface is None
    assert sparse.tracks is not None
    dense, few = with_motion(clip, clip.times[2:3]), with_motion(sparse, sparse.times[2:3])
    assert 0 < few.motion_valid.sum() < few.motion_valid.numel() / 4
    both = few.motion_valid & dense.motion_valid
    error = (few.motion * few.scale - dense.motion * dense.scale).norm(dim=-1)[both]
    assert float(error.median()) < 0.02, "metres; a pixel's centre and the track beside it are two points of one body"


def test_the_nearest_track_is_the_one_a_pixel_shows(clip: Clip) -> None:
    ray = geometry.rays(clip.cameras.intrinsics[0], torch.tensor([[10.5, 7.5]]))[0]
    near_far = torch.stack([torch.stack([d * ray, d * ray + torch.tensor([0.1 * d, 0, 0])]) for d in (3.0, 2.0, 4.0)])
    tracks = Tracks(
        points=near_far,
        visible=torch.ones(3, 2, dtype=torch.bool),
        valid=torch.ones(3, 2, dtype=torch.bool),
        times=clip.times[:2],
    )
    moved = with_motion(dataclasses.replace(of_one_camera(clip), tracks=tracks), clip.times[1:2])
    assert int(moved.motion_valid[0, 0].sum()) == 1
    torch.testing.assert_close(moved.motion[0, 0, 7, 10], torch.tensor([0.2, 0, 0]))


def test_what_a_crop_cut_off_is_not_seen(clip: Clip) -> None:
    ray = geometry.rays(clip.cameras.intrinsics[0], torch.tensor([[10.5, 7.5]]))[0]
    away = torch.tensor([50.0, 0.0, 0.0])
    tracks = Tracks(
        points=torch.stack([torch.stack([2 * ray, 2 * ray + away])]),
        visible=torch.ones(1, 2, dtype=torch.bool),
        valid=torch.ones(1, 2, dtype=torch.bool),
        times=clip.times[:2],
    )
    moved = with_motion(dataclasses.replace(of_one_camera(clip), tracks=tracks), clip.times[1:2])
    assert moved.motion_valid[0, 0, 7, 10]
    assert not moved.motion_visible[0, 0, 7, 10]


def test_a_track_that_another_camera_of_the_rig_sees_is_not_taken_for_this_ones() -> None:
    """Two cameras side by side, before one of which something stands: depth tells, and without depth nothing does."""
    pose = torch.eye(4).repeat(2, 1, 1)
    pose[1, 0, 3] = 1.0
    intrinsics = torch.tensor([[8.0, 0, 8], [0, 8, 4], [0, 0, 1]]).expand(2, 3, 3)
    depth = torch.full((2, 8, 16), 4.0)
    depth[1] = 2.0
    rig = Clip(
        images=torch.zeros(2, 3, 8, 16),
        times=torch.zeros(2),
        camera_ids=torch.arange(2),
        cameras=Cameras(world_from_camera=pose, intrinsics=intrinsics),
        depth=depth,
        valid=torch.ones(2, 8, 16, dtype=torch.bool),
    )
    both, one = torch.tensor([0.5, 0.2, 4.0]), torch.tensor([-3.5, 0.2, 4.0])
    ones = torch.ones(2, 1, dtype=torch.bool)
    tracks = Tracks(points=torch.stack([both, one])[:, None], visible=ones, valid=ones, times=torch.zeros(1))
    told = with_motion(dataclasses.replace(rig, tracks=tracks), rig.times[:1])
    assert told.motion_valid[0].nonzero().tolist() == [[0, 4, 1], [0, 4, 9]]
    unsure = with_motion(dataclasses.replace(rig, tracks=tracks, depth=None, valid=None), rig.times[:1])
    assert unsure.motion_valid[0].nonzero().tolist() == [[0, 4, 1]], "the other could be either camera's"


def test_clips_without_correspondence_have_no_valid_motion_and_share_a_batch(clip: Clip) -> None:
    bare = dataclasses.replace(clip, surface=None, tracks=None)
    moved = [with_motion(each, clip.times[:2]) for each in (bare, clip)]
    batch = collate([to_example(each, "x") for each in moved])
    assert batch.targets.motion_valid.flatten(1).any(-1).tolist() == [False, True]
    assert batch.inputs.query_times.shape == (2, 2)
    assert batch.inputs.motion is None


def test_times_are_drawn_alike_and_none_twice_while_there_are_others(clip: Clip) -> None:
    rng = np.random.default_rng(0)
    drawn = torch.stack([choose_times(clip.times, 2, rng) for _ in range(300)])
    assert (drawn[:, 0] != drawn[:, 1]).all()
    counts = torch.stack([(drawn == time).sum() for time in clip.times[:5]])
    assert counts.min() > 80
    assert len(choose_times(clip.times, 7, rng)) == 7


def test_hints_show_the_model_what_is_named_and_nothing_else(clip: Clip) -> None:
    eye = torch.eye(4)
    lens = model_inputs(clip, ("intrinsics",))
    assert torch.equal(lens.cameras.intrinsics, clip.cameras.intrinsics)
    assert torch.equal(lens.cameras.world_from_camera, eye.expand(10, -1, -1))
    assert (lens.cameras.known.any(), lens.cameras.intrinsics_known.all()) == (False, True)
    assert lens.depth is lens.dynamic is None
    pose = model_inputs(clip, ("poses",))
    assert torch.equal(pose.cameras.world_from_camera, clip.cameras.world_from_camera)
    assert not pose.cameras.intrinsics_known.any()
    assert torch.equal(pose.cameras.intrinsics, torch.eye(3).expand(10, -1, -1))
    rest = model_inputs(clip, ("depth", "masks"))
    assert rest.cameras is None
    assert torch.equal(rest.depth, clip.depth)
    assert torch.equal(rest.dynamic, clip.dynamic)


def test_a_batch_flags_which_of_its_clips_have_a_hint(clip: Clip) -> None:
    batch = collate([to_example(clip, "a", ("intrinsics", "depth")), to_example(clip, "b")]).inputs
    assert batch.cameras.intrinsics_known.all(-1).tolist() == [True, False]
    assert not batch.cameras.known.any()
    assert batch.valid.flatten(1).any(-1).tolist() == [True, False]
    assert batch.dynamic is None
    assert collate([to_example(clip, "a")]).inputs.cameras is None


def test_shares_of_hints() -> None:
    rng = np.random.default_rng(0)
    hints = HintProbabilities(intrinsics=0.5, masks=1.0)
    drawn = [hints.draw(rng) for _ in range(200)]
    assert 70 < sum("intrinsics" in each for each in drawn) < 130
    assert all("masks" in each and "depth" not in each for each in drawn)
    assert hints.likely() == ("intrinsics", "masks")
    with pytest.raises(UserError, match="probability"):
        HintProbabilities(poses=1.5)
