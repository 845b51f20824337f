"""Surroundings: rooms, empty or furnished, corridors, platforms in rooms and open ground, with fittings and lights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic import textures
from data_prep.synthetic.furniture import furnish
from data_prep.synthetic.meshes import Mesh, cuboid
from data_prep.synthetic.pictures import Photographs, cover, square, tile_of
from data_prep.synthetic.settings import Scene
from data_prep.synthetic.stage import Light, Material, Piece, rightwards

Array = NDArray[np.float64]
Random = np.random.Generator
PHOTOGRAPH_SHARE = 0.6
"""Probability of a material to be a photograph, where there are any."""
BACKDROP_SHARE = 0.5
"""Probability of a wall to be covered by one photograph, where there are any."""
THIN_M = 0.1
"""Depth up to which a fitting is a picture."""


class Painter:
    """Maker of materials that collects their texture tiles."""

    def __init__(self, rng: Random, held_out: bool, size: int, photographs: Photographs | None = None) -> None:
        self._rng, self._size = rng, size
        self._photographs, self._own = photographs, rng.spawn(1)[0]  # which leaves the draws of ``rng`` as they are
        self.shown: list[str] = []
        self._families = textures.HELD_OUT_TEXTURES if held_out else textures.TRAIN_TEXTURES
        self.tiles: list[NDArray[np.float32]] = []

    def material(self, metres: float, lift: float = 0.0) -> Material:
        """New material whose texture tile is ``metres`` wide; ``lift`` blends it with white."""
        tile = textures.make_texture(self._rng, self._families, self._size)
        self.tiles.append((tile + lift * (0.85 - tile)).astype(np.float32))
        gloss = float(self._rng.choice([0.0, 0.15, 0.5], p=[0.4, 0.4, 0.2]))
        u, v = self._rng.random(2)
        material = Material(
            tile=len(self.tiles) - 1, metres=metres, shift=(u, v), gloss=gloss, shine=self._rng.uniform(8, 80)
        )
        if self._photographs is None or self._own.random() >= PHOTOGRAPH_SHARE:
            return material
        self.tiles[-1] = tile_of(square(self._own, self._photograph()), self._photograph_size)
        return replace(material, upright=True)

    def skin(self, rng: Random, tile: NDArray[np.float32]) -> Material:
        """Material of a texture that has its own coordinates."""
        self.tiles.append(tile)
        gloss = float(rng.choice([0.0, 0.1, 0.3]))
        return Material(tile=len(self.tiles) - 1, metres=1.0, shift=(0.0, 0.0), gloss=gloss, shine=rng.uniform(8, 80))

    def covered(self, piece: Piece) -> Piece:
        """Piece with one photograph over its whole face, if it is to have one: a picture, or a wall by chance."""
        if self._photographs is None or self._own.random() >= (1.0 if piece.mesh.parts else BACKDROP_SHARE):
            return piece
        uv, width, height = spread(piece.mesh)
        pixels = cover(self._own, self._photograph(), width, height)
        self.tiles.append(tile_of(pixels, self._photograph_size))
        material = replace(piece.material, tile=len(self.tiles) - 1, upright=True)
        return replace(piece, material=material, uv=uv)

    @property
    def _photograph_size(self) -> int:
        return 2 * self._size

    def _photograph(self) -> NDArray[np.uint8]:
        assert self._photographs is not None
        name, pixels = self._photographs.draw(self._own)
        if name not in self.shown:
            self.shown.append(name)
        return pixels


@dataclass(frozen=True, kw_only=True)
class Place:
    """Extent of a world. Bounds are a low and a high corner (2 3)."""

    kind: Scene
    inner: Array
    """Bounds of the region in which things move, its floor at z = 0."""
    outer: Array
    """Bounds of what surrounds it, in which cameras are."""
    lid: bool
    """True if there is a ceiling."""


def make_place(rng: Random, scenes: tuple[Scene, ...]) -> Place:
    """Place of one of these kinds, around the origin."""
    kind = scenes[0] if len(scenes) == 1 else scenes[int(rng.integers(len(scenes)))]
    if kind == "corridor":
        x, y, z = rng.uniform(2.6, 3.6), rng.uniform(10, 18), rng.uniform(2.2, 3.2)
        bounds = _box(*((x, y) if rng.random() < 0.5 else (y, x)), z)
        return Place(kind=kind, inner=bounds, outer=bounds, lid=True)
    if kind == "table":
        inner = _box(rng.uniform(4.0, 5.5), rng.uniform(4.0, 5.5), rng.uniform(2.2, 3.2))
        aside, drop = rng.uniform(0.8, 3.0, (2, 2)), rng.uniform(0.35, 1.1)
        outer = inner + np.array([[-aside[0, 0], -aside[0, 1], -drop], [aside[1, 0], aside[1, 1], 0.0]])
        return Place(kind=kind, inner=inner, outer=outer, lid=bool(rng.random() < 0.75))
    if kind == "open":
        side = rng.uniform(15, 40)
        return Place(kind=kind, inner=_box(8.0, 8.0, 6.0), outer=_box(2 * side, 2 * side, 6.0), lid=False)
    if kind == "furnished":
        inner = _box(rng.uniform(2.6, 4.0), rng.uniform(2.6, 4.0), rng.uniform(2.3, 2.9))
        aside = rng.uniform(0.5, 1.5, (2, 2))
        outer = inner + np.array([[*-aside[0], 0.0], [*aside[1], 0.0]])
        return Place(kind=kind, inner=inner, outer=outer, lid=bool(rng.random() < 0.85))
    bounds = _box(rng.uniform(5.5, 10), rng.uniform(5.5, 10), rng.uniform(2.6, 4.0))
    return Place(kind=kind, inner=bounds, outer=bounds, lid=bool(rng.random() < 0.75))


def _box(x: float, y: float, z: float) -> Array:
    return np.array([[-x / 2, -y / 2, 0.0], [x / 2, y / 2, z]])


def spread(mesh: Mesh) -> tuple[NDArray[np.float32], float, float]:
    """Texture coordinates (m 3 2) that spread one tile over an upright face, and the face's width and height.

    Neither mirrored nor upside down from where it is seen; the edges of a thin box continue its face.
    """
    corners = mesh.vertices[mesh.triangles]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    sides = np.ptp(mesh.vertices, axis=0)
    axis = int(np.argmin(sides[:2]))
    facing = np.abs(normals).argmax(-1) == axis
    signs = np.where(facing, rightwards(normals, np.full(len(normals), axis)), 1.0)[:, None]
    along = 1 - axis
    share = (corners[..., along] - mesh.vertices[:, along].min()) / sides[along]
    down = (mesh.vertices[:, 2].max() - corners[..., 2]) / sides[2]
    uv = np.stack([np.where(signs > 0, share, 1 - share), down], -1)
    return uv.astype(np.float32), float(sides[along]), float(sides[2])


def _can_hang(piece: Piece) -> bool:
    """True for walls and pictures on them: upright, and thin."""
    sides = np.ptp(piece.mesh.vertices, axis=0)
    return bool(sides[:2].min() < THIN_M and sides[2] > THIN_M)


def make_surroundings(rng: Random, place: Place, painter: Painter) -> list[Piece]:
    """Everything around the bodies, all of instance 0."""
    pieces = [painter.covered(piece) if _can_hang(piece) else piece for piece in _surroundings(rng, place, painter)]
    return pieces + (make_furniture(rng, place, painter) if place.kind == "furnished" else [])


def _surroundings(rng: Random, place: Place, painter: Painter) -> list[Piece]:
    if place.kind == "open":
        return make_ground(rng, place, painter)
    pieces = make_shell(rng, place.outer, place.lid, painter) + make_fittings(rng, place.outer, painter)
    if place.kind == "table":
        low, high = place.inner
        size = np.array([*(high - low)[:2], rng.uniform(0.05, -place.outer[0, 2])])
        slab = cuboid(size, np.array([0.0, 0.0, -size[2] / 2]))
        pieces.append(Piece(mesh=slab, instance=0, body=-1, material=painter.material(rng.uniform(0.8, 2.5))))
    return pieces


def make_furniture(rng: Random, place: Place, painter: Painter) -> list[Piece]:
    """Furniture between the walls and the region in which things move, of a few materials."""
    materials = [painter.material(rng.uniform(0.4, 1.6), rng.uniform(0, 0.6)) for _ in range(6)]
    return [
        _piece(mesh, materials[int(rng.integers(len(materials)))])
        for each in furnish(rng, place.inner, place.outer)
        for mesh in each.meshes
    ]


def make_ground(rng: Random, place: Place, painter: Painter) -> list[Piece]:
    """Open ground, blocks as large as houses or hedges farther off, and on some of its sides a wall or the horizon."""
    low, high = place.outer
    x, y, z = np.diag(high - low)
    pieces = [_piece(_panel(low, x, y), painter.material(rng.uniform(1.5, 5.0)))]
    for corner, along in ((low + x, -x), (low + y, x), (low, y), (low + x + y, -y)):
        if rng.random() < 0.4:
            up = z * rng.uniform(0.2, 1.0)
            pieces.append(_piece(_panel(corner, along, up), painter.material(rng.uniform(2.0, 6.0))))
    for _ in range(int(rng.integers(4, 12))):
        size = rng.uniform((0.5, 0.5, 0.5), (5.0, 5.0, 5.0))
        angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(9.0, 0.9 * high[0])
        centre = np.array([reach * np.cos(angle), reach * np.sin(angle), size[2] / 2])
        pieces.append(_piece(cuboid(size, centre), painter.material(rng.uniform(0.8, 3.0))))
    return pieces


def _piece(mesh: Mesh, material: Material) -> Piece:
    return Piece(mesh=mesh, instance=0, body=-1, material=material)


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
