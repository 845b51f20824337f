"""Composed world as flat arrays: one triangle soup with poses over time, ready for ray casting."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Mesh of one instance, rigid in the axes of its body (``body`` −1: in the world)."""

    mesh: Mesh
    instance: int
    body: int
    material: Material


@dataclass(frozen=True, kw_only=True)
class Light:
    """Point light. ``colour``: irradiance of a surface facing it at ``reach`` metres; at most twice that nearer."""

    position: Array
    colour: NDArray[np.float32]
    reach: float


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

    def vertices_at(self, time: int) -> NDArray[np.float32]:
        """World vertices (v 3), rounded to the float32 of the shards."""
        rotation, shift = self._poses(time)
        moved = np.einsum("vij,vj->vi", rotation[self.vertex_body], self.rest_vertices) + shift[self.vertex_body]
        return moved.astype(np.float32)

    def normals_at(self, time: int) -> NDArray[np.float32]:
        """World shading normals (m 3 3)."""
        rotation, _ = self._poses(time)
        return np.matmul(self.rest_normals, rotation.astype(np.float32).transpose(0, 2, 1)[self.face_body])

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
    return (uv * np.array([1, -1]) + np.asarray(material.shift) + axis[:, None, None] * 0.37).astype(np.float32)


def make_stage(
    pieces: list[Piece], positions: Array, rotations: Array, atlas: Atlas, lights: list[Light], sky: NDArray[np.float32]
) -> Stage:
    """Concatenate the arrays of all pieces."""
    offsets = np.cumsum([0] + [len(p.mesh.vertices) for p in pieces[:-1]])
    faces = [len(p.mesh.triangles) for p in pieces]

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
        uv=np.concatenate([box_uv(p.mesh, p.material) for p in pieces]),
        tiles=per_piece([p.material.tile for p in pieces]),
        uv_density=per_face([1 / p.material.metres for p in pieces]),
        gloss=per_face([p.material.gloss for p in pieces]),
        shine=per_face([p.material.shine for p in pieces]),
        positions=positions,
        rotations=rotations,
        atlas=atlas,
        lights=lights,
        sky=sky,
    )
