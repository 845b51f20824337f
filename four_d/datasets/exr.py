"""Depth from OpenEXR files, of the few forms in which published sets store it.

Scan lines, 16- or 32-bit floats, without compression or with ZIP or ZIPS; layout: openexr.com, "OpenEXR file layout".
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from four_d.errors import UserError

MAGIC = 20000630
TILED, DEEP, PARTS = 0x200, 0x800, 0x1000
"""Flags of forms that are not read."""
LINES = {0: 1, 2: 1, 3: 16}
"""Compression (none, ZIPS, ZIP) → lines of a block."""
TYPES = {1: np.dtype("<f2"), 2: np.dtype("<f4")}
LARGEST_SIDE = 20_000


@dataclass(frozen=True, kw_only=True)
class _Header:
    channels: list[tuple[str, np.dtype[np.floating]]]
    compression: int
    width: int
    height: int
    first: int
    """Number of the first line."""
    end: int
    """Offset of the header's end in the file."""


def depth_exr(path: Path) -> NDArray[np.float32]:
    """Read the first channel of a file, h w. UserError for other forms and damaged files."""
    try:
        content = path.read_bytes()
        return _first_channel(content, _header(content))
    except (OSError, ValueError, IndexError, KeyError, struct.error, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not an EXR file of plain depth ({error}); unpack or download it again") from error


def _header(content: bytes) -> _Header:
    magic, version = struct.unpack_from("<iI", content)
    if magic != MAGIC or version & (TILED | DEEP | PARTS):
        raise ValueError("not one part of scan lines")
    values, at = dict[str, bytes](), 8
    while content[at] != 0:
        name, at = _text(content, at)
        _, at = _text(content, at)
        (size,) = struct.unpack_from("<i", content, at)
        values[name] = content[at + 4 : at + 4 + size]
        at += 4 + size
        if size < 0 or at >= len(content):
            raise ValueError("the header ends too early")
    left, top, right, bottom = struct.unpack("<4i", values["dataWindow"])
    width, height = right - left + 1, bottom - top + 1
    compression = values["compression"][0]
    if not (0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE):
        raise ValueError(f"it declares {width} × {height}")
    if compression not in LINES:
        raise ValueError(f"compression {compression} is not read; of 0, 2 and 3 only")
    return _Header(
        channels=_channels(values["channels"]),
        compression=compression,
        width=width,
        height=height,
        first=top,
        end=at + 1,
    )


def _text(content: bytes, at: int) -> tuple[str, int]:
    end = content.index(b"\0", at)
    return content[at:end].decode(), end + 1


def _channels(data: bytes) -> list[tuple[str, np.dtype[np.floating]]]:
    """Names and types in the file's order; all have a value for every pixel."""
    found, at = list[tuple[str, np.dtype[np.floating]]](), 0
    while data[at] != 0:
        name, at = _text(data, at)
        kind, _, across, down = struct.unpack_from("<iIii", data, at)
        if kind not in TYPES or (across, down) != (1, 1):
            raise ValueError(f"channel {name} is not of floats for every pixel")
        found.append((name, TYPES[kind]))
        at += 16
    if not found:
        raise ValueError("it has no channel")
    return found


def _first_channel(content: bytes, header: _Header) -> NDArray[np.float32]:
    lines, result = LINES[header.compression], np.zeros((header.height, header.width), np.float32)
    blocks = -(-header.height // lines)
    row = sum(dtype.itemsize for _, dtype in header.channels) * header.width
    kind = header.channels[0][1]
    for offset in struct.unpack_from(f"<{blocks}Q", content, header.end):
        y, size = struct.unpack_from("<ii", content, offset)
        start = y - header.first
        count = min(lines, header.height - start)
        if not 0 <= start < header.height or size < 0 or offset + 8 + size > len(content):
            raise ValueError("a block lies outside the file or the image")
        data = content[offset + 8 : offset + 8 + size]
        if len(data) < count * row:  # else stored as it is, since compressing would not have made it smaller
            data = _unpacked(data, count * row)
        table = np.frombuffer(data, np.uint8).reshape(count, row)
        first = np.ascontiguousarray(table[:, : kind.itemsize * header.width])
        result[start : start + count] = first.view(kind).astype(np.float32)
    return result


def _unpacked(data: bytes, size: int) -> bytes:
    """Undo ZIP: deflate, differences of neighbouring bytes, and the split into even and odd bytes."""
    decompressor = zlib.decompressobj()
    plain = decompressor.decompress(data, size)
    if len(plain) != size:
        raise ValueError("a block has too few bytes")
    steps = np.frombuffer(plain, np.uint8).astype(np.int64)
    steps[1:] -= 128
    whole = (steps.cumsum() & 255).astype(np.uint8)
    mixed = np.empty(size, np.uint8)
    mixed[::2], mixed[1::2] = whole[: (size + 1) // 2], whole[(size + 1) // 2 :]
    return mixed.tobytes()
