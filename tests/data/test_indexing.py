"""Tars with the layout's members that other software wrote are indexed once, in whatever form of tar."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from four_d.data import tars
from four_d.data.encoding import encode_clip
from four_d.data.indexing import index
from four_d.data.shards import ShardReader, finalise, write_shard
from four_d.errors import UserError
from tests.helpers import box_clip


def write_tar(path: Path, members: dict[str, bytes], form: int = tarfile.USTAR_FORMAT, folder: str = "") -> None:
    with tarfile.open(path, "w", format=form) as tar:
        if folder:
            kind = tarfile.TarInfo(folder)
            kind.type = tarfile.DIRTYPE
            tar.addfile(kind)
        for name, data in members.items():
            info = tarfile.TarInfo(folder + name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def members_of(*seeds: int) -> dict[str, bytes]:
    clips = [box_clip(seed, frames=3, size=24) for seed in seeds]
    return {f"{clip.key}.{name}": data for clip in clips for name, data in encode_clip(clip).items()}


FORMS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


@pytest.mark.parametrize("form", sorted(FORMS))
def test_tars_of_other_names_become_a_data_set_that_is_our_own(form: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", members_of(0, 1), FORMS[form], "./")
    write_tar(tmp_path / "train-1.tar", members_of(2), FORMS[form])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    manifest = index(tmp_path, "theirs")
    assert (manifest.clips, [info.shard for info in manifest.shards]) == (3, ["train-0.tar", "train-1.tar"])
    assert all((tmp_path / name).read_bytes() == data for name, data in before.items())
    write_shard(tmp_path / "ours", 0, [box_clip(seed, frames=3, size=24) for seed in range(3)])
    finalise(tmp_path / "ours", "ours")
    with ShardReader(tmp_path) as theirs, ShardReader(tmp_path / "ours") as ours:
        for number in range(3):
            assert theirs.samples[number].modalities == ours.samples[number].modalities
            assert np.array_equal(theirs.read(number).images, ours.read(number).images)
    sidecar = (tmp_path / "train-0.json").stat().st_mtime_ns
    assert index(tmp_path, "theirs") == manifest
    assert (tmp_path / "train-0.json").stat().st_mtime_ns == sidecar, "indexed once"


def test_long_names_are_read_in_each_form(tmp_path: Path) -> None:
    long = f"{'k' * 60}.{'x' * 80}.npy"
    for form in sorted(FORMS):
        if form != "ustar":
            write_tar(tmp_path / "a.tar", {long: b"abc", "b.npy": b"d"}, FORMS[form])
            found = tars.members(tmp_path / "a.tar")
            assert list(found) == [long, "b.npy"]
            at, size = found[long]
            assert (tmp_path / "a.tar").read_bytes()[at : at + size] == b"abc"
    write_tar(tmp_path / "a.tar", {f"{'f' * 90}/{'k' * 60}.npy": b"abc"})
    assert list(tars.members(tmp_path / "a.tar")) == [f"{'f' * 90}/{'k' * 60}.npy"]


def test_what_is_not_in_the_layout_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no tar files"):
        index(tmp_path)
    path = tmp_path / "other.tar"
    write_tar(path, {"0001.jpg": b"x", "0001.txt": b"a cat"})
    with pytest.raises(UserError, match=r"other\.tar: sample 0001 has no clip\.json \(it has jpg, txt\)"):
        index(tmp_path)
    write_tar(path, {"a/0001.clip.json": b"{}"})
    with pytest.raises(UserError, match=r"the key 'a/0001' is not"):
        index(tmp_path)
    write_tar(path, {"0001.clip.json": b"{}"})
    with pytest.raises(UserError, match=r"sample 0001, member clip\.json: has layout version None"):
        index(tmp_path)
    write_tar(path, members_of(0))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"is not a complete tar"):
        index(tmp_path)
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("0001.clip.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(UserError, match=r"is not a plain file"):
        index(tmp_path)
    assert not list(tmp_path.glob("*.json"))
    write_tar(path, members_of(0))
    write_tar(tmp_path / "twice.tar", members_of(0))
    with pytest.raises(UserError, match=r"the key box-000000 is in both other\.tar and twice\.tar"):
        index(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"name": "of a web page"}))
    with pytest.raises(UserError, match="is not a manifest that four_d wrote"):
        index(tmp_path)


def test_a_name_that_no_manifest_holds_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """The set could not be opened afterwards."""
    write_tar(tmp_path / "a.tar", members_of(0))
    write_tar(tmp_path / "my clips.tar", members_of(1))
    with pytest.raises(UserError, match=r"'my clips\.tar' is not a plain file name, of letters.*; rename it"):
        index(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "my clips.tar"]
