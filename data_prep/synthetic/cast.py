"""Contents of a room that move: rigid bodies, or creatures among things that stand still."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic.bodies import make_bodies, make_flexible, make_obstacles
from data_prep.synthetic.creatures.placing import Performer, make_performers
from data_prep.synthetic.creatures.skeleton import Creature, limb_mesh
from data_prep.synthetic.flexible import Flexible
from data_prep.synthetic.meshes import Mesh, moved
from data_prep.synthetic.models import Skin
from data_prep.synthetic.physics import Body, Motion, simulate
from data_prep.synthetic.room import Painter
from data_prep.synthetic.settings import WorldSettings
from data_prep.synthetic.stage import Material, Piece
from four_d.data.contract import ObjectInfo

Array = NDArray[np.float64]
Random = np.random.Generator
SUNK_M = 0.03
"""Depth that a limb may sink into the floor or a wall."""
FASTEST = 15.0
"""Speed in m/s that no limb reaches unless the simulation went wrong."""
STRETCHED = 3.0
"""Ratio by which no edge of a soft body or cloth may be longer than at rest."""
BEYOND_RAD = 0.12
"""Angle that hinges may give way beyond their limits."""


class RejectedError(Exception):
    """Unsuitable world; the next attempt may do."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Mesh that moves with one body; parts of the same ``paint`` share a material."""

    mesh: Mesh
    instance: int
    body: int
    paint: tuple[int, int]
    extent: float
    """Size that the scale of its texture follows, in metres."""
    skin: Skin | None = None
    """Texture that came with the mesh."""
    path: Array | None = None
    """t v 3: vertices in the world over time, if it bends."""
    two_sided: bool = False


@dataclass(frozen=True, kw_only=True)
class Troupe:
    """Creatures of a world. Limbs are bodies of its motion from ``first`` on, creature by creature."""

    creatures: tuple[Creature, ...]
    instances: tuple[int, ...]
    first: int


@dataclass(frozen=True, kw_only=True)
class Cast:
    """Contents of a room that move, simulated."""

    objects: list[ObjectInfo]
    """Object i is instance i + 1."""
    motion: Motion
    parts: list[Part]
    movers: list[int]
    """Bodies of ``motion`` that cameras may follow."""
    centre: Array
    radius: float
    """Radius of the region that cameras look at."""
    troupe: Troupe = field(default_factory=lambda: Troupe(creatures=(), instances=(), first=0))

    def pieces(self, rng: Random, painter: Painter) -> list[Piece]:
        """Give every part its material."""
        made: dict[tuple[int, int], Material] = {}
        for part in self.parts:
            if part.skin is not None:
                made[part.paint] = painter.skin(rng, part.skin.tile)
            elif part.paint not in made:
                made[part.paint] = painter.material(part.extent * rng.uniform(0.5, 1.3))
        return [
            Piece(
                mesh=part.mesh,
                instance=part.instance,
                body=part.body,
                material=made[part.paint],
                uv=None if part.skin is None else part.skin.uv,
                path=part.path,
                two_sided=part.two_sided,
            )
            for part in self.parts
        ]


def cast_bodies(
    rng: Random, settings: WorldSettings, centre: Array, bounds: Array, held_out: bool, times: Array
) -> Cast:
    """Rigid bodies, thrown, dropped, slid, rolled or still."""
    count = int(rng.integers(settings.objects[0], settings.objects[1] + 1))
    radius = rng.uniform(0.8, 1.1) + 0.03 * count
    bodies = make_bodies(rng, count, centre, radius, bounds, held_out, settings)
    if len(bodies) < settings.objects[0] or sum(b.motion in settings.starts for b in bodies) < 2:
        raise RejectedError("too few objects found room")
    bending = settings.soft[1] + settings.cloths[1] > 0
    flexible = make_flexible(rng, bodies, centre, radius, bounds, settings) if bending else []
    if len(flexible) < settings.soft[0] + settings.cloths[0]:
        raise RejectedError("too few soft bodies and cloths found room")
    motion = simulate(bodies, bounds, times + rng.uniform(0.0, 0.25), flexible=flexible)
    motion = _with_middles(motion)
    _require_sane(motion, bounds)
    _require_whole(motion, flexible, bounds, times)
    return Cast(
        objects=[ObjectInfo(name=body.name, motion=body.motion) for body in (*bodies, *flexible)],
        motion=motion,
        parts=_parts(bodies, 1) + _flexible_parts(flexible, motion, len(bodies)),
        movers=[i for i, body in enumerate((*bodies, *flexible)) if body.motion in settings.starts],
        centre=centre,
        radius=radius,
    )


def cast_creatures(
    rng: Random, settings: WorldSettings, centre: Array, bounds: Array, held_out: bool, times: Array
) -> Cast:
    """Creatures that walk, sway, wriggle or fall, among obstacles; creature i is instance i + 1."""
    begin = rng.uniform(0.0, 0.25)
    performers = make_performers(rng, settings, centre, bounds, held_out, float(times[-1]) + begin)
    if len(performers) < settings.creatures[0]:
        raise RejectedError("too few creatures found room")
    count = int(rng.integers(settings.obstacles[0], settings.obstacles[1] + 1))
    taken = [(p.where, p.radius) for p in performers]
    obstacles = make_obstacles(rng, count, centre, bounds, held_out, taken, settings)
    motion = simulate(obstacles, bounds, times + begin, [performer.puppet for performer in performers])
    creatures = tuple(performer.puppet.creature for performer in performers)
    troupe = Troupe(creatures=creatures, instances=tuple(range(1, len(creatures) + 1)), first=len(obstacles))
    _require_sound(motion, troupe, bounds, times)
    doing = [ObjectInfo(name=p.puppet.creature.species, motion=p.action) for p in performers]
    starts = np.cumsum([troupe.first] + [len(creature.limbs) for creature in creatures[:-1]])
    tallest = max(performer.height for performer in performers)
    return Cast(
        objects=doing + [ObjectInfo(name=body.name, motion=body.motion) for body in obstacles],
        motion=motion,
        parts=_parts(obstacles, 1 + len(creatures)) + _limb_parts(troupe),
        movers=[int(start) for start in starts],
        centre=_middle(performers, tallest),
        radius=float(np.clip(0.2 * tallest + 0.12 * len(performers), 0.15, 0.75)),
        troupe=troupe,
    )


def _middle(performers: list[Performer], tallest: float) -> Array:
    """Centre that cameras look at: between the creatures, at half the height of the tallest."""
    level = np.mean([performer.where.mean(0) for performer in performers], axis=0)
    return np.array([*level, max(0.5 * tallest - 0.35, 0.0)])


def _parts(bodies: list[Body], first: int) -> list[Part]:
    found: list[Part] = []
    for number, body in enumerate(bodies):
        whole = Part(
            mesh=body.mesh,
            instance=number + first,
            body=number,
            paint=(number + first, 0),
            extent=float(np.ptp(body.mesh.vertices, axis=0).max()),
        )
        skins = [(paint, skin, _cut(body.mesh, skin.faces)) for paint, skin in enumerate(body.skins)]
        own = [replace(whole, mesh=m, paint=(number + first, p), skin=s, two_sided=True) for p, s, m in skins]
        found += own or [whole]
    return found


def _cut(mesh: Mesh, faces: slice) -> Mesh:
    """Some faces of a mesh, with its collision shape."""
    used, triangles = np.unique(mesh.triangles[faces], return_inverse=True)
    return replace(mesh, vertices=mesh.vertices[used], triangles=triangles.reshape(-1, 3))


def _flexible_parts(flexible: list[Flexible], motion: Motion, first: int) -> list[Part]:
    """Surfaces of flexible bodies, which are bodies of the motion from ``first`` on."""
    return [
        Part(
            mesh=one.mesh,
            instance=first + number + 1,
            body=first + number,
            paint=(first + number + 1, 0),
            extent=float(np.ptp(one.mesh.vertices, axis=0).max()),
            path=surface,
            two_sided=one.kind == "cloth",
        )
        for number, (one, surface) in enumerate(zip(flexible, motion.flexible, strict=True))
    ]


def _with_middles(motion: Motion) -> Motion:
    """Motion in which each flexible body is one more body: its middle, without rotation."""
    if not motion.flexible:
        return motion
    middles = np.stack([surface.mean(1) for surface in motion.flexible], 1)
    still = np.broadcast_to(np.eye(3), (*middles.shape, 3))
    return replace(
        motion,
        positions=np.concatenate([motion.positions, middles], 1),
        rotations=np.concatenate([motion.rotations, still], 1),
    )


def _limb_parts(troupe: Troupe) -> list[Part]:
    """Meshes of all limbs, each about the middle of its limb."""
    found: list[Part] = []
    body = troupe.first
    for creature, instance in zip(troupe.creatures, troupe.instances):
        for limb in creature.limbs:
            for shape in limb.shapes:
                mesh = moved(limb_mesh(shape), 1.0, -limb.centre)
                extent = 6 * shape.radius
                found.append(
                    Part(mesh=mesh, instance=instance, body=body, paint=(instance, shape.paint), extent=extent)
                )
            body += 1
    return found


def _require_sane(motion: Motion, bounds: Array) -> None:
    """Raise RejectedError if a body starts inside another or leaves the room, or the simulation diverged."""
    positions = motion.positions
    inside = (positions[..., :2] > bounds[0, :2]) & (positions[..., :2] < bounds[1, :2])
    sound = motion.stable and motion.deepest <= 0.01 and np.isfinite(positions).all()
    if not sound or not inside.all() or (positions[..., 2] < 0).any():
        raise RejectedError("physics")


def _require_whole(motion: Motion, flexible: list[Flexible], bounds: Array, times: Array) -> None:
    """Raise RejectedError if a flexible body leaves the room, is torn out of shape, or is too fast."""
    for body, surface in zip(flexible, motion.flexible, strict=True):
        if not np.isfinite(surface).all() or (surface < bounds[0] - SUNK_M).any():
            raise RejectedError("a soft body or cloth is in the floor or a wall")
        if (surface[..., :2] > bounds[1, :2] + SUNK_M).any():
            raise RejectedError("a soft body or cloth is in a wall")
        speed = np.linalg.norm(np.diff(surface, axis=0), axis=-1) / np.diff(times)[:, None, None]
        if len(speed) and float(speed.max()) > FASTEST:
            raise RejectedError("a soft body or cloth is too fast")
        a, b = body.mesh.triangles[:, 0], body.mesh.triangles[:, 1]
        rest = np.linalg.norm(body.mesh.vertices[a] - body.mesh.vertices[b], axis=-1)
        now = np.linalg.norm(surface[:, a] - surface[:, b], axis=-1)
        if float((now / rest).max()) > STRETCHED:
            raise RejectedError("a soft body or cloth is stretched")


def _require_sound(motion: Motion, troupe: Troupe, bounds: Array, times: Array) -> None:
    """Raise RejectedError as `_require_sane`, and for hinges beyond their limits, limbs too fast or in the floor."""
    _require_sane(motion, bounds)
    if motion.excess > BEYOND_RAD:
        raise RejectedError("hinges beyond their limits")
    speed = np.linalg.norm(np.diff(motion.positions, axis=0), axis=-1) / np.diff(times)[:, None]
    if len(speed) and float(speed.max()) > FASTEST:
        raise RejectedError("limbs too fast")
    low, high = bounds[0] - SUNK_M, bounds[1] + SUNK_M
    for part in _limb_parts(troupe):
        turned = np.einsum("tij,vj->tvi", motion.rotations[:, part.body], part.mesh.vertices)
        points = turned + motion.positions[:, part.body, None]
        if (points < low).any() or (points[..., :2] > high[:2]).any():
            raise RejectedError("a limb is in the floor or a wall")
