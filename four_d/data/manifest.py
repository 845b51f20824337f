"""Metadata of a data set: the sidecar of each shard and the manifest (`docs/data.md`)."""

from __future__ import annotations

import dataclasses
import json
import re
import stat
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from four_d.data.contract import VERSION
from four_d.errors import UserError
from four_d.outputs import write_whole

MANIFEST = "manifest.json"
_SHARD = re.compile(r"shard-(\d{6,})\.(tar|json)")
_NAME = re.compile(r"[\w.-]+")  # no slash: a downloaded manifest must not name files outside its folder


class Members(Mapping[str, tuple[int, int, int]]):
    """Compact mapping, for a million clips, of extension to (byte offset in the tar, size, CRC-32).

    ``rows`` maps names to rows of ``table``; samples with the same members share it.
    """

    def __init__(self, rows: dict[str, int], table: NDArray[np.int64]) -> None:
        self._rows, self._table = rows, table

    def __getitem__(self, name: str) -> tuple[int, int, int]:
        offset, size, crc = self._table[self._rows[name]].tolist()
        return offset, size, crc

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


@dataclass(frozen=True, kw_only=True)
class SampleIndex:
    """Description of one clip in the sidecar, available without opening the tar."""

    key: str
    source: str
    shard: str
    width: int
    height: int
    times: list[float]
    """Seconds, one per frame."""
    camera_ids: list[int]
    modalities: list[str]
    members: Mapping[str, tuple[int, int, int]] = field(repr=False)
    """Extension to (byte offset in the tar, size, CRC-32)."""

    @property
    def frames(self) -> int:
        """Number of images, of all cameras."""
        return len(self.times)

    @property
    def cameras(self) -> int:
        """Number of cameras that filmed it."""
        return len(set(self.camera_ids))


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """One source of a data set."""

    licence: str
    metric: bool
    clips: int
    frames: int
    home: str = ""
    """Place where it is published."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Number of clips of one kind in a shard."""

    modalities: tuple[str, ...]
    cameras: int
    times: int
    """Fewest frames of a camera."""
    clips: int


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard of a data set: file names, relative to its folder, and their contents."""

    shard: str
    sidecar: str
    clips: int
    bytes: int
    sha256: str
    contents: tuple[Contents, ...] = field(default=(), compare=False)
    """Kinds of clips, so that a run knows them without the sidecars; empty in manifests of older versions."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Content of ``manifest.json``; ``folder`` is its location."""

    folder: Path
    name: str
    sources: dict[str, SourceInfo]
    modalities: list[str]
    units: dict[str, str]
    clips: int
    frames: int
    bytes: int
    shards: list[ShardInfo]


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """Contents of one shard."""

    info: ShardInfo
    sources: dict[str, SourceInfo]
    samples: list[SampleIndex]


def shard_names(index: int) -> tuple[str, str]:
    """File names of a shard and its sidecar."""
    return f"shard-{index:06d}.tar", f"shard-{index:06d}.json"


def _write(path: Path, content: object) -> None:
    """Write ``content`` as JSON, deterministically."""
    write_whole(path, json.dumps(content, separators=(",", ":")) + "\n")


def write_sidecar(folder: Path, sidecar: Sidecar) -> Path:
    """Write a shard's sidecar, which marks it as complete."""
    path = folder / sidecar.info.sidecar
    samples = [
        {field.name: getattr(sample, field.name) for field in dataclasses.fields(sample) if field.name != "shard"}
        | {"members": dict(sample.members), "frames": sample.frames, "cameras": sample.cameras}
        for sample in sidecar.samples
    ]
    skipped = ("sidecar", "contents")
    info = {name: value for name, value in dataclasses.asdict(sidecar.info).items() if name not in skipped}
    sources = {name: _stored_source(source) for name, source in sidecar.sources.items()}
    _write(path, {"version": VERSION, **info, "sources": sources, "samples": samples})
    return path


def load_sidecar(path: Path) -> Sidecar:
    """Read a sidecar. UserError if it is missing or broken."""
    return parse_sidecar(_read(path, "make the shard again"), str(path), path.name)


def parse_sidecar(data: bytes, place: str, name: str) -> Sidecar:
    """Read the bytes of the sidecar ``name``; ``place`` is named in errors. UserError if it is broken."""
    content = _load(data, place, "make the shard again")
    with _as_user_error(place, "delete it and make the shard again"):
        shard = plain_name(content["shard"])
        layouts: dict[tuple[str, ...], dict[str, int]] = {}
        samples = [_sample(shard, item, layouts) for item in _dicts(content["samples"])]
        info = ShardInfo(
            shard=shard,
            sidecar=name,
            clips=_int(content["clips"]),
            bytes=_int(content["bytes"]),
            sha256=str(content["sha256"]),
            contents=_contents(samples),
        )
        if len(samples) != info.clips:
            raise ValueError(f"lists {len(samples)} clips but counts {info.clips}")
        return Sidecar(info=info, sources=_sources(content["sources"]), samples=samples)


def _contents(samples: list[SampleIndex]) -> tuple[Contents, ...]:
    kinds = Counter((tuple(s.modalities), s.cameras, min(Counter(s.camera_ids).values())) for s in samples)
    return tuple(
        Contents(modalities=modalities, cameras=cameras, times=times, clips=clips)
        for (modalities, cameras, times), clips in kinds.items()
    )


def _sample(shard: str, item: dict[str, object], layouts: dict[tuple[str, ...], dict[str, int]]) -> SampleIndex:
    members = {
        name: [_int(number) for number in row] for name, row in cast(dict[str, list[int]], item["members"]).items()
    }
    names = tuple(members)
    rows = layouts.setdefault(names, {name: row for row, name in enumerate(names)})
    table = np.array(list(members.values()), np.int64).reshape(len(members), 3)
    times = [float(time) for time in cast(list[float], item["times"])]
    cameras = [_int(camera) for camera in cast(list[int], item["camera_ids"])]
    order = list(zip(cameras, times))
    if (
        not times
        or len(times) != len(cameras)
        or not np.isfinite(times).all()
        or any(b <= a for a, b in pairwise(order))
    ):
        raise ValueError(f"sample {_short(item['key'])}: times and camera_ids are not those of frames in order")
    return SampleIndex(
        key=str(item["key"]),
        source=str(item["source"]),
        shard=shard,
        width=_int(item["width"]),
        height=_int(item["height"]),
        times=times,
        camera_ids=cameras,
        modalities=_texts(item["modalities"]),
        members=Members(rows, table),
    )


def finalise(folder: Path, name: str) -> Manifest:
    """Merge the sidecars of a folder into its manifest.

    UserError for a manifest that four_d did not write, and for inconsistencies: shard numbers without a sidecar, tars
    whose size differs from their sidecar's, duplicate keys, sources that disagree about licence or units.
    """
    refuse_foreign(folder)
    return merge_sidecars(folder, name, [load_sidecar(folder / shard_names(i)[1]) for i in _complete_shards(folder)])


def merge_sidecars(folder: Path, name: str, sidecars: list[Sidecar]) -> Manifest:
    """Write the manifest of these shards. UserError as `finalise` for those that do not fit together."""
    _refuse_same_keys(folder, sidecars)
    sources = merge_sources(folder, (sidecar.sources for sidecar in sidecars))
    shards = [sidecar.info for sidecar in sidecars]
    for info in shards:
        check_size(folder, info)
    manifest = Manifest(
        folder=folder,
        name=name,
        sources=sources,
        modalities=sorted({m for sidecar in sidecars for sample in sidecar.samples for m in sample.modalities}),
        units={"length": "metre" if all(s.metric for s in sources.values()) else "source", "time": "second"},
        clips=sum(source.clips for source in sources.values()),
        frames=sum(source.frames for source in sources.values()),
        bytes=sum(info.bytes for info in shards),
        shards=shards,
    )
    content = {field: value for field, value in dataclasses.asdict(manifest).items() if field != "folder"}
    content["sources"] = {name: _stored_source(source) for name, source in sources.items()}
    _write(folder / MANIFEST, {"version": VERSION, **content})
    return manifest


def _stored_source(source: SourceInfo) -> dict[str, object]:
    return {name: value for name, value in dataclasses.asdict(source).items() if name != "home" or value}


def refuse_foreign(folder: Path) -> None:
    """Raise UserError if a ``manifest.json`` of other software, or of another version's layout, is in the folder."""
    path = folder / MANIFEST
    if not path.is_file():
        return
    try:
        content = cast(object, json.loads(path.read_bytes()))
    except (OSError, ValueError):
        content = None
    if not (isinstance(content, dict) and {"version", "shards"} <= content.keys()):
        raise UserError(f"{path} exists and is not a manifest that four_d wrote; choose another folder")
    if content["version"] != VERSION:
        raise UserError(
            f"{path} is of layout version {content['version']}, and this four_d writes version {VERSION}; choose "
            "another folder"
        )


def _complete_shards(folder: Path) -> range:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    numbers: dict[str, set[int]] = {"tar": set(), "json": set()}
    for path in folder.iterdir():
        if match := _SHARD.fullmatch(path.name):
            numbers[match[2]].add(int(match[1]))
    if not numbers["json"]:
        raise UserError(f"{folder}: it has no finished shards; make some first (four-d data make)")
    expected = range(max(numbers["json"] | numbers["tar"]) + 1)
    if missing := sorted(set(expected) - (numbers["json"] & numbers["tar"])):
        listed = ", ".join(str(index) for index in missing[:10]) + (" …" if len(missing) > 10 else "")
        raise UserError(f"{folder}: shards {listed} are missing or unfinished; make them (four-d data make --shards)")
    return expected


def _refuse_same_keys(folder: Path, sidecars: list[Sidecar]) -> None:
    shard_of: dict[str, str] = {}
    for sample in (sample for sidecar in sidecars for sample in sidecar.samples):
        if sample.key in shard_of:
            raise UserError(f"{folder}: the key {sample.key} is in both {shard_of[sample.key]} and {sample.shard}")
        shard_of[sample.key] = sample.shard


def merge_sources(folder: Path, counts: Iterable[dict[str, SourceInfo]]) -> dict[str, SourceInfo]:
    """Sum counts by source, in alphabetical order. UserError if a source changes its licence or units."""
    merged: dict[str, SourceInfo] = {}
    for name, source in (item for each in counts for item in each.items()):
        before = merged.get(name, dataclasses.replace(source, clips=0, frames=0))
        if (before.licence, before.metric) != (source.licence, source.metric):
            raise UserError(f"{folder}: source {name} has more than one licence or unit; give each its own name")
        merged[name] = dataclasses.replace(
            source, clips=before.clips + source.clips, frames=before.frames + source.frames
        )
    return dict(sorted(merged.items()))


def check_size(folder: Path, info: ShardInfo) -> None:
    """Raise UserError if a shard is missing or its size differs from the one recorded."""
    path = folder / info.shard
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: shard is missing ({error.strerror}); make it again or fetch it again") from error
    size = status.st_size
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: is not a file; make the shard again or fetch it again")
    if size != info.bytes:
        raise UserError(
            f"{path}: truncated or changed, {size} bytes instead of {info.bytes}; "
            f"delete it with its sidecar {info.sidecar} and make or fetch it again"
        )


def load_manifest(path: Path) -> Manifest:
    """Load the manifest of a data set's folder (or the file itself). UserError if it is missing or broken."""
    file = path / MANIFEST if path.is_dir() else path
    return parse_manifest(
        _read(file, "point at a data set's folder, or make one (four-d data make)"), str(file), file.parent
    )


def parse_manifest(data: bytes, place: str, folder: Path) -> Manifest:
    """Read a manifest's bytes; ``place`` is named in errors. UserError if it is broken."""
    content = _load(data, place, "point at a data set's folder, or make one (four-d data make)")
    with _as_user_error(place, "write it again (four-d data make finalises the folder)"):
        shards = [_shard(item) for item in _dicts(content["shards"])]
        return Manifest(
            folder=folder,
            name=str(content["name"]),
            sources=_sources(content["sources"]),
            modalities=_texts(content["modalities"]),
            units={str(name): str(unit) for name, unit in cast(dict[str, str], content["units"]).items()},
            clips=_int(content["clips"]),
            frames=_int(content["frames"]),
            bytes=_int(content["bytes"]),
            shards=shards,
        )


def _shard(item: dict[str, object]) -> ShardInfo:
    contents = tuple(
        Contents(
            modalities=tuple(_texts(kind["modalities"])),
            cameras=_int(kind["cameras"]),
            times=_int(kind["times"]),
            clips=_int(kind["clips"]),
        )
        for kind in _dicts(item.get("contents", []))
    )
    info = ShardInfo(
        shard=plain_name(item["shard"]),
        sidecar=plain_name(item["sidecar"]),
        clips=_int(item["clips"]),
        bytes=_int(item["bytes"]),
        sha256=str(item["sha256"]),
        contents=contents,
    )
    if info.clips < 0 or info.bytes < 0 or (contents and sum(kind.clips for kind in contents) != info.clips):
        raise ValueError(f"{info.shard}: its counts are impossible")
    return info


def _read(path: Path, remedy: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror}); {remedy}") from error


def _load(data: bytes, place: str, remedy: str) -> dict[str, object]:
    try:
        content = cast(object, json.loads(data))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: is not valid JSON ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{place}: is not a JSON object; {remedy}")
    fields = cast(dict[str, object], content)
    if fields.get("version") != VERSION:
        raise UserError(f"{place}: layout version {fields.get('version')}; this four_d reads version {VERSION}")
    return fields


@contextmanager
def _as_user_error(place: str, remedy: str) -> Generator[None]:
    try:
        yield
    except KeyError as error:
        raise UserError(f"{place}: lacks {error}; {remedy}") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{place}: {error}; {remedy}") from error


def _sources(value: object) -> dict[str, SourceInfo]:
    def source_info(item: dict[str, object]) -> SourceInfo:
        return SourceInfo(
            licence=str(item["licence"]),
            metric=bool(item["metric"]),
            clips=_int(item["clips"]),
            frames=_int(item["frames"]),
            home=str(item.get("home", "")),
        )

    return {name: source_info(item) for name, item in cast(dict[str, dict[str, object]], value).items()}


def _texts(value: object) -> list[str]:
    return [str(text) for text in cast(list[str], value)]


def _dicts(value: object) -> list[dict[str, object]]:
    if not isinstance(value, list):
        raise TypeError(f"{_short(value)} is not a list")
    items = cast(list[object], value)
    for item in items:
        if not isinstance(item, dict):
            raise TypeError(f"{_short(item)} is not a mapping")
    return cast(list[dict[str, object]], items)


def _int(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{_short(value)} is not a whole number")
    if abs(value) >= 2**62:
        raise ValueError(f"{_short(value)} is too large")
    return value


def plain_name(value: object) -> str:
    """Return a name that a manifest may hold. TypeError for any other value, a path or an address among them."""
    if isinstance(value, str) and value.startswith("pipe:"):
        raise TypeError(f"{_short(value)} is a pipe: address, which runs a command and is never read")
    if not isinstance(value, str) or not _NAME.fullmatch(value) or value in (".", ".."):
        raise TypeError(f"{_short(value)} is not a plain file name")
    return value


def _short(value: object) -> str:
    """First characters of a value that may be of any kind and length."""
    return repr(value)[:60] if not isinstance(value, int) or abs(value) < 2**62 else "a number of many digits"
