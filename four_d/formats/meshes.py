"""Point clouds and meshes as binary glTF, for browsers, Blender and modelling programs.

glTF's axes are y up and z back: writers convert points to (x, -y, -z), and readers convert them back.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from four_d.errors import UserError
from four_d.formats.clouds import PointCloud
from four_d.formats.glb import INDICES, POINTS, UNLIT, Builder, Json, read_glb, to_linear, to_srgb
from four_d.geometry import unproject
from four_d.types import Cameras

STEP = 0.1
"""Relative step of inverse depth between neighbouring pixels that separates two surfaces."""
_AXES = np.array([1, -1, -1], np.float32)


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Coloured triangles in world coordinates."""

    vertices: NDArray[np.float32]
    """n 3"""
    colours: NDArray[np.uint8]
    """n 3, RGB."""
    triangles: NDArray[np.uint32]
    """m 3; vertices run anticlockwise seen from the front."""


def depth_mesh(
    depth: Float[Tensor, "f h w"], images: Float[Tensor, "f 3 h w"], cameras: Cameras, *, step: float = STEP
) -> Mesh:
    """Triangulate depth maps into a surface in world coordinates, between neighbouring pixels of each frame.

    The surface is cut at depth steps: inverse depth is linear in the pixel on any plane, so two neighbours are joined
    unless theirs differs by a fraction of more than ``step`` and the slope continues on neither side. Pixels without
    depth (not positive or not finite) have no vertex.
    """
    front = depth.isfinite() & (depth > 0)
    inverse = torch.where(front, 1 / depth.clamp_min(1e-9), torch.zeros_like(depth))
    triangles = _triangles(inverse, front, step)
    used = torch.zeros(depth.numel(), dtype=torch.bool, device=depth.device)
    used[triangles.flatten()] = True
    number = used.cumsum(0) - 1
    points = unproject(torch.where(front, depth, torch.zeros_like(depth)), cameras).reshape(-1, 3)
    colours = (images.permute(0, 2, 3, 1).reshape(-1, 3) * 255).round().clamp(0, 255).to(torch.uint8)
    return Mesh(
        vertices=points[used].float().cpu().numpy(),
        colours=colours[used].cpu().numpy(),
        triangles=number[triangles].cpu().numpy().astype(np.uint32),
    )


def _triangles(inverse: Float[Tensor, "f h w"], front: Bool[Tensor, "f h w"], step: float) -> Tensor:
    """Triangles as pixel indices, m 3, in row-major order of frame, row, column."""
    across, down = _joined(inverse, front, step), _joined(inverse.mT, front.mT, step).mT
    index = torch.arange(inverse.numel(), device=inverse.device).reshape(inverse.shape)
    first, right = index[:, :-1, :-1], index[:, :-1, 1:]
    below, last = index[:, 1:, :-1], index[:, 1:, 1:]
    upper = torch.stack([first, below, right], dim=-1)[across[:, :-1] & down[:, :, :-1]]
    lower = torch.stack([right, below, last], dim=-1)[across[:, 1:] & down[:, :, 1:]]
    return torch.cat([upper, lower])


def _joined(inverse: Float[Tensor, "f h w"], front: Bool[Tensor, "f h w"], step: float) -> Bool[Tensor, "f h e"]:
    """True where a pixel and its right neighbour, e = w - 1 pairs per row, belong to one surface."""
    change = inverse.diff(dim=-1)
    jump = change.abs()
    bend = change.diff(dim=-1).abs()
    jump[..., 1:] = torch.minimum(jump[..., 1:], bend)
    jump[..., :-1] = torch.minimum(jump[..., :-1], bend)
    near = torch.maximum(inverse[..., 1:], inverse[..., :-1])
    return front[..., 1:] & front[..., :-1] & (jump <= step * near)


def write_glb_mesh(path: Path, mesh: Mesh) -> None:
    """Write coloured triangles, double-sided and unlit. UserError without any, or if writing fails."""
    if not len(mesh.triangles):
        raise UserError(f"there are no triangles to write to {path}; glTF holds no empty arrays")
    builder = Builder()
    primitive = _primitive(builder, mesh.vertices, mesh.colours)
    primitive["indices"] = builder.array(mesh.triangles.reshape(-1), target=INDICES)
    _write(builder, primitive, path)


def write_glb_cloud(path: Path, cloud: PointCloud) -> None:
    """Write coloured points, without frames and confidence. UserError without any, or if writing fails."""
    if not len(cloud):
        raise UserError(f"there are no points to write to {path}; glTF holds no empty arrays")
    builder = Builder()
    _write(builder, _primitive(builder, cloud.points, cloud.colours) | {"mode": POINTS}, path)


def _primitive(builder: Builder, points: NDArray[np.float32], colours: NDArray[np.uint8]) -> Json:
    linear = np.rint(to_linear(colours / 255) * 65535)
    colour = np.concatenate([linear, np.full((len(linear), 1), 65535)], axis=-1).astype(np.uint16)
    return {
        "attributes": {
            "POSITION": builder.array(points.astype(np.float32) * _AXES, bounds=True),
            "COLOR_0": builder.array(colour, normalised=True),
        },
        "material": builder.add("materials", {"extensions": {UNLIT: {}}, "doubleSided": True}),
    }


def _write(builder: Builder, primitive: Json, path: Path) -> None:
    builder.uses(UNLIT)
    builder.scene(builder.add("meshes", {"primitives": [primitive]}))
    builder.write(path)


def read_glb_mesh(path: Path) -> Mesh:
    """Read a file of `write_glb_mesh`, or of `write_glb_cloud`, without triangles. UserError if it is neither."""
    document = read_glb(path)
    try:
        primitive = cast(dict[str, Any], document.content["meshes"][0]["primitives"][0])
        points = document.array(primitive["attributes"]["POSITION"])
        linear = document.array(primitive["attributes"]["COLOR_0"])[:, :3]
    except (KeyError, IndexError) as error:
        raise UserError(f"{path} holds no coloured points or triangles ({error}); write it again") from error
    indices = document.array(primitive["indices"]) if "indices" in primitive else np.zeros(0)
    return Mesh(
        vertices=points.astype(np.float32) * _AXES,
        colours=np.rint(to_srgb(linear.astype(np.float32)) * 255).astype(np.uint8),
        triangles=indices.astype(np.uint32).reshape(-1, 3),
    )
