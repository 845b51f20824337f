"""The walk of docs/data.md from a user's own data to a fine-tuned model runs as printed, at a tiny size."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from four_d import cli
from four_d.formats.videos import write_video
from tests.data_prep.test_import_own import colmap
from tests.protocols import built
from tests.protocols.written import world
from tests.test_docs import ROOT
from tests.training.runs import make_data

WALK = re.search(
    r"\n### From your own data to a fine-tuned model\n(.*?)\n### ", (ROOT / "docs/data.md").read_text(), re.DOTALL
)
assert WALK is not None
WALKS = re.findall(r"#### ([^\n]*)\n.*?```bash\n(.*?)```", WALK[1], re.DOTALL)
SMALL = {
    "overlays/large": "overlays/tiny",
    "overlays/small": "overlays/tiny",
    "overlays/finetune": "overlays/finetune overlays/debug",
}
"""What is replaced so that a step takes a second; the tiny model has no head for tracks."""


def phone(root: Path) -> None:
    write_video(root / "walk.mp4", [image.repeat(2, 0).repeat(2, 1) for image in world().images], rate=10.0)
    colmap(root / "kitchen", NAMES)
    assert cli.main(["data", "import", "colmap", "kitchen", "shards/kitchen"]) == 0


def office(root: Path) -> None:
    colmap(root / "office", NAMES)
    colmap(root / "kitchen", NAMES)


def cut3r(root: Path) -> None:
    for part in ("train", "test"):
        built.family_a(root / "processed_pointodyssey" / part, "ani")


NAMES = [f"{i:03d}.png" for i in range(4)]
SOURCES = {"A phone video": phone, "A COLMAP folder": office, "A CUT3R-processed set": cut3r}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny VGGT in place of the published one."""
    root = tmp_path_factory.mktemp("weights")
    shards = make_data(root / "boxes", range(2), size=64)
    words = [f"data.sources.boxes.path={shards}", f"data.validation.boxes.path={shards}", f"folder={root}"]
    assert cli.main(["train", "vggt", "overlays/tiny", "overlays/debug", "name=start", *words]) == 0
    assert cli.main(["export", str(root / "start"), "--format", "safetensors", "--out", str(root / "model")]) == 0
    return root / "model"


def test_the_walk_is_there() -> None:
    assert [name for name, _ in WALKS] == list(SOURCES)
    assert all(len([line for line in block.splitlines() if line.startswith("four-d")]) == 3 for _, block in WALKS)


@pytest.mark.slow
@pytest.mark.parametrize(("source", "block"), WALKS)
def test_the_walk_runs(
    source: str,
    block: str,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    SOURCES[source](tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("vggt-1b", "runs/small"):
        (tmp_path / name).symlink_to(weights)
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)[1:]
        if not words:
            continue
        if words[0] == "finetune":
            words = [small for word in words for small in SMALL.get(word, word).split() if "heads.track" not in word]
        if words[:3] == ["data", "import", "colmap"] and words[3].startswith("seen/"):
            words.append("--unchecked")  # what an untrained model sees fails the check, and rightly
        assert cli.main(words) == 0, line
    said = capfd.readouterr()
    assert re.search(r"before\s.*after", said.out), "finetune scores the weights before and after"
