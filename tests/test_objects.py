"""Files of one object become Gaussians in one frame, opaque, in their colours, with a way back."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from four_d import fields
from four_d.errors import UserError
from four_d.formats.meshes import Mesh, write_glb_mesh
from four_d.formats.splats import flip, write_gltf, write_ply, write_times
from four_d.objects import read_object
from four_d.objects.discs import cover
from four_d.rendering import harmonics, render
from four_d.types import Cameras, Gaussians, Views, map_tensors
from tests.formats.scene import moving, standing

trimesh = pytest.importorskip("trimesh", reason="the extra mesh is not installed")

COLOURS = {"right": (1.0, 0.0, 0.0), "down": (0.0, 1.0, 0.0), "front": (0.0, 0.0, 1.0)}
LOOKS = {"front": (0, 0, 1), "right": (-1, 0, 0), "down": (0, -1, 0)}
"""Directions in our axes in which a camera looks at each side."""


def seen(gaussians: Gaussians, look: tuple[float, float, float], size: int = 48) -> Views:
    """Picture of an object of radius 1 by a camera that looks along an axis, three radii away."""
    z = torch.tensor(look, dtype=torch.float32)
    y = torch.tensor([0.0, 1, 0]) if abs(look[1]) < 0.5 else torch.tensor([0.0, 0, 1])
    pose = torch.eye(4)
    pose[:3, :3], pose[:3, 3] = torch.stack([torch.linalg.cross(y, z), y, z], dim=-1), -3 * z
    lens = torch.tensor([[size, 0, size / 2], [0, size, size / 2], [0, 0, 1.0]])
    cameras = Cameras(world_from_camera=pose[None, None], intrinsics=lens[None, None])
    return render(map_tensors(gaussians, lambda t: t[None]), cameras, torch.zeros(1, 1), (size, size))


def middle(view: Views) -> Tensor:
    size = view.alpha.shape[-1]
    part = slice(size // 2 - 2, size // 2 + 2)
    return view.colour[0, 0, :, part, part].mean((-1, -2))


def cube() -> Any:
    """A cube with glTF's axes, whose +x, −y (down) and +z (front) sides have `COLOURS`, the others are white."""
    box = trimesh.creation.box(extents=(2, 2, 2))
    colours = np.full((12, 4), 255, np.uint8)
    for name, side in (("right", (1, 0, 0)), ("down", (0, -1, 0)), ("front", (0, 0, 1))):
        own = box.face_normals @ np.array(side) > 0.5
        colours[own, :3] = np.array(COLOURS[name]) * 255
    box.visual.face_colors = colours
    box.apply_translation((5, 6, 7))
    return box


def textured() -> Any:
    """The same cube with its colours in a texture of four quarters; each side has one point of it."""
    box = cube()
    colours = np.asarray(box.visual.face_colors)[:, :3] / 255
    mesh = trimesh.Trimesh(box.vertices[box.faces].reshape(-1, 3), np.arange(36).reshape(-1, 3), process=False)
    kinds = [(*COLOURS.values(), (1.0, 1.0, 1.0)).index(tuple(colour)) for colour in colours.tolist()]
    places = np.array([[0.25, 0.75], [0.75, 0.75], [0.25, 0.25], [0.75, 0.25]])[kinds].repeat(3, axis=0)
    picture = np.array([[COLOURS["right"], COLOURS["down"]], [COLOURS["front"], (1, 1, 1)]]).repeat(8, 0).repeat(8, 1)
    image = Image.fromarray((picture * 255).astype(np.uint8))
    white = trimesh.visual.material.PBRMaterial(baseColorTexture=image, baseColorFactor=[255, 255, 255, 255])
    mesh.visual = trimesh.visual.TextureVisuals(uv=places, material=white)
    return mesh


def painted(path: Path) -> None:
    """The cube with colours of vertices and a material, by our own writer, which flips the axes."""
    box = cube()
    corners = (box.vertices[box.faces].reshape(-1, 3) * [1, -1, -1]).astype(np.float32)
    colours = np.asarray(box.visual.face_colors)[:, :3].repeat(3, axis=0)
    write_glb_mesh(
        path, Mesh(vertices=corners, colours=colours, triangles=np.arange(36, dtype=np.uint32).reshape(12, 3))
    )


def apart(path: Path) -> None:
    """The textured cube as glTF with its arrays in other files."""
    for name, content in trimesh.exchange.gltf.export_gltf(trimesh.Scene(textured())).items():
        (path if name == "model.gltf" else path.parent / name).write_bytes(content)


WRITERS: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: cube().export(path), "faces.ply"),
    (lambda path: textured().export(path), "texture.glb"),
    (apart, "texture.gltf"),
    (lambda path: textured().export(path), "texture.obj"),
    (painted, "vertices.glb"),
]


@pytest.mark.parametrize(("write", "name"), WRITERS, ids=[name for _, name in WRITERS])
def test_every_side_of_a_mesh_has_its_colour_and_place(
    write: Callable[[Path], object], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / name)
    found = read_object(tmp_path / name, gaussians=4000)
    assert found.coloured
    assert not capsys.readouterr().err
    assert 3000 < len(found.gaussians.means) <= 4000
    for side, look in LOOKS.items():
        torch.testing.assert_close(middle(seen(found.gaussians, look)), torch.tensor(COLOURS[side]), atol=0.06, rtol=0)
    for look in ((0, 0, -1), (1, 0, 0), (0, 1, 0)):
        torch.testing.assert_close(middle(seen(found.gaussians, look)), torch.ones(3), atol=0.06, rtol=0)


def test_a_closed_mesh_is_opaque_and_no_larger_than_it_is(tmp_path: Path) -> None:
    """Also where six a triangle are too many."""
    trimesh.creation.icosphere(subdivisions=4, radius=3).export(tmp_path / "x.ply")
    for number in (20_000, 2000):
        view = seen(read_object(tmp_path / "x.ply", gaussians=number).gaussians, (0, 0, 1), 64)
        y, x = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(64) - 31.5, indexing="ij")
        distance = torch.stack([x, y]).norm(dim=0) / (64 / 8**0.5)  # the silhouette's radius
        assert view.alpha[0, 0][distance < 0.95].min() > (0.98 if number > 5000 else 0.9)
        assert view.alpha[0, 0][distance > 1.15].max() < 0.01


def test_gaussians_lie_on_the_surface_and_are_flat(tmp_path: Path) -> None:
    box = cube()
    box.export(tmp_path / "x.ply")
    for number in (3000, 50):
        found = read_object(tmp_path / "x.ply", gaussians=number)
        back = fields.move(found.gaussians, found.file_from_object)
        apart = (back.means - torch.tensor([5.0, 6, 7])).abs()
        torch.testing.assert_close(apart.amax(-1), torch.ones(len(apart)), atol=1e-5, rtol=0)
        assert (found.gaussians.scales[:, 2] <= 0.11 * found.gaussians.scales[:, 1]).all()
        assert found.vertices is not None
        assert found.faces is not None
        corners = found.file_from_object.points(found.vertices)
        torch.testing.assert_close(corners[found.faces], torch.tensor(box.vertices[box.faces]).float())


def test_six_of_a_triangle_have_its_shape() -> None:
    """Together they have the triangle's middle; their own axes are those of its moments."""
    corners = torch.tensor([[[0.0, 0, 0], [4, 0, 0], [0, 1, 0]]], dtype=torch.float64)
    found, each = cover(corners, 6)
    assert each
    assert len(found.means) == 6
    torch.testing.assert_close(found.means.mean(0), corners[0].mean(0))
    rotation = _matrices(found.quats)
    covariance = rotation @ torch.diag_embed(found.scales.square()) @ rotation.mT
    centred = corners[0] - corners[0].mean(0)
    torch.testing.assert_close(covariance[0, :2, :2], (centred.mT @ centred)[:2, :2] * (4 / 72))
    split, _ = cover(corners, 6 * 49 + 5)
    assert len(split.means) == 6 * 49
    torch.testing.assert_close(split.scales[0], found.scales[0] / 7)
    torch.testing.assert_close(split.means.mean(0), corners[0].mean(0))
    spread = torch.cdist(split.means, split.means).fill_diagonal_(math.inf).amin(1)
    assert spread.min() > 0.3 * spread.mean(), "no two are in one place"


def _matrices(quats: Tensor) -> Tensor:
    w, x, y, z = quats.unbind(-1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]
    rows += [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]
    rows += [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def test_more_triangles_than_gaussians_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trimesh.creation.icosphere(subdivisions=4).export(tmp_path / "x.ply")
    found = read_object(tmp_path / "x.ply", gaussians=1000)
    assert len(found.gaussians.means) == 1000
    error = capsys.readouterr().err
    assert "5,120 triangles are more than 1,000 Gaussians cover" in error
    assert "no colours" in error
    assert not found.coloured
    torch.testing.assert_close(found.gaussians.harmonics, torch.zeros(1000, 1, 3))
    # evenly by area: no eighth of the ball has many more than another
    eighths = ((found.gaussians.means > 0) * torch.tensor([1, 2, 4])).sum(-1).bincount()
    assert eighths.min() > 100
    again = read_object(tmp_path / "x.ply", gaussians=1000)
    assert torch.equal(again.gaussians.means, found.gaussians.means)


@pytest.mark.slow
def test_a_million_triangles_are_a_ball_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ball = trimesh.creation.icosphere(subdivisions=8)
    assert len(ball.faces) > 1_000_000
    ball.visual.vertex_colors = np.uint8(255 * (ball.vertices > 0))
    ball.export(tmp_path / "x.glb")
    found = read_object(tmp_path / "x.glb", gaussians=3000)
    assert "1,310,720 triangles are more than 3,000 Gaussians cover" in capsys.readouterr().err
    torch.testing.assert_close(found.gaussians.means.norm(dim=-1), torch.ones(3000), rtol=0, atol=0.01)
    assert seen(found.gaussians, (0, 0, 1)).alpha[..., 22:26, 22:26].min() > 0.95


@pytest.mark.parametrize(("up", "axis"), [("y", (0, 1, 0)), ("z", (0, 0, 1)), ("-y", (0, -1, 0))])
def test_up_is_up(up: Any, axis: tuple[int, int, int], tmp_path: Path) -> None:
    """A cone's tip is above, wherever the file has it."""
    cone = trimesh.creation.cone(radius=1, height=2)
    cone.apply_transform(trimesh.geometry.align_vectors((0, 0, 1), axis))
    cone.export(tmp_path / "x.ply")
    found = read_object(tmp_path / "x.ply", up=up)
    assert found.vertices is not None
    above = found.vertices[found.vertices[:, 1] < -0.5]
    torch.testing.assert_close(above, torch.tensor([[0, -(0.5**0.5), 0]]), atol=1e-5, rtol=0)
    back = found.file_from_object.points(found.vertices.double())
    expected = torch.tensor(np.unique(cone.vertices.round(4), axis=0))
    torch.testing.assert_close(torch.unique((back * 1e4).round() / 1e4, dim=0), expected, atol=2e-4, rtol=0)
    assert found.file_from_object.rotation.det().item() == pytest.approx(1)


@pytest.mark.parametrize(("write", "name"), [(write_ply, "x.ply"), (write_gltf, "x.glb")])
def test_splats_are_centred_and_go_back(write: Callable[[Path, Gaussians], None], name: str, tmp_path: Path) -> None:
    scene = standing(400, 2)
    stray = dataclasses.replace(scene, means=torch.cat([scene.means[:-1], torch.tensor([[900.0, 0, 0]])]))
    write(tmp_path / name, stray)
    found = read_object(tmp_path / name)
    assert found.vertices is None
    assert found.gaussians.harmonics.shape[1] == 9
    inner = found.gaussians.means[:-1]
    assert inner.norm(dim=-1).median() < 1
    assert 0.9 < inner.norm(dim=-1).max() < 1.4
    assert inner.mean(0).abs().max() < 0.15
    own = found.file_from_object.points(found.gaussians.means)
    axes = torch.tensor([1.0, -1, -1]) if name == "x.glb" else torch.ones(3)
    torch.testing.assert_close(own, stray.means * axes, atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(found.gaussians.scales * found.file_from_object.scale, stray.scales)


def test_splats_turn_with_their_harmonics_or_not_at_all(tmp_path: Path) -> None:
    write_ply(tmp_path / "x.ply", standing(50, 1))
    plain, turned = read_object(tmp_path / "x.ply"), read_object(tmp_path / "x.ply", up="y")
    expected = flip(plain.gaussians)
    torch.testing.assert_close(turned.gaussians.means, expected.means)
    torch.testing.assert_close(turned.gaussians.harmonics, expected.harmonics)
    ends = [each.file_from_object.points(each.gaussians.means) for each in (plain, turned)]
    torch.testing.assert_close(ends[0], ends[1])
    with pytest.raises(UserError, match=r"x\.ply: .*degree 0"):
        read_object(tmp_path / "x.ply", up="z")
    write_ply(tmp_path / "x.ply", standing(50, 0))
    other = read_object(tmp_path / "x.ply", up="z")
    torch.testing.assert_close(other.file_from_object.points(other.gaussians.means), ends[0], atol=1e-4, rtol=0)


def test_of_splats_as_many_as_asked_and_at_their_first_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gltf(tmp_path / "x.glb", moving(300))
    found = read_object(tmp_path / "x.glb", gaussians=75)
    assert len(found.gaussians.means) == 75
    assert found.gaussians.offsets is None
    assert "of 300 Gaussians 75 are taken" in capsys.readouterr().err


def _obj(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


TRIANGLE = "v 0 0 0\nv 1 0 0\nv {}\nf 1 2 3\n"
POINTS = (
    "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\nend_header\n0 0 0\n"
)
BAD: list[tuple[str, Callable[[Path], object], str]] = [
    ("x.obj", _obj("hello\n"), "no triangles"),
    ("x.obj", _obj(""), "x.obj"),
    ("x.obj", _obj("v 0 0 0\nv 1 0 0\n"), "Points alone have no surface"),
    ("x.ply", _obj(POINTS), "no triangles"),
    ("x.ply", _obj("nothing"), "not a PLY file"),
    ("x.glb", _obj("nothing"), "does not read as GLB"),
    ("x.gltf", _obj("nothing"), "does not read as a mesh"),
    ("x.obj", _obj(TRIANGLE.format("nan 1 0")), "not finite"),
    ("x.obj", _obj(TRIANGLE.format("2 0 0")), "none of its 1 triangles has an area"),
    ("x.obj", _obj("v 1 2 3\nv 1 2 3\nv 1 2 3\nf 1 2 3\n"), "no extent"),
    ("x.stl", _obj("solid"), r"no object of a known kind.*\.obj"),
    ("x.obj", lambda _: None, "cannot read"),
    ("x.spz", lambda _: None, "does not exist"),
]


@pytest.mark.parametrize(("name", "write", "message"), BAD)
def test_what_is_no_object_is_one_clear_line(
    name: str, write: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(UserError, match=message) as raised:
        read_object(tmp_path / name)
    assert len(str(raised.value).splitlines()) == 1


def test_some_triangles_without_area_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 2 0 0\nf 1 2 3\nf 1 2 4\n")
    found = read_object(tmp_path / "x.obj", gaussians=24)
    assert len(found.gaussians.means) == 24
    assert found.gaussians.scales.isfinite().all()
    assert "1 of 2 triangles have no area" in capsys.readouterr().err


def test_numbers_that_mean_nothing(tmp_path: Path) -> None:
    cube().export(tmp_path / "x.ply")
    with pytest.raises(UserError, match="ask for 1 or more"):
        read_object(tmp_path / "x.ply", gaussians=0)
    assert len(read_object(tmp_path / "x.ply", gaussians=1).gaussians.means) == 1


def test_without_trimesh_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cube().export(tmp_path / "x.ply")
    write_ply(tmp_path / "splats.ply", standing(5))
    real = importlib.import_module

    def absent(name: str, *rest: Any) -> Any:
        if name == "trimesh":
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(UserError, match=r"pip install 'four_d\[mesh\]'"):
        read_object(tmp_path / "x.ply")
    assert len(read_object(tmp_path / "splats.ply").gaussians.means) == 5


def test_colours_are_those_of_harmonics_of_degree_0() -> None:
    colours = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(harmonics.colours(harmonics.constant(colours), torch.ones(5, 3)), colours)


def test_folders_over_time_are_no_object(tmp_path: Path) -> None:
    write_times(tmp_path / "folder", moving(20))
    with pytest.raises(UserError, match="no object of a known kind"):
        read_object(tmp_path / "folder")
