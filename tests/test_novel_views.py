"""Cameras on a path about a clip's, what they see of Gaussians, and the video of it."""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from four_d.errors import UserError
from four_d.formats.videos import write_video
from four_d.geometry import make_pose, project
from four_d.inference.novel_views import CameraPath, camera_path, looked_at, novel_views, write_novel_views
from four_d.types import Cameras
from four_d.video.footage import read
from tests.formats.scene import SIZE, cameras, moving, pictures

TIMES = torch.tensor([0.0, 0.3])


def test_orbit_looks_at_one_point_from_a_circle() -> None:
    way = CameraPath(kind="orbit", amplitude=0.2, rate=10.0, seconds=2.0)
    found, at = camera_path(cameras(), TIMES, 2.5, way)
    assert found.world_from_camera.shape == (20, 4, 4)
    assert (at[0].item(), at[-1].item()) == (0, pytest.approx(0.3))
    centres = found.world_from_camera[:, :3, 3]
    torch.testing.assert_close(centres.norm(dim=-1), torch.full((20,), 0.5))
    assert (centres[:, 2] == 0).all()
    pixels, depth = project(torch.tensor([0.0, 0, 2.5]).expand(20, 1, 3), found)
    torch.testing.assert_close(pixels[:, 0], torch.tensor([SIZE[1] / 2, SIZE[0] / 2]).expand(20, 2), atol=1e-3, rtol=0)
    assert (depth > 0).all()
    rotation = found.world_from_camera[:, :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(20, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(20))


def test_orbit_goes_about_the_first_camera_wherever_it_is() -> None:
    turn = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    there = make_pose(turn, torch.tensor([5.0, 1, 2]))
    moved = dataclasses.replace(cameras(), world_from_camera=there @ cameras().world_from_camera)
    here, _ = camera_path(cameras(), TIMES, 2.0)
    found, _ = camera_path(moved, TIMES, 2.0)
    torch.testing.assert_close(found.world_from_camera, there @ here.world_from_camera, atol=1e-5, rtol=0)


def test_a_long_clip_makes_no_long_video() -> None:
    """As many pictures for an hour as for ten seconds, whose times still reach from start to end."""
    for end, count in ((0.3, 50), (4.0, 100), (10.0, 250), (200.0, 250), (3600.0, 250)):
        found, at = camera_path(cameras(), torch.tensor([0.0, end]), 2.0)
        assert len(at) == len(found.intrinsics) == count
        assert (at[0].item(), at[-1].item()) == (0, pytest.approx(end))


def test_wiggle_goes_left_and_right_and_begins_in_the_middle() -> None:
    found, _ = camera_path(cameras(), TIMES, 2.0, CameraPath(kind="wiggle", amplitude=0.1, rounds=2, rate=20.0))
    x, y, z = found.world_from_camera[:, :3, 3].unbind(-1)
    assert x[0] == 0
    assert (x.max().item(), x.min().item()) == pytest.approx((0.2, -0.2), abs=1e-3)
    assert ((x[:-1] < 0) & (x[1:] >= 0)).sum() == 1, "to and fro twice"
    assert (y == 0).all()
    assert (z == 0).all()


def test_input_path_goes_through_the_clips_cameras() -> None:
    way = CameraPath(kind="input", rate=20.0, seconds=1.05)
    found, at = camera_path(cameras(), TIMES, 2.0, way)
    poses = cameras().world_from_camera
    torch.testing.assert_close(found.world_from_camera[0], poses[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.world_from_camera[-1], poses[1], atol=1e-5, rtol=0)
    middle = found.world_from_camera[10]
    assert at[10].item() == pytest.approx(0.15)
    torch.testing.assert_close(middle[:3, 3], (poses[0] + poses[1])[:3, 3] / 2)
    half = math.acos(0.8) / 2
    assert middle[0, 2].item() == pytest.approx(math.sin(half), abs=1e-5), "half the turn"


def test_input_path_takes_frames_in_any_order() -> None:
    swapped = Cameras(world_from_camera=cameras().world_from_camera.flip(0), intrinsics=cameras().intrinsics)
    way = CameraPath(kind="input")
    there, _ = camera_path(cameras(), TIMES, 1.0, way)
    found, _ = camera_path(swapped, TIMES.flip(0), 1.0, way)
    torch.testing.assert_close(found.world_from_camera, there.world_from_camera)


def test_input_path_of_a_rig_is_its_first_cameras() -> None:
    """Three cameras for each time, the first of them first."""
    others = make_pose(torch.eye(3).expand(2, 3, 3), torch.tensor([[9.0, 0, 0], [0, 9, 0]]))
    poses = torch.cat([torch.stack([pose, *others]) for pose in cameras().world_from_camera])
    rig = Cameras(world_from_camera=poses, intrinsics=cameras().intrinsics[:1].expand(6, 3, 3))
    way = CameraPath(kind="input")
    there, _ = camera_path(cameras(), TIMES, 1.0, way)
    found, _ = camera_path(rig, TIMES.repeat_interleave(3), 1.0, way)
    torch.testing.assert_close(found.world_from_camera, there.world_from_camera)


@pytest.mark.parametrize("kind", ["orbit", "wiggle", "input"])
def test_one_frame_gives_a_path_too(kind: Literal["orbit", "wiggle", "input"]) -> None:
    one = Cameras(world_from_camera=torch.eye(4)[None], intrinsics=cameras().intrinsics[:1])
    found, at = camera_path(one, torch.tensor([0.7]), 1.0, CameraPath(kind=kind))
    assert len(at) == 50
    assert (at == 0.7).all()
    assert found.world_from_camera.isfinite().all()


def test_what_makes_no_video_is_refused() -> None:
    for wrong in ({"amplitude": -1.0}, {"rounds": 0}, {"rate": 0.0}, {"seconds": 0.0}):
        with pytest.raises(UserError, match="give"):
            CameraPath(**wrong)


def test_what_is_looked_at_is_in_front() -> None:
    assert looked_at(moving(), cameras()) == pytest.approx(2.5, abs=0.1)
    behind = dataclasses.replace(moving(), means=-moving().means)
    assert looked_at(behind, cameras()) == 1


def test_views_are_what_render_gives() -> None:
    shown = list(novel_views(moving(), cameras(), torch.tensor([9.0, 9.0]), SIZE))
    assert shown[0].shape == (*SIZE, 3)
    expected = (pictures(moving())[-2:].permute(0, 2, 3, 1) * 255).round().numpy()
    np.testing.assert_allclose(np.stack(shown), expected, atol=1)


def test_video_shows_the_views(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="the extra video is not installed")
    way = CameraPath(kind="orbit", amplitude=0.3, rate=10.0, seconds=1.0)
    write_novel_views(tmp_path / "orbit.mp4", moving(), cameras(), TIMES, SIZE, way=way)
    video = read(tmp_path / "orbit.mp4")
    assert np.shape(video.frames) == (10, *SIZE, 3)
    np.testing.assert_allclose(np.diff(video.times), 0.1, atol=1e-3)
    along, at = camera_path(cameras(), TIMES, looked_at(moving(), cameras()), way)
    expected = np.stack(list(novel_views(moving(), along, at, SIZE)))
    # colour is stored for pairs of pixels, brightness for each
    assert np.abs(np.mean(video.frames, -1) - expected.mean(-1)).mean() < 6
    assert np.abs(video.frames[0].astype(int) - video.frames[5]).mean() > 5
    assert [file.name for file in tmp_path.iterdir()] == ["orbit.mp4"]


def test_odd_sizes_are_made_even(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="the extra video is not installed")
    write_video(tmp_path / "x.mp4", [np.full((33, 47, 3), 200, np.uint8)] * 3, 25.0)
    frames = read(tmp_path / "x.mp4").frames
    assert np.shape(frames) == (3, 34, 48, 3)
    assert np.abs(np.array(frames, int) - 200).max() < 5


def test_no_pictures_leave_no_file(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="the extra video is not installed")
    with pytest.raises(UserError, match="no frames to write"):
        write_video(tmp_path / "x.mp4", [], 25.0)
    with pytest.raises(UserError, match=r"x\.avi cannot be the name"):
        write_video(tmp_path / "x.avi", [], 25.0)
    assert not list(tmp_path.iterdir())


def test_video_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"four_d\[video\]"):
        write_video(tmp_path / "x.mp4", [], 25.0)
