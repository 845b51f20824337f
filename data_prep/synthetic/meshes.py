"""Procedural closed meshes with convex collision parts. Bounding boxes are centred at 0, longest side 1.

Most shapes are sweeps: rings of points, each skinned to the next, with a triangle fan at either end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Random = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Closed triangle mesh, counter-clockwise seen from outside."""

    vertices: Array
    """v 3"""
    triangles: Index
    """m 3"""
    parts: tuple[Array, ...]
    """Point sets whose convex hulls together are the collision shape."""
    crease: float = 40.0
    """Crease angle in degrees: shading is not smoothed over sharper edges."""


def volume(mesh: Mesh) -> float:
    """Signed volume; positive if faces point outwards."""
    a, b, c = (mesh.vertices[mesh.triangles[:, i]] for i in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def sweep(
    rings: Array, *, wrap: bool = False, ends: Array | None = None, crease: float = 40.0, parts: str = "hull"
) -> Mesh:
    """Skin each ring (k s 3) to the next. ``ends`` (2 3) are the tips of the end fans, by default the end rings' means.

    ``parts``: "hull" = one convex hull; "segments" = one per pair of rings; "wedges" = one per side, from the axis.
    """
    k, s = rings.shape[:2]
    vertices = rings.reshape(-1, 3)
    ring = np.arange(k if wrap else k - 1)[:, None]
    side = np.arange(s)[None]
    a, b = ring * s + side, ring * s + (side + 1) % s
    c, d = (ring + 1) % k * s + side, (ring + 1) % k * s + (side + 1) % s
    triangles = [np.stack([a, b, d], -1).reshape(-1, 3), np.stack([a, d, c], -1).reshape(-1, 3)]
    tips = np.stack([rings[0].mean(0), rings[-1].mean(0)]) if ends is None else ends
    if not wrap:
        first, last, around = np.full(s, k * s), np.full(s, k * s + 1), np.arange(s)
        after = (around + 1) % s
        triangles += [np.stack([first, after, around], -1)]
        triangles += [np.stack([last, (k - 1) * s + around, (k - 1) * s + after], -1)]
        vertices = np.concatenate([vertices, tips])
    mesh = Mesh(
        vertices=vertices,
        triangles=np.concatenate(triangles),
        parts=_parts(rings, tips, wrap, parts),
        crease=crease,
    )
    return mesh if volume(mesh) > 0 else flip(mesh)


def _parts(rings: Array, tips: Array, wrap: bool, kind: str) -> tuple[Array, ...]:
    k, s = rings.shape[:2]
    if kind == "segments":
        pairs = range(k if wrap else k - 1)
        return tuple(np.concatenate([rings[i], rings[(i + 1) % k]]) for i in pairs)
    if kind == "wedges":
        return tuple(np.concatenate([rings[:, i], rings[:, (i + 1) % s], tips]) for i in range(s))
    return (np.concatenate([rings.reshape(-1, 3), tips]),)


def rotation_matrix(q: Array) -> Array:
    """Rotation matrix of a unit quaternion wxyz."""
    w, x, y, z = q
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def flip(mesh: Mesh) -> Mesh:
    """Reverse the orientation of all faces."""
    return Mesh(vertices=mesh.vertices, triangles=mesh.triangles[:, ::-1], parts=mesh.parts, crease=mesh.crease)


def moved(mesh: Mesh, scale: Array | float = 1.0, offset: Array | Sequence[float] = (0.0, 0.0, 0.0)) -> Mesh:
    """Scale by positive factors, then shift."""
    return Mesh(
        vertices=mesh.vertices * scale + np.asarray(offset),
        triangles=mesh.triangles,
        parts=tuple(p * scale + np.asarray(offset) for p in mesh.parts),
        crease=mesh.crease,
    )


def joined(meshes: Sequence[Mesh]) -> Mesh:
    """Join several meshes into one."""
    offsets = np.cumsum([0] + [len(m.vertices) for m in meshes[:-1]])
    return Mesh(
        vertices=np.concatenate([m.vertices for m in meshes]),
        triangles=np.concatenate([m.triangles + o for m, o in zip(meshes, offsets)]),
        parts=tuple(p for m in meshes for p in m.parts),
        crease=min(m.crease for m in meshes),
    )


def normalised(mesh: Mesh) -> Mesh:
    """Centre the bounding box at 0 and scale its longest side to 1."""
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    scale = 1 / float((high - low).max())
    return moved(mesh, scale, -(low + high) / 2 * scale)


def corner_normals(mesh: Mesh) -> Array:
    """Shading normals (m 3 3): at each corner, the mean over adjacent faces that meet at less than the crease angle."""
    a, b, c = (mesh.vertices[mesh.triangles[:, i]] for i in range(3))
    weighted = np.cross(b - a, c - a)
    unit = weighted / np.maximum(np.linalg.norm(weighted, axis=-1, keepdims=True), 1e-15)
    corner_vertex = mesh.triangles.reshape(-1)
    order = np.argsort(corner_vertex, kind="stable")
    counts = np.bincount(corner_vertex, minlength=len(mesh.vertices))
    starts = np.cumsum(counts) - counts
    repeat = counts[corner_vertex]
    corner = np.repeat(np.arange(len(corner_vertex)), repeat)
    within = np.arange(len(corner)) - np.repeat(np.cumsum(repeat) - repeat, repeat)
    other = order[starts[corner_vertex[corner]] + within] // 3
    near = np.einsum("ij,ij->i", unit[corner // 3], unit[other]) > np.cos(np.radians(mesh.crease))
    total = np.stack(
        [np.bincount(corner, weighted[other, i] * near, minlength=len(corner_vertex)) for i in range(3)], -1
    )
    total /= np.maximum(np.linalg.norm(total, axis=-1, keepdims=True), 1e-15)
    return total.reshape(-1, 3, 3)


def _circle(count: int, start: float = 0.0) -> Array:
    angle = start + np.arange(count) * 2 * np.pi / count
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def _rings(outlines: Array, heights: Array) -> Array:
    """Rings (k s 3) from outlines (k s 2) at k heights."""
    return np.concatenate([outlines, np.broadcast_to(heights[:, None, None], (*outlines.shape[:2], 1))], -1)


def _lathe(radii: Array, heights: Array, sides: int, *, crease: float = 40.0, parts: str = "hull") -> Mesh:
    """Surface of revolution of a profile about z; flat fans close the ends."""
    return sweep(_rings(radii[:, None, None] * _circle(sides)[None], heights), crease=crease, parts=parts)


def _extruded(outline: Array, height: float, centre: Sequence[float] = (0.0, 0.0), *, parts: str = "wedges") -> Mesh:
    """Prism along z of a counter-clockwise outline (s 2) that is star-shaped about ``centre``."""
    heights = np.array([-height / 2, height / 2])
    ends = np.array([[*centre, h] for h in heights])
    return sweep(_rings(np.stack([outline, outline]), heights), ends=ends, crease=30.0, parts=parts)


def cuboid(size: Array | Sequence[float], offset: Array | Sequence[float] = (0.0, 0.0, 0.0)) -> Mesh:
    """Box with the given side lengths."""
    square = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    return moved(_extruded(square, 1.0, parts="hull"), np.asarray(size), offset)


def _box(rng: Random) -> Mesh:
    return cuboid(rng.uniform(0.35, 1.0, 3))


def _superquadric(rng: Random) -> Mesh:
    """Superquadric between ellipsoid and rounded box; exponents up to 1.3 keep it convex."""
    e, n = rng.uniform(0.25, 1.3, 2)
    latitude, longitude = np.linspace(-np.pi / 2, np.pi / 2, 15)[1:-1, None], np.arange(24)[None] * 2 * np.pi / 24

    def power(x: Array, exponent: float) -> Array:
        return np.sign(x) * np.abs(x) ** exponent

    c = power(np.cos(latitude), n)
    rings = np.stack(
        [c * power(np.cos(longitude), e), c * power(np.sin(longitude), e), power(np.sin(latitude), n) + 0 * longitude],
        -1,
    )
    ends = np.array([[0, 0, -1.0], [0, 0, 1.0]])
    return moved(sweep(rings, ends=ends, crease=60.0), rng.uniform(0.5, 1.0, 3))


def _cylinder(rng: Random) -> Mesh:
    height = rng.uniform(0.5, 3.0)
    return _lathe(np.ones(2), np.array([0, height]), 28)


def _cone(rng: Random) -> Mesh:
    return _lathe(np.array([1.0, rng.uniform(0.02, 0.7)]), np.array([0, rng.uniform(0.8, 2.4)]), 28)


def _torus(rng: Random) -> Mesh:
    tube = rng.uniform(0.15, 0.42)
    around, across = _circle(28)[:, None], _circle(12)[None]
    radius = 1 + tube * across[..., 0] + 0 * around[..., 0]
    rings = np.stack([radius * around[..., 0], radius * around[..., 1], tube * across[..., 1] + 0 * radius], -1)
    return sweep(rings, wrap=True, crease=70.0, parts="segments")


def _capsule(rng: Random) -> Mesh:
    angle = np.linspace(-np.pi / 2, np.pi / 2, 14)
    half = rng.uniform(0.3, 1.2)
    radii = np.maximum(np.cos(angle), 0.03)
    return _lathe(radii, np.sin(angle) + np.where(angle > 0, half, -half), 22, crease=60.0)


def _blob(rng: Random) -> Mesh:
    """Ball with smooth bumps."""
    latitude, longitude = np.linspace(-np.pi / 2, np.pi / 2, 22)[1:-1, None], np.arange(32)[None] * 2 * np.pi / 32
    c = np.cos(latitude)
    rings = np.stack([c * np.cos(longitude), c * np.sin(longitude), np.sin(latitude) + 0 * longitude], -1)
    waves, phases = rng.normal(0, 2.6, (7, 3)), rng.uniform(0, 2 * np.pi, 7)
    amount = rng.uniform(0.02, 0.05)

    def bumps(points: Array) -> Array:
        return points * (1 + amount * np.sin(points @ waves.T + phases).sum(-1))[..., None]

    return sweep(bumps(rings), ends=bumps(np.array([[0, 0, -1.0], [0, 0, 1.0]])), crease=75.0)


def _prism(rng: Random) -> Mesh:
    sides = int(rng.integers(3, 9))
    return _extruded(_circle(sides, np.pi / sides), rng.uniform(0.4, 2.0), parts="hull")


def _star(rng: Random) -> Mesh:
    points = int(rng.integers(4, 9))
    outline = _circle(2 * points) * np.where(np.arange(2 * points) % 2, rng.uniform(0.45, 0.75), 1.0)[:, None]
    return _extruded(outline, rng.uniform(0.3, 0.9))


def _vase(rng: Random) -> Mesh:
    heights = np.linspace(0, rng.uniform(1.8, 3.0), 13)
    wave = rng.uniform(0.2, 0.4) * np.sin(heights * rng.uniform(1.5, 3.0) + rng.uniform(0, 6))
    radii = np.maximum(0.75 + wave - 0.08 * heights, 0.15)
    return _lathe(radii, heights, 24, parts="segments")


def _corner(rng: Random) -> Mesh:
    """L-shaped prism."""
    t = rng.uniform(0.3, 0.5)
    w, h = rng.uniform(0.8, 1.2, 2)
    outline = np.array([[0, 0], [w, 0], [w, t], [t, t], [t, h], [0, h]])
    return _upright(_extruded(outline, rng.uniform(0.3, 0.8), (t / 2, t / 2)))


def _wedge(rng: Random) -> Mesh:
    outline = np.array([[0, 0], [1, 0], [rng.uniform(0, 0.9), rng.uniform(0.4, 0.9)]])
    return _upright(_extruded(outline, rng.uniform(0.5, 1.0), outline.mean(0).tolist(), parts="hull"))


def _upright(mesh: Mesh) -> Mesh:
    """Rotate a prism from the xy plane upright: x y z become x −z y."""
    axes = np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])
    return Mesh(
        vertices=mesh.vertices @ axes.T,
        triangles=mesh.triangles,
        parts=tuple(p @ axes.T for p in mesh.parts),
        crease=mesh.crease,
    )


def _arch(rng: Random) -> Mesh:
    angle = np.linspace(0, np.pi, 15)
    inner, depth = rng.uniform(0.5, 0.75), rng.uniform(0.25, 0.6)
    corners = [(inner, -depth / 2), (1.0, -depth / 2), (1.0, depth / 2), (inner, depth / 2)]
    rings = np.stack([np.stack([r * np.cos(angle), 0 * angle + y, r * np.sin(angle)], -1) for r, y in corners], 1)
    return sweep(rings, crease=30.0, parts="segments")


def _legs(width: float, depth: float, height: float, thickness: float) -> list[Mesh]:
    x, y = width / 2 - thickness / 2, depth / 2 - thickness / 2
    size = (thickness, thickness, height)
    return [cuboid(size, (sx * x, sy * y, height / 2)) for sx in (-1, 1) for sy in (-1, 1)]


def _table(rng: Random) -> Mesh:
    width, depth, height = rng.uniform(1.0, 1.6), rng.uniform(0.7, 1.0), rng.uniform(0.5, 0.8)
    top = rng.uniform(0.05, 0.1)
    return joined(
        [cuboid((width, depth, top), (0, 0, height + top / 2)), *_legs(width, depth, height, rng.uniform(0.06, 0.12))]
    )


def _chair(rng: Random) -> Mesh:
    width, height, back = rng.uniform(0.45, 0.6), rng.uniform(0.4, 0.5), rng.uniform(0.4, 0.6)
    seat = cuboid((width, width, 0.07), (0, 0, height + 0.035))
    rest = cuboid((width, 0.06, back), (0, width / 2 - 0.03, height + 0.07 + back / 2))
    return joined([seat, rest, *_legs(width, width, height, 0.06)])


def _stairs(rng: Random) -> Mesh:
    steps = int(rng.integers(3, 6))
    return joined([cuboid((0.3, 0.9, 0.22 * (i + 1)), (0.3 * i, 0, 0.11 * (i + 1))) for i in range(steps)])


def _tee(rng: Random) -> Mesh:
    t = rng.uniform(0.15, 0.25)
    w = rng.uniform(0.45, 0.6)
    outline = np.array([[-t, 0], [t, 0], [t, 1], [w, 1], [w, 1 + 2 * t], [-w, 1 + 2 * t], [-w, 1], [-t, 1]])
    return _upright(_extruded(outline, rng.uniform(0.3, 0.7), (0.0, 1 + t)))


def _cross(rng: Random) -> Mesh:
    t = rng.uniform(0.25, 0.45)
    quarter = np.array([[1, -t], [1, t], [t, t]])
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    outline = np.concatenate([quarter @ np.linalg.matrix_power(turn, i) for i in range(4)])
    return _extruded(outline, rng.uniform(0.4, 1.0))


def _gear(rng: Random) -> Mesh:
    teeth = int(rng.integers(7, 13))
    angle = (np.arange(teeth)[:, None] + np.array([0, 0.25, 0.5, 0.75])[None]).reshape(-1) * 2 * np.pi / teeth
    radius = np.tile([1.0, 1.0, 0.75, 0.75], teeth)
    return _extruded(np.stack([np.cos(angle), np.sin(angle)], -1) * radius[:, None], rng.uniform(0.3, 0.8))


def _knot(rng: Random) -> Mesh:
    """Tube along a trefoil knot."""
    t = np.arange(64) * 2 * np.pi / 64
    centre = np.stack([np.sin(t) + 2 * np.sin(2 * t), np.cos(t) - 2 * np.cos(2 * t), -1.2 * np.sin(3 * t)], -1)
    forward = np.roll(centre, -1, 0) - np.roll(centre, 1, 0)
    forward /= np.linalg.norm(forward, axis=-1, keepdims=True)
    right = np.cross(forward, np.stack([np.cos(t) * 0, np.sin(t) * 0, np.ones_like(t)], -1))
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    up = np.cross(right, forward)
    circle = _circle(9) * rng.uniform(0.4, 0.6)
    rings = centre[:, None] + circle[None, :, :1] * right[:, None] + circle[None, :, 1:] * up[:, None]
    return sweep(rings, wrap=True, crease=70.0, parts="segments")


def _mushroom(rng: Random) -> Mesh:
    stem, cap = rng.uniform(0.25, 0.45), rng.uniform(0.8, 1.2)
    angle = np.linspace(0, np.pi / 2, 9)
    radii = np.concatenate([[stem * 1.2, stem, stem], cap * np.maximum(np.cos(angle), 0.03)])
    heights = np.concatenate([[0, 0.3, 1.0], 1.0 + 0.7 * np.sin(angle) + 1e-3])
    return _lathe(radii, heights, 26, parts="segments")


def _dumbbell(rng: Random) -> Mesh:
    ball = np.linspace(-np.pi / 2, np.pi / 2, 11)
    r, neck, gap = np.maximum(np.cos(ball), 0.05), rng.uniform(0.2, 0.45), rng.uniform(1.2, 1.8)
    radii = np.concatenate([r[:9], [neck, neck], r[2:]])
    heights = np.concatenate([np.sin(ball[:9]) - gap, [-gap + 0.95, gap - 0.95], np.sin(ball[2:]) + gap])
    return _lathe(np.maximum(radii, 0.05), heights, 22, parts="segments")


def _twisted(rng: Random) -> Mesh:
    """Tower that twists and tapers."""
    sides, levels = int(rng.integers(3, 6)), 14
    height = np.linspace(0, rng.uniform(1.6, 2.6), levels)
    turn, taper = rng.uniform(0.4, 1.2) * height, np.linspace(1, rng.uniform(0.5, 1.0), levels)
    outlines = np.stack([_circle(sides, a) * s for a, s in zip(turn, taper)])
    return sweep(_rings(outlines, height), crease=35.0, parts="segments")


def _gem(rng: Random) -> Mesh:
    sides = int(rng.integers(5, 9))
    radii = np.array([0.25, 1.0, rng.uniform(0.6, 0.9)])
    return _lathe(radii, np.array([0, rng.uniform(0.6, 1.0), rng.uniform(1.1, 1.5)]), sides, crease=20.0)


def _stool(rng: Random) -> Mesh:
    height = rng.uniform(0.6, 0.9)
    seat = moved(_lathe(np.ones(2), np.array([0, 1.0]), 24), np.array([0.4, 0.4, 0.1]), (0, 0, height))
    foot = moved(_lathe(np.ones(2), np.array([0, 1.0]), 24), np.array([0.32, 0.32, 0.06]))
    return joined([seat, foot, cuboid((0.1, 0.1, height - 0.06), (0, 0, 0.06 + (height - 0.06) / 2))])


def _shelf(rng: Random) -> Mesh:
    width, height, boards = rng.uniform(0.7, 1.1), rng.uniform(1.0, 1.5), int(rng.integers(3, 5))
    depth, t = 0.35, 0.05
    sides = [cuboid((t, depth, height), (s * (width - t) / 2, 0, height / 2)) for s in (-1, 1)]
    levels = np.linspace(t / 2, height - t / 2, boards)
    return joined([*sides, *(cuboid((width - 2 * t, depth, t), (0, 0, z)) for z in levels)])


Maker = Callable[[Random], Mesh]

TRAIN_SHAPES: dict[str, Maker] = {
    "box": _box,
    "superquadric": _superquadric,
    "cylinder": _cylinder,
    "cone": _cone,
    "torus": _torus,
    "capsule": _capsule,
    "blob": _blob,
    "prism": _prism,
    "star": _star,
    "vase": _vase,
    "corner": _corner,
    "wedge": _wedge,
    "arch": _arch,
}
HELD_OUT_SHAPES: dict[str, Maker] = {
    "tee": _tee,
    "cross": _cross,
    "gear": _gear,
    "knot": _knot,
    "mushroom": _mushroom,
    "dumbbell": _dumbbell,
    "twisted": _twisted,
    "gem": _gem,
}
TRAIN_FURNITURE: dict[str, Maker] = {"table": _table, "chair": _chair, "stairs": _stairs}
HELD_OUT_FURNITURE: dict[str, Maker] = {"stool": _stool, "shelf": _shelf}


def make_shape(rng: Random, shapes: dict[str, Maker]) -> tuple[str, Mesh]:
    """Draw a shape from a table: its name and its normalised mesh."""
    name = str(rng.choice(list(shapes)))
    return name, normalised(shapes[name](rng))
