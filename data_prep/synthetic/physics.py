"""Bodies in a room, rigid, flexible and articulated: MuJoCo behind one function."""

from __future__ import annotations

import importlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic.creatures.puppets import Puppet, Puppets
from data_prep.synthetic.flexible import Flexes, Flexible
from data_prep.synthetic.meshes import Mesh, rotation_matrix
from data_prep.synthetic.models import Skin
from data_prep.synthetic.settings import CONTACT_S, STEP_S, Start
from four_d.errors import UserError

Array = NDArray[np.float64]
MotionWord = Start | Literal["static", "resting"]


@dataclass(frozen=True, kw_only=True)
class Body:
    """Rigid body at its start: world z up, metres, kilograms, seconds; the mesh is in body axes."""

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
    skins: tuple[Skin, ...] = ()
    """Textures of a mesh that came with its own."""


@dataclass(frozen=True, kw_only=True)
class Motion:
    """Poses of n bodies at t times."""

    positions: Array
    """t n 3"""
    rotations: Array
    """t n 3 3, world_from_body"""
    deepest: float
    """Largest penetration depth of any contact at the first time, in metres."""
    stable: bool
    """False if MuJoCo diverged and reset its state."""
    excess: float = 0.0
    """Largest excess of a hinge's angle over its limits at the times, in radians."""
    flexible: tuple[Array, ...] = ()
    """t v 3 each: surface of each flexible body in the world."""


def simulate(
    bodies: list[Body],
    room: Array,
    times: Array,
    puppets: Sequence[Puppet] = (),
    flexible: Sequence[Flexible] = (),
) -> Motion:
    """Simulate ``bodies`` from time 0 in a box ``room`` (2 3: low and high corner; open above); poses at ``times``.

    The limbs of ``puppets`` follow the bodies, each at its middle. A plan has one pose per `STEP_S`. Of ``flexible``
    bodies come surfaces, not poses.
    """
    try:
        simulation = _Simulation(importlib.import_module("mujoco"), bodies, room, puppets, flexible)
    except ImportError as error:
        raise UserError('the generator needs mujoco: pip install "four_d[synth]"') from error
    deepest = simulation.deepest_overlap()
    poses: list[tuple[Array, Array]] = []
    surfaces: list[list[Array]] = []
    for time in times:
        poses.append(simulation.poses_at(float(time)))
        surfaces.append(simulation.surfaces())
    return Motion(
        positions=np.stack([p for p, _ in poses]),
        rotations=np.stack([r for _, r in poses]),
        deepest=deepest,
        stable=simulation.stable,
        excess=simulation.excess,
        flexible=tuple(np.stack(surface) for surface in zip(*surfaces, strict=True)),
    )


def _pass(_: str) -> None:
    """Do nothing."""


@contextmanager
def _quiet(mujoco: ModuleType) -> Generator[None]:
    """Ignore MuJoCo's warnings, which it else writes to a file in the working directory: its counters have them."""
    mujoco.set_mju_user_warning(_pass)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(None)


class _Simulation:
    """MuJoCo model and state. ``mujoco`` is a parameter, since it is an optional dependency."""

    def __init__(
        self,
        mujoco: ModuleType,
        bodies: list[Body],
        room: Array,
        puppets: Sequence[Puppet],
        flexible: Sequence[Flexible],
    ) -> None:
        self._flexible = flexible
        self._mujoco, self._bodies, self._steps, self.excess = mujoco, len(bodies), 0, 0.0
        self._spec = mujoco.MjSpec()
        self._spec.option.timestep = STEP_S
        self._spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        self._spec.option.iterations = 30
        self._add_room(room)
        for number, body in enumerate(bodies):
            self._add_body(number, body)
        self._puppets = Puppets(mujoco, self._spec, puppets) if puppets else None
        self._flexes = Flexes(mujoco, self._spec, flexible) if flexible else None
        self._model = self._spec.compile()
        self._data = mujoco.MjData(self._model)
        warnings = self._data.warning.number  # a view: to ask each warning takes longer than a step
        # of flexes the first, of a singular inertia, says only that a solve ended at 1e-6 of what it began with
        self._warnings = warnings[1:] if flexible else warnings
        self._set_off([body for body in bodies if body.motion != "static"])
        if self._puppets is not None:
            self._puppets.bind(self._model, self._data)
        with _quiet(mujoco):
            if self._flexes is not None:
                self._flexes.bind(self._model, self._data)
            mujoco.mj_forward(self._model, self._data)

    @property
    def stable(self) -> bool:
        return not self._warnings.any()

    def deepest_overlap(self) -> float:
        return -min((float(contact.dist) for contact in self._data.contact), default=0.0)

    def poses_at(self, time: float) -> tuple[Array, Array]:
        """Positions (n 3) and rotations (n 3 3) at a time no earlier than that of the previous call."""
        with _quiet(self._mujoco):
            while self.stable and self._data.time < time - STEP_S / 2:
                if self._puppets is not None:
                    self._puppets.drive(self._steps)
                    self._steps += 1
                self._mujoco.mj_step(self._model, self._data)
        self._mujoco.mj_kinematics(self._model, self._data)
        last = self._bodies + 1
        positions, rotations = self._data.xpos[1:last].copy(), self._data.xmat[1:last].reshape(-1, 3, 3).copy()
        if self._puppets is None:
            return positions, rotations
        self.excess = max(self.excess, self._puppets.excess())
        limbs = self._puppets.poses()
        return np.concatenate([positions, limbs[0]]), np.concatenate([rotations, limbs[1]])

    def surfaces(self) -> list[Array]:
        """Surfaces (v 3) of the flexible bodies at the time of the last `poses_at`."""
        if self._flexes is None:
            return []
        self._mujoco.mj_flex(self._model, self._data)
        points = self._flexes.points()
        return [body.surface(found) for body, found in zip(self._flexible, points, strict=True)]

    def _add_room(self, room: Array) -> None:
        """Add a floor and four walls as half-spaces facing inwards."""
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
        added = self._spec.worldbody.add_body(name=f"b{number}", pos=body.position, quat=body.quaternion)
        if body.motion != "static":
            added.add_freejoint()
        for index, part in enumerate(body.mesh.parts):
            mesh = self._spec.add_mesh(name=f"m{number}_{index}")
            mesh.uservert = part.reshape(-1)
            added.add_geom(
                type=self._mujoco.mjtGeom.mjGEOM_MESH,
                meshname=mesh.name,
                density=body.density,
                friction=[body.friction, 0.005, 0.0005],
                condim=4,
                priority=1,
                solref=[CONTACT_S, body.damping],
            )

    def _set_off(self, moving: list[Body]) -> None:
        """Set initial velocities: those of a free joint are linear in world axes, angular in body axes."""
        for number, body in enumerate(moving):
            local = body.spin @ rotation_matrix(body.quaternion)
            self._data.qvel[6 * number : 6 * number + 6] = np.concatenate([body.velocity, local])
