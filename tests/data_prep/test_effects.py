"""Effects change pictures and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

pytest.importorskip("embreex", reason="needs the extra synth")
pytest.importorskip("mujoco", reason="needs the extra synth")

from data_prep.synthetic import WorldSettings, generate
from data_prep.synthetic.effects import Effects, between, camera_between, draw_effects, with_moving_lights
from data_prep.synthetic.render import Moment, make_moment, through_fog
from data_prep.synthetic.settings import Effect
from data_prep.synthetic.stage import Stage
from data_prep.synthetic.world import World, compose
from four_d.data.contract import RawClip, problems
from four_d.errors import UserError

SETTINGS = WorldSettings(cameras=1, frames=4, width=32, height=24, antialias=False, duration_s=(0.4, 0.5))


@pytest.fixture(scope="module")
def plain() -> RawClip:
    return generate(3, SETTINGS)


@pytest.fixture(scope="module")
def world() -> World:
    return compose(3, SETTINGS)


@pytest.mark.parametrize("effect", get_args(Effect))
def test_an_effect_changes_the_pictures_and_no_truth(plain: RawClip, effect: Effect) -> None:
    clip = generate(3, replace(SETTINGS, effects=(effect,)))
    assert problems(clip) == []
    assert np.abs(clip.images.astype(int) - plain.images).mean() > 0.5
    assert clip.surface is not None
    assert plain.surface is not None
    for name in ("faces", "barycentric", "vertices", "moving_vertices"):
        assert np.array_equal(getattr(clip.surface, name), getattr(plain.surface, name))
    assert np.array_equal(clip.world_from_camera, plain.world_from_camera)  # pyright: ignore[reportArgumentType]
    assert clip.info.generator is not None
    assert clip.info.generator["settings"]["effects"] == [effect]  # pyright: ignore[reportIndexIssue]


def test_a_clip_without_effects_says_nothing_of_them(plain: RawClip) -> None:
    assert "effects" not in str(plain.info.generator)


def test_an_effect_is_as_strong_beside_others_as_alone() -> None:
    one, all_ = (
        draw_effects(np.random.default_rng(7), replace(SETTINGS, effects=effects))
        for effects in (("fog",), get_args(Effect))
    )
    assert 0 < one.fog == all_.fog
    assert all_.quality is not None
    assert one.quality is None


def test_an_unknown_effect_is_refused() -> None:
    with pytest.raises(UserError, match="world setting effects has 'rain'; choose among blur, exposure"):
        WorldSettings(effects=("rain",))  # pyright: ignore[reportArgumentType]


def test_between_two_frames_things_are_half_way(world: World) -> None:
    stage = turning(world.stage)
    for time in range(4):
        assert np.array_equal(between(stage, time).vertices_at(0), stage.vertices_at(time))
    np.testing.assert_allclose(between(stage, 0.5).rotations[0, 0], turn(0.4), atol=1e-9)
    assert np.array_equal(between(stage, 9.0).vertices_at(0), stage.vertices_at(3))
    path = world.cameras[0]
    np.testing.assert_allclose(camera_between(path, 1.0).world_from_camera[0], path.world_from_camera[1], atol=1e-9)
    middle = camera_between(path, 1.5).world_from_camera[0]
    np.testing.assert_allclose(middle[:3, 3], path.world_from_camera[1:3, :3, 3].mean(0))
    np.testing.assert_allclose(middle[:3, :3].T @ middle[:3, :3], np.eye(3), atol=1e-9)


def turn(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def turning(stage: Stage) -> Stage:
    """The stage with all bodies turned by 0.8 rad from frame to frame."""
    count = stage.rotations.shape[1]
    return replace(stage, rotations=np.stack([np.stack([turn(0.8 * time)] * count) for time in range(4)]))


def test_a_shutter_is_open_about_the_frames_time() -> None:
    offsets = Effects(shutter=0.8).offsets()
    assert np.isclose(offsets.mean(), 0)
    assert 0.3 < offsets.max() < 0.4
    assert Effects().offsets().tolist() == [0]


def test_lights_move_within_the_surroundings_and_moments_know_where_they_are(world: World) -> None:
    stage = with_moving_lights(np.random.default_rng(0), world.stage, world.bounds)
    lamps = [light for light in stage.lights if light.reach < 20]
    assert lamps
    for light in lamps:
        assert light.path is not None
        assert (light.path > world.bounds[0]).all()
        assert (light.path < world.bounds[1]).all()
        assert np.ptp(light.path, axis=0).max() > 0.2
    moment = make_moment(stage, 2)
    for light, there in zip(stage.lights, moment.lights, strict=True):
        assert np.array_equal(there.position, light.at(2))


def test_fog_takes_light_by_distance_and_gives_its_own(world: World) -> None:
    moment: Moment = make_moment(world.stage, 0, 0.5)
    light = np.zeros((3, 3), np.float32)
    near, far, nothing = through_fog(moment, light, np.array([0, 1]), np.array([1.0, 6.0], np.float32))
    assert (near < far).all()
    assert (far < nothing).all()
    np.testing.assert_allclose(near / nothing, 1 - np.exp(-0.5), rtol=1e-5)


def test_exposure_and_noise_follow_their_settings() -> None:
    light = np.full((2, 40, 40, 3), 2.0, np.float32)
    effects = Effects(gains=np.array([[1.0, 0.5]]), read_noise=0.1, shot_noise=0.04)
    found = effects.expose(np.random.default_rng(0), light, 0)
    np.testing.assert_allclose(found.mean((1, 2, 3)), [2, 1], rtol=0.02)
    median = 1.5  # of both frames
    expected = median * np.sqrt(0.04 * np.array([2, 1]) / median + 0.01)
    np.testing.assert_allclose(found.std((1, 2, 3)), expected, rtol=0.05)
    corner = Effects(vignette=0.4).expose(np.random.default_rng(0), light, 0)[0, 0, 0, 0]
    assert corner == pytest.approx(2 * (1 - 0.4 * (39 / 40) ** 2))
