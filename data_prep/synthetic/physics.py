"""Rigid bodies in a room: MuJoCo behind one function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic.meshes import Mesh
from four_d.errors import UserError

Array = NDArray[np.float64]
MotionWord = Literal["static", "resting", "dropped", "thrown", "slid", "rolled"]
STEP_S = 0.002


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


def _add_room(spec: Any, mujoco: Any, room: Array) -> None:
    """A floor and four walls as half-spaces facing inwards."""
    low, high = room
    planes = [((0, 0, low[2]), (0, 0, 1))]
    for axis in (0, 1):
        for sign, bound in ((1.0, low), (-1.0, high)):
            position, normal = np.zeros(3), np.zeros(3)
            position[axis], normal[axis] = bound[axis], sign
            planes.append((tuple(position), tuple(normal)))
    for position, normal in planes:
        spec.worldbody.add_geom(
            type=mujoco.mjtGeom.mjGEOM_PLANE, size=[20, 20, 1], pos=position, zaxis=normal, solref=[0.008, 0.7]
        )


def _add_body(spec: Any, mujoco: Any, number: int, body: Body) -> None:
    made = spec.worldbody.add_body(name=f"b{number}", pos=body.position, quat=body.quaternion)
    if body.motion != "static":
        made.add_freejoint()
    for index, part in enumerate(body.mesh.parts):
        mesh = spec.add_mesh(name=f"m{number}_{index}")
        mesh.uservert = part.reshape(-1)
        made.add_geom(
            type=mujoco.mjtGeom.mjGEOM_MESH,
            meshname=mesh.name,
            density=body.density,
            friction=[body.friction, 0.005, 0.0005],
            condim=4,
            priority=1,
            solref=[0.008, body.damping],
        )


def _set_velocities(data: Any, bodies: list[Body]) -> None:
    """A free joint's velocity is linear in world axes, angular in the body's."""
    import mujoco

    address = 0
    for body in bodies:
        if body.motion == "static":
            continue
        inverse, local = np.zeros(4), np.zeros(3)
        mujoco.mju_negQuat(inverse, body.quaternion)
        mujoco.mju_rotVecQuat(local, body.spin, inverse)
        data.qvel[address : address + 3] = body.velocity
        data.qvel[address + 3 : address + 6] = local
        address += 6


def simulate(bodies: list[Body], room: Array, times: Array) -> Motion:
    """Let ``bodies`` go at time 0 in a box ``room`` (low and high corner, 2 3; it has no lid) and note their poses at ``times``."""
    try:
        import mujoco
    except ImportError as error:
        raise UserError('the generator needs mujoco: pip install "four_d[synth]"') from error
    spec = mujoco.MjSpec()
    spec.option.timestep = STEP_S
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.iterations = 30
    _add_room(spec, mujoco, room)
    for number, body in enumerate(bodies):
        _add_body(spec, mujoco, number, body)
    model = spec.compile()
    data = mujoco.MjData(model)
    _set_velocities(data, bodies)
    mujoco.mj_forward(model, data)
    deepest = -min((float(contact.dist) for contact in data.contact), default=0.0)
    positions, rotations = [], []
    for time in times:
        while data.time < time - STEP_S / 2:
            mujoco.mj_step(model, data)
        mujoco.mj_kinematics(model, data)
        positions.append(data.xpos[1:].copy())
        rotations.append(data.xmat[1:].reshape(-1, 3, 3).copy())
    return Motion(positions=np.stack(positions), rotations=np.stack(rotations), deepest=deepest)
