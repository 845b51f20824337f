"""Bodies that bend: soft ones and cloth, simulated as MuJoCo's flexes.

A body is a grid of control points that MuJoCo moves, and a surface whose vertices are fixed weighted means of them, so
that a place on the surface is the same material at all times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic.meshes import Mesh, flip, rotation_matrix, volume
from data_prep.synthetic.settings import Start

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Random = np.random.Generator
Native: TypeAlias = Any
"""Object of MuJoCo, whose package declares no types."""
FlexMotion = Start | Literal["draped", "hung"]

SOFT_POINTS = 9
"""Control points of a soft body along each axis; 27 nodes carry them (quadratic interpolation)."""
SOFT_GAP_M = 0.004
"""Distance that contact keeps from a soft body's surface."""
CLOTH_GAP_M = 0.012
"""Half the thickness of cloth in contacts; in pictures it is thin."""
CLOTH_SPACING_M = 0.09
"""Distance of a cloth's control points, at most."""
CLOTH_FINER = 2
"""Cells of a cloth's surface per cell of control points, along each side."""


@dataclass(frozen=True, kw_only=True)
class Flexible:
    """Soft body or cloth at its start: world z up, metres, kilograms, seconds."""

    kind: Literal["soft", "cloth"]
    name: str
    motion: FlexMotion
    counts: tuple[int, int, int]
    """Control points along each axis; the last is 1 for cloth."""
    points: Array
    """n 3: control points in body axes, undeformed, first axis slowest."""
    mesh: Mesh
    """Surface in body axes, undeformed."""
    sources: Index
    """v j: control points whose weighted mean each vertex of the surface is."""
    weights: Array
    """v j: each row sums to 1."""
    position: Array
    quaternion: Array
    """wxyz, world_from_body."""
    velocity: Array
    spin: Array
    """rad/s, world axes."""
    mass: float
    young: float
    """Young's modulus in pascals."""
    friction: float = 0.6
    pinned: tuple[int, ...] = ()
    """Control points of a cloth that stay where they are."""

    def surface(self, points: Array) -> Array:
        """Vertices (… v 3) of the surface for control points (… n 3)."""
        return np.einsum("vj,...vji->...vi", self.weights, points[..., self.sources, :])

    def start(self) -> Array:
        """Control points (n 3) in the world at the start."""
        return self.points @ rotation_matrix(self.quaternion).T + self.position


class Flexes:
    """All flexible bodies of a simulation. ``mujoco`` is a parameter, since it is an optional dependency."""

    def __init__(self, mujoco: ModuleType, spec: Native, bodies: Sequence[Flexible]) -> None:
        """Add the bodies to a model that is being made. The elasticity needs the integrator ``discrete``."""
        self._mujoco, self._bodies = mujoco, bodies
        spec.option.integrator = mujoco.mjtIntegrator.mjINT_DISCRETE
        self._nodes = [self._add(spec, number, body) for number, body in enumerate(bodies)]

    def _add(self, spec: Native, number: int, body: Flexible) -> list[str]:
        """Add one body; return the names of the bodies that carry its motion."""
        soft = body.kind == "soft"
        sides = np.ptp(body.points, axis=0) / np.maximum(np.array(body.counts) - 1, 1)
        flex = spec.worldbody.make_flex(
            name=f"f{number}",
            type="grid",
            dim=3 if soft else 2,
            dof="quadratic" if soft else "full",
            count=body.counts,
            spacing=np.maximum(sides, 0.03),  # it must exceed the radius along the axis of one point too
            radius=SOFT_GAP_M if soft else CLOTH_GAP_M,
            mass=body.mass,
            pos=body.position,
            quat=body.quaternion,
            elastic2d=0 if soft else 3,  # of cloth both stretching and bending
        )
        flex.young, flex.poisson, flex.damping = body.young, 0.25, 0.02
        flex.friction = [body.friction, 0.005, 0.0005]
        flex.selfcollide = self._mujoco.mjtFlexSelf.mjFLEXSELF_NONE
        if soft:
            flex.vert = body.start().reshape(-1)  # the grid is a box: the nodes about it carry any points within
            return list(flex.nodebody)
        flex.thickness = 2e-3
        names = list(flex.vertbody)
        for pin in body.pinned:
            for joint in list(spec.body(names[pin]).joints):
                spec.delete(joint)
        return names

    def bind(self, model: Native, data: Native) -> None:
        """Set initial velocities and find where the points lie."""
        self._data = data
        self._ranges = [
            slice(int(first), int(first) + int(count))
            for first, count in zip(model.flex_vertadr, model.flex_vertnum, strict=True)
        ]
        self._mujoco.mj_forward(model, data)
        for body, names in zip(self._bodies, self._nodes, strict=True):
            for name in names:
                number = model.body(name).id
                speed = body.velocity + np.cross(body.spin, data.xpos[number] - body.position)
                for joint in range(int(model.body_jntadr[number]), _end(model, number)):
                    data.qvel[model.jnt_dofadr[joint]] = data.xaxis[joint] @ speed

    def points(self) -> list[Array]:
        """World positions (n 3) of each body's control points."""
        return [self._data.flexvert_xpos[part].copy() for part in self._ranges]


def _end(model: Native, body: int) -> int:
    """Index after a body's last joint; its first where it has none."""
    return int(model.body_jntadr[body]) + int(model.body_jntnum[body])


def make_soft(rng: Random, size: float) -> tuple[str, Array, Mesh, Index]:
    """Draw a soft body whose longest side is ``size``: name, control points, surface, and control point of each vertex.

    Superellipsoids: the grid's shells become smooth between a box and a ball.
    """
    axis = np.linspace(-1, 1, SOFT_POINTS)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    power = rng.choice([2.0, 3.0, 5.0])
    shell = np.abs(grid).max(-1)
    norm = (np.abs(grid) ** power).sum(-1) ** (1 / power)
    sides = rng.uniform(0.55, 1.0, 3)
    points = grid * (shell / np.maximum(norm, 1e-9))[:, None] * (sides / sides.max() * size / 2)
    triangles, sources = _shell(SOFT_POINTS)
    mesh = Mesh(vertices=points[sources], triangles=triangles, parts=(), crease=75.0)
    name = {2.0: "soft ball", 3.0: "soft cushion", 5.0: "soft box"}[float(power)]
    return name, points, mesh if volume(mesh) > 0 else flip(mesh), sources


def _shell(count: int) -> tuple[Index, Index]:
    """Triangles (m 3) of the outside of a grid of ``count``³ points, and the point of each vertex."""
    number = np.arange(count**3).reshape(count, count, count)
    quads: list[Index] = []
    for axis in range(3):
        for end, turned in ((0, True), (count - 1, False)):
            face = np.moveaxis(number, axis, 0)[end]
            face = face.T if turned != (axis == 1) else face  # so that all of them face outwards
            quads.append(np.stack([face[:-1, :-1], face[1:, :-1], face[1:, 1:], face[:-1, 1:]], -1).reshape(-1, 4))
    corners = np.concatenate(quads)
    triangles = np.concatenate([corners[:, [0, 1, 2]], corners[:, [0, 2, 3]]])
    sources, vertices = np.unique(triangles, return_inverse=True)
    return vertices.reshape(-1, 3), sources


def make_cloth(sides: tuple[float, float]) -> tuple[tuple[int, int], Array, Mesh, Index, Array]:
    """Flat cloth in the xy plane: counts and positions of control points, surface, sources and weights of its vertices.

    The surface is finer than the control points: cubic through them (Catmull–Rom), so that folds are round.
    """
    counts = tuple(int(np.clip(np.ceil(side / CLOTH_SPACING_M) + 1, 5, 15)) for side in sides)
    axes = [np.linspace(-side / 2, side / 2, count) for side, count in zip(sides, counts)]
    points = np.stack([*np.meshgrid(*axes, indexing="ij"), np.zeros(counts)], -1).reshape(-1, 3)
    along, across = (_cubic(count) for count in counts)
    rows, columns = len(along[0]), len(across[0])
    sources = along[0][:, None, :, None] * counts[1] + across[0][None, :, None, :]
    weights = along[1][:, None, :, None] * across[1][None, :, None, :]
    number: Index = np.arange(rows * columns, dtype=np.int64).reshape(rows, columns)
    a, b = number[:-1, :-1].reshape(-1), number[1:, :-1].reshape(-1)
    c, d = number[1:, 1:].reshape(-1), number[:-1, 1:].reshape(-1)
    triangles = np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)])
    sources, weights = sources.reshape(rows * columns, 16), weights.reshape(rows * columns, 16)
    vertices = np.einsum("vj,vji->vi", weights, points[sources])
    mesh = Mesh(vertices=vertices, triangles=triangles, parts=(), crease=75.0)
    return (counts[0], counts[1]), points, mesh, sources, weights


def _cubic(count: int) -> tuple[Index, Array]:
    """Sources (k 4) and weights (k 4) of `CLOTH_FINER` points per interval of ``count`` points, ends included."""
    places = np.arange((count - 1) * CLOTH_FINER + 1) / CLOTH_FINER
    first = np.minimum(places.astype(np.int64), count - 2)
    t = places - first
    weights = np.stack(
        [
            (-t + 2 * t**2 - t**3) / 2,
            (2 - 5 * t**2 + 3 * t**3) / 2,
            (t + 4 * t**2 - 3 * t**3) / 2,
            (-(t**2) + t**3) / 2,
        ],
        -1,
    )
    sources = first[:, None] + np.arange(-1, 3)
    # beyond an end the neighbour is mirrored at it, p(-1) = 2 p(0) - p(1), so that flat cloth is evenly spaced
    low, high = sources[:, 0] < 0, sources[:, 3] > count - 1
    weights[low, 1], weights[low, 2] = weights[low, 1] + 2 * weights[low, 0], weights[low, 2] - weights[low, 0]
    weights[high, 2], weights[high, 1] = weights[high, 2] + 2 * weights[high, 3], weights[high, 1] - weights[high, 3]
    weights[low, 0] = weights[high, 3] = 0
    return np.clip(sources, 0, count - 1), weights
