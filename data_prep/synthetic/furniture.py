"""Furniture: still things made of boxes, which stand along the walls of a room and before them.

Each kind is drawn in axes of its own: x along the wall, y from the wall into the room, z up, the middle of its back
at the origin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic.meshes import Mesh, cuboid, joined, moved, rotation_matrix

Array = NDArray[np.float64]
Random = np.random.Generator
AT_WALL = 0.7
"""Probability of a piece to touch the wall behind it."""
GAP_M = 0.03
"""Least distance between two pieces."""


@dataclass(frozen=True, kw_only=True)
class Furniture:
    """One piece of furniture: meshes of a material each."""

    meshes: list[Mesh]

    @property
    def bounds(self) -> Array:
        """Low and high corner (2 3)."""
        points = np.concatenate([mesh.vertices for mesh in self.meshes])
        return np.stack([points.min(0), points.max(0)])


def boxes(*parts: tuple[tuple[float, float, float], tuple[float, float, float]]) -> Mesh:
    """Mesh of boxes, each by its size and the middle of its underside."""
    return joined([cuboid(size, (base[0], base[1], base[2] + size[2] / 2)) for size, base in parts])


def legs(width: float, depth: float, height: float, thick: float) -> Mesh:
    """Four legs below the corners of a board."""
    xs, ys = (-1, 1), (thick / 2, depth - thick / 2)
    return boxes(*(((thick, thick, height), (x * (width - thick) / 2, y, 0.0)) for x in xs for y in ys))


def things(rng: Random, width: float, depth: float, height: float, most: int) -> list[Mesh]:
    """Small things on a board at that height: boxes as books, jars and screens are."""
    found: list[Mesh] = []
    for _ in range(int(rng.integers(0, most + 1))):
        size = np.minimum(rng.uniform((0.05, 0.04, 0.04), (0.4, 0.25, 0.45)), (0.6 * width, 0.8 * depth, 1.0))
        x = rng.uniform(-0.5, 0.5) * (width - size[0])
        y = size[1] / 2 + rng.uniform(0, depth - size[1])
        found.append(boxes(((size[0], size[1], size[2]), (x, y, height))))
    return found


def table(rng: Random) -> list[Mesh]:
    """Board on four legs, with things on it: from coffee tables to counters."""
    width, depth, height, thick = rng.uniform((0.6, 0.45, 0.35, 0.02), (1.8, 0.9, 1.05, 0.06))
    top = boxes(((width, depth, thick), (0.0, depth / 2, height - thick)))
    frame = legs(width, depth, height - thick, rng.uniform(0.03, 0.09))
    return [joined([top, frame]), *things(rng, width, depth, height, 5)]


def chair(rng: Random) -> list[Mesh]:
    """Seat on four legs, and its back towards the wall."""
    width, depth, height, back = rng.uniform((0.38, 0.38, 0.4, 0.3), (0.55, 0.5, 0.5, 0.6))
    seat = boxes(((width, depth, 0.05), (0.0, depth / 2, height - 0.05)))
    rest = boxes(((width, 0.04, back * 0.6), (0.0, 0.02, height + 0.4 * back)))
    posts = boxes(*(((0.04, 0.04, back), (x * (width - 0.04) / 2, 0.02, height)) for x in (-1, 1)))
    return [joined([seat, rest]), joined([legs(width, depth, height - 0.05, 0.04), posts])]


def shelf(rng: Random) -> list[Mesh]:
    """Boards between two sides, with books and boxes on them."""
    width, depth, height = rng.uniform((0.6, 0.22, 0.8), (1.6, 0.4, 2.1))
    count, thick = int(rng.integers(2, 6)), 0.025
    gap = (height - thick) / count
    boards = [((width, depth, thick), (0.0, depth / 2, each * gap)) for each in range(count + 1)]
    sides = [((thick, depth, height), (x * (width - thick) / 2, depth / 2, 0.0)) for x in (-1, 1)]
    found = [boxes(*boards, *sides, *([((width, 0.01, height), (0.0, 0.005, 0.0))] if rng.random() < 0.6 else []))]
    rows: list[list[tuple[tuple[float, float, float], tuple[float, float, float]]]] = [[], [], []]
    for level in range(count):
        x = -width / 2 + thick + rng.uniform(0, 0.1)
        while x < width / 2 - 0.12 and rng.random() < 0.9:
            wide = rng.uniform(0.02, 0.09) if rng.random() < 0.75 else rng.uniform(0.1, 0.3)
            wide = min(wide, width / 2 - thick - x)
            deep, high = rng.uniform(0.5, 0.95) * depth, rng.uniform(0.4, 0.92) * (gap - thick)
            rows[int(rng.integers(3))].append(((wide, deep, high), (x + wide / 2, deep / 2, level * gap + thick)))
            x += wide + (rng.uniform(0.02, 0.3) if rng.random() < 0.15 else 0.004)
    return [*found, *(boxes(*row) for row in rows if row)]


def sofa(rng: Random) -> list[Mesh]:
    """Seat with a back, two arms and cushions; wide ones are beds with a board at one end."""
    width, depth, seat, back = rng.uniform((0.75, 0.7, 0.3, 0.3), (2.1, 0.95, 0.45, 0.5))
    arm = rng.uniform(0.1, 0.22)
    frame = [((width, depth, seat), (0.0, depth / 2, 0.05)), ((width, 0.2, back), (0.0, 0.1, seat + 0.05))]
    if rng.random() < 0.75:
        frame += [((arm, depth, seat + 0.2), (x * (width - arm) / 2, depth / 2, 0.05)) for x in (-1, 1)]
    pillows = [
        ((0.35, 0.14, 0.3), (rng.uniform(-0.5, 0.5) * (width - 0.8), 0.28, seat + 0.05))
        for _ in range(int(rng.integers(0, 3)))
    ]
    return [boxes(*frame), *([boxes(*pillows)] if pillows and width > 0.9 else [])]


def cupboard(rng: Random) -> list[Mesh]:
    """Closed box with doors and something on top: from chests to wardrobes and refrigerators."""
    width, depth, height = rng.uniform((0.45, 0.35, 0.45), (1.6, 0.65, 2.1))
    doors = int(rng.integers(1, 4))
    wide = width / doors
    fronts = [
        ((wide - 0.02, 0.02, height - 0.1), (-width / 2 + (i + 0.5) * wide, depth + 0.01, 0.08)) for i in range(doors)
    ]
    found = [boxes(((width, depth, height), (0.0, depth / 2, 0.0))), boxes(*fronts)]
    return found + (things(rng, width, depth, height, 4) if height < 1.4 else [])


def plant(rng: Random) -> list[Mesh]:
    """Pot with leaves that stick out in all directions."""
    pot, height = rng.uniform(0.15, 0.35), rng.uniform(0.5, 1.7)
    middle = np.array([0.0, 0.5 * pot + 0.3, 0.0])
    leaves: list[Mesh] = []
    for _ in range(int(rng.integers(12, 40))):
        long, wide = rng.uniform(0.12, 0.38), rng.uniform(0.03, 0.1)
        q = rng.normal(size=4)
        leaf = turned(
            cuboid(np.array([long, wide, 0.004]), np.array([long / 2, 0.0, 0.0])),
            rotation_matrix(q / np.linalg.norm(q)),
        )
        from_middle = np.array([*rng.uniform(-0.08, 0.08, 2), rng.uniform(0.4, max(height, 0.6))])
        leaves.append(moved(leaf, offset=middle + from_middle))
    stem = boxes(((0.03, 0.03, height), (0.0, float(middle[1]), 0.0)))
    return [boxes(((pot, pot, 0.9 * pot), (0.0, float(middle[1]), 0.0))), joined([*leaves, stem])]


def pile(rng: Random) -> list[Mesh]:
    """Cartons one on the other, each turned a little."""
    found: list[Mesh] = []
    base = 0.0
    for _ in range(int(rng.integers(1, 5))):
        size = rng.uniform((0.2, 0.2, 0.12), (0.6, 0.5, 0.5))
        angle = rng.normal(0, 0.15)
        q = np.array([np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2)])
        box = turned(cuboid(size, np.array([0.0, 0.0, size[2] / 2])), rotation_matrix(q))
        found.append(moved(box, offset=(0.0, 0.42, base)))
        base += size[2]
        if base > 1.6:
            break
    return found


def lamp(rng: Random) -> list[Mesh]:
    """Pole on a foot, with a shade."""
    height, shade = rng.uniform(1.0, 1.9), rng.uniform(0.2, 0.45)
    pole = boxes(((0.25, 0.25, 0.03), (0.0, 0.25, 0.0)), ((0.03, 0.03, height), (0.0, 0.25, 0.0)))
    return [pole, boxes(((shade, shade, 0.7 * shade), (0.0, 0.25, height - 0.35 * shade)))]


KINDS: dict[str, tuple[Callable[[Random], list[Mesh]], float]] = {
    "table": (table, 0.2),
    "chair": (chair, 0.16),
    "shelf": (shelf, 0.18),
    "sofa": (sofa, 0.12),
    "cupboard": (cupboard, 0.16),
    "plant": (plant, 0.07),
    "pile": (pile, 0.07),
    "lamp": (lamp, 0.04),
}
"""Kinds of furniture, and their probabilities."""


def furnish(rng: Random, inner: Array, outer: Array) -> list[Furniture]:
    """Furniture on the floor between two boxes (2 3, low and high corners), none of which overlap each other."""
    names, shares = list(KINDS), [share for _, share in KINDS.values()]
    placed: list[Furniture] = []
    for _ in range(int(rng.integers(10, 24))):
        piece = Furniture(meshes=KINDS[names[int(rng.choice(len(names), p=shares))]][0](rng))
        piece = stood(rng, piece, inner, outer)
        if piece is not None and not any(_overlap(piece.bounds, other.bounds) for other in placed):
            placed.append(piece)
    return placed


def stood(rng: Random, piece: Furniture, inner: Array, outer: Array) -> Furniture | None:
    """Piece with its back to a wall of ``outer``, off ``inner``; None if it is too large for that."""
    axis, high = int(rng.integers(2)), bool(rng.integers(2))
    low_corner, high_corner = piece.bounds
    width, depth = (high_corner - low_corner)[:2]
    room = abs(outer[int(high), axis] - inner[int(high), axis])
    along = 1 - axis
    spare = np.ptp(outer[:, along]) - width
    if spare < 0 or depth > room or high_corner[2] > outer[1, 2] - 0.05:
        return None
    inward = np.zeros(3)
    inward[axis] = -1.0 if high else 1.0
    side = np.cross(inward, (0.0, 0.0, 1.0))
    rotation = np.stack([side, inward, (0.0, 0.0, 1.0)], axis=1)
    offset = np.zeros(3)
    away = 0.0 if rng.random() < AT_WALL else rng.uniform(0, room - depth)
    offset[axis] = outer[int(high), axis] + inward[axis] * (away - low_corner[1])
    middle = side[along] * (low_corner[0] + high_corner[0]) / 2
    offset[along] = outer[:, along].mean() + rng.uniform(-0.5, 0.5) * spare - middle
    offset[2] = outer[0, 2]
    return Furniture(meshes=[moved(turned(mesh, rotation), offset=offset) for mesh in piece.meshes])


def turned(mesh: Mesh, rotation: Array) -> Mesh:
    """Mesh turned about the origin."""
    return Mesh(
        vertices=mesh.vertices @ rotation.T,
        triangles=mesh.triangles,
        parts=tuple(part @ rotation.T for part in mesh.parts),
        crease=mesh.crease,
    )


def _overlap(one: Array, other: Array) -> bool:
    return bool((one[0] < other[1] + GAP_M).all() and (other[0] < one[1] + GAP_M).all())
