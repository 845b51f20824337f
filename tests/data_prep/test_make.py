"""Shards of synthetic clips: same bytes however made, nothing twice, bad input refused."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("embreex", reason="needs the extra synth")
pytest.importorskip("mujoco", reason="needs the extra synth")

import importlib

from data_prep.synthetic import HELD_OUT_SEED, WorldSettings, clip_seed, generate, make
from data_prep.synthetic.make import Job, _work, make_shard
from four_d.data.shards import ShardReader
from four_d.errors import UserError

making = importlib.import_module("data_prep.synthetic.make")  # the package's name `make` is the function
TINY = WorldSettings(cameras=1, frames=3, width=24, height=16, antialias=False)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_two_workers_write_the_bytes_of_one_and_a_second_run_nothing(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    make(alone, range(2), 5, clips_per_shard=2, settings=TINY)
    make(together, range(2), 5, clips_per_shard=2, settings=TINY, workers=2)
    assert contents(alone) == contents(together)
    before = {path: path.stat().st_mtime_ns for path in alone.glob("shard-*")}
    manifest = make(alone, range(2), 5, clips_per_shard=2, settings=TINY)
    assert manifest is not None
    assert (manifest.clips, manifest.frames) == (4, 12)
    assert before == {path: path.stat().st_mtime_ns for path in alone.glob("shard-*")}


def test_shards_hold_the_clips_of_their_seeds(tmp_path: Path) -> None:
    make(tmp_path, range(1), 7, clips_per_shard=2, settings=TINY, held_out=True)
    with ShardReader(tmp_path) as reader:
        found = reader.read(1)
    expected = generate(clip_seed(7, 0, 1, held_out=True), TINY)
    assert found.info == expected.info
    assert found.info.seed is not None
    assert found.info.seed >= HELD_OUT_SEED
    assert found.surface is not None
    assert expected.surface is not None
    np.testing.assert_array_equal(found.surface.faces, expected.surface.faces)
    np.testing.assert_array_equal(found.surface.barycentric, expected.surface.barycentric)


def test_jobs_that_share_a_folder_leave_the_manifest_to_the_last(tmp_path: Path) -> None:
    assert make(tmp_path, range(1, 2), 1, clips_per_shard=1, settings=TINY) is None
    assert not (tmp_path / "manifest.json").exists()
    manifest = make(tmp_path, range(1), 1, clips_per_shard=1, settings=TINY)
    assert manifest is not None
    assert manifest.clips == 2


def test_seeds_are_their_own_and_held_out_ones_apart() -> None:
    places = [(shard, clip) for shard in (0, 1, 7, 999) for clip in range(0, 1000, 7)]
    train = {clip_seed(1, *place) for place in places}
    held_out = {clip_seed(1, *place, held_out=True) for place in places}
    assert len(train) == len(held_out) == len(places)
    assert max(train) < HELD_OUT_SEED <= min(held_out)
    assert {clip_seed(2, *place) for place in places[:100]}.isdisjoint(train)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"shards": range(0)}, "shards"),
        ({"shards": range(5, 3)}, "shards"),
        ({"shards": range(-1, 3)}, "shards"),
        ({"shards": range(999, 1001)}, "shards"),
        ({"clips_per_shard": 0}, "clips per shard"),
        ({"workers": 0}, "workers"),
    ],
)
def test_bad_numbers_are_named_before_anything_is_made(
    tmp_path: Path, arguments: dict[str, object], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        make(tmp_path / "new", **{"shards": range(1), "seed": 1, "settings": TINY, **arguments})  # pyright: ignore
    assert not (tmp_path / "new").exists()


def test_a_file_in_the_folder_s_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken"):
        make(tmp_path / "taken", range(1), 1, settings=TINY)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write"):
        make(tmp_path, range(1), 1, settings=TINY)


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"four_d\[synth\]"):
        make(tmp_path, range(1), 1, settings=TINY)


def test_a_worker_s_error_reaches_the_parent(tmp_path: Path) -> None:
    blocked = tmp_path / "shard-000001.tar"
    blocked.mkdir()
    with pytest.raises((UserError, RuntimeError)):
        make(tmp_path, range(2), 1, clips_per_shard=1, settings=TINY, workers=2)
    assert not (tmp_path / "manifest.json").exists()


def killing_at_the_second_clip(job: Job, index: int, done: Callable[[], None]) -> Path:
    """As `make_shard`, in a worker that the system kills while it writes shard 1, once."""

    def clip_done() -> None:
        done()
        if index == 1 and not (job.folder / "killed").exists():
            (job.folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return make_shard(job, index, clip_done)


def killed_worker(job: Job, pipe: Connection) -> None:
    making.make_shard = killing_at_the_second_clip
    _work(job, pipe)


@pytest.mark.parametrize("workers", [2, 3])
def test_a_killed_worker_is_named_and_loses_its_own_shard_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(making, "_work", killed_worker)
        with pytest.raises(UserError, match=r"^the worker that made shard-000001.tar was killed by SIGKILL; most"):
            make(tmp_path, range(4), 1, clips_per_shard=2, settings=TINY, workers=workers)
    (tmp_path / "killed").unlink()
    whole = contents(tmp_path)
    assert sorted(whole) == [f"shard-{i:06d}.{e}" for i in (0, 2, 3) for e in ("json", "tar")]
    assert not list(tmp_path.glob(".*")), "nothing half-written"
    manifest = make(tmp_path, range(4), 1, clips_per_shard=2, settings=TINY, workers=workers)
    assert manifest is not None
    assert manifest.clips == 8
    assert whole.items() < contents(tmp_path).items()


def test_shards_that_nobody_is_left_to_make_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "_work", dead_worker)
    with pytest.raises(UserError, match=r"shard-000000.tar was .* shard-000001.tar was .*shards 2, 3 were not begun"):
        make(tmp_path, range(4), 1, clips_per_shard=1, settings=TINY, workers=2)


def dead_worker(job: Job, pipe: Connection) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_shards_made_otherwise_are_refused(tmp_path: Path) -> None:
    small = WorldSettings(width=16, height=16, cameras=2, frames=2)
    make(tmp_path, range(1), 1, clips_per_shard=1, settings=small)
    make(tmp_path, range(1), 1, clips_per_shard=1, settings=small)
    for seed, held_out in ((2, False), (1, True)):
        with pytest.raises(UserError, match="another seed, size or number of clips"):
            make(tmp_path, range(1), seed, clips_per_shard=1, held_out=held_out, settings=small)
