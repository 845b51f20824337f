"""Render a scene of `data_prep.blender_render` in flat colours that shine, one for each face (``colours.npy``, m 3).

A program of its own, run by a Python that has ``bpy``, as ``PYTHON blender_flat.py FOLDER [centres]``: nothing but
edges is left in the pictures, each with contrast. With ``centres`` a pixel is the one ray through its centre.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "data_prep"))

import blender_render as renderer  # pyright: ignore[reportMissingImports]

PREPARE, ADD_MESH = renderer.prepare, renderer.add_mesh


def prepare(bpy: Any, scene: dict[str, Any]) -> Any:
    """Settings as they are, or of one ray through the centre of each pixel."""
    found = PREPARE(bpy, scene)
    if "centres" in sys.argv:
        found.cycles.samples, found.cycles.use_denoising = 1, False
        found.cycles.pixel_filter_type, found.cycles.filter_width = "GAUSSIAN", 0.01  # a box has no width
    return found


def add_mesh(bpy: Any, folder: Path, scene: dict[str, Any]) -> Any:
    """Mesh with a colour per face in place of its materials."""
    mesh = ADD_MESH(bpy, folder, scene)
    colours = np.load(folder / "colours.npy")
    layer = mesh.color_attributes.new(name="flat", type="FLOAT_COLOR", domain="CORNER")
    values = np.concatenate([colours, np.ones_like(colours[:, :1])], axis=1).astype(np.float32)
    layer.data.foreach_set("color", values.repeat(3, axis=0).ravel())
    made = bpy.data.materials.new("flat")
    made.use_nodes = True
    nodes, links = made.node_tree.nodes, made.node_tree.links
    nodes.clear()
    colour, shine, end = (nodes.new(f"ShaderNode{name}") for name in ("VertexColor", "Emission", "OutputMaterial"))
    colour.layer_name = "flat"
    links.new(colour.outputs["Color"], shine.inputs["Color"])
    links.new(shine.outputs["Emission"], end.inputs["Surface"])
    for number in range(len(mesh.materials)):
        mesh.materials[number] = made
    return mesh


renderer.prepare, renderer.add_mesh = prepare, add_mesh
renderer.main(Path(sys.argv[1]))
