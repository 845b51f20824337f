"""Point clouds and depth-map meshes as GLB: what is joined, what is cut, and that it comes back."""

from pathlib import Path

import numpy as np
import pytest
import torch

from four_d.errors import UserError
from four_d.formats.clouds import PointCloud
from four_d.formats.glb import Builder, read_glb, to_linear, to_srgb
from four_d.formats.meshes import Mesh, depth_mesh, read_glb_mesh, write_glb_cloud, write_glb_mesh
from four_d.geometry import project
from four_d.types import Cameras

SIZE = 12, 16


def camera(frames: int = 1) -> Cameras:
    lens = torch.tensor([[20.0, 0, SIZE[1] / 2], [0, 20, SIZE[0] / 2], [0, 0, 1]])
    poses = torch.eye(4).repeat(frames, 1, 1)
    poses[:, 0, 3] = torch.arange(frames)
    return Cameras(world_from_camera=poses, intrinsics=lens.repeat(frames, 1, 1))


def colours(frames: int = 1) -> torch.Tensor:
    return torch.rand(frames, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def slanted(slope: float = 0.06) -> torch.Tensor:
    """Inverse depth that rises by so much a column: a steep plane."""
    return (1 / (0.2 + slope * torch.arange(SIZE[1]))).expand(1, *SIZE)


def test_a_plane_is_whole_however_slanted() -> None:
    mesh = depth_mesh(slanted(), colours(), camera())
    assert len(mesh.triangles) == 2 * (SIZE[0] - 1) * (SIZE[1] - 1)
    assert len(mesh.vertices) == SIZE[0] * SIZE[1]


def test_vertices_are_the_pixels_points_in_their_colours() -> None:
    mesh = depth_mesh(slanted(), colours(), camera())
    pixels, depth = project(torch.from_numpy(mesh.vertices)[None], camera())
    torch.testing.assert_close(depth.reshape(SIZE), slanted()[0])
    np.testing.assert_allclose(pixels.reshape(*SIZE, 2)[3, 5], [5.5, 3.5], atol=1e-5)
    expected = (colours()[0].permute(1, 2, 0) * 255).round().reshape(-1, 3)
    np.testing.assert_array_equal(mesh.colours, expected)


def test_triangles_face_the_camera() -> None:
    mesh = depth_mesh(slanted(), colours(), camera())
    a, b, c = np.moveaxis(mesh.vertices[mesh.triangles], 1, 0)
    assert ((np.cross(b - a, c - a) * a).sum(axis=-1) < 0).all()


def test_depth_steps_are_cut() -> None:
    depth = torch.full((1, *SIZE), 4.0)
    depth[:, 3:8, 5:11] = 2.0
    mesh = depth_mesh(depth, colours(), camera())
    corners = mesh.vertices[mesh.triangles][..., 2]
    assert (np.ptp(corners, axis=1) == 0).all(), "no triangle joins two surfaces"
    assert (corners[:, 0] == 2).sum() == 2 * 4 * 5, "the near one is whole up to its edge"


def test_a_thin_thing_in_front_is_not_joined() -> None:
    depth = torch.full((1, *SIZE), 4.0)
    depth[:, :, 7] = 2.0
    mesh = depth_mesh(depth, colours(), camera())
    assert (mesh.vertices[:, 2] == 4).all()


def test_pixels_without_depth_have_no_vertex() -> None:
    depth = torch.full((1, *SIZE), 4.0)
    depth[0, 0, 0], depth[0, 5, 5], depth[0, 7, 2] = 0, float("nan"), float("inf")
    mesh = depth_mesh(depth, colours(), camera())
    assert len(mesh.vertices) == SIZE[0] * SIZE[1] - 3
    assert np.isfinite(mesh.vertices).all()


def test_frames_are_not_joined() -> None:
    depth = torch.full((2, *SIZE), 4.0)
    one, two = depth_mesh(depth[:1], colours(), camera()), depth_mesh(depth, colours(2), camera(2))
    assert len(two.triangles) == 2 * len(one.triangles)
    assert np.ptp(two.vertices[two.triangles][..., 0], axis=1).max() < 0.3


def test_mesh_comes_back(tmp_path: Path) -> None:
    mesh = depth_mesh(slanted(), colours(), camera())
    write_glb_mesh(tmp_path / "mesh.glb", mesh)
    found = read_glb_mesh(tmp_path / "mesh.glb")
    for field in ("vertices", "colours", "triangles"):
        np.testing.assert_array_equal(getattr(found, field), getattr(mesh, field))


def cloud() -> PointCloud:
    rng = np.random.default_rng(0)
    return PointCloud(
        points=rng.normal(size=(256, 3)).astype(np.float32),
        colours=np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1),
        frames=np.zeros(256, np.int32),
        confidence=np.ones(256, np.float32),
    )


def test_cloud_comes_back_with_every_colour(tmp_path: Path) -> None:
    write_glb_cloud(tmp_path / "cloud.glb", cloud())
    found = read_glb_mesh(tmp_path / "cloud.glb")
    np.testing.assert_array_equal(found.vertices, cloud().points)
    np.testing.assert_array_equal(found.colours, cloud().colours)
    assert not len(found.triangles)
    assert read_glb(tmp_path / "cloud.glb").content["meshes"][0]["primitives"][0]["mode"] == 0


def test_another_program_sees_them_upright(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh", reason="the extra synth has it")
    mesh = depth_mesh(slanted(), colours(), camera())
    write_glb_mesh(tmp_path / "mesh.glb", mesh)
    other = next(iter(trimesh.load(tmp_path / "mesh.glb", process=False).geometry.values()))
    np.testing.assert_allclose(other.vertices, mesh.vertices * [1, -1, -1], atol=1e-6)
    np.testing.assert_array_equal(other.faces, mesh.triangles)
    write_glb_cloud(tmp_path / "cloud.glb", cloud())
    points = next(iter(trimesh.load(tmp_path / "cloud.glb").geometry.values()))
    np.testing.assert_allclose(points.vertices, cloud().points * [1, -1, -1], atol=1e-6)


def test_nothing_to_write_is_named(tmp_path: Path) -> None:
    nothing = np.zeros((0, 3))
    none = Mesh(
        vertices=nothing.astype(np.float32), colours=nothing.astype(np.uint8), triangles=nothing.astype(np.uint32)
    )
    with pytest.raises(UserError, match="no triangles"):
        write_glb_mesh(tmp_path / "x.glb", none)
    with pytest.raises(UserError, match="no points"):
        write_glb_cloud(tmp_path / "x.glb", cloud().take(np.zeros(256, bool)))
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*cloud\.glb"):
        write_glb_cloud(tmp_path / "file" / "cloud.glb", cloud())


@pytest.mark.parametrize("damage", [b"", b"glTF", b"x" * 100, b"glTF\x02\x00\x00\x00\xff\xff\x00\x00"])
def test_what_is_no_glb_is_named(damage: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.glb").write_bytes(damage)
    with pytest.raises(UserError, match=r"x\.glb does not read as GLB"):
        read_glb_mesh(tmp_path / "x.glb")


def test_arrays_that_are_missing_are_named(tmp_path: Path) -> None:
    builder = Builder()
    builder.scene(builder.add("meshes", {"primitives": [{"attributes": {"POSITION": 0, "COLOR_0": 1}}]}))
    builder.write(tmp_path / "x.glb")
    with pytest.raises(UserError, match="accessor 0"):
        read_glb_mesh(tmp_path / "x.glb")


def test_sizes_in_the_header_are_those_of_the_file(tmp_path: Path) -> None:
    write_glb_cloud(tmp_path / "x.glb", cloud())
    content = (tmp_path / "x.glb").read_bytes()
    assert int.from_bytes(content[8:12], "little") == len(content)
    assert len(content) % 4 == 0


def test_display_and_linear_values_are_inverse() -> None:
    values = np.linspace(0, 1, 256)
    np.testing.assert_allclose(to_srgb(to_linear(values)), values, atol=1e-9)
    assert to_linear(np.array([0.5])).item() == pytest.approx(0.2140, abs=1e-4)
