"""Clips of articulated creatures: layout, keypoints against correspondence, sameness, sanity of the physics."""

from __future__ import annotations

import importlib
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

pytest.importorskip("embreex", reason="needs the extra synth")
pytest.importorskip("mujoco", reason="needs the extra synth")

from data_prep.synthetic import HELD_OUT_SEED, WorldSettings, clip_seed, generate, make
from data_prep.synthetic.keypoints import keypoints_of
from data_prep.synthetic.world import World, compose
from four_d.data.check import check
from four_d.data.contract import RawClip, problems
from four_d.data.shards import ShardReader
from tests.data_prep.looks import look, place, project, vertices_at
from tests.data_prep.test_generate import SMALL as RIGID
from tests.data_prep.test_generate import digest

rendering = importlib.import_module("data_prep.synthetic.clip")
SMALL = WorldSettings(bodies=True, cameras=2, frames=6, width=64, height=48, antialias=False)
SEEDS = (*range(6), *range(HELD_OUT_SEED, HELD_OUT_SEED + 3))
RIGID_OBJECTS = [
    ("surroundings", "static"),
    ("chair", "static"),
    ("chair", "static"),
    ("star", "dropped"),
    ("star", "thrown"),
    ("box", "resting"),
]
RIGID_SPREAD = 0.692220
RIGID_MEAN = 117.114
"""World of seed 3 and `RIGID`, as at the commit before there were creatures."""


@pytest.fixture(scope="module")
def worlds() -> dict[int, World]:
    return {seed: compose(seed, SMALL) for seed in SEEDS}


@pytest.fixture(scope="module")
def clips(worlds: dict[int, World]) -> dict[int, RawClip]:
    with patch.object(rendering, "compose", lambda seed, _: worlds[seed]):
        return {seed: generate(seed, SMALL) for seed in SEEDS}


def test_clips_keep_the_layout_and_what_a_pixel_saw_projects_to_its_centre(clips: dict[int, RawClip]) -> None:
    centres = np.stack(np.meshgrid(np.arange(64) + 0.5, np.arange(48) + 0.5), -1)
    for clip in clips.values():
        assert problems(clip) == []
        looks = look(clip)
        assert np.abs(looks.pixels - centres)[looks.seen].max() < 0.02
        assert looks.dynamic.mean() > 0.01


def test_one_seed_is_one_clip_and_rigid_worlds_are_as_before_there_were_creatures(clips: dict[int, RawClip]) -> None:
    clip, again = clips[3], generate(3, SMALL)
    assert digest(again) == digest(clip)
    assert again.keypoints is not None
    assert clip.keypoints is not None
    np.testing.assert_array_equal(again.keypoints.points, clip.keypoints.points)
    np.testing.assert_array_equal(again.keypoints.visible, clip.keypoints.visible)
    rigid = generate(3, RIGID)
    assert rigid.keypoints is None
    assert [(thing.name, thing.motion) for thing in rigid.info.objects] == RIGID_OBJECTS
    assert rigid.surface is not None
    assert float(rigid.surface.moving_vertices.astype(np.float64).std()) == pytest.approx(RIGID_SPREAD, rel=1e-3)
    assert rigid.images.mean() == pytest.approx(RIGID_MEAN, abs=0.2)


def test_keypoints_are_where_the_projection_puts_them(clips: dict[int, RawClip]) -> None:
    for clip in clips.values():
        keypoints = clip.keypoints
        assert keypoints is not None
        assert keypoints.valid.all()
        for frame, points in enumerate(keypoints.points):
            pixels, depth = project(clip, frame, points.astype(np.float64))
            known = keypoints.pixels_valid[frame]
            np.testing.assert_array_equal(known, depth > 0.05)
            np.testing.assert_allclose(keypoints.pixels[frame][known], pixels[known], rtol=1e-5, atol=1e-3)
            assert (keypoints.pixels[frame][~known] == 0).all()


def test_keypoints_of_one_time_are_the_same_for_every_camera(clips: dict[int, RawClip]) -> None:
    for clip in clips.values():
        assert clip.keypoints is not None
        np.testing.assert_array_equal(clip.keypoints.points[:6], clip.keypoints.points[6:])


def test_rigid_bones_keep_their_lengths_and_join_points_of_one_instance(clips: dict[int, RawClip]) -> None:
    loose = 0
    for clip in clips.values():
        info, keypoints = clip.info.keypoints, clip.keypoints
        assert info is not None
        assert keypoints is not None
        for (a, b), rigid in zip(info.edges, info.rigid):
            assert info.instances[a] == info.instances[b]
            ends = keypoints.points.astype(np.float64)
            length = np.linalg.norm(ends[:, a] - ends[:, b], axis=-1)
            assert length.min() > 0.004
            loose += not rigid
            if rigid:
                assert np.abs(length - length.mean()).max() < 1e-6, (info.names[a], info.names[b])
    assert loose, "a spine bends"


def test_instances_are_creatures_and_their_limbs_move_apart(clips: dict[int, RawClip]) -> None:
    for clip in clips.values():
        info, surface = clip.info.keypoints, clip.surface
        assert info is not None
        assert surface is not None
        creatures = set(info.instances)
        assert creatures == set(range(1, len(creatures) + 1))
        for instance in creatures:
            assert clip.info.objects[instance].motion != "static"
            vertices = vertices_at(clip)[:, np.unique(surface.triangles[surface.instances == instance])]
            spans = np.linalg.norm(vertices[:, :1] - vertices, axis=-1)
            assert np.ptp(spans, axis=0).max() > 0.01
        for instance in range(len(creatures) + 1, len(clip.info.objects)):
            assert clip.info.objects[instance].motion == "static"


def test_keypoints_are_seen_where_the_faces_map_shows_their_own_limb_within_reach(
    clips: dict[int, RawClip], worlds: dict[int, World]
) -> None:
    """Where a pixel and its neighbours show one body: elsewhere the pixel's centre may miss what the ray hits."""
    agree, seen = [], []
    for seed, clip in clips.items():
        keypoints, surface, vertices = clip.keypoints, clip.surface, vertices_at(clip)
        assert keypoints is not None
        assert surface is not None
        points, stage = keypoints_of(worlds[seed].cast), worlds[seed].stage
        bodies = np.where(surface.faces >= 0, stage.face_body[surface.faces], -1)
        within = keypoints.pixels_valid & (keypoints.pixels >= 1).all(-1) & (keypoints.pixels < (63, 47)).all(-1)
        for frame, point in np.argwhere(within):
            column, row = np.floor(keypoints.pixels[frame, point]).astype(int)
            if len(np.unique(bodies[frame, row - 1 : row + 2, column - 1 : column + 2])) > 1:
                continue
            body, where = bodies[frame, row, column], keypoints.points[frame, point]
            near = float(np.linalg.norm(place(clip, frame, frame % 6, vertices)[row, column] - where))
            expected = body >= 0 and points.limbs[point, body] and near <= points.reach[point]
            agree.append(bool(expected) == keypoints.visible[frame, point])
            seen.append(keypoints.visible[frame, point])
    assert len(seen) > 200
    assert 0.1 < np.mean(seen) < 0.95
    assert np.mean(agree) > 0.9


def test_nothing_is_in_the_floor_nor_flies_apart_and_hinges_keep_their_limits(worlds: dict[int, World]) -> None:
    for world in worlds.values():
        motion = world.cast.motion
        assert motion.stable
        assert motion.excess < 0.121
        speed = np.linalg.norm(np.diff(motion.positions, axis=0), axis=-1) / np.diff(world.times)[:, None]
        assert speed.max() < 15
        lowest = min(float(world.stage.vertices_at(time)[:, 2].min()) for time in range(len(world.times)))
        assert lowest > -0.031


def test_creatures_are_large_enough_and_keypoints_inside_the_frames(clips: dict[int, RawClip]) -> None:
    inside, covered = [], []
    for clip in clips.values():
        assert clip.keypoints is not None
        assert clip.info.keypoints is not None
        assert clip.surface is not None
        pixels = clip.keypoints.pixels
        within = clip.keypoints.pixels_valid & (pixels >= 0).all(-1) & (pixels < (64, 48)).all(-1)
        inside.append(within.mean())
        owner = np.where(clip.surface.faces >= 0, clip.surface.instances[clip.surface.faces], 0)
        covered.append(np.isin(owner, clip.info.keypoints.instances).mean())
    assert np.mean(inside) > 0.6
    assert np.mean(covered) > 0.05


def test_held_out_worlds_have_species_that_train_worlds_never_have(clips: dict[int, RawClip]) -> None:
    species: dict[bool, set[str]] = {False: set(), True: set()}
    for seed, clip in clips.items():
        assert clip.info.keypoints is not None
        last = max(clip.info.keypoints.instances)
        species[seed >= HELD_OUT_SEED] |= {thing.name for thing in clip.info.objects[1 : last + 1]}
    assert species[False] <= {"chain", "cat", "dog", "horse", "adult"}
    assert species[True] <= {"tentacle", "giraffe", "crocodile", "child", "giant"}


def test_species_and_numbers_are_as_asked() -> None:
    settings = WorldSettings(
        bodies=True, cameras=1, frames=2, width=24, height=24, species=("person",), creatures=(2, 2), obstacles=(0, 0)
    )
    for seed in range(2):
        objects = generate(seed, settings).info.objects
        assert [thing.name for thing in objects] == ["surroundings", "adult", "adult"]


def test_shards_of_bodies_pass_the_check(tmp_path: Path) -> None:
    settings = WorldSettings(bodies=True, cameras=2, frames=4, width=48, height=48)
    make(tmp_path, range(1), 2, clips_per_shard=2, settings=settings)
    report = check(tmp_path)
    assert report.ok, report.table()
    with ShardReader(tmp_path) as reader:
        clip = reader.read(1)
    expected = generate(clip_seed(2, 0, 1), settings)
    assert clip.info == expected.info
    assert clip.keypoints is not None
    assert expected.keypoints is not None
    np.testing.assert_array_equal(clip.keypoints.points, expected.keypoints.points)
    np.testing.assert_array_equal(clip.keypoints.visible, expected.keypoints.visible)
