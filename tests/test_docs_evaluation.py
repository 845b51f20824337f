"""Every `four-d eval` of README and docs runs as printed, on the reference models and a tiny set in the same place."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from four_d import cli
from four_d.data.shards import finalise, write_shard
from tests.helpers import box_clip
from tests.protocols import rigs, tracked, written
from tests.protocols.test_views import write_dycheck
from tests.test_docs import ROOT, commands
from tests.test_published_snippets import write_pointodyssey

UNIFIED, POSED = (str(ROOT / "checkpoints" / name) for name in ("unified-base", "dgs_lrm-base"))
SETS: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "sintel": (written.sintel, "sequences=alley_2"),
    "worldtrack": (tracked.worldtrack, None),
    "tapvid3d": (tracked.tapvid3d, None),
    "tapvid_first": (tracked.tapvid, None),
    "mvtracker_kubric": (rigs.mvtracker_kubric, "sequences=[0]"),
    "vdpm_pointodyssey_margin2": (write_pointodyssey, None),
    "dycheck_views": (write_dycheck, "sequences=apple"),
}
"""Writer of a set, and its sequences where a set is otherwise expected whole."""
EVALUATIONS = [
    (page, command.removeprefix("eval "))
    for page, command in commands()
    if command.startswith("eval ") and "…" not in command
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("docs")
    write_shard(root, 0, [box_clip(0, frames=11, cameras=1, size=64)])
    finalise(root, "boxes")
    return root


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command"), EVALUATIONS)
def test_commands_run(page: str, command: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint, *words = shlex.split(command, comments=True)
    posed = "dgs_lrm" in checkpoint
    values = dict(word.split("=", 1) for word in words if "=" in word)
    for name in {"data", "train_data"} & set(values):
        Path(values[name]).parent.mkdir(exist_ok=True, parents=True)
        Path(values[name]).symlink_to(shards)
    only: list[str] = []
    if "protocol" in values:
        write, named = SETS[values["protocol"]]
        Path(values["root"]).mkdir(parents=True)
        write(Path(values["root"]))
        if values["protocol"] == "sintel":
            written.sintel(Path(values["root"]), "cave_2")
        only = [named] if named is not None and "sequences" not in values else []
    status = cli.main(["eval", POSED if posed else UNIFIED, *only, *words])
    # the tiny DyCheck has no lidar, by which that model's unit is told: its one line says so
    assert status == (1 if values.get("protocol") == "dycheck_views" else 0), page
    assert all(Path(words[at + 1]).is_file() for at, word in enumerate(words) if word == "--json")
