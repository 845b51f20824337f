"""Gaussians in the browser: what is kept of them, the report page that plays them, and the live view."""

import dataclasses
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from four_d import cli
from four_d.cli.flags import from_flags
from four_d.cli.tools import View
from four_d.errors import UserError
from four_d.formats.clouds import PointCloud, fuse
from four_d.formats.splats import read_gaussians, sound, state_at, write_gltf, write_ply, write_spz, write_times
from four_d.types import Gaussians, Prediction, Segment
from four_d.viewer import page as page_module
from four_d.viewer import report, serve
from four_d.viewer.scene import scene_html
from four_d.viewer.splats import GRID, MAGNIFIED, film
from tests.formats.scene import moving, standing, turning
from tests.splat_scene import splatted
from tests.test_viewer import Visit, browser, data_of, difference  # noqa: F401  browser is a fixture

viser = pytest.importorskip("viser", reason="the extra viz is not installed")

TIMES = [0.0, 0.1, 0.2, 0.3]
FRAMES = 4


def test_what_stands_still_is_recorded_once() -> None:
    shown = film(moving(300), TIMES, unit=2.0)
    assert (len(shown.still.centres), len(shown.moving.centres)) == (150, 150)
    assert shown.positions.shape == (4, 150, 3)
    assert shown.kept == 1
    scene = moving(300)
    assert scene.offsets is not None
    expected = (scene.means + 0.5 * (scene.offsets[1] + scene.offsets[2]))[:150] / 2
    np.testing.assert_allclose(shown.positions[2], expected, atol=1 / GRID)
    np.testing.assert_allclose(shown.still.centres, scene.means[150:] / 2, atol=1 / GRID)


def test_what_turns_in_its_place_is_recorded_with_its_covariances() -> None:
    scene = turning(300)
    shown = film(scene, TIMES, unit=2.0)
    assert (len(shown.still.centres), len(shown.moving.centres)) == (0, 300)
    assert shown.covariances is not None
    for index, time in enumerate(TIMES):
        alone = film(state_at(sound(scene), time), [0.0], unit=2.0).still
        np.testing.assert_allclose(shown.covariances[index], alone.covariances, atol=1e-7)
    assert film(moving(300), TIMES).covariances is None
    unturned = dataclasses.replace(scene, turns=torch.tensor([1.0, 0, 0, 0]).expand(3, 300, 4))
    assert len(film(unturned, TIMES).still.centres) == 150


def test_covariances_are_of_the_turned_axes() -> None:
    gaussian = Gaussians(
        means=torch.zeros(1, 3),
        quats=torch.tensor([[2.0, 0, 0, 2.0]]),  # a quarter turn about z
        scales=torch.tensor([[4.0, 2.0, 1.0]]),
        opacities=torch.ones(1),
        harmonics=torch.zeros(1, 1, 3),
    )
    found = film(gaussian, [0.0], unit=2.0).still
    np.testing.assert_allclose(found.covariances, [np.diag([1.0, 4.0, 0.25])], atol=1e-6)
    np.testing.assert_allclose(found.colours, 0.5)


def test_colours_are_those_the_eye_sees() -> None:
    scene = standing(1, 1)
    sides = [film(scene, [0.0], eye=torch.tensor([x, 0.0, 0.0])).still.colours for x in (-9.0, 9.0)]
    assert np.abs(sides[0] - sides[1]).max() > 0.05


def test_too_many_are_thinned_and_grow() -> None:
    scene = dataclasses.replace(standing(900), opacities=torch.ones(900))
    shown = film(scene, TIMES, most=100)
    assert len(shown) == 100
    assert shown.kept == pytest.approx(1 / 9)
    whole = film(scene, TIMES)
    picked = np.linspace(0, 899, 100).astype(int)
    np.testing.assert_array_equal(shown.still.centres, whole.still.centres[picked])
    np.testing.assert_allclose(shown.still.covariances, 9 * whole.still.covariances[picked], rtol=1e-4)


def test_what_is_recorded_is_bounded() -> None:
    shown = film(moving(1000), TIMES, recorded=1000)
    assert len(shown.still.centres) + 4 * len(shown.moving.centres) <= 1010
    assert len(shown) > 300


def test_what_cannot_be_seen_is_left_out() -> None:
    faint = dataclasses.replace(moving(), opacities=torch.where(torch.arange(300) < 100, 1e-3, 0.5))
    assert len(film(faint, TIMES)) == 200


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    report(path, splatted(FRAMES, (18, 32)), title="ball")
    return path


def test_page_says_how_many_there_are(page: Path) -> None:
    assert data_of(page)["splats"] is True
    assert "576 splats<" in page.read_text()


@pytest.mark.parametrize(("larger", "opened", "other"), [(1, "splats", "points"), (3, "points", "splats")])
def test_page_opens_on_what_shows_most(
    larger: float, opened: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On splats that show the first frame; on points where they are fog."""
    monkeypatch.setattr(page_module, "scene_html", lambda *_: "<html><head></head></html>")
    truth = splatted(2)
    own = truth.prediction.gaussians
    assert own is not None
    some = dataclasses.replace(own, scales=larger * own.scales)
    said = dataclasses.replace(truth, prediction=dataclasses.replace(truth.prediction, gaussians=some))
    report(tmp_path / "report.html", said, title="x")
    text = (tmp_path / "report.html").read_text()
    assert f'value="{opened}" checked' in text
    assert f'value="{other}" checked' not in text


def test_page_without_gaussians_has_no_switch(tmp_path: Path) -> None:
    truth = splatted(2, (18, 32))
    bare = dataclasses.replace(truth, prediction=dataclasses.replace(truth.prediction, gaussians=None))
    report(tmp_path / "report.html", bare, title="x")
    assert data_of(tmp_path / "report.html")["splats"] is False
    assert 'id="shape"' not in (tmp_path / "report.html").read_text()


def test_gaussians_and_cameras_are_enough_for_a_scene(tmp_path: Path) -> None:
    truth = splatted(2, (18, 32))
    said = Prediction(cameras=truth.prediction.cameras, gaussians=truth.prediction.gaussians)
    report(tmp_path / "report.html", dataclasses.replace(truth, prediction=said), title="x")
    assert "srcdoc" in (tmp_path / "report.html").read_text()


def test_points_of_gaussians_alone_go_with_the_frames_and_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, clouds = splatted(4, (18, 32)), list[PointCloud]()
    first, later = moving(30), standing(20)
    said = dataclasses.replace(truth, prediction=Prediction(cameras=truth.prediction.cameras), times=TIMES)

    def record(cloud: PointCloud, *_: object) -> str:
        clouds.append(cloud)
        return "<html><head></head></html>"

    monkeypatch.setattr(page_module, "scene_html", record)
    segments = [Segment(gaussians=first, start=0.0), Segment(gaussians=later, start=0.15)]
    report(tmp_path / "report.html", said, title="x", gaussians=segments)
    cloud = clouds[0]
    assert np.bincount(cloud.frames).tolist() == [30, 30, 20, 20]
    assert first.offsets is not None
    expected = (first.means + first.offsets[1])[:15]
    np.testing.assert_allclose(cloud.points[cloud.frames == 1][:15], expected, atol=2 / GRID)


def test_a_frame_without_points_gets_no_empty_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, sizes = splatted(3, (18, 32)), list[int]()
    add = viser.SceneApi.add_point_cloud

    def count(self: Any, name: str, points: Any, *rest: Any, **more: Any) -> object:
        sizes.append(len(points))
        return add(self, name, points, *rest, **more)

    monkeypatch.setattr(viser.SceneApi, "add_point_cloud", count)
    cloud = fuse(truth.images, truth.prediction)
    assert cloud is not None
    cameras = truth.prediction.cameras
    assert cameras is not None
    html = scene_html(cloud.take(cloud.frames != 1), cameras, (18, 32))
    assert len(sizes) == 2
    assert min(sizes) > 0
    assert "<html" in html[:500].lower()


def test_size_is_bounded(tmp_path: Path) -> None:
    """24 frames of 60,000 Gaussians, all of which move, stay below 20 MB."""
    truth = splatted(24, (18, 32))
    generator = torch.Generator().manual_seed(0)
    count = 60_000
    crowd = dataclasses.replace(
        moving(count, 0),
        offsets=torch.randn(24, count, 3, generator=generator),
        offset_times=torch.tensor(truth.times),
    )
    many = dataclasses.replace(truth, prediction=dataclasses.replace(truth.prediction, gaussians=crowd))
    report(tmp_path / "report.html", many, title="x")
    text = (tmp_path / "report.html").read_text()
    assert len(text) < 20e6
    assert "28 % of the model" in text


@pytest.mark.browser
def test_splats_move_with_the_slider(browser: Any, page: Path) -> None:  # noqa: F811
    visit = Visit(browser, page)
    visit.page.check("input[value=splats]")
    first = visit.scene()
    assert first.std() > 10, "the 3D view is not blank"
    visit.go(FRAMES - 1)
    last = visit.scene()
    assert difference(last, first) > 0.5
    visit.page.check("input[value=points]")
    assert visit.page.locator("#all").is_visible()
    points = visit.scene()
    assert difference(points, last) > 0.5, "points look different"
    visit.page.check("input[value=splats]")
    assert not visit.page.locator("#all").is_visible()
    assert visit.comes_back_to(last, rather_than=points)
    assert not visit.errors
    assert [url for url in visit.requests if not url.startswith(("data:", "blob:", "about:"))] == [page.as_uri()]


@pytest.mark.browser
def test_a_later_segment_is_seen(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    truth = splatted(FRAMES, (18, 32))
    own = truth.prediction.gaussians
    assert own is not None
    red = dataclasses.replace(own, harmonics=torch.zeros_like(own.harmonics) + torch.tensor([1.5, -1.5, -1.5]))
    segments = [Segment(gaussians=own, start=0.0), Segment(gaussians=red, start=truth.times[-1] - 0.01)]
    said = dataclasses.replace(truth, prediction=Prediction(cameras=truth.prediction.cameras))
    report(tmp_path / "report.html", said, title="two", gaussians=segments)
    visit = Visit(browser, tmp_path / "report.html")
    visit.page.check("input[value=splats]")

    def redness() -> float:
        shown = visit.scene().astype(int)
        return float((shown[..., 0] > shown[..., 1:].max(-1) + 150).mean())

    assert redness() < 0.01
    visit.go(FRAMES - 1)
    assert redness() > 0.05
    assert not visit.errors


def test_live_view_of_segments_shows_one_at_a_time() -> None:
    scene = moving(20)
    later = dataclasses.replace(standing(30), offset_times=None)
    live = serve([Segment(gaussians=scene, start=0.0), Segment(gaussians=later, start=0.2)], port=0)
    try:
        assert [len(reel.film) for reel in live.reels] == [20, 30]
        assert live.slider is not None

        def shown() -> list[bool]:
            return [any(h.visible for h in (reel.still, reel.moving) if h is not None) for reel in live.reels]

        assert shown() == [True, False]
        live.slider.value = 0.2
        assert shown() == [False, True]
        live.slider.value = 0.1
        assert shown() == [True, False]
    finally:
        live.stop()


def test_live_view_serves_and_moves() -> None:
    live = serve(moving(200), port=0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{live.server.get_port()}") as answer:
            assert b"<html" in answer.read(2000).lower()
        assert live.slider is not None
        assert (live.slider.min, live.slider.max) == (0, pytest.approx(0.3))
        assert live.film.times[0] == 0
        assert len(live.film.times) == 9
        live.slider.value = 0.15
        assert live.moving is not None
        shown = live.moving.centers / MAGNIFIED
        np.testing.assert_array_equal(shown, live.film.positions[4])
        assert np.abs(shown - live.film.positions[0]).max() > 0.05
    finally:
        live.stop()


def test_live_view_turns() -> None:
    live = serve(turning(50), port=0)
    try:
        assert live.slider is not None
        live.slider.value = 0.15
        assert live.moving is not None
        assert live.film.covariances is not None
        np.testing.assert_array_equal(live.moving.centers / MAGNIFIED, live.film.positions[4])
        shown = live.moving.covariances / MAGNIFIED**2
        np.testing.assert_allclose(shown, live.film.covariances[4], atol=1e-4)
        assert np.abs(shown - live.film.covariances[0]).max() > 1e-3
    finally:
        live.stop()


def test_live_view_of_what_stands_has_no_slider() -> None:
    live = serve(standing(20), port=0)
    live.stop()
    assert live.slider is None


def test_live_view_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="no Gaussians to show"):
        serve(standing(0), port=0)


def test_any_known_file_is_read(tmp_path: Path) -> None:
    for write, name in ((write_ply, "x.ply"), (write_spz, "x.spz"), (write_gltf, "x.glb"), (write_times, "folder")):
        write(tmp_path / name, standing(20))
        assert len(read_gaussians(tmp_path / name).means) == 20
    (tmp_path / "x.obj").write_text("v 0 0 0")
    with pytest.raises(UserError, match="unknown suffix"):
        read_gaussians(tmp_path / "x.obj")


def test_view_is_a_verb() -> None:
    arguments = from_flags(cli.parse(["view", "scene.glb", "--port", "9000"]), View)
    assert (arguments.gaussians, arguments.port, arguments.host) == (Path("scene.glb"), 9000, "127.0.0.1")
