"""Composed world as flat arrays: one triangle soup with poses over time, ready for ray casting."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic.meshes import Mesh, corner_normals
from data_prep.synthetic.textures import Atlas

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Material:
    """Texture and gloss of a piece."""

    tile: int
    """Index in the atlas."""
    metres: float
    """Side of one tile in the world, in metres."""
    shift: tuple[float, float]
    gloss: float
    """Specular strength, 0–1."""
    shine: float
    """Specular exponent."""
    upright: bool = False
    """True for a photograph, which is never mirrored."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Mesh of one instance, in the axes of its body (``body`` −1: in the world), rigid unless it has a ``path``."""

    mesh: Mesh
    instance: int
    body: int
    material: Material
    uv: NDArray[np.float32] | None = None
    """m 3 2: texture coordinates in tiles, v down; None: `box_uv`."""
    path: Array | None = None
    """t v 3: vertices in the world over time."""
    two_sided: bool = False
    """True for a surface that is not closed, whose back is lit as its front."""


@dataclass(frozen=True, kw_only=True)
class Light:
    """Point light. ``colour``: irradiance of a surface facing it at ``reach`` metres; at most twice that nearer."""

    position: Array
    colour: NDArray[np.float32]
    reach: float
    path: Array | None = None
    """t 3: positions over time; None: always at ``position``."""

    def at(self, time: int) -> Array:
        """Position at time index ``time``."""
        return self.position if self.path is None else self.path[time]


@dataclass(frozen=True, kw_only=True)
class Bend:
    """Vertices and faces of a stage that deform, as ranges of its arrays."""

    vertices: slice
    faces: slice
    mesh: Mesh
    path: Array
    """t v 3: vertices in the world."""

    def normals_at(self, time: int) -> NDArray[np.float32]:
        """World shading normals (m 3 3) of the faces."""
        return corner_normals(replace(self.mesh, vertices=self.path[time])).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Arrays for ray casting and shading. m faces, v vertices, n bodies, t times."""

    triangles: NDArray[np.int32]
    instances: NDArray[np.int32]
    rest_vertices: Array
    rest_normals: NDArray[np.float32]
    """m 3 3: per corner, in body axes."""
    vertex_body: NDArray[np.int32]
    face_body: NDArray[np.int32]
    uv: NDArray[np.float32]
    """m 3 2: in tiles."""
    tiles: NDArray[np.int32]
    uv_density: NDArray[np.float32]
    """m: tiles per metre."""
    gloss: NDArray[np.float32]
    shine: NDArray[np.float32]
    positions: Array
    """t n 3"""
    rotations: Array
    """t n 3 3"""
    atlas: Atlas
    lights: list[Light]
    sky: NDArray[np.float32]
    """2 3: ambient light from above and from below; the first also colours the background."""
    bends: tuple[Bend, ...] = ()
    two_sided: NDArray[np.bool_] | None = None
    """m; None if no face is."""

    def vertices_at(self, time: int) -> NDArray[np.float32]:
        """World vertices (v 3), rounded to the float32 of the shards."""
        rotation, shift = self._poses(time)
        moved = np.einsum("vij,vj->vi", rotation[self.vertex_body], self.rest_vertices) + shift[self.vertex_body]
        for bend in self.bends:
            moved[bend.vertices] = bend.path[time]
        return moved.astype(np.float32)

    def normals_at(self, time: int) -> NDArray[np.float32]:
        """World shading normals (m 3 3)."""
        rotation, _ = self._poses(time)
        normals = np.matmul(self.rest_normals, rotation.astype(np.float32).transpose(0, 2, 1)[self.face_body])
        for bend in self.bends:
            normals[bend.faces] = bend.normals_at(time)
        return normals

    def _poses(self, time: int) -> tuple[Array, Array]:
        """Rotations and positions of every body and, last (index −1), of the world itself."""
        rotation = np.concatenate([self.rotations[time], np.eye(3)[None]])
        return rotation, np.concatenate([self.positions[time], np.zeros((1, 3))])


def box_uv(mesh: Mesh, material: Material) -> NDArray[np.float32]:
    """Texture coordinates (m 3 2): each face projected along the axis closest to its normal."""
    corners = mesh.vertices[mesh.triangles]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    axis = np.abs(normal).argmax(-1)
    columns = np.array([[1, 2], [0, 2], [0, 1]])[axis]
    uv = np.take_along_axis(corners, columns[:, None].repeat(3, 1), -1) / material.metres
    if material.upright:
        uv[..., 0] *= rightwards(normal, axis)[:, None]
    return (uv * np.array([1, -1]) + np.asarray(material.shift) + axis[:, None, None] * 0.37).astype(np.float32)


def rightwards(normal: Array, axis: NDArray[np.int64]) -> Array:
    """Sign (m) of the horizontal coordinate that grows to the right for who faces each of m faces (``normal`` m 3)."""
    facing = np.take_along_axis(normal, axis[:, None], -1)[:, 0]
    return np.where(facing * np.array([1.0, -1.0, 1.0])[axis] < 0, -1.0, 1.0)


def density(piece: Piece) -> NDArray[np.float32]:
    """Tiles per metre (m) on each face."""
    if piece.uv is None:
        return np.full(len(piece.mesh.triangles), 1 / piece.material.metres, np.float32)
    a, b, c = (piece.mesh.vertices[piece.mesh.triangles[:, i]] for i in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=-1)
    (u, v), (x, y) = ((piece.uv[:, i] - piece.uv[:, 0]).T.astype(np.float64) for i in (1, 2))
    return np.sqrt(np.abs(u * y - v * x) / np.maximum(area, 1e-12)).astype(np.float32)


def make_stage(
    pieces: list[Piece], positions: Array, rotations: Array, atlas: Atlas, lights: list[Light], sky: NDArray[np.float32]
) -> Stage:
    """Concatenate the arrays of all pieces."""
    offsets = np.cumsum([0] + [len(p.mesh.vertices) for p in pieces[:-1]])
    faces = [len(p.mesh.triangles) for p in pieces]
    firsts = np.cumsum([0, *faces[:-1]])
    bends = tuple(
        Bend(
            vertices=slice(int(o), int(o) + len(p.mesh.vertices)),
            faces=slice(int(f), int(f) + len(p.mesh.triangles)),
            mesh=p.mesh,
            path=p.path,
        )
        for p, o, f in zip(pieces, offsets, firsts)
        if p.path is not None
    )
    two_sided = np.repeat(np.array([p.two_sided for p in pieces]), faces)

    def per_face(values: list[float]) -> NDArray[np.float32]:
        return np.repeat(np.array(values, np.float32), faces)

    def per_piece(values: list[int]) -> NDArray[np.int32]:
        return np.repeat(np.array(values, np.int32), faces)

    return Stage(
        triangles=np.concatenate([p.mesh.triangles + o for p, o in zip(pieces, offsets)]).astype(np.int32),
        instances=per_piece([p.instance for p in pieces]),
        rest_vertices=np.concatenate([p.mesh.vertices for p in pieces]),
        rest_normals=np.concatenate([corner_normals(p.mesh) for p in pieces]).astype(np.float32),
        vertex_body=np.repeat(np.array([p.body for p in pieces], np.int32), [len(p.mesh.vertices) for p in pieces]),
        face_body=per_piece([p.body for p in pieces]),
        uv=np.concatenate([box_uv(p.mesh, p.material) if p.uv is None else p.uv for p in pieces]),
        tiles=per_piece([p.material.tile for p in pieces]),
        uv_density=np.concatenate([density(p) for p in pieces]),
        gloss=per_face([p.material.gloss for p in pieces]),
        shine=per_face([p.material.shine for p in pieces]),
        positions=positions,
        rotations=rotations,
        atlas=atlas,
        lights=lights,
        sky=sky,
        bends=bends,
        two_sided=two_sided if two_sided.any() else None,
    )
