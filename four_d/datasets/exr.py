"""Depth in OpenEXR files: reading of the few forms in which published sets store it, and writing of one.

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
NAMES = ("Z", "DEPTH", "Y", "V", "R", "G", "B")
"""Names of the channel that has depth, the likeliest first: OpenEXR's for depth and for one value, then colours."""
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
    """Read the channel of depth of a file, h w. UserError for other forms and damaged files."""
    try:
        content = path.read_bytes()
        return _depth_channel(content, _header(content))
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


def _chosen(channels: list[tuple[str, np.dtype[np.floating]]]) -> int:
    """Index of the channel of depth: the only one, or the first that has one of the `NAMES`, after its layer's."""
    if len(channels) == 1:
        return 0
    names = [name.rpartition(".")[2].upper() for name, _ in channels]
    for wanted in NAMES:
        if wanted in names:
            return names.index(wanted)
    raise ValueError(f"none of its channels, {', '.join(name for name, _ in channels)}, is one of {', '.join(NAMES)}")


def _depth_channel(content: bytes, header: _Header) -> NDArray[np.float32]:
    lines, result = LINES[header.compression], np.zeros((header.height, header.width), np.float32)
    blocks = -(-header.height // lines)
    row = sum(dtype.itemsize for _, dtype in header.channels) * header.width
    index = _chosen(header.channels)
    kind = header.channels[index][1]
    left = sum(dtype.itemsize for _, dtype in header.channels[:index]) * header.width
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
        values = np.ascontiguousarray(table[:, left : left + kind.itemsize * header.width])
        result[start : start + count] = values.view(kind).astype(np.float32)
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


def write_depth_exr(path: Path, values: NDArray[np.float32]) -> None:
    """Write one channel, Y, of 32-bit floats h w with ZIP compression, as OpenCV writes depth."""
    height, width = values.shape
    window = struct.pack("<4i", 0, 0, width - 1, height - 1)
    channel = b"Y\0" + struct.pack("<iB3xii", 2, 0, 1, 1) + b"\0"
    attributes = (
        ("channels", "chlist", channel),
        ("compression", "compression", b"\3"),
        ("dataWindow", "box2i", window),
        ("displayWindow", "box2i", window),
        ("lineOrder", "lineOrder", b"\0"),
        ("pixelAspectRatio", "float", struct.pack("<f", 1.0)),
        ("screenWindowCenter", "v2f", struct.pack("<2f", 0.0, 0.0)),
        ("screenWindowWidth", "float", struct.pack("<f", 1.0)),
    )
    head = struct.pack("<iI", MAGIC, 2)
    for name, kind, data in attributes:
        head += name.encode() + b"\0" + kind.encode() + b"\0" + struct.pack("<i", len(data)) + data
    head += b"\0"
    plain = np.ascontiguousarray(values, "<f4")
    blocks = [
        struct.pack("<ii", y, len(data)) + data
        for y in range(0, height, LINES[3])
        for data in (_packed(plain[y : y + LINES[3]].tobytes()),)
    ]
    sizes = [len(head) + 8 * len(blocks), *map(len, blocks[:-1])]
    path.write_bytes(head + np.cumsum(sizes).astype("<u8").tobytes() + b"".join(blocks))


def _packed(data: bytes) -> bytes:
    """Do ZIP, the reverse of `_unpacked`; data that it would not make smaller stays as it is."""
    mixed = np.frombuffer(data, np.uint8)
    whole = np.concatenate([mixed[::2], mixed[1::2]]).astype(np.int64)
    steps = np.concatenate([whole[:1], np.diff(whole) + 128]) & 255
    packed = zlib.compress(steps.astype(np.uint8).tobytes())
    return packed if len(packed) < len(data) else data
