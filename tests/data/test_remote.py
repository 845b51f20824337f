"""Shards behind an address: the stream is that of the folder whatever the server does; the cache stays bounded."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from four_d.cli.program import main
from four_d.data import remote
from four_d.data.check import check
from four_d.data.loading import DataConfig, FromStep, TrainingSteps, ValidationClips, loader
from four_d.data.manifest import load_manifest
from four_d.data.order import Window
from four_d.data.remote import Address, Cache, CacheConfig, FetchError, Remote, locate
from four_d.data.sampling import SamplingConfig
from four_d.data.shards import finalise, write_shard
from four_d.data.sources import SourceConfig
from four_d.errors import UserError
from four_d.evaluation.held_out import EvaluationConfig, Videos
from tests.data.servers import Faults, http_server, s3_server
from tests.helpers import box_clip

SHARDS, CLIPS = 6, 2

Serve = Callable[[str], str]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    write_set(folder / "set", SHARDS)
    return folder


def write_set(folder: Path, shards: int) -> None:
    for shard in range(shards):
        write_shard(folder, shard, [box_clip(shard * CLIPS + clip, frames=3, size=24) for clip in range(CLIPS)])
    finalise(folder, "boxes")


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def serve(root: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> Generator[Serve]:
    """Start a server of a kind and return the address of the data set; nobody waits long."""
    monkeypatch.setattr(remote, "PAUSE_S", 0.001)
    monkeypatch.setattr(remote, "STALL_S", 0.5)
    with contextlib.ExitStack() as servers:

        def start(kind: str) -> str:
            server = http_server(root, faults) if kind == "http" else s3_server(root, faults, monkeypatch)
            return f"{servers.enter_context(server)}/set"

        yield start


def config(path: str | Path, folder: Path, window: Window = 2, **changes: object) -> DataConfig:
    made = DataConfig(
        sources={"a": SourceConfig(path=str(path))},
        sampling=SamplingConfig(min_frames=2, max_frames=2),
        image_size=(16, 16),
        images_per_batch=4,
        clips_multiple=2,
        shuffle_shards=window,
        cache=CacheConfig(folder=str(folder), size_gb=0.1),
    )
    return dataclasses.replace(made, **changes)


def keys(steps: TrainingSteps, count: int = 8) -> list[list[str]]:
    return [steps[n].batches[0].key for n in range(count)]


def opened(address: str, cache: Path) -> Remote:
    place = locate(address)
    assert isinstance(place, Address)
    return Remote(place, CacheConfig(folder=str(cache), size_gb=0.1))


@pytest.mark.parametrize("kind", ["http", "s3"])
def test_the_stream_is_that_of_the_folder_whatever_goes_wrong(
    kind: str, root: Path, serve: Serve, faults: Faults, tmp_path: Path
) -> None:
    address = serve(kind)
    local = TrainingSteps(config(root / "set", tmp_path), 3)
    expected = keys(local)
    for name in ("manifest.json", "shard-000001.json", "shard-000002.tar", "shard-000003.tar"):
        faults.plan[name] = ["500", "truncate", "stall"]
    faults.plan["shard-000004.tar"] = ["change", "500"]
    faults.plan["shard-000005.json"] = ["change"]
    there = TrainingSteps(config(address, tmp_path / "cache"), 3)
    assert keys(there) == expected
    assert there.sources.fingerprint(2) == local.sources.fingerprint(2)
    assert not any(faults.plan.values()), "everything that was to go wrong did"
    assert not list((tmp_path / "cache").glob(".*partial"))


@pytest.mark.parametrize("kind", ["http", "s3"])
def test_what_does_not_come_ends_the_run_and_says_why(
    kind: str, serve: Serve, faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = serve(kind)
    monkeypatch.setattr(remote, "ATTEMPTS", 3)
    source = opened(address, tmp_path)
    shard = source.manifest().shards[0]
    for fault, said in (
        ("500", r"set/shard-000000\.tar: .*; 3 tries failed: check the network and the server"),
        ("change", r"shard-000000\.tar: .*(its SHA-256 is .*…, not|[Cc]hecksum).*; 3 tries"),
    ):
        faults.always["shard-000000.tar"] = fault
        with pytest.raises(FetchError, match=said):
            source.open(shard)
    assert not list(tmp_path.glob("*.tar"))
    with pytest.raises(FetchError, match=r"shard-000009\.tar: is not there; check the address"):
        source.open(dataclasses.replace(shard, shard="shard-000009.tar", sha256="0" * 64))
    assert faults.asked["shard-000009.tar"] <= 1
    elsewhere = opened(f"{address}/nowhere", tmp_path)
    with pytest.raises(FetchError, match=r"nowhere/manifest\.json: is not there"):
        elsewhere.manifest()


def test_an_endless_answer_is_cut_off(
    serve: Serve, faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = opened(serve("http"), tmp_path)
    monkeypatch.setattr(remote, "ATTEMPTS", 1)
    shard = source.manifest().shards[0]
    faults.always["shard-000000.tar"] = "grow"
    with pytest.raises(FetchError, match=r"more than the \d+ bytes came that it may have"):
        source.open(shard)


def test_a_clip_of_a_shard_that_cannot_be_had_is_not_replaced(
    serve: Serve, faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    steps = TrainingSteps(config(serve("http"), tmp_path), 3)
    for shard in range(SHARDS):
        faults.always[f"shard-{shard:06d}.tar"] = "500"
    with pytest.raises(FetchError, match=r"2 tries failed.* a run goes on where it stopped"):
        steps[0]


def held(folder: Path) -> int:
    """Bytes of a folder, while files come and go."""
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_shard_is_fetched_once_a_round_and_node_and_the_cache_stays_in_its_bound(
    nodes: int, faults: Faults, tmp_path: Path
) -> None:
    shards, rounds = 16, 2
    write_set(tmp_path / "set", shards)
    largest = max(info.bytes for info in load_manifest(tmp_path / "set").shards)
    limit = (2 * (2 // nodes + 1) + remote.THREADS) * largest + (1 << 17)  # sidecars are in the cache too
    with http_server(tmp_path, faults) as address:
        for node in range(nodes):
            cache = CacheConfig(folder=str(tmp_path / str(node)), size_gb=limit / 1e9)
            made = config(f"{address}/set", tmp_path, cache=cache)
            steps = TrainingSteps(made, 3, rank=node, world_size=nodes, nodes=nodes)
            (reader,) = steps.sources.readers
            for number in range(node, rounds * shards * CLIPS, nodes):
                _, index = steps._mixture.pick(number)
                steps._expect(number)
                assert reader.member(reader.samples[index], "clip.json")
                # the size of a sidecar is unknown until it is there: then room is made
                assert held(cache.path) <= limit + 4096 * (remote.THREADS + 1) + largest
        asked = sum(count for name, count in faults.asked.items() if name.endswith(".tar"))
    # each node has one of the two shards of a group, and two more parts may have been fetched ahead at the end
    # and a thread that is late may fetch again what has given way; a full shuffle asks for each shard once a clip
    assert rounds * shards * 0.6 <= asked <= 1.4 * rounds * shards


def test_the_next_part_is_fetched_ahead(serve: Serve, tmp_path: Path) -> None:
    steps = TrainingSteps(config(serve("http"), tmp_path), 3)
    (reader,) = steps.sources.readers
    steps[0]
    _, part = steps._mixture.part(0)
    cache, tick = Cache(CacheConfig(folder=str(tmp_path))), threading.Event()
    while not all(cache.find(f"{reader.shards[shard].sha256}.tar") for shard in (*part.shards, *part.following)):
        tick.wait(0.01)


def test_processes_share_the_stream_and_the_cache(root: Path, serve: Serve, faults: Faults, tmp_path: Path) -> None:
    here, there = (TrainingSteps(config(path, tmp_path), 3) for path in (root / "set", serve("http")))
    faults.asked.clear()
    stream = iter(loader(there, FromStep(2), 2, pin_memory=False))
    assert [next(stream).batches[0].key for _ in range(4)] == [here[n].batches[0].key for n in range(2, 6)]
    del stream
    assert max(count for name, count in faults.asked.items() if name.endswith(".tar")) == 1


def test_who_waits_for_a_file_does_not_fetch_it_too(serve: Serve, faults: Faults, tmp_path: Path) -> None:
    address = serve("http")
    sources = [opened(address, tmp_path) for _ in range(4)]
    shard = sources[0].manifest().shards[0]
    faults.plan["shard-000000.tar"] = ["truncate"]
    threads = [threading.Thread(target=source.open, args=(shard,)) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults.asked["shard-000000.tar"] == 2
    assert (tmp_path / f"{shard.sha256}.tar").stat().st_size == shard.bytes


def test_the_cache_drops_what_was_not_used_for_longest_and_nothing_of_others(tmp_path: Path) -> None:
    cache = Cache(CacheConfig(folder=str(tmp_path), size_gb=30e-9))
    a, b, c, d, e, f = (f"{letter * 64}.tar" for letter in "abcdef")

    def put(name: str, *, wait: bool = True) -> bool:
        with cache.claim(name, 10, wait=wait) as partial:
            if partial is not None:
                partial.write_bytes(bytes(10))
            return partial is not None

    (tmp_path / "mine.tar").write_bytes(bytes(100))
    assert [put(name) for name in (a, b, c)] == [True] * 3
    (tmp_path / f".{'9' * 64}.tar.10.partial").write_bytes(bytes(5))  # as a killed process leaves it
    assert not put(a), "it is there"
    for number, name in enumerate((b, c, a)):
        os.utime(tmp_path / name, ns=(number, number))
    assert cache.find(b) == tmp_path / b
    assert put(d)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "mine.tar", a, b, d}
    with cache.claim(e, 30) as partial:
        assert partial is not None
        assert not put(f, wait=False), "there is no room to fetch it ahead"
        with cache.claim(e, 30, wait=False) as other:
            assert other is None
        partial.write_bytes(bytes(30))
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "mine.tar", e}
    with pytest.raises(UserError, match=r"does not fit in the cache .* data\.cache\.size_gb"), cache.claim(a, 31):
        pass
    (tmp_path / "file").touch()
    nowhere = Cache(CacheConfig(folder=str(tmp_path / "file" / "cache")))
    with pytest.raises(UserError, match=r"cannot write the cache .*; set data\.cache\.folder"), nowhere.claim(a, 1):
        pass


def test_a_window_that_the_cache_does_not_hold_is_refused(serve: Serve, root: Path, tmp_path: Path) -> None:
    address, small = serve("http"), CacheConfig(folder=str(tmp_path), size_gb=1e-6)
    with pytest.raises(
        UserError, match=r"size_gb is 1e-06, and shuffling within all shards .* set data\.shuffle_shards"
    ):
        TrainingSteps(config(address, tmp_path, "all", cache=small), 3)
    with pytest.raises(UserError, match=r"within 4 shards takes .* lower data\.shuffle_shards"):
        TrainingSteps(config(address, tmp_path, 4, cache=small), 3)
    assert TrainingSteps(config(root / "set", tmp_path, "all", cache=small), 3)[0].batches, "a folder needs no cache"


def test_only_what_is_needed_is_fetched_of_the_index(serve: Serve, root: Path, faults: Faults, tmp_path: Path) -> None:
    address = serve("http")
    whole = TrainingSteps(config(root / "set", tmp_path), 3).sources
    steps = TrainingSteps(config(address, tmp_path), 3)
    assert set(faults.asked) == {"manifest.json"}
    assert steps.sources.having(["depth"]) == whole.having(["depth"])
    assert steps.sources.of_one_camera() == whole.of_one_camera()
    with pytest.raises(UserError, match=r"12 of 12 clips .* \(one in shard-000000\.tar has 3\)"):
        steps.sources.check_times(4)
    everything = TrainingSteps(config(address, tmp_path, "all"), 3)
    assert keys(everything) == keys(TrainingSteps(config(root / "set", tmp_path, "all"), 3))
    assert everything.sources.fingerprint() == whole.fingerprint()
    held_out = ValidationClips(
        config(address, tmp_path, validation={"a": SourceConfig(path=address)}, validation_clips=2)
    )
    assert [held_out[n].batches[0].key[0] for n in range(2)] == ["box-000000", "box-000011"]


def test_manifests_without_contents_are_read_with_all_sidecars(root: Path, faults: Faults, tmp_path: Path) -> None:
    shutil.copytree(root / "set", tmp_path / "set")
    path = tmp_path / "set" / "manifest.json"
    content = json.loads(path.read_text())
    for shard in content["shards"]:
        del shard["contents"]
    path.write_text(json.dumps(content))
    with http_server(tmp_path, faults) as address:
        steps = TrainingSteps(config(f"{address}/set", tmp_path / "cache"), 3)
        assert Counter(faults.asked)["shard-000005.json"] == 1
        assert keys(steps, 2) == keys(TrainingSteps(config(root / "set", tmp_path / "cache"), 3), 2)
    assert load_manifest(root / "set").shards[0].contents[0].clips == CLIPS


def test_an_address_is_checked_counted_drawn_and_scored_as_a_folder(
    serve: Serve,
    root: Path,
    faults: Faults,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the cache that is every program's; of some clips only their shards are fetched."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, address = root / "set", serve("http")
    assert main(["data", "stats", f"{address}?sig=secret", "--clips", "2"]) == 0
    assert sum(name.endswith(".tar") for name in faults.asked) == 2
    assert main(["data", "show", address, "--clip", "1", "--out", str(tmp_path / "drawn")]) == 0
    assert len(list((tmp_path / "drawn").iterdir())) == 3
    of_folder, of_address = (check(place, clips=2, shown=False) for place in (folder, f"{address}?sig=secret"))
    assert of_address.table() == of_folder.table().replace(str(folder), address)
    settings = EvaluationConfig(data=f"{address}?sig=secret", cameras=2, frames=4)
    videos = Videos.open(settings.data, settings, None)
    assert videos.lists == Videos.open(folder, settings, None).lists
    assert videos.reader.place == address
    capsys.readouterr()
    damaged = tmp_path / "cache" / "four_d" / f"{load_manifest(folder).shards[0].sha256}.tar"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    assert main(["data", "check", address, "--clips", "1"]) == 1
    told = capsys.readouterr()
    assert "shard-000000.tar: checksum: sha256 is" in told.out
    assert "secret" not in told.out + told.err


def test_a_server_that_sends_in_circles_is_not_asked_again(serve: Serve, faults: Faults, tmp_path: Path) -> None:
    faults.always["manifest.json"] = "loop"
    with pytest.raises(FetchError, match="sends it from one address to the next without end; check the address"):
        SourceConfig(path=serve("http")).open(CacheConfig(folder=str(tmp_path)))
    assert faults.asked["manifest.json"] < 2 * 12  # what one try may follow


def test_addresses_are_told_from_folders_and_commands_are_refused(root: Path, tmp_path: Path) -> None:
    assert locate("data/train") == Path("data/train")
    assert locate("file:///data/my%20set") == Path("/data/my set")
    signed = locate("https://me:word@host/a/set/manifest.json?sig=secret")
    assert isinstance(signed, Address)
    assert str(signed) == "https://host/a/set"
    assert signed.of("shard-000000.tar") == "https://me:word@host/a/set/shard-000000.tar?sig=secret"
    for place in ("pipe:curl http://host/set", "pipe:aws s3 cp s3://bucket/set -"):
        with pytest.raises(UserError, match=r"a pipe: address runs a command, and is never read"):
            locate(place)
    for place in ("ftp://host/set", "http:///set", "file://host/set"):
        with pytest.raises(UserError, match="not an address that is read"):
            locate(place)
    shutil.copytree(root / "set", tmp_path / "set")
    text = (tmp_path / "set" / "manifest.json").read_text()
    for other in ("pipe:cat shard-000000.tar", "http://elsewhere/shard-000000.tar", "../shard-000000.tar"):
        (tmp_path / "set" / "manifest.json").write_text(text.replace("shard-000000.tar", other))
        with pytest.raises(UserError, match=r"runs a command and is never read|is not a plain file name"):
            load_manifest(tmp_path / "set")


def test_a_disk_without_locks_is_an_error_that_names_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network disks have none; a half-written file of another process would be taken for whole."""
    import fcntl

    def refuse(number: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (tmp_path / "file").open("wb") as file, pytest.raises(UserError, match=r"no file locks.*data\.cache\.folder"):
        remote._lock(file.fileno(), wait=True)
