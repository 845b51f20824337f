"""Choice of a room's creatures, their actions and places, so that none goes through a wall or another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_prep.synthetic.creatures import gaits
from data_prep.synthetic.creatures.animals import make_animal
from data_prep.synthetic.creatures.chains import make_chain
from data_prep.synthetic.creatures.gaits import Path, Plan
from data_prep.synthetic.creatures.people import make_person
from data_prep.synthetic.creatures.puppets import Puppet
from data_prep.synthetic.creatures.skeleton import Action, Array, Creature, Shape
from data_prep.synthetic.settings import STEP_S, Species, WorldSettings

Random = np.random.Generator
LOOKS = 5
"""Times at which the places of two creatures are compared."""
WALL_M = 0.15
"""Room that a creature leaves to the walls."""


@dataclass(frozen=True, kw_only=True)
class Performer:
    """Creature with its plan, and the disc on the floor that it may need."""

    puppet: Puppet
    action: Action
    where: Array
    """`LOOKS` 2: the disc's centres, evenly over the time."""
    radius: float
    height: float
    """Height of its highest part when it stands, in metres."""


def make_performers(
    rng: Random, settings: WorldSettings, centre: Array, bounds: Array, held_out: bool, until_s: float
) -> list[Performer]:
    """Creatures around ``centre`` that move for ``until_s`` seconds; fewer than drawn if they find no room."""
    found: list[Performer] = []
    for _ in range(int(rng.integers(settings.creatures[0], settings.creatures[1] + 1))):
        species = settings.species[int(rng.integers(len(settings.species)))]
        act = ACTS[species](rng, held_out)
        for _ in range(20):
            path = _path(rng, act.speed, act.turn, centre, until_s, spread=0.5 if not found else 1.5)
            where, headings = path.at(np.linspace(0, until_s, LOOKS))
            middle, radius, height = _extent(act)
            where = where + middle * np.stack([np.cos(headings), np.sin(headings)], -1)
            if _clear(where, radius, found, bounds):
                plan = act.plan(path, np.arange(0, until_s + 2 * STEP_S, STEP_S))
                puppet = Puppet(creature=act.creature, plan=plan)
                found.append(Performer(puppet=puppet, action=act.action, where=where, radius=radius, height=height))
                break
    return found


@dataclass(frozen=True, kw_only=True)
class _Act:
    """Creature and its action, without a place yet."""

    creature: Creature
    action: Action
    plan: Callable[[Path, Array], Plan]
    speed: float = 0.0
    turn: float = 0.0


def _legged(rng: Random, creature: Creature) -> _Act:
    draw = rng.random()
    if draw > 0.75:
        return _fall(rng, creature)
    gait = gaits.walk(rng, creature) if draw < 0.55 else gaits.stand(rng, creature)
    return _Act(
        creature=creature,
        action=gait.action,
        plan=lambda path, times: gaits.drive(rng, creature, gait, path, times),
        speed=gait.speed,
        turn=gait.turn,
    )


def _person(rng: Random, held_out: bool) -> _Act:
    return _legged(rng, make_person(rng, held_out=held_out))


def _animal(rng: Random, held_out: bool) -> _Act:
    return _legged(rng, make_animal(rng, held_out=held_out))


def _chain(rng: Random, held_out: bool) -> _Act:
    draw = rng.random()
    creature = make_chain(rng, held_out=held_out, rooted=draw < 0.5)
    if draw > 0.75:
        return _fall(rng, creature)
    if not creature.rooted:
        return _Act(
            creature=creature,
            action="wriggling",
            plan=lambda path, times: gaits.wriggle(rng, creature, path, times),
        )
    gait = gaits.stand(rng, creature)
    return _Act(
        creature=creature,
        action=gait.action,
        plan=lambda path, times: gaits.drive(rng, creature, gait, path, times),
    )


def _fall(rng: Random, creature: Creature) -> _Act:
    return _Act(creature=creature, action="falling", plan=lambda path, _: gaits.fall(rng, creature, path))


ACTS: dict[Species, Callable[[Random, bool], _Act]] = {"chain": _chain, "animal": _animal, "person": _person}


def _path(rng: Random, speed: float, turn: float, centre: Array, until_s: float, spread: float) -> Path:
    angle, away = rng.uniform(0, 2 * np.pi), rng.uniform(0, spread)
    return Path(
        centre=centre[:2] + away * np.array([np.cos(angle), np.sin(angle)]),
        heading=rng.uniform(0, 2 * np.pi),
        speed=speed,
        turn=turn,
        middle=until_s / 2,
    )


def _extent(act: _Act) -> tuple[float, float, float]:
    """Middle of a creature along x from its root, radius about it, and height, with room for what it does."""
    creature = act.creature
    origins = np.zeros((len(creature.limbs), 3))
    points: list[Array] = []
    for number, limb in enumerate(creature.limbs):
        origins[number] = limb.offset + (origins[limb.parent] if limb.parent >= 0 else 0)
        for shape in limb.shapes:
            points += [origins[number] + end + reach for end in (shape.start, shape.end) for reach in _corners(shape)]
    every = np.stack(points)
    low, high = every.min(0), every.max(0)
    middle = float(low[0] + high[0]) / 2
    radius = max(float(high[0] - low[0]), float(high[1] - low[1])) / 2 + 0.1
    height = float(high[2])
    if act.action == "falling" or creature.rooted or act.action == "swaying":
        radius = max(radius, 0.45 * height)
    return middle, radius, height


def _corners(shape: Shape) -> Array:
    reach = np.full(3, shape.radius) if shape.box is None else np.array(shape.box) / 2
    return np.stack([reach, -reach])


def _clear(where: Array, radius: float, others: list[Performer], bounds: Array) -> bool:
    margin = radius + WALL_M
    if (where < bounds[0, :2] + margin).any() or (where > bounds[1, :2] - margin).any():
        return False
    return all((np.linalg.norm(where - other.where, axis=-1) > radius + other.radius).all() for other in others)
