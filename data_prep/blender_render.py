"""Render a folder that `data_prep.synthetic.blender` wrote, by Blender's Cycles on the CPU.

A program of its own, run by a Python that has ``bpy`` (GPL), as ``PYTHON blender_render.py FOLDER``; the package never
imports it. It knows ``scene.json``, ``static.npz``, arrays and images of the folder, nothing of four_d:

- ``scene.json``: width, height, samples, seed, ambient (2 3: from above, from below), sky (an open sky if true), hdri
  (path or null), tiles (file names), lights (colour, reach, sun), and moments: vertices and normals (file names),
  lights (positions), views (pose, intrinsics, out).
- ``static.npz``: triangles (m 3), uv (m 3 2, v down), tiles (m), gloss and shine (one per tile).

Axes as in shards: world z up, cameras x right, y down, z forward, pixel origin at the image corner. Writes the linear
radiance (h w 3, float32) of each view to its ``out``.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

BACKDROP_M = 20.0
"""Reach from which a light is a sun."""
SKY_STRENGTH = 0.06
"""Factor on Blender's sky, whose unit is physical, to the generator's."""


def load_bpy() -> Any:  # noqa: ANN401
    """Import Blender; exit with one line where it is missing."""
    try:
        return importlib.import_module("bpy")
    except ImportError as error:
        raise SystemExit(f"{sys.executable} cannot import bpy ({error})") from error


def prepare(bpy: Any, scene: dict[str, Any]) -> Any:  # noqa: ANN401
    """Empty scene with the settings of the renderer."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    found = bpy.context.scene
    found.render.engine = "CYCLES"
    found.cycles.device = "CPU"
    found.cycles.samples = scene["samples"]
    found.cycles.use_denoising = True
    found.cycles.use_adaptive_sampling = False
    found.cycles.max_bounces = 4
    found.cycles.pixel_filter_type = "BOX"  # a pixel is its own area
    found.cycles.filter_width = 1.0
    found.render.resolution_x, found.render.resolution_y = scene["width"], scene["height"]
    found.render.resolution_percentage = 100
    found.render.image_settings.file_format = "OPEN_EXR"
    found.render.image_settings.color_mode = "RGB"
    found.render.image_settings.color_depth = "32"
    return found


def add_mesh(bpy: Any, folder: Path, scene: dict[str, Any]) -> Any:  # noqa: ANN401
    """One mesh of all triangles, a material for each tile."""
    static = np.load(folder / "static.npz")
    triangles, uv, tiles = static["triangles"], static["uv"], static["tiles"]
    vertices = np.load(folder / scene["moments"][0]["vertices"])
    mesh = bpy.data.meshes.new("world")
    mesh.from_pydata(vertices.tolist(), [], triangles.tolist())
    layer = mesh.uv_layers.new(name="uv")
    flipped = uv.reshape(-1, 2) * np.array([1, -1], np.float32) + np.array([0, 1], np.float32)
    layer.data.foreach_set("uv", flipped.astype(np.float32).ravel())
    for number, name in enumerate(scene["tiles"]):
        mesh.materials.append(
            material(bpy, folder / name, float(static["gloss"][number]), float(static["shine"][number]))
        )
    mesh.polygons.foreach_set("material_index", tiles.astype(np.int32))
    mesh.polygons.foreach_set("use_smooth", np.ones(len(triangles), bool))
    thing = bpy.data.objects.new("world", mesh)
    bpy.context.scene.collection.objects.link(thing)
    return mesh


def material(bpy: Any, image: Path, gloss: float, shine: float) -> Any:  # noqa: ANN401
    """Material of one repeating texture."""
    made = bpy.data.materials.new(image.stem)
    made.use_nodes = True
    nodes, links = made.node_tree.nodes, made.node_tree.links
    surface = next(node for node in nodes if node.type == "BSDF_PRINCIPLED")
    surface.inputs["Specular IOR Level"].default_value = gloss
    surface.inputs["Roughness"].default_value = min(max((2 / (shine + 2)) ** 0.25, 0.15), 1.0)
    texture = nodes.new("ShaderNodeTexImage")
    texture.image = bpy.data.images.load(str(image))
    texture.extension, texture.interpolation = "REPEAT", "Linear"
    links.new(texture.outputs["Color"], surface.inputs["Base Color"])
    return made


def add_lights(bpy: Any, scene: dict[str, Any]) -> list[Any]:  # noqa: ANN401
    """Lamps and suns as strong as the generator's: irradiance ``colour`` at ``reach``, times π for what reflects."""
    found = []
    for number, light in enumerate(scene["lights"]):
        sun = light["reach"] >= BACKDROP_M
        data = bpy.data.lights.new(f"light{number}", "SUN" if sun else "POINT")
        strength = max(light["colour"])
        data.color = [value / strength for value in light["colour"]]
        if sun:
            data.energy, data.angle = math.pi * strength, math.radians(0.53)
        else:
            data.energy, data.shadow_soft_size = 4 * math.pi**2 * light["reach"] ** 2 * strength, 0.08
        thing = bpy.data.objects.new(f"light{number}", data)
        bpy.context.scene.collection.objects.link(thing)
        found.append(thing)
    return found


def add_surroundings(bpy: Any, scene: dict[str, Any]) -> None:  # noqa: ANN401
    """Background: an HDRI, an open sky with the sun where the first light is, or even light."""
    world = bpy.data.worlds.new("world")
    bpy.context.scene.world = world
    world.use_nodes = True
    nodes, links = world.node_tree.nodes, world.node_tree.links
    background = next(node for node in nodes if node.type == "BACKGROUND")
    if scene["hdri"]:
        texture = nodes.new("ShaderNodeTexEnvironment")
        texture.image = bpy.data.images.load(scene["hdri"])
        links.new(texture.outputs["Color"], background.inputs["Color"])
    elif scene["sky"]:
        texture = nodes.new("ShaderNodeTexSky")
        kinds = [item.identifier for item in texture.bl_rna.properties["sky_type"].enum_items]
        kind = next((kind for kind in ("MULTIPLE_SCATTERING", "NISHITA", "HOSEK_WILKIE") if kind in kinds), kinds[0])
        texture.sky_type = kind
        x, y, z = scene["moments"][0]["lights"][0]
        if hasattr(texture, "sun_elevation"):
            texture.sun_disc = False  # a light of its own
            texture.sun_elevation = math.atan2(z, math.hypot(x, y))
            texture.sun_rotation = math.atan2(x, y)
        background.inputs["Strength"].default_value = SKY_STRENGTH
        links.new(texture.outputs["Color"], background.inputs["Color"])
    else:
        above, below = scene["ambient"]
        background.inputs["Color"].default_value = [*((a + b) / 2 for a, b in zip(above, below, strict=True)), 1.0]


def place_lights(things: list[Any], positions: list[list[float]]) -> None:
    """Put lamps where they are at a moment; suns shine from there to the origin."""
    vector = importlib.import_module("mathutils").Vector
    for thing, position in zip(things, positions, strict=True):
        thing.location = position
        if thing.data.type == "SUN":
            thing.rotation_euler = vector(position).to_track_quat("Z", "Y").to_euler()


def set_camera(camera: Any, view: dict[str, Any], width: int, height: int) -> None:  # noqa: ANN401
    """Blender's camera looks along -z with y up; its shift is in widths of the image."""
    matrix = importlib.import_module("mathutils").Matrix
    pose = np.array(view["pose"]) @ np.diag([1.0, -1.0, -1.0, 1.0])
    camera.matrix_world = matrix(pose.tolist())
    (fx, _, cx), (_, _, cy), _ = view["intrinsics"]
    data = camera.data
    data.sensor_fit, data.sensor_width = "HORIZONTAL", 36.0
    data.lens = fx * 36.0 / width
    data.shift_x, data.shift_y = (width / 2 - cx) / width, (cy - height / 2) / width
    data.clip_start, data.clip_end = 0.01, 500.0


def render(bpy: Any, scene: Any, target: Path, size: tuple[int, int]) -> None:  # noqa: ANN401
    """Render the scene's camera and write the radiance (h w 3) to ``target``."""
    stored = target.with_suffix(".exr")
    scene.render.filepath = str(stored)
    bpy.ops.render.render(write_still=True)
    image = bpy.data.images.load(str(stored))
    image.colorspace_settings.name = "Non-Color"  # as it is
    values = np.empty(len(image.pixels), np.float32)
    image.pixels.foreach_get(values)
    pixels = values.reshape(size[1], size[0], -1)[::-1, :, :3]  # Blender's rows go up
    bpy.data.images.remove(image)
    stored.unlink()
    with target.open("wb") as stream:
        np.save(stream, np.ascontiguousarray(pixels))


def main(folder: Path) -> None:
    """Render all views of all moments."""
    bpy = load_bpy()
    wanted = json.loads((folder / "scene.json").read_text())
    scene = prepare(bpy, wanted)
    mesh = add_mesh(bpy, folder, wanted)
    lights = add_lights(bpy, wanted)
    add_surroundings(bpy, wanted)
    camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
    scene.collection.objects.link(camera)
    scene.camera = camera
    size = (wanted["width"], wanted["height"])
    for number, moment in enumerate(wanted["moments"]):
        mesh.vertices.foreach_set("co", np.load(folder / moment["vertices"]).astype(np.float32).ravel())
        mesh.normals_split_custom_set(np.load(folder / moment["normals"]).reshape(-1, 3).tolist())
        mesh.update()
        place_lights(lights, moment["lights"])
        for view in moment["views"]:
            set_camera(camera, view, *size)
            scene.cycles.seed = (wanted["seed"] + number) % (2**31)
            render(bpy, scene, folder / view["out"], size)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
