"""The generator's parts alone: meshes, textures, cameras, rays, physics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("embreex", reason="needs the extra synth")
pytest.importorskip("mujoco", reason="needs the extra synth")

from data_prep.synthetic import meshes, textures
from data_prep.synthetic.bodies import make_bodies, turn
from data_prep.synthetic.cameras import Action, look_at, make_intrinsics, on_rig, propose
from data_prep.synthetic.physics import Body, MotionWord, rotation_matrix, simulate
from data_prep.synthetic.raycast import EmbreeRays
from data_prep.synthetic.render import ray_directions
from data_prep.synthetic.settings import WorldSettings
from four_d.errors import UserError

SHAPES = meshes.TRAIN_SHAPES | meshes.HELD_OUT_SHAPES | meshes.TRAIN_FURNITURE | meshes.HELD_OUT_FURNITURE
TEXTURES = textures.TRAIN_TEXTURES | textures.HELD_OUT_TEXTURES
ROOM = np.array([[-4.0, -4.0, 0.0], [4.0, 4.0, 3.0]])


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_shapes_are_closed_face_outwards_and_fill_their_box(name: str, seed: int) -> None:
    _, mesh = meshes.make_shape(np.random.default_rng(seed), {name: SHAPES[name]})
    edges = np.concatenate([mesh.triangles[:, [i, (i + 1) % 3]] for i in range(3)])
    there, counts = np.unique(edges, axis=0, return_counts=True)
    assert (counts == 1).all()  # each directed edge once,
    back = np.unique(edges[:, ::-1], axis=0)
    assert np.array_equal(there, back)  # and once the other way: closed and consistently turned
    assert meshes.volume(mesh) > 1e-3
    assert np.ptp(mesh.vertices, axis=0).max() == pytest.approx(1)
    assert mesh.vertices.max(0) + mesh.vertices.min(0) == pytest.approx(np.zeros(3), abs=1e-9)
    assert len(mesh.triangles) <= 3000


@pytest.mark.parametrize("name", SHAPES)
def test_collision_parts_have_the_shape_s_extent(name: str) -> None:
    _, mesh = meshes.make_shape(np.random.default_rng(1), {name: SHAPES[name]})
    points = np.concatenate(mesh.parts)
    directions = np.random.default_rng(2).normal(size=(50, 3))
    support = (mesh.vertices @ directions.T).max(0)
    np.testing.assert_allclose((points @ directions.T).max(0), support, atol=1e-9)


def test_crease_keeps_a_box_flat_and_a_ball_smooth() -> None:
    box = meshes.cuboid((1, 1, 1))
    corners = box.vertices[box.triangles]
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    flat /= np.linalg.norm(flat, axis=-1, keepdims=True)
    np.testing.assert_allclose(meshes.corner_normals(box), np.repeat(flat[:, None], 3, 1), atol=1e-12)
    _, ball = meshes.make_shape(np.random.default_rng(0), {"capsule": meshes.TRAIN_SHAPES["capsule"]})
    normals = meshes.corner_normals(ball)
    first = {int(v): normals.reshape(-1, 3)[i] for i, v in enumerate(ball.triangles.reshape(-1))}
    same = np.stack([first[int(v)] for v in ball.triangles.reshape(-1)])
    assert np.einsum("ni,ni->n", same, normals.reshape(-1, 3)).min() > 0.8


@pytest.mark.parametrize("name", TEXTURES)
def test_textures_are_colours_with_structure(name: str) -> None:
    spreads = []
    for seed in range(6):
        tile = textures.make_texture(np.random.default_rng(seed), {name: TEXTURES[name]}, 64)
        assert tile.shape == (64, 64, 3)
        assert tile.dtype == np.float32
        assert 0.02 <= tile.min() <= tile.max() <= 0.9
        spreads.append(tile.std((0, 1)).max())
    assert np.median(spreads) > 0.03


def test_train_and_held_out_families_share_nothing() -> None:
    assert not set(textures.TRAIN_TEXTURES.values()) & set(textures.HELD_OUT_TEXTURES.values())
    train = {**meshes.TRAIN_SHAPES, **meshes.TRAIN_FURNITURE}
    held_out = {**meshes.HELD_OUT_SHAPES, **meshes.HELD_OUT_FURNITURE}
    assert not set(train.values()) & set(held_out.values())


def test_atlas_gives_texels_near_by_and_the_mean_from_afar_and_wraps() -> None:
    rng = np.random.default_rng(0)
    tiles = [rng.random((16, 16, 3)).astype(np.float32) for _ in range(2)]
    atlas = textures.make_atlas(tiles)
    y, x = np.mgrid[:16, :16].reshape(2, -1)
    uv = ((np.stack([x, y], -1) + 0.5) / 16 + np.array([3, -2])).astype(np.float32)
    tile, near, far = np.ones(256, np.int32), np.full(256, 1e-4, np.float32), np.full(256, 5.0, np.float32)
    np.testing.assert_allclose(atlas.sample(tile, uv, near), tiles[1].reshape(-1, 3), atol=1e-5)
    mean = np.broadcast_to(tiles[0].mean((0, 1)), (256, 3))
    np.testing.assert_allclose(atlas.sample(0 * tile, uv, far), mean, atol=1e-5)


def test_look_at_is_a_rotation_that_puts_the_target_ahead_and_the_sky_up() -> None:
    rng = np.random.default_rng(3)
    above = np.array([0.0, 0.0, 3.0])
    positions, targets = rng.normal(size=(20, 3)) + above, rng.normal(size=(20, 3)) - above
    poses = look_at(positions, targets, np.zeros(20))
    rotation = poses[:, :3, :3]
    np.testing.assert_allclose(
        rotation @ rotation.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (20, 3, 3)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(rotation), 1)
    ahead = np.einsum("tji,tj->ti", rotation, targets - positions)
    np.testing.assert_allclose(ahead[:, :2], 0, atol=1e-12)
    assert (ahead[:, 2] > 0).all()
    assert (rotation[:, 2, 1] < 0).all()  # y down in the picture is down in the world
    np.testing.assert_allclose(rotation[:, 2, 0], 0, atol=1e-12)  # level


def test_ray_directions_have_unit_depth_and_pass_through_their_pixels() -> None:
    rng = np.random.default_rng(4)
    pose = look_at(rng.normal(size=(1, 3)), rng.normal(size=(1, 3)), np.array([0.3]))[0]
    intrinsics, pixels = make_intrinsics(rng, WorldSettings(width=64, height=48)), rng.uniform(0, 48, (10, 2))
    camera = ray_directions(pose, intrinsics, pixels) @ pose[:3, :3]
    np.testing.assert_allclose(camera[:, 2], 1)
    np.testing.assert_allclose((camera @ intrinsics.T)[:, :2], pixels)


def test_rays_hit_the_first_face_and_shadows_end_at_the_light() -> None:
    vertices = np.array([[-1, -1, 1], [1, -1, 1], [0, 1, 1], [-1, -1, 2], [1, -1, 2], [0, 1, 2]], np.float32)
    rays = EmbreeRays(vertices, np.array([[3, 4, 5], [0, 1, 2]], np.int32))
    origins = np.array([[0, 0, 0], [0, 0, 1.5], [0, 0, 0], [0, 0, 3]], np.float32)
    directions = np.array([[0, 0, 0.1], [0, 0, 9], [0, 1, 0.01], [0, 0, -0.2]], np.float32)
    assert rays.hit(origins, directions).tolist() == [1, 0, -1, 0]
    assert rays.blocked(origins, directions).tolist() == [False, True, False, False]


def _ball(motion: MotionWord, position: list[float], velocity: list[float]) -> Body:
    _, mesh = meshes.make_shape(np.random.default_rng(0), {"box": meshes.TRAIN_SHAPES["box"]})
    return Body(
        name="box",
        mesh=meshes.moved(mesh, 0.4),
        motion=motion,
        position=np.array(position),
        quaternion=np.array([1.0, 0, 0, 0]),
        velocity=np.array(velocity),
        spin=np.zeros(3),
    )


def test_a_thrown_body_follows_a_parabola() -> None:
    times = np.array([0.0, 0.1, 0.2, 0.3])
    motion = simulate([_ball("thrown", [0, 0, 2], [1, -0.5, 1])], ROOM, times)
    expected = np.array([0, 0, 2.0]) + times[:, None] * [1, -0.5, 1] - 0.5 * 9.81 * times[:, None] ** 2 * [0, 0, 1]
    np.testing.assert_allclose(motion.positions[:, 0], expected, atol=0.01)


def test_bodies_rest_on_the_floor_and_on_each_other_and_stay_in_the_room() -> None:
    low = -float(_ball("static", [0, 0, 0], [0, 0, 0]).mesh.vertices[:, 2].min())
    bodies = [
        _ball("static", [0, 0, low], [0, 0, 0]),
        _ball("dropped", [0, 0, 3 * low + 0.2], [0, 0, 0]),
        _ball("slid", [2.5, 2, low], [6, 0, 0]),
    ]
    motion = simulate(bodies, ROOM, np.linspace(0, 2, 20))
    assert motion.deepest < 1e-3
    np.testing.assert_array_equal(motion.positions[:, 0], np.broadcast_to(bodies[0].position, (20, 3)))
    assert motion.positions[-1, 1, 2] == pytest.approx(3 * low, abs=0.01)
    assert motion.positions[:, 2, 0].max() < 4
    assert (motion.positions[:, 2, 2] > low - 0.02).all()


def test_a_simulation_that_breaks_says_so_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert simulate([_ball("thrown", [0, 0, 2], [1, 0, 0])], ROOM, np.array([0.0, 0.1])).stable
    assert not simulate([_ball("thrown", [0, 0, 2], [1e12, 0, 0])], ROOM, np.array([0.0, 0.1])).stable
    assert list(tmp_path.iterdir()) == []


def test_a_spin_is_about_world_axes() -> None:
    body = _ball("thrown", [0, 0, 1.5], [0, 0, 1])
    quaternion = turn(np.random.default_rng(5), upright=False)
    turned = Body(**{**vars(body), "quaternion": quaternion, "spin": np.array([0, 0, 1.0])})
    motion = simulate([turned], ROOM, np.array([0.0, 0.01]))
    step = motion.rotations[1, 0] @ motion.rotations[0, 0].T
    np.testing.assert_allclose(motion.rotations[0, 0], rotation_matrix(quaternion), atol=1e-9)
    np.testing.assert_allclose([step[2, 1] - step[1, 2], step[0, 2] - step[2, 0]], 0, atol=2e-3)
    assert step[1, 0] == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 4},
        {"cameras": 0},
        {"frames": 1},
        {"objects": (5, 4)},
        {"duration_s": (0.0, 1.0)},
        {"moving": (0.4, 0.42)},
        {"starts": ("flung",)},
        {"spin": -1.0},
        {"rig_m": 0.0},
        {"scenes": ("attic",)},
        {"scenes": ()},
        {"views": "wild"},
    ],
)
def test_settings_out_of_range_name_themselves(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        WorldSettings(**wrong)  # pyright: ignore[reportArgumentType]


def test_cameras_move_only_as_they_may() -> None:
    followed = np.linspace([0, 0, 0], [1, 0, 0], 5)
    action = Action(centre=np.zeros(3), radius=1.0, room=ROOM, followed=followed, bodies=followed[:1])
    times = np.linspace(0, 0.5, 5)
    rng = np.random.default_rng(0)
    still = [propose(rng, action, times, WorldSettings(paths=("static",))) for _ in range(20)]
    assert all(np.ptp(path.world_from_camera, axis=0).max() == 0 for path in still)
    some = {propose(rng, action, times, WorldSettings(paths=("handheld", "pan"))).kind for _ in range(40)}
    assert some == {"handheld", "pan"}
    every = {propose(rng, action, times, WorldSettings()).kind for _ in range(200)}
    assert len(every) == 6
    with pytest.raises(UserError, match="paths is flying; choose among handheld, orbit"):
        WorldSettings(paths=("flying",))  # pyright: ignore[reportArgumentType]


def test_cameras_on_a_rig_move_with_the_first_and_look_where_it_looks() -> None:
    still = np.zeros((5, 3))
    action = Action(centre=np.zeros(3), radius=1.0, room=ROOM, followed=still, bodies=still[:1])
    rng, settings = np.random.default_rng(0), WorldSettings(paths=("handheld",), rig_m=0.5)
    first = propose(rng, action, np.linspace(0, 1, 5), settings)
    for _ in range(10):
        second = on_rig(rng, first, action.centre, settings)
        apart = np.linalg.inv(first.world_from_camera) @ second.world_from_camera
        distance = np.linalg.norm(apart[:, :3, 3], axis=-1)
        assert ((distance > 0.1) & (distance <= 0.5)).all()
        np.testing.assert_allclose(distance, distance[0], atol=1e-9)
        forward = first.world_from_camera[:, :3, 2]
        reach = np.linalg.norm(first.world_from_camera[0, :3, 3])
        seen = first.world_from_camera[:, :3, 3] + reach * forward
        ahead = seen - second.world_from_camera[:, :3, 3]
        cosine = (ahead * second.world_from_camera[:, :3, 2]).sum(-1) / np.linalg.norm(ahead, axis=-1)
        np.testing.assert_allclose(cosine, 1, atol=1e-9)


def test_things_set_out_as_asked_and_spin_as_asked() -> None:
    def made(**values: object) -> list[Body]:
        settings = WorldSettings(starts=("dropped", "thrown"), **values)  # pyright: ignore[reportArgumentType]
        return make_bodies(np.random.default_rng(3), 8, np.zeros(3), 1.2, ROOM, False, settings)

    wild, calm = made(), made(spin=0.1)
    assert {body.motion for body in wild} <= {"dropped", "thrown", "static", "resting"}
    assert any(body.spin.any() for body in wild)
    for one, two in zip(wild, calm, strict=True):
        np.testing.assert_allclose(two.spin, 0.1 * one.spin)
        np.testing.assert_allclose(two.velocity, one.velocity)
