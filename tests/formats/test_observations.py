"""COLMAP's points are seen by the frames that see them, and images and points say so alike."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from four_d.formats import observations
from four_d.formats.cameras import read_colmap, write_colmap
from four_d.formats.clouds import PointCloud
from four_d.formats.observations import Observations, observe
from four_d.geometry import make_pose, pixel_centres, project, rays, unproject
from four_d.types import Cameras

try:
    import pycolmap
except ImportError:
    pycolmap = None

SIZE = 24, 32
"""Height, width."""
WALL, BOX = 4.0, 2.0
"""Depth of a wall, and of a box before it: |x|, |y| ≤ 0.4 in the world."""


def cameras(count: int = 5, step: float = 0.3) -> Cameras:
    """In a row from left to right, all looking straight ahead."""
    shift = torch.zeros(count, 3, dtype=torch.float64)
    shift[:, 0] = step * (torch.arange(count) - (count - 1) / 2)
    lens = torch.tensor([[30.0, 0, SIZE[1] / 2], [0, 30, SIZE[0] / 2], [0, 0, 1]], dtype=torch.float64)
    pose = make_pose(torch.eye(3, dtype=torch.float64).expand(count, 3, 3), shift)
    return Cameras(world_from_camera=pose, intrinsics=lens.expand(count, 3, 3))


def depths(at: Cameras, box: torch.Tensor | None = None) -> torch.Tensor:
    """What the cameras see; ``box`` is where its middle is for each, f: it may move."""
    pixels = pixel_centres(*SIZE, at.intrinsics).reshape(-1, 2).expand(len(at.intrinsics), -1, -1)
    spots = at.world_from_camera[:, None, :3, 3] + BOX * rays(at.intrinsics, pixels)
    middle = torch.zeros(len(spots)) if box is None else box
    on_box = ((spots[..., 0] - middle[:, None]).abs() <= 0.4) & (spots[..., 1].abs() <= 0.4)
    return torch.where(on_box, BOX, WALL).double().unflatten(1, SIZE)


def cloud_of(depth: torch.Tensor, at: Cameras) -> PointCloud:
    points = unproject(depth, at)
    frames = torch.arange(len(depth))[:, None, None].expand(depth.shape)
    return PointCloud(
        points=points.reshape(-1, 3).float().numpy(),
        colours=np.zeros((depth.numel(), 3), np.uint8),
        frames=frames.flatten().int().numpy(),
        confidence=np.ones(depth.numel(), np.float32),
    )


def sightings(seen: Observations) -> set[tuple[int, int]]:
    return set(zip(seen.frames.tolist(), seen.points.tolist(), strict=True))


def test_points_are_seen_where_nothing_hides_them() -> None:
    """By the law of the scene: a place on the wall is hidden where the box is on the line of sight."""
    at = cameras()
    depth, times = depths(at), [0.0, 1.0, 2.0, 3.0, 4.0]
    cloud = cloud_of(depth, at)
    seen = observe(cloud, at, lambda frame: depth[frame], times=times)
    found = sightings(seen)
    own = {(int(frame), row) for row, frame in enumerate(cloud.frames)}
    assert own <= found, "its own frame sees every point"
    points = torch.from_numpy(cloud.points).double()
    wall = (points[:, 2] - WALL).abs() < 1e-3
    wrong = right = 0
    for frame in range(5):
        eye = at.world_from_camera[frame, :3, 3]
        halfway = (eye + points) / 2
        # nearer to the box's border than a pixel either is true
        beyond = (halfway[:, :2].abs() - 0.4).amax(-1)
        pixels, _ = project(points, Cameras(world_from_camera=at.world_from_camera[frame], intrinsics=at.intrinsics[0]))
        inside = ((pixels >= 0.5) & (pixels <= torch.tensor(SIZE[::-1]) - 0.5)).all(-1)
        sure = inside & ((beyond.abs() > 0.1) | ~wall) & ((points[:, :2].abs() - 0.4).amax(-1).lt(-0.1) | wall)
        visible = torch.where(wall, beyond > 0, True)
        for row in sure.nonzero()[:, 0].tolist():
            right += ((frame, row) in found) == bool(visible[row])
            wrong += ((frame, row) in found) != bool(visible[row])
    assert (wrong, right > 8000) == (0, True)


def test_sightings_are_where_cameras_have_the_points() -> None:
    at = cameras()
    depth = depths(at)
    cloud = cloud_of(depth, at)
    seen = observe(cloud, at, lambda frame: depth[frame], times=[0.0, 1.0, 2.0, 3.0, 4.0])
    assert (np.diff(seen.frames) >= 0).all()
    own = cloud.frames[seen.points] == seen.frames
    centres = np.tile(pixel_centres(*SIZE, at.intrinsics).reshape(-1, 2).numpy(), (5, 1))
    np.testing.assert_allclose(seen.pixels[own], centres, atol=1e-4)
    assert ((seen.pixels >= 0) & (seen.pixels <= SIZE[::-1])).all()


def test_what_moves_is_seen_at_its_time_alone() -> None:
    """A box that goes to and fro; frames 0 and 1 are two cameras' of one time."""
    at, box = cameras(4, 0.05), torch.tensor([0.0, 0, 0.02, 0.04])
    depth = depths(at, box)
    cloud = cloud_of(depth, at)
    on_box = torch.from_numpy(cloud.points[:, 2]) < 3
    seen = observe(
        cloud, at, lambda frame: depth[frame], times=[0.0, 0.0, 1.0, 2.0], moving=lambda frame: depth[frame] < 3
    )
    pairs = {(int(cloud.frames[row]), frame) for frame, row in sightings(seen) if on_box[row]}
    assert pairs == {(0, 0), (0, 1), (1, 0), (1, 1), (2, 2), (3, 3)}
    assert {(0, 3), (3, 0)} <= {(int(cloud.frames[row]), frame) for frame, row in sightings(seen) if not on_box[row]}


def test_a_long_video_looks_near_each_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observations, "NEAR", 2)
    at = cameras(8, 0.01)
    depth = depths(at)
    cloud = cloud_of(depth, at)
    seen = observe(cloud, at, lambda frame: depth[frame], times=list(map(float, range(8))))
    assert np.abs(cloud.frames[seen.points] - seen.frames).max() == 2


def test_depth_that_disagrees_or_is_missing_sees_nothing() -> None:
    at = cameras(3, 0.02)
    depth = torch.full((3, *SIZE), WALL, dtype=torch.float64)
    cloud = cloud_of(depth, at)
    depth[1] *= 1.2
    depth[2] = 0
    seen = observe(cloud, at, lambda frame: depth[frame], times=[0.0, 1.0, 2.0])
    pairs = {(int(cloud.frames[row]), frame) for frame, row in sightings(seen)}
    assert pairs == {(0, 0), (1, 1), (2, 2), (1, 0), (2, 0)}, "frame 0 knows better than the other two"
    none = observe(cloud.take(np.zeros(0, np.intp)), at, lambda frame: depth[frame], times=[0.0, 1.0, 2.0])
    assert len(none.frames) == 0


def written(folder: Path) -> tuple[Cameras, PointCloud, Observations]:
    """A project whose last point no frame sees."""
    at = cameras()
    depth = depths(at)
    cloud = cloud_of(depth, at).thin(300)
    cloud.points[-1] = 50, 0, 1
    seen = observe(cloud, at, lambda frame: depth[frame], times=[0.0, 1.0, 2.0, 3.0, 4.0])
    moved = dataclasses.replace(seen, pixels=(seen.pixels + np.array([0.3, 0.4])).clip(0, SIZE[::-1]))
    write_colmap(folder, at, [SIZE] * 5, [f"{i}.png" for i in range(5)], cloud, moved)
    return at, cloud, moved


def table(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines() if not line.startswith("#")]


def test_images_and_points_say_the_same(tmp_path: Path) -> None:
    _, cloud, seen = written(tmp_path)
    images = table(tmp_path / "images.txt")
    heads, sights = images[::2], images[1::2]
    assert [len(head) for head in heads] == [10] * 5
    from_images: dict[tuple[int, int], tuple[int, list[float]]] = {}
    for head, words in zip(heads, sights, strict=True):
        for at_index in range(len(words) // 3):
            x, y, point = words[3 * at_index : 3 * at_index + 3]
            from_images[int(head[0]), at_index] = int(point), [float(x), float(y)]
    from_points: dict[tuple[int, int], int] = {}
    errors: dict[int, float] = {}
    for words in table(tmp_path / "points3D.txt"):
        errors[int(words[0])] = float(words[7])
        track = list(map(int, words[8:]))
        from_points |= {pair: int(words[0]) for pair in zip(track[::2], track[1::2], strict=True)}
    assert len(from_points) == len(seen.frames) > 600
    assert {pair: point for pair, (point, _) in from_images.items()} == from_points
    found, sizes, _ = read_colmap(tmp_path)
    assert len(errors) == len(cloud) == 300
    assert (errors[300], sizes[0]) == (-1, SIZE)
    for point, error in errors.items():
        pairs = [(image, pixel) for (image, _), (own, pixel) in from_images.items() if own == point]
        offs = [
            (project(torch.from_numpy(cloud.points[point - 1 : point]).double(), _one(found, image - 1))[0][0]
             - torch.tensor(pixel)).norm().item()
            for image, pixel in pairs
        ]  # fmt: skip
        assert not offs or error == pytest.approx(np.mean(offs), abs=2e-3)


def _one(at: Cameras, frame: int) -> Cameras:
    return Cameras(world_from_camera=at.world_from_camera[frame], intrinsics=at.intrinsics[frame])


@pytest.mark.skipif(pycolmap is None, reason="pycolmap is not installed: pip install pycolmap")
def test_colmap_itself_reads_it(tmp_path: Path) -> None:
    _, cloud, seen = written(tmp_path)
    model: Any = pycolmap.Reconstruction(str(tmp_path))  # pyright: ignore
    assert (model.num_points3D(), model.compute_num_observations()) == (len(cloud), len(seen.frames))
    stored = {number: point.error for number, point in model.points3D.items() if point.track.length()}
    model.update_point_3d_errors()
    for number, error in stored.items():
        assert model.points3D[number].error == pytest.approx(error, abs=2e-3)
    assert sum(point.track.length() >= 3 for point in model.points3D.values()) > 150
