"""Damage to data sets, drawn from a seed: what disks, networks and strangers do to shards, sidecars and manifests."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Rng = np.random.Generator
SHARD, SIDECAR, MANIFEST = "shard-000000.tar", "shard-000000.json", "manifest.json"
EVIL = ["../../evil", "/tmp/evil", "..", "", "a/b", "a\0b", "x" * 5000, "shard-000009.tar", "é", "con.", "~/evil"]
NUMBERS = [-1, 0, 1, 2**31, 2**40, 2**63, 10**400, 1.5, float("nan"), float("inf"), None, "7", [], {}, True, -(2**70)]


def truncate(folder: Path, rng: Rng) -> None:
    path = folder / str(rng.choice([SHARD, SIDECAR, MANIFEST]))
    data = path.read_bytes()
    path.write_bytes(data[: rng.integers(0, len(data))])


def flip(folder: Path, rng: Rng) -> None:
    path = folder / str(rng.choice([SHARD, SIDECAR, MANIFEST]))
    data = bytearray(path.read_bytes())
    for at in rng.integers(0, len(data), rng.integers(1, 20)):
        data[at] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def rename_members(folder: Path, rng: Rng) -> None:
    content = json.loads((folder / SIDECAR).read_text())
    members = content["samples"][int(rng.integers(2))]["members"]
    name = str(rng.choice(list(members)))
    members[str(rng.choice(EVIL))] = members.pop(name)
    _write(folder / SIDECAR, content)


def drop(folder: Path, rng: Rng) -> None:
    """Remove one value anywhere in a sidecar or manifest."""
    path, content, parent, key = _anywhere(folder, rng)
    del parent[key]
    _write(path, content)


def replace(folder: Path, rng: Rng) -> None:
    """Put something of another kind, size or sign anywhere in a sidecar or manifest."""
    path, content, parent, key = _anywhere(folder, rng)
    parent[key] = _odd(rng)
    _write(path, content)


def lie_in_clip(folder: Path, rng: Rng) -> None:
    """Change a value of clip.json, checksums and all."""

    def change(data: bytes) -> bytes:
        content = json.loads(data)
        parent, key = _pick(content, rng)
        parent[key] = _odd(rng)
        return json.dumps(content).encode()

    rewrite(folder, "clip.json", change)


def other_array(folder: Path, rng: Rng) -> None:
    """Store an array of another type or shape, or with NaN, or a header that promises much."""
    name = str(rng.choice([n for n in _members(folder) if ".npy" in n]))

    def change(data: bytes) -> bytes:
        raw = gzip.decompress(data) if name.endswith(".gz") else data
        raw = [_nan, _huge_header, _other_type, _junk_header, _short, _large_values][int(rng.integers(6))](raw, rng)
        return gzip.compress(raw, 1) if name.endswith(".gz") else raw

    rewrite(folder, name, change)


def bomb(folder: Path, rng: Rng) -> None:
    """Store a small member that unpacks to much."""
    names = _members(folder)
    if rng.random() < 0.5:
        zeros = _npy_header("<i4", (2**26,)) + bytes(2**27)  # in half of what it promises
        rewrite(folder, str(rng.choice([n for n in names if n.endswith(".gz")])), lambda _: gzip.compress(zeros, 1))
    else:
        rewrite(folder, str(rng.choice([n for n in names if "image" in n])), lambda _: _png_bomb())


def junk_image(folder: Path, rng: Rng) -> None:
    name = str(rng.choice([n for n in _members(folder) if "image" in n]))
    size, mode = (
        (int(rng.integers(1, 60)), int(rng.integers(1, 60))),
        str(rng.choice(["RGB", "L", "RGBA", "P", "I;16"])),
    )

    def change(data: bytes) -> bytes:
        if rng.random() < 0.5:
            broken = bytearray(data)
            broken[int(rng.integers(len(data)))] ^= 255
            return bytes(broken)
        stream = io.BytesIO()
        Image.new(mode, size).save(stream, "png")
        return stream.getvalue()

    rewrite(folder, name, change)


def elsewhere(folder: Path, rng: Rng) -> None:
    """Let the manifest, or a key, name files outside the folder."""
    path = folder / str(rng.choice([SIDECAR, MANIFEST]))
    content = json.loads(path.read_text())
    name = str(rng.choice(EVIL))
    if path.name == MANIFEST:
        content["shards"][0][str(rng.choice(["shard", "sidecar"]))] = name
    elif rng.random() < 0.5:
        content["shard"] = name
    else:
        content["samples"][0]["key"] = name
    _write(path, content)


def odd_file(folder: Path, rng: Rng) -> None:
    """Put a folder, nothing or deep nesting where a file was."""
    path = folder / str(rng.choice([SHARD, SIDECAR, MANIFEST]))
    path.unlink()
    kind = int(rng.integers(3))
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        path.write_bytes(b"[" * 100_000)


def odd_header(folder: Path, rng: Rng) -> None:
    """Damage the tar's own headers, with sizes that are huge or negative, and their checksums made to fit."""
    path = folder / SHARD
    data = bytearray(path.read_bytes())
    header = data[:512]
    header[124:136] = [b"77777777777\0", b"-0000000001\0", b"\x80" + bytes(3) + b"\xff" * 8, b"\xff" * 12][
        int(rng.integers(4))
    ]
    header[156:157] = bytes([int(rng.choice(list(b"0xgLK5S12")))])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[:512] = header
    path.write_bytes(data)


DAMAGES: list[Callable[[Path, Rng], None]] = [
    truncate,
    flip,
    rename_members,
    drop,
    replace,
    lie_in_clip,
    other_array,
    bomb,
    junk_image,
    elsewhere,
    odd_file,
    odd_header,
]


def rewrite(folder: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Change a member of the first sample, and all sizes and checksums so that only its content is wrong."""
    sidecar, manifest = (json.loads((folder / file).read_text()) for file in (SIDECAR, MANIFEST))
    row = sidecar["samples"][0]["members"][name]
    data = (folder / SHARD).read_bytes()
    changed = change(data[row[0] : row[0] + row[1]])
    sidecar["samples"][0]["members"][name] = [len(data), len(changed), zlib.crc32(changed)]
    data += changed
    (folder / SHARD).write_bytes(data)
    sidecar["bytes"] = manifest["shards"][0]["bytes"] = len(data)
    _write(folder / SIDECAR, sidecar)
    _write(folder / MANIFEST, manifest)


def _members(folder: Path) -> list[str]:
    return list(json.loads((folder / SIDECAR).read_text())["samples"][0]["members"])


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def _anywhere(folder: Path, rng: Rng) -> tuple[Path, Any, Any, Any]:
    path = folder / str(rng.choice([SIDECAR, MANIFEST]))
    content = json.loads(path.read_text())
    return path, content, *_pick(content, rng)


def _pick(content: Any, rng: Rng) -> tuple[Any, Any]:
    parent = content
    while True:
        keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        key = keys[int(rng.integers(len(keys)))]
        if isinstance(parent[key], dict | list) and len(parent[key]) and rng.random() < 0.85:
            parent = parent[key]
        else:
            return parent, key


def _odd(rng: Rng) -> object:
    values = [*NUMBERS, *EVIL]
    return values[int(rng.integers(len(values)))]


def _npy_header(kind: str, shape: tuple[int, ...]) -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def _nan(raw: bytes, rng: Rng) -> bytes:
    start = 10 + int.from_bytes(raw[8:10], "little")
    data = bytearray(raw)
    for at in range(start, len(data) - 8, max(8, (len(data) - start) // 16 // 8 * 8)):
        data[at : at + 8] = struct.pack("<d", np.nan) if rng.random() < 0.5 else struct.pack("<ff", np.nan, np.inf)
    return bytes(data)


def _huge_header(raw: bytes, rng: Rng) -> bytes:
    shape = [(2**40,), (2**32, 2**32), (10**11, 3), (0, 2**40, 3), (2**31, 5, 4)][int(rng.integers(5))]
    return _npy_header(str(rng.choice(["<i4", "<f4", "<f8", "|b1"])), shape) + raw[80:]


def _other_type(raw: bytes, rng: Rng) -> bytes:
    return (
        raw.replace(b"'<", b"'>", 1)
        if rng.random() < 0.5
        else raw.replace(b"4'", str(rng.integers(10)).encode() + b"'")
    )


def _junk_header(raw: bytes, rng: Rng) -> bytes:
    data = bytearray(raw)
    data[int(rng.integers(min(len(data), 120)))] = int(rng.integers(256))
    return bytes(data)


def _short(raw: bytes, rng: Rng) -> bytes:
    return raw[: int(rng.integers(len(raw)))]


def _large_values(raw: bytes, rng: Rng) -> bytes:
    start = 10 + int.from_bytes(raw[8:10], "little")
    return raw[:start] + rng.integers(0, 256, len(raw) - start, dtype=np.uint8).tobytes()


def _png_bomb() -> bytes:
    """A picture of 30,000 × 30,000 pixels in few bytes of header; its data ends early."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(2**16))) + chunk(b"IEND", b"")
    )
