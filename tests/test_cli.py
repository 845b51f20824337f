"""The command line: verbs do their thing, and bad input is one or two lines and exit code 2, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from four_d import cli
from four_d.cli import tools
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
    assert "no failures" in capsys.readouterr().out
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
    said = capsys.readouterr().out
    assert "delete shard-000000.tar and shard-000000.json, then make them again" in said


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
        ((*TRAIN, "data.sources.s.path=x", "optimiser.lrr=1"), "did you mean optimiser.lr"),
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

    monkeypatch.setattr(tools, "_config_show", fail)
    message = refused(capsys, "config", "show", "vggt")
    assert "some/folder" in message
    assert "folder" in message.split("; ")[-1]


def test_other_errors_are_bugs_and_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EBADF, "bug")

    monkeypatch.setattr(tools, "_config_show", fail)
    with pytest.raises(OSError, match="bug"):
        run("config", "show", "vggt")


@pytest.mark.parametrize("value", ["3", "5:2", "a:b", ":"])
def test_ranges_and_sizes_are_checked(value: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("data", "make", "--shards", value, "out")
    assert stopped.value.code == 2
    assert "A:B" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [("-x.mp4",), ("-x.mp4", "--out", "out"), ("a.mp4", "-x.mp4", "--out", "out"), ("a.mp4", "--out", "-x.mp4")],
)
def test_a_name_that_begins_with_a_minus_is_explained(arguments: tuple[str, ...], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("infer", *arguments, "--points", "-5,10")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == "four-d: if -x.mp4 is a name, write ./-x.mp4"


def test_a_signal_ends_a_verb_by_way_of_its_clearing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    cleared: list[bool] = []

    def stopped() -> list[tuple[str, str]]:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)  # the signal comes at the latest here
        finally:
            cleared.append(True)
        return []

    monkeypatch.setattr("four_d.doctor.doctor", stopped)
    with pytest.raises(SystemExit) as ended:
        run("doctor")
    assert ended.value.code == 128 + signal.SIGTERM
    assert cleared
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("point", ["--points=-5,10", "--points -5,10", "--points 3,-5,10", "--points nan,1"])
def test_points_that_are_in_no_picture(point: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        run("infer", "video", "--out", "out", *point.split())
    assert ended.value.code == 2
    assert "is not in the picture: X and Y count from its top left corner" in capsys.readouterr().err


def test_a_reader_that_has_had_enough_is_no_error() -> None:
    verb = ["config", "show", "vggt", "overlays/tiny", "data.sources.s.path=x"]
    code = f"import sys; from four_d.cli import main; sys.exit(main({verb}))"
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, "")


def test_home_is_filled_in_where_shells_leave_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    parsed = cli.parse(["infer", "~/clip.mp4", "--out=~/seen", "--model=nowhere"])
    assert (parsed.video, parsed.out, parsed.model) == ([tmp_path / "clip.mp4"], tmp_path / "seen", Path("nowhere"))


@pytest.mark.parametrize(
    "arguments",
    [("infer", "", "--out", "out"), ("infer", "a.mp4", "--out", ""), ("data", "make", ""), ("export", "run", "--out=")],
)
def test_an_empty_path_is_not_the_folder_one_stands_in(arguments: tuple[str, ...], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.parse(arguments)
    assert ended.value.code == 2
    assert "an empty path" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("view", "nowhere"), "nowhere does not exist"),
        (("view", "nowhere.ply"), "nowhere.ply does not exist"),
        (("view", "empty"), "empty holds no times.json"),
        (("infer", "empty", "--cameras", "nowhere.json", "--out", "out"), "cannot read nowhere.json: No such file"),
    ],
)
def test_what_is_not_there_is_not_said_to_be_of_another_kind(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    pytest.importorskip("viser", reason="the extra viewer is not installed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    told = refused(capsys, *arguments)
    assert message in told
    assert "taking" not in told  # no word about the model before the arguments are right


@pytest.mark.parametrize(("given", "expected"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "active"}, "active")])
def test_threads_sleep_while_they_wait_unless_told_otherwise(given: dict[str, str], expected: str) -> None:
    """The policy stands before torch is imported: OpenMP reads it when it is loaded, and workers inherit it."""
    code = """
import os, sys
from four_d.cli import program
program.main = lambda: print(os.environ["OMP_WAIT_POLICY"], "torch" in sys.modules) or 0
program.run()
"""
    others = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "WORLD_SIZE")}
    told = subprocess.run(
        [sys.executable, "-c", code], env={**others, **given}, capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == [expected, "False"]
