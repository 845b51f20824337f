"""The report page: one file, nothing fetched, everything plays together (the latter in a real browser)."""

import dataclasses
import io
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
from four_d.types import Prediction
from four_d.viewer import Picture, Section, Table, report
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


def png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 32), colour).save(buffer, "PNG")
    return buffer.getvalue()


SECTIONS = [
    Section(
        title="Scores <of> & on",
        text="One.\n\nTwo </script> <b>three</b>.",
        tables=[Table(columns=["who", "AbsRel"], rows=[["model", "0.1"], ["mean map", "0.2"]], strong=[0])],
        pictures=[Picture(data=png((10, 200, 30)), caption="curves")],
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
    section = Section(title="x", pictures=[Picture(data=b"nothing", caption="x")])
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


class Visit:
    """A page open in the browser, with what it complained of and asked for."""

    def __init__(self, browser: Any, path: Path, *, motion: str = "reduce") -> None:
        self.page = browser.new_page(viewport={"width": 1200, "height": 800}, reduced_motion=motion)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.goto(path.as_uri())
        ready = "html[data-video=ready]" + ("[data-scene=ready]" if "srcdoc" in path.read_text() else "")
        self.page.wait_for_selector(ready, timeout=60_000)

    def scene(self) -> NDArray[np.uint8]:
        """What the 3D view shows, once it has come to rest."""
        before = self._shot()
        for _ in range(40):
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

    def comes_back_to(self, picture: NDArray[np.uint8]) -> bool:
        """Whether the scene looks like this again, on a busy machine too."""
        for _ in range(20):
            if difference(self.scene(), picture) < 0.5:
                return True
            self.page.wait_for_timeout(250)
        return False

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
    assert difference(visit.scene(), first) > 1
    assert difference(visit.panel(0), video) > 1
    assert difference(visit.panel(1), depth) > 1
    visit.go(0)
    assert visit.comes_back_to(first), "back at the first frame everything is as it was"
    visit.page.check("#all")
    assert difference(visit.scene(), first) > 1, "all frames' points are more than one frame's"
    assert not visit.errors
    assert [url for url in visit.requests if not url.startswith(("data:", "blob:", "about:"))] == [page.as_uri()]


@pytest.mark.browser
def test_page_plays_and_pauses(browser: Any, page: Path) -> None:
    visit = Visit(browser, page, motion="no-preference")
    clock = visit.page.locator("#clock")
    seen = set()
    for _ in range(20):
        seen.add(clock.inner_text())
        if len(seen) > 1:
            break
        visit.page.wait_for_timeout(60)
    assert len(seen) > 1, "plays by itself"
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
