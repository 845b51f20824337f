"""Commands of README and docs are what the command line takes; examples run; links lead somewhere."""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml

from four_d import cli, config, extension
from four_d.formats.videos import write_video
from four_d.schema import Plain, to_plain
from four_d.training import TrainingModule
from four_d.training.run import RunData
from four_d.trajectories import Trajectories
from four_d.types import Clip, Prediction
from tests.training.runs import make_data, tiny

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
pytestmark = pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="needs the working copy")


def commands() -> list[tuple[str, str]]:
    """(page, command) of every line in a shell block that calls four-d."""
    found: list[tuple[str, str]] = []
    for page in PAGES:
        for block in re.findall(r"```(?:sh|bash|console)\n(.*?)```", page.read_text(), flags=re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(page.name, line.split("four-d ", 1)[1]) for line in lines if re.search(r"\bfour-d ", line)]
    return found


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_are_understood(page: str, command: str) -> None:
    words = [word for word in shlex.split(command, comments=True) if word not in ("…", "...")]
    arguments = cli.parse(words)
    if words[0] == "train":
        files = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
        overrides = [word for word in words[1:] if "=" in word]
        if all(not name.endswith(".yaml") for name in files):
            config.load(files, ["data.sources.any.path=data", *overrides])
    assert callable(arguments.command)


def test_the_pages_have_commands() -> None:
    assert len(commands()) >= 8


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not re.match(r"\w+:", target):
            assert (page.parent / target).exists(), f"{page.name} links {target}"


PYTHON = re.findall(r"```python\n(.*?)```", (ROOT / "docs/architecture.md").read_text(), flags=re.DOTALL)


def page(monkeypatch: pytest.MonkeyPatch, blocks: Sequence[str], **given: object) -> dict[str, Any]:
    """Names that blocks of the architecture page's Python define, from those ``given``."""
    module = ModuleType("architecture_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    vars(module).update(given)
    for block in blocks:
        exec(compile(block, "architecture.md", "exec", dont_inherit=True), vars(module))
    return vars(module)


def test_the_python_of_the_architecture_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(extension, "_ADDED", [*extension._ADDED])  # pyright: ignore[reportPrivateUsage]
    shards = make_data(tmp_path / "shards/validation", range(1))
    run = tiny(shards, Path("runs"), name="my", loop={"max_steps": 1})
    module = TrainingModule(run)
    example = RunData(run).training[0].batches[0]
    other = dataclasses.replace(run, name="other")
    given = {"model": module.model, "example": example, "losses": module.losses, "config": other}
    names = page(monkeypatch, PYTHON[:-1], **given, step=0, progress=0.5)
    assert names["loss"] > 0
    assert names["depth_error"](names["inputs"]) > 0
    plain = to_plain(run)
    cast(Plain, cast(Plain, plain["model"])["heads"])["thick"] = {"kind": "thick"}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(plain))
    write_video(tmp_path / "video.mp4", [np.full((32, 32, 3), 20 * index, np.uint8) for index in range(6)], rate=10.0)
    exec(compile(PYTHON[-1], "architecture.md", "exec", dont_inherit=True), names)
    with np.load(tmp_path / "out/prediction.npz") as found:
        assert found["thickness"].shape[0] == 6


def test_the_pages_example_of_a_term_takes_uneven_times_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a fall at 3 units/s² the squared acceleration is 9, whatever stands where nothing is valid."""
    blank = Clip(images=torch.zeros(1, 2, 3, 8, 8), times=torch.zeros(1, 2), camera_ids=torch.zeros(1, 2).long())
    blocks = [each for each in PYTHON if "class KeypointPrediction" in each or "class SmoothLoss" in each]
    names = page(monkeypatch, blocks)
    times = torch.tensor([[0.7, 0.0, 0.4, 0.1]])
    points = torch.stack([torch.zeros(1, 2, 4), 1.5 * times.square().expand(1, 2, 4), torch.ones(1, 2, 4)], dim=-1)
    points, valid = points.clone(), torch.ones(1, 2, 4, dtype=torch.bool)
    points[0, 1, 0], valid[0, 1, 0] = torch.nan, False
    inputs = names["LossInputs"](prediction=Prediction(), targets=blank)
    vars(inputs)["trajectories"] = {
        "motion": Trajectories(points=points, visible=valid.float(), valid=valid, times=times)
    }
    assert names["SmoothLossConfig"]().build()(inputs).item() == pytest.approx(9, rel=1e-3)


def test_verbs_named_in_the_readme_exist() -> None:
    named = set(re.findall(r"`four-d (\w+)", (ROOT / "README.md").read_text()))
    assert named
    for verb in named:
        with pytest.raises(SystemExit) as stopped:
            cli.parse([verb, "--help"])
        assert stopped.value.code == 0


def test_the_architecture_page_names_every_room_and_module() -> None:
    page, package = (ROOT / "docs" / "architecture.md").read_text(), ROOT / "four_d"
    for path in package.iterdir():
        if not path.name.startswith(("_", ".")) and path.name != "py.typed":
            assert f"`{path.name}{'/' if path.is_dir() else ''}`" in page
    for room in ("cli", "data", "formats", "inference", "training"):
        told = page.split(f"\n`{room}/` is")[1].split("\n\n")[0]
        for path in (package / room).glob("*.py"):
            assert path.name.startswith("_") or f"`{path.stem}`" in told, f"{room}/{path.name}"
