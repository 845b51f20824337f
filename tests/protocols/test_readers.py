"""Readers give back what was written in a set's own layout, in our conventions, and name what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from four_d.datasets import rgbd, scenes, sintel
from four_d.datasets.sequence import Sequence
from four_d.errors import UserError
from four_d.protocols.table import PROTOCOLS
from tests.protocols import written
from tests.protocols.built import SETS
from tests.protocols.written import HEIGHT, WIDTH, WRITERS, world


def opened(name: str, root: Path) -> list[Sequence]:
    writer, only = WRITERS[name]
    writer(root)
    return PROTOCOLS[name].open(root, None if only is None else (only,))


def assert_cameras(sequence: Sequence, frames: list[int], intrinsics: np.ndarray | None = None) -> None:
    assert sequence.cameras is not None
    cameras = sequence.cameras()
    known = world()
    assert cameras.known is not None
    assert cameras.known.all()
    np.testing.assert_allclose(cameras.world_from_camera.numpy(), known.poses[frames], atol=1e-7)
    expected = known.intrinsics if intrinsics is None else intrinsics
    np.testing.assert_allclose(cameras.intrinsics.numpy(), np.stack([expected] * len(frames)), atol=1e-9)


def assert_depth(sequence: Sequence, frames: list[int], error: float) -> None:
    assert sequence.depth is not None
    depth, valid = sequence.depth()
    assert depth.dtype == np.float32
    assert valid.all()
    assert np.abs(depth - world().depth[frames]).max() <= error


def assert_images(sequence: Sequence, frames: list[int], error: float = 0) -> None:
    images = sequence.images()
    assert images.shape == (len(frames), HEIGHT, WIDTH, 3)
    assert sequence.frames == len(frames) == len(sequence.times)
    assert np.abs(images.astype(int) - world().images[frames]).max() <= error


def test_every_protocol_has_a_writer() -> None:
    in_npz = {"worldtrack", "tapvid3d", "any4d_tracks"}  # test_npz_tracks.py, tests/test_published_snippets.py
    of_views = {"dycheck_views", "nvidia_nsff", "nvidia_first"}  # tests/protocols/test_views.py
    pickled = {"tapvid_first", "tapvid_strided"}  # tests/test_published_pixels.py
    turns = {f"artemis_{degrees}" for degrees in (0, 40, 90, 140, 180)}  # tests/protocols/test_artemis.py
    snippets = {
        f"vdpm_{name}_{kind}" for name in ("pointodyssey", "kubric") for kind in ("margin2", "margin8", "tracks")
    }
    rigs = {"mvtracker_kubric", "mvtracker_panoptic", "mvtracker_dexycb"}  # tests/test_published_rigs.py
    whole = {"colmap", "nerfstudio", "wai", "cut3r", "movi_tfds"} | SETS.keys() - {
        "vkitti2"
    }  # tests/protocols/test_peers_sets.py
    assert WRITERS.keys() | in_npz | of_views | pickled | rigs | turns | snippets | whole == PROTOCOLS.keys()


@pytest.mark.parametrize("name", WRITERS)
def test_what_an_entry_says_holds_of_its_sequences(name: str, tmp_path: Path) -> None:
    protocol = PROTOCOLS[name]
    found = opened(name, tmp_path)
    assert protocol.name == name
    for sequence in found:
        assert set(sequence.tasks) <= set(protocol.tasks)
        assert sequence.times[0] == 0
        assert list(sequence.times) == sorted(sequence.times)
        images = sequence.images()
        assert images.dtype == np.uint8
        assert len(images) == sequence.frames
        for task in sequence.tasks:
            needs = {"pose": ("cameras",), "points": ("cameras", "depth"), "mask": ("masks",)}.get(task, ("depth",))
            assert all(getattr(sequence, need) is not None for need in needs)
        if sequence.depth is not None:
            depth, valid = sequence.depth()
            assert depth.shape == valid.shape
            assert len(depth) == sequence.frames
            assert (depth[~valid] == 0).all()
    keys = [(sequence.name, task) for sequence in found for task in sequence.tasks]
    assert len(keys) == len(set(keys))
    assert {task for _, task in keys} == set(protocol.tasks)


@pytest.mark.parametrize("name", WRITERS)
def test_an_empty_root_is_an_error_that_shows_the_layout(name: str, tmp_path: Path) -> None:
    protocol = PROTOCOLS[name]
    with pytest.raises(UserError, match="expected layout") as caught:
        protocol.open(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert protocol.layout in str(caught.value)
    with pytest.raises(UserError, match="is not a folder"):
        protocol.open(tmp_path / "nowhere")


@pytest.mark.parametrize("name", WRITERS)
def test_opening_reads_no_picture_and_loading_names_a_broken_one(name: str, tmp_path: Path) -> None:
    opened(name, tmp_path)
    pictures = [path for path in tmp_path.rglob("*") if path.suffix in (".png", ".jpg", ".npy", ".dpt", ".flo", ".cam")]
    for path in pictures:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    only = WRITERS[name][1]
    for sequence in PROTOCOLS[name].open(tmp_path, None if only is None else (only,)):
        for part in (sequence.images, sequence.depth, sequence.masks):
            if part is None:
                continue
            with pytest.raises(UserError) as caught:
                part()
            assert any(str(path) in str(caught.value) for path in pictures)
            remedies = ("download it again", *(("save it",) if name == "folder" else ()))  # nobody downloads their own
            assert any(remedy in str(caught.value) for remedy in remedies)


@pytest.mark.parametrize("name", WRITERS)
def test_an_unknown_sequence_is_an_error(name: str, tmp_path: Path) -> None:
    WRITERS[name][0](tmp_path)
    with pytest.raises(UserError, match="there is no sequence alley_22; choose from"):
        PROTOCOLS[name].open(tmp_path, ("alley_22",))


def test_a_missing_sequence_is_an_error(tmp_path: Path) -> None:
    written.sintel(tmp_path)
    with pytest.raises(UserError, match="alley_1"):
        PROTOCOLS["sintel"].open(tmp_path)


def test_sintel(tmp_path: Path) -> None:
    (sequence,) = opened("sintel", tmp_path)
    assert_images(sequence, [0, 1, 2, 3])
    assert_cameras(sequence, [0, 1, 2, 3])
    assert_depth(sequence, [0, 1, 2, 3], 0)
    assert sequence.tasks == ("pose", "video_depth", "depth", "mask")
    assert sequence.times[1] == pytest.approx(1 / 24)


def test_sintels_mask_is_what_moves(tmp_path: Path) -> None:
    (sequence,) = opened("sintel", tmp_path)
    assert sequence.masks is not None
    masks, dynamic = sequence.masks(), world().dynamic
    assert sequence.mask_frames == 3
    assert not masks[3].any()
    assert not (masks[:3] & ~dynamic[:3]).any()
    assert (masks[:3] & dynamic[:3]).sum() > 0.85 * dynamic[:3].sum()  # what turns hardly moves at its axis


def test_sintels_lists() -> None:
    assert len(sintel.SEQUENCES) == len(set(sintel.SEQUENCES)) == PROTOCOLS["sintel"].sequences
    assert len(sintel.POSE) == 14
    assert set(sintel.POSE) < set(sintel.SEQUENCES)


@pytest.mark.parametrize(
    ("protocol", "name", "tasks"),
    [
        ("sintel", "alley_1", ("video_depth", "depth", "mask")),
        ("sintel_14", "alley_1", ("mask",)),
        ("sintel_page4d", "market_5", ("pose", "mask")),
    ],
)
def test_sintels_variants(protocol: str, name: str, tasks: tuple[str, ...], tmp_path: Path) -> None:
    written.sintel(tmp_path, name)
    (sequence,) = PROTOCOLS[protocol].open(tmp_path / "training", (name,))
    assert sequence.tasks == tasks


def test_sintel_without_an_archive_offers_what_is_left(tmp_path: Path) -> None:
    written.sintel(tmp_path)
    (tmp_path / "training" / "flow").rename(tmp_path / "elsewhere")
    (sequence,) = PROTOCOLS["sintel"].open(tmp_path, ("alley_2",))
    assert sequence.tasks == ("pose", "video_depth", "depth")
    assert sequence.masks is None


def test_tum_takes_every_third_picture_that_has_a_pose(tmp_path: Path) -> None:
    (sequence,) = opened("tum", tmp_path)
    assert_images(sequence, [0, 3, 3])  # pictures 0, 3 and 7 of those with a pose: 0 1 2 3 5 6 7
    k = np.array([[535.4, 0, 320.6], [0, 539.2, 248.1], [0, 0, 1]])
    assert_cameras(sequence, [0, 3, 3], k)
    assert sequence.times == pytest.approx([0, 3 * 0.0333, 7 * 0.0333], abs=1e-5)


def test_tum_stops_at_90(tmp_path: Path) -> None:
    written.tum(tmp_path, frames=280)
    (sequence,) = PROTOCOLS["tum"].open(tmp_path, ("rgbd_dataset_freiburg3_walking_xyz",))
    assert sequence.frames == 90


def test_bonn_by_index(tmp_path: Path) -> None:
    (sequence,) = opened("bonn", tmp_path)
    frames = [i % 4 for i in range(30, 36)]
    assert_images(sequence, frames)
    assert_depth(sequence, frames, 0.5 / 5000 + 1e-6)
    k = np.array([[542.822841, 0, 316.09352], [0, 542.57687, 238.256098], [0, 0, 1]])
    assert_cameras(sequence, frames, k)


def test_bonn_by_time(tmp_path: Path) -> None:
    """A lost depth file shifts what is cut by index; matched by time it is missed by one frame only."""
    written.bonn(tmp_path)
    lost = sorted((tmp_path / "rgbd_bonn_balloon2" / "depth").iterdir())[32]
    lost.unlink()
    with pytest.raises(UserError, match=r"has 6 frames, .* has 5"):
        PROTOCOLS["bonn"].open(tmp_path, ("balloon2",))
    (sequence,) = PROTOCOLS["bonn_matched"].open(tmp_path, ("balloon2",))
    assert sequence.depth is not None
    depth, valid = sequence.depth()
    assert valid.all((1, 2)).tolist() == [True, True, False, True, True, True]
    frames = np.arange(30, 36) % 4
    assert np.abs(depth - world().depth[frames])[valid].max() < 0.5 / 5000 + 1e-6
    assert sequence.cameras is not None
    cameras = sequence.cameras()
    poses = world().poses[frames] @ rgbd.body_from_camera()
    np.testing.assert_allclose(cameras.world_from_camera.numpy(), poses, atol=1e-7)


def test_bonns_calibration_is_rigid() -> None:
    pose = rgbd.body_from_camera()
    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)
    assert np.linalg.norm(pose[:3, 3]) < 0.02


def test_bonn_with_a_short_trajectory(tmp_path: Path) -> None:
    written.bonn(tmp_path)
    truth = tmp_path / "rgbd_bonn_balloon2" / "groundtruth.txt"
    truth.write_text("".join(truth.read_text().splitlines(keepends=True)[:33]))
    (sequence,) = PROTOCOLS["bonn"].open(tmp_path, ("balloon2",))
    assert sequence.cameras is not None
    with pytest.raises(UserError, match="fewer than 36 poses"):
        sequence.cameras()


def test_scannet(tmp_path: Path) -> None:
    """Files sort by number, not by name; a lost pose is an unknown camera."""
    (sequence,) = opened("scannet", tmp_path)
    frames = [0, 3, 6 % 4, 9 % 4]
    assert_images(sequence, frames, error=12)
    assert sequence.cameras is not None
    cameras = sequence.cameras()
    assert cameras.known is not None
    assert cameras.known.tolist() == [True, False, True, True]
    chosen = np.array(frames)[[0, 2, 3]]
    np.testing.assert_allclose(cameras.world_from_camera.numpy()[[0, 2, 3]], world().poses[chosen], atol=1e-12)
    np.testing.assert_allclose(cameras.intrinsics.numpy()[0], world().intrinsics, atol=1e-9)
    assert sequence.times[1] == pytest.approx(0.1)


def test_scannets_depth_lacks_the_border_that_published_code_cuts(tmp_path: Path) -> None:
    """8 rows and 11 columns of a depth map, and the same part of an image of another size."""
    (sequence,) = opened("scannet_depth", tmp_path)
    assert_images(sequence, [0, 3, 2, 1], error=12)
    assert_depth(sequence, [0, 3, 2, 1], 0.0005 + 1e-6)
    (tmp_path / "scene0707_00").rename(tmp_path / "small")
    scene = tmp_path / "scene0708_00"
    image = np.zeros((968, 1296, 3), np.uint8)
    image[16:-16, 22:-22] = 200
    written.picture(scene / "color" / "0.jpg", image, quality=100, subsampling=0)
    depth = np.zeros((480, 640))
    depth[8:-8, 11:-11] = 2
    written.png16(scene / "depth" / "0.png", depth, 1000)
    (sequence,) = PROTOCOLS["scannet_depth"].open(tmp_path)
    assert sequence.depth is not None
    values, valid = sequence.depth()
    assert values.shape == (1, 464, 618)
    assert valid.all()
    assert sequence.images().shape == (1, 936, 1252, 3)
    assert (sequence.images() > 190).all()


def test_seven_scenes_depth_takes_every_tenth_frame(tmp_path: Path) -> None:
    (sequence,) = opened("seven_scenes_depth", tmp_path)
    assert_images(sequence, [0, 1, 2])
    assert (sequence.tasks, sequence.times[1]) == (("video_depth",), pytest.approx(1 / 3))


def test_kitti(tmp_path: Path) -> None:
    (sequence,) = opened("kitti", tmp_path)
    assert sequence.name == "2011_09_26_drive_0002_sync_02"
    assert_images(sequence, [0, 1, 2])
    assert sequence.depth is not None
    depth, valid = sequence.depth()
    assert (valid == (np.arange(WIDTH) % 3 > 0)).all()
    assert np.abs(depth - world().depth[:3])[valid].max() <= 0.5 / 256 + 1e-6
    assert sequence.times == pytest.approx([0, 0.1, 0.2])


def test_kitti_as_published_scripts_gather_it(tmp_path: Path) -> None:
    written.kitti_gathered(tmp_path)
    (sequence,) = PROTOCOLS["kitti"].open(tmp_path)
    assert sequence.name == "2011_09_26_drive_0002_sync_02"
    assert_images(sequence, [0, 1, 2])
    assert_depth(sequence, [0, 1, 2], 0.5 / 256 + 1e-6)


def test_kitti_stops_at_110_and_names_a_missing_picture(tmp_path: Path) -> None:
    written.kitti(tmp_path, frames=112)
    (sequence,) = PROTOCOLS["kitti"].open(tmp_path)
    assert sequence.frames == 110
    lost = tmp_path / "2011_09_26" / "2011_09_26_drive_0002_sync" / "image_02" / "data" / "0000000009.png"
    lost.unlink()
    with pytest.raises(UserError, match=r"0000000009\.png is missing"):
        PROTOCOLS["kitti"].open(tmp_path)


def test_nyu_in_both_layouts(tmp_path: Path) -> None:
    found = opened("nyu", tmp_path / "a")
    assert [sequence.name for sequence in found] == ["00000", "00001"]
    written.nyu_splits(tmp_path / "b")
    splits = PROTOCOLS["nyu"].open(tmp_path / "b")
    assert [sequence.name for sequence in splits] == ["bathroom/rgb_00000", "bathroom/rgb_00001"]
    for i in range(2):
        assert_images(found[i], [i])
        assert_depth(found[i], [i], 0)
        assert_images(splits[i], [i], error=12)
        assert_depth(splits[i], [i], 0.0005 + 1e-6)


def test_dycheck(tmp_path: Path) -> None:
    depth, pose = opened("dycheck", tmp_path)
    assert (depth.frames, depth.tasks) == (22, ("video_depth", "depth"))
    assert (pose.frames, pose.tasks) == (3, ("pose", "points"))
    assert_images(pose, [0, 2, 0])
    assert_depth(pose, [0, 2, 0], 0)
    assert_cameras(pose, [0, 2, 0])
    assert_depth(depth, [i % 4 for i in range(22)], 0)
    assert pose.times == pytest.approx([0, 10 / 60, 20 / 60])


def test_dychecks_depth_stops_at_120_frames(tmp_path: Path) -> None:
    written.dycheck(tmp_path / "iphone", frames=123)
    depth, pose = PROTOCOLS["dycheck"].open(tmp_path, ("apple",))
    assert (depth.frames, pose.frames) == (120, 13)


def test_seven_scenes(tmp_path: Path) -> None:
    """Depth of 0, beyond 10 m and 65535 is no truth."""
    (sequence,) = opened("seven_scenes", tmp_path)
    assert sequence.name == "chess/seq-03"
    assert_images(sequence, [0, 1, 2])
    assert_cameras(sequence, [0, 1, 2], np.array([[525.0, 0, 320], [0, 525, 240], [0, 0, 1]]))
    assert sequence.depth is not None
    depth, valid = sequence.depth()
    assert not valid[:, 0, :3].any()
    assert valid[:, 1:].all()
    assert np.abs(depth - world().depth[:3])[:, 1:].max() <= 0.0005 + 1e-6


def test_seven_scenes_without_registered_depth_says_what_to_do(tmp_path: Path) -> None:
    written.seven_scenes(tmp_path, depth="depth.png")
    with pytest.raises(UserError, match=r"depth\.proj\.png is missing.*seven_scenes_raw"):
        PROTOCOLS["seven_scenes"].open(tmp_path)
    assert len(PROTOCOLS["seven_scenes_raw"].open(tmp_path)) == 1


def test_nrgbd_halves_a_short_scene_and_turns_the_axes(tmp_path: Path) -> None:
    (sequence,) = opened("nrgbd", tmp_path)
    assert sequence.frames == 3  # of 11: 0, 5, 10
    assert sequence.cameras is not None
    cameras = sequence.cameras()
    assert cameras.known is not None
    assert cameras.known.tolist() == [True, False, True]
    np.testing.assert_allclose(cameras.world_from_camera.numpy()[[0, 2]], world().poses[[0, 2]], atol=1e-12)
    assert_depth(sequence, [0, 1, 2], 0.0005 + 1e-6)


def test_nrgbd_with_too_few_poses(tmp_path: Path) -> None:
    written.nrgbd(tmp_path)
    poses = tmp_path / "kitchen" / "poses.txt"
    poses.write_text("".join(poses.read_text().splitlines(keepends=True)[:40]))
    (sequence,) = scenes.read_nrgbd(tmp_path, every=2)
    assert sequence.cameras is not None
    with pytest.raises(UserError, match="has 10 poses, none for img10"):
        sequence.cameras()


def test_davis_merges_objects_and_leaves_out_void(tmp_path: Path) -> None:
    (sequence,) = opened("davis16", tmp_path)
    assert_images(sequence, [0, 1, 2, 3], error=12)
    assert sequence.masks is not None
    expected = world().dynamic.copy()
    expected[:, 0, 0] = False
    np.testing.assert_array_equal(sequence.masks(), expected)


def test_davis_lists(tmp_path: Path) -> None:
    assert [PROTOCOLS[name].sequences for name in ("davis16", "davis17", "davis_all")] == [20, 30, 90]
    for name in ("car-shadow", "soapbox"):
        written.davis(tmp_path, name)
    assert [sequence.name for sequence in PROTOCOLS["davis_all"].open(tmp_path)] == ["car-shadow", "soapbox"]
    with pytest.raises(UserError, match="blackswan"):
        PROTOCOLS["davis16"].open(tmp_path)


@pytest.mark.parametrize("stamped", [False, True])
def test_folder(stamped: bool, tmp_path: Path) -> None:
    written.folder(tmp_path / "mine", stamped)
    for root in (tmp_path, tmp_path / "mine"):
        (sequence,) = PROTOCOLS["folder"].open(root)
        assert sequence.name == "mine"
        assert_images(sequence, [0, 1, 2, 3])
        assert_cameras(sequence, [0, 1, 2, 3])
        assert_depth(sequence, [0, 1, 2, 3], 0.0005 + 1e-6)
        assert sequence.masks is not None
        np.testing.assert_array_equal(sequence.masks(), world().dynamic)
        assert sequence.times == pytest.approx([i * (0.1 if stamped else 1 / 30) for i in range(4)], abs=1e-5)


def test_folder_of_pictures_alone_and_with_wrong_counts(tmp_path: Path) -> None:
    written.folder(tmp_path)
    (tmp_path / "poses.txt").write_text("".join((tmp_path / "poses.txt").read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(UserError, match="3 poses for 4 images"):
        PROTOCOLS["folder"].open(tmp_path)
    (tmp_path / "poses.txt").rename(tmp_path / "_poses.txt")
    (tmp_path / "masks" / "002.png").unlink()
    with pytest.raises(UserError, match=r"002\.png is missing"):
        PROTOCOLS["folder"].open(tmp_path)
    for name in ("depth", "masks"):
        (tmp_path / name).rename(tmp_path / f"_{name}")
    (sequence,) = PROTOCOLS["folder"].open(tmp_path)
    assert sequence.tasks == ()


def test_frames_of_two_sizes_are_an_error(tmp_path: Path) -> None:
    written.davis(tmp_path)
    written.picture(tmp_path / "JPEGImages" / "480p" / "blackswan" / "00002.jpg", np.zeros((8, 9, 3), np.uint8))
    (sequence,) = PROTOCOLS["davis_all"].open(tmp_path)
    with pytest.raises(UserError, match=r"00002\.jpg is 9 × 8, the first frame 32 × 24"):
        sequence.images()


@pytest.mark.parametrize("size", ["480p", "Full-Resolution"])
def test_davis_of_png_frames_of_which_the_first_are_marked(size: str, tmp_path: Path) -> None:
    known = written.world()
    for index in range(4):
        written.picture(tmp_path / "JPEGImages" / size / "mine" / f"{index * 4 + 2}.png", known.images[index])
        if index < 2:
            marked = known.dynamic[index].astype(np.uint8) * 255
            written.picture(tmp_path / "Annotations" / size / "mine" / f"{index * 4 + 2}.png", marked)
    (sequence,) = PROTOCOLS["davis_all"].open(tmp_path)
    assert (sequence.images() == known.images).all()  # 2, 6, 10, 14
    assert sequence.mask_frames == 2
    assert sequence.masks is not None
    assert (sequence.masks()[:2] == known.dynamic[:2]).all()
    assert sequence.masks().shape == known.dynamic.shape


def test_a_folder_with_depth_of_some_pictures_counts_those(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written.folder(tmp_path / "set")
    (tmp_path / "set" / "depth" / "000.png").unlink()
    (sequence,) = PROTOCOLS["folder"].open(tmp_path / "set")
    assert "has no file for 1 of 4 images (000.png): these have none" in capsys.readouterr().err
    assert sequence.depth is not None
    values, valid = sequence.depth()
    assert valid.any((1, 2)).tolist() == [False, True, True, True]
    assert values.shape == written.world().depth.shape
    for path in (tmp_path / "set" / "depth").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"000\.png is missing"):
        PROTOCOLS["folder"].open(tmp_path / "set")
