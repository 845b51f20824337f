"""Bodies of a room: shapes, sizes, places and initial motion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic import meshes
from data_prep.synthetic.meshes import Mesh
from data_prep.synthetic.physics import Body, MotionWord, rotation_matrix
from data_prep.synthetic.settings import WorldSettings

Array = NDArray[np.float64]
Random = np.random.Generator
GAP_M = 0.03


def turn(rng: Random, *, upright: bool) -> Array:
    """Random rotation as wxyz; about z only if ``upright``."""
    if upright:
        half = rng.uniform(0, np.pi)
        return np.array([np.cos(half), 0, 0, np.sin(half)])
    q = rng.normal(0, 1, 4)
    return q / np.linalg.norm(q)


def _shape(rng: Random, motion: MotionWord, held_out: bool) -> tuple[str, Mesh]:
    furniture = meshes.HELD_OUT_FURNITURE if held_out else meshes.TRAIN_FURNITURE
    shapes = meshes.HELD_OUT_SHAPES if held_out else meshes.TRAIN_SHAPES
    if motion == "static" and rng.random() < 0.5:
        name, mesh = meshes.make_shape(rng, furniture)
        return name, meshes.moved(mesh, rng.uniform(0.8, 1.4))
    name, mesh = meshes.make_shape(rng, shapes)
    size = rng.uniform(0.4, 1.1) if motion == "static" else rng.uniform(0.35, 0.85)
    return name, meshes.moved(mesh, size)


def _start(rng: Random, motion: MotionWord, centre: Array, radius: float, bottom: float) -> tuple[Array, Array, Array]:
    """Position, velocity and spin; ``bottom`` is the height of the body's origin when it stands on the floor."""
    angle = rng.uniform(0, 2 * np.pi)
    outward = np.array([np.cos(angle), np.sin(angle), 0.0])
    inward = -np.array([np.cos(angle + rng.normal(0, 0.5)), np.sin(angle + rng.normal(0, 0.5)), 0.0])
    floor = centre + np.array([0, 0, bottom + 1e-3])
    still = np.zeros(3)
    if motion == "static":
        return floor + outward * rng.uniform(0.2, 1.5) * radius, still, still
    if motion == "resting":
        return floor + outward * rng.uniform(0.0, 1.0) * radius, still, still
    if motion == "dropped":
        height = np.array([0, 0, rng.uniform(0.4, 1.7)])
        return floor + outward * rng.uniform(0, 1.0) * radius + height, rng.normal(0, 0.4, 3), rng.normal(0, 2.5, 3)
    if motion == "thrown":
        up = np.array([0, 0, rng.uniform(0.5, 3.5)])
        height = np.array([0, 0, rng.uniform(0.1, 1.2)])
        speed = rng.uniform(1.2, 3.6)
        return floor + outward * rng.uniform(0.5, 1.2) * radius + height, inward * speed + up, rng.normal(0, 4.0, 3)
    start = floor + outward * rng.uniform(0.7, 1.4) * radius
    if motion == "rolled":
        velocity = inward * rng.uniform(1.0, 3.0)
        return start + np.array([0, 0, 0.02]), velocity, np.cross([0, 0, 1.0], velocity) / max(bottom, 0.1)
    return start, inward * rng.uniform(1.5, 3.8), np.array([0, 0, rng.normal(0, 1.5)])


def _place(
    rng: Random, motion: MotionWord, mesh: Mesh, name: str, centre: Array, radius: float, settings: WorldSettings
) -> Body:
    upright = motion in ("static", "resting", "slid")
    quaternion = turn(rng, upright=upright)
    bottom = -float((mesh.vertices @ rotation_matrix(quaternion).T)[:, 2].min())
    position, velocity, spin = _start(rng, motion, centre, radius, bottom)
    return Body(
        name=name,
        mesh=mesh,
        motion=motion,
        position=position,
        quaternion=quaternion,
        velocity=velocity,
        spin=spin if motion == "rolled" else spin * settings.spin,
        density=rng.uniform(150, 900),
        friction=rng.uniform(0.08, 0.3) if motion == "slid" else rng.uniform(0.3, 0.9),
        damping=rng.uniform(0.1, 0.9),
    )


def world_points(body: Body) -> Array:
    """World vertices (v 3) of the body at its start."""
    return body.mesh.vertices @ rotation_matrix(body.quaternion).T + body.position


def _free(body: Body, others: list[Body], bounds: Array) -> bool:
    """True if the body's bounding box is clear of the walls and of the other bodies' boxes."""
    points = world_points(body)
    low, high = points.min(0), points.max(0)
    if (low[:2] < bounds[0, :2] + 0.7).any() or (high[:2] > bounds[1, :2] - 0.7).any() or high[2] > bounds[1, 2] - 0.1:
        return False
    for other in others:
        placed = world_points(other)
        if ((low < placed.max(0) + GAP_M) & (high > placed.min(0) - GAP_M)).all():
            return False
    return True


def make_bodies(
    rng: Random, count: int, centre: Array, radius: float, bounds: Array, held_out: bool, settings: WorldSettings
) -> list[Body]:
    """``count`` bodies (fewer if they do not fit) around ``centre``, at least two of them to move (if they fit)."""
    moving = max(2, round(count * rng.uniform(0.4, 0.75)))
    words: list[MotionWord] = []
    words.extend(settings.starts[int(i)] for i in rng.integers(0, len(settings.starts), moving))
    still: tuple[MotionWord, ...] = ("static", "static", "resting")
    words.extend(still[int(i)] for i in rng.integers(0, len(still), count - moving))
    bodies: list[Body] = []
    for word in sorted(words, key=lambda w: w != "static"):
        name, mesh = _shape(rng, word, held_out)
        for _ in range(12):
            body = _place(rng, word, mesh, name, centre, radius, settings)
            if _free(body, bodies, bounds):
                bodies.append(body)
                break
    return bodies


def make_obstacles(
    rng: Random, count: int, centre: Array, bounds: Array, held_out: bool, taken: Sequence[tuple[Array, float]]
) -> list[Body]:
    """``count`` things that stand still (fewer if they do not fit), outside ``taken`` discs: centres k 2, radius."""
    bodies: list[Body] = []
    for _ in range(count):
        name, mesh = _shape(rng, "static", held_out)
        reach = float(np.linalg.norm(mesh.vertices[:, :2], axis=-1).max())
        for _ in range(12):
            body = _place(rng, "static", mesh, name, np.array([*centre[:2], 0.0]), 1.5, WorldSettings())
            clear = all(
                (np.linalg.norm(body.position[:2] - where, axis=-1) > radius + reach).all() for where, radius in taken
            )
            if clear and _free(body, bodies, bounds):
                bodies.append(body)
                break
    return bodies
