"""Gaussians as binary glTF with ``KHR_gaussian_splatting``; programs that do not know it show coloured points.

Scales are linear, opacities in [0, 1], quaternions (x, y, z, w), harmonics as ours; colours are display-referred sRGB;
axes y up and z back, so the scene is converted. Motion is morph targets of the positions, and of the rotations if there
are turns, one per offset time, and an animation of their weights, linear from one target to the next. That is exactly
the interpolation of offsets and turns, also beyond the first and last time; the file holds each position once, and
programs without splats show moving points. One primitive per time would repeat every other attribute and jump.

Source: github.com/KhronosGroup/glTF, extensions/2.0/Khronos/KHR_gaussian_splatting, release candidate.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from four_d.errors import UserError
from four_d.formats.glb import POINTS, UNLIT, Builder, Document, Json, read_glb, to_linear
from four_d.formats.splats.state import COEFFICIENTS, finite, flip, rotations, sound, turned
from four_d.rendering.harmonics import DEGREE_0
from four_d.types import Gaussians

LOGGER = logging.getLogger(__name__)

EXTENSION = "KHR_gaussian_splatting"
DECLARED = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
"""Values of the extension that declare the kind of Gaussians."""
_IDENTITY = {
    "translation": [0, 0, 0],
    "rotation": [0, 0, 0, 1],
    "scale": [1, 1, 1],
    "matrix": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
}


def write_gltf(path: Path, gaussians: Gaussians) -> None:
    """Write one file, with motion if the Gaussians have any.

    Raises:
        UserError: Gaussians that are not sound (`sound`), none at all, or a file that cannot be written.

    """
    gaussians = flip(sound(gaussians))
    if not len(gaussians.means):
        raise UserError("there are no Gaussians to write; glTF holds no empty arrays")
    builder = Builder()
    builder.uses(EXTENSION)
    builder.uses(UNLIT)
    primitive = _primitive(builder, gaussians)
    mesh: Json = {"primitives": [primitive]}
    node = builder.scene(builder.add("meshes", mesh))
    if gaussians.offsets is not None and gaussians.offset_times is not None:
        primitive["targets"] = [{"POSITION": builder.array(o.numpy(), bounds=True)} for o in gaussians.offsets]
        if gaussians.turns is not None:
            for target, quats in zip(primitive["targets"], rotations(gaussians), strict=True):
                change = (quats - gaussians.quats).roll(-1, dims=-1)
                target[f"{EXTENSION}:ROTATION"] = builder.array(change.contiguous().numpy())
        mesh["weights"] = [1.0] + [0.0] * (len(gaussians.offsets) - 1)
        _animate(builder, node, gaussians.offset_times)
    builder.write(path)


def _primitive(builder: Builder, gaussians: Gaussians) -> Json:
    arrays = {
        "ROTATION": gaussians.quats.roll(-1, dims=-1),
        "SCALE": gaussians.scales,
        "OPACITY": gaussians.opacities,
        **dict(zip(_names(gaussians.harmonics.shape[1]), gaussians.harmonics.unbind(1), strict=True)),
    }
    material = builder.add("materials", {"extensions": {UNLIT: {}}, "alphaMode": "BLEND"})
    return {
        "attributes": {
            "POSITION": builder.array(gaussians.means.numpy(), bounds=True),
            "COLOR_0": builder.array(_fallback(gaussians), normalised=True),
            **{f"{EXTENSION}:{name}": builder.array(value.numpy()) for name, value in arrays.items()},
        },
        "mode": POINTS,
        "material": material,
        "extensions": {EXTENSION: DECLARED},
    }


def _names(count: int) -> list[str]:
    """Attribute names of the harmonics, in order."""
    degrees = range(COEFFICIENTS.index(count) + 1)
    return [f"SH_DEGREE_{degree}_COEF_{order}" for degree in degrees for order in range(2 * degree + 1)]


def _fallback(gaussians: Gaussians) -> NDArray[np.uint16]:
    """Linear colour and opacity for programs that show plain points."""
    colours = (DEGREE_0 * gaussians.harmonics[:, 0] + 0.5).clamp(0, 1).numpy()
    values = np.concatenate([to_linear(colours), gaussians.opacities[:, None].numpy()], axis=-1)
    return np.rint(values * 65535).astype(np.uint16)


def _animate(builder: Builder, node: int, times: Tensor) -> None:
    """Animate the weights: at each time that of its own target is 1 and all others 0, linear in between."""
    seconds = builder.array(times.numpy(), bounds=True, target=None)
    weights = builder.array(np.eye(len(times), dtype=np.float32).reshape(-1), target=None)
    sampler = {"input": seconds, "output": weights, "interpolation": "LINEAR"}
    channel = {"sampler": 0, "target": {"node": node, "path": "weights"}}
    builder.add("animations", {"name": "motion", "samplers": [sampler], "channels": [channel]})


def read_gltf(path: Path) -> Gaussians:
    """Read the Gaussians of the first primitive with the extension, in our axes, with motion as `write_gltf`'s.

    Further primitives are skipped, with a note on stderr. Gaussians that are not finite are left out (`finite`).

    Raises:
        UserError: not a GLB, no such primitive, a packed one, another kernel or colour space, a node that moves
            them, motion that is not linear, or arrays that are missing or of different lengths.

    """
    document = read_glb(path)
    meshes = enumerate(document.content.get("meshes", []))
    primitives = [(index, p) for index, mesh in meshes for p in mesh.get("primitives", [])]
    primitives = [(index, p) for index, p in primitives if EXTENSION in p.get("extensions", {})]
    if not primitives:
        raise UserError(f"{path} holds no Gaussians; give a GLB with {EXTENSION}")
    if len(primitives) > 1:
        LOGGER.warning(f"{path}: of {len(primitives)} primitives of Gaussians only the first is read")
    mesh, primitive = primitives[0]
    declared = primitive["extensions"][EXTENSION]
    if declared.get("extensions"):
        raise UserError(f"{path} has Gaussians packed with {', '.join(declared['extensions'])}; save them without")
    for name, expected in DECLARED.items():
        if declared.get(name) != expected:
            raise UserError(f"{path} has Gaussians of {name} {declared.get(name)}; only {expected} is known")
    nodes = _nodes(document, mesh)
    if any(
        document.content["nodes"][node].get(key, still) != still for node in nodes for key, still in _IDENTITY.items()
    ):
        raise UserError(f"{path} has Gaussians in a node with a transform; bake it into positions")
    still = _gaussians(document, primitive["attributes"])
    return finite(flip(_with_motion(document, primitive, nodes, still)), path)


def _nodes(document: Document, mesh: int) -> list[int]:
    """Nodes that show the mesh, and their ancestors."""
    nodes: Sequence[Mapping[str, Any]] = document.content.get("nodes", [])
    above = {child: index for index, node in enumerate(nodes) for child in node.get("children", [])}
    chain = [index for index, node in enumerate(nodes) if node.get("mesh") == mesh]
    for index in chain:
        if index in above and above[index] not in chain:
            chain.append(above[index])
    return chain


def _gaussians(document: Document, attributes: Mapping[str, int]) -> Gaussians:
    def get(name: str) -> Tensor:
        if name not in attributes:
            raise UserError(f"{document.path} has no {name}; write the file again")
        values = torch.from_numpy(document.array(attributes[name]).astype(np.float32))
        if len(values) != count:
            raise UserError(f"{document.path} has {count} positions but {len(values)} {name}; write the file again")
        return values

    count = len(document.array(attributes["POSITION"])) if "POSITION" in attributes else 0
    degrees = max((int(name.split("_")[-3]) for name in attributes if ":SH_DEGREE_" in name), default=0)
    names = _names(COEFFICIENTS[min(degrees, 3)])
    return Gaussians(
        means=get("POSITION"),
        quats=get(f"{EXTENSION}:ROTATION").roll(1, dims=-1),
        scales=get(f"{EXTENSION}:SCALE"),
        opacities=get(f"{EXTENSION}:OPACITY"),
        harmonics=torch.stack([get(f"{EXTENSION}:{name}") for name in names], dim=1),
    )


def _with_motion(document: Document, primitive: Mapping[str, Any], nodes: Sequence[int], still: Gaussians) -> Gaussians:
    targets, animations = primitive.get("targets", []), document.content.get("animations", [])
    channels = [(a, c) for a in animations for c in a["channels"] if c["target"].get("node") in nodes]
    if any(channel["target"]["path"] != "weights" for _, channel in channels):
        raise UserError(f"{document.path} has Gaussians in a node that moves; bake its motion into positions")
    if not targets or not channels:
        return still
    animation, channel = channels[0]
    sampler = animation["samplers"][channel["sampler"]]
    if (kind := sampler.get("interpolation", "LINEAR")) != "LINEAR":
        raise UserError(f"{document.path} has motion of interpolation {kind}; save it as LINEAR")
    weights = document.array(sampler["output"]).reshape(-1, len(targets))
    positions = torch.from_numpy(
        np.stack([document.array(target["POSITION"]) for target in targets]).astype(np.float32)
    )
    mix = torch.from_numpy(weights.astype(np.float32))
    return dataclasses.replace(
        still,
        offsets=torch.einsum("ik,knd->ind", mix, positions),
        offset_times=torch.from_numpy(document.array(sampler["input"]).astype(np.float32)),
        turns=_turns(document, targets, mix, still),
    )


def _turns(
    document: Document, targets: Sequence[Mapping[str, int]], mix: Tensor, still: Gaussians
) -> Float[Tensor, "t n 4"] | None:
    """Turns at each time: a target changes the rotations by adding to the quaternions, as to all attributes."""
    if not any(f"{EXTENSION}:ROTATION" in target for target in targets):
        return None
    changes = [
        torch.from_numpy(document.array(target[f"{EXTENSION}:ROTATION"]).astype(np.float32)).roll(1, dims=-1)
        if f"{EXTENSION}:ROTATION" in target
        else torch.zeros_like(still.quats)
        for target in targets
    ]
    return turned(still, list(still.quats + torch.einsum("ik,knd->ind", mix, torch.stack(changes))))
