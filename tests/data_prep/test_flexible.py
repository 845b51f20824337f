"""Soft bodies and cloth: their surfaces, their physics, and truth through the deformation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("embreex", reason="needs the extra synth")
pytest.importorskip("mujoco", reason="needs the extra synth")

from data_prep.synthetic import WorldSettings, generate
from data_prep.synthetic.bodies import product
from data_prep.synthetic.effects import between
from data_prep.synthetic.flexible import Flexible, make_cloth, make_soft
from data_prep.synthetic.meshes import Mesh, corner_normals, rotation_matrix, volume
from data_prep.synthetic.physics import simulate
from data_prep.synthetic.render import pixel_grid
from data_prep.synthetic.stage import Material, Piece, make_stage
from data_prep.synthetic.textures import make_atlas
from data_prep.synthetic.world import compose
from four_d.data.contract import RawClip, problems
from four_d.errors import UserError
from tests.data_prep.looks import look, vertices_at

ROOM = np.array([[-4.0, -4.0, 0.0], [4.0, 4.0, 3.0]])
LEVEL = np.array([1.0, 0, 0, 0])


def soft(height: float, quaternion: np.ndarray = LEVEL, **changes: object) -> Flexible:
    name, points, mesh, sources = make_soft(np.random.default_rng(0), 0.5)
    body = Flexible(
        kind="soft",
        name=name,
        motion="dropped",
        counts=(9, 9, 9),
        points=points,
        mesh=mesh,
        sources=sources[:, None],
        weights=np.ones((len(sources), 1)),
        position=np.array([0.3, 0.2, height]),
        quaternion=quaternion,
        velocity=np.zeros(3),
        spin=np.zeros(3),
        mass=5.0,
        young=4e3,
    )
    return replace(body, **changes)  # pyright: ignore[reportArgumentType]


def cloth(**changes: object) -> Flexible:
    counts, points, mesh, sources, weights = make_cloth((0.5, 0.4))
    body = Flexible(
        kind="cloth",
        name="cloth",
        motion="hung",
        counts=(*counts, 1),
        points=points,
        mesh=mesh,
        sources=sources,
        weights=weights,
        position=np.array([0.0, 0.0, 1.5]),
        quaternion=LEVEL,
        velocity=np.zeros(3),
        spin=np.zeros(3),
        mass=0.1,
        young=1e5,
    )
    return replace(body, **changes)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("seed", range(3))
def test_a_soft_surface_is_closed_and_faces_outwards(seed: int) -> None:
    _, points, mesh, sources = make_soft(np.random.default_rng(seed), 0.5)
    edges = np.concatenate([mesh.triangles[:, [i, (i + 1) % 3]] for i in range(3)])
    there, counts = np.unique(edges, axis=0, return_counts=True)
    assert (counts == 1).all()
    assert np.array_equal(there, np.unique(edges[:, ::-1], axis=0))
    assert 0.2 * np.prod(np.ptp(points, axis=0)) < volume(mesh) <= np.prod(np.ptp(points, axis=0))
    assert np.array_equal(points[sources], mesh.vertices)


def test_a_cloths_surface_goes_through_its_points_and_is_even() -> None:
    counts, points, mesh, sources, weights = make_cloth((0.9, 0.5))
    np.testing.assert_allclose(weights.sum(1), 1)
    grid = mesh.vertices.reshape(2 * counts[0] - 1, 2 * counts[1] - 1, 3)
    np.testing.assert_allclose(grid[::2, ::2].reshape(-1, 3), points, atol=1e-12)
    np.testing.assert_allclose(np.diff(grid[:, 0, 0]), 0.9 / (len(grid) - 1))
    bowl = points + np.stack([0 * points[:, 0]] * 2 + [points[:, 0] ** 2], -1)  # between the points it is round
    between_ = np.einsum("vj,vji->vi", weights, bowl[sources]).reshape(grid.shape)[3, 0]
    assert between_[2] == pytest.approx(between_[0] ** 2, abs=1e-4)


def test_a_soft_body_falls_freely_then_gives_way_and_stays_above_the_floor() -> None:
    tilted = np.array([0.8, 0.3, 0.2, 0.4]) / np.linalg.norm([0.8, 0.3, 0.2, 0.4])
    body = soft(0.6, tilted, velocity=np.array([0.5, 0, -1.0]), spin=np.array([0, 0, 1.0]))
    motion = simulate([], ROOM, np.array([0.0, 0.1, 0.26]), flexible=[body])
    assert motion.stable
    start, falling, landed = motion.flexible[0]
    np.testing.assert_allclose(start, body.surface(body.start()), atol=1e-9)
    np.testing.assert_allclose((falling - start).mean(0), [0.05, 0, -0.1 - 9.81 * 0.005], atol=0.01)
    arms = start - start.mean(0)  # it turns as it is told to
    np.testing.assert_allclose(falling - falling.mean(0), arms @ rotation_matrix(turned(0.1)).T, atol=0.02)
    assert landed[:, 2].min() > -0.03
    assert np.ptp(landed[:, 2]) < 0.95 * np.ptp(start[:, 2])


def turned(angle: float) -> np.ndarray:
    return np.array([np.cos(angle / 2), 0, 0, np.sin(angle / 2)])


def test_a_hung_cloth_keeps_its_corners_and_the_rest_falls() -> None:
    body = cloth()
    body = replace(body, pinned=(0, body.counts[1] - 1))
    start, later = simulate([], ROOM, np.array([0.0, 0.2]), flexible=[body]).flexible[0]
    across = 2 * body.counts[1] - 1
    np.testing.assert_allclose(later[[0, across - 1]], start[[0, across - 1]], atol=1e-9)
    assert (later[-across:, 2] < start[-across:, 2] - 0.08).all()


def test_a_product_of_quaternions_turns_by_the_second_first() -> None:
    rng = np.random.default_rng(0)
    p, q = (x / np.linalg.norm(x) for x in rng.normal(0, 1, (2, 4)))
    np.testing.assert_allclose(rotation_matrix(product(p, q)), rotation_matrix(p) @ rotation_matrix(q), atol=1e-12)


def bent_stage(two_sided: bool = False):  # noqa: ANN201
    """One square that bends, above a floor that does not; and its vertices at two times."""
    square = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    mesh = Mesh(vertices=square, triangles=np.array([[0, 1, 2], [0, 2, 3]]), parts=(), crease=75.0)
    lifts = np.array([[1.0, 1, 1, 1], [1.4, 1.4, 1, 1]])
    path = square + lifts[..., None] * np.array([0, 0, 1.0])
    material = Material(tile=0, metres=1.0, shift=(0.0, 0.0), gloss=0.0, shine=8.0)
    pieces = [
        Piece(mesh=mesh, instance=0, body=-1, material=material),
        Piece(mesh=mesh, instance=1, body=0, material=material, path=path, two_sided=two_sided),
    ]
    atlas = make_atlas([np.full((4, 4, 3), 0.5, np.float32)])
    still = np.broadcast_to(np.eye(3), (2, 1, 3, 3)).copy()
    return make_stage(pieces, path.mean(1)[:, None], still, atlas, [], np.ones((2, 3), np.float32)), mesh, path


def test_a_stage_has_bent_vertices_and_normals_at_every_time_and_between() -> None:
    stage, mesh, path = bent_stage()
    for time in (0, 1):
        np.testing.assert_allclose(stage.vertices_at(time)[4:], path[time], atol=1e-6)
        np.testing.assert_allclose(stage.vertices_at(time)[:4], mesh.vertices, atol=1e-6)
        wanted = corner_normals(replace(mesh, vertices=path[time]))
        np.testing.assert_allclose(stage.normals_at(time)[2:], wanted, atol=1e-6)
    np.testing.assert_allclose(between(stage, 0.25).vertices_at(0)[4:], 0.75 * path[0] + 0.25 * path[1], atol=1e-6)


SETTINGS = WorldSettings(
    cameras=1,
    frames=3,
    width=32,
    height=24,
    antialias=False,
    duration_s=(0.2, 0.25),
    objects=(3, 3),
    soft=(1, 1),
    cloths=(1, 1),
    moving=(0.0, 0.9),
)


@pytest.fixture(scope="module")
def clip() -> RawClip:
    return generate(3, SETTINGS)


def test_what_a_pixel_saw_of_a_bent_surface_projects_to_its_centre(clip: RawClip) -> None:
    assert problems(clip) == []
    assert clip.surface is not None
    looks = look(clip)
    centres = np.broadcast_to(pixel_grid(32, 24).reshape(24, 32, 2), looks.pixels.shape)
    assert np.abs(looks.pixels - centres)[looks.seen].max() < 0.02
    assert (looks.depth[looks.seen] > 0.2).all()
    names = [thing.name.split()[0] for thing in clip.info.objects]
    assert {"soft", "cloth"} <= set(names)


def test_stored_vertices_are_those_of_the_physics_at_every_time(clip: RawClip) -> None:
    assert clip.surface is not None
    vertices = vertices_at(clip)
    names = [thing.name for thing in clip.info.objects]
    for surface, name in zip(compose(3, SETTINGS).cast.motion.flexible, names[-2:], strict=True):
        assert name.split()[0] in ("soft", "cloth")
        faces = clip.surface.triangles[clip.surface.instances == names.index(name)]
        own = np.unique(faces)
        assert np.array_equal(vertices[:, own], surface.astype(np.float32))
        assert set(own) <= set(clip.surface.moving.tolist())


@pytest.mark.parametrize("name", ["soft", "cloths"])
def test_counts_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"world setting {name} is"):
        WorldSettings(**{name: (3, 2)})  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=f"world setting {name} is of worlds of objects"):
        WorldSettings(bodies=True, **{name: (0, 1)})  # pyright: ignore[reportArgumentType]
