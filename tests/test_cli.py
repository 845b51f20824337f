"""The command line: verbs do their thing, and bad input is one or two lines and exit code 2, nothing half-written."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from four_d import cli
from four_d.data.shards import finalise, write_shard
from tests.helpers import box_clip

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shard(folder, 0, [box_clip(seed, frames=3, cameras=2, size=32) for seed in range(2)])
    finalise(folder, "boxes")
    return folder


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def refused(capsys: Capture, *arguments: object) -> str:
    """The message with which the command line refuses; it is short, and says who speaks."""
    assert run(*arguments) == 2
    message = capsys.readouterr().err
    told = [line for line in message.splitlines() if line.startswith("four-d: ")]
    assert len(told) == 1
    assert "Traceback" not in message
    assert len(message.splitlines()) - message.splitlines().index(told[0]) <= 2
    return message


def test_check_stats_and_show(shards: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run("data", "check", shards) == 0
    assert "all is well" in capsys.readouterr().out
    assert run("data", "stats", shards, "--json", tmp_path / "stats.json") == 0
    assert json.loads((tmp_path / "stats.json").read_text())
    assert run("data", "show", shards, "--clip", 1, "--out", tmp_path / "pictures") == 0
    assert all(picture.stat().st_size > 1000 for picture in (tmp_path / "pictures").iterdir())
    assert len(list((tmp_path / "pictures").iterdir())) == 3


def test_check_fails_with_1_where_data_is_wrong(shards: Path, tmp_path: Path, capsys: Capture) -> None:
    for file in shards.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tar = tmp_path / "shard-000000.tar"
    content = bytearray(tar.read_bytes())
    content[len(content) // 2] ^= 0xFF
    tar.write_bytes(bytes(content))
    assert run("data", "check", tmp_path) == 1
    assert "shard-000000" in capsys.readouterr().out


def test_config_show_and_diff(capsys: Capture) -> None:
    source = "data.sources.s.path=x"
    assert run("config", "show", "vggt", "overlays/tiny", source) == 0
    assert "kind: alternating" in capsys.readouterr().out
    assert run("config", "diff", f"vggt+overlays/tiny+{source}", f"vggt+overlays/tiny+{source}+seed=3") == 0
    assert capsys.readouterr().out == "seed: 0 → 3\n"


TRAIN = ("train", "vggt", "overlays/tiny", "overlays/debug")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*TRAIN, "data.sources.s.path=x", "optimiser.lrr=1"), "did you mean lr"),
        ((*TRAIN, "data.sources.s.path=x", "optimiser.lr=fast"), "config.optimiser.lr is 'fast'"),
        ((*TRAIN, "data.sources.s.path=nowhere"), "nowhere"),
        (("train", "vggtt"), "did you mean vggt"),
        (("data", "check", "nowhere"), "nowhere"),
        (("data", "stats", "nowhere"), "nowhere"),
        (("data", "show", "nowhere"), "nowhere"),
        (("eval", "nowhere", "data=nowhere"), "nowhere"),
        (("export", "nowhere", "--out", "out"), "nowhere"),
        (("infer", "nowhere.mp4", "--model", "nowhere", "--out", "out"), "nowhere"),
    ],
)
def test_bad_input_names_the_thing(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_show_names_the_clip_that_is_not_there(shards: Path, tmp_path: Path, capsys: Capture) -> None:
    assert "no clip '99'" in refused(capsys, "data", "show", shards, "--clip", "99", "--out", tmp_path / "no")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_the_disks_refusals_are_told_with_a_remedy(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise OSError(number, "no", "some/folder")

    monkeypatch.setattr(cli, "_config_show", fail)
    message = refused(capsys, "config", "show", "vggt")
    assert "some/folder" in message
    assert "folder" in message.split("; ")[-1]


def test_other_errors_are_bugs_and_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EBADF, "bug")

    monkeypatch.setattr(cli, "_config_show", fail)
    with pytest.raises(OSError, match="bug"):
        run("config", "show", "vggt")


@pytest.mark.parametrize("value", ["3", "5:2", "a:b", ":"])
def test_ranges_and_sizes_are_checked(value: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("data", "make", "--shards", value, "out")
    assert stopped.value.code == 2
    assert "A:B" in capsys.readouterr().err
