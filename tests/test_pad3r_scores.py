"""Figures of the study of PAD3R: the truth and a scene are compared as their cameras see them from the object."""

from __future__ import annotations

import dataclasses

import pytest
import roma
import torch
from torch import Tensor

from benchmarks.studies import pad3r_clips as clips
from benchmarks.studies.pad3r_scores import as_is, compare, pose_error, scores, still
from four_d import fields
from four_d.deformation import DeformationConfig
from four_d.geometry import invert_pose, make_pose
from four_d.rendering import render
from four_d.scene import DeformableScene, DeformableSceneConfig, initial_scene
from four_d.types import Gaussians

TIMES = torch.arange(clips.FRAMES) / clips.RATE


def moving(name: str = "walker") -> Gaussians:
    return fields.unstack(clips.at_times(clips.THINGS[name](), TIMES[:6]), 0)


def turns(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    rotations = roma.rotvec_to_rotmat(0.8 * torch.randn(count, 3, generator=generator))
    return make_pose(rotations, 0.2 * torch.randn(count, 3, generator=generator))


def test_an_object_described_from_itself_looks_the_same_to_its_cameras() -> None:
    before = moving()
    after, motion = still(before)
    poses = clips.path(140, 1)[:6]
    views = [
        render(fields.stack([each]), clips.cameras(cameras), TIMES[None, :6], (32, 32)).colour
        for each, cameras in ((before, poses), (after, invert_pose(motion) @ poses))
    ]
    assert torch.allclose(views[0], views[1], atol=1e-3)
    again, none = still(after)
    assert torch.allclose(none, torch.eye(4).expand_as(none), atol=1e-4)
    assert again.offsets is not None
    assert torch.allclose(again.offsets, after.offsets, atol=1e-4)  # pyright: ignore[reportArgumentType]


def test_a_rigid_motion_of_an_object_is_its_cameras() -> None:
    before, motion = moving(), turns(6)
    assert before.offsets is not None
    places = (before.means + before.offsets) @ motion[:, :3, :3].mT + motion[:, None, :3, 3]
    moved = dataclasses.replace(before, offsets=places - before.means)
    (one, own), (other, theirs) = still(before), still(moved)
    assert torch.allclose(one.offsets, other.offsets, atol=1e-4)  # pyright: ignore[reportArgumentType]
    assert torch.allclose(motion @ own, theirs, atol=1e-4)
    assert as_is(moved)[0] is moved


def scene_of(name: str, coverage: int) -> DeformableScene:
    """The true object at rest, with the true cameras about it as it turns."""
    thing = clips.THINGS[name]()
    motion = still(fields.unstack(clips.at_times(thing, TIMES), 0))[1]
    poses = invert_pose(motion) @ clips.path(coverage, clips.seed_of(name))
    lenses = clips.cameras(poses).intrinsics[0]
    config = DeformableSceneConfig(
        frames=clips.FRAMES,
        gaussians=len(thing.gaussians.means),
        image_size=(clips.SIZE, clips.SIZE),
        deformation=DeformationConfig(nodes=8, anchored=True),
    )
    return initial_scene(config, thing.gaussians, TIMES, poses, lenses)


@pytest.mark.parametrize("name", ["eel", "walker"])
def test_the_pose_of_an_object_that_turns_is_not_an_error_of_the_cameras(name: str) -> None:
    scene = scene_of(name, 40)
    with torch.no_grad():
        assert pose_error(compare(scene, name, 40, in_world=False)) < 0.1
        assert pose_error(compare(scene, name, 40, in_world=True)) > 10


def test_figures_of_both_descriptions() -> None:
    found = scores(scene_of("eel", 40), "eel", 40, 1.0)
    assert found["psnr"] > found["psnr_in_world"]
    assert found["track_error"] < found["track_error_in_world"]
    assert found["chamfer"] < found["chamfer_in_world"]
