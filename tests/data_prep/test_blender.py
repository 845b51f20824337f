"""Blender's pictures: what is written for it, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("embreex", reason="needs the extra synth")
pytest.importorskip("mujoco", reason="needs the extra synth")

from data_prep.synthetic import WorldSettings, generate, make
from data_prep.synthetic.blender import write_scene
from data_prep.synthetic.effects import Effects, between
from data_prep.synthetic.world import compose
from four_d.errors import UserError
from four_d.formats.glb import to_linear

SETTINGS = WorldSettings(
    cameras=1, frames=2, width=64, height=48, duration_s=(0.2, 0.25), samples=32, blender=Path("p")
)
PLAIN = replace(SETTINGS, samples=64, blender=None)
FLAT = Path(__file__).with_name("blender_flat.py")
PYTHON = os.environ.get("FOUR_D_BLENDER")
needs_blender = pytest.mark.skipif(PYTHON is None, reason="FOUR_D_BLENDER does not name a Python that has bpy")


def test_a_scene_is_that_of_our_own_rays(tmp_path: Path) -> None:
    world = compose(3, PLAIN)
    assert write_scene(tmp_path, world, Effects(shutter=0.5), SETTINGS, 3) == 8
    scene = json.loads((tmp_path / "scene.json").read_text())
    assert (scene["width"], scene["height"], scene["samples"], scene["seed"]) == (64, 48, 4, 3)
    assert len(scene["moments"]) == 16
    static = np.load(tmp_path / "static.npz")
    assert np.array_equal(static["triangles"], world.stage.triangles)
    assert len(static["gloss"]) == len(static["shine"]) == len(scene["tiles"]) == len(world.stage.atlas.sizes)
    for number, moment in ((0, scene["moments"][0]), (13, scene["moments"][13])):
        time = number // 8 + Effects(shutter=0.5).offsets()[number % 8]
        wanted = between(world.stage, float(time))
        np.testing.assert_array_equal(np.load(tmp_path / moment["vertices"]), wanted.vertices_at(0))
        np.testing.assert_array_equal(np.load(tmp_path / moment["normals"]), wanted.normals_at(0))
        assert len(moment["lights"]) == len(scene["lights"])
    with Image.open(tmp_path / scene["tiles"][0]) as image:
        np.testing.assert_allclose(to_linear(np.asarray(image) / 255), world.stage.atlas.finest(0), atol=0.01)


def test_a_python_without_blender_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot render: .*No module named 'bpy'.*environment of its own"):
        make(tmp_path / "out", range(1), 1, settings=replace(SETTINGS, blender=Path(sys.executable)))
    with pytest.raises(UserError, match="does not start"):
        make(tmp_path / "out", range(1), 1, settings=replace(SETTINGS, blender=tmp_path / "none"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"effects": ("fog",)}, "no fog"),
        ({"rolling_shutter_s": 0.01}, "no rolling shutter"),
        ({"samples": 0}, "samples is 0"),
        ({"blender": None}, "samples is of Blender's pictures"),
        ({"blender": None, "samples": 64, "hdri": Path("a.hdr")}, "hdri is of Blender's pictures"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        replace(SETTINGS, **changes)  # pyright: ignore[reportArgumentType]


@needs_blender
@pytest.mark.slow
def test_pictures_show_the_faces_of_the_truth(tmp_path: Path) -> None:
    """In flat colours: through the pixels' centres each face to the pixel; of whole pixels each edge within one."""
    settings = replace(PLAIN, width=128, height=96, soft=(1, 1), cloths=(1, 1))
    write_scene(tmp_path, compose(5, settings), Effects(), replace(settings, samples=32, blender=Path("p")), 5)
    surface = generate(5, settings).surface
    assert surface is not None
    assert (surface.faces >= 0).all()  # a room
    rng = np.random.default_rng(0)
    np.save(tmp_path / "colours.npy", rng.uniform(0, 1, (len(surface.triangles), 3)))
    for time, picture in enumerate(flat_pictures(tmp_path, "centres")):
        colours = np.load(tmp_path / "colours.npy")[surface.faces[time]]
        assert np.abs(picture - colours).max() < 1e-4

    things = rng.uniform(0, 1, (int(surface.instances.max()) + 1, 3))
    np.save(tmp_path / "colours.npy", things[surface.instances])
    for time, picture in enumerate(flat_pictures(tmp_path)):
        shown = surface.instances[surface.faces[time]]
        sides = (shown, picture), (shown.T, picture.transpose(1, 0, 2))
        moved = np.concatenate([misplaced(*side, things) for side in sides])
        assert len(moved) > 100
        assert (np.abs(moved) <= 1).mean() > 0.99
        assert abs(moved.mean()) < 0.05


def flat_pictures(folder: Path, *how: str) -> list[np.ndarray]:
    """Pictures of a folder's scene, rendered by Blender in the colours of its faces."""
    done = subprocess.run([str(PYTHON), str(FLAT), str(folder), *how], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return [np.load(path) for path in sorted(folder.glob("radiance-*.npy"))]


def misplaced(shown: np.ndarray, picture: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Pixels by which edges of ``picture`` along its rows lie right of those of ``shown`` (h w), 3 pixels from others.

    An edge within a pixel is where that pixel's colour lies between those of both sides.
    """
    near = np.lib.stride_tricks.sliding_window_view(shown, 6, axis=1)
    left, right = near[..., 2], near[..., 3]
    edges = (near[..., :3] == left[..., None]).all(-1) & (near[..., 3:] == right[..., None]).all(-1) & (left != right)
    pixels = np.lib.stride_tricks.sliding_window_view(picture, 6, axis=1)[edges]  # n 3 6
    from_right = colours[left[edges]] - colours[right[edges]]
    shares = (pixels - colours[right[edges]][..., None]) * from_right[..., None]
    return (shares.sum(1) / (from_right**2).sum(-1, keepdims=True)).sum(-1) - 3
