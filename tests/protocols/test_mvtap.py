"""MV-TAP's forms: cameras and tracks are those that were written, and files that contradict themselves are refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data_prep.importers.datasets import import_dataset
from data_prep.importers.sequences import Settings
from four_d.data.shards import ShardReader
from four_d.datasets.sequence import Sequence
from four_d.datasets.table import DATASETS
from four_d.errors import UserError
from tests.protocols.built import jpeg, npz, paths
from tests.protocols.multi_view import SEEN, STILL
from tests.protocols.written import picture, world

TO_OPENGL = np.diag([1.0, -1, -1, 1])


def pixels(frames: list[list[int]]) -> NDArray[np.float64]:
    """Pixels v t n 2 of `paths` by the world's cameras of these frames, v t."""
    found = np.empty((2, 2, 3, 2))
    for view, own in enumerate(frames):
        for at, frame in enumerate(own):
            seen = (world().intrinsics @ np.linalg.inv(world().poses[frame])[:3]) @ np.c_[paths(2)[at], np.ones(3)].T
            found[view, at] = (seen[:2] / seen[2]).T
    return found


def kubric(root: Path, form: str = "npz", **changed: NDArray[np.generic]) -> None:
    """Two moving cameras: frames 0 and 1, 2 and 3 of the world."""
    frames = [[0, 1], [2, 3]]
    for view, own in enumerate(frames):
        for at, frame in enumerate(own):
            picture(root / "part0" / "frames" / "7" / f"view_{view}" / f"rgba_{at:05d}.png", world().images[frame])
    poses = TO_OPENGL @ np.linalg.inv(world().poses[np.array(frames)])
    content = {
        "coords": pixels(frames).transpose(0, 2, 1, 3),
        "occluded": ~SEEN.transpose(0, 2, 1),
        "is_bkgd": np.zeros((2, 3, 2), bool),
        "cam_rot": poses[..., :3, :3],
        "cam_trans": poses[..., :3, 3],
        "intrinsics": np.tile(world().intrinsics, (2, 2, 1, 1)),
        **changed,
    }
    folder = root / "part0" / "stacked_tracks" / "7"
    folder.mkdir(parents=True)
    if form == "npz":
        npz(folder / "tracks.npz", **content)
    else:
        np.save(folder / "tracks.npy", np.array(content, object), allow_pickle=True)


def harmony(root: Path, extra: int = 1, **changed: NDArray[np.generic]) -> None:
    """Two still cameras, which see the world's frames 0 and 2; ``extra`` images without positions."""
    scene = root / "07_hugging" / "001"
    frames = [[0, 0], [2, 2]]
    for view, (frame, _) in enumerate(frames):
        for at in range(2 + extra):
            jpeg(scene / f"cam{view + 1:02d}" / f"rgba_{at:05d}.jpg", world().images[frame])
        np.save(scene / f"cam{view + 1:02d}" / "pinhole_K.npy", world().intrinsics)
    np.save(scene / "extrinsics.npy", np.linalg.inv(world().poses[[0, 2]]))
    filtered = np.ones((2, 3), bool)
    filtered[1, 1] = False
    content = {
        "trajectory": pixels(frames),
        "trajectory_3d": paths(2),
        "visibility": SEEN,
        "flow_filter_masks": filtered,
        **changed,
    }
    np.save(scene / "rectified_tracks_from_smpl.npy", np.array(content, object), allow_pickle=True)


WRITERS: dict[str, Callable[[Path], None]] = {"mvtap_kubric": kubric, "harmony4d": harmony}
NAMES = {"mvtap_kubric": "part0/7", "harmony4d": "07_hugging/001"}


def opened(name: str, root: Path) -> Sequence:
    (sequence,) = DATASETS[name].open(root)
    return sequence


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_read_is_what_was_written(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    sequence, known = opened(name, tmp_path), world()
    frames = [0, 1, 2, 3] if name == "mvtap_kubric" else list(STILL)
    assert (sequence.name, sequence.frames, sequence.camera_ids) == (NAMES[name], 4, (0, 0, 1, 1))
    assert np.abs(sequence.images().astype(int) - known.images[frames]).mean() < 3
    assert sequence.cameras is not None
    cameras = sequence.cameras()
    np.testing.assert_allclose(cameras.world_from_camera.numpy(), known.poses[frames], atol=1e-6)
    np.testing.assert_allclose(cameras.intrinsics.numpy(), np.stack([known.intrinsics] * 4))
    assert sequence.world_tracks is not None
    tracks = sequence.world_tracks()
    assert tracks.known.all()
    np.testing.assert_allclose(tracks.points, paths(2).transpose(1, 0, 2), atol=1e-5)
    np.testing.assert_array_equal(tracks.visible, SEEN.any(0).T)


def test_a_pickled_dictionary_holds_the_same(tmp_path: Path) -> None:
    for form in ("npz", "npy"):
        kubric(tmp_path / form, form)
    one, other = (opened("mvtap_kubric", tmp_path / form).world_tracks for form in ("npz", "npy"))
    assert one is not None
    assert other is not None
    np.testing.assert_array_equal(one().points, other().points)


def test_a_point_that_only_a_filtered_view_sees_is_not_seen(tmp_path: Path) -> None:
    seen = SEEN.copy()
    seen[0, :, 1] = False
    harmony(tmp_path, visibility=seen)
    load = opened("harmony4d", tmp_path).world_tracks
    assert load is not None
    np.testing.assert_array_equal(load().visible, [[True, True], [False, False], [False, False]])


@pytest.mark.parametrize("name", WRITERS)
def test_pixels_that_do_not_fit_the_cameras_are_refused(name: str, tmp_path: Path) -> None:
    """As with poses given the other way round, or pixels of another size."""
    if name == "mvtap_kubric":
        poses = TO_OPENGL @ world().poses.reshape(2, 2, 4, 4)
        kubric(tmp_path, cam_rot=poses[..., :3, :3], cam_trans=poses[..., :3, 3])
    else:
        harmony(tmp_path, trajectory=2 * pixels([[0, 0], [2, 2]]))
    load = opened(name, tmp_path).world_tracks
    assert load is not None
    with pytest.raises(UserError, match=r"do not fit its cameras|do not fall onto its pixels"):
        load()


class Runs:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("ran",)


@pytest.mark.parametrize("name", WRITERS)
def test_what_cannot_be_read_is_named(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="expected layout"):
        DATASETS[name].open(tmp_path)
    WRITERS[name](tmp_path)

    def read() -> None:
        sequence = opened(name, tmp_path)
        for load in (sequence.images, sequence.cameras, sequence.world_tracks):
            assert load is not None
            load()

    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file() and "00002" not in path.name):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match=path.name):
            read()
        path.write_bytes(whole)
    if name == "harmony4d":
        path = tmp_path / NAMES[name] / "rectified_tracks_from_smpl.npy"
        for value, words in ((Runs(), "it would run builtins.print"), ({"visibility": SEEN}, "has no trajectory")):
            np.save(path, np.array(value, object), allow_pickle=True)
            with pytest.raises(UserError, match=words):
                read()
        path.write_bytes(pickle.dumps(1))
        with pytest.raises(UserError, match=path.name):
            read()
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("name", WRITERS)
def test_they_become_shards(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / "src")
    import_dataset(DATASETS[name], tmp_path / "src", tmp_path / "out", Settings())
    with ShardReader(tmp_path / "out") as reader:
        clip = reader.read(0)
    assert clip.info.camera_ids == [0, 0, 1, 1]
    assert clip.info.metric == (name == "mvtap_kubric")
    assert clip.tracks is not None
    assert clip.tracks.points.shape[1:] == (2, 3)
