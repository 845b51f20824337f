"""Pictures for docs/data.md: excerpts of sources by `four-d data show`, and synthetic worlds.

    python benchmarks/gallery.py [--only effects|bending|assets|rolling] [--out docs/images]
    python benchmarks/gallery.py --only blender --blender PYTHON

The excerpts are those of ``../shared/samples`` (`tests/data/excerpts.py`) whose licence allows it; they go to
``sources``. Pictures are made smaller, as JPEG.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data_prep.synthetic import WorldSettings, generate
from data_prep.synthetic.meshes import TRAIN_SHAPES, make_shape
from data_prep.synthetic.settings import Effect
from four_d.data.contract import RawClip
from four_d.data.show import draw
from four_d.outputs import new_file
from four_d.surface import decode
from four_d.surface import normals as surface_normals
from four_d.types import Cameras
from tests.data.excerpts import SHOWN

WIDTH = 900
"""Largest width of a picture in pixels."""
ONE = WorldSettings(cameras=1, frames=8, width=200, height=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of the pictures")
    parser.add_argument("--only", help="name of one picture to make")
    parser.add_argument("--blender", type=Path, help="Python that has bpy; without it that picture is left out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pictures = {f"sources/{name}": lambda make=make: sheet(make()) for name, make in SHOWN.items()}
    made = {"effects": effects, "bending": bending, "assets": assets, "rolling": rolling}
    if arguments.blender is not None:
        made["blender"] = lambda: blender(arguments.blender)
    for name, draw_it in {**pictures, **made}.items():
        if arguments.only in (None, name):
            path = arguments.out / f"{name}.jpg"
            with new_file(path) as partial:
                draw_it().save(partial, format="jpeg", quality=82, optimize=True)
            print(path, path.stat().st_size)


def effects(seed: int = 3) -> Image.Image:
    """Draw three frames of one world without effects, with each, and with all; two columns of rows."""
    kinds: list[tuple[Effect, ...]] = [(), *((kind,) for kind in get_args(Effect)), get_args(Effect)]
    rows: list[NDArray[np.uint8]] = []
    for chosen in kinds:
        settings = WorldSettings(cameras=1, frames=8, width=160, height=120, duration_s=(0.5, 0.6), effects=chosen)
        rows.append(np.concatenate(list(generate(seed, settings).images[[0, 3, 7]]), 1))
    half = len(rows) // 2
    return Image.fromarray(np.concatenate([np.concatenate(rows[:half]), np.concatenate(rows[half:])], 1))


def bending() -> Image.Image:
    """Draw four frames of two worlds with soft bodies and cloth; below each, its surfaces' normals."""
    rows: list[NDArray[np.uint8]] = []
    for seed in (1, 4):
        settings = replace(ONE, soft=(1, 2), cloths=(1, 2), objects=(3, 5), duration_s=(0.9, 1.1))
        clip = generate(seed, settings)
        rows += [np.concatenate(list(pictures[[0, 3, 5, 7]]), 1) for pictures in (clip.images, normals(clip))]
    return Image.fromarray(np.concatenate(rows))


def normals(clip: RawClip) -> NDArray[np.uint8]:
    """Colour the normals of each pixel's face, towards the camera (f h w 3)."""
    assert clip.surface is not None
    assert clip.world_from_camera is not None
    assert clip.intrinsics is not None
    truth = decode(clip.surface, clip.info)
    poses = torch.from_numpy(clip.world_from_camera).float()
    cameras = Cameras(world_from_camera=poses, intrinsics=torch.from_numpy(clip.intrinsics).float())
    found = surface_normals(truth, cameras, torch.tensor(clip.info.times)) @ poses[:, None, :3, :3]
    return ((found * 0.5 + 0.5) * 255).round().byte().numpy()


def assets(seed: int = 5) -> Image.Image:
    """Draw three frames of one world as it is, with photographs (of two excerpts), and with textured meshes too."""
    with tempfile.TemporaryDirectory() as name:
        folder, scans = Path(name) / "photographs", Path(name) / "scans"
        folder.mkdir()
        for source in ("sintel", "bikes"):
            for number, image in enumerate(SHOWN[source]().images[::2]):
                Image.fromarray(image).save(folder / f"{source}_{number}.png")
        for number, shape in enumerate(("vase", "box", "torus")):
            write_scan(scans / shape, shape, folder / f"sintel_{number % 2}.png")
        plain = replace(ONE, objects=(5, 8))
        with_photographs = replace(plain, photographs=folder)
        rows = [generate(seed, each).images[[0, 3, 7]] for each in (plain, with_photographs)]
        rows.append(generate(seed, replace(with_photographs, meshes=scans)).images[[0, 3, 7]])
    return Image.fromarray(np.concatenate([np.concatenate(list(row), 1) for row in rows]))


def write_scan(folder: Path, shape: str, photograph: Path) -> None:
    """Write one of our shapes as Google Scanned Objects are, with a photograph wrapped around it."""
    _, mesh = make_shape(np.random.default_rng(0), {shape: TRAIN_SHAPES[shape]})
    (folder / "meshes").mkdir(parents=True)
    (folder / "materials" / "textures").mkdir(parents=True)
    x, y, z = mesh.vertices.T
    around = np.arctan2(y, x) / (2 * np.pi) + 0.5
    lines = ["mtllib model.mtl", "usemtl material_0"]
    lines += [f"v {a:.5f} {b:.5f} {c:.5f}\nvt {u:.5f} {c + 0.5:.5f}" for a, b, c, u in zip(x, y, z, around)]
    lines += ["f " + " ".join(f"{i + 1}/{i + 1}" for i in face) for face in mesh.triangles]
    (folder / "meshes" / "model.obj").write_text("\n".join(lines))
    (folder / "meshes" / "model.mtl").write_text("newmtl material_0\nmap_Kd texture.png\n")
    with Image.open(photograph) as image:
        image.save(folder / "materials" / "textures" / "texture.png")


def blender(python: Path, seed: int = 1) -> Image.Image:
    """Draw open ground under a sky, in two frames, by our own rays and by Blender's."""
    settings = replace(ONE, frames=2, duration_s=(0.3, 0.35), scenes=("open",))
    both = (settings, replace(settings, blender=python, samples=32))
    return Image.fromarray(np.concatenate([np.concatenate(list(generate(seed, each).images), 1) for each in both]))


def rolling(seed: int = 3) -> Image.Image:
    """Draw three frames of a world of fast cameras, all rows at once, and below from top to bottom within 60 ms."""
    fast = replace(ONE, frames=8, duration_s=(0.5, 0.6), paths=("pan",), views="varied")
    rows = [generate(seed, each).images[[1, 3, 6]] for each in (fast, replace(fast, rolling_shutter_s=0.06))]
    return Image.fromarray(np.concatenate([np.concatenate(list(row), 1) for row in rows]))


def sheet(clip: RawClip) -> Image.Image:
    """Draw a clip's frames as `data show` does, at most `WIDTH` wide."""
    image = Image.fromarray(draw(clip)["frames"])
    image.thumbnail((WIDTH, WIDTH * 4), Image.Resampling.LANCZOS)
    return image


if __name__ == "__main__":
    main()
