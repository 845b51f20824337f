"""Points that were followed through a video reach `tracks.npz` and the report, whichever head followed them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from four_d import cli
from four_d.abilities import UNITS
from four_d.checkpoints import ModelInfo
from four_d.formats.tracks import read_tracks
from four_d.geometry import project
from four_d.heads.track import TrackHeadConfig
from four_d.inference import LoadedModel, Result, write
from four_d.inference.tracks import CROSSES, from_pixels, from_points
from four_d.tracking import PointTracks
from four_d.viewer import report
from tests.test_export import TINY
from tests.test_inference import gradient
from tests.test_inputs import motion_model, write_folder


@pytest.fixture(scope="module")
def result() -> Result:
    """A result of frames twice as large as the model's grid, so that original pixels are not the model's."""
    return motion_model()(gradient(64, 96))


def test_the_file_holds_what_the_model_says(result: Result, tmp_path: Path) -> None:
    write(result, tmp_path)
    table = read_tracks(tmp_path / "tracks.npz")
    assert result.tracks is not None
    assert result.cameras is not None
    assert result.motion is not None
    assert table.points is not None
    assert table.pixels is not None
    np.testing.assert_array_equal(table.points, result.tracks.points)
    np.testing.assert_array_equal(table.visible, result.tracks.visible)
    assert table.frame_times.tolist() == table.times.tolist() == result.times
    assert table.unit == UNITS["mean_distance"]
    pixels, z = project(result.tracks.points.transpose(0, 1), result.cameras)
    front = (z > 0.1).T.numpy()
    assert front.mean() > 0.2
    np.testing.assert_allclose(table.pixels[front], pixels.transpose(0, 1)[front], rtol=1e-3, atol=0.05)


def test_dense_motion_is_the_tracks_at_their_pixels(result: Result) -> None:
    """A track starts at a pixel's centre, so it is the pixel's point and its motion."""
    table = result.track_table
    assert table is not None
    assert table.motion is not None
    assert table.points is not None
    assert result.points is not None
    assert table.motion.shape == (4, *result.fits.model, 3)
    columns, rows = ((table.queries[:, axis] * result.fits.of_frames[0].scale).astype(int) for axis in (1, 2))
    path = result.points[0].numpy()[rows, columns] + table.motion[1:, rows, columns]
    np.testing.assert_allclose(table.points[:, 1:], path.swapaxes(0, 1), atol=1e-4)


def test_points_asked_for_come_back_as_they_were_given(tmp_path: Path) -> None:
    points = [(50.0, 21.0), (2, 30.5, 60.0)]
    found = motion_model()(gradient(64, 96), points=points)
    assert found.queries is not None
    table = found.track_table
    assert table is not None
    np.testing.assert_allclose(table.queries, [(0, 50, 21), (2, 30.5, 60)], atol=1e-4)
    np.testing.assert_allclose(found.queries, table.queries)


def test_points_of_a_2d_head_have_no_place_in_space() -> None:
    track = TrackHeadConfig(channels=(8,) * 4, features=8, levels=2, radius=1, hidden=16, depth=1, heads=2, virtual=4)
    config = dataclasses.replace(TINY, heads={**TINY.heads, "track": track})
    loaded = LoadedModel(config.build().eval(), ModelInfo(model=config, image_size=(32, 48), frames=8))
    found = loaded(gradient(64, 96), points=[(50.0, 21.0), (2.0, 3.0)])
    table = found.track_table
    assert table is not None
    assert found.pixel_tracks is not None
    assert found.prediction.pixel_tracks_visible is not None
    assert table.points is None
    np.testing.assert_array_equal(table.pixels, found.pixel_tracks.transpose(0, 1))
    np.testing.assert_array_equal(table.visible, found.prediction.pixel_tracks_visible.T)
    assert loaded(gradient(64, 96)).track_table is None


def test_several_cameras_share_times() -> None:
    """Two cameras, three times: a point is seen at a time if either camera sees it."""
    pixels = torch.zeros(6, 2, 2)
    pixels[:, 1, 0] = 2 * CROSSES * 100 * torch.linspace(0, 1, 6)
    visible = torch.tensor([[1.0, 0, 0, 0.25, 0, 0.75], [0.0] * 6]).T
    times, cameras = [0.0, 0.0, 0.1, 0.1, 0.2, 0.2], [0, 1] * 3
    table = from_pixels(torch.zeros(2, 3), pixels, visible, None, times, cameras, [100, 400] * 3)
    assert table.times.tolist() == [0, 0.1, 0.2]
    assert table.visible.tolist() == [[1, 0.25, 0.75], [0, 0, 0]]
    assert table.confidence.tolist() == [[1, 1, 1]] * 2
    assert table.moving.tolist() == [False, True]
    assert table.frame_cameras.tolist() == cameras
    tracks = PointTracks(
        queries=torch.zeros(2, 3),
        points=torch.ones(2, 3, 3) * torch.tensor([1.0, 1.1, 1.2])[:, None],
        visible=torch.ones(2, 3),
        times=torch.tensor([0, 0.1, 0.2]),
        pixels=torch.full((2, 6, 2), torch.inf),
    )
    table = from_points(tracks, None, times, cameras, "ells")
    assert table.times.tolist() == [0, 0.1, 0.2], "not as single precision has them"
    assert table.frame_indices.tolist() == [0, 0, 1, 1, 2, 2]
    assert table.moving.all()
    assert np.isfinite(table.pixels).all()


def test_the_command_shows_the_cloud_and_the_tracks_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --static-points the page has the static cloud; points asked for are picked out."""
    pytest.importorskip("viser", reason="the extra viz is not installed")
    loaded, told = motion_model(), {}
    original = Result.cloud

    def load(_: object) -> LoadedModel:
        return loaded

    def cloud(self: Result, *, static: bool = False) -> Any:
        found = original(self)
        assert found is not None
        return found.thin(40) if static else found

    def show(*_: object, **settings: Any) -> None:
        told.update(settings)

    monkeypatch.setattr("four_d.inference.load", load)
    monkeypatch.setattr(Result, "cloud", cloud)
    monkeypatch.setattr("four_d.inference.model.report", show)
    folder = write_folder(tmp_path / "frames", gradient(64, 96, 3))
    out = tmp_path / "out"
    common = ["infer", str(folder), "--model", "x", "--out", str(out)]
    assert cli.main([*common, "--static-points", "--points", "10,20", "30,40"]) == 0
    assert len(told["cloud"]) == 40
    assert len(told["tracks"]) == 2
    assert list(told["selected"]) == [0, 1]
    assert len(read_tracks(out / "tracks.npz")) == 2
    assert "tracks.npz" in json.loads((out / ".four_d.json").read_text())["files"]
    assert cli.main(common) == 0
    assert len(told["cloud"]) > 40
    assert len(told["tracks"]) > 100
    assert list(told["selected"]) == []


def test_a_result_with_tracks_makes_a_page(result: Result, tmp_path: Path) -> None:
    pytest.importorskip("viser", reason="the extra viz is not installed")
    report(tmp_path / "report.html", result, title="x", tracks=result.track_table)
    assert 'id="trails"' in (tmp_path / "report.html").read_text()
