"""TFRecord files of tf.train.Example messages, read without TensorFlow: framing, checksums and the wire format.

Facts: TensorFlow's documentation of TFRecord (length, masked CRC-32C of the length, data, masked CRC-32C of the data,
little-endian) and its example.proto and feature.proto; the wire format is Protocol Buffers'.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from four_d.errors import UserError

AGAIN = "download the file again"
_POLYNOMIAL = 0x82F63B78
"""CRC-32C's (Castagnoli), bits reversed."""
_MASK = 0xA282EAD8
"""Added to a checksum that was turned by 15 bits, so that checksums of checksums are no trivial values."""
_HEAD, _TAIL = 12, 4
"""Bytes before (length and its checksum) and after a record's data."""
_LANES = 2048
"""Stretches of equal length whose checksums are computed side by side; a power of two."""
_SHORT = 64
"""Bytes of a lane below which data is not cut into lanes."""
Kind = Literal["bytes", "floats", "integers"]
_KINDS: dict[int, Kind] = {1: "bytes", 2: "floats", 3: "integers"}


class Place(NamedTuple):
    """Place of a record's data in its file."""

    start: int
    size: int


class Example:
    """Features of one tf.train.Example, decoded when asked for."""

    def __init__(self, data: bytes, name: str) -> None:
        """Parse the message's structure. UserError, with ``name``, if it is none."""
        self._name = name
        try:
            features = dict(_fields(memoryview(data)))
            entries = [dict(_fields(_view(entry))) for number, entry in _fields(_view(features[1])) if number == 1]
            self._found = {bytes(_view(entry[1])).decode(): next(_fields(_view(entry[2]))) for entry in entries}
        except (KeyError, IndexError, ValueError, TypeError, StopIteration) as error:
            raise self._refused(f"is no tf.train.Example ({error})") from error

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def count(self, name: str) -> int:
        """Count the byte strings of a feature."""
        return sum(1 for _ in self._items(name))

    def strings(self, name: str, at: list[int]) -> list[bytes]:
        """Byte strings of these indices. UserError if there are fewer."""
        found = list(self._items(name))
        if missing := [index for index in at if index >= len(found)]:
            raise self._refused(f"has no {name} of index {missing[0]}")
        return [bytes(found[index]) for index in at]

    def numbers(self, name: str, *shape: int) -> NDArray[np.float64]:
        """Numbers of a feature in this shape (one size may be −1). UserError if they do not fit."""
        kind, body = self._body(name)
        try:
            values = _floats(body) if kind == "floats" else _integers(body)
            if kind == "bytes":
                raise ValueError("bytes")
            return np.array(values, np.float64).reshape(shape)
        except (ValueError, IndexError, TypeError) as error:
            raise self._refused(f"has no readable numbers {name} of {' × '.join(map(str, shape))}") from error

    def _items(self, name: str) -> Iterator[memoryview]:
        kind, body = self._body(name)
        if kind != "bytes":
            raise self._refused(f"has {kind} as {name}, not bytes")
        try:
            yield from (_view(value) for number, value in _fields(body) if number == 1)
        except (ValueError, IndexError, TypeError) as error:
            raise self._refused(f"has no readable {name}") from error

    def _body(self, name: str) -> tuple[Kind, memoryview]:
        if name not in self._found:
            raise self._refused(f"has no {name}")
        number, value = self._found[name]
        if number not in _KINDS:
            raise self._refused(f"has no readable {name}")
        return _KINDS[number], _view(value)

    def _refused(self, why: str) -> UserError:
        return UserError(f"{self._name} {why}; {AGAIN}")


def places(path: Path) -> list[Place]:
    """List the records of a file by their headers alone, whose checksums are verified. UserError where it is cut."""
    found: list[Place] = []
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            at = 0
            while at < end:
                file.seek(at)
                head = file.read(_HEAD)
                if len(head) < _HEAD or _masked(crc32c(head[:8])) != int.from_bytes(head[8:], "little"):
                    raise UserError(f"{path}: record {len(found)}, at byte {at}, has a damaged length; {AGAIN}")
                size = int.from_bytes(head[:8], "little")
                if at + _HEAD + size + _TAIL > end:
                    raise UserError(f"{path}: record {len(found)}, at byte {at}, is cut short; {AGAIN}")
                found.append(Place(at + _HEAD, size))
                at += _HEAD + size + _TAIL
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); {AGAIN}") from error
    return found


def read(path: Path, place: Place, name: str) -> Example:
    """Read one record, and only it, into memory. UserError, with ``name``, where it is not as its checksum says."""
    try:
        with path.open("rb") as file:
            file.seek(place.start)
            data, tail = file.read(place.size), file.read(_TAIL)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); {AGAIN}") from error
    if len(data) != place.size or _masked(crc32c(data)) != int.from_bytes(tail, "little"):
        raise UserError(f"{name} is damaged: its checksum is another; {AGAIN}")
    return Example(data, name)


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of bytes: of long ones in many stretches at once, joined by the checksum's linearity."""
    lane = len(data) // _LANES
    state = 0xFFFFFFFF
    if lane < _SHORT:
        return bytewise(data, state) ^ 0xFFFFFFFF
    lane -= lane % 2
    values = np.frombuffer(data, "<u2", _LANES * lane // 2).reshape(_LANES, lane // 2)
    states = np.zeros(_LANES, np.uint32)
    states[0] = state
    two = _two_bytes()
    for column in np.ascontiguousarray(values.T):
        states = (states >> 16) ^ two[(states & 0xFFFF) ^ column]
    joined, shift = states.astype(np.uint32), _zeros(lane)
    while len(joined) > 1:
        joined = _through(shift, joined[0::2]) ^ joined[1::2]
        shift = _through(shift, shift)
    return bytewise(data[_LANES * lane :], int(joined[0])) ^ 0xFFFFFFFF


def bytewise(data: bytes, state: int) -> int:
    """State of the checksum after these bytes, one by one; it begins with all bits set, and the result is inverted."""
    table = _table()
    for byte in data:
        state = (state >> 8) ^ table[(state ^ byte) & 0xFF]
    return state


def _masked(value: int) -> int:
    return (((value >> 15) | (value << 17)) + _MASK) & 0xFFFFFFFF


@cache
def _table() -> list[int]:
    """Change of a state by one byte."""
    table: list[int] = []
    for value in range(256):
        state = value
        for _ in range(8):
            state = (state >> 1) ^ (_POLYNOMIAL if state & 1 else 0)
        table.append(state)
    return table


@cache
def _two_bytes() -> NDArray[np.uint32]:
    """Change of a state by two bytes, of which the first is the lower."""
    one = np.array(_table(), np.uint32)
    first = one[np.arange(65536) & 0xFF] ^ (np.arange(65536, dtype=np.uint32) >> 8)
    return ((first >> 8) ^ one[first & 0xFF]).astype(np.uint32)


def _zeros(count: int) -> NDArray[np.uint32]:
    """Columns of the linear map of a state by ``count`` zero bytes: the images of its 32 bits."""
    one, bits = np.array(_table(), np.uint32), np.uint32(1) << np.arange(32, dtype=np.uint32)
    step = (bits >> np.uint32(8)) ^ one[bits & np.uint32(0xFF)]
    result = bits
    while count:
        if count & 1:
            result = _through(step, result)
        step = _through(step, step)
        count >>= 1
    return result


def _through(columns: NDArray[np.uint32], states: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Images of states under a linear map with these 32 columns."""
    result = np.zeros_like(states)
    for bit, column in enumerate(columns):
        result ^= np.where((states >> np.uint32(bit)) & np.uint32(1), column, np.uint32(0))
    return result


def _fields(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Fields of a message: number and value, of nested ones a view. ValueError or IndexError where it is none."""
    at = 0
    while at < len(view):
        tag, at = _varint(view, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(view, at)
            yield tag >> 3, value
            continue
        if wire == 2:
            size, at = _varint(view, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(view):
            raise ValueError("a field is cut short")
        yield tag >> 3, view[at : at + size]
        at += size


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number is too long")


def _view(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise TypeError("a number in place of a message")
    return value


def _floats(body: memoryview) -> NDArray[np.float32]:
    """Floats of a FloatList, packed or one by one."""
    return np.concatenate(
        [np.zeros(0, np.float32), *(np.frombuffer(_view(v), "<f4") for n, v in _fields(body) if n == 1)]
    )


def _integers(body: memoryview) -> list[int]:
    """Integers of an Int64List, packed or one by one."""
    values: list[int] = []
    for number, value in _fields(body):
        if number != 1:
            continue
        if isinstance(value, int):
            values.append(value)
            continue
        at = 0
        while at < len(value):
            each, at = _varint(value, at)
            values.append(each)
    return [value - (1 << 64) if value >> 63 else value for value in values]
