"""Photographs on surfaces: upright, not mirrored, in their colours; broken ones named; worlds as without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("embreex", reason="needs the extra synth")
pytest.importorskip("mujoco", reason="needs the extra synth")

from data_prep.synthetic import WorldSettings, generate, make
from data_prep.synthetic.meshes import Mesh, cuboid
from data_prep.synthetic.pictures import Photographs, cover, square, tile_of
from data_prep.synthetic.room import Painter, make_place, make_surroundings, spread
from data_prep.synthetic.stage import Material, box_uv
from data_prep.synthetic.textures import make_atlas
from four_d.errors import UserError
from four_d.formats.glb import to_linear

SETTINGS = WorldSettings(cameras=1, frames=2, width=32, height=24, antialias=False, duration_s=(0.2, 0.25))
# where a viewer's right hand is, for a wall whose inner side faces each way
RIGHT = {(0, 1): (1, 1), (0, -1): (1, -1), (1, 1): (0, -1), (1, -1): (0, 1)}


def quarters(size: tuple[int, int] = (40, 60)) -> np.ndarray:
    """Image (h w 3): top left red, top right green, bottom left blue, bottom right white."""
    height, width = size
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = (200, 30, 30)
    image[: height // 2, width // 2 :] = (30, 200, 30)
    image[height // 2 :, : width // 2] = (30, 30, 200)
    image[height // 2 :, width // 2 :] = (220, 220, 220)
    return image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    Image.fromarray(quarters()).save(tmp_path / "b.png")
    Image.fromarray(quarters()[::-1]).save(tmp_path / "deep" / "a.jpg")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def wall(axis: int, sign: int) -> Mesh:
    """Upright rectangle 2 wide and 1 high in the plane of ``axis``, which faces along ``sign`` of it."""
    points = np.zeros((4, 3))
    points[:, 1 - axis], points[:, 2] = [-1, 1, 1, -1], [0, 0, 1, 1]
    triangles = np.array([[0, 1, 2], [0, 2, 3]])
    normal = np.cross(points[1] - points[0], points[2] - points[0])[axis]
    return Mesh(vertices=points, triangles=triangles if normal * sign > 0 else triangles[:, ::-1], parts=())


def seen(mesh: Mesh, uv: np.ndarray, axis: int, sign: int, right: float, up: float, tile: np.ndarray) -> np.ndarray:
    """Colour at a place of a wall, ``right`` and ``up`` in the viewer's terms, -1 to 1 and 0 to 1."""
    along, direction = RIGHT[axis, sign]
    target = np.zeros(3)
    target[along], target[2] = direction * right, up
    for face, corners in enumerate(mesh.vertices[mesh.triangles]):
        basis = np.stack([corners[1] - corners[0], corners[2] - corners[0]], -1)
        b, *_ = np.linalg.lstsq(basis, target - corners[0], rcond=None)
        if b.min() >= -1e-9 and b.sum() <= 1 + 1e-9:
            at = uv[face, 0] * (1 - b.sum()) + uv[face, 1] * b[0] + uv[face, 2] * b[1]
            atlas = make_atlas([tile])
            return atlas.sample(np.zeros(1, np.int32), at[None].astype(np.float32), np.zeros(1, np.float32))[0]
    raise AssertionError


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_backdrop_is_upright_and_not_mirrored_on_any_wall(axis: int, sign: int) -> None:
    mesh, tile = wall(axis, sign), tile_of(quarters(), 64)
    uv, width, height = spread(mesh)
    assert (width, height) == (2, 1)
    found = [seen(mesh, uv, axis, sign, x, y, tile) for x, y in ((-0.5, 0.75), (0.5, 0.75), (-0.5, 0.25), (0.5, 0.25))]
    assert [int(colour.argmax()) for colour in found[:3]] == [0, 1, 2]
    assert found[3].min() > 0.5
    np.testing.assert_allclose(found[0], np.clip(to_linear(np.array([200, 30, 30]) / 255), 0.02, 0.9), atol=1e-3)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_photograph_as_texture_is_upright_and_not_mirrored(axis: int, sign: int) -> None:
    mesh = wall(axis, sign)
    material = Material(tile=0, metres=2.0, shift=(0.0, 0.0), gloss=0.0, shine=8.0, upright=True)
    uv = box_uv(mesh, material)
    step = [seen(mesh, uv, axis, sign, x, 0.5, np.tile(ramp()[None, :, None], (64, 1, 3))) for x in (0.2, 0.4, 0.6)]
    assert step[0][0] < step[1][0] < step[2][0]  # grows to the right
    fall = [seen(mesh, uv, axis, sign, 0.3, y, np.tile(ramp()[:, None, None], (1, 64, 3))) for y in (0.7, 0.5, 0.3)]
    assert fall[0][0] < fall[1][0] < fall[2][0]  # and downwards


def ramp() -> np.ndarray:
    return np.linspace(0.05, 0.85, 64).astype(np.float32)


def test_exif_orientation_and_grey_and_transparent_files_are_read_as_they_look(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter clockwise
    lying = np.rot90(quarters())  # stored a quarter turned the other way
    Image.fromarray(np.ascontiguousarray(lying)).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(np.full((8, 8), 100, np.uint8)).save(tmp_path / "grey.png")
    clear = np.concatenate([quarters((8, 8)), np.full((8, 8, 1), 255, np.uint8)], -1)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    found = {}
    for seed in range(20):
        name, pixels = Photographs(tmp_path).draw(np.random.default_rng(seed))
        found[name] = pixels
    assert np.array_equal(found["turned.png"], quarters())
    assert (found["grey.png"] == 100).all()
    assert found["grey.png"].shape == (8, 8, 3)
    assert np.array_equal(found["clear.png"], quarters((8, 8)))


def test_windows_have_the_proportions_asked_for() -> None:
    rng, pixels = np.random.default_rng(0), np.zeros((40, 60, 3), np.uint8)
    assert cover(rng, pixels, 3.0, 1.0).shape[:2] == (20, 60)
    assert cover(rng, pixels, 1.0, 2.0).shape[:2] == (40, 20)
    height, width = square(rng, pixels).shape[:2]
    assert 20 <= height == width <= 40


def test_broken_files_are_named_and_replaced(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "broken.png").write_bytes(b"no image at all")
    whole = (folder / "deep" / "a.jpg").read_bytes()
    (folder / "cut.png").write_bytes((folder / "b.png").read_bytes()[:60])
    assert len(whole) > 60
    pictures = Photographs(folder)
    pictures.check()
    assert "broken.png" in caplog.text
    names = {pictures.draw(np.random.default_rng(seed))[0] for seed in range(20)}
    assert names == {"b.png", "deep/a.jpg"}
    for path in ("b.png", "deep/a.jpg"):
        (folder / path).write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 4 images in .* can be read"):
        Photographs(folder).check()


def test_a_folder_without_images_or_none_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for where, told in ((tmp_path / "empty", "holds no images"), (tmp_path / "none", "is no folder")):
        with pytest.raises(UserError, match=told):
            make(tmp_path / "out", range(1), 1, settings=replace(SETTINGS, photographs=where))
    assert not (tmp_path / "out").exists()


def test_photographs_change_pictures_and_no_truth_and_clips_name_them(folder: Path) -> None:
    plain = generate(3, SETTINGS)
    settings = replace(SETTINGS, photographs=folder, assets_licence="CC-BY-4.0")
    clip, again = generate(3, settings), generate(3, settings)
    assert np.array_equal(clip.images, again.images)
    assert np.abs(clip.images.astype(int) - plain.images).mean() > 3
    assert clip.surface is not None
    assert plain.surface is not None
    for name in ("faces", "barycentric", "vertices", "moving_vertices"):
        assert np.array_equal(getattr(clip.surface, name), getattr(plain.surface, name))
    assert clip.info.licence == "CC-BY-4.0"
    assert plain.info.licence == "CC0-1.0"
    assert clip.info.generator is not None
    assert set(clip.info.generator["photographs"]) <= {"b.png", "deep/a.jpg"}  # pyright: ignore[reportArgumentType]
    assert clip.info.generator["settings"]["photographs"] == folder.name  # pyright: ignore[reportIndexIssue]
    assert str(folder.parent) not in str(clip.info)


def test_pictures_on_walls_and_some_walls_show_one_photograph_each(folder: Path) -> None:
    rng = np.random.default_rng(0)
    painter = Painter(rng, False, 64, Photographs(folder))
    pieces = make_surroundings(rng, make_place(rng, ("room",)), painter)
    covered = [piece for piece in pieces if piece.uv is not None]
    assert any(piece.mesh.parts for piece in covered)  # pictures
    assert any(not piece.mesh.parts for piece in covered)  # walls
    assert all(piece.material.upright for piece in covered)
    assert all(piece.uv is None for piece in pieces if np.ptp(piece.mesh.vertices[:, 2]) < 0.01)  # not floor, ceiling
    assert set(painter.shown) <= {"b.png", "deep/a.jpg"}
    uv, width, height = spread(cuboid((0.05, 1.2, 0.8)))
    assert (width, height) == (pytest.approx(1.2), pytest.approx(0.8))
    assert uv.min() >= -1e-6
    assert uv.max() <= 1 + 1e-6


def test_a_licence_without_files_of_others_is_refused() -> None:
    with pytest.raises(UserError, match="assets_licence is of photographs, meshes and HDRIs"):
        WorldSettings(assets_licence="CC-BY-4.0")
