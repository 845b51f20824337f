"""Flags come from dataclasses: names, types, choices, defaults and help of every verb."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest

from four_d import cli
from four_d.cli import program
from four_d.cli.common import Verb
from four_d.cli.data import WORLD
from four_d.cli.flags import Form, add_flags, from_flags
from four_d.cli.infer import FORMS
from four_d.cli.request import Infer
from four_d.cli.values import point
from four_d.cli.world import Make
from four_d.inference import Instance, Known


@dataclass(frozen=True, kw_only=True)
class Inner:
    depth_m: float = 1.5
    """Depth: 50 % of it."""


@dataclass(frozen=True, kw_only=True)
class Outer:
    folder: Annotated[Path, Form(positional=True)]
    """A folder."""
    out: Path
    how: Literal["fast", "slow"] = "fast"
    tracks: bool = True
    """Follow points."""
    deep: bool = False
    inner: Inner = field(default_factory=Inner)
    points: Annotated[tuple[tuple[float, float, float], ...] | None, Form(parse=point, metavar="X,Y")] = None
    most: int | None = None
    """PNG files to take. None: all."""


def parse(*words: str) -> Outer:
    parser = argparse.ArgumentParser()
    add_flags(parser, Outer)
    return from_flags(parser.parse_args(words), Outer)


def test_what_is_not_given_has_the_dataclasss_default() -> None:
    assert parse("a", "--out", "b") == Outer(folder=Path("a"), out=Path("b"))


def test_fields_are_flags_also_those_of_a_dataclass_within() -> None:
    words = ("--how", "slow", "--no-tracks", "--deep", "--depth-m", "2", "--most", "3", "--points", "1,2", "5,3,4")
    points = ((0.0, 1.0, 2.0), (5.0, 3.0, 4.0))
    expected = Outer(
        folder=Path("a"),
        out=Path("b"),
        how="slow",
        tracks=False,
        deep=True,
        inner=Inner(depth_m=2),
        points=points,
        most=3,
    )
    assert parse("a", "--out", "b", *words) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a",), "required: --out"),
        (("a", "--out", "b", "--how", "new"), "invalid choice: 'new'"),
        (("a", "--out", "b", "--most", "x"), "invalid int value"),
        (("a", "--out", "b", "--points", "x"), "is not X,Y"),
    ],
)
def test_mistakes_are_argparses(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(*words)
    assert message in capsys.readouterr().err


def test_help_is_the_fields_docstring_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "--depth-m DEPTH_M depth: 50 % of it (default 1.5)" in text
    assert "--no-tracks do not follow points" in text
    assert "PNG files to take. not given: all" in text


def verbs(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """All verbs with their flags, by their words."""
    if isinstance(parser, Verb) and parser.fill is not None:
        parser.fill, fill = None, parser.fill
        fill()
    inner = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    if not inner:
        yield name.strip(), parser
    for each in inner:
        for word, verb in each.choices.items():
            yield from verbs(verb, f"{name} {word}")


def test_every_flag_has_help() -> None:
    """The docstring of its field: none is without one."""
    found = {name: [flag for flag in verb._actions if not flag.help] for name, verb in verbs(program.parser())}
    assert {"infer", "data make", "weights convert", "config diff"} < set(found)
    assert {name: [flag.dest for flag in flags] for name, flags in found.items() if flags} == {}


def test_the_big_verbs_give_their_dataclasses_whole() -> None:
    words = ["infer", "a.mp4", "b.mp4", "--out", "out", "--no-tracks", "--max-frames", "9", "--intrinsics", "5,5,3,2"]
    words += ["--keypoints", "nose,tail@1,2,30,40", "nose@50,2,80.5,40", "--keypoint-edges", "nose:tail"]
    asked = from_flags(cli.parse(words), Infer, FORMS).request
    assert asked.selection is not None
    assert (asked.video, asked.tracks, asked.selection.max_frames) == ((Path("a.mp4"), Path("b.mp4")), False, 9)
    assert asked.known == Known(intrinsics=((5.0, 5.0, 3.0, 2.0),))
    assert asked.instances[1] == Instance(names=("nose",), box=(50, 2, 80.5, 40))
    assert (asked.keypoint_names, asked.bones) == (("nose", "tail", "nose"), ((0, 1),))
    words = ["data", "make", "out", "--size", "64x48", "--paths", "pan,orbit", "--seconds", "0.5:0.8", "--rig", "0.5"]
    made = from_flags(cli.parse(words), Make, WORLD)
    assert (made.size, made.world.paths, made.world.duration_s) == ((64, 48), ("pan", "orbit"), (0.5, 0.8))
    assert (made.world.rig_m, made.world.frames, made.shards) == (0.5, 24, range(1))
