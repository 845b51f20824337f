"""The report page: one file, nothing fetched, everything plays together (the latter in a real browser)."""

import base64
import dataclasses
import io
import json
import re
import shutil
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from four_d.data.sampling import normalise, to_clip
from four_d.errors import UserError
from four_d.formats.clouds import PointCloud, fuse
from four_d.formats.tracks import TrackTable
from four_d.geometry import project, unproject
from four_d.heads.keypoint import KeypointPrediction
from four_d.tracking import grid as evenly
from four_d.types import Cameras, Prediction
from four_d.viewer import Figure, Section, Table, report
from four_d.viewer.scene import FIELD_OF_VIEW, scene_unit
from four_d.viewer.trails import SHADES, colours, trails
from tests.helpers import box_clip

pytest.importorskip("viser", reason="the extra viz is not installed")

FRAMES = 5


@dataclasses.dataclass(frozen=True)
class Truth:
    """A true answer to play: what a perfect model says of a clip."""

    prediction: Prediction
    images: torch.Tensor
    frames: NDArray[np.uint8]
    times: list[float]
    keypoint_edges: tuple[tuple[int, int], ...] = ()


def perfect(frames: int) -> Truth:
    raw = box_clip(frames=frames, cameras=1, size=(48, 64))
    clip = normalise(to_clip(raw))
    assert clip.depth is not None
    return Truth(
        prediction=Prediction(
            cameras=clip.cameras, depth=clip.depth, depth_confidence=1 + 1 / clip.depth.clamp_min(1e-3)
        ),
        images=clip.images,
        frames=raw.images.repeat(3, axis=1).repeat(3, axis=2),
        times=clip.times.tolist(),
    )


def ball(frames: int = FRAMES, size: tuple[int, int] = (90, 160), *, grid: int = 24) -> tuple[Truth, TrackTable]:
    """A ball that flies from left to right over the floor, seen by a camera that moves; a grid of its first pixels."""
    times = torch.arange(frames) / 25
    along = torch.linspace(0, 1, frames)
    poses = torch.eye(4).repeat(frames, 1, 1)
    poses[:, 0, 3], poses[:, 1, 3] = 0.25 * along, -0.1 * along
    height, width = size
    intrinsics = torch.tensor([[0.9 * width, 0, width / 2], [0, 0.9 * width, height / 2], [0, 0, 1]])
    cameras = Cameras(world_from_camera=poses, intrinsics=intrinsics.repeat(frames, 1, 1))
    centres = torch.stack([along * 1.4 - 0.7, 0.15 - 0.9 * along * (1 - along), 1.9 - 0.3 * along], dim=-1)
    depth, on_ball = _cast(cameras, centres, height, width)
    points = unproject(depth, cameras)
    inside = points - torch.where(on_ball[..., None], centres[:, None, None], torch.zeros(3))
    waves = 0.5 + 0.35 * torch.sin(torch.where(on_ball[..., None], 25.0, 7.0) * inside)
    images = torch.where(on_ball[..., None], waves * torch.tensor([1.0, 0.75, 0.3]), waves * 0.8).permute(0, 3, 1, 2)
    truth = Truth(
        prediction=Prediction(cameras=cameras, depth=depth, depth_confidence=1 + 1 / depth, dynamic=on_ball.float()),
        images=images,
        frames=(images.permute(0, 2, 3, 1) * 255).to(torch.uint8).numpy().repeat(4, axis=1).repeat(4, axis=2),
        times=times.tolist(),
    )
    queries = evenly(height, width, grid)
    rows, columns = queries[:, 2].long(), queries[:, 1].long()
    rides = on_ball[0, rows, columns]
    path = points[0, rows, columns][:, None] + rides[:, None, None] * (centres - centres[0])
    pixels, z = project(path.transpose(0, 1), cameras)
    x, y = pixels.floor().long().unbind(-1)
    within = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    at = torch.arange(frames)[:, None]
    seen = within & (z < depth[at, y.clamp(0, height - 1), x.clamp(0, width - 1)] * 1.03)
    table = TrackTable(
        queries=(queries * torch.tensor([1, 4, 4])).numpy(),
        times=times.double().numpy(),
        frame_times=times.double().numpy(),
        frame_cameras=np.zeros(frames, np.int64),
        visible=seen.T.float().numpy(),
        confidence=np.ones((len(queries), frames), np.float32),
        moving=rides.numpy(),
        unit="ells",
        points=path.numpy(),
        pixels=(pixels.transpose(0, 1) * 4).numpy(),
    )
    return truth, table


def mast(truth: Truth) -> Truth:
    """A mast of two keypoints that a third beside them belongs to, above the flying ball; the third one is hidden."""
    frames = len(truth.times)
    along = torch.linspace(0, 1, frames)
    foot = torch.stack([along * 1.4 - 0.7, 0.15 - 0.9 * along * (1 - along), 1.9 - 0.3 * along], dim=-1)
    points = foot[:, None] + torch.tensor([[0, 0, 0], [0, -0.5, 0], [0.2, 0, 0]])
    pixels, depth = project(points, truth.prediction.cameras)  # pyright: ignore[reportArgumentType]
    told = {each.name: getattr(truth.prediction, each.name) for each in dataclasses.fields(Prediction)}
    visible = torch.tensor([0.9, 0.9, 0.1]).expand(frames, 3)
    said = KeypointPrediction(
        **told, keypoints=points, keypoint_pixels=pixels, keypoint_depth=depth, keypoint_visible=visible
    )
    return dataclasses.replace(truth, prediction=said, keypoint_edges=((0, 1), (1, 2)))


def _cast(cameras: Cameras, centres: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """z-depth f h w of a floor, a wall and a ball of radius 0.3, and where the ball is in front."""
    origin = cameras.world_from_camera[:, :3, 3][:, None, None]
    ones = torch.ones(len(centres), height, width)
    ray = unproject(ones, cameras) - origin
    floor = (0.6 - origin[..., 1]) / ray[..., 1].clamp_min(1e-6)
    depth = torch.minimum(floor, (4 - origin[..., 2]) / ray[..., 2])
    away = origin - centres[:, None, None]
    a, b, c = (ray * ray).sum(-1), (ray * away).sum(-1), (away * away).sum(-1) - 0.3**2
    root = (b * b - a * c).clamp_min(0).sqrt()
    hit = (b * b > a * c) & ((-b - root) / a < depth)
    return torch.where(hit, (-b - root) / a, depth), hit


def png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 32), colour).save(buffer, "PNG")
    return buffer.getvalue()


SECTIONS = [
    Section(
        title="Scores <of> & on",
        text="One.\n\nTwo </script> <b>three</b>.",
        tables=[Table(columns=["who", "AbsRel"], rows=[["model", "0.1"], ["mean map", "0.2"]], strong=[0])],
        figures=[Figure(data=png((10, 200, 30)), caption="curves")],
    )
]


@pytest.fixture(scope="module")
def truth() -> Truth:
    return perfect(FRAMES)


@pytest.fixture(scope="module")
def page(truth: Truth, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    facts = [("frames", "5"), ("size", "64 × 48")]
    report(path, truth, title="Boxes & <co>", summary="A hand-made world.", facts=facts, sections=SECTIONS)
    return path


def test_nothing_is_fetched(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"""(src|href)\s*=\s*["']?(?!data:|&quot;)[a-z/.]""", text.split('srcdoc="')[0])
    assert "default-src 'none'" in text
    addresses = set(re.findall(r"https?://[\w./-]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg"} | {a for a in addresses if "w3.org" in a}, addresses


def test_size(page: Path) -> None:
    assert page.stat().st_size < 3e6


def test_texts_are_escaped(page: Path) -> None:
    text = page.read_text()
    assert "<h1>Boxes &amp; &lt;co&gt;</h1>" in text
    assert "Two &lt;/script&gt; &lt;b&gt;three&lt;/b&gt;." in text
    assert "<tr class=strong><td>model</td><td>0.1</td></tr>" in text


def test_without_geometry_there_is_no_scene(truth: Truth, tmp_path: Path) -> None:
    bare = dataclasses.replace(truth, prediction=Prediction(depth=truth.prediction.depth))
    report(tmp_path / "report.html", bare, title="x")
    text = (tmp_path / "report.html").read_text()
    assert "srcdoc" not in text
    assert "no scene to show" in text
    assert text.count("<canvas") == 2


def test_what_moves_is_a_panel_where_the_model_says_it(truth: Truth, tmp_path: Path) -> None:
    depth = truth.prediction.depth
    told = dataclasses.replace(truth, prediction=Prediction(depth=depth, dynamic=torch.rand(depth.shape)))
    report(tmp_path / "report.html", told, title="x")
    text = (tmp_path / "report.html").read_text()
    assert '<canvas data-panel="2" role="img" aria-label="What moves">' in text
    assert "<span>moves</span>" in text


def data_of(page: Path) -> dict[str, Any]:
    return json.loads(page.read_text().split('<script id="data" type="application/json">')[1].split("</script>")[0])


def numbers(text: str, kind: str, *shape: int) -> NDArray[np.generic]:
    return np.frombuffer(base64.b64decode(text), kind).reshape(shape)


@pytest.fixture(scope="module")
def flight() -> tuple[Truth, TrackTable]:
    return ball()


@pytest.fixture(scope="module")
def flying(flight: tuple[Truth, TrackTable], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    report(path, flight[0], title="ball", tracks=flight[1])
    return path


def test_trails_are_in_the_pictures_and_the_scenes_coordinates(
    flight: tuple[Truth, TrackTable], tmp_path: Path
) -> None:
    """The page holds the table seen through the crop and the scene's unit, frame by frame and not by time."""
    table = flight[1]
    keep, backwards = 7, slice(None, None, -1)
    few = {name: getattr(table, name)[:keep] for name in ("queries", "confidence", "moving")}
    turned = dataclasses.replace(
        table,
        **few,
        times=table.times,
        frame_times=table.frame_times[backwards],
        visible=np.linspace(0, 1, keep * FRAMES, dtype=np.float32).reshape(keep, FRAMES),
        points=table.points[:keep],
        pixels=table.pixels[:keep, backwards],
    )
    box, unit = (20, 10, 200, 100), 2.5
    made = trails(turned, [box] * FRAMES, unit, [3])
    assert made["selected"] == [3]
    points = numbers(made["points"], "<f4", keep, FRAMES, 3)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(points, turned.points[:, backwards] / unit, rtol=1e-6)
    pixels = numbers(made["pixels"], "<f4", keep, FRAMES, 2)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(pixels * (200, 100) + (20, 10), turned.pixels, rtol=1e-5)
    seen = numbers(made["seen"], "u1", keep, FRAMES)  # pyright: ignore[reportArgumentType]
    assert seen.tolist() == (turned.visible[:, backwards] > 0.5).tolist()
    with pytest.raises(IndexError):
        trails(turned, [box] * FRAMES, unit, [keep])


def test_trail_colours_follow_the_start(flight: tuple[Truth, TrackTable]) -> None:
    table = flight[1]
    found = colours(table)
    assert found.shape == (len(table), 3)
    left, right = found[~table.moving][0], found[~table.moving][23]
    assert left[2] > left[0], "blue at the left"
    assert right[0] > right[2], "red at the right"
    assert len(np.unique(found[table.moving], axis=0)) > 20, "what moves has all colours to itself"
    assert len(np.unique(found, axis=0)) <= SHADES


def test_nothing_moves(flight: tuple[Truth, TrackTable], tmp_path: Path) -> None:
    truth, table = flight
    still = dataclasses.replace(table, moving=np.zeros(len(table), bool))
    report(tmp_path / "report.html", truth, title="x", tracks=still)
    text = (tmp_path / "report.html").read_text()
    assert 'value="none" checked' in text
    assert 'value="moving" disabled' in text
    assert not any(data_of(tmp_path / "report.html")["trails"]["moving"])


def test_no_trails_without_tracks_or_time(page: Path, flight: tuple[Truth, TrackTable], tmp_path: Path) -> None:
    assert data_of(page)["trails"] is None
    assert 'id="trails"' not in page.read_text()
    truth, table = ball(1)
    report(tmp_path / "report.html", truth, title="x", tracks=table)
    assert data_of(tmp_path / "report.html")["trails"] is None


def test_skeletons_are_in_the_scenes_coordinates(flight: tuple[Truth, TrackTable], tmp_path: Path) -> None:
    truth = mast(flight[0])
    report(tmp_path / "report.html", truth, title="x")
    found = data_of(tmp_path / "report.html")["skeletons"]
    cloud, said = fuse(truth.images, truth.prediction), truth.prediction
    assert cloud is not None
    assert isinstance(said, KeypointPrediction)
    assert said.cameras is not None
    assert said.keypoints is not None
    points = numbers(found["points"], "<f4", FRAMES, 3, 3)
    np.testing.assert_allclose(points, said.keypoints / scene_unit(cloud, said.cameras), rtol=1e-6)
    assert numbers(found["seen"], "u1", FRAMES, 3).tolist() == [[1, 1, 0]] * FRAMES
    assert found["edges"] == [[0, 1], [1, 2]]
    flat = dataclasses.replace(said, keypoints=None)
    report(tmp_path / "report.html", dataclasses.replace(truth, prediction=flat), title="x")
    assert data_of(tmp_path / "report.html")["skeletons"] is None
    assert 'id="bones"' not in (tmp_path / "report.html").read_text()


def test_size_with_trails(tmp_path: Path) -> None:
    """24 frames and a grid of 24 × 24 points stay below 8 MB."""
    truth, table = ball(24, (112, 224))
    assert len(table) == 576
    report(tmp_path / "report.html", truth, title="x", tracks=table)
    assert (tmp_path / "report.html").stat().st_size < 8e6


def test_the_cloud_shown_is_the_one_given(flight: tuple[Truth, TrackTable], monkeypatch: pytest.MonkeyPatch) -> None:
    truth = flight[0]
    shown: list[PointCloud] = []
    monkeypatch.setattr("four_d.viewer.page.scene_html", lambda cloud, *_: (shown.append(cloud), "<head></head>")[1])
    monkeypatch.setattr("four_d.viewer.page.write_whole", lambda *_: None)
    every = fuse(truth.images, truth.prediction)
    assert every is not None
    some = every.thin(50)
    report("report.html", truth, title="x", cloud=some)
    report("report.html", truth, title="x")
    assert [len(cloud) for cloud in shown] == [50, len(every)]


def test_without_viser(truth: Truth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(UserError, match=r"four_d\[viz\]"):
        report(tmp_path / "report.html", truth, title="x")
    assert not list(tmp_path.iterdir())


def test_unwritable(truth: Truth, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        report(tmp_path / "file" / "report.html", truth, title="x")


def test_pictures_must_be_pictures(truth: Truth, tmp_path: Path) -> None:
    section = Section(title="x", figures=[Figure(data=b"nothing", caption="x")])
    with pytest.raises(ValueError, match="PNG"):
        report(tmp_path / "report.html", truth, title="x", sections=[section])


# in a browser


@pytest.fixture(scope="module")
def browser() -> Generator[Any]:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    binary = next((found for name in names if (found := shutil.which(name))), None)
    if binary is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    quiet = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    soft = "--disable-component-update --disable-sync --use-angle=swiftshader --enable-unsafe-swiftshader"
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=binary, args=[*quiet.split(), *soft.split()])
        yield opened
        opened.close()


NOT_OURS = "THREE.Clock: This module has been deprecated", "GPU stall due to ReadPixels"
"""Warnings of viser's own program, and of the browser when a test takes a picture of it."""


class Visit:
    """A page open in the browser, with what it complained of and asked for."""

    def __init__(
        self, browser: Any, path: Path, *, motion: str = "reduce", size: tuple[int, int] = (1200, 800)
    ) -> None:
        width, height = size
        self.page = browser.new_page(viewport={"width": width, "height": height}, reduced_motion=motion)
        self.page.set_default_timeout(0)  # however busy the machine is; pytest's own limit ends what hangs
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.goto(path.as_uri())
        ready = "html[data-video=ready]" + ("[data-scene=ready]" if "srcdoc" in path.read_text() else "")
        self.page.wait_for_selector(ready)

    def scene(self) -> NDArray[np.uint8]:
        """Picture of the 3D view, once it has come to rest."""
        before = self._shot()
        for _ in range(400):
            self.page.wait_for_timeout(250)
            now = self._shot()
            if (now == before).all() and now.std() > 5:
                return now
            before = now
        return before

    def panel(self, index: int) -> NDArray[np.uint8]:
        return self._decode(self.page.locator(f"canvas[data-panel='{index}']").screenshot())

    def go(self, frame: int) -> None:
        script = "(v) => {const e = document.getElementById('time'); e.value = v; e.dispatchEvent(new Event('input'))}"
        self.page.evaluate(script, frame)

    def comes_back_to(self, picture: NDArray[np.uint8], *, rather_than: NDArray[np.uint8]) -> bool:
        """True if the scene looks like one picture again, on a busy machine too, where fewer pixels are drawn."""
        for _ in range(200):
            if difference(self.scene(), picture) < difference(rather_than, picture) / 3:
                return True
            self.page.wait_for_timeout(250)
        return False

    def trails(self) -> NDArray[np.bool_]:
        """Pixels that the page draws over the 3D view."""
        script = "() => document.getElementById('space').toDataURL().split(',')[1]"
        picture = Image.open(io.BytesIO(base64.b64decode(self.page.evaluate(script))))
        return np.asarray(picture.convert("RGBA"))[..., 3] > 40

    def trails_about(self, places: NDArray[np.floating]) -> NDArray[np.bool_]:
        """`trails`, once their middle is that of world points: the 3D view may take its size after it looks at rest."""
        for _ in range(400):
            drawn = self.trails()
            marks = np.array([seen_at_first(place, *drawn.shape) for place in places])
            if (np.abs(extent(drawn).mean(0) - (marks.min(0) + marks.max(0)) / 2) < 2).all():
                break
            self.page.wait_for_timeout(50)
        return drawn

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning") and not any(words in message.text for words in NOT_OURS):
            self.errors.append(message.text)

    def _shot(self) -> NDArray[np.uint8]:
        return self._decode(self.page.locator("#scene").screenshot())

    def _decode(self, data: bytes) -> NDArray[np.uint8]:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def difference(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> float:
    return float(np.abs(left.astype(int) - right).mean())


@pytest.mark.browser
def test_page_in_browser(browser: Any, page: Path) -> None:
    visit = Visit(browser, page)
    first, video, depth = visit.scene(), visit.panel(0), visit.panel(1)
    assert first.std() > 20, "the 3D view is not blank"
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 500
    assert video.std() > 20
    assert depth.std() > 20
    visit.go(FRAMES - 1)
    assert "frame 5/5" in visit.page.locator("#clock").inner_text()
    last = visit.scene()
    assert difference(last, first) > 1
    assert difference(visit.panel(0), video) > 1
    assert difference(visit.panel(1), depth) > 1
    visit.go(0)
    assert visit.comes_back_to(first, rather_than=last), "back at the first frame everything is as it was"
    visit.page.check("#all")
    assert difference(visit.scene(), first) > 1, "all frames' points are more than one frame's"
    assert not visit.errors
    assert [url for url in visit.requests if not url.startswith(("data:", "blob:", "about:"))] == [page.as_uri()]


@pytest.mark.browser
@pytest.mark.parametrize("size", [(390, 844), (768, 1024), (1280, 800)], ids=["phone", "tablet", "desktop"])
def test_nothing_lies_over_a_map(browser: Any, flying: Path, size: tuple[int, int]) -> None:
    """However far the page is scrolled, what is in the middle of a picture is the picture; and nothing is too wide."""
    visit = Visit(browser, flying, size=size)
    hidden = """() => [...document.querySelectorAll("canvas[data-panel]")].map((canvas) => {
        const at = [0.05, 0.5, 0.95], seen = [];
        canvas.scrollIntoView({ block: "end" });
        const box = canvas.getBoundingClientRect();
        for (const x of at) for (const y of at)
            seen.push(document.elementFromPoint(box.left + x * box.width, box.top + y * box.height) === canvas);
        return seen.every(Boolean);
    })"""
    found = visit.page.evaluate(hidden)
    assert found == [True] * len(found)
    assert len(found) == 4
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert not visit.errors
    visit.page.close()


def ink(picture: NDArray[np.uint8], without: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a picture has something drawn on it."""
    return np.abs(picture.astype(int) - without).max(-1) > 40


@pytest.mark.browser
def test_trails_follow_the_slider(browser: Any, flying: Path) -> None:
    visit = Visit(browser, flying)
    centres = []
    for frame in (1, FRAMES - 1):
        visit.go(frame)
        visit.page.check("input[value=none]")
        bare = visit.panel(0)
        assert not visit.trails().any()
        visit.page.check("input[value=moving]")
        drawn = ink(visit.panel(0), bare)
        assert 0.002 < drawn.mean() < 0.3
        assert 0.0005 < visit.trails().mean() < 0.1, "and in space"
        centres.append(np.nonzero(drawn)[1].mean() / drawn.shape[1])
        visit.page.check("input[value=all]")
        assert ink(visit.panel(0), bare).sum() > 1.2 * drawn.sum()
    assert centres[1] - centres[0] > 0.2, "the ball flies to the right"
    told = visit.page.inner_text("#followed")
    assert re.fullmatch(r"\d+ of 576 followed points move; \d+ of them are seen in this frame\.", told), told
    visit.page.check("input[value=none]")
    assert visit.page.inner_text("#followed").endswith("followed points move; no trails are drawn.")
    assert not visit.errors
    assert [url for url in visit.requests if not url.startswith(("data:", "blob:", "about:"))] == [flying.as_uri()]


@pytest.mark.browser
def test_points_lie_where_the_3d_view_is_seen_from(
    browser: Any, flying: Path, flight: tuple[Truth, TrackTable]
) -> None:
    """The ring around a point is where a camera at the view's first place, of its field of view, sees it."""
    truth, table = flight
    cloud, cameras = fuse(truth.images, truth.prediction), truth.prediction.cameras
    assert cloud is not None
    assert cameras is not None
    assert table.points is not None
    places = table.points[:, 0] / scene_unit(cloud, cameras)
    visit = Visit(browser, flying)
    visit.page.check("input[value=none]")
    visit.scene()
    order = [*np.flatnonzero(table.moving), *np.flatnonzero(~table.moving)]
    for key, presses, index in (("n", 1, order[0]), ("p", 20, order[-20])):
        for _ in range(presses):
            visit.page.keyboard.press(key)
        drawn = visit.trails_about(places[index : index + 1])
        np.testing.assert_allclose(extent(drawn).mean(0), seen_at_first(places[index], *drawn.shape) - 0.5, atol=2)


def extent(drawn: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Corners (x, y) of all that is drawn, the upper left one first; NaN where nothing is."""
    rows, columns = np.nonzero(drawn)
    if not len(rows):
        return np.full((2, 2), np.nan)
    return np.array([[columns.min(), rows.min()], [columns.max(), rows.max()]], float)


def seen_at_first(place: NDArray[np.floating], height: int, width: int) -> NDArray[np.float64]:
    """(x, y) in the 3D view as it opens, whose first camera is the world."""
    eye, target = np.array([0.2, -0.3, -0.55]), np.array([0, 0.05, 0.9])
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0, -1, 0]) / np.linalg.norm(np.cross(forward, [0, -1, 0]))
    down = np.cross(forward, right)
    ray = place - eye
    focal = height / 2 / np.tan(FIELD_OF_VIEW / 2)
    return np.array([ray @ right, ray @ down]) / (ray @ forward) * focal + np.array([width, height]) / 2


@pytest.mark.browser
def test_skeletons_follow_the_slider(browser: Any, flight: tuple[Truth, TrackTable], tmp_path: Path) -> None:
    """The marks lie where the 3D view shows the keypoints of the frame, and can be left out."""
    truth = mast(flight[0])
    report(tmp_path / "report.html", truth, title="x")
    cloud, said = fuse(truth.images, truth.prediction), truth.prediction
    assert cloud is not None
    assert isinstance(said, KeypointPrediction)
    assert said.cameras is not None
    assert said.keypoints is not None
    places = said.keypoints.numpy() / scene_unit(cloud, said.cameras)
    visit = Visit(browser, tmp_path / "report.html")
    visit.scene()
    for frame in (0, 3):
        visit.go(frame)
        drawn = visit.trails_about(places[frame])
        marks = np.array([seen_at_first(place, *drawn.shape) for place in places[frame]])
        np.testing.assert_allclose(extent(drawn), [marks.min(0) - 4.5, marks.max(0) + 4.5], atol=2)
        for way in (0.25, 0.5, 0.75):
            x, y = (marks[0] + way * (marks[1] - marks[0])).astype(int)
            assert drawn[y - 1 : y + 2, x - 1 : x + 2].all(), "a bone from the first to the second"
    visit.page.uncheck("#bones")
    assert not visit.trails().any()
    visit.page.check("#bones")
    assert visit.trails().any()
    assert not visit.errors


@pytest.mark.browser
def test_click_picks_a_point_out(browser: Any, flying: Path, flight: tuple[Truth, TrackTable]) -> None:
    visit, table = Visit(browser, flying), flight[1]
    visit.go(2)
    said = visit.page.inner_text("#followed")
    bare, space = visit.panel(0), visit.trails()
    index = int(np.flatnonzero(table.moving & (table.visible[:, 2] > 0.5))[17])
    canvas = visit.page.locator("canvas[data-panel='0']")
    box, (x, y) = canvas.bounding_box(), table.pixels[index, 2] / (640, 360)
    width = min(box["width"], box["height"] * 640 / 360)
    left, top = (box["width"] - width) / 2, (box["height"] - width * 360 / 640) / 2
    place = {"x": left + x * width, "y": top + y * width * 360 / 640}
    canvas.click(position=place)
    _, column, row = table.queries[index]
    assert f"The point at {column:.0f}, {row:.0f} of frame 1: it moves" in visit.page.inner_text("#followed")
    changed = ink(visit.panel(0), bare)
    assert changed[int(place["y"]) - 6 : int(place["y"]) + 7, int(place["x"]) - 6 : int(place["x"]) + 7].any()
    assert (visit.trails() & ~space).any(), "in both views"
    canvas.click(position=place)
    assert visit.page.inner_text("#followed") == said, "again lets go"
    visit.page.keyboard.press("n")
    visit.page.keyboard.press("n")
    second = visit.page.inner_text("#followed")
    visit.page.keyboard.press("n")
    visit.page.keyboard.press("p")
    assert visit.page.inner_text("#followed") == second != said
    canvas.click(position=place, modifiers=["Shift"])
    assert visit.page.inner_text("#followed") == "2 points picked out."
    visit.page.keyboard.press("Escape")
    assert visit.page.inner_text("#followed") == said
    assert not visit.errors


@pytest.mark.browser
def test_points_asked_for_are_picked_out(browser: Any, flight: tuple[Truth, TrackTable], tmp_path: Path) -> None:
    report(tmp_path / "report.html", flight[0], title="x", tracks=flight[1], selected=[0, 5])
    visit = Visit(browser, tmp_path / "report.html")
    assert visit.page.inner_text("#followed") == "2 points picked out."
    assert not visit.errors


@pytest.mark.browser
def test_nothing_moves_is_said(browser: Any, flight: tuple[Truth, TrackTable], tmp_path: Path) -> None:
    truth, table = flight
    still = dataclasses.replace(table, moving=np.zeros(len(table), bool))
    report(tmp_path / "report.html", truth, title="x", tracks=still)
    visit = Visit(browser, tmp_path / "report.html")
    visit.go(FRAMES - 1)
    assert visit.page.inner_text("#followed") == "Nothing moves in this video."
    first = visit.panel(0)
    visit.page.check("input[value=all]")
    assert ink(visit.panel(0), first).any(), "all can be shown all the same"
    assert not visit.errors


@pytest.mark.browser
def test_page_plays_and_pauses(browser: Any, page: Path) -> None:
    visit = Visit(browser, page, motion="no-preference")
    clock = visit.page.locator("#clock")
    first = clock.inner_text()
    while clock.inner_text() == first:  # plays by itself
        visit.page.wait_for_timeout(60)
    visit.page.click("#play")
    still = clock.inner_text()
    visit.page.wait_for_timeout(500)
    assert clock.inner_text() == still
    visit.page.keyboard.press("Tab")
    visit.page.evaluate("document.activeElement.blur()")
    visit.page.keyboard.press("ArrowRight")
    assert clock.inner_text() != still
    assert not visit.errors


@pytest.mark.browser
def test_page_of_one_frame(browser: Any, tmp_path: Path) -> None:
    report(tmp_path / "report.html", perfect(1), title="one")
    visit = Visit(browser, tmp_path / "report.html")
    assert visit.scene().std() > 20
    assert not visit.page.locator("#controls").is_visible()
    assert not visit.errors
