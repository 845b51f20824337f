from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.importers.sleap_anipose import Settings, import_sleap_anipose
from four_d.cli.program import main
from four_d.data.check import check
from four_d.data.contract import RawClip
from four_d.data.sampling import to_clip
from four_d.data.shards import ShardReader, load_manifest
from four_d.errors import UserError
from tests.data_prep.sleap_session import DISTORTION, EDGES, FRAMES, HEIGHT, NODES, WIDTH, rodrigues, seen, session

SAMPLE = Path(__file__).parents[3] / "shared" / "samples" / "multiview_mouse"


def clips(folder: Path) -> list[RawClip]:
    """All clips of a data set."""
    with ShardReader(folder) as reader:
        return [reader.read(index) for index in range(len(reader))]


def test_a_session_becomes_a_clip_of_a_rig(tmp_path: Path) -> None:
    made = session()
    folder, out = made.write(tmp_path / "day 1"), tmp_path / "out"
    assert main(["data", "import", "sleap-anipose", str(folder), str(out), "--unit", "mm", "--licence", "CC0-1.0"]) == 0
    (raw,) = clips(out)
    source = load_manifest(out).sources["sleap-anipose"]
    assert (source.licence, source.metric, source.frames) == ("CC0-1.0", True, 3 * FRAMES)
    assert check(out).ok
    assert raw.key == "day-1-000000"
    assert raw.info.times == pytest.approx([index / 20 for index in range(FRAMES)] * 3)
    assert raw.info.camera_ids == [0] * FRAMES + [1] * FRAMES + [2] * FRAMES
    assert raw.info.keypoints is not None
    assert raw.info.keypoints.names == ["nose", "left_ear", "right_ear", "tail_tip"] * 2
    assert raw.info.keypoints.instances == [1] * 4 + [2] * 4
    assert raw.info.keypoints.edges == [*EDGES, *((a + 4, b + 4) for a, b in EDGES)]
    assert [each.name for each in raw.info.objects] == ["surroundings", "animal 0", "animal 1"]
    assert raw.keypoints is not None
    assert raw.world_from_camera is not None
    points = made.points.reshape(FRAMES, 8, 3)
    known = np.isfinite(points).all(-1)
    assert (raw.keypoints.valid == np.tile(known, (3, 1))).all()
    np.testing.assert_allclose(raw.keypoints.points[:FRAMES][known], points[known] / 1000, rtol=1e-5)
    for view, entry in enumerate(made.calibration.values()):
        pose = np.linalg.inv(raw.world_from_camera[view * FRAMES])
        np.testing.assert_allclose(pose[:3, :3], rodrigues(np.array(entry["rotation"])), atol=1e-9)
        np.testing.assert_allclose(pose[:3, 3], np.array(entry["translation"]) / 1000, atol=1e-9)


def test_pixels_are_undistorted_and_missing_ones_projected(tmp_path: Path) -> None:
    """Where a track is missing, the projection stands, hidden: that of a lens without distortion, half a pixel on."""
    made = session()
    import_sleap_anipose([made.write(tmp_path / "day")], tmp_path / "out")
    (raw,) = clips(tmp_path / "out")
    assert raw.keypoints is not None
    assert not raw.info.metric
    straight = np.concatenate(
        [seen(made.points, {**entry, "distortions": (0, 0, 0, 0, 0)}) + 0.5 for entry in made.calibration.values()]
    ).reshape(3 * FRAMES, 8, 2)
    tracked = np.isfinite(np.concatenate(list(made.tracks.values()))).all(-1).reshape(3 * FRAMES, 8)
    known = np.isfinite(straight).all(-1)
    assert (raw.keypoints.pixels_valid == known).all()
    np.testing.assert_allclose(raw.keypoints.pixels[known], straight[known], atol=1e-3)
    inside = ((straight >= 0) & (straight < [WIDTH, HEIGHT])).all(-1)
    assert (raw.keypoints.visible == tracked & inside).all()
    assert not raw.keypoints.visible[2, 1]
    assert not raw.keypoints.visible[FRAMES : 2 * FRAMES, 4:].any()
    example = to_clip(raw)
    assert example.keypoints is not None
    assert bool(example.keypoints.valid.any())


def test_both_places_of_the_files_give_one_result(tmp_path: Path) -> None:
    made = session()
    results: list[list[RawClip]] = []
    for name, flat in (("a", False), ("b", True)):
        folder = made.write(tmp_path / name / "day", flat=flat)
        import_sleap_anipose([folder], tmp_path / f"out-{name}")
        results.append(clips(tmp_path / f"out-{name}"))
    for first, second in zip(*results, strict=True):
        assert first.keypoints is not None
        assert second.keypoints is not None
        assert (first.images == second.images).all()
        assert (first.keypoints.pixels == second.keypoints.pixels).all()


@pytest.mark.parametrize("fault", ["copied", "turned"])
def test_a_view_that_does_not_reproject_is_named_and_stands_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    made = session()
    side = made.calibration["side"]
    if fault == "copied":
        side.update({key: made.calibration["top"][key] for key in ("rotation", "translation")})
    else:
        side["rotation"] = [0.1, 0.4, 0.3]
    folder = made.write(tmp_path / "day")
    with caplog.at_level(logging.WARNING, "four_d"):
        import_sleap_anipose([folder], tmp_path / "out", Settings(unit="mm"))
    told = next(record.message for record in caplog.records if "side becomes" in record.message)
    assert "without cameras and positions" in told
    assert ("is that of top" in told) == (fault == "copied")
    assert check(tmp_path / "out").ok
    rig, alone = clips(tmp_path / "out")
    assert sorted(set(rig.info.camera_ids)) == [0, 1]
    assert alone.key == "day-side-000000"
    assert alone.world_from_camera is None
    assert alone.keypoints is not None
    assert not alone.keypoints.valid.any()
    own = made.tracks["side"][:, 0]
    np.testing.assert_allclose(alone.keypoints.pixels, own + 0.5, atol=1e-4)  # as filmed, distorted
    assert alone.info.keypoints is not None
    assert alone.info.keypoints.instances == [1] * 4  # the other animal is never seen there


def test_a_session_without_a_sound_view_is_refused(tmp_path: Path) -> None:
    made = session()
    made.points += np.array([200.0, 0, 0])
    folder = made.write(tmp_path / "day")
    with pytest.raises(UserError, match=r"no view agrees with points3d.h5; .* low: by its calibration"):
        import_sleap_anipose([folder], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_long_sessions_are_cut_and_images_made_smaller(tmp_path: Path) -> None:
    made = session()
    made.tracks["top"][:4] = np.nan
    made.tracks["low"][:4] = np.nan
    made.tracks["side"][:4] = np.nan
    folder = made.write(tmp_path / "day", edges=False)
    settings = Settings(views=("top", "low"), long_side=32, clip_frames=3)
    import_sleap_anipose([folder], tmp_path / "out", settings, clips_per_shard=1)
    found = clips(tmp_path / "out")  # of frames 0–1, 2–4 and 5–6; nothing is tracked in the first two
    assert [raw.key for raw in found] == ["day-000002", "day-000005"]
    whole = clips_of(folder, tmp_path / "whole", "top", "low")[0]
    assert whole.keypoints is not None
    small = found[1]
    assert small.images.shape == (4, 24, 32, 3)
    assert small.keypoints is not None
    assert small.info.times == pytest.approx([0, 0.05] * 2)
    assert small.images[:2].mean((1, 2, 3)) == pytest.approx(whole.images[5:7].mean((1, 2, 3)), abs=2)
    np.testing.assert_allclose(small.keypoints.pixels[:2], whole.keypoints.pixels[5:7] / 2, atol=1e-4)
    assert small.info.keypoints is not None
    assert len(small.info.keypoints.edges) == 12  # without bones in the file all four of each animal are neighbours
    assert check(tmp_path / "out").ok


def clips_of(folder: Path, out: Path, *views: str) -> list[RawClip]:
    """Import some views at full size, and read them."""
    import_sleap_anipose([folder], out, Settings(views=views))
    return clips(out)


def test_it_goes_on_where_it_stopped_but_not_with_other_files(tmp_path: Path) -> None:
    made = session()
    folder, out = made.write(tmp_path / "day"), tmp_path / "out"
    settings = Settings(clip_frames=4)
    import_sleap_anipose([folder], out, settings, clips_per_shard=1)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for name in ("manifest.json", "shard-000001.json", "shard-000001.tar"):
        (out / name).unlink()
    import_sleap_anipose([folder], out, settings, clips_per_shard=1)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    with pytest.raises(UserError, match="was made with another unit"):
        import_sleap_anipose([folder], out, Settings(clip_frames=4, unit="cm"), clips_per_shard=1)
    made.points[0, 0, 0] += 1
    made.write(folder)
    with pytest.raises(UserError, match=r"was made before day/points3d.h5 was changed"):
        import_sleap_anipose([folder], out, settings, clips_per_shard=1)


def _other_nodes(made: Any, folder: Path) -> None:
    made.nodes["side"] = NODES[::-1]
    made.write(folder)


def _fewer_frames(made: Any, folder: Path) -> None:
    made.tracks["top"] = made.tracks["top"][:-1]
    made.write(folder)


def _points_of_other_frames(made: Any, folder: Path) -> None:
    made.points = made.points[1:]
    made.write(folder)


def _two_videos(made: Any, folder: Path) -> None:
    made.write(folder)
    (folder / "low/again.avi").write_bytes((folder / "low/x_low.mp4").read_bytes())


def _no_calibration(made: Any, folder: Path) -> None:
    made.write(folder)
    (folder / "calibration.toml").unlink()


def _no_hdf5(made: Any, folder: Path) -> None:
    made.write(folder)
    (folder / "points3d.h5").write_text("no")


def _other_size(made: Any, folder: Path) -> None:
    made.calibration["low"]["size"] = [128, 96]
    made.write(folder)


def _fisheye(made: Any, folder: Path) -> None:
    made.calibration["low"]["fisheye"] = True
    made.write(folder)


def _no_finite_pose(made: Any, folder: Path) -> None:
    made.write(folder)
    calibration = folder / "calibration.toml"
    calibration.write_text(calibration.read_text().replace("translation = [3.0,", "translation = [nan,"))


def _one_side(made: Any, folder: Path) -> None:
    made.calibration["low"]["size"] = 64
    made.write(folder)


def _no_pose(made: Any, folder: Path) -> None:
    del made.calibration["low"]["rotation"]
    made.write(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_other_nodes, "have other nodes, or another order"),
        (_fewer_frames, r"has 7 frames and .*x_top.analysis.h5 6"),
        (_points_of_other_frames, r"points3d.h5: tracks are float64 \(6, 2, 4, 3\)"),
        (_two_videos, "view low needs one video and has again.avi, x_low.mp4"),
        (_no_calibration, "a session of sleap-anipose has one"),
        (_no_hdf5, "points3d.h5 is not there or not HDF5"),
        (_other_size, "low is calibrated for images of 128 × 96"),
        (_fisheye, "low is a fisheye camera"),
        (_no_finite_pose, "low has a pose that is not finite"),
        (_one_side, "low lacks or breaks one of .*size"),
        (_no_pose, "low lacks or breaks one of matrix, distortions, rotation, translation"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, spoil: Any, message: str) -> None:
    spoil(session(), tmp_path / "day")
    with pytest.raises(UserError, match=message):
        import_sleap_anipose([tmp_path / "day"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_views_that_were_not_filmed_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = session()
    made.calibration["back"] = {**made.calibration["top"], "name": "back"}
    folder = made.write(tmp_path / "day")
    with caplog.at_level(logging.WARNING, "four_d"):
        import_sleap_anipose([folder], tmp_path / "out")
    assert any(
        "back is in calibration.toml and has neither tracks nor video" in each.message for each in caplog.records
    )
    assert sorted(set(clips(tmp_path / "out")[0].info.camera_ids)) == [0, 1, 2]
    with pytest.raises(UserError, match="has no view 'front'; it has low, side, top, back"):
        import_sleap_anipose([folder], tmp_path / "no", Settings(views=("front",)))
    with pytest.raises(UserError, match="two clips would have the key day-000000"):
        import_sleap_anipose([folder, folder], tmp_path / "no")


def test_the_distortion_of_the_session_is_worth_undoing() -> None:
    """So that the tests above would notice pixels that are left as they are."""
    made = session()
    for entry in made.calibration.values():
        away = seen(made.points, entry) - seen(made.points, {**entry, "distortions": [0] * len(DISTORTION)})
        assert np.nanmax(np.linalg.norm(away, axis=-1)) > 0.1


@pytest.mark.slow
@pytest.mark.skipif(not SAMPLE.is_dir(), reason="../shared/samples/multiview_mouse is not there (GPL)")
def test_the_real_mouse(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Three views of the real session reproject, and the fourth, whose calibration is a copy, is found."""
    with caplog.at_level(logging.WARNING, "four_d"):
        import_sleap_anipose([SAMPLE], tmp_path / "out", Settings(unit="mm", long_side=128, clip_frames=120))
    told = "\n".join(each.message for each in caplog.records)
    assert "side becomes a clip of its own" in told
    assert "its pose in calibration.toml is that of top" in told
    rig, alone = clips(tmp_path / "out")
    assert (len(rig.images), len(alone.images)) == (360, 120)
    assert rig.info.keypoints is not None
    assert rig.keypoints is not None
    assert rig.info.keypoints.names[:5] == ["nose", "right_ear", "left_ear", "tti", "tail_tip"]
    assert len(rig.info.keypoints.edges) == 14
    assert rig.keypoints.valid.all()
    assert not rig.keypoints.visible[:120, 4].any()  # the tip of the tail was not tracked from behind
    assert check(tmp_path / "out").ok
