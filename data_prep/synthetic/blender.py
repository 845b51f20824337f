"""Pictures of a world by Blender, as another program; the truth stays that of our own rays.

A clip's scene goes to a folder (`write_scene`), ``data_prep/blender_render.py`` renders it under a Python that has
``bpy``, and the radiance comes back. Nothing of Blender is imported here.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep import blender_render
from data_prep.synthetic.effects import Effects, between, camera_between
from data_prep.synthetic.settings import WorldSettings
from data_prep.synthetic.world import World
from four_d.errors import UserError
from four_d.formats.glb import to_srgb

Floats = NDArray[np.float32]
PROGRAM = Path(blender_render.__file__)
SHOWN_LINES = 4
"""Last lines of the program's errors that are shown."""


def check_blender(python: Path) -> None:
    """Raise UserError unless ``python`` can import ``bpy``."""
    try:
        _run([str(python), "-c", "import bpy"], python)
    except UserError as error:
        raise UserError(
            f"{error}. Blender's module in an environment of its own: docs/data.md, Blender's pictures"
        ) from error


def render(world: World, effects: Effects, settings: WorldSettings, seed: int) -> Floats:
    """Radiance (c t h w 3) of all frames. UserError if Blender fails."""
    assert settings.blender is not None
    with tempfile.TemporaryDirectory(prefix="four_d_blender_") as name:
        folder = Path(name)
        count = write_scene(folder, world, effects, settings, seed)
        _run([str(settings.blender), str(PROGRAM), name], settings.blender)
        frames = [
            np.mean([np.load(folder / _out(camera, time, step)) for step in range(count)], axis=0)
            for camera in range(settings.cameras)
            for time in range(settings.frames)
        ]
    shape = (settings.cameras, settings.frames, settings.height, settings.width, 3)
    return np.stack(frames).reshape(shape).astype(np.float32)


def _out(camera: int, time: int, step: int) -> str:
    return f"radiance-{camera:02d}-{time:03d}-{step:02d}.npy"


def _run(command: list[str], python: Path) -> None:
    """Run a program of ``python``. UserError with its last lines if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"{python} does not start ({error.strerror}); give the Python that has bpy") from error
    if done.returncode:
        told = " / ".join((done.stderr or done.stdout).strip().splitlines()[-SHOWN_LINES:])
        end = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise UserError(f"{python} cannot render: it ended with {end}, and said: {told or 'nothing'}")


def write_scene(folder: Path, world: World, effects: Effects, settings: WorldSettings, seed: int) -> int:
    """Write what `blender_render` reads; return the number of pictures for each frame, whose mean is its exposure."""
    stage, offsets = world.stage, effects.offsets()
    names = [f"tile-{number:03d}.png" for number in range(len(stage.atlas.sizes))]
    for number, name in enumerate(names):
        tile = np.round(to_srgb(stage.atlas.finest(number)).clip(0, 1) * 255).astype(np.uint8)
        Image.fromarray(tile).save(folder / name)
    first = {int(tile): int(face) for tile, face in zip(*np.unique(stage.tiles, return_index=True))}
    looks = np.array(
        [(stage.gloss[first[i]], stage.shine[first[i]]) if i in first else (0, 8) for i in range(len(names))]
    )
    np.savez(
        folder / "static.npz",
        triangles=stage.triangles,
        uv=stage.uv,
        tiles=stage.tiles,
        gloss=looks[:, 0],
        shine=looks[:, 1],
    )
    moments: list[dict[str, object]] = []
    for time in range(settings.frames):
        for step, offset in enumerate(offsets):
            posed = between(stage, time + offset)
            name = f"{time:03d}-{step:02d}.npy"
            np.save(folder / f"vertices-{name}", posed.vertices_at(0))
            np.save(folder / f"normals-{name}", posed.normals_at(0))
            views = [(camera, camera_between(path, time + offset)) for camera, path in enumerate(world.cameras)]
            moments.append(
                {
                    "vertices": f"vertices-{name}",
                    "normals": f"normals-{name}",
                    "lights": [light.at(0).tolist() for light in posed.lights],
                    "views": [
                        {
                            "pose": path.world_from_camera[0].tolist(),
                            "intrinsics": path.intrinsics.tolist(),
                            "out": _out(camera, time, step),
                        }
                        for camera, path in views
                    ],
                }
            )
    scene = {
        "width": settings.width,
        "height": settings.height,
        "samples": max(settings.samples // len(offsets), 1),
        "seed": seed,
        "ambient": stage.sky.tolist(),
        "sky": not world.lid,
        "hdri": None if settings.hdri is None else str(settings.hdri.resolve()),
        "tiles": names,
        "lights": [{"colour": light.colour.tolist(), "reach": light.reach} for light in stage.lights],
        "moments": moments,
    }
    (folder / "scene.json").write_text(json.dumps(scene))
    return len(offsets)
