"""Multi-view sets: cameras, depth, tracks and what sees them are those that were written in their layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_prep.importers.datasets import import_dataset
from data_prep.importers.fingerprint import fingerprint
from data_prep.importers.sequences import Settings
from four_d.data.shards import ShardReader
from four_d.datasets.sequence import Sequence
from four_d.datasets.table import DATASETS
from four_d.errors import UserError
from tests.protocols import multi_view
from tests.protocols.multi_view import SEEN, SETS, STILL
from tests.protocols.written import HEIGHT, WIDTH, world

ROUNDED = {"panoptic": 1e-6, "dexycb": 6e-4, "dynamic_replica": 2e-3}
"""Half a step of the files' depth (m)."""


def opened(name: str, root: Path) -> Sequence:
    SETS[name](root)
    (sequence,) = DATASETS[name].open(root)
    return sequence


@pytest.mark.parametrize("name", SETS)
def test_what_is_read_is_what_was_written(name: str, tmp_path: Path) -> None:
    sequence, known, frames = opened(name, tmp_path), world(), list(STILL)
    assert sequence.name == ("valid/3-3_obj" if name == "dynamic_replica" else "boxes")
    assert sequence.camera_ids == (0, 0, 1, 1)
    assert sequence.times == (0, 1 / 30, 0, 1 / 30)
    assert np.abs(sequence.images().astype(int) - known.images[frames]).mean() < 3
    assert sequence.cameras is not None
    cameras = sequence.cameras()
    np.testing.assert_allclose(cameras.world_from_camera.numpy(), known.poses[frames], atol=1e-6)
    np.testing.assert_allclose(cameras.intrinsics.numpy(), np.stack([known.intrinsics] * 4), atol=1e-6)
    assert sequence.depth is not None
    depth, valid = sequence.depth()
    assert valid.all()
    np.testing.assert_allclose(depth, known.depth[frames], atol=ROUNDED[name])
    part = sequence.take([2])
    assert part.depth is not None
    np.testing.assert_array_equal(part.depth()[0], depth[2:3])


@pytest.mark.parametrize("name", SETS)
def test_tracks(name: str, tmp_path: Path) -> None:
    """Seen by any camera; in Panoptic Studio from the query on, and unknown where the file has no number."""
    sequence = opened(name, tmp_path)
    assert sequence.world_tracks is not None
    tracks = sequence.world_tracks()
    expected = SEEN.any(0).T.copy()
    known = np.ones((3, 2), bool)
    if name == "panoptic":
        known[0, 1] = False
        expected[0, 1] = expected[1, 0] = False
    np.testing.assert_array_equal(tracks.known, known)
    np.testing.assert_array_equal(tracks.visible, expected)
    positions = multi_view.paths(2).transpose(1, 0, 2)
    np.testing.assert_allclose(tracks.points[known], positions[known], atol=1e-6)
    assert tracks.times == (0, 1 / 30)


def test_movi_as_opend4rt_unpacks_it(tmp_path: Path) -> None:
    multi_view.movi(tmp_path)
    (sequence,) = DATASETS["kubric_movi"].open(tmp_path)
    known, part = world(), sequence.take([3, 1])
    assert (sequence.name, sequence.times[1]) == ("train/scene_000000", 1 / 12)
    np.testing.assert_array_equal(part.images(), known.images[[3, 1]])
    assert part.cameras is not None
    assert part.depth is not None
    cameras = part.cameras()
    np.testing.assert_allclose(cameras.world_from_camera.numpy(), known.poses[[3, 1]], atol=1e-6)
    focal = known.intrinsics[0, 0]
    expected = [[focal, 0, WIDTH / 2], [0, focal, HEIGHT / 2], [0, 0, 1]]
    np.testing.assert_allclose(cameras.intrinsics[0].numpy(), expected, atol=1e-9)
    np.testing.assert_allclose(part.depth()[0], known.depth[[3, 1]], atol=4e-4)
    before = fingerprint(sequence)
    for path in sorted((tmp_path / "train" / "scene_000000").iterdir()):
        whole = path.read_bytes()
        path.write_bytes(whole + b"\n")
        assert fingerprint(sequence) != before, path
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match=path.name):
            _read(DATASETS["kubric_movi"].open(tmp_path)[0])
        path.write_bytes(whole)
    (tmp_path / "train" / "scene_000000" / "rgb.npy").unlink()
    with pytest.raises(UserError, match="expected layout"):
        DATASETS["kubric_movi"].open(tmp_path)


def stereo4d(root: Path, frames: int = 6) -> np.ndarray:
    """A real video; three tracks: of all times, of two, and of none. Returns positions n t 3, NaN where unknown."""
    name = "9876543210b_66957"
    video = root / "processed" / name / f"{name}-left_rectified.mp4"
    video.parent.mkdir(parents=True)
    video.symlink_to(Path(__file__).parents[1] / "data" / "bikes.mp4")
    (root / "npz").mkdir()
    points = np.full((3, frames, 3), np.nan)
    points[0] = np.arange(frames)[:, None] + [0.0, 1, 2]
    points[1, [1, 4]] = [[5.0, 6, 7], [8, 9, 10]]
    known = np.isfinite(points).all(-1)
    np.savez(
        root / "npz" / f"{name}.npz",
        timestamps=66957 + np.rint(np.arange(frames) * 1e6 / 30).astype(int),
        camera2world=world().poses[[0, 1, 2, 3, 0, 1]][:frames, :3].astype(np.float32),
        track_lengths=known.sum(-1),
        track_indices=np.nonzero(known)[1],
        track_coordinates=points[known],
        fov_bounds=np.zeros(4),
        rectified2rig=np.zeros((2, 3, 3)),
    )
    return points


def test_stereo4d(tmp_path: Path) -> None:
    pytest.importorskip("av")
    points = stereo4d(tmp_path)
    (sequence,) = DATASETS["stereo4d"].open(tmp_path)
    assert sequence.times == pytest.approx([i / 30 for i in range(6)], abs=1e-6)
    part = sequence.take([4, 2])
    assert part.images().shape == (2, 272, 640, 3)
    np.testing.assert_array_equal(part.images()[1], sequence.images()[2])
    assert part.cameras is not None
    cameras = part.cameras()
    np.testing.assert_allclose(cameras.world_from_camera.numpy(), world().poses[[0, 2]], atol=1e-6)
    assert cameras.intrinsics[0, :2, 2].tolist() == [320, 136]
    assert 2 * np.degrees(np.arctan(320 / float(cameras.intrinsics[0, 0, 0]))) == pytest.approx(60)
    assert sequence.world_tracks is not None
    tracks = sequence.world_tracks()
    np.testing.assert_array_equal(tracks.known, np.isfinite(points).all(-1))
    np.testing.assert_array_equal(tracks.visible, tracks.known)
    np.testing.assert_array_equal(tracks.points, np.nan_to_num(points))


def test_tracks_of_stereo4d_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    stereo4d(tmp_path)
    (path,) = (tmp_path / "npz").iterdir()
    stored = dict(np.load(path))
    (sequence,) = DATASETS["stereo4d"].open(tmp_path)
    assert sequence.world_tracks is not None
    for name, value in {"track_lengths": [6, 1, 0], "track_indices": [*range(6), 1, 6]}.items():
        np.savez(path, **{**stored, name: np.array(value)})
        with pytest.raises(UserError, match="its tracks do not fit together"):
            sequence.world_tracks()
    np.savez(path, **{**stored, "timestamps": stored["timestamps"][::-1]})
    with pytest.raises(UserError, match="timestamps are not in ascending order"):
        DATASETS["stereo4d"].open(tmp_path)


def _read(sequence: Sequence) -> None:
    for load in (sequence.images, sequence.cameras, sequence.depth):
        assert load is not None
        load()


def test_the_other_form_of_pytorch3ds_intrinsics(tmp_path: Path) -> None:
    multi_view.dynamic_replica(tmp_path, "ndc_norm_image_bounds")
    (sequence,) = DATASETS["dynamic_replica"].open(tmp_path)
    assert sequence.cameras is not None
    np.testing.assert_allclose(sequence.cameras().intrinsics[3].numpy(), world().intrinsics, atol=1e-6)


def test_one_eye_of_dynamic_replica_is_enough(tmp_path: Path) -> None:
    """And a folder as MapAnything expects it, with the index beside the sequences."""
    multi_view.dynamic_replica(tmp_path)
    for path in sorted((tmp_path / "valid" / "3-3_obj_source_right").rglob("*.*")):
        path.unlink()
    (sequence,) = DATASETS["dynamic_replica"].open(tmp_path / "valid")
    assert (sequence.frames, sequence.camera_ids) == (2, None)
    assert sequence.world_tracks is not None
    np.testing.assert_array_equal(sequence.world_tracks().visible, SEEN[0].T)


@pytest.mark.parametrize("name", SETS)
def test_an_empty_root_shows_the_layout(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected layout"):
        DATASETS[name].open(tmp_path)


@pytest.mark.parametrize("name", SETS)
def test_a_damaged_file_is_named_and_every_file_counts_in_the_fingerprint(name: str, tmp_path: Path) -> None:
    opened(name, tmp_path)

    def everything() -> None:
        for sequence in DATASETS[name].open(tmp_path):
            for load in (sequence.images, sequence.cameras, sequence.depth, sequence.world_tracks):
                assert load is not None
                load()

    before = [fingerprint(sequence) for sequence in DATASETS[name].open(tmp_path)]
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        if path.suffix != ".jgz":
            path.write_bytes(whole + b"\n")
            assert [fingerprint(sequence) for sequence in DATASETS[name].open(tmp_path)] != before, path
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError) as caught:
            everything()
        assert path.name in str(caught.value) or path.parent.name in str(caught.value)
        path.write_bytes(whole)


@pytest.mark.parametrize("name", SETS)
def test_they_become_shards(name: str, tmp_path: Path) -> None:
    SETS[name](tmp_path / "src")
    import_dataset(DATASETS[name], tmp_path / "src", tmp_path / "out", Settings(depth_tolerance=0.05))
    with ShardReader(tmp_path / "out") as reader:
        clip = reader.read(0)
    assert clip.info.camera_ids == [0, 0, 1, 1]
    assert clip.tracks is not None
    assert clip.tracks.points.shape[1:] == (2, 3)
    assert clip.info.metric
