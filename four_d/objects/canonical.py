"""Canonical object: Gaussians of one thing, centred and of radius 1, with the way back to its file's coordinates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from four_d import fields
from four_d.errors import UserError
from four_d.formats.glb import read_glb
from four_d.formats.ply import read_vertices
from four_d.formats.splats import flip, read_gaussians, state_at, thin
from four_d.formats.splats.gltf import EXTENSION
from four_d.formats.splats.usd import PACKAGE
from four_d.formats.splats.usd import SUFFIXES as USD
from four_d.geometry import Similarity
from four_d.objects.discs import EACH, OPACITY, cover
from four_d.objects.triangles import SUFFIXES, Triangles, read_triangles
from four_d.rendering import harmonics
from four_d.types import Gaussians
from four_d.video.remarks import Remarks

Up = Literal["y", "z", "-y"]
"""Axis that points up: y as in glTF, z as in Blender and CAD, −y as in our worlds and 3D Gaussian splatting's."""
NUMBER, MOST = 20_000, 100_000
"""Gaussians that cover a mesh, the first as in Lab4D; of many triangles six each, up to the second."""
FAINT, OUTER = 0.1, 0.995
"""Opacity below which a splat, and fraction of the others beyond which one, counts as stray for centre and radius."""
SPLATS = (".ply", ".spz", ".glb", *USD, PACKAGE)
_TURNS: dict[Up, Float[Tensor, "3 3"]] = {
    "-y": torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
    "y": torch.tensor([[1, 0, 0], [0, -1, 0], [0, 0, -1]]),
    "z": torch.tensor([[1, 0, 0], [0, 0, -1], [0, 1, 0]]),
}
"""Rotations to our axes; the side that faces z in glTF, −y in Blender, faces a camera that looks along our z."""


@dataclass(frozen=True, kw_only=True)
class CanonicalObject:
    """One object in axes x right, y down, z forward, centred at the origin, with radius 1."""

    gaussians: Gaussians
    """Unbatched, float32, at rest."""
    file_from_object: Similarity
    """Similarity to the file's coordinates; its scale is the radius in the file's unit (`fields.move` applies it)."""
    coloured: bool
    """False if the file has no colours: all is grey."""
    vertices: Float[Tensor, "v 3"] | None = None
    """Vertices of the mesh, if it was one."""
    faces: Int[Tensor, "m 3"] | None = None
    """Vertices of each triangle."""


def read_object(path: Path, *, gaussians: int | None = None, up: Up | None = None) -> CanonicalObject:
    """Read an object from a file of Gaussians (PLY, SPZ, glTF, USD) or a mesh (PLY with faces, glTF, OBJ).

    Centre and radius are those of the mesh's vertices, or of the Gaussians' means without stray ones. A mesh is covered
    by flat Gaussians bound to its surface (`discs.cover`), opaque together; without colours they are grey, which
    stderr says. Gaussians that move are taken at their first time.

    Args:
        path: the file; a PLY is of Gaussians if it has their properties, a GLB if it has ``KHR_gaussian_splatting``.
        gaussians: maximum number of Gaussians. None: all of a file of them; for a mesh `NUMBER` or, if that is more,
            six a triangle, up to `MOST`.
        up: axis that points up in the file. None: −y for PLY of Gaussians, y for all others (a USD stage that says z
            is read as one of y).

    Raises:
        UserError: ``gaussians`` below 1, a file of another kind, one that does not read or is empty, without the extra
            `mesh`, values that are not finite, no extent, or Gaussians to be turned whose colours depend on the
            direction.

    """
    if gaussians is not None and gaussians < 1:
        raise UserError(f"{gaussians} Gaussians for {path}; ask for 1 or more")
    suffix = path.suffix.lower()
    if suffix not in (*SUFFIXES, *SPLATS):
        known = " ".join(dict.fromkeys((*SUFFIXES, *SPLATS)))
        raise UserError(f"{path} is no object of a known kind; give a mesh or Gaussians, one of {known}")
    if suffix in SPLATS and (suffix not in SUFFIXES or _HOLDS_SPLATS[suffix](path)):
        return _of_splats(path, gaussians, up)
    return _of_mesh(path, gaussians, up)


def _is_splat_ply(path: Path) -> bool:
    return not {"opacity", "scale_0", "rot_0", "packed_position"}.isdisjoint(read_vertices(path))


def _is_splat_glb(path: Path) -> bool:
    meshes = read_glb(path).content.get("meshes", [])
    return any(EXTENSION in part.get("extensions", {}) for mesh in meshes for part in mesh.get("primitives", []))


_HOLDS_SPLATS: dict[str, Callable[[Path], bool]] = {".ply": _is_splat_ply, ".glb": _is_splat_glb}


def _of_splats(path: Path, number: int | None, up: Up | None) -> CanonicalObject:
    usual: Up = "-y" if path.suffix.lower() == ".ply" else "y"
    return of_gaussians(read_gaussians(path), path, gaussians=number, up=up, usual=usual)


def of_gaussians(
    found: Gaussians, name: str | Path, *, gaussians: int | None = None, up: Up | None = None, usual: Up = "-y"
) -> CanonicalObject:
    """Object out of unbatched Gaussians, read with ``usual`` as the axis that points up. As `read_object`."""
    if not len(found.means):
        raise UserError(f"{name} holds no Gaussians; give another file")
    if found.offset_times is not None:
        found = state_at(found, float(found.offset_times[0]))
    if gaussians is not None and gaussians < len(found.means):
        Remarks(name).say(f"of {len(found.means):,} Gaussians {gaussians:,} are taken, larger than they were")
        found = thin(found, gaussians)
    centre, radius = _extent(name, _without_strays(found))
    read_from_file, object_from_file = (_TURNS[axis].double() for axis in (usual, up or usual))
    turn = object_from_file @ read_from_file.mT
    placed = replace(found, means=((found.means.double() - centre) / radius).float(), scales=found.scales / radius)
    return CanonicalObject(
        gaussians=_turned(name, placed, turn),
        file_from_object=Similarity(
            scale=radius, rotation=object_from_file.mT.contiguous(), shift=read_from_file.mT @ centre
        ),
        coloured=True,
    )


def _turned(name: str | Path, gaussians: Gaussians, turn: Float[Tensor, "3 3"]) -> Gaussians:
    if torch.equal(turn, torch.eye(3, dtype=torch.float64)):
        return gaussians
    if torch.equal(turn, _TURNS["y"].double()):  # which harmonics of any degree follow
        return flip(gaussians)
    try:
        return fields.move(gaussians, Similarity(scale=1.0, rotation=turn, shift=torch.zeros(3, dtype=torch.float64)))
    except UserError as error:
        raise UserError(f"{name}: {error}; or turn it in another program, and leave out up") from error


def _without_strays(gaussians: Gaussians) -> Float[Tensor, "m 3"]:
    """Means that are not faint, nor among the outermost of the others along an axis."""
    visible = gaussians.opacities >= FAINT
    means = (gaussians.means[visible] if visible.any() else gaussians.means).double()
    low, high = (_sorted_at(means, fraction) for fraction in (1 - OUTER, OUTER))
    inner = ((means >= low) & (means <= high)).all(-1)
    return means[inner] if inner.any() else means


def _sorted_at(means: Float[Tensor, "m 3"], fraction: float) -> Float[Tensor, "3"]:
    """Quantile of each coordinate; torch's own takes no more than 16 million values."""
    return means.sort(dim=0).values[round(fraction * (len(means) - 1))]


def _extent(name: str | Path, points: Float[Tensor, "m 3"]) -> tuple[Float[Tensor, "3"], float]:
    """Middle of the bounding box, and distance of the farthest point from it. UserError without extent."""
    centre = (points.amin(0) + points.amax(0)) / 2
    radius = float((points - centre).norm(dim=-1).max())
    if not radius > 0:
        raise UserError(f"{name} has no extent: all is in one place; give an object that has a size")
    return centre, radius


def _of_mesh(path: Path, number: int | None, up: Up | None) -> CanonicalObject:
    return of_triangles(read_triangles(path), path, gaussians=number, up=up or "y")


def of_triangles(
    triangles: Triangles, name: str | Path, *, gaussians: int | None = None, up: Up = "y"
) -> CanonicalObject:
    """Object out of a mesh, whose surface is covered by Gaussians. As `read_object`."""
    remarks = Remarks(name)
    vertices, own = np.unique(triangles.faces, return_inverse=True)
    centre, radius = _extent(name, torch.from_numpy(triangles.vertices[vertices]))
    turn = _TURNS[up].double()
    points = (torch.from_numpy(triangles.vertices[vertices]) - centre) @ turn.mT / radius
    faces = torch.from_numpy(own.reshape(-1, 3))
    if not triangles.coloured:
        remarks.say("it has no colours, and becomes grey")
    return CanonicalObject(
        gaussians=_surface(name, triangles, points[faces], gaussians, remarks),
        file_from_object=Similarity(scale=radius, rotation=turn.mT, shift=centre),
        coloured=triangles.coloured,
        vertices=points.float(),
        faces=faces,
    )


SMALLEST = 1e-14
"""Area of a triangle, of an object of radius 1, below which it has none."""


def _surface(
    name: str | Path, triangles: Triangles, corners: Float[Tensor, "m 3 3"], number: int | None, remarks: Remarks
) -> Gaussians:
    """Gaussians on triangles of an object of radius 1. UserError if none has an area."""
    edges = corners[:, 1:] - corners[:, :1]
    there = (torch.linalg.cross(edges[:, 0], edges[:, 1]).norm(dim=-1) / 2 > SMALLEST).nonzero()[:, 0]
    if not len(there):
        raise UserError(f"{name} has no surface: none of its {len(corners):,} triangles has an area; repair the mesh")
    if len(there) < len(corners):
        remarks.say(f"{len(corners) - len(there):,} of {len(corners):,} triangles have no area and are left out")
    most = min(max(NUMBER, EACH * len(there)), MOST) if number is None else number
    discs, each = cover(corners[there], most)
    if not each:
        remarks.say(f"{len(there):,} triangles are more than {most:,} Gaussians cover one by one: spread over them all")
    colours = triangles.colours(there[discs.faces].numpy(), discs.weights.numpy())
    return Gaussians(
        means=discs.means.float(),
        quats=discs.quats.float(),
        scales=discs.scales.float(),
        opacities=torch.full((len(discs.means),), OPACITY),
        harmonics=harmonics.constant(torch.from_numpy(colours).float()),
    )
