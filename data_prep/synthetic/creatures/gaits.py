"""Motion that creatures are driven along: paths, gaits with feet that stand still, swings; as hinge angles over time.

A foot stands at a place of the floor during its stance and swings to the next one; the hinges of its leg follow from
both ends (two limbs in a plane: inverse kinematics in closed form). So feet do not slide.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from data_prep.synthetic.creatures.skeleton import (
    Action,
    Array,
    Creature,
    Leg,
    X,
    Y,
    Z,
    limb_rotations,
    rotations_about,
)

Random = np.random.Generator
CLEARANCE_M = 0.003
"""Height of planned soles above the floor, so that contacts do not push the feet."""
PHASES = ((0.75, 0.25, 0.0, 0.5), (0.0, 0.5, 0.5, 0.0), (0.0, 0.5, 0.0, 0.5), (0.0, 0.08, 0.5, 0.58))
"""Phases of the left front, right front, left back and right back leg of a walk, a trot, a pace and a bound."""


@dataclass(frozen=True, kw_only=True)
class Path:
    """Arc on the floor that is walked at constant speed."""

    centre: Array
    """x y at the time ``middle``, in seconds."""
    heading: float
    """Angle at ``middle``, from the x axis."""
    speed: float
    turn: float
    """rad/s"""
    middle: float

    def at(self, times: Array) -> tuple[Array, Array]:
        """Positions (k 2) and headings (k)."""
        since = times - self.middle
        half = self.turn * since / 2
        chord = self.speed * since * np.sinc(half / np.pi)
        angle = self.heading + half
        return self.centre + chord[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1), self.heading + 2 * half


@dataclass(frozen=True, kw_only=True)
class Gait:
    """Rhythm of a driven creature."""

    action: Action
    frequency: float
    """Hz, of a whole cycle."""
    duty: float
    """Share of the cycle that a foot stands: 1 for standing in place."""
    phases: tuple[float, ...]
    """Phases of the legs, in cycles."""
    crouch: float
    """Distance from hip to foot while standing, as a share of the stretched leg."""
    lift: float
    """Height that a foot is lifted, as a share of the leg."""
    speed: float
    turn: float
    vigour: float
    """Amplitude of the hinges that are not in legs, as a share of what their limits leave."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Poses of a creature's root and its hinges' angles, at k times; of one that only falls, at the first time."""

    positions: Array
    """k 3"""
    turns: Array
    """k 3: the root's angles about z, then y, then x of the axes so turned."""
    angles: Array
    """k h"""
    guided: bool = True
    """True if the root goes exactly where the plan says; False if only the hinges are driven."""
    limp: bool = False
    """True if nothing is driven."""
    velocity: Array = field(default_factory=lambda: np.zeros(3))
    """Velocity of a limp root at the start, in world axes (3)."""
    spin: Array = field(default_factory=lambda: np.zeros(3))
    """rad/s, in the root's axes (3)."""


def stretched(creature: Creature) -> float:
    """Length of the longest leg when it is stretched."""
    return max((sum(leg.lengths) for leg in creature.legs), default=0.0)


def walk(rng: Random, creature: Creature) -> Gait:
    """Random gait, at a speed that the legs reach."""
    four, crouch = len(creature.legs) == 4, rng.uniform(0.86, 0.94)
    phases = PHASES[int(rng.integers(len(PHASES)))] if four else (0.0, 0.5)
    length, duty = stretched(creature), rng.uniform(0.52, 0.64)
    frequency = rng.uniform(0.8, 1.5) * max(length, 0.25) ** -0.5
    stride = 2 * length * np.sqrt(0.98**2 - crouch**2) * rng.uniform(0.55, 0.92)
    return Gait(
        action="walking",
        frequency=frequency,
        duty=duty,
        phases=phases,
        crouch=crouch,
        lift=rng.uniform(0.08, 0.2),
        speed=float(stride * frequency / duty),
        turn=rng.normal(0, 0.35) * min(1.0, 2 * length),
        vigour=rng.uniform(0.1, 0.5),
    )


def stand(rng: Random, creature: Creature, action: Action = "swaying") -> Gait:
    """Random motion in place: feet stand, everything else swings."""
    return Gait(
        action=action,
        frequency=rng.uniform(0.5, 1.6),
        duty=1.0,
        phases=(0.0,) * len(creature.legs),
        crouch=rng.uniform(0.8, 0.93),
        lift=0.0,
        speed=0.0,
        turn=0.0,
        vigour=rng.uniform(0.4, 0.95),
    )


def drive(rng: Random, creature: Creature, gait: Gait, path: Path, times: Array) -> Plan:
    """Plan of a creature that goes along ``path``, at ``times`` (k)."""
    where, heading = path.at(times)
    roll, pitch, yaw = _sway(rng, creature, gait, times)
    angles = swings(rng, creature, gait, times)
    positions = np.concatenate([where, _heights(rng, creature, gait, times)[:, None]], -1)
    around = rotations_about(Z, heading + yaw)
    root = np.einsum("kij,kjl,klm->kim", around, rotations_about(Y, pitch), rotations_about(X, roll))
    _place_feet(creature, gait, path, times, positions, root, angles)
    low, high = (np.array([getattr(one, name) for one in creature.hinges]) for name in ("low", "high"))
    return Plan(
        positions=positions,
        turns=np.stack([heading + yaw, pitch, roll], -1),
        angles=np.clip(angles, low + 0.02, high - 0.02) if len(low) else angles,
        guided=not creature.rooted,
    )


def quaternions(turns: Array) -> Array:
    """Unit quaternions (k 4, wxyz) of `Plan.turns`."""
    (cz, cy, cx), (sz, sy, sx) = np.cos(turns / 2).T, np.sin(turns / 2).T
    return np.stack(
        [
            cz * cy * cx + sz * sy * sx,
            cz * cy * sx - sz * sy * cx,
            cz * sy * cx + sz * cy * sx,
            sz * cy * cx - cz * sy * sx,
        ],
        -1,
    )


def _sway(rng: Random, creature: Creature, gait: Gait, times: Array) -> tuple[Array, Array, Array]:
    """Roll, pitch and yaw (k each) of the root beside the heading: little, with the gait."""
    amounts = rng.uniform(0.01, 0.06, 3) * (1.0 if creature.legs else 0.0) * (1 + gait.vigour)
    phases = rng.uniform(0, 2 * np.pi, 3)
    cycle = 2 * np.pi * gait.frequency * times
    roll, pitch, yaw = amounts[:, None] * np.sin(np.array([[1.0], [2.0], [1.0]]) * cycle + phases[:, None])
    return roll, pitch, yaw


def _heights(rng: Random, creature: Creature, gait: Gait, times: Array) -> Array:
    """Height of the root (k): legs bent as the gait wants, a little up and down twice a cycle."""
    if not creature.legs:
        return np.full(len(times), creature.limbs[0].offset[2])
    leg = creature.legs[0]
    hip = _rest(creature, leg.upper)[2] - creature.limbs[0].offset[2]
    standing = leg.height + CLEARANCE_M + gait.crouch * stretched(creature) - hip
    depth = rng.uniform(0.05, 0.22) if gait.duty == 1 else rng.uniform(0.005, 0.02)
    wave = np.sin(4 * np.pi * gait.frequency * times * (0.5 if gait.duty == 1 else 1.0) + rng.uniform(0, 2 * np.pi))
    return standing - depth * stretched(creature) * (1 + wave) / 2


def _rest(creature: Creature, limb: int) -> Array:
    """Origin of a limb at rest, the root's x and y being 0."""
    place = np.zeros(3)
    while limb >= 0:
        place, limb = place + creature.limbs[limb].offset, creature.limbs[limb].parent
    return place


def swings(rng: Random, creature: Creature, gait: Gait, times: Array) -> Array:
    """Angles (k h): two sines of each hinge about a middle that lies well within its limits; 0 for those of legs."""
    hinges = creature.hinges
    angles = np.zeros((len(times), len(hinges)))
    cycle = 2 * np.pi * gait.frequency * times
    for column, one in enumerate(hinges):
        span = one.high - one.low
        rest = float(np.clip(0.0, one.low + 0.15 * span, one.high - 0.15 * span))
        anywhere = rng.uniform(one.low + 0.3 * span, one.high - 0.3 * span)
        loose = max(gait.vigour - 0.5, 0.0) * 1.6
        middle = rest + loose * (anywhere - rest)
        room = 0.9 * gait.vigour * min(one.high - middle, middle - one.low)
        ratio, share = rng.choice([1.0, 0.5, 1.5, 2.0]), rng.uniform(0.55, 1.0)
        phases = rng.uniform(0, 2 * np.pi, 2)
        slow, fast = np.sin(ratio * cycle + phases[0]), np.sin(2.7 * ratio * cycle + phases[1])
        angles[:, column] = middle + room * (share * slow + (1 - share) * fast)
    for arm, leg in creature.arms:
        if gait.duty < 1:
            columns = creature.columns(arm)
            follow = np.cos(cycle + 2 * np.pi * gait.phases[leg])
            angles[:, columns.stop - 1] = -rng.uniform(0.25, 0.6) * follow
    for leg in creature.legs:
        for limb in (leg.upper, leg.lower, *([] if leg.foot is None else [leg.foot])):
            angles[:, creature.columns(limb)] = 0.0
    return angles


def _place_feet(
    creature: Creature, gait: Gait, path: Path, times: Array, positions: Array, root: Array, angles: Array
) -> None:
    """Fill in the angles of the legs' hinges, given all others."""
    feet = {leg.upper: (leg, phase) for leg, phase in zip(creature.legs, gait.phases)}
    where, turned = [positions], [root]
    for number, limb in enumerate(creature.limbs):
        if number and number not in feet:
            where.append(where[limb.parent] + np.einsum("kij,j->ki", turned[limb.parent], limb.offset))
            turned.append(limb_rotations(limb, turned[limb.parent], angles[:, creature.columns(number)]))
        elif number:
            leg, phase = feet[number]
            hip = where[limb.parent] + np.einsum("kij,j->ki", turned[limb.parent], limb.offset)
            target = _steps(creature, leg, gait, phase, path, times)
            _bend(creature, leg, np.einsum("kji,kj->ki", turned[limb.parent], target - hip), angles)
            if leg.foot is not None:  # the sole stays level however the trunk leans
                angles[:, creature.columns(leg.foot)] += np.arcsin(turned[limb.parent][:, 2, :1])
            where.append(hip)
            turned.append(limb_rotations(limb, turned[limb.parent], angles[:, creature.columns(number)]))


def _steps(creature: Creature, leg: Leg, gait: Gait, phase: float, path: Path, times: Array) -> Array:
    """Planned places of a leg's lower end (k 3): still in stances, in a curve between them."""
    hip = _rest(creature, leg.upper)

    def foothold(cycle: Array) -> Array:
        middle = (cycle + gait.duty / 2 - phase) / gait.frequency
        at, heading = path.at(middle)
        c, s = np.cos(heading), np.sin(heading)
        return at + np.stack([c * hip[0] - s * hip[1], s * hip[0] + c * hip[1]], -1)

    cycles = gait.frequency * times + phase
    whole = np.floor(cycles)
    swing = np.clip((cycles - whole - gait.duty) / max(1 - gait.duty, 1e-9), 0, 1)
    blend = swing**3 * (10 - 15 * swing + 6 * swing**2)
    if gait.duty == 1:
        whole = np.zeros_like(whole)
    level = foothold(whole) * (1 - blend)[:, None] + foothold(whole + 1) * blend[:, None]
    rise = gait.lift * sum(leg.lengths) * 16 * (swing * (1 - swing)) ** 2  # it rises before it goes
    return np.concatenate([level, (leg.height + CLEARANCE_M + rise)[:, None]], -1)


def _bend(creature: Creature, leg: Leg, target: Array, angles: Array) -> None:
    """Angles of a leg whose lower end is at ``target`` (k 3, from the hip, in the axes of the limb that it is on)."""
    first, second = leg.lengths
    splay = np.arctan2(target[:, 1], -target[:, 2])
    down = np.hypot(target[:, 1], target[:, 2])
    reach = np.clip(np.hypot(target[:, 0], down), 1.02 * abs(first - second) + 1e-3, 0.999 * (first + second))
    cosine = (reach**2 - first**2 - second**2) / (2 * first * second)
    bend = leg.bend * np.arccos(np.clip(cosine, -1, 1))
    pitch = np.arctan2(-target[:, 0], down) - np.arctan2(second * np.sin(bend), first + second * np.cos(bend))
    upper, lower = creature.columns(leg.upper), creature.columns(leg.lower)
    angles[:, upper.start], angles[:, upper.start + 1], angles[:, lower.start] = splay, pitch, bend
    if leg.foot is not None:
        angles[:, creature.columns(leg.foot).start] = -pitch - bend


def wriggle(rng: Random, creature: Creature, path: Path, times: Array) -> Plan:
    """Plan of a free chain on the floor whose hinges follow a wave that runs along it, sideways."""
    frequency, waves = rng.uniform(0.7, 1.8), rng.uniform(0.7, 1.3)
    angles = np.zeros((len(times), len(creature.hinges)))
    count = len(creature.limbs)
    amount, start = rng.uniform(0.35, 0.75), rng.uniform(0, 2 * np.pi)
    for limb in range(1, count):
        lag = 2 * np.pi * waves * limb / count
        angles[:, creature.columns(limb).start] = amount * np.sin(2 * np.pi * frequency * times - lag + start)
    position = np.array([*path.centre, creature.limbs[0].offset[2] + CLEARANCE_M])
    still = np.zeros(len(times))
    return Plan(
        positions=np.broadcast_to(position, (len(times), 3)),
        turns=np.stack([still + path.heading, still, still], -1),
        angles=angles,
        guided=False,
    )


def fall(rng: Random, creature: Creature, path: Path) -> Plan:
    """Limp creature: dropped from a height with a tumble, or pushed over from where it stands."""
    low, high = (np.array([getattr(one, name) for one in creature.hinges]) for name in ("low", "high"))
    rest = np.clip(0.0, low + 0.1 * (high - low), high - 0.1 * (high - low))
    pushed = bool(creature.legs) and rng.random() < 0.5
    spread = 0.1 if pushed else 0.5
    angles = rest + spread * rng.uniform(-1, 1, len(rest)) * np.minimum(high - rest, rest - low)
    height, turned = creature.limbs[0].offset[2] + CLEARANCE_M, rng.normal(0, 0.5, 2)
    if pushed:
        angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.6)
        velocity, spin, turned = speed * np.array([np.cos(angle), np.sin(angle), 0]), rng.normal(0, 0.3, 3), 0 * turned
    else:
        height += rng.uniform(0.3, 0.9) if creature.legs else rng.uniform(0.8, 1.5)
        velocity, spin = rng.normal(0, 0.8, 3) + np.array([0, 0, rng.uniform(0, 1.0)]), rng.normal(0, 1.5, 3)
    return Plan(
        positions=np.array([[*path.centre, height]]),
        turns=np.array([[path.heading, *turned]]),
        angles=angles[None],
        guided=False,
        limp=True,
        velocity=velocity,
        spin=spin,
    )
