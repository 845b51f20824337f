"""Sidecars and manifest of tars that other software wrote with the members of `docs/data.md`: `four-d data index`."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

from four_d.data import tars
from four_d.data.contract import KEY, ClipInfo
from four_d.data.encoding import CLIP, BadMemberError, decode_info
from four_d.data.manifest import (
    Manifest,
    SampleIndex,
    ShardInfo,
    Sidecar,
    SourceInfo,
    load_sidecar,
    merge_sidecars,
    merge_sources,
    plain_name,
    refuse_foreign,
    write_sidecar,
)
from four_d.errors import UserError
from four_d.progress import progress

MARKS = {
    "cameras.npy": "cameras",
    "f000.depth.png": "depth",
    "f000.dynamic.png": "dynamic",
    "intrinsics.npy": "intrinsics",
    "keypoints.npy": "keypoints",
    "triangles.npy.gz": "surface",
    "tracks.npy": "tracks",
}
"""Member → the modality that a clip with it has."""
_CHUNK = 1 << 20


def index(folder: Path, name: str | None = None) -> Manifest:
    """Write the sidecar of each tar of a folder that has none, and the manifest of all, ``name`` or as the folder.

    Tars may have any names and stay as they are. UserError for one that is damaged or has other members than the
    layout's; then no manifest is written, and sidecars written so far stay.
    """
    refuse_foreign(folder)
    found = sorted(path for path in folder.glob("*.tar") if not path.name.startswith(".")) if folder.is_dir() else []
    if not found:
        raise UserError(f"{folder}: there are no tar files in it; give a folder of shards")
    for path in found:
        try:
            plain_name(path.name)
        except TypeError as error:
            raise UserError(f"{path}: {error}, of letters, digits and any of _ . -; rename it") from error
    sidecars = list[Sidecar]()
    with progress(f"index of {folder}", len(found), "shard") as bar:
        for path in found:
            sidecar = path.with_suffix(".json")
            if not sidecar.exists():
                write_sidecar(folder, _sidecar(path))
            sidecars.append(load_sidecar(sidecar))
            if sidecars[-1].info.shard != path.name:
                raise UserError(f"{sidecar} is of {sidecars[-1].info.shard}, not of {path.name}; move one away")
            bar.advance()
    return merge_sidecars(folder, name or folder.resolve().name, sidecars)


def _sidecar(path: Path) -> Sidecar:
    """Read a tar from end to end."""
    try:
        stored = tars.members(path)
    except tars.BadTarError as error:
        raise UserError(f"{path}: is not a complete tar ({error}); fetch it again") from error
    members: dict[str, dict[str, tuple[int, int]]] = {}
    for member, place in stored.items():
        key, _, extension = member.partition(".")
        members.setdefault(key, {})[extension] = place
    samples, sources = list[SampleIndex](), dict[str, SourceInfo]()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        for key, places in members.items():
            if CLIP not in places:
                raise UserError(
                    f"{path}: sample {key} has no clip.json (it has {', '.join(sorted(places)[:5])}); the members that "
                    "clips have are in docs/data.md, and four-d data import writes shards from other layouts"
                )
            if not KEY.fullmatch(key):
                raise UserError(f"{path}: the key {key!r} is not 1 to 60 letters, digits, '-' and '_'; write it anew")
            table = {name: (at, size, _checksum(path, at, size)) for name, (at, size) in sorted(places.items())}
            at, size = places[CLIP]
            file.seek(at)
            try:
                info = decode_info(file.read(size))
            except BadMemberError as error:
                raise UserError(f"{path}: sample {key}, member clip.json: {error}; write it anew") from error
            samples.append(_sample(path.name, key, info, table))
            one = SourceInfo(
                licence=info.licence, metric=info.metric, clips=1, frames=len(info.times), home=info.home or ""
            )
            sources = merge_sources(path.parent, [sources, {info.source: one}])
    if not samples:
        raise UserError(f"{path}: has no clips; remove it")
    shard = ShardInfo(
        shard=path.name,
        sidecar=path.with_suffix(".json").name,
        clips=len(samples),
        bytes=path.stat().st_size,
        sha256=digest,
    )
    return Sidecar(info=shard, sources=sources, samples=samples)


def _sample(shard: str, key: str, info: ClipInfo, members: dict[str, tuple[int, int, int]]) -> SampleIndex:
    has = {modality for member, modality in MARKS.items() if member in members}
    return SampleIndex(
        key=key,
        source=info.source,
        shard=shard,
        width=info.width,
        height=info.height,
        times=info.times,
        camera_ids=info.camera_ids,
        modalities=sorted(has - {"intrinsics"} if "cameras" in has else has),  # poses come with intrinsics
        members=members,
    )


def _checksum(path: Path, at: int, size: int) -> int:
    """CRC-32 of a part of a file."""
    crc = 0
    with path.open("rb") as file:
        file.seek(at)
        while size:
            chunk = file.read(min(size, _CHUNK))
            if not chunk:
                raise UserError(f"{path}: was cut off while it was read; index it again")
            crc, size = zlib.crc32(chunk, crc), size - len(chunk)
    return crc
