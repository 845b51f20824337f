"""Surroundings: floor, walls, ceiling or sky, fittings along the walls, and lights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic import textures
from data_prep.synthetic.meshes import Mesh, cuboid
from data_prep.synthetic.stage import Light, Material, Piece

Array = NDArray[np.float64]
Random = np.random.Generator


class Painter:
    """Maker of materials that collects their texture tiles."""

    def __init__(self, rng: Random, held_out: bool, size: int) -> None:
        self._rng, self._size = rng, size
        self._families = textures.HELD_OUT_TEXTURES if held_out else textures.TRAIN_TEXTURES
        self.tiles: list[NDArray[np.float32]] = []

    def material(self, metres: float, lift: float = 0.0) -> Material:
        """New material whose texture tile is ``metres`` wide; ``lift`` blends it with white."""
        tile = textures.make_texture(self._rng, self._families, self._size)
        self.tiles.append((tile + lift * (0.85 - tile)).astype(np.float32))
        gloss = float(self._rng.choice([0.0, 0.15, 0.5], p=[0.4, 0.4, 0.2]))
        u, v = self._rng.random(2)
        return Material(
            tile=len(self.tiles) - 1, metres=metres, shift=(u, v), gloss=gloss, shine=self._rng.uniform(8, 80)
        )


def make_bounds(rng: Random) -> Array:
    """Low and high corner (2 3) of a room around the origin, its floor at z = 0."""
    x, y, z = rng.uniform(5.5, 10), rng.uniform(5.5, 10), rng.uniform(2.6, 4.0)
    return np.array([[-x / 2, -y / 2, 0.0], [x / 2, y / 2, z]])


def _panel(corner: Array, along: Array, up: Array) -> Mesh:
    """Rectangle of 3 × 3 cells that faces ``along`` × ``up``."""
    steps = np.linspace(0, 1, 4)
    points = corner + steps[:, None, None] * up + steps[None, :, None] * along
    i, j = (x.reshape(-1) for x in np.mgrid[:3, :3])
    a, b, c, d = i * 4 + j, i * 4 + j + 1, i * 4 + j + 5, i * 4 + j + 4
    triangles = np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)])
    return Mesh(vertices=points.reshape(-1, 3), triangles=triangles, parts=())


def make_shell(rng: Random, bounds: Array, lid: bool, painter: Painter) -> list[Piece]:
    """Floor, four walls and, with ``lid``, a ceiling, all facing inwards."""
    low, high = bounds
    x, y, z = np.diag(high - low)
    walls = [_panel(low + x, -x, z), _panel(low + y, x, z), _panel(low, y, z), _panel(low + x + y, -y, z)]
    shared = painter.material(rng.uniform(1.5, 4.0), rng.uniform(0, 0.35))
    wall_materials = [
        shared if rng.random() < 0.45 else painter.material(rng.uniform(1.2, 4.0), rng.uniform(0, 0.35)) for _ in walls
    ]
    surfaces = [(_panel(low, x, y), painter.material(rng.uniform(1.2, 3.5)))]
    surfaces += list(zip(walls, wall_materials))
    if lid:
        surfaces.append((_panel(low + z + y, x, -y), painter.material(rng.uniform(1.5, 3.5), rng.uniform(0.3, 0.7))))
    return [Piece(mesh=mesh, instance=0, body=-1, material=material) for mesh, material in surfaces]


def make_fittings(rng: Random, bounds: Array, painter: Painter) -> list[Piece]:
    """Pictures, cupboards and pillars along the walls; instance 0."""
    low, high = bounds
    pieces: list[Piece] = []
    for _ in range(int(rng.integers(3, 8))):
        axis, side = int(rng.integers(0, 2)), int(rng.integers(0, 2))
        picture = rng.random() < 0.6
        if picture:
            width, depth, height = rng.uniform(0.5, 1.8), rng.uniform(0.03, 0.08), rng.uniform(0.4, 1.3)
            centre_z = rng.uniform(height / 2 + 0.3, max(high[2] - height / 2 - 0.2, height / 2 + 0.4))
        else:
            width, depth = rng.uniform(0.3, 1.4), rng.uniform(0.25, 0.55)
            height = rng.uniform(0.7, high[2] * 0.9)
            centre_z = height / 2
        size, centre = np.array([width, width, height]), np.zeros(3)
        size[axis] = depth
        centre[axis] = (low, high)[side][axis] + (depth / 2 if side == 0 else -depth / 2)
        along = 1 - axis
        centre[along], centre[2] = rng.uniform(low[along] + width / 2, high[along] - width / 2), centre_z
        material = painter.material(width * rng.uniform(0.6, 1.2))
        pieces.append(Piece(mesh=cuboid(size, centre), instance=0, body=-1, material=material))
    return pieces


def make_lights(rng: Random, bounds: Array, lid: bool) -> tuple[list[Light], NDArray[np.float32]]:
    """Two or three point lights, the first a sun unless ``lid``, and ambient colours from above and below (2 3)."""
    low, high = bounds
    warmth = rng.uniform(-0.12, 0.18)
    tint = np.array([1 + warmth, 1.0, 1 - warmth])
    lights: list[Light] = []
    for number in range(int(rng.integers(2, 4))):
        position = np.array([*rng.uniform(low[:2] * 0.6, high[:2] * 0.6), high[2] - rng.uniform(0.2, 0.7)])
        strength = rng.uniform(1.0, 1.5) if number == 0 else rng.uniform(0.15, 0.5)
        reach = 2.6
        if not lid and number == 0:
            angle, rise = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.2)
            position = 40 * np.array([np.cos(angle) * np.cos(rise), np.sin(angle) * np.cos(rise), np.sin(rise)])
            reach = 40.0
        colour = strength * tint * rng.uniform(0.9, 1.1, 3)
        lights.append(Light(position=position, colour=colour.astype(np.float32), reach=reach))
    above = rng.uniform(0.16, 0.34) * (np.array([0.85, 1.0, 1.2]) if not lid else np.ones(3))
    return lights, np.stack([above, above * rng.uniform(0.35, 0.7) * tint]).astype(np.float32)
