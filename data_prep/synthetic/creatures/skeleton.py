"""A creature as a tree of limbs with hinges, and named keypoints on it.

At rest the axes of every limb are those of the creature: x forward, y left, z up. A limb's origin is its joint with its
parent, so that joints keep their distance whatever the hinges do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic import meshes
from data_prep.synthetic.meshes import Mesh

Array = NDArray[np.float64]
Action = Literal["walking", "swaying", "wriggling", "falling"]
SIDES = 12
"""Corners of a capsule's cross-section."""
X, Y, Z = np.eye(3)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Capsule around the segment from ``start`` to ``end`` or, with ``box``, a cuboid of these sides at its middle."""

    start: Array
    end: Array
    radius: float
    box: tuple[float, float, float] | None = None
    paint: int = 0
    """Index of its material among the creature's."""
    solid: bool = True
    """False: it is seen, but nothing collides with it."""


@dataclass(frozen=True, kw_only=True)
class Hinge:
    """Rotation about an axis of the limb, within limits in radians."""

    axis: Array
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Limb:
    """Rigid part. The rotation to its parent is the product of its hinges' rotations in their order."""

    name: str
    parent: int
    """Index of a limb before this one; −1 for the root."""
    offset: Array
    """Origin in the parent's axes; of the root, its height above the floor when the creature stands."""
    hinges: tuple[Hinge, ...]
    shapes: tuple[Shape, ...]

    @property
    def centre(self) -> Array:
        """Middle of the first shape, in the limb's axes."""
        return (self.shapes[0].start + self.shapes[0].end) / 2


@dataclass(frozen=True, kw_only=True)
class Keypoint:
    """Named point, fixed on a limb."""

    name: str
    limb: int
    place: Array
    """In the limb's axes."""
    reach: float
    """Maximum distance in metres from the point to its own limbs' surface where it counts as seen."""
    limbs: tuple[int, ...]
    """Limbs that meet at the point, its own among them."""


@dataclass(frozen=True, kw_only=True)
class Leg:
    """Limbs of a leg of two or three limbs: upper (hinges x, y), lower (y) and perhaps a foot (y)."""

    upper: int
    lower: int
    foot: int | None
    lengths: tuple[float, float]
    bend: int
    """Sign of the lower limb's hinge: +1 bends backwards as a knee, −1 forwards as an elbow."""
    height: float
    """Height of the lower limb's end above the floor when the leg stands."""


@dataclass(frozen=True, kw_only=True)
class Creature:
    """Limbs in an order in which parents come first, with keypoints and the bones between them."""

    species: str
    limbs: tuple[Limb, ...]
    keypoints: tuple[Keypoint, ...]
    bones: tuple[tuple[int, int], ...]
    """Pairs of indices of keypoints, on one limb or, as along a back, across several."""
    legs: tuple[Leg, ...] = ()
    arms: tuple[tuple[int, int], ...] = ()
    """Limb whose last hinge swings an arm, and index of the leg that it swings forward with."""
    rooted: bool = False
    """True if the root stands still on the floor."""
    density: float = 900.0

    @property
    def hinges(self) -> tuple[Hinge, ...]:
        """Hinges of all limbs, in order."""
        return tuple(hinge for limb in self.limbs for hinge in limb.hinges)

    def columns(self, limb: int) -> slice:
        """Columns of a limb's hinges among all."""
        start = sum(len(before.hinges) for before in self.limbs[:limb])
        return slice(start, start + len(self.limbs[limb].hinges))


class Builder:
    """Collector of limbs, keypoints and bones by name."""

    def __init__(self) -> None:
        self.limbs: list[Limb] = []
        self._keypoints: list[Keypoint] = []
        self._bones: list[tuple[str, str]] = []

    def limb(
        self, name: str, parent: str | None, offset: Sequence[float] | Array, hinges: Sequence[Hinge], *shapes: Shape
    ) -> int:
        """Add a limb and return its index."""
        above = -1 if parent is None else self.index(parent)
        self.limbs.append(
            Limb(
                name=name,
                parent=above,
                offset=np.asarray(offset, np.float64),
                hinges=tuple(hinges),
                shapes=shapes,
            )
        )
        return len(self.limbs) - 1

    def index(self, name: str) -> int:
        """Index of the limb of this name."""
        return next(number for number, limb in enumerate(self.limbs) if limb.name == name)

    def point(self, name: str, limb: str, place: Sequence[float] | Array, reach: float, *others: str) -> None:
        """Add a keypoint on a limb; ``others``: limbs that meet it there."""
        own = (limb, *others)
        self._keypoints.append(
            Keypoint(
                name=name,
                limb=self.index(limb),
                place=np.asarray(place, np.float64),
                reach=reach,
                limbs=tuple(self.index(one) for one in own),
            )
        )

    def bone(self, *names: str) -> None:
        """Add the bones between each of the keypoints and the next."""
        self._bones += list(pairwise(names))

    def build(
        self,
        species: str,
        *,
        legs: Sequence[Leg] = (),
        arms: Sequence[tuple[int, int]] = (),
        rooted: bool = False,
    ) -> Creature:
        """Join all to a creature."""
        at = {point.name: number for number, point in enumerate(self._keypoints)}
        return Creature(
            species=species,
            limbs=tuple(self.limbs),
            keypoints=tuple(self._keypoints),
            bones=tuple((at[a], at[b]) for a, b in self._bones),
            legs=tuple(legs),
            arms=tuple(arms),
            rooted=rooted,
        )


def capsule(start: Sequence[float] | Array, end: Sequence[float] | Array, radius: float, paint: int = 0) -> Shape:
    """Capsule from ``start`` to ``end``."""
    return Shape(start=np.asarray(start, np.float64), end=np.asarray(end, np.float64), radius=radius, paint=paint)


def box(centre: Sequence[float] | Array, sides: tuple[float, float, float], paint: int = 0) -> Shape:
    """Cuboid with its sides along the limb's axes."""
    middle = np.asarray(centre, np.float64)
    return Shape(start=middle, end=middle, radius=min(sides) / 2, box=sides, paint=paint)


def feature(centre: Sequence[float] | Array, radius: float, paint: int) -> Shape:
    """Small ball that is only looked at, such as an eye."""
    middle = np.asarray(centre, np.float64)
    return Shape(start=middle, end=middle, radius=radius, paint=paint, solid=False)


def hinge(axis: Array, low: float, high: float) -> Hinge:
    """Hinge with limits in radians."""
    return Hinge(axis=axis, low=low, high=high)


def limb_mesh(shape: Shape) -> Mesh:
    """Closed mesh of a shape in its limb's axes; a capsule's vertices lie on the capsule."""
    if shape.box is not None:
        return meshes.cuboid(shape.box, shape.start)
    half = float(np.linalg.norm(shape.end - shape.start)) / 2
    along = (shape.end - shape.start) / (2 * half) if half > 1e-9 else Z
    rise = np.radians([-70.0, -40.0, 0.0, 0.0, 40.0, 70.0] if half > 1e-9 else [-60.0, -30.0, 0.0, 30.0, 60.0])
    shift = np.repeat([-half, half], 3) if half > 1e-9 else np.zeros(5)
    sides = SIDES if shape.solid else 8
    turn = np.arange(sides) * 2 * np.pi / sides
    ring = np.stack([np.cos(turn), np.sin(turn)], -1)
    flat = np.cos(rise)[:, None, None] * ring[None] * shape.radius
    height = np.broadcast_to((np.sin(rise) * shape.radius + shift)[:, None, None], (*flat.shape[:2], 1))
    tips = np.array([[0, 0, -half - shape.radius], [0, 0, half + shape.radius]])
    upright = meshes.sweep(np.concatenate([flat, height], -1), ends=tips, crease=70.0)
    axes = frame_along(along)

    def place(points: Array) -> Array:
        return np.einsum("ij,nj->ni", axes, points) + (shape.start + shape.end) / 2

    return Mesh(
        vertices=place(upright.vertices),
        triangles=upright.triangles,
        parts=tuple(place(part) for part in upright.parts),
        crease=upright.crease,
    )


def frame_along(direction: Array) -> Array:
    """Rotation (3 3) whose third column is the unit vector ``direction``."""
    other = X if abs(direction[0]) < 0.8 else Y
    first = np.cross(other, direction)
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(direction, first), direction], -1)


def rotations_about(axis: Array, angles: Array) -> Array:
    """Rotation matrices (k 3 3) about a unit axis by ``angles`` (k): Rodrigues' formula."""
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    square = np.einsum("ij,jk->ik", cross, cross)
    sine, versine = np.sin(angles)[:, None, None], (1 - np.cos(angles))[:, None, None]
    return np.eye(3) + sine * cross + versine * square


def limb_rotations(limb: Limb, parent: Array, angles: Array) -> Array:
    """World rotations (k 3 3) of a limb from its parent's and its hinges' angles (k h)."""
    turned = parent
    for number, one in enumerate(limb.hinges):
        turned = np.einsum("kij,kjl->kil", turned, rotations_about(one.axis, angles[:, number]))
    return turned
