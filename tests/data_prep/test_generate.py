"""One clip: layout, exactness, sameness; and 200 of them: whether they teach."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import fields
from typing import NamedTuple

import numpy as np
import pytest

pytest.importorskip("embreex", reason="needs the extra synth")
pytest.importorskip("mujoco", reason="needs the extra synth")

from data_prep.synthetic import HELD_OUT_SEED, WorldSettings, generate
from data_prep.synthetic.meshes import HELD_OUT_FURNITURE, HELD_OUT_SHAPES
from data_prep.synthetic.render import pixel_grid
from four_d.data.contract import RawClip, problems
from tests.data_prep.looks import camera_turn, hidden_share, look, vertices_at, winding

SMALL = WorldSettings(cameras=2, frames=6, width=48, height=32)
TINY = WorldSettings(cameras=2, frames=8, width=32, height=32, antialias=False)


@pytest.fixture(scope="module")
def clip() -> RawClip:
    return generate(3, SMALL)


def digest(clip: RawClip) -> str:
    """Of every array and of the information."""
    found = hashlib.sha256(repr(clip.info).encode())
    for part in (clip, clip.surface):
        for field in fields(part):  # pyright: ignore[reportArgumentType]
            value = getattr(part, field.name)
            if isinstance(value, np.ndarray):
                found.update(value.tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("seed", [3, 4, HELD_OUT_SEED + 3])
def test_a_clip_keeps_the_layout(seed: int) -> None:
    assert problems(generate(seed, SMALL)) == []


def test_one_seed_is_one_clip_in_every_process(clip: RawClip) -> None:
    program = (
        "from tests.data_prep.test_generate import SMALL, digest\n"  # first: it installs the type checker
        "from data_prep.synthetic import generate\n"
        "print(digest(generate(3, SMALL)))"
    )
    elsewhere = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert elsewhere.stdout.strip() == digest(clip) == digest(generate(3, SMALL))
    assert digest(generate(4, SMALL)) != digest(clip)


def test_what_a_pixel_saw_projects_to_its_centre(clip: RawClip) -> None:
    """Poses, intrinsics, axes, vertices per time and barycentric weights all have to agree for that."""
    looks = look(clip)
    centres = np.broadcast_to(pixel_grid(48, 32).reshape(32, 48, 2), looks.pixels.shape)
    assert np.abs(looks.pixels - centres)[looks.seen].max() < 0.02
    assert (looks.depth[looks.seen] > 0.2).all()


def test_depth_of_the_stored_weights_is_the_rays_own(clip: RawClip) -> None:
    """Against the ray's intersection with the face's plane, worked out here."""
    looks, surface, vertices = look(clip), clip.surface, vertices_at(clip)
    assert surface is not None
    assert clip.world_from_camera is not None
    assert clip.intrinsics is not None
    for frame in range(len(clip.images)):
        pose = clip.world_from_camera[frame]
        corners = vertices[frame % 6][surface.triangles[surface.faces[frame]]]
        pixels = np.concatenate([pixel_grid(48, 32), np.ones((48 * 32, 1))], -1)
        rays = (pixels @ np.linalg.inv(clip.intrinsics[frame]).T @ pose[:3, :3].T).reshape(32, 48, 3)
        normal = np.cross(corners[..., 1, :] - corners[..., 0, :], corners[..., 2, :] - corners[..., 0, :])
        depth = np.sum(normal * (corners[..., 0, :] - pose[:3, 3]), -1) / np.sum(normal * rays, -1)
        assert np.abs(depth - looks.depth[frame])[looks.seen[frame]].max() < 1e-3


def test_no_face_nearer_than_the_one_seen(clip: RawClip) -> None:
    """Against every face, by a plain intersection of a few rays."""
    looks, surface, vertices = look(clip), clip.surface, vertices_at(clip)
    assert surface is not None
    assert clip.world_from_camera is not None
    rng = np.random.default_rng(0)
    for frame, row, column in zip(rng.integers(0, 12, 60), rng.integers(0, 32, 60), rng.integers(0, 48, 60)):
        origin = clip.world_from_camera[frame, :3, 3]
        direction = looks.points[frame, row, column] - origin
        a, b, c = np.moveaxis(vertices[frame % 6][surface.triangles] - origin, 1, 0)
        weights = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], 1) @ direction
        crossed = (weights > 1e-9).all(1) | (weights < -1e-9).all(1)
        reach = np.sum(a * np.cross(b, c), -1)[crossed] / weights[crossed].sum(1)
        assert reach[reach > 0].min() > 1 - 1e-4


def test_only_moving_vertices_move_and_static_things_do_not(clip: RawClip) -> None:
    surface = clip.surface
    assert surface is not None
    np.testing.assert_array_equal(surface.moving_vertices[0], surface.vertices[surface.moving])
    still = [i for i, thing in enumerate(clip.info.objects) if thing.motion == "static"]
    fixed = np.unique(surface.triangles[np.isin(surface.instances, still)])
    assert not np.isin(fixed, surface.moving).any()
    assert surface.instances.max() == len(clip.info.objects) - 1


def test_pictures_are_neither_dark_nor_blank() -> None:
    for seed in range(6):
        images = generate(seed, TINY).images.astype(float)
        assert 60 < images.mean() < 190
        assert (images.std((1, 2)).max(-1) > 15).all()
        assert (images >= 254).all(-1).mean() < 0.1


def test_held_out_worlds_have_other_shapes() -> None:
    apart = set(HELD_OUT_SHAPES) | set(HELD_OUT_FURNITURE)
    for seed in range(4):
        assert not {thing.name for thing in generate(seed, TINY).info.objects} & apart
        held_out = {thing.name for thing in generate(HELD_OUT_SEED + seed, TINY).info.objects}
        assert held_out <= apart | {"surroundings"}


class Figures(NamedTuple):
    ratios: list[float]
    """5–95 % depth ratio of each frame."""
    dynamic: float
    turn: float
    hidden: float
    objects: int
    inside: float
    """Greatest winding number of a thing about a camera; 0 = outside, 1 = inside."""
    outside_room: bool
    sunk: float
    """How far a vertex lies below the floor."""


def figures(seed: int) -> Figures:
    clip = generate(seed, TINY)
    looks, surface, vertices = look(clip), clip.surface, vertices_at(clip)
    assert surface is not None
    assert clip.world_from_camera is not None
    depths = [looks.depth[f][looks.seen[f]] for f in range(len(clip.images))]
    where = clip.world_from_camera[:, :3, 3].reshape(2, 8, 3)
    inside = 0.0
    for time in range(8):
        for instance in range(1, len(clip.info.objects)):
            faces = surface.triangles[surface.instances == instance]
            inside = max(inside, float(np.abs(winding(where[:, time], vertices[time], faces)).max()))
    room = vertices[0][np.unique(surface.triangles[surface.instances == 0])]
    return Figures(
        ratios=[float(np.quantile(d, 0.95) / np.quantile(d, 0.05)) for d in depths],
        dynamic=float(looks.dynamic.mean()),
        turn=max(camera_turn(clip)),
        hidden=hidden_share(clip, looks),
        objects=len(clip.info.objects) - 1,
        inside=inside,
        outside_room=bool((where < room.min(0)).any() or (where > room.max(0)).any()),
        sunk=float(-vertices[..., 2].min()),
    )


@pytest.mark.slow
def test_two_hundred_worlds_teach() -> None:
    """One test, since its clips are dear: depth range, motion, turning cameras, occlusion, free cameras, firm floor."""
    many = [figures(seed) for seed in range(150)] + [figures(HELD_OUT_SEED + seed) for seed in range(50)]
    assert np.mean([ratio >= 3 for found in many for ratio in found.ratios]) > 0.9
    assert np.mean([0.03 <= found.dynamic <= 0.4 for found in many]) > 0.95
    assert 0.05 < np.mean([found.dynamic for found in many]) < 0.25
    assert np.mean([found.turn >= 5 for found in many]) > 0.85
    assert np.mean([found.hidden >= 0.01 for found in many]) > 0.3
    assert max(found.inside for found in many) < 1e-6
    assert not any(found.outside_room for found in many)
    counts = {found.objects for found in many}
    assert min(counts) == 3
    assert 10 <= max(counts) <= 12
    assert np.mean([found.sunk > 0.02 for found in many]) < 0.1  # a hard landing gives way a little for a moment
    assert max(found.sunk for found in many) < 0.06
