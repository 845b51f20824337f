"""Blender's pictures: what is written for it, and what is refused."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("embreex", reason="needs the extra synth")
pytest.importorskip("mujoco", reason="needs the extra synth")

from data_prep.synthetic import WorldSettings, make
from data_prep.synthetic.blender import write_scene
from data_prep.synthetic.effects import Effects, between
from data_prep.synthetic.world import compose
from four_d.errors import UserError
from four_d.formats.glb import to_linear

SETTINGS = WorldSettings(
    cameras=1, frames=2, width=64, height=48, duration_s=(0.2, 0.25), samples=32, blender=Path("p")
)
PLAIN = replace(SETTINGS, samples=64, blender=None)


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
