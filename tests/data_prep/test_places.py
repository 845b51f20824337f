"""Surroundings and views: what every kind holds, and how much one mean depth map explains."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("embreex", reason="needs the extra synth")
pytest.importorskip("mujoco", reason="needs the extra synth")

from data_prep.synthetic import WorldSettings, generate
from data_prep.synthetic.cameras import RANGES, Action, draw_aim, propose
from data_prep.synthetic.furniture import KINDS, furnish
from data_prep.synthetic.meshes import volume
from data_prep.synthetic.room import Painter, make_place, make_surroundings
from data_prep.synthetic.settings import Scene, Views
from data_prep.synthetic.world import compose
from four_d.data.contract import problems
from four_d.data.stats import clip_stats, view_spread
from tests.data_prep.looks import look

SMALL = {"cameras": 2, "frames": 2, "width": 24, "height": 24, "antialias": False}
SCENES: tuple[Scene, ...] = ("room", "corridor", "table", "open", "furnished")


@pytest.mark.parametrize("scene", SCENES)
def test_every_kind_of_surroundings_makes_clips(scene: Scene) -> None:
    clip = generate(3, WorldSettings(scenes=(scene,), views="varied", **SMALL))  # pyright: ignore[reportArgumentType]
    assert problems(clip) == []
    looks = look(clip)
    assert looks.seen.mean() > (0.4 if scene == "open" else 0.95 if scene == "corridor" else 0.5)
    assert (looks.depth[looks.seen] > 0.15).all()


def test_places_have_the_form_that_they_are_named_by() -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        corridor, table, ground = (make_place(rng, (scene,)) for scene in ("corridor", "table", "open"))
        sides = np.ptp(corridor.outer, axis=0)[:2]
        assert sides.max() > 2.7 * sides.min()
        assert corridor.lid
        assert (table.outer[0] < table.inner[0]).all()  # the floor is lower, and the walls stand back
        assert (table.outer[1, :2] > table.inner[1, :2]).all()
        assert not ground.lid
        for place in (corridor, table, ground):
            pieces = make_surroundings(rng, place, Painter(rng, False, 64))
            points = np.concatenate([piece.mesh.vertices for piece in pieces])
            assert points[:, 2].min() == pytest.approx(place.outer[0, 2], abs=1e-9)
            assert {piece.instance for piece in pieces} == {0}
        # things move on the platform: its top is where the physics has the floor
        slab = make_surroundings(rng, table, Painter(rng, False, 64))[-1].mesh.vertices
        assert slab[:, 2].max() == pytest.approx(0, abs=1e-9)
    kinds = {make_place(np.random.default_rng(seed), SCENES).kind for seed in range(40)}
    assert kinds == set(SCENES)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_furniture_stands_on_the_floor_before_its_wall(name: str) -> None:
    for seed in range(5):
        meshes = KINDS[name][0](np.random.default_rng(seed))
        points = np.concatenate([mesh.vertices for mesh in meshes])
        assert -1e-9 < points[:, 2].min() < 0.06
        assert 0.2 < np.ptp(points[:, 2]) < 2.6
        assert all(volume(mesh) > 0 and mesh.parts for mesh in meshes)


def test_furniture_leaves_the_middle_free_and_overlaps_nothing() -> None:
    for seed in range(6):
        rng = np.random.default_rng(seed)
        place = make_place(rng, ("furnished",))
        pieces = furnish(rng, place.inner, place.outer)
        assert len(pieces) >= 3
        for number, piece in enumerate(pieces):
            low, high = piece.bounds
            assert (low >= place.outer[0] - 1e-6).all()
            assert (high <= place.outer[1] + 1e-6).all()
            inside = (low[:2] < place.inner[1, :2] - 1e-6) & (high[:2] > place.inner[0, :2] + 1e-6)
            assert not inside.all()
            for other in pieces[:number]:
                assert ((low >= other.bounds[1]) | (other.bounds[0] >= high)).any()


def paths(views: Views, count: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Height, rise of the line of sight and roll in degrees, and field of view of proposed cameras."""
    room = np.array([[-4.0, -4.0, 0.0], [4.0, 4.0, 3.5]])
    still = np.zeros((2, 3))
    action = Action(centre=np.zeros(3), radius=1.0, room=room, followed=still, bodies=np.array([[0.5, 0.2, 0.3]]))
    rng, settings = np.random.default_rng(0), WorldSettings(views=views)
    found = [propose(rng, action, np.array([0.0, 0.1]), settings, draw_aim(rng, settings)) for _ in range(count)]
    poses = np.stack([path.world_from_camera[0] for path in found])
    focal = np.array([path.intrinsics[0, 0] for path in found])
    rise = np.degrees(np.arcsin(poses[:, 2, 2]))
    roll = np.degrees(np.arcsin(np.clip(poses[:, 2, 0] / np.cos(np.radians(rise)), -1, 1)))
    return poses[:, 2, 3], rise, roll, np.degrees(2 * np.arctan(64 / focal))


def test_varied_views_look_from_everywhere_in_every_direction() -> None:
    steady, varied = paths("steady"), paths("varied")
    for name, one, other in zip(("height", "rise", "roll", "lens"), steady, varied):
        assert other.std() > 1.3 * one.std(), name
    assert (steady[1] < 5).all()  # never up
    assert (varied[1] > 15).mean() > 0.1
    assert (varied[1] < -45).mean() > 0.1
    assert np.abs(varied[1]).max() < 85  # straight down there is no upright
    low, high = RANGES["varied"].fov_deg
    assert low < varied[3].min() < varied[3].max() < high


@pytest.mark.slow
def test_one_mean_depth_map_explains_varied_worlds_less() -> None:
    """With steady views it is two thirds of relative depth: a model can learn that in place of the pictures."""
    explained: dict[Views, float] = {}
    for views, scenes in (("steady", ("room",)), ("varied", SCENES)):
        settings = WorldSettings(views=views, scenes=scenes, **SMALL)  # pyright: ignore[reportArgumentType]
        cells = [each for seed in range(10) for each in clip_stats(generate(seed, settings)).depth_cells]
        explained[views] = view_spread(cells)[1]
    assert explained["steady"] > 0.6
    assert explained["varied"] < 0.45


def test_steady_worlds_are_those_of_earlier_versions() -> None:
    """Seeds' worlds are part of what docs and studies measured."""
    world = compose(3, WorldSettings(**SMALL))  # pyright: ignore[reportArgumentType]
    assert [path.kind for path in world.cameras] == ["pan", "handheld"]
    np.testing.assert_allclose(world.cameras[0].world_from_camera[0, :3, 3], [-0.744493, 2.320596, 1.609065], atol=1e-5)
    np.testing.assert_allclose(world.cameras[1].intrinsics[0, 0], 21.55163, atol=1e-4)
