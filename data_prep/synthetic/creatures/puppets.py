"""Creatures in MuJoCo: trees of bodies with hinges, servos that follow a plan, roots that go along it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from data_prep.synthetic.creatures.gaits import Plan, quaternions
from data_prep.synthetic.creatures.skeleton import Array, Creature, Hinge, Shape, frame_along
from data_prep.synthetic.settings import CONTACT_S, STEP_S

Native: TypeAlias = Any
"""Object of MuJoCo, whose package declares no types."""
SERVO_HZ = 20.0
"""Natural frequency of a servo with its limb, critically damped."""
SLACK_S = 0.2
"""Time in which the friction of limp hinges stops a limb."""


@dataclass(frozen=True, kw_only=True)
class Puppet:
    """Creature with what it shall do; ``plan`` has one pose per step of the simulation."""

    creature: Creature
    plan: Plan


def inertias(creature: Creature) -> Array:
    """Moment of inertia (h) that each hinge turns, at rest, about its own axis."""
    origins, centres, masses = _mass_points(creature)
    found: list[float] = []
    below = [_below(creature, number) for number in range(len(creature.limbs))]
    for number, limb in enumerate(creature.limbs):
        for one in limb.hinges:
            arms = centres[below[number]] - origins[number]
            off = np.cross(arms, one.axis)
            found.append(float((masses[below[number]] * ((off**2).sum(-1) + 0.02**2)).sum()))
    return np.array(found)


def _mass_points(creature: Creature) -> tuple[Array, Array, Array]:
    """Per limb at rest: origin, centre (n 3 each) and mass (n)."""
    origins = np.zeros((len(creature.limbs), 3))
    for number, limb in enumerate(creature.limbs):
        origins[number] = limb.offset + (origins[limb.parent] if limb.parent >= 0 else 0)
    masses = np.array([sum(_volume(shape) for shape in limb.shapes if shape.solid) for limb in creature.limbs])
    return origins, origins + np.stack([limb.centre for limb in creature.limbs]), masses * creature.density


def _volume(shape: Shape) -> float:
    if shape.box is not None:
        return float(np.prod(shape.box))
    length = float(np.linalg.norm(shape.end - shape.start))
    return float(np.pi * shape.radius**2 * (length + 4 / 3 * shape.radius))


def _below(creature: Creature, limb: int) -> list[int]:
    """Indices of a limb and of all that hang on it."""
    found = [limb]
    for number, other in enumerate(creature.limbs):
        if other.parent in found:
            found.append(number)
    return found


class Puppets:
    """All puppets of a simulation. ``mujoco`` is a parameter, since it is an optional dependency."""

    def __init__(self, mujoco: ModuleType, spec: Native, puppets: Sequence[Puppet]) -> None:
        """Add the puppets to a model that is being made."""
        self._mujoco, self._puppets = mujoco, puppets
        spec.compiler.degree = False
        for number, puppet in enumerate(puppets):
            self._add(spec, number, puppet)

    def bind(self, model: Native, data: Native) -> None:
        """Put everything where its plan starts."""
        self._data = data
        self._limbs = [
            [model.body(f"c{number}_{limb.name}").id for limb in puppet.creature.limbs]
            for number, puppet in enumerate(self._puppets)
        ]
        self._angles = [
            np.array([model.joint(name).qposadr[0] for name in _hinge_names(number, puppet.creature)], int)
            for number, puppet in enumerate(self._puppets)
        ]
        self._commands = [
            [] if puppet.plan.limp else [model.actuator(name).id for name in _hinge_names(number, puppet.creature)]
            for number, puppet in enumerate(self._puppets)
        ]
        self._targets = [_lead(puppet.plan.angles) for puppet in self._puppets]
        self._roots = [
            None if puppet.creature.rooted else model.joint(f"c{number}_root")
            for number, puppet in enumerate(self._puppets)
        ]
        self._turns = [quaternions(puppet.plan.turns) for puppet in self._puppets]
        self._speeds = [_speeds(puppet.plan) for puppet in self._puppets]
        for number, puppet in enumerate(self._puppets):
            self._start(model, number, puppet)
        self.drive(0)

    def drive(self, step: int) -> None:
        """Set servos and guided roots for a step of the simulation."""
        for number, puppet in enumerate(self._puppets):
            now = min(step, len(puppet.plan.positions) - 1)
            if not puppet.plan.limp:
                self._data.ctrl[self._commands[number]] = self._targets[number][now]
            if puppet.plan.guided:
                self._put_root(number, now)

    def _put_root(self, number: int, now: int) -> None:
        """Put a root where its plan says, at the speed that it says."""
        root = self._roots[number]
        if root is not None:
            place, speed = int(root.qposadr[0]), int(root.dofadr[0])
            self._data.qpos[place : place + 3] = self._puppets[number].plan.positions[now]
            self._data.qpos[place + 3 : place + 7] = self._turns[number][now]
            self._data.qvel[speed : speed + 6] = self._speeds[number][now]

    def poses(self) -> tuple[Array, Array]:
        """World positions (n 3) of the limbs' middles and their rotations (n 3 3), creature by creature."""
        at = np.array([body for bodies in self._limbs for body in bodies])
        middles = np.array([limb.centre for puppet in self._puppets for limb in puppet.creature.limbs])
        rotations = self._data.xmat[at].reshape(-1, 3, 3).copy()
        return self._data.xpos[at] + np.einsum("nij,nj->ni", rotations, middles), rotations

    def excess(self) -> float:
        """Largest excess of a hinge's angle over its limits, in radians; 0 if all are within."""
        worst = 0.0
        for puppet, places in zip(self._puppets, self._angles):
            for one, place in zip(puppet.creature.hinges, places):
                angle = float(self._data.qpos[place])
                worst = max(worst, one.low - angle, angle - one.high)
        return worst

    def _start(self, model: Native, number: int, puppet: Puppet) -> None:
        plan, creature = puppet.plan, puppet.creature
        self._data.qpos[self._angles[number]] = plan.angles[0]
        hinges = _hinge_names(number, creature)
        if len(plan.angles) > 1:
            speeds = (plan.angles[1] - plan.angles[0]) / STEP_S
            self._data.qvel[[model.joint(name).dofadr[0] for name in hinges]] = speeds
        self._put_root(number, 0)

    def _add(self, spec: Native, number: int, puppet: Puppet) -> None:
        creature, plan = puppet.creature, puppet.plan
        position, quaternion = plan.positions[0], quaternions(plan.turns[:1])[0]
        turning = inertias(creature)
        made: list[Native] = []
        for index, limb in enumerate(creature.limbs):
            parent = spec.worldbody if limb.parent < 0 else made[limb.parent]
            body = parent.add_body(name=f"c{number}_{limb.name}", pos=limb.offset if limb.parent >= 0 else position)
            made.append(body)
            if not plan.limp and (plan.guided or creature.rooted):
                body.gravcomp = 1.0
            if limb.parent < 0:
                body.quat = quaternion
                if not creature.rooted:
                    body.add_freejoint(name=f"c{number}_root")
            for place, one in enumerate(limb.hinges):
                inertia = float(turning[creature.columns(index)][place])
                self._add_hinge(spec, body, f"c{number}_{limb.name}_{place}", one, inertia, plan.limp)
            for shape in limb.shapes:
                if shape.solid:
                    self._add_shape(body, shape, creature.density, number, plan.limp)
        if plan.limp:
            self._exclude_near(spec, number, creature)

    def _add_hinge(self, spec: Native, body: Native, name: str, one: Hinge, inertia: float, limp: bool) -> None:
        body.add_joint(
            name=name,
            type=self._mujoco.mjtJoint.mjJNT_HINGE,
            axis=one.axis,
            range=[one.low, one.high],
            limited=self._mujoco.mjtLimited.mjLIMITED_TRUE,
            solref_limit=[0.01, 1.0],
            armature=0.1 * inertia,
            damping=inertia / SLACK_S if limp else 0.0,
        )
        if not limp:
            stiffness = 1.1 * inertia * (2 * np.pi * SERVO_HZ) ** 2
            servo = spec.add_actuator(name=name, target=name, trntype=self._mujoco.mjtTrn.mjTRN_JOINT)
            servo.set_to_position(kp=stiffness, kv=2 * stiffness / (2 * np.pi * SERVO_HZ))

    def _add_shape(self, body: Native, shape: Shape, density: float, number: int, limp: bool) -> None:
        """Add a shape that collides with everything but, unless the creature is limp, with the creature itself."""
        own = 1 << (number + 1)
        kind = self._mujoco.mjtGeom.mjGEOM_BOX if shape.box else self._mujoco.mjtGeom.mjGEOM_CAPSULE
        half = float(np.linalg.norm(shape.end - shape.start)) / 2
        if shape.box is None and half < 1e-9:
            kind = self._mujoco.mjtGeom.mjGEOM_SPHERE
        along = (shape.end - shape.start) / (2 * half) if half > 1e-9 else np.array([0, 0, 1.0])
        quaternion = np.zeros(4)
        self._mujoco.mju_mat2Quat(quaternion, frame_along(along).reshape(-1))
        body.add_geom(
            type=kind,
            pos=(shape.start + shape.end) / 2,
            quat=[1, 0, 0, 0] if shape.box else quaternion,
            size=[side / 2 for side in shape.box] if shape.box else [shape.radius, half, 0],
            density=density,
            friction=[0.8, 0.005, 0.0005],
            condim=4,
            priority=1,
            solref=[CONTACT_S, 1.0],
            contype=own,
            conaffinity=0xFFFF if limp else 0xFFFF & ~own,
        )

    def _exclude_near(self, spec: Native, number: int, creature: Creature) -> None:
        """Let limbs pass that have a neighbour in common: they overlap at their joints."""
        above = [limb.parent for limb in creature.limbs]
        for one in range(len(above)):
            for two in range(one):
                if above[one] == above[two] or (above[one] >= 0 and above[above[one]] == two):
                    names = (f"c{number}_{creature.limbs[limb].name}" for limb in (one, two))
                    spec.add_exclude(bodyname1=next(names), bodyname2=next(names))


def _hinge_names(number: int, creature: Creature) -> list[str]:
    return [f"c{number}_{limb.name}_{place}" for limb in creature.limbs for place in range(len(limb.hinges))]


def _speeds(plan: Plan) -> Array:
    """Velocities of the root (k 6): linear in world axes, angular in its own."""
    if len(plan.positions) < 3:
        return np.concatenate([plan.velocity, plan.spin])[None]
    turns = quaternions(plan.turns)
    change = np.gradient(turns, STEP_S, axis=0)
    w, xyz = turns[:, :1], turns[:, 1:]
    spin = 2 * (w * change[:, 1:] - change[:, :1] * xyz - np.cross(xyz, change[:, 1:]))
    return np.concatenate([np.gradient(plan.positions, STEP_S, axis=0), spin], -1)


def _lead(planned: Array) -> Array:
    """Targets of critically damped servos (k h) that they answer with what is planned."""
    if len(planned) < 3:
        return planned
    lag_s, speed = 1 / (2 * np.pi * SERVO_HZ), np.gradient(planned, STEP_S, axis=0)
    return planned + 2 * lag_s * speed + lag_s**2 * np.gradient(speed, STEP_S, axis=0)
