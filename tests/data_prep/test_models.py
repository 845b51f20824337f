"""Textured meshes in the layouts of GSO, ShapeNet and Objaverse, written here file by file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("embreex", reason="needs the extra synth")
pytest.importorskip("mujoco", reason="needs the extra synth")
pytest.importorskip("trimesh", reason="needs the extra synth")

import trimesh

from data_prep.synthetic import WorldSettings, generate, make
from data_prep.synthetic.models import Model, Models
from four_d.data.contract import problems
from four_d.errors import UserError
from four_d.formats.glb import to_linear

RED, GREEN, BLUE = (200, 30, 30), (30, 200, 30), (30, 30, 200)
# corners of a box 2 × 1 × 4, its longest side along the model's own up axis (z of GSO, y of the others)
UP = {"gso": 2, "shapenet": 1, "objaverse": 1}


def corners(up: int) -> np.ndarray:
    box = np.array([[x, y, z] for x in (0, 2) for y in (0, 1) for z in (0, 4)], float)
    return box if up == 2 else box[:, [0, 2, 1]] * [1, 1, -1]  # x z -y: turned, not mirrored


FACES = np.array(
    [
        [0, 1, 3],
        [0, 3, 2],
        [4, 6, 7],
        [4, 7, 5],
        [0, 4, 5],
        [0, 5, 1],
        [2, 3, 7],
        [2, 7, 6],
        [0, 2, 6],
        [0, 6, 4],
        [1, 5, 7],
        [1, 7, 3],
    ]
)


def halves(size: int = 16) -> np.ndarray:
    """Image: red above, green below."""
    image = np.zeros((size, size, 3), np.uint8)
    image[: size // 2], image[size // 2 :] = RED, GREEN
    return image


def obj(up: int, material: str, groups: list[str]) -> str:
    """OBJ of the box: texture v is 1 at the top of the model, so that red is above."""
    lines = [f"mtllib {material}"]
    lines += ["v {:g} {:g} {:g}".format(*corner) for corner in corners(up)]
    lines += [f"vt 0.3 {0.1 + 0.8 * z / 4:g}" for z in (0, 4)]
    step = len(FACES) // len(groups)
    for number, group in enumerate(groups):
        lines.append(f"usemtl {group}")
        for face in FACES[number * step : (number + 1) * step]:
            lines.append("f " + " ".join(f"{corner + 1}/{corner % 2 + 1}" for corner in face))
    return "\n".join(lines) + "\n"


def write_gso(folder: Path, name: str = "Blue_Shoe") -> None:
    (folder / name / "meshes").mkdir(parents=True)
    (folder / name / "materials" / "textures").mkdir(parents=True)
    (folder / name / "meshes" / "model.obj").write_text(obj(2, "model.mtl", ["material_0"]))
    (folder / name / "meshes" / "model.mtl").write_text("newmtl material_0\nKd 1 1 1\nmap_Kd texture.png\n")
    Image.fromarray(halves()).save(folder / name / "materials" / "textures" / "texture.png")


def write_shapenet(folder: Path, image: str = "../images/texture0.png", name: str = "1a2b") -> None:
    root = folder / "02691156" / name
    (root / "models").mkdir(parents=True)
    (root / "images").mkdir()
    (root / "models" / "model_normalized.obj").write_text(obj(1, "model_normalized.mtl", ["painted", "plain"]))
    (root / "models" / "model_normalized.mtl").write_text(
        f"newmtl painted\nKd 1 1 1\nmap_Kd {image}\n\nnewmtl plain\nKd {30 / 255:.6f} {30 / 255:.6f} {200 / 255:.6f}\n"
    )
    Image.fromarray(halves()).save(root / "images" / "texture0.png")


def write_objaverse(folder: Path, name: str = "000-023/9f8e") -> None:
    path = folder / f"{name}.glb"
    path.parent.mkdir(parents=True, exist_ok=True)
    points = corners(1)[FACES.reshape(-1)]  # own corners for each face
    uv = np.stack([np.full(len(points), 0.3), 0.1 + 0.8 * (FACES.reshape(-1) % 2)], -1)
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(halves()))
    faces = np.arange(len(points)).reshape(-1, 3)
    visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    mesh = trimesh.Trimesh(points, faces, visual=visual, process=False)
    scene = trimesh.Scene()
    scene.add_geometry(mesh, transform=trimesh.transformations.scale_matrix(3.0))
    path.write_bytes(scene.export(file_type="glb"))


WRITERS = {"gso": write_gso, "shapenet": write_shapenet, "objaverse": write_objaverse}
NAMES = {"gso": "Blue_Shoe", "shapenet": "1a2b", "objaverse": "9f8e"}


def only(folder: Path) -> Model:
    return Models(folder).draw(np.random.default_rng(0))


def linear(colour: tuple[int, int, int]) -> np.ndarray:
    return np.clip(to_linear(np.array(colour) / 255), 0.02, 0.9)


@pytest.mark.parametrize("layout", WRITERS)
def test_a_layout_is_read_upright_of_size_one_with_its_texture(tmp_path: Path, layout: str) -> None:
    WRITERS[layout](tmp_path)
    model = only(tmp_path)
    assert model.name == NAMES[layout]
    np.testing.assert_allclose(np.ptp(model.mesh.vertices, axis=0), [0.5, 0.25, 1.0], atol=1e-6)
    np.testing.assert_allclose(model.mesh.vertices.max(0) + model.mesh.vertices.min(0), 0, atol=1e-6)
    a, b, c = (model.mesh.vertices[model.mesh.triangles[:, i]] for i in range(3))
    assert np.einsum("ij,ij->", a, np.cross(b, c)) / 6 == pytest.approx(0.5 * 0.25 * 1.0)  # outwards, not mirrored
    np.testing.assert_allclose(np.ptp(model.mesh.parts[0], axis=0), [0.5, 0.25, 1.0], atol=1e-6)
    skin = max(model.skins, key=lambda skin: len(skin.tile))
    heights = model.mesh.vertices[model.mesh.triangles[skin.faces]][..., 2]
    side = len(skin.tile)
    rows = np.clip((skin.uv[..., 1] * side).astype(int), 0, side - 1)
    columns = np.clip((skin.uv[..., 0] * side).astype(int), 0, side - 1)
    shown = skin.tile[rows, columns]
    np.testing.assert_allclose(shown[heights > 0], np.broadcast_to(linear(RED), shown[heights > 0].shape), atol=0.01)
    np.testing.assert_allclose(shown[heights < 0], np.broadcast_to(linear(GREEN), shown[heights < 0].shape), atol=0.01)
    assert sum(s.faces.stop - s.faces.start for s in model.skins) == len(model.mesh.triangles) == 12


def test_materials_of_one_model_stay_apart_and_may_be_plain(tmp_path: Path) -> None:
    write_shapenet(tmp_path)
    painted, plain = sorted(only(tmp_path).skins, key=lambda skin: -len(skin.tile))
    assert painted.tile.shape[0] == 16
    np.testing.assert_allclose(plain.tile[0, 0], linear(BLUE), atol=0.01)


def test_no_file_outside_the_models_folder_is_read(tmp_path: Path) -> None:
    Image.fromarray(halves()).save(tmp_path / "secret.png")
    write_shapenet(tmp_path, image="../../../secret.png")
    tiles = [skin.tile.shape[0] for skin in only(tmp_path).skins]
    assert max(tiles) == 1


def test_what_cannot_be_used_is_named_and_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_objaverse(tmp_path)
    (tmp_path / "aaa.glb").write_bytes(b"glTF and nothing more")
    flat = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]], process=False)
    (tmp_path / "flat.glb").write_bytes(trimesh.Scene(flat).export(file_type="glb"))
    assert {Models(tmp_path).draw(np.random.default_rng(seed)).name for seed in range(12)} == {"9f8e"}
    assert "aaa.glb cannot be used" in caplog.text
    assert "flat.glb cannot be used as a body (it is flat)" in caplog.text
    (tmp_path / "000-023" / "9f8e.glb").unlink()
    with pytest.raises(UserError, match="none of the 2 meshes"):
        only(tmp_path)


def test_a_folder_of_something_else_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "scene.ply").write_text("")
    with pytest.raises(UserError, match="holds no meshes that are known"):
        make(tmp_path / "out", range(1), 1, settings=WorldSettings(meshes=tmp_path / "set"))
    assert not (tmp_path / "out").exists()


def test_clips_show_the_meshes_and_name_them(tmp_path: Path) -> None:
    for write in WRITERS.values():
        write(tmp_path)
    settings = WorldSettings(
        cameras=1, frames=2, width=32, height=24, antialias=False, duration_s=(0.2, 0.25), moving=(0.0, 0.9)
    )
    settings = replace(settings, objects=(4, 6), meshes=tmp_path)
    clip = generate(3, settings)
    assert problems(clip) == []
    shown = {thing.name for thing in clip.info.objects} & set(NAMES.values())
    assert shown
    assert clip.info.licence == "unknown"
    assert clip.info.generator is not None
    named = clip.info.generator["meshes"]
    assert {Path(str(name)).name for name in json.loads(json.dumps(named))} <= {
        "model.obj",
        "model_normalized.obj",
        "9f8e.glb",
    }
    assert clip.surface is not None
    instance = [thing.name in shown for thing in clip.info.objects].index(True)
    assert (clip.surface.instances == instance).sum() == 12
    assert np.array_equal(generate(3, settings).images, clip.images)
