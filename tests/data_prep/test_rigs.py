"""Rigs of a user's own cameras: which images are of one moment, and what becomes of clocks that differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.importers.datasets import import_dataset
from data_prep.importers.sequences import Settings, parts
from four_d.data.shards import ShardReader
from four_d.datasets.colmap import read_colmap
from four_d.datasets.folder import read_folder
from four_d.datasets.sequence import Sequence
from four_d.datasets.table import DATASETS
from four_d.errors import UserError
from four_d.protocols.table import PROTOCOLS
from tests.data_prep.test_import_own import cameras_json, colmap, pictures
from tests.protocols.written import HEIGHT, WIDTH, world


def moments(sequence: Sequence) -> list[tuple[int, int]]:
    """Camera and thirtieth of a second of each frame."""
    assert sequence.camera_ids is not None
    return [(camera, round(30 * time)) for camera, time in zip(sequence.camera_ids, sequence.times, strict=True)]


@pytest.mark.parametrize("word", ["frame_{:05d}", "{}", "00{}_{}"])
def test_frames_of_one_number_or_name_are_of_one_moment(
    word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where a camera lost one: the others do not move up."""
    for camera, numbers in {"left": [7, 8, 9, 10], "right": [7, 9, 10]}.items():
        pictures(tmp_path / "frames" / camera, [f"{word.format(number, number)}.png" for number in numbers])
    (sequence,) = read_folder(tmp_path)
    assert moments(sequence) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 2), (1, 3)]
    assert "1 of 4 moments are not seen by all (8)" in capsys.readouterr().err.replace("00", "").replace("8_", "")


def test_cameras_may_name_frames_after_themselves(tmp_path: Path) -> None:
    for camera in ("left", "right"):
        pictures(tmp_path / "frames" / camera, [f"{camera}_{number}.png" for number in (1, 2, 12)])
    (sequence,) = read_folder(tmp_path)
    assert moments(sequence) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


def test_cameras_without_a_common_number_or_name_are_an_error_that_tells_the_remedy(tmp_path: Path) -> None:
    pictures(tmp_path / "frames" / "left", ["1.png", "2.png"])
    pictures(tmp_path / "frames" / "right", ["8.png", "9.png"])
    with pytest.raises(UserError, match=r"camera left has no image of one number .* give times in cameras.json"):
        read_folder(tmp_path)
    times = {"left/1": 0.0, "left/2": 0.1, "right/8": 0.0, "right/9": 0.1}
    cameras_json(tmp_path / "cameras.json", frames=[{"image": f"{n}.png", "time": t} for n, t in times.items()])
    (sequence,) = read_folder(tmp_path)
    assert sequence.times == (0, 0.1, 0, 0.1)


def test_one_missing_image_leaves_a_rig_of_colmap_a_rig(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    colmap(tmp_path, ["left/0.png", "left/2.png", "right/1.png", "right/2.png"])
    (sequence,) = read_colmap(tmp_path)
    assert sequence.camera_ids == (0, 0, 1, 1)
    assert moments(sequence) == [(0, 0), (0, 2), (1, 1), (1, 2)]
    told = capsys.readouterr().err
    assert "2 folders (left, right) are taken for synchronised cameras: 2 of 4 images have one of the same" in told


def test_folders_of_colmap_that_are_no_rig_are_said_to_be_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colmap(tmp_path, ["a/0.png", "a/1.png", "a/2.png", "b/3.png"])
    (sequence,) = read_colmap(tmp_path)
    assert sequence.camera_ids is None
    assert "are taken for images of one moving camera: 0 of 4 images" in capsys.readouterr().err


def test_images_are_those_beside_the_model(tmp_path: Path) -> None:
    """Undistorted images go with the undistorted model, not with the raw ones of the same names."""
    names = [f"{i:03d}.png" for i in range(4)]
    colmap(tmp_path / "dense", names)
    (tmp_path / "dense" / "sparse" / "0").rename(tmp_path / "model")
    (tmp_path / "dense" / "sparse").rmdir()
    (tmp_path / "model").rename(tmp_path / "dense" / "sparse")
    pictures(tmp_path / "images", names[:2])
    (sequence,) = read_colmap(tmp_path)
    assert sequence.frames == 4
    np.testing.assert_array_equal(sequence.images(), world().images)


def rig(shift: float, drift: float = 0.0, frames: int = 12) -> Sequence:
    """Two cameras of 30 frames a second; the second one's clock is late, and slow."""
    clock = np.arange(frames) / 30
    times = [*clock.tolist(), *(clock * (1 + drift) + shift).tolist()]
    start = min(times)
    return Sequence(
        name="rig",
        frames=2 * frames,
        times=tuple(time - start for time in times),
        camera_ids=(0,) * frames + (1,) * frames,
        images=lambda: np.zeros((2 * frames, HEIGHT, WIDTH, 3), np.uint8),
    )


@pytest.mark.parametrize("shift", [0.0, 0.004, -0.004, 0.016])
@pytest.mark.parametrize("every", [1, 2, 5])
def test_clocks_that_differ_a_little_drop_no_camera(shift: float, every: int) -> None:
    """Each clip has every N-th frame of both cameras, and as many times as were asked for."""
    clips = parts(rig(shift), Settings(every=every, clip_frames=4))
    kept = range(0, 12, every)
    assert len(clips) == -(-len(kept) // 4)
    assert sorted(frame for clip in clips for frame in clip) == [12 * camera + f for camera in (0, 1) for f in kept]
    for clip in clips:
        cameras = [int(frame >= 12) for frame in clip]
        assert cameras == sorted(cameras)
        assert cameras.count(0) == cameras.count(1)


def test_clocks_that_drift_apart_change_partners_and_lose_nothing() -> None:
    sequence = rig(0.0, drift=0.03, frames=100)
    clips = parts(sequence, Settings(clip_frames=10))
    assert sorted(frame for clip in clips for frame in clip) == list(range(200))
    for clip in clips:
        times = [sequence.times[frame] for frame in clip]
        assert max(times) - min(times) < 11 / 30


def test_single_frames_at_different_times_are_different_moments() -> None:
    sequence = replace(rig(5.0, frames=1), times=(0.0, 5.0))
    assert parts(sequence, Settings(clip_frames=1)) == [[0], [1]]


def test_a_rig_is_scored_camera_by_camera(tmp_path: Path) -> None:
    """And without a fit only where lengths are metres."""
    for camera in ("left", "right"):
        pictures(tmp_path / "frames" / camera, ["0.png", "1.png"])
    lens = {"intrinsics": world().intrinsics.tolist(), "world_from_camera": np.eye(4).tolist()}
    cameras_json(tmp_path / "cameras.json", metric=False, cameras={"left": lens, "right": lens})
    found = PROTOCOLS["folder"].open(tmp_path)
    assert [sequence.name.rpartition("/")[2] for sequence in found] == ["camera_0", "camera_1"]
    assert all(sequence.camera_ids is None and sequence.frames == 2 for sequence in found)
    assert [sequence.times for sequence in found] == [(0.0, 1 / 30)] * 2
    assert [sequence.metric for sequence in found] == [False, False]
    colmap(tmp_path / "model", ["left/0.png", "left/1.png", "right/0.png", "right/1.png"])
    found = PROTOCOLS["colmap"].open(tmp_path / "model")
    assert [(sequence.frames, sequence.metric) for sequence in found] == [(2, False), (2, False)]


def test_a_rig_with_a_missing_image_becomes_shards(tmp_path: Path) -> None:
    for camera, names in {"left": ["0.png", "1.png", "2.png"], "right": ["0.png", "2.png"]}.items():
        pictures(tmp_path / "src" / "frames" / camera, names)
    import_dataset(DATASETS["folder"], tmp_path / "src", tmp_path / "out")
    with ShardReader(tmp_path / "out") as reader:
        clip = reader.read(0)
    assert clip.info.camera_ids == [0, 0, 0, 1, 1]
    assert clip.info.times == pytest.approx([0, 1 / 30, 2 / 30, 0, 2 / 30])
