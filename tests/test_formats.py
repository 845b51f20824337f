"""Files round-trip, keep the conventions of the programs that read them, and appear whole or not at all."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import roma
import torch
from PIL import Image

from four_d.errors import UserError
from four_d.formats.cameras import CameraTable, read_cameras, read_colmap, write_cameras, write_colmap
from four_d.formats.clouds import PointCloud, fuse, read_ply, write_ply
from four_d.formats.depth import read_depth, write_depth
from four_d.formats.tracks import LARGE, TrackTable, read_tracks, write_tracks
from four_d.geometry import make_pose, point_maps, project, reliable, unproject
from four_d.types import Cameras, Prediction


def some_cameras(generator: torch.Generator, frames: int = 4, size: tuple[int, int] = (60, 80)) -> Cameras:
    rotation = roma.rotvec_to_rotmat(torch.randn(frames, 3, generator=generator, dtype=torch.float64))
    pose = make_pose(rotation, torch.randn(frames, 3, generator=generator, dtype=torch.float64))
    intrinsics = torch.eye(3, dtype=torch.float64).repeat(frames, 1, 1)
    intrinsics[:, 0, 0], intrinsics[:, 1, 1] = 70 + torch.arange(frames), 75 - torch.arange(frames)
    intrinsics[:, 0, 2], intrinsics[:, 1, 2] = size[1] / 2 + 0.25, size[0] / 2 - 0.5
    return Cameras(world_from_camera=pose, intrinsics=intrinsics)


def some_cloud(count: int = 100) -> PointCloud:
    rng = np.random.default_rng(0)
    return PointCloud(
        points=rng.normal(size=(count, 3)).astype(np.float32),
        colours=rng.integers(0, 256, (count, 3)).astype(np.uint8),
        frames=rng.integers(0, 5, count).astype(np.int32),
        confidence=rng.uniform(1, 9, count).astype(np.float32),
    )


def test_cameras_json_round_trip(tmp_path: Path, generator: torch.Generator) -> None:
    model, original = some_cameras(generator), some_cameras(generator, size=(600, 800))
    original = Cameras(world_from_camera=model.world_from_camera, intrinsics=original.intrinsics)
    table = CameraTable(
        times=[0.0, 0.04, 0.08, 0.12],
        images=[f"{i}.png" for i in range(4)],
        model=model,
        model_size=(60, 80),
        original=original,
        original_sizes=[(600, 800), (480, 640)] * 2,
        unit="cubits",
    )
    write_cameras(tmp_path / "cameras.json", table)
    read = read_cameras(tmp_path / "cameras.json")
    assert torch.equal(read.model.world_from_camera, model.world_from_camera)
    assert torch.equal(read.model.intrinsics, model.intrinsics)
    assert torch.equal(read.original.intrinsics, original.intrinsics)
    assert (read.times, read.images, read.unit) == (table.times, table.images, table.unit)
    assert (read.model_size, read.original_sizes) == ((60, 80), [(600, 800), (480, 640)] * 2)


def test_damaged_cameras_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "cameras.json").write_text('{"frames": [{}]}')
    with pytest.raises(UserError, match=r"cameras\.json"):
        read_cameras(tmp_path / "cameras.json")


def test_colmap_round_trip(tmp_path: Path, generator: torch.Generator) -> None:
    cameras, names = some_cameras(generator), ["a.png", "with space.png", "c.png", "d.png"]
    write_colmap(tmp_path / "sparse" / "0", cameras, [(60, 80)] * len(names), names, some_cloud())
    read, sizes, read_names = read_colmap(tmp_path / "sparse" / "0")
    torch.testing.assert_close(read.world_from_camera, cameras.world_from_camera, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(read.intrinsics, cameras.intrinsics, atol=1e-9, rtol=1e-9)
    assert sizes == [(60, 80)] * 4
    assert read_names == names


def test_colmap_text_by_hand(tmp_path: Path) -> None:
    """A camera one unit to the right, turned by 90° about y, x_cam = R·x_world + t."""
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # looks along world x
    pose[:3, 3] = torch.tensor([1.0, 0, 0])
    intrinsics = torch.tensor([[50.0, 0, 40], [0, 60, 30], [0, 0, 1]], dtype=torch.float64)
    write_colmap(tmp_path, Cameras(world_from_camera=pose[None], intrinsics=intrinsics[None]), [(60, 80)], ["x.png"])
    assert (tmp_path / "cameras.txt").read_text().splitlines()[1] == "1 PINHOLE 80 60 50 60 40 30"
    fields = (tmp_path / "images.txt").read_text().splitlines()[1].split()
    w, x, y, z, *translation = (float(v) for v in fields[1:8])
    np.testing.assert_allclose([w, x, y, z], [np.sqrt(0.5), 0, -np.sqrt(0.5), 0], atol=1e-11)
    # the point one unit ahead of the camera, world (2, 0, 0), has to land on the principal axis
    turn = np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]])
    assert (turn @ [2.0, 0, 0] + translation[0]).item() == pytest.approx(0, abs=1e-11)
    assert translation == pytest.approx([0, 0, -1])


def test_colmap_of_one_point_per_line(tmp_path: Path, generator: torch.Generator) -> None:
    write_colmap(tmp_path, some_cameras(generator, 1), [(60, 80)], ["x.png"], some_cloud(3))
    lines = (tmp_path / "points3D.txt").read_text().splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]
    assert all(len(line.split()) == 8 for line in lines)


def test_distorted_colmap_cameras_are_refused(tmp_path: Path, generator: torch.Generator) -> None:
    write_colmap(tmp_path, some_cameras(generator, 1), [(60, 80)], ["x.png"])
    (tmp_path / "cameras.txt").write_text("1 OPENCV 80 60 50 60 40 30 0 0 0 0\n")
    with pytest.raises(UserError, match="OPENCV"):
        read_colmap(tmp_path)


def test_depth_round_trip_to_half_a_count(tmp_path: Path) -> None:
    depth = np.random.default_rng(0).lognormal(1, 1, (3, 24, 32)).astype(np.float32)
    depth[1, :4] = 0
    depth[0, 0, :3] = [np.nan, np.inf, -2]
    write_depth(tmp_path / "depth", depth, "metres")
    read = read_depth(tmp_path / "depth")
    count = json.loads((tmp_path / "depth" / "depth.json").read_text())["count"]
    sound = np.isfinite(depth) & (depth > 0)
    assert (read[~sound] == 0).all()
    assert (read[sound] > 0).all()
    assert np.abs(read - np.where(sound, depth, 0)).max() <= 0.5001 * count + 1e-6
    assert count == pytest.approx(depth[sound].max() / 65535)


def test_depth_keeps_tiny_values_valid(tmp_path: Path) -> None:
    write_depth(tmp_path, np.array([[[1e-9, 1e3]]], np.float32), "metres")
    assert (read_depth(tmp_path) > 0).all()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: Image.fromarray(np.zeros((4, 5), np.uint8)).save(folder / "000001.png"),
            "is not a 16-bit grey",
        ),
        (lambda folder: Image.fromarray(np.zeros((3, 5), np.uint16)).save(folder / "000001.png"), "sizes"),
        (lambda folder: (folder / "000001.png").unlink(), "000001"),
        (lambda folder: (folder / "depth.json").write_text('{"count": "one", "frames": 2}'), "could not convert"),
    ],
)
def test_depth_that_was_changed_is_named(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    write_depth(tmp_path, np.ones((2, 4, 5), np.float32), "metres")
    damage(tmp_path)
    with pytest.raises(UserError, match=f"is not a depth folder of four_d .*{message}"):
        read_depth(tmp_path)


def test_ply_round_trip(tmp_path: Path) -> None:
    cloud = some_cloud()
    write_ply(tmp_path / "points.ply", cloud)
    read = read_ply(tmp_path / "points.ply")
    for name in ("points", "colours", "frames", "confidence"):
        np.testing.assert_array_equal(getattr(read, name), getattr(cloud, name))


def test_ply_is_what_another_program_reads(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh", reason="the extra synth has it")
    cloud = some_cloud()
    write_ply(tmp_path / "points.ply", cloud)
    other = trimesh.load(tmp_path / "points.ply")
    np.testing.assert_allclose(other.vertices, cloud.points)
    np.testing.assert_array_equal(other.colors[:, :3], cloud.colours)


@pytest.mark.parametrize("damage", [b"ply\nformat ascii 1.0\nend_header\n", b"", b"\x00" * 40])
def test_foreign_ply_is_refused(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "points.ply").write_bytes(damage)
    with pytest.raises(UserError, match=r"points\.ply"):
        read_ply(tmp_path / "points.ply")


def test_short_ply_is_refused(tmp_path: Path) -> None:
    write_ply(tmp_path / "points.ply", some_cloud())
    content = (tmp_path / "points.ply").read_bytes()
    (tmp_path / "points.ply").write_bytes(content[:-5])
    with pytest.raises(UserError, match="truncated"):
        read_ply(tmp_path / "points.ply")


def slanted_room(size: tuple[int, int] = (30, 40)) -> tuple[torch.Tensor, Cameras]:
    """Depth of a floor seen at a grazing angle, with a near box in front of it in the middle."""
    height, width = size
    intrinsics = torch.tensor([[40.0, 0, width / 2], [0, 40, height / 2], [0, 0, 1]])[None]
    rows = (torch.arange(height) + 0.5 - height / 2) / 40
    depth = (1 / (0.02 + (rows + height / 80).clamp_min(0)))[:, None].repeat(1, width)
    depth[10:20, 15:25] = 0.5
    return depth[None], Cameras(world_from_camera=torch.eye(4)[None], intrinsics=intrinsics)


def test_reliable_keeps_slanted_planes_and_drops_edges() -> None:
    depth, _ = slanted_room()
    keep = reliable(depth, torch.ones_like(depth))[0]
    assert keep[2:9].all(), "a plane is reliable however slanted"
    assert keep[12:18, 17:23].all(), "so is the inside of the box"
    assert not keep[9:11, 15:25].any(), "but not the box's border"


def test_reliable_drops_the_least_confident_fifth() -> None:
    confidence = torch.arange(100.0).reshape(1, 10, 10)
    keep = reliable(torch.ones(1, 10, 10), confidence)
    assert keep.flatten().tolist() == [i >= 19 for i in range(100)]


def test_fused_points_project_back_to_their_pixels(generator: torch.Generator) -> None:
    depth, cameras = slanted_room()
    images = torch.rand(1, 3, 30, 40, generator=generator)
    cloud = fuse(images, Prediction(depth=depth, cameras=cameras))
    assert cloud is not None
    pixels, z = project(
        torch.from_numpy(cloud.points), Cameras(world_from_camera=torch.eye(4), intrinsics=cameras.intrinsics[0])
    )
    x, y = (pixels - 0.5).round().long().unbind(-1)
    torch.testing.assert_close(z, depth[0, y, x])
    assert cloud.colours.tolist() == (images[0, :, y, x].T * 255).round().int().tolist()


def test_fuse_prefers_depth_and_falls_back_to_points() -> None:
    depth, cameras = slanted_room()
    images, points = torch.zeros(1, 3, 30, 40), unproject(depth, cameras)
    both = fuse(images, Prediction(depth=depth, cameras=cameras, points=points + 100))
    alone = fuse(images, Prediction(points=points))
    assert both is not None
    assert alone is not None
    np.testing.assert_allclose(both.points, alone.points, atol=1e-5)
    assert fuse(images, Prediction(depth=depth)) is None


def test_depth_of_a_point_map_is_that_before_its_own_camera() -> None:
    depth, cameras = slanted_room()
    turned = torch.eye(4)
    turned[:3, :3] = torch.diag(torch.tensor([-1.0, 1.0, -1.0]))  # looks back: all points have negative z in the world
    behind = Cameras(world_from_camera=turned[None], intrinsics=cameras.intrinsics)
    found = point_maps(Prediction(points=unproject(depth, behind), cameras=behind))
    assert found is not None
    torch.testing.assert_close(found[1], depth)


def some_tracks(motion: tuple[int, int] | None = (6, 8)) -> TrackTable:
    """Seven points over three times, seen in four frames, two of them at once."""
    rng = np.random.default_rng(0)
    return TrackTable(
        queries=rng.uniform(0, 30, (7, 3)).astype(np.float32),
        times=np.array([0.0, 0.04, 0.1]),
        frame_times=np.array([0.0, 0.1, 0.1, 0.04]),
        frame_cameras=np.array([0, 0, 1, 0]),
        visible=rng.uniform(0, 1, (7, 3)).astype(np.float32),
        confidence=rng.uniform(1, 9, (7, 3)).astype(np.float32),
        moving=np.arange(7) > 3,
        unit="cubits",
        points=rng.normal(size=(7, 3, 3)).astype(np.float32),
        pixels=rng.normal(size=(7, 4, 2)).astype(np.float32),
        motion=None if motion is None else rng.normal(size=(3, *motion, 3)).astype(np.float32),
    )


@pytest.mark.parametrize("absent", [(), ("points", "motion"), ("pixels", "confidence")])
def test_tracks_round_trip(tmp_path: Path, absent: tuple[str, ...]) -> None:
    table = dataclasses.replace(some_tracks(), **dict.fromkeys(absent))
    write_tracks(tmp_path / "tracks.npz", table)
    read = read_tracks(tmp_path / "tracks.npz")
    for field in dataclasses.fields(TrackTable):
        written, found = getattr(table, field.name), getattr(read, field.name)
        assert type(found) is type(written), field.name
        np.testing.assert_array_equal(found, written)
        assert getattr(found, "dtype", None) == getattr(written, "dtype", None)
    assert read.frame_indices.tolist() == [0, 2, 2, 1]


def test_large_motion_is_written_in_half_precision(tmp_path: Path) -> None:
    side = int((LARGE / 9) ** 0.5) + 1
    table = some_tracks(motion=(side, side))
    write_tracks(tmp_path / "tracks.npz", table)
    with np.load(tmp_path / "tracks.npz") as content:
        assert content["motion"].dtype == np.float16
        assert content["points"].dtype == np.float32
    read = read_tracks(tmp_path / "tracks.npz").motion
    assert read is not None
    assert table.motion is not None
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, table.motion, rtol=6e-4, atol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"visible": np.zeros((7, 4), np.float32)},
        {"pixels": np.zeros((7, 3, 2), np.float32)},
        {"motion": np.zeros((4, 6, 8, 3), np.float32)},
        {"points": None, "pixels": None},
        {"frame_times": np.array([0.0, 0.1, 0.1, 0.05])},
    ],
)
def test_tracks_that_do_not_fit_together(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="track"):
        dataclasses.replace(some_tracks(), **wrong)  # pyright: ignore[reportArgumentType]


def test_foreign_and_damaged_tracks_are_named(tmp_path: Path) -> None:
    path = tmp_path / "tracks.npz"
    for damage in (b"", b"PK nonsense", b"\x93NUMPY"):
        path.write_bytes(damage)
        with pytest.raises(UserError, match=r"tracks\.npz does not hold tracks"):
            read_tracks(path)
    np.savez(path, queries=np.zeros((2, 3)))
    with pytest.raises(UserError, match=r"tracks\.npz does not hold tracks"):
        read_tracks(path)
    with pytest.raises(UserError, match="run four-d infer again"):
        read_tracks(tmp_path / "missing.npz")


def test_thin_spreads() -> None:
    assert len(some_cloud(1000).thin(10)) == 10
    assert len(some_cloud(5).thin(10)) == 5
