"""Inputs of inference besides one video: several cameras, and points of any frame to follow."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from four_d.checkpoints import ModelInfo
from four_d.errors import UserError
from four_d.heads import DenseHeadConfig
from four_d.inference import LoadedModel, Selection
from four_d.query import QueryConfig
from four_d.tracking import moving
from four_d.types import Clip, map_tensors
from four_d.video.inputs import gather
from tests.test_export import DENSE, TINY
from tests.test_inference import gradient

MOTION = dataclasses.replace(
    TINY,
    backbone=dataclasses.replace(TINY.backbone, query=QueryConfig()),
    heads={**TINY.heads, "motion": DenseHeadConfig(output="motion", **DENSE)},  # pyright: ignore[reportArgumentType]
)


def motion_model() -> LoadedModel:
    torch.manual_seed(0)
    return LoadedModel(MOTION.build().eval(), ModelInfo(model=MOTION, image_size=(32, 48), frames=8))


def write_folder(path: Path, frames: NDArray[np.uint8]) -> Path:
    path.mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"{index:03d}.png")
    return path


# several cameras


def test_frames_of_several_cameras_stand_time_by_time(tmp_path: Path) -> None:
    frames = [gradient(20, 30, 3), 255 - gradient(20, 30, 3)]
    ways = {
        "arrays": frames,
        "tensors": [torch.from_numpy(each).permute(0, 3, 1, 2) / 255 for each in frames],
        "pictures": [[Image.fromarray(frame) for frame in each] for each in frames],
        "folders": [write_folder(tmp_path / f"cam{i}", each) for i, each in enumerate(frames)],
        "names": [str(tmp_path / f"cam{i}") for i in range(2)],
    }
    for name, way in ways.items():
        source = gather(way)  # pyright: ignore[reportArgumentType]
        for time in range(3):
            for camera in range(2):
                np.testing.assert_array_equal(source.frames[2 * time + camera], frames[camera][time], err_msg=name)
        assert source.times.tolist() == pytest.approx([0, 0, 0.04, 0.04, 0.08, 0.08])
        assert source.cameras == 2
        assert (source.floats is not None) == (name == "tensors")
        if source.floats is not None:
            torch.testing.assert_close(source.floats[3] * 255, torch.from_numpy(frames[1][1]).permute(2, 0, 1).float())


def test_one_video_in_a_list_is_one_camera() -> None:
    source = gather([gradient(20, 30)])
    assert source.cameras == 1
    np.testing.assert_array_equal(source.frames, gradient(20, 30))


def test_the_shortest_camera_says_how_long_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    long, short = gradient(20, 30, 6), gradient(20, 30, 4)
    assert len(gather([long, short]).frames) == 8
    assert "camera 1 has 4 frames and camera 0 6: taking the first 4 of every camera" in capfd.readouterr().err
    folders = [write_folder(tmp_path / "a", long), write_folder(tmp_path / "b", short)]
    source = gather(folders, Selection(max_frames=2))
    assert source.times.tolist() == pytest.approx([0, 0, 0.12, 0.12])
    np.testing.assert_array_equal(source.frames[2:], [long[3], short[3]])
    said = capfd.readouterr().err
    assert "b lasts 0.12 s" in said
    assert "a 0.20 s: taking what all cameras have" in said


def test_pictures_for_cameras_are_said_to_be_such(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A shell makes several arguments of photos/*.png; a rig of one moment is seldom what is meant."""
    folder = write_folder(tmp_path / "photos", gradient(20, 30, 3))
    assert gather(sorted(folder.iterdir())).cameras == 3
    told = "3 pictures are taken as those of 3 cameras at one moment; for a video of them, give their folder"
    assert told in capfd.readouterr().err


def test_cameras_of_different_rates_are_joined_by_time(tmp_path: Path) -> None:
    """25 frames a second beside 10 frames a second: the nearest frame of the other, not that of the same number."""
    pytest.importorskip("av", reason="the extra video is not installed")
    from tests.test_inference import write_video

    fast, slow = gradient(32, 48, 6), gradient(32, 48, 3)
    folder, video = write_folder(tmp_path / "fast", fast), write_video(tmp_path / "slow.mp4", slow, rate=10)
    source = gather([folder, video], Selection(max_frames=3))
    assert source.times.tolist() == pytest.approx([0, 0, 0.08, 0.08, 0.2, 0.2])
    for index, wanted in ((1, 0), (3, 1), (5, 2)):
        assert np.abs(source.frames[index].astype(int) - slow[wanted]).mean() < 3


def test_cameras_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    small = write_folder(tmp_path / "small", gradient(20, 30))
    with pytest.raises(UserError, match="some of the cameras are files and some are arrays"):
        gather([small, gradient(20, 30)])
    with pytest.raises(UserError, match="nowhere does not exist"):
        gather([small, tmp_path / "nowhere"])
    with pytest.raises(UserError, match="selection chooses frames of a file"):
        gather([gradient(20, 30)] * 2, Selection())


def test_a_model_sees_the_cameras_and_their_times() -> None:
    model = motion_model()
    result = model([gradient(32, 48, 3), 255 - gradient(32, 48, 3)])
    assert result.camera_ids == (0, 1, 0, 1, 0, 1)
    assert result.times == pytest.approx([0, 0, 0.04, 0.04, 0.08, 0.08])
    assert result.tracks is not None
    assert result.tracks.points.shape == (576, 3, 3), "three times, not six"
    assert result.tracks.pixels is not None
    assert result.tracks.pixels.shape == (576, 6, 2)
    assert model(gradient(32, 48, 2)).camera_ids is None


# points


def test_points_of_any_frame_are_followed_in_original_pixels() -> None:
    points = [(10.0, 20.5), (2, 60.0, 33.0)]
    result = motion_model()(gradient(64, 112), points=points)
    tracks = result.tracks
    assert tracks is not None
    torch.testing.assert_close(tracks.queries, torch.tensor([[0, 10.0, 20.5], [2, 60.0, 33.0]]), atol=1e-3, rtol=0)
    assert tracks.pixels is not None
    own = tracks.pixels[torch.arange(2), [0, 2]]
    torch.testing.assert_close(own, tracks.queries[:, 1:], atol=1e-2, rtol=0)
    assert tracks.visible[torch.arange(2), [0, 2]].tolist() == [1, 1]
    assert result.prediction.motion is not None
    assert result.prediction.motion.shape == (1, 4, *result.fits.model, 3), "to one time only"
    assert result.prediction.depth is not None


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ((4.0, 65.0), "point 4,65 is outside what the model sees; choose x from"),
        ((4, 4.0, 4.0), "frame 4 of point 4,4 is not among the frames taken; choose 0 to 3"),
        ((-1, 4.0, 4.0), "frame -1 of point 4,4"),
        ((0.5, 4.0, 4.0), r"frame 0\.5 of point"),
    ],
)
def test_points_outside_are_refused(point: tuple[float, ...], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        motion_model()(gradient(64, 112), points=[point])  # pyright: ignore[reportArgumentType]
    assert len(str(raised.value).splitlines()) == 1


def test_without_tracks_only_the_first_time_is_asked_for() -> None:
    model, frames = motion_model(), gradient(32, 48, 6)
    encoded: list[Clip] = []
    model.model.backbone.register_forward_pre_hook(lambda _, inputs: encoded.append(inputs[0]))  # pyright: ignore
    full = model(frames, window=6)
    assert len(encoded) == 6
    encoded.clear()
    few = model(frames, window=6, tracks=False)
    assert len(encoded) == 1
    assert few.tracks is few.track_table is None
    assert few.prediction.motion is not None
    assert torch.equal(few.prediction.motion, full.prediction.motion)
    encoded.clear()
    assert model(frames, window=4, overlap=1, tracks=False).tracks is None
    assert len(encoded) == 2
    with pytest.raises(UserError, match="points are given to be followed, and tracks are off"):
        model(frames, points=[(3.0, 4.0)], tracks=False)


def test_windows_before_the_first_point_follow_nothing() -> None:
    model, frames = motion_model(), gradient(32, 48, 10)
    encoded: list[Clip] = []
    model.model.backbone.register_forward_pre_hook(lambda _, inputs: encoded.append(inputs[0]))  # pyright: ignore
    found = model(frames, points=[(9, 3.0, 4.0)], window=4, overlap=1)
    assert found.tracks is not None
    assert found.tracks.points.shape == (1, 10, 3)
    assert len(encoded) == 1 + 1 + 4, "three windows, of which only the last has the point"


def test_one_frame_has_tracks_that_stay() -> None:
    result = motion_model()(gradient(32, 48, 1))
    assert result.tracks is not None
    assert result.tracks.points.shape == (576, 1, 3)
    assert (result.tracks.visible == 1).all()
    assert not moving(result.tracks).any()
    assert result.points is not None
    cells = result.tracks.queries.long()
    torch.testing.assert_close(result.tracks.points[:, 0], result.points[0, cells[:, 2], cells[:, 1]])


def test_tracks_of_a_result_hold_no_graph_and_are_on_the_cpu() -> None:
    tracks = motion_model()(gradient(32, 48, 2), points=[(3.0, 4.0)]).tracks
    assert tracks is not None
    map_tensors(tracks, lambda tensor: pytest.fail("a graph is held") if tensor.requires_grad else tensor)
