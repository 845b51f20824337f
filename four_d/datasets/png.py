"""PNG of 16 bits a channel and several channels, which Pillow would reduce to 8 bits."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
"""Channels by the header's colour type; palettes (3) are of 8 bits at most."""
_LARGEST_SIDE = 20_000


def png16(data: bytes) -> NDArray[np.uint16]:
    """Decode a PNG of 16 bits a channel, not interlaced: h w c. ValueError for anything else, or where damaged."""
    if not data.startswith(SIGNATURE):
        raise ValueError("it is no PNG")
    at, parts, header = len(SIGNATURE), list[bytes](), b""
    while at + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + size]
        if zlib.crc32(kind + body) != int.from_bytes(data[at + 8 + size : at + 12 + size], "big"):
            raise ValueError("a chunk is damaged")
        header = body if kind == b"IHDR" else header
        parts.extend([body] if kind == b"IDAT" else [])
        at += 12 + size
    try:
        width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    except struct.error as error:
        raise ValueError("it has no header") from error
    if bits != 16 or colour not in _CHANNELS or interlaced or not (0 < width <= _LARGEST_SIDE >= height > 0):
        raise ValueError(f"it is {width} × {height} of {bits} bits, colour type {colour}, interlaced {interlaced}")
    channels = _CHANNELS[colour]
    row = 1 + 2 * channels * width
    decoder = zlib.decompressobj()
    try:
        stored = decoder.decompress(b"".join(parts), height * row + 1)
    except zlib.error as error:
        raise ValueError(f"its pixels are damaged ({error})") from error
    if len(stored) != height * row:
        raise ValueError("it has another number of pixels than its header says")
    rows = np.frombuffer(stored, np.uint8).reshape(height, row)
    if rows[:, 0].max() > 4:
        raise ValueError(f"it has a row with filter {rows[:, 0].max()}")
    whole = _unfiltered(rows[:, 1:].reshape(height, width, 2 * channels), rows[:, 0])
    return np.ascontiguousarray(whole).view(">u2").astype(np.uint16)


def _unfiltered(rows: NDArray[np.uint8], filters: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Undo the rows' filters, h w b. A pixel depends on those left, above and left above: diagonals go at once."""
    height, width, size = rows.shape
    whole = np.zeros((height + 1, width + 1, size), np.int16)
    for step in range(height + width - 1):
        y = np.arange(max(0, step - width + 1), min(height - 1, step) + 1)
        x = step - y
        left, up, corner = whole[y + 1, x], whole[y, x + 1], whole[y, x]
        guess = left + up - corner
        far_left, far_up, far_corner = abs(guess - left), abs(guess - up), abs(guess - corner)
        nearest = np.where(far_up <= far_corner, up, corner)
        paeth = np.where((far_left <= far_up) & (far_left <= far_corner), left, nearest)
        kind = filters[y, None]
        guess = np.select([kind == 1, kind == 2, kind == 3, kind == 4], [left, up, (left + up) >> 1, paeth], 0)
        whole[y + 1, x + 1] = (rows[y, x] + guess) & 0xFF
    return whole[1:, 1:].astype(np.uint8)
