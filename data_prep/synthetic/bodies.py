"""Bodies of a room: shapes, sizes, places and initial motion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic import meshes
from data_prep.synthetic.flexible import Flexible, FlexMotion, make_cloth, make_soft
from data_prep.synthetic.meshes import Mesh, rotation_matrix
from data_prep.synthetic.models import Skin, models
from data_prep.synthetic.physics import Body, MotionWord
from data_prep.synthetic.settings import WorldSettings

Array = NDArray[np.float64]
Random = np.random.Generator
GAP_M = 0.03
MODEL_SHARE = 0.75
"""Probability of an object to be one of the folder's meshes, where there is one."""
CLOTH_MOTIONS: tuple[FlexMotion, ...] = ("draped", "draped", "hung", "thrown")


def turn(rng: Random, *, upright: bool) -> Array:
    """Random rotation as wxyz; about z only if ``upright``."""
    if upright:
        half = rng.uniform(0, np.pi)
        return np.array([np.cos(half), 0, 0, np.sin(half)])
    q = rng.normal(0, 1, 4)
    return q / np.linalg.norm(q)


def _shape(
    rng: Random, motion: MotionWord, held_out: bool, settings: WorldSettings
) -> tuple[str, Mesh, tuple[Skin, ...]]:
    if settings.meshes is not None and rng.random() < MODEL_SHARE:
        model = models(settings.meshes).draw(rng)
        return model.name, meshes.moved(model.mesh, rng.uniform(0.35, 0.85)), model.skins
    furniture = meshes.HELD_OUT_FURNITURE if held_out else meshes.TRAIN_FURNITURE
    shapes = meshes.HELD_OUT_SHAPES if held_out else meshes.TRAIN_SHAPES
    if motion == "static" and rng.random() < 0.5:
        name, mesh = meshes.make_shape(rng, furniture)
        return name, meshes.moved(mesh, rng.uniform(0.8, 1.4)), ()
    name, mesh = meshes.make_shape(rng, shapes)
    size = rng.uniform(0.4, 1.1) if motion == "static" else rng.uniform(0.35, 0.85)
    return name, meshes.moved(mesh, size), ()


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


def _free(points: Array, others: Sequence[Array], bounds: Array) -> bool:
    """True if the bounding box of a body's points is clear of the walls and of the other bodies' boxes."""
    low, high = points.min(0), points.max(0)
    if (low[:2] < bounds[0, :2] + 0.7).any() or (high[:2] > bounds[1, :2] - 0.7).any() or high[2] > bounds[1, 2] - 0.1:
        return False
    return not any(((low < each.max(0) + GAP_M) & (high > each.min(0) - GAP_M)).all() for each in others)


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
        name, mesh, skins = _shape(rng, word, held_out, settings)
        for _ in range(12):
            body = _place(rng, word, mesh, name, centre, radius, settings)
            if _free(world_points(body), [world_points(other) for other in bodies], bounds):
                bodies.append(replace(body, skins=skins))
                break
    return bodies


def make_flexible(
    rng: Random, bodies: list[Body], centre: Array, radius: float, bounds: Array, settings: WorldSettings
) -> list[Flexible]:
    """Soft bodies and cloths (fewer if they do not fit) among ``bodies``, all of which they keep clear of at first."""
    softs, cloths = (int(rng.integers(low, high + 1)) for low, high in (settings.soft, settings.cloths))
    taken = [world_points(body) for body in bodies]
    found: list[Flexible] = []
    for number in range(softs + cloths):
        for _ in range(12):
            one = (
                _soft(rng, centre, radius, settings)
                if number < softs
                else _cloth(rng, bodies, centre, radius, bounds, settings)
            )
            points = one.start()
            if points[:, 2].min() > 0.02 and _free(points, taken, bounds):
                found.append(one)
                taken.append(points)
                break
    return found


def _soft(rng: Random, centre: Array, radius: float, settings: WorldSettings) -> Flexible:
    size = rng.uniform(0.35, 0.7)
    name, points, mesh, sources = make_soft(rng, size)
    motion = ("dropped", "thrown")[int(rng.integers(2))]
    quaternion = turn(rng, upright=False)
    bottom = -float((points @ rotation_matrix(quaternion).T)[:, 2].min())
    position, velocity, spin = _start(rng, motion, centre, radius, bottom)
    side = round(len(points) ** (1 / 3))
    return Flexible(
        kind="soft",
        name=name,
        motion=motion,
        counts=(side, side, side),
        points=points,
        mesh=mesh,
        sources=sources[:, None],
        weights=np.ones((len(sources), 1)),
        position=position,
        quaternion=quaternion,
        velocity=velocity,
        spin=spin * settings.spin,
        mass=float(np.prod(np.ptp(points, axis=0))) * rng.uniform(80, 300),
        young=float(np.exp(rng.uniform(np.log(1.5e3), np.log(1.2e4)))),
        friction=rng.uniform(0.4, 0.9),
    )


def _cloth(
    rng: Random, bodies: list[Body], centre: Array, radius: float, bounds: Array, settings: WorldSettings
) -> Flexible:
    """Cloth that falls over a thing, hangs by a side's two corners, or flies."""
    sides = (float(rng.uniform(0.6, 1.3)), float(rng.uniform(0.6, 1.3)))
    counts, points, mesh, sources, weights = make_cloth(sides)
    motion = CLOTH_MOTIONS[int(rng.integers(len(CLOTH_MOTIONS)))]
    heading = rng.uniform(0, 2 * np.pi)
    quaternion = np.array([np.cos(heading / 2), 0, 0, np.sin(heading / 2)])
    velocity, spin, pinned = np.zeros(3), np.zeros(3), ()
    if motion == "draped":
        below = world_points(bodies[int(rng.integers(len(bodies)))])
        position = np.array([*below[:, :2].mean(0), below[:, 2].max() + rng.uniform(0.06, 0.25)])
        position[:2] += rng.normal(0, 0.08, 2)
    elif motion == "hung":
        # upright, x up: the quarter turn about y first
        about_y = np.array([np.sqrt(0.5), 0, -np.sqrt(0.5), 0])
        quaternion = product(quaternion, about_y)
        pinned = ((counts[0] - 1) * counts[1], counts[0] * counts[1] - 1)
        top = min(bounds[1, 2] - 0.3, sides[0] + rng.uniform(0.2, 0.9))
        angle, reach = rng.uniform(0, 2 * np.pi), radius * rng.uniform(0.2, 1.2)
        position = centre + np.array([reach * np.cos(angle), reach * np.sin(angle), top - sides[0] / 2])
        velocity = rng.normal(0, 1.2, 3) * np.array([1, 1, 0])
    else:
        quaternion = turn(rng, upright=False)
        bottom = -float((points @ rotation_matrix(quaternion).T)[:, 2].min())
        position, velocity, spin = _start(rng, "thrown", centre, radius, bottom)
    return Flexible(
        kind="cloth",
        name="cloth",
        motion=motion,
        counts=(*counts, 1),
        points=points,
        mesh=mesh,
        sources=sources,
        weights=weights,
        position=position,
        quaternion=quaternion,
        velocity=velocity,
        spin=spin * settings.spin,
        mass=sides[0] * sides[1] * rng.uniform(0.2, 0.6),
        young=float(np.exp(rng.uniform(np.log(3e4), np.log(6e5)))),
        friction=rng.uniform(0.3, 0.8),
        pinned=pinned,
    )


def product(p: Array, q: Array) -> Array:
    """Product of two quaternions wxyz: first the rotation ``q``, then ``p``."""
    scalar = p[0] * q[0] - p[1:] @ q[1:]
    return np.array([scalar, *(p[0] * q[1:] + q[0] * p[1:] + np.cross(p[1:], q[1:]))])


def make_obstacles(
    rng: Random,
    count: int,
    centre: Array,
    bounds: Array,
    held_out: bool,
    taken: Sequence[tuple[Array, float]],
    settings: WorldSettings,
) -> list[Body]:
    """``count`` things that stand still (fewer if they do not fit), outside ``taken`` discs: centres k 2, radius."""
    bodies: list[Body] = []
    for _ in range(count):
        name, mesh, skins = _shape(rng, "static", held_out, settings)
        reach = float(np.linalg.norm(mesh.vertices[:, :2], axis=-1).max())
        for _ in range(12):
            body = _place(rng, "static", mesh, name, np.array([*centre[:2], 0.0]), 1.5, WorldSettings())
            clear = all(
                (np.linalg.norm(body.position[:2] - where, axis=-1) > radius + reach).all() for where, radius in taken
            )
            if clear and _free(world_points(body), [world_points(other) for other in bodies], bounds):
                bodies.append(replace(body, skins=skins))
                break
    return bodies
