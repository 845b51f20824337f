"""Sets that protocols read become shards: whole, in our conventions, checked first, gone on with where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from data_prep.importers.datasets import import_dataset
from data_prep.importers.sequences import Settings, clip_of, rigid
from four_d.checkpoints import _licences
from four_d.cli import program
from four_d.data.encoding import fitting_unit, with_unit
from four_d.data.shards import ShardReader
from four_d.datasets import files
from four_d.datasets.facts import DataSet, Licence
from four_d.datasets.sequence import Sequence
from four_d.datasets.table import DATASETS
from four_d.errors import UserError
from tests.helpers import box_clip, without_surface
from tests.protocols import tracked, written
from tests.protocols.test_views import write_nsff
from tests.protocols.written import HEIGHT, WIDTH, world

WRITERS: dict[str, Callable[[Path], object]] = {
    "sintel": written.sintel,
    "tum": written.tum,
    "bonn": written.bonn,
    "scannet": written.scannet,
    "seven_scenes": lambda root: written.seven_scenes(root, frames=1),
    "nrgbd": written.nrgbd,
    "kitti": written.kitti,
    "nyu": written.nyu,
    "dycheck": written.dycheck,
    "davis": written.davis,
}
FIXED_LENSES = {"tum", "bonn", "seven_scenes", "nrgbd"}
"""Sets of one known camera, whose focal length does not fit the small pictures here: their check fails."""


def imported(name: str, tmp_path: Path, **options: object) -> ShardReader:
    WRITERS[name](tmp_path / "src")
    out = tmp_path / "out"
    import_dataset(DATASETS[name], tmp_path / "src", out, checked=name not in FIXED_LENSES, **options)
    return ShardReader(out)


@pytest.mark.parametrize("name", WRITERS)
def test_a_set_becomes_shards_in_our_conventions(name: str, tmp_path: Path) -> None:
    dataset = DATASETS[name]
    with imported(name, tmp_path) as reader:
        source = reader.manifest.sources[name]
        assert (source.licence, source.home, source.metric) == (dataset.licence, dataset.home, dataset.metric)
        clip = reader.read(0)
    known, shown = world(), range(len(clip.images))
    assert clip.info.times[0] == 0
    if clip.depth is not None:
        valid = clip.depth > 0
        period = 3 if name == "sintel" else len(known)
        truth = np.stack([known.depth[i % period] for i in shown])
        if name not in ("bonn", "nrgbd"):  # whose frames are not all there
            np.testing.assert_allclose(clip.depth[valid], truth[valid], rtol=0.005, atol=0.004)
    if clip.world_from_camera is not None and name not in ("tum", "bonn", "nrgbd", "scannet", "seven_scenes"):
        np.testing.assert_allclose(clip.world_from_camera, known.poses[np.array(shown) % len(known)], atol=1e-7)
        assert clip.intrinsics is not None
        np.testing.assert_allclose(clip.intrinsics[0], known.intrinsics, atol=1e-9)


def test_frames_whose_pose_was_lost_are_left_out(tmp_path: Path) -> None:
    with imported("scannet", tmp_path) as reader:
        clip = reader.read(0)
    assert clip.info.times == pytest.approx([i / 30 for i in range(12) if i != 3])
    assert clip.world_from_camera is not None
    kept = [i % len(world()) for i in range(12) if i != 3]
    np.testing.assert_allclose(clip.world_from_camera, world().poses[kept], atol=1e-7)


def test_masks_of_what_moves_are_stored_and_frames_without_one_left_out(tmp_path: Path) -> None:
    with imported("sintel", tmp_path) as reader:
        clip = reader.read(0)
    assert len(clip.images) == len(world()) - 1
    assert clip.dynamic is not None
    assert (clip.dynamic == world().dynamic[:-1]).mean() > 0.97


def test_tracks_go_into_the_world(tmp_path: Path) -> None:
    """The files hold them in each camera's coordinates; a point that rests has one place in the world."""
    tracked.worldtrack(tmp_path / "src")
    import_dataset(DATASETS["worldtrack"], tmp_path / "src", tmp_path / "out", only=("po_mini",))
    with ShardReader(tmp_path / "out") as reader:
        clip = reader.read(0)
    assert clip.tracks is not None
    assert clip.tracks.valid.all()
    path = np.linalg.norm(clip.tracks.points - clip.tracks.points[:, :1], axis=-1).max(-1)
    assert np.median(path) < 1e-4
    assert path.max() > 0.05  # and something moves


def test_intrinsics_without_poses_are_kept(tmp_path: Path) -> None:
    written.kitti(tmp_path / "src")
    k = world().intrinsics
    rows = [k[0, 0], 0, k[0, 2] - 0.5, 0, 0, k[1, 1], k[1, 2] - 0.5, 0, 0, 0, 1, 0]
    calibration = "calib_time: 09-Jan-2012\nP_rect_02: " + " ".join(map(str, rows)) + "\n"
    written.text(tmp_path / "src" / "2011_09_26" / "calib_cam_to_cam.txt", calibration)
    manifest = import_dataset(DATASETS["kitti"], tmp_path / "src", tmp_path / "out")
    assert manifest.modalities == ["depth", "intrinsics"]
    with ShardReader(tmp_path / "out") as reader:
        clip = reader.read(0, frames=[2, 0])
    assert clip.world_from_camera is None
    assert clip.intrinsics is not None
    np.testing.assert_allclose(clip.intrinsics, np.stack([k, k]), atol=1e-9)


def test_going_on_gives_the_same_bytes_and_other_settings_are_refused(tmp_path: Path) -> None:
    tracked.worldtrack(tmp_path / "src")
    dataset, out = DATASETS["worldtrack"], tmp_path / "out"

    def run(**changes: object) -> None:
        import_dataset(dataset, tmp_path / "src", out, Settings(**changes), clips_per_shard=2)  # pyright: ignore[reportArgumentType]

    run()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert {"shard-000000.tar", "shard-000001.tar", "manifest.json"} <= before.keys()
    for name in ("shard-000001.tar", "shard-000001.json", "manifest.json"):
        (out / name).unlink()
    run()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    others = {"most_tracks": 7, "licence": "mine", "name": "other", "depth_tolerance": 0.1}
    words = {"most_tracks": "most tracks", "name": "source", "depth_tolerance": "depth tolerance"}
    for name, value in others.items():
        with pytest.raises(UserError, match=f"with another {words.get(name, name)}"):
            run(**{name: value})


def known_set(change: Callable[[np.ndarray], np.ndarray]) -> DataSet:
    """A set of one sequence, with poses changed."""
    clip = without_surface(box_clip(seed=3, frames=6, cameras=1, size=(96, 128)))
    assert clip.depth is not None
    assert clip.world_from_camera is not None
    assert clip.intrinsics is not None
    depth = clip.depth.astype(np.float32)
    sequence = Sequence(
        name="boxes",
        frames=6,
        times=tuple(clip.info.times),
        images=lambda: clip.images,
        cameras=partial(files.cameras, change(clip.world_from_camera), clip.intrinsics),
        depth=lambda: (depth, depth > 0),
    )
    licences = (Licence(text="MIT"),)
    return DataSet(name="boxes", title="", home="", licences=licences, layout="", reader=lambda *_: [sequence])


def test_a_wrong_convention_stops_the_import_before_anything_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "src").mkdir()
    import_dataset(known_set(np.copy), tmp_path / "src", tmp_path / "right")
    wrong = known_set(np.linalg.inv)
    caplog.clear()
    with pytest.raises(UserError, match="Nothing was imported") as caught:
        import_dataset(wrong, tmp_path / "src", tmp_path / "out")
    assert "invert" in str(caught.value)
    told = caplog.text.splitlines()
    assert len(told) == len(set(told)), "each line is said once"
    assert "boxes, its first clips: 1 shards" in caplog.text
    assert "delete" not in caplog.text, "there are no shards yet"
    assert not list((tmp_path / "out").iterdir())


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written.sintel(tmp_path / "src")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match=r"0\.0 MB free and the import takes about 0\.\d MB"):
        import_dataset(DATASETS["sintel"], tmp_path / "src", tmp_path / "out")
    assert not list((tmp_path / "out").glob("shard*"))


def test_images_become_as_small_as_their_depth(tmp_path: Path) -> None:
    """So no depth is made up between measured values; intrinsics follow."""
    written.sintel(tmp_path)
    (sequence,) = DATASETS["sintel"].open(tmp_path)
    halved = replace(sequence, depth=lambda: tuple(each[:, ::2, ::2] for each in sequence.depth()), masks=None)
    clip = clip_of(DATASETS["sintel"], halved, [0, 2], Settings(), "key")
    assert clip.images.shape == (2, HEIGHT // 2, WIDTH // 2, 3)
    assert clip.depth is not None
    assert clip.intrinsics is not None
    assert clip.depth.shape == clip.images.shape[:3]
    np.testing.assert_allclose(clip.intrinsics[0] * [[2], [2], [1]], world().intrinsics, atol=1e-9)
    np.testing.assert_array_equal(clip.depth[0], world().depth[0, ::2, ::2])


def test_maps_are_resized_to_values_that_they_have() -> None:
    """Each new pixel has the value of the old one that its centre is in."""
    maps = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    np.testing.assert_array_equal(files.resized(maps, (6, 2))[0], maps[0][[0, 0, 1, 1, 2, 2]][:, [1, 3]])


def test_rotations_a_little_off_are_made_orthonormal_and_others_refused(caplog: pytest.LogCaptureFixture) -> None:
    poses = world().poses.copy()
    assert rigid(poses, "exact") is poses
    assert not caplog.records
    off = poses.copy()
    off[:, :3, :3] *= 1.0001
    np.testing.assert_allclose(rigid(off, "chess")[:, :3, :3], poses[:, :3, :3], atol=1e-12)
    assert "chess: rotations, which are up to 0.0002 off, are made orthonormal" in caplog.text
    off[1, :3, :3] *= 1.02
    with pytest.raises(UserError, match="chess: the pose of frame 1 is not rigid"):
        rigid(off, "chess")
    with pytest.raises(UserError, match="not rigid"):
        rigid(poses @ np.diag([1.0, 1, -1, 1]), "chess")


def test_licences_that_differ_are_all_kept_and_the_stricter_rules() -> None:
    said = (Licence(text="MIT", said_by="hub card"), Licence(text="CC BY-NC-SA 4.0", said_by="its page"))
    dataset = DataSet(name="x", title="X", home="", licences=said, layout="", reader=lambda *_: [])
    assert dataset.licence == (
        "MIT (hub card); CC BY-NC-SA 4.0 (its page): stated differently, the stricter rules: CC BY-NC-SA 4.0"
    )
    ranks = ["none stated", "Waymo terms", "research", "CC BY-NC 4.0", "CC BY-SA 4.0", "CC BY 4.0", "Apache-2.0"]
    found = [Licence(text=text).strictness for text in ranks]
    assert found == sorted(set(found))
    assert Licence(text="something of its own").strictness == 0


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written.davis(tmp_path / "src")
    assert program.main(["data", "import", "davis", str(tmp_path / "src"), str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    assert "1 clips, 4 frames" in told.out
    assert "davis: non-commercial" in told.out
    assert "davis: 1 sequences, 1 clips, about" in told.err
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["sources"]["davis"]["home"]
    card = _licences("mine", str(tmp_path / "out"))  # what the model card says of its training data
    assert card == {"davis": "non-commercial (from davischallenge.org, 2017 TrainVal 480p)"}
    assert program.main(["data", "import", "davis", str(tmp_path / "nowhere"), str(tmp_path / "new")]) == 2
    assert "is not a folder; davis expects there" in capsys.readouterr().err


def test_the_nsff_video_is_imported(tmp_path: Path) -> None:
    write_nsff(tmp_path / "src")
    dataset = DATASETS["nvidia_dynamic"]
    manifest = import_dataset(dataset, tmp_path / "src", tmp_path / "out", checked=False)
    assert manifest.modalities == ["cameras"]


@pytest.mark.parametrize("name", [*WRITERS, "worldtrack", "tapvid3d"])
def test_the_pages_say_what_the_sets_file_says(name: str) -> None:
    """Where a set is from and its licence, on the page of protocols; and that it can be imported."""
    pages = {page: (Path(__file__).parents[2] / "docs" / f"{page}.md").read_text() for page in ("protocols", "data")}
    assert DATASETS[name].home in pages["protocols"]
    assert DATASETS[name].licence in pages["protocols"]
    assert f"`{name}`" in pages["data"]


@pytest.mark.parametrize("name", DATASETS)
def test_the_table_of_sets_is_whole(name: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    assert f"`{name}`" in page or f"`…_{name.removeprefix('cut3r_')}`" in page


def test_depth_units_are_chosen() -> None:
    """The finest that holds the farthest depth; where that rounds the nearest too much, the farthest are left out."""
    depth = np.linspace(1, 60, 1000, dtype=np.float32).reshape(1, 20, 50)
    assert fitting_unit(depth) == 0.001
    depth[0, 0, 0] = 5000
    assert fitting_unit(depth) == 0.01
    clip = without_surface(box_clip(seed=3, frames=1, cameras=1, size=(20, 50)))
    clip = replace(clip, depth=depth, dynamic=None, tracks=None, info=replace(clip.info, depth_unit=None))
    kept = with_unit(clip)
    assert kept.depth is not None
    assert (kept.info.depth_unit, kept.depth[0, 0, 0]) == (0.01, 0)
    np.testing.assert_array_equal(kept.depth[0, 1:], depth[0, 1:])
    assert fitting_unit(np.zeros((1, 2, 2), np.float32)) == 1
