"""Readers of held-out pictures give back what was written in the sets' own layouts, and name what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from four_d.datasets import nvidia_dynamic
from four_d.errors import UserError
from four_d.protocols.table import PROTOCOLS
from tests.protocols import written
from tests.protocols.written import HEIGHT, WIDTH, world

TRAIN, HELD = [(0, t) for t in range(3, 15)], [(1, 4), (2, 4), (1, 9)]
"""(camera, time) of frames."""
LAST = nvidia_dynamic.NSFF_FRAMES - 1


def shown(camera: int, time: int) -> int:
    """Which frame of the world stands in for a camera's picture."""
    return (camera + time) % len(world())


def write_dycheck(root: Path, name: str = "apple") -> Path:
    """Pictures are half of what cameras are for; co-visible is the left half, but all of the last one."""
    where = root / name
    for camera, time in TRAIN + HELD:
        stem, at = f"{camera}_{time:05d}", shown(camera, time)
        written.picture(where / "rgb" / "2x" / f"{stem}.png", world().images[at])
        written.text(where / "camera" / f"{stem}.json", json.dumps(written._nerfies(world(), at)))
    for split, frames in (("train", TRAIN), ("val", HELD)):
        lists = {
            "frame_names": [f"{camera}_{time:05d}" for camera, time in frames],
            "camera_ids": [camera for camera, _ in frames],
            "time_ids": [time for _, time in frames],
        }
        written.text(where / "splits" / f"{split}.json", json.dumps(lists))
    for number, (camera, time) in enumerate(HELD):
        mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
        mask[:, WIDTH // 2 :] *= number == 2
        written.picture(where / "covisible" / "2x" / "val" / f"{camera}_{time:05d}.png", mask)
    for time in (13, 5):
        rows = [[time, 2.25, 1], [0, 0, 0], [4, 5, 1]]
        written.text(where / "keypoint" / "2x" / "train" / f"0_{time:05d}.json", json.dumps(rows))
    written.text(where / "keypoint" / "2x" / "train" / "skeleton.json", "{}")
    written.text(where / "extra.json", json.dumps({"fps": 20.0, "factor": 2}))
    return where


def test_dychecks_views(tmp_path: Path) -> None:
    write_dycheck(tmp_path / "iphone")
    (sequence,) = PROTOCOLS["dycheck_views"].open(tmp_path, ("apple",))
    frames = [shown(*each) for each in TRAIN]
    assert (sequence.frames, sequence.tasks) == (12, ("views",))
    assert sequence.times == pytest.approx([i / 20 for i in range(12)])
    np.testing.assert_array_equal(sequence.images(), world().images[frames])
    assert sequence.cameras is not None
    np.testing.assert_allclose(sequence.cameras().world_from_camera.numpy(), world().poses[frames], atol=1e-7)
    assert sequence.views is not None
    views, held = sequence.views(), [shown(*each) for each in HELD]
    assert views.camera_ids == (1, 2, 1)
    assert views.times == pytest.approx([1 / 20, 1 / 20, 6 / 20])
    np.testing.assert_array_equal(views.images, world().images[held])
    np.testing.assert_allclose(views.cameras.world_from_camera.numpy(), world().poses[held], atol=1e-7)
    np.testing.assert_allclose(views.cameras.intrinsics.numpy(), np.stack([world().intrinsics] * 3), atol=1e-9)
    assert views.covisible is not None
    assert [int(mask.sum()) for mask in views.covisible] == [HEIGHT * WIDTH // 2] * 2 + [HEIGHT * WIDTH]
    assert views.covisible[0, 0, 0]


def test_one_missing_depth_file_of_dycheck_costs_one_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = write_dycheck(tmp_path) / "depth" / "1x"
    where.mkdir(parents=True)
    for camera, time in TRAIN[1:]:
        np.save(where / f"{camera}_{time:05d}.npy", world().depth[shown(camera, time)])
    (sequence,) = PROTOCOLS["dycheck_views"].open(tmp_path, ("apple",))
    assert sequence.depth is not None
    assert sequence.depth()[1].any((1, 2)).tolist() == [False] + [True] * 11
    assert "has no file for 1 of 12 images" in capsys.readouterr().err


def test_dychecks_keypoints_count_from_the_corner(tmp_path: Path) -> None:
    where = write_dycheck(tmp_path)
    (sequence,) = PROTOCOLS["dycheck_views"].open(tmp_path, ("apple",))
    assert sequence.keypoints is not None
    found = sequence.keypoints()
    assert found.frames == (2, 10)
    np.testing.assert_array_equal(found.visible, [[True, False, True]] * 2)
    np.testing.assert_allclose(found.points[0], [[5.5, 2.75], [0, 0], [4.5, 5.5]])
    written.text(where / "keypoint" / "2x" / "train" / "0_00099.json", "[[1, 2, 1]]")
    (sequence,) = PROTOCOLS["dycheck_views"].open(tmp_path, ("apple",))
    assert sequence.keypoints is not None
    with pytest.raises(UserError, match=r"0_00099\.json marks a frame that"):
        sequence.keypoints()
    for path in (where / "keypoint" / "2x" / "train").iterdir():
        path.unlink()
    (sequence,) = PROTOCOLS["dycheck_views"].open(tmp_path, ("apple",))
    assert sequence.keypoints is None


@pytest.mark.parametrize(
    ("path", "content", "match"),
    [
        ("splits/val.json", "{}", r"val\.json is not a split of DyCheck"),
        ("splits/val.json", '{"frame_names": ["a"], "time_ids": [], "camera_ids": [1]}', "not as many times"),
        ("extra.json", '{"fps": 30}', r"extra\.json has no readable factor"),
        ("covisible/2x/val/2_00004.png", None, r"2_00004\.png is missing; expected layout"),
        ("rgb/2x/0_00007.png", None, r"0_00007\.png is missing; expected layout"),
    ],
)
def test_what_dycheck_lacks_is_named(path: str, content: str | None, match: str, tmp_path: Path) -> None:
    where = write_dycheck(tmp_path)
    (where / path).unlink() if content is None else (where / path).write_text(content)
    with pytest.raises(UserError, match=match):
        PROTOCOLS["dycheck_views"].open(tmp_path, ("apple",))


def bounds(path: Path, frames: int, height: int, focal: float) -> np.ndarray:
    """LLFF's file of the world's poses; returns those."""
    poses = np.stack([world().poses[i % len(world())] for i in range(frames)])
    right, down, forward, centre = (poses[:, :3, i] for i in range(4))
    size = np.broadcast_to([height, WIDTH * height / HEIGHT, focal], (frames, 3))
    rows = np.stack([down, right, -forward, centre, size], axis=-1).reshape(frames, 15)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.concatenate([rows, np.ones((frames, 2))], axis=1))
    return poses


def test_first_camera(tmp_path: Path) -> None:
    """Pictures of twice the size of the held-out ones, each pixel four times."""
    where = tmp_path / "data" / "Balloon1"
    for t in range(12):
        large = world().images[t % len(world())].repeat(2, 0).repeat(2, 1)
        written.picture(where / "images" / f"{t:03d}.png", large)
        written.picture(tmp_path / "results" / "gt" / "Balloon1" / f"v000_t{t:03d}.png", world().images[t % 3])
    poses = bounds(where / "poses_bounds.npy", 12, 2 * HEIGHT, 50.0)
    (sequence,) = PROTOCOLS["nvidia_first"].open(tmp_path, ("Balloon1",))
    assert sequence.frames == 12
    np.testing.assert_array_equal(sequence.images(), world().images[np.arange(12) % len(world())])
    assert sequence.cameras is not None
    assert sequence.views is not None
    cameras, views = sequence.cameras(), sequence.views()
    np.testing.assert_allclose(cameras.world_from_camera.numpy(), poses, atol=1e-12)
    expected = [[25.0, 0, WIDTH / 2], [0, 25.0, HEIGHT / 2], [0, 0, 1]]
    np.testing.assert_allclose(cameras.intrinsics.numpy(), [expected] * 12)
    assert views.times == sequence.times
    assert set(views.camera_ids) == {0}
    np.testing.assert_allclose(views.cameras.world_from_camera.numpy(), poses[[0] * 12], atol=1e-12)
    np.testing.assert_array_equal(views.images, world().images[np.arange(12) % 3])
    (tmp_path / "results" / "gt" / "Balloon1" / "v000_t007.png").unlink()
    with pytest.raises(UserError, match=r"v000_t007\.png is missing"):
        PROTOCOLS["nvidia_first"].open(tmp_path, ("Balloon1",))


def write_nsff(root: Path) -> np.ndarray:
    """All pictures but the first are the same files; the last time's cam01 shows another one."""
    where = root / "Jumping" / "dense"
    at = {1: world().images[1], 0: world().images[0], 2: world().dynamic[2].astype(np.uint8) * 255}
    for t in range(LAST + 1):
        written.picture(where / "images" / f"{t:05d}.png", at[t == 0])
        for camera in range(12):
            stem = f"{t:05d}/cam{camera + 1:02d}"
            other = (t, camera) == (LAST, 0)
            written.picture(where / "mv_images" / f"{stem}.jpg", at[int(other)], quality=100, subsampling=0)
            written.picture(where / "mv_masks" / f"{stem}.png", at[2])
    return bounds(where / "poses_bounds.npy", LAST + 1, HEIGHT, 30.0)


def test_nsff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every time the eleven cameras that the video is not of; pictures have 288 rows."""
    assert nvidia_dynamic.NSFF_ROWS == 288
    monkeypatch.setattr(nvidia_dynamic, "NSFF_ROWS", HEIGHT // 2)
    poses = write_nsff(tmp_path)
    (sequence,) = PROTOCOLS["nvidia_nsff"].open(tmp_path, ("Jumping",))
    assert sequence.frames == 24
    assert sequence.images().shape == (24, HEIGHT // 2, WIDTH // 2, 3)
    assert sequence.cameras is not None
    assert sequence.views is not None
    cameras, views = sequence.cameras(), sequence.views()
    np.testing.assert_allclose(cameras.world_from_camera.numpy(), poses, atol=1e-12)
    assert cameras.intrinsics[0, 0, 0].item() == pytest.approx(15)
    assert len(views.camera_ids) == 24 * 11
    assert views.camera_ids[:11] == tuple(range(1, 12))
    assert views.camera_ids[-11:] == tuple(range(11))
    assert views.times[-11:] == (sequence.times[-1],) * 11
    np.testing.assert_allclose(views.cameras.world_from_camera.numpy()[-11:], poses[:11], atol=1e-12)
    small = world().images[1].reshape(HEIGHT // 2, 2, WIDTH // 2, 2, 3).mean((1, 3))
    assert np.abs(views.images[-11] - small).max() < 12
    assert np.abs(views.images[-10].astype(int) - small).max() > 12
    assert views.dynamic is not None
    assert views.dynamic.shape == (264, HEIGHT // 2, WIDTH // 2)
    assert views.dynamic.mean() == pytest.approx(world().dynamic[2].mean(), abs=0.05)


def test_what_poses_bounds_lacks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "poses_bounds.npy"
    np.save(path, np.zeros((3, 15)))
    with pytest.raises(UserError, match="not 17 finite numbers"):
        nvidia_dynamic.poses_bounds(path)
    path.write_bytes(b"no array")
    with pytest.raises(UserError, match=r"not a readable \.npy"):
        nvidia_dynamic.poses_bounds(path)
    bounds(path, 3, HEIGHT, 30.0)
    with pytest.raises(UserError, match="3 poses, none for frame 4"):
        nvidia_dynamic._scaled_cameras(path, [0, 4], HEIGHT, (HEIGHT, WIDTH))


@pytest.mark.parametrize("name", ["dycheck_views", "nvidia_nsff", "nvidia_first"])
def test_an_empty_root_shows_the_layout(name: str, tmp_path: Path) -> None:
    protocol = PROTOCOLS[name]
    assert protocol.name == name
    assert protocol.tasks == ("views",)
    with pytest.raises(UserError, match="expected layout") as caught:
        protocol.open(tmp_path)
    assert protocol.layout in str(caught.value)
