"""Sets that peers train on: what is read is what was written in their layouts, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_prep.importers.datasets import import_dataset
from data_prep.importers.sequences import Settings
from four_d.data.check import check
from four_d.data.shards import ShardReader
from four_d.datasets import tartanair
from four_d.datasets.sequence import Sequence
from four_d.datasets.table import DATASETS
from four_d.errors import UserError
from four_d.protocols.table import PROTOCOLS
from tests.protocols import built, written
from tests.protocols.written import HEIGHT, WIDTH, world

SAMPLES = Path(__file__).parents[3] / "shared" / "samples"
NAMES = {
    "cut3r_pointodyssey": "train/ani",
    "cut3r_dynamic_replica": "train/apartment/left",
    "cut3r_tartanair": "office/Easy/P000",
    "cut3r_vkitti2": "Scene01/clone/Camera_0",
    "cut3r_waymo": "segment-1/1",
    "pointodyssey": "train/ani",
    "tartanair": "office/Easy/P000",
    "vkitti2": "Scene01/clone",
    "kubric": "7",
}
ROUNDED = {"cut3r_vkitti2": 0.006, "vkitti2": 0.006, "pointodyssey": 0.008}
"""Half a count of the files' depth (m)."""


def opened(name: str, root: Path) -> Sequence:
    if name in ("spring", "cut3r_waymo"):
        pytest.importorskip("h5py")
    built.SETS[name](root)
    (sequence,) = DATASETS[name].open(root)
    return sequence


def read_all(name: str, root: Path) -> None:
    for sequence in DATASETS[name].open(root):
        for load in (sequence.images, sequence.cameras, sequence.depth, sequence.world_tracks):
            if load is not None:
                load()


@pytest.mark.parametrize("name", built.SETS)
def test_what_is_read_is_what_was_written(name: str, tmp_path: Path) -> None:
    sequence, known = opened(name, tmp_path), world()
    assert sequence.name == NAMES.get(name, sequence.name)
    assert sequence.frames == 4
    assert np.abs(sequence.images().astype(int) - known.images).mean() < 3
    assert sequence.cameras is not None
    cameras = sequence.cameras()
    assert cameras.known is not None
    lens = np.array([[320, 0, 320], [0, 320, 240], [0, 0, 1.0]]) if name == "tartanair" else known.intrinsics
    np.testing.assert_allclose(cameras.intrinsics.numpy(), np.stack([lens] * 4), atol=1e-6)
    if name == "cut3r_hoi4d":
        assert not cameras.known.any()
    else:
        assert cameras.known.all()
        np.testing.assert_allclose(cameras.world_from_camera.numpy(), known.poses, atol=1e-6)
    assert sequence.depth is not None
    depth, valid = sequence.depth()
    assert not valid[:, 0, 0].any()  # the sky
    assert valid[:, 1:].all()
    np.testing.assert_allclose(depth[valid], known.depth[valid], rtol=1e-5, atol=ROUNDED.get(name, 0))


@pytest.mark.parametrize("name", sorted(built.SETS.keys() & PROTOCOLS.keys()))
def test_they_are_scored_by_their_names(name: str, tmp_path: Path) -> None:
    """All that each camera has truth of; the cameras of a rig one by one."""
    opened(name, tmp_path)
    found = PROTOCOLS[name].open(tmp_path)
    assert (
        [sequence.name for sequence in found] == ["7/camera_0", "7/camera_1"]
        if name == "kubric"
        else [NAMES.get(name, found[0].name)]
    )
    assert {sequence.tasks for sequence in found} == {("pose", "video_depth", "depth", "points")}
    assert all(sequence.camera_ids is None and sequence.metric for sequence in found)


@pytest.mark.parametrize("name", built.SETS)
def test_a_part_reads_only_its_own_files(name: str, tmp_path: Path) -> None:
    sequence = opened(name, tmp_path)
    part = sequence.take([2])
    others = [path for path in tmp_path.rglob("*") if path.suffix in (".jpg", ".png", ".tiff", ".npy", ".dsp5", ".exr")]
    kept = {"vkitti2": "00000", "kubric": "00000", "spring": "0003"}.get(name, "0002")
    for path in others:
        if kept not in path.name and kept not in path.parent.name:
            path.unlink()
    assert part.images().shape == (1, HEIGHT, WIDTH, 3)
    assert part.depth is not None
    assert part.cameras is not None
    np.testing.assert_allclose(part.depth()[0][0, 1:], world().depth[2, 1:], rtol=1e-5, atol=ROUNDED.get(name, 0))
    assert part.cameras().world_from_camera.shape == (1, 4, 4)


@pytest.mark.parametrize("name", built.SETS)
def test_an_empty_root_shows_the_layout(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected layout") as caught:
        DATASETS[name].open(tmp_path)
    assert DATASETS[name].layout in str(caught.value)


@pytest.mark.parametrize("name", built.SETS)
def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    """Whichever of the sequence's files is cut short."""
    opened(name, tmp_path)
    unread = ("tracks_2d", "00009_1")
    for path in [path for path in sorted(tmp_path.rglob("*")) if path.is_file() and path.stem not in unread]:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError) as caught:
            read_all(name, tmp_path)
        assert path.name in str(caught.value) or path.parent.name in str(caught.value)
        path.write_bytes(whole)


def test_tracks_of_pointodyssey(tmp_path: Path) -> None:
    sequence = opened("pointodyssey", tmp_path)
    assert sequence.world_tracks is not None
    tracks = sequence.world_tracks()
    np.testing.assert_array_equal(tracks.known.sum(0), [3, 3, 3, 2])
    np.testing.assert_array_equal(tracks.visible.sum(0), [3, 0, 3, 2])
    np.testing.assert_allclose(tracks.points[1], built.paths(4)[:, 1])


def test_points_of_kubric_are_visible_if_a_view_sees_them(tmp_path: Path) -> None:
    sequence = opened("kubric", tmp_path)
    assert sequence.camera_ids == (0, 0, 1, 1)
    assert sequence.times == (0, 1 / 12, 0, 1 / 12)
    assert sequence.world_tracks is not None
    tracks = sequence.world_tracks()
    np.testing.assert_array_equal(tracks.visible, [[True, True], [True, True], [False, False]])
    assert tracks.known.all()


def test_kubric_of_one_view(tmp_path: Path) -> None:
    built.kubric(tmp_path, views=1, tracks=False)
    (sequence,) = DATASETS["kubric"].open(tmp_path)
    assert (sequence.frames, sequence.camera_ids, sequence.world_tracks) == (2, None, None)


def test_both_cameras_of_virtual_kitti_are_synchronised(tmp_path: Path) -> None:
    sequence = opened("vkitti2", tmp_path)
    assert sequence.camera_ids == (0, 0, 1, 1)
    assert sequence.times == (0, 0.1, 0, 0.1)
    table = tmp_path / "Scene01" / "clone" / "extrinsic.txt"
    table.write_text(table.read_text().rpartition("\n1 1 ")[0] + "\n")
    with pytest.raises(UserError, match=r"extrinsic\.txt has no line of frame and camera \(1, 1\)"):
        DATASETS["vkitti2"].open(tmp_path)[0].cameras()  # pyright: ignore


@pytest.mark.parametrize("name", ["cut3r_dynamic_replica", "pointodyssey", "vkitti2", "kubric", "cut3r_hoi4d"])
def test_they_become_shards_that_pass_the_check(name: str, tmp_path: Path) -> None:
    built.SETS[name](tmp_path / "src")
    tolerance = 0.05 if name in ROUNDED else None  # a count of depth is 1 % here
    manifest = import_dataset(DATASETS[name], tmp_path / "src", tmp_path / "out", Settings(depth_tolerance=tolerance))
    report = check(tmp_path / "out")
    assert report.ok, report.table()
    assert manifest.sources[name].licence == DATASETS[name].licence
    with ShardReader(tmp_path / "out") as reader:
        clip = reader.read(0)
    assert clip.depth is not None
    assert clip.intrinsics is not None
    assert (clip.world_from_camera is None) == (name == "cut3r_hoi4d")
    assert (clip.tracks is not None) == (name in ("pointodyssey", "kubric"))
    valid = clip.depth > 0
    np.testing.assert_allclose(clip.depth[valid], world().depth[valid], rtol=0.005, atol=ROUNDED.get(name, 0))


def test_both_licences_of_pointodyssey_are_kept_and_the_stricter_rules() -> None:
    assert DATASETS["pointodyssey"].licence.endswith("the stricter rules: CC BY-NC-SA 4.0")
    assert "MIT (its hub card)" in DATASETS["pointodyssey"].licence


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="../shared/samples is not there")
def test_real_tartanair(tmp_path: Path) -> None:
    """Two real frames: the second camera's place is not in the source, so both stand at the origin here."""
    flight, source = tmp_path / "town" / "Easy" / "P000", SAMPLES / "tartanair_pair"
    for i in range(2):
        image = flight / "image_left" / f"{i:06d}_left.png"
        depth = flight / "depth_left" / f"{i:06d}_left_depth.npy"
        for path, of in ((image, f"image{i + 1}.png"), (depth, f"depth{i + 1}.npy")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(source / of)
    written.text(flight / "pose_left.txt", "0 0 0 0 0 0 1\n" * 2)
    (sequence,) = tartanair.read_tartanair(tmp_path)
    assert sequence.depth is not None
    assert sequence.cameras is not None
    depth, valid = sequence.depth()
    assert valid.all()
    assert depth.min() == pytest.approx(1.35, abs=0.01)
    assert depth.max() == pytest.approx(30.6, abs=0.05)
    np.testing.assert_array_equal(sequence.cameras().world_from_camera[0].numpy(), tartanair.BODY_FROM_CAMERA)
