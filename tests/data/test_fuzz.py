"""Damaged data sets are refused or their bad clips skipped by name: no crash, no hang, nothing written elsewhere."""

from __future__ import annotations

import gzip
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from four_d.data import tars
from four_d.data.contract import problems
from four_d.data.encoding import BadMemberError, decode_gzip, npy_header
from four_d.errors import UserError
from tests.data import fuzzing
from tests.data.damage import DAMAGES
from tests.data.fuzzing import run
from tests.helpers import box_clip, without_surface

ROOM = 2**30
"""Bytes that the trials may take beside what the process has already."""


@pytest.fixture
def bounded() -> Iterator[None]:
    """Let allocations beyond the bound fail."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("bounded")
def test_damage_is_survived(tmp_path: Path) -> None:
    tally = run(range(6 * len(DAMAGES)), tmp_path, check_every=20)
    assert not tally.crashes
    assert {"refused", "skipped"} <= tally.outcomes.keys()


@pytest.mark.slow
@pytest.mark.usefixtures("bounded")
def test_much_damage_is_survived(tmp_path: Path) -> None:
    assert not run(range(10_000, 11_000), tmp_path).crashes


@pytest.mark.parametrize(
    "place", ["{root}/x", "{root}/a/x", "{root}/a/b/x.tar", "{set}/x.json", "{set}/{known}", "{root}/a/out"]
)
def test_a_file_planted_anywhere_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Whatever its name, beside the set, above it, in it, or in place of a file of the set."""

    def plant(folder: Path, out: Path, *, full: bool) -> str:
        out.mkdir(exist_ok=True)
        (out / "picture.png").write_bytes(b"x")
        Path(place.format(root=tmp_path, set=folder, known="manifest.json")).write_bytes(b"x")
        return "sound"

    monkeypatch.setattr(fuzzing, "trial", plant)
    (crash,) = run([2], tmp_path).crashes
    assert "wrote" in crash
    assert Path(place.format(root="", set="", known="manifest.json")).name in crash


def test_results_are_no_strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(folder: Path, out: Path, *, full: bool) -> str:
        out.mkdir()
        (out / "picture.png").write_bytes(b"x")
        return "sound"

    monkeypatch.setattr(fuzzing, "trial", draw)
    assert not run([2], tmp_path).crashes


def test_a_clip_whose_list_of_times_is_empty_is_refused() -> None:
    clip = box_clip(seed=1, frames=2, cameras=1, size=16)
    bare = without_surface(clip, tracks=0)
    assert list(problems(replace(bare, tracks=None, info=replace(bare.info, track_times=[])))) == [
        "clip.json: track_times is empty; leave it out"
    ]


def test_a_small_member_cannot_unpack_to_much() -> None:
    header = b"\x93NUMPY\x01\x00" + (96).to_bytes(2, "little")
    text = b"{'descr': '<i4', 'fortran_order': False, 'shape': (10,), }"
    whole = header + text.ljust(95) + b"\n"
    assert decode_gzip(gzip.compress(whole + bytes(40))) == whole + bytes(40)
    with pytest.raises(BadMemberError, match="more than the 146 bytes"):
        decode_gzip(gzip.compress(whole + bytes(2**24)))
    large = text.replace(b"(10,)", b"(10000000000,)")
    with pytest.raises(BadMemberError, match="at most"):
        decode_gzip(gzip.compress(header + large.ljust(95) + b"\n"))
    with pytest.raises(BadMemberError, match="does not exist"):
        npy_header(header + text.replace(b"<i4", b"<i3").ljust(95) + b"\n")


@pytest.mark.parametrize("size", [b"77777777777\0", b"-0000000512\0", b"\x80" + b"\xff" * 11])
def test_a_tar_cannot_lead_astray(tmp_path: Path, size: bytes) -> None:
    header = bytearray(1024)
    header[:4], header[124:136], header[156:157] = b"a.b\0", size, b"0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    (tmp_path / "x.tar").write_bytes(header)
    with pytest.raises(tars.BadTarError):
        tars.members(tmp_path / "x.tar")


def test_a_key_that_names_another_folder_draws_nothing_there(tmp_path: Path) -> None:
    from four_d.data.show import show
    from tests.data.fuzzing import sound_set

    folder = sound_set(tmp_path / "set")
    sidecar = folder / "shard-000000.json"
    sidecar.write_text(sidecar.read_text().replace('"box-000001"', '"../../evil"'))
    with pytest.raises(UserError, match="key"):
        show(folder, 0, tmp_path / "deep" / "out")
    assert not list(tmp_path.glob("evil*"))
