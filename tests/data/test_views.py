"""Frames that pictures are compared with: which they are, and that their truth is the example's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from four_d import config as configs
from four_d import fields, geometry
from four_d.data.augment import NO_AUGMENT
from four_d.data.loading import DataConfig, TrainingSteps
from four_d.data.sampling import HintProbabilities, SamplingConfig, disparity_scale, normalise, to_clip
from four_d.data.shards import finalise, write_shard
from four_d.data.sources import SourceConfig
from four_d.data.views import ViewsConfig, choose_references, choose_views, split
from four_d.errors import UserError
from four_d.types import Clip
from tests.helpers import box_clip, full

TIMES = [0.0, 0.1, 0.2, 0.3, 0.4] * 2
CAMERAS = [0] * 5 + [1] * 5


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_shard(root, 0, [box_clip(seed, frames=6, cameras=2, size=24) for seed in range(3)])
    finalise(root, "boxes")
    return root


def test_dual_views_are_two_cameras_at_one_time_within_the_example(rng: np.random.Generator) -> None:
    for _ in range(20):
        views = choose_views(TIMES, CAMERAS, [1, 3], ViewsConfig(count=4), rng)
        pairs = [(views[0], views[1]), (views[2], views[3])]
        assert all(TIMES[a] == TIMES[b] and {CAMERAS[a], CAMERAS[b]} == {0, 1} for a, b in pairs)
        assert all(0.1 <= TIMES[index] <= 0.3 for index in views)
        assert TIMES[views[0]] != TIMES[views[2]], "three times are there for two pairs"
    seen = {TIMES[i] for _ in range(30) for i in choose_views(TIMES, CAMERAS, [1, 3], ViewsConfig(count=2), rng)}
    assert 0.2 in seen, "times between the example's own are asked for too"


def test_single_views_are_the_examples_own_camera(rng: np.random.Generator) -> None:
    views = choose_views(TIMES, CAMERAS, [6, 8], ViewsConfig(count=5, dual=False), rng)
    assert {CAMERAS[index] for index in views} == {1}
    alone = choose_views(TIMES[:5], CAMERAS[:5], [0, 4], ViewsConfig(count=4), rng)
    assert len(alone) == 4
    with pytest.raises(UserError, match=r"views\.count is 3"):
        ViewsConfig(count=3)


def test_references_lie_outside_the_time_of_the_example(rng: np.random.Generator) -> None:
    assert set(choose_references(TIMES, CAMERAS, [1, 2, 3], 2, rng)) == {0, 4}
    assert {CAMERAS[i] for i in choose_references(TIMES, CAMERAS, [5, 6, 7, 8, 9], 2, rng)} == {1}
    assert choose_references(TIMES, CAMERAS, [0, 1], 0, rng) == []


def make_config(folder: Path, **more: object) -> DataConfig:
    return DataConfig(
        sources={"boxes": SourceConfig(path=str(folder))},
        sampling=SamplingConfig(min_frames=3, max_frames=3, max_stride=1, one_camera_share=1.0),
        image_size=(16, 16),
        images_per_batch=6,
        query_times=5,
        hints=HintProbabilities(poses=1.0, intrinsics=1.0),
        augment=NO_AUGMENT,
        **more,  # pyright: ignore[reportArgumentType]
    )


def test_an_example_has_its_views_in_its_own_coordinates_and_unit(folder: Path) -> None:
    """The still floor that a view sees lies where the example's frames saw it."""
    config = make_config(folder, views=ViewsConfig(count=4), references=1)
    example = TrainingSteps(config, 3)[0].batches[0]
    targets, views = example.targets, example.targets.views
    assert views is not None
    assert example.inputs.views is None, "the model must not see them"
    assert targets.references.tolist() == [[False, False, False, True]] * 2
    assert torch.equal(example.inputs.references, targets.references)
    assert views.images.shape == (2, 4, 3, 16, 16)
    torch.testing.assert_close(views.scale, targets.scale)
    own = torch.cat([targets.times, views.times], dim=1)
    for clip in range(2):
        for view in range(4):
            same = [f for f in range(3) if own[clip, f] == views.times[clip, view]]
            same = [f for f in same if targets.camera_ids[clip, f] == views.camera_ids[clip, view]]
            for frame in same:
                torch.testing.assert_close(targets.images[clip, frame], views.images[clip, view])
                torch.testing.assert_close(targets.depth[clip, frame], views.depth[clip, view])
                poses = (targets.cameras.world_from_camera[clip, frame], views.cameras.world_from_camera[clip, view])
                torch.testing.assert_close(*poses)
    assert set(targets.query_times[0].tolist()) == set(targets.times[0, :3].tolist()), "references ask for no motion"


def test_splitting_splits_all_that_belongs_to_frames() -> None:
    clip = full(Clip, k=5)
    clip = dataclasses.replace(clip, motion_frames=None)
    main = split(clip, 1, 2)
    assert clip.motion is not None
    assert main.motion is not None
    assert torch.equal(main.motion, clip.motion[:, :3])
    assert main.references is not None
    assert main.references.tolist() == [False, False, True]
    assert main.views is not None
    assert main.views.motion is not None
    assert torch.equal(main.views.motion, clip.motion[:, 3:])


def test_motion_is_made_of_key_frames_alone_where_no_others_are_read(folder: Path) -> None:
    """As DGS-LRM's recipe: a quarter of the frames, a quarter of the memory."""
    config = make_config(folder, views=ViewsConfig(count=2), references=1)
    every = TrainingSteps(config, 3)[0].batches[0].targets
    some = TrainingSteps(dataclasses.replace(config, motion_every=3), 3)[0].batches[0].targets
    assert some.motion_frames.shape == (2, 1)
    assert some.motion.shape == (2, 5, 1, 16, 16, 3)
    for clip, frame in enumerate(some.motion_frames[:, 0]):
        assert torch.equal(some.motion[clip, :, 0], every.motion[clip, :, frame])
    assert every.motion.shape == (2, 5, 4, 16, 16, 3)


@pytest.mark.parametrize("recipe", ["dgs_lrm", "unified"])
def test_a_view_shows_what_the_input_shows_of_the_same_frame_to_the_bit(folder: Path, recipe: str) -> None:
    """Under the augmentation that the recipe ships: what a picture is compared with is not recoloured by itself."""
    shipped = configs.load([recipe], ["data.sources.boxes.path=none"]).data
    config = dataclasses.replace(make_config(folder, views=shipped.views), augment=shipped.augment)
    assert config.augment.per_frame_share > 0, "or nothing is tested"
    steps, compared, recoloured = TrainingSteps(config, 3), 0, 0
    plain = TrainingSteps(dataclasses.replace(config, augment=dataclasses.replace(NO_AUGMENT, zoom=0.8)), 3)
    for number in range(12):
        example, before = steps[number].batches[0], plain[number].batches[0]
        inputs, views = example.inputs, example.targets.views
        recoloured += int((inputs.images - before.inputs.images).abs().amax() > 0.05)
        same = (inputs.times[:, :, None] == views.times[:, None]) & (
            inputs.camera_ids[:, :, None] == views.camera_ids[:, None]
        )
        for clip, frame, view in same.nonzero().tolist():
            assert torch.equal(inputs.images[clip, frame], views.images[clip, view])
            compared += 1
    assert compared > 20
    assert recoloured > 6, "inputs and pictures change their colours, together"


def test_disparity_fixes_the_unit_whatever_it_was() -> None:
    clip = to_clip(box_clip(0, frames=3, cameras=1, size=24))
    unit = normalise(clip, "disparity")
    assert float((1 / unit.depth[unit.valid]).quantile(0.2)) == pytest.approx(2.0, rel=1e-5)
    assert float(disparity_scale(unit)) == pytest.approx(1.0, rel=1e-5), "nothing is left to do"
    large = normalise(fields.divide(clip, torch.tensor(0.1)), "disparity")
    torch.testing.assert_close(large.depth, unit.depth)
    torch.testing.assert_close(large.cameras.world_from_camera, unit.cameras.world_from_camera)
    torch.testing.assert_close(unit.depth * unit.scale, clip.depth)
    with pytest.raises(UserError, match=r"needs depth.*data\.normalisation=mean_distance"):
        normalise(dataclasses.replace(clip, depth=None, valid=None), "disparity")


def test_points_seen_by_a_view_are_the_examples_points(folder: Path) -> None:
    config = make_config(folder, views=ViewsConfig(count=2))
    targets = TrainingSteps(config, 5)[1].batches[0].targets

    def floor(clip: Clip) -> torch.Tensor:
        points = geometry.unproject(clip.depth, clip.cameras)
        return points[clip.valid].norm(dim=-1)

    assert targets.views is not None
    assert float(floor(targets.views).median()) == pytest.approx(float(floor(targets).median()), rel=0.6)
