"""Meshes of other programs as coloured triangles, read by trimesh: PLY with faces, glTF, OBJ."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from four_d.errors import UserError
from four_d.formats.glb import to_linear, to_srgb
from four_d.outputs import read_whole

Reals = NDArray[np.float64]

GLTF = (".glb", ".gltf")
SUFFIXES = (".ply", *GLTF, ".obj")
GREY = 0.5
"""Colour of what has none."""


@dataclass(frozen=True, kw_only=True)
class Paint:
    """Colours of m triangles, display values in [0, 1]."""

    colours: Reals | None = None
    """m 3 3: RGB of each corner."""
    places: Reals | None = None
    """m 3 2: place of each corner in ``image``, from 0 to 1, right and up; outside, the image repeats."""
    image: Reals | None = None
    """Rows from the top, columns, RGB."""
    factor: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Factor of the colours in linear light."""

    @property
    def known(self) -> bool:
        """True if the file gives any colour."""
        return self.colours is not None or self.image is not None or self.factor != (1.0, 1.0, 1.0)

    def at(self, faces: NDArray[np.int64], weights: Reals) -> Reals:
        """RGB at points of triangles, p 3: ``weights`` p 3 are the points' shares of the corners."""
        if not self.known:
            return np.full((len(faces), 3), GREY)
        found = np.ones((len(faces), 3))
        if self.image is not None and self.places is not None:
            found = _bilinear(self.image, (self.places[faces] * weights[..., None]).sum(1))
        elif self.colours is not None:
            found = (self.colours[faces] * weights[..., None]).sum(1)
        if self.factor == (1.0, 1.0, 1.0):
            return found
        return to_srgb(to_linear(found) * np.array(self.factor))


def _bilinear(image: Reals, places: Reals) -> Reals:
    """Colours of an image that repeats, between the centres of its four nearest pixels."""
    height, width = image.shape[:2]
    x, y = places[:, 0] * width - 0.5, (1 - places[:, 1]) * height - 0.5
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    right, down = (x - left)[:, None], (y - top)[:, None]
    upper, lower = (
        image[row % height, left % width] * (1 - right) + image[row % height, (left + 1) % width] * right
        for row in (top, top + 1)
    )
    return upper * (1 - down) + lower * down


@dataclass(frozen=True, kw_only=True)
class Triangles:
    """Coloured triangles in the file's coordinates."""

    vertices: Reals
    """v 3"""
    faces: NDArray[np.int64]
    """m 3"""
    paints: tuple[Paint, ...]
    """Paint of each part, in the faces' order."""
    counts: tuple[int, ...]
    """Number of faces of each part."""

    @property
    def coloured(self) -> bool:
        """True if the file gives the colours of any part."""
        return any(paint.known for paint in self.paints)

    def colours(self, faces: NDArray[np.int64], weights: Reals) -> Reals:
        """RGB at points of the triangles, as `Paint.at`."""
        found = np.empty((len(faces), 3))
        starts = np.cumsum([0, *self.counts[:-1]])
        for paint, start, count in zip(self.paints, starts, self.counts, strict=True):
            own = (faces >= start) & (faces < start + count)
            found[own] = paint.at(faces[own] - start, weights[own])
        return found.clip(0, 1)


def read_triangles(path: Path) -> Triangles:
    """Read all meshes of a file, each placed by its node, in the file's axes and unit.

    Colours are of a texture, of the vertices or of the faces. In glTF the material's base colour multiplies them (in
    linear light, as vertices' colours are there); in OBJ a texture is taken as it is.

    Raises:
        UserError: without the extra `mesh`, no such file, a file that does not read, no triangles (as in a point
            cloud), or positions that are not finite.

    """
    trimesh = _library()
    read_whole(path)
    parts = _meshes(trimesh, path)
    if not parts:
        raise UserError(
            f"{path} holds no triangles; give a mesh, or Gaussians. Points alone have no surface: mesh them first"
        )
    vertices = np.concatenate([points for points, _, _ in parts])
    firsts = np.cumsum([0, *(len(points) for points, _, _ in parts[:-1])])
    faces = np.concatenate([faces + first for (_, faces, _), first in zip(parts, firsts, strict=True)])
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise UserError(f"{path} has triangles of vertices that it lacks; write it again")
    if not np.isfinite(vertices[faces]).all():
        raise UserError(f"{path} has vertices that are not finite; repair the mesh")
    return Triangles(
        vertices=vertices,
        faces=faces,
        paints=tuple(paint for _, _, paint in parts),
        counts=tuple(len(faces) for _, faces, _ in parts),
    )


def _library() -> Any:  # noqa: ANN401  what is used of trimesh is not typed well
    """Import trimesh; UserError if it is missing."""
    try:
        return importlib.import_module("trimesh")
    except ImportError as error:
        raise UserError("meshes need trimesh; install it with: pip install 'four_d[mesh]'") from error


def _meshes(trimesh: Any, path: Path) -> list[tuple[Reals, NDArray[np.int64], Paint]]:  # noqa: ANN401
    """Vertices, faces and paint of each mesh with faces. UserError if the file does not read."""
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as file:
            # "process" would merge vertices, and with them the places in textures
            scene = trimesh.load(
                file,
                file_type=suffix[1:],
                resolver=trimesh.resolvers.FilePathResolver(str(path)),
                force="scene",
                process=False,
            )
        placed = [scene.graph[node] for node in scene.graph.nodes_geometry]
        found = [(scene.geometry[name], np.asarray(matrix, np.float64)) for matrix, name in placed]
        return [
            (_moved(np.asarray(mesh.vertices, np.float64), matrix), faces, _paint(mesh, faces, suffix))
            for mesh, matrix in found
            if len(faces := np.asarray(getattr(mesh, "faces", ()), np.int64))
        ]
    except Exception as error:  # trimesh raises anything at all on files that are not what they say
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} does not read as a mesh ({first}); save it again, or in another format") from error


def _moved(points: Reals, matrix: Reals) -> Reals:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def _paint(mesh: Any, faces: NDArray[np.int64], suffix: str) -> Paint:  # noqa: ANN401
    visual, linear = mesh.visual, suffix in GLTF
    if visual.kind in ("vertex", "face"):
        if visual.kind == "face":
            return Paint(colours=np.repeat(_unit(visual.face_colors)[:, None], 3, axis=1))
        return Paint(colours=_shown(visual.vertex_colors, linear=linear)[faces])
    material = getattr(visual, "material", None)
    image = next(
        (i for name in ("baseColorTexture", "image") if (i := getattr(material, name, None)) is not None), None
    )
    factor = _factor(material, textured=image is not None)
    if image is not None and visual.uv is not None and len(visual.uv) == len(mesh.vertices):
        places = np.asarray(visual.uv, np.float64)[:, :2]
        return Paint(image=np.asarray(image.convert("RGB")) / 255, places=places[faces], factor=factor)
    further = getattr(visual, "vertex_attributes", None)
    if further is not None and "color" in further:
        return Paint(colours=_shown(further["color"], linear=linear)[faces], factor=factor)
    return Paint(factor=factor)


def _factor(material: Any, *, textured: bool) -> tuple[float, float, float]:  # noqa: ANN401
    """Factor in linear light of glTF's materials, or colour of OBJ's without texture."""
    base, plain = getattr(material, "baseColorFactor", None), getattr(material, "diffuse", None)
    if base is not None:
        values = _unit(np.asarray(base)).reshape(-1)[:3]
    elif plain is not None and not textured:
        values = to_linear(_unit(np.asarray(plain)).reshape(-1)[:3])
    else:
        return (1.0, 1.0, 1.0)
    return (float(values[0]), float(values[1]), float(values[2]))


def _shown(colours: Any, *, linear: bool) -> Reals:  # noqa: ANN401
    """Display values of vertices' colours n 3."""
    values = _unit(colours)
    return to_srgb(values) if linear else values


def _unit(colours: Any) -> Reals:  # noqa: ANN401
    """RGB in [0, 1], of integers over their type's range."""
    values = np.asarray(colours)
    whole = np.iinfo(values.dtype).max if values.dtype.kind in "ui" else 1
    return values[..., :3].astype(np.float64) / whole
