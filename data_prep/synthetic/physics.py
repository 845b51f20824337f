"""Rigid bodies in a room: MuJoCo behind one function."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic.meshes import Mesh
from data_prep.synthetic.settings import Start
from four_d.errors import UserError

Array = NDArray[np.float64]
MotionWord = Start | Literal["static", "resting"]
STEP_S = 0.002
CONTACT_S = 0.008
"""Time constant of contacts: as stiff as the step allows."""


@dataclass(frozen=True, kw_only=True)
class Body:
    """A rigid thing: z up, metres, kilograms, seconds; the mesh is in the body's own axes."""

    name: str
    mesh: Mesh
    motion: MotionWord
    position: Array
    quaternion: Array
    """wxyz, world_from_body."""
    velocity: Array
    spin: Array
    """rad/s, world axes."""
    density: float = 300.0
    friction: float = 0.6
    damping: float = 0.4
    """Damping ratio of contacts: 0.1 bounces, 1 does not."""


@dataclass(frozen=True, kw_only=True)
class Motion:
    """Poses of n bodies at t times."""

    positions: Array
    """t n 3"""
    rotations: Array
    """t n 3 3, world_from_body"""
    deepest: float
    """The deepest overlap of any two bodies at the first time, in metres."""
    stable: bool
    """False where MuJoCo lost hold of the bodies and began anew in the middle."""


def simulate(bodies: list[Body], room: Array, times: Array) -> Motion:
    """Let ``bodies`` go at time 0 in a box ``room`` (low and high corner, 2 3; no lid); their poses at ``times``."""
    try:
        simulation = _Simulation(importlib.import_module("mujoco"), bodies, room)
    except ImportError as error:
        raise UserError('the generator needs mujoco: pip install "four_d[synth]"') from error
    deepest = simulation.deepest_overlap()
    poses = [simulation.poses_at(float(time)) for time in times]
    return Motion(
        positions=np.stack([p for p, _ in poses]),
        rotations=np.stack([r for _, r in poses]),
        deepest=deepest,
        stable=simulation.stable,
    )


def rotation_matrix(q: Array) -> Array:
    """Of a unit quaternion wxyz."""
    w, x, y, z = q
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _keep_quiet(_: str) -> None:
    """What was wrong stands in the simulation's own counters."""


class _Simulation:
    """A MuJoCo model and its state; the module comes in from outside, since it is an optional dependency."""

    def __init__(self, mujoco: ModuleType, bodies: list[Body], room: Array) -> None:
        self._mujoco = mujoco
        self._spec = mujoco.MjSpec()
        self._spec.option.timestep = STEP_S
        self._spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        self._spec.option.iterations = 30
        self._add_room(room)
        for number, body in enumerate(bodies):
            self._add_body(number, body)
        self._model = self._spec.compile()
        self._data = mujoco.MjData(self._model)
        self._set_off([body for body in bodies if body.motion != "static"])
        mujoco.mj_forward(self._model, self._data)

    @property
    def stable(self) -> bool:
        return not any(warning.number for warning in self._data.warning)

    def deepest_overlap(self) -> float:
        return -min((float(contact.dist) for contact in self._data.contact), default=0.0)

    def poses_at(self, time: float) -> tuple[Array, Array]:
        """Positions (n 3) and rotations (n 3 3) at a time not before the last one asked for."""
        # without a handler MuJoCo writes its warnings into a file where the user happens to stand
        self._mujoco.set_mju_user_warning(_keep_quiet)
        while self.stable and self._data.time < time - STEP_S / 2:
            self._mujoco.mj_step(self._model, self._data)
        self._mujoco.set_mju_user_warning(None)
        self._mujoco.mj_kinematics(self._model, self._data)
        return self._data.xpos[1:].copy(), self._data.xmat[1:].reshape(-1, 3, 3).copy()

    def _add_room(self, room: Array) -> None:
        """A floor and four walls as half-spaces facing inwards."""
        planes = [([0.0, 0.0, float(room[0, 2])], [0.0, 0.0, 1.0])]
        for axis in (0, 1):
            for sign, bound in ((1.0, room[0]), (-1.0, room[1])):
                position, normal = [0.0] * 3, [0.0] * 3
                position[axis], normal[axis] = float(bound[axis]), sign
                planes.append((position, normal))
        plane = self._mujoco.mjtGeom.mjGEOM_PLANE
        for position, normal in planes:
            self._spec.worldbody.add_geom(
                type=plane, size=[20, 20, 1], pos=position, zaxis=normal, solref=[CONTACT_S, 0.7]
            )

    def _add_body(self, number: int, body: Body) -> None:
        made = self._spec.worldbody.add_body(name=f"b{number}", pos=body.position, quat=body.quaternion)
        if body.motion != "static":
            made.add_freejoint()
        for index, part in enumerate(body.mesh.parts):
            mesh = self._spec.add_mesh(name=f"m{number}_{index}")
            mesh.uservert = part.reshape(-1)
            made.add_geom(
                type=self._mujoco.mjtGeom.mjGEOM_MESH,
                meshname=mesh.name,
                density=body.density,
                friction=[body.friction, 0.005, 0.0005],
                condim=4,
                priority=1,
                solref=[CONTACT_S, body.damping],
            )

    def _set_off(self, moving: list[Body]) -> None:
        """Initial velocities: a free joint's is linear in world axes, angular in the body's."""
        for number, body in enumerate(moving):
            local = body.spin @ rotation_matrix(body.quaternion)
            self._data.qvel[6 * number : 6 * number + 6] = np.concatenate([body.velocity, local])
