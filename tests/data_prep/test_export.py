"""Shards in other projects' layouts: what our readers give back equals what went out, as far as the layout holds it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.exporters.export import LAYOUTS, SOURCE, export
from data_prep.exporters.views import Settings
from data_prep.importers.datasets import import_dataset
from four_d.cli import program
from four_d.data.contract import RawClip, TrackArrays
from four_d.data.shards import ShardReader, finalise, write_shard
from four_d.data.truth import truth
from four_d.datasets.exr import depth_exr, write_depth_exr
from four_d.datasets.sequence import Sequence
from four_d.datasets.table import DATASETS
from four_d.errors import UserError
from tests.helpers import box_clip, without_surface

SIZE = (24, 32)


def shards(folder: Path, *clips: RawClip) -> Path:
    write_shard(folder, 0, clips, lossless=True)
    finalise(folder, "boxes")
    return folder


def exported(name: str, folder: Path, clip: RawClip, **settings: int) -> list[Sequence]:
    source = shards(folder / "shards", clip)
    done = export(LAYOUTS[name], source, folder / "out", Settings(**settings))
    assert (done.written, done.kept, done.left_out) == (1, 0, {})
    return DATASETS[name].open(folder / "out")


def assert_same(sequence: Sequence, clip: RawClip, frames: list[int]) -> None:
    """Images, cameras and depth, all lossless but for float32."""
    assert sequence.cameras is not None
    assert sequence.depth is not None
    assert clip.world_from_camera is not None
    assert clip.intrinsics is not None
    known = truth(clip).depth
    assert known is not None
    cameras, (depth, valid) = sequence.cameras(), sequence.depth()
    np.testing.assert_array_equal(sequence.images(), clip.images[frames])
    np.testing.assert_allclose(cameras.world_from_camera.numpy(), clip.world_from_camera[frames], atol=1e-12)
    np.testing.assert_allclose(cameras.intrinsics.numpy(), clip.intrinsics[frames], atol=1e-9)
    np.testing.assert_array_equal(valid, known.numpy()[frames] > 0)
    np.testing.assert_allclose(depth, known.numpy()[frames], rtol=1e-6)


@pytest.mark.parametrize("cameras", [1, 2])
def test_wai(cameras: int, tmp_path: Path) -> None:
    clip = box_clip(seed=3, frames=3, cameras=cameras, size=SIZE)
    (sequence,) = exported("wai", tmp_path, clip)
    assert sequence.metric is True
    assert sequence.times == pytest.approx(clip.info.times)
    assert (sequence.camera_ids or (0, 0, 0)) == tuple(clip.info.camera_ids)
    assert_same(sequence, clip, list(range(3 * cameras)))


@pytest.mark.parametrize("cameras", [1, 2])
def test_cut3r(cameras: int, tmp_path: Path) -> None:
    clip = box_clip(seed=3, frames=3, cameras=cameras, size=SIZE)
    found = exported("cut3r", tmp_path, clip)
    assert len(found) == cameras
    for camera, sequence in enumerate(found):
        assert_same(sequence, clip, list(range(3 * camera, 3 * camera + 3)))


@pytest.mark.parametrize("cameras", [1, 3])
def test_mv_kubric(cameras: int, tmp_path: Path) -> None:
    clip = box_clip(seed=3, frames=4, cameras=cameras, size=SIZE)
    (sequence,) = exported("kubric", tmp_path, clip, tracks=200)
    assert sequence.times == pytest.approx(clip.info.times)
    assert (sequence.camera_ids or (0,) * 4) == tuple(clip.info.camera_ids)
    assert_same(sequence, clip, list(range(4 * cameras)))
    assert sequence.world_tracks is not None
    tracks = sequence.world_tracks()
    assert tracks.points.shape == (200, 4, 3)
    assert tracks.known.all()
    assert tracks.visible.any(-1).all()  # each starts at a pixel of some frame
    moved = np.linalg.norm(np.ptp(tracks.points, axis=1), axis=-1)
    assert (moved > 0.05).any()
    assert (moved < 1e-6).any()


def test_what_mvtracker_checks_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own formulas: tracks_2d are the projections, and distances become z-depth by sensor and focal length.

    The latter only to some percent here, where pixels are not square and the principal point is off the middle.
    """
    clip = box_clip(seed=3, frames=4, cameras=2, size=SIZE)
    exported("kubric", tmp_path, clip, tracks=50)
    assert "1 of 1 clips: MVTracker's conversion of distances" in capsys.readouterr().err
    scene = tmp_path / "out" / clip.key
    points = np.load(scene / "tracks_3d.npz")["tracks_3d"]
    assert points.dtype == np.float64
    ids = np.load(scene / "tracks_segmentation_ids.npz")["tracks_segmentation_ids"]
    assert ids.shape == points.shape[1:2]
    assert ids.max() > 0
    cameras = np.load(scene / "cameras.npz")
    assert cameras["camera_positions"].shape == cameras["lookat_positions"].shape == (2, 3)
    json.loads((scene / "tracked_objects.json").read_text())
    depth = truth(clip).depth
    assert depth is not None
    for view in range(2):
        place = scene / f"view_{view}"
        json.loads((place / "object_id_to_segmentation_id.json").read_text())
        facts = json.loads((place / "metadata.json").read_text())
        camera, (w, h) = facts["camera"], facts["metadata"]["resolution"]
        assert (h, w) == SIZE
        k = np.diag([w, h, 1]) @ np.array(camera["K"]) @ np.diag([1, -1, -1])
        flat = np.load(place / "tracks_2d.npz")
        assert flat["tracks_2d"].shape == (*points.shape[:2], 2)
        for at in range(4):
            turn = np.array(camera["quaternions"][at])
            local = (points[at] - camera["positions"][at]) @ _rotation(turn) @ np.diag([1, -1, -1])
            pixels = local @ k.T
            np.testing.assert_allclose(pixels[:, :2] / pixels[:, 2:], flat["tracks_2d"][at], atol=1e-6)
            distance = np.asarray(Image.open(place / f"depth_{at:05d}.tiff"))
            sides = [(np.arange(size) - size / 2 + 0.5) / w * camera["sensor_width"] for size in (w, h)]
            x, y = np.meshgrid(*sides)
            z = distance / np.sqrt(1 + (x**2 + y**2) / camera["focal_length"] ** 2)
            np.testing.assert_allclose(z, depth[4 * view + at].numpy(), rtol=0.05)


def _rotation(quaternion: np.ndarray) -> np.ndarray:
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def test_stored_tracks_go_into_mv_kubric_and_those_with_gaps_are_said_to_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = without_surface(box_clip(seed=3, frames=4, cameras=2, size=SIZE))
    assert clip.tracks is not None
    valid = np.ones_like(clip.tracks.valid)
    valid[0, 1] = False
    tracks = TrackArrays(
        points=np.where(valid[..., None], clip.tracks.points, 0), visible=clip.tracks.visible & valid, valid=valid
    )
    (sequence,) = exported("kubric", tmp_path, replace(clip, tracks=tracks))
    assert "1 of 1 clips: tracks that are not known at every moment are left out" in capsys.readouterr().err
    assert sequence.world_tracks is not None
    found = sequence.world_tracks()
    np.testing.assert_allclose(found.points, tracks.points[1:], atol=1e-9)
    assert not (found.visible & ~tracks.visible[1:]).any()
    assert (found.visible == tracks.visible[1:]).mean() > 0.9  # a camera sees what is not behind its depth


def test_a_round_trip_passes_the_check(tmp_path: Path) -> None:
    """Shards → MV-Kubric → shards: what was metric stays so, and nothing is accused."""
    clip = box_clip(seed=5, frames=6, cameras=2, size=(96, 128))
    exported("kubric", tmp_path, clip)
    import_dataset(DATASETS["kubric"], tmp_path / "out", tmp_path / "again")
    with ShardReader(tmp_path / "again") as reader:
        again = reader.read(0)
    assert again.info.metric
    assert again.tracks is not None
    assert again.info.camera_ids == clip.info.camera_ids


def test_clips_that_a_layout_cannot_hold_are_named_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = box_clip(seed=1, frames=3, cameras=1, size=SIZE)
    bare = replace(without_surface(box_clip(seed=2, frames=3, cameras=1, size=SIZE)), world_from_camera=None)
    source = shards(tmp_path / "shards", whole, replace(bare, tracks=None, info=replace(bare.info, track_times=None)))
    done = export(LAYOUTS["cut3r"], source, tmp_path / "out")
    assert done.left_out == {"box-000002": "it has no camera poses"}
    assert "1 clips are left out: it has no camera poses (box-000002)" in capsys.readouterr().err
    uneven = replace(whole, info=replace(whole.info, times=[0.0, 0.1, 0.9], surface_times=[0.0, 0.1, 0.9]))
    with pytest.raises(UserError, match=r"no clip of .* fits the layout kubric: its times are uneven"):
        export(LAYOUTS["kubric"], shards(tmp_path / "uneven", uneven), tmp_path / "kubric")


def test_going_on_keeps_what_is_whole_and_foreign_folders_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = [box_clip(seed=seed, frames=2, cameras=1, size=SIZE) for seed in (1, 2)]
    source, out = shards(tmp_path / "shards", *clips), tmp_path / "out"
    assert program.main(["data", "export", "wai", str(source), str(out)]) == 0
    assert "2 clips written" in capsys.readouterr().out
    told = json.loads((out / SOURCE).read_text())
    assert told["sources"]["box"]["licence"] == "CC0-1.0"
    before = (out / clips[0].key / "scene_meta.json").read_bytes()
    for path in (out / clips[1].key).rglob("*.*"):
        path.unlink()
    for path in sorted((out / clips[1].key).rglob("*"), reverse=True):
        path.rmdir()
    (out / clips[1].key).rmdir()
    (out / ".half.partial").mkdir()
    assert program.main(["data", "export", "wai", str(source), str(out)]) == 0
    assert "1 clips written, 1 were there" in capsys.readouterr().out
    assert (out / clips[0].key / "scene_meta.json").read_bytes() == before
    assert not (out / ".half.partial").exists()
    with pytest.raises(UserError, match="exported from other shards or with other settings"):
        export(LAYOUTS["wai"], shards(tmp_path / "other", clips[0]), out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(UserError, match="was not made by this command"):
        export(LAYOUTS["wai"], source, tmp_path / "mine")


def test_exr_holds_floats_exactly(tmp_path: Path) -> None:
    """With sizes that are no multiple of a block, and values that do not compress."""
    for height, width in ((1, 1), (16, 5), (37, 19)):
        values = np.random.default_rng(height).normal(size=(height, width)).astype(np.float32)
        write_depth_exr(tmp_path / "a.exr", values)
        np.testing.assert_array_equal(depth_exr(tmp_path / "a.exr"), values)
    write_depth_exr(tmp_path / "a.exr", np.ones((40, 64), np.float32))
    assert (tmp_path / "a.exr").stat().st_size < 1000
    np.testing.assert_array_equal(depth_exr(tmp_path / "a.exr"), 1)


def test_frames_of_others_wai_scenes_are_told_apart_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MapAnything writes no cameras and no times: ``x_left-0003`` and ``x_right-0003`` are of one moment."""
    clip = box_clip(seed=3, frames=3, cameras=2, size=SIZE)
    exported("wai", tmp_path, clip)
    path = tmp_path / "out" / clip.key / "scene_meta.json"
    content = json.loads(path.read_text())
    for at, frame in enumerate(content["frames"]):
        del frame["camera_id"], frame["time"]
        frame["frame_name"] = f"x_{'left' if at < 3 else 'right'}-{at % 3:04d}"
    path.write_text(json.dumps(content))
    (sequence,) = DATASETS["wai"].open(tmp_path / "out")
    assert sequence.camera_ids == (0, 0, 0, 1, 1, 1)
    assert sequence.times == pytest.approx([0, 1 / 30, 2 / 30] * 2)
    assert "2 cameras by the frames' names" in capsys.readouterr().err
    path.write_text(json.dumps({**content, "camera_convention": "opengl"}))
    with pytest.raises(UserError, match="camera_convention is 'opengl', and only opencv is read"):
        DATASETS["wai"].open(tmp_path / "out")
