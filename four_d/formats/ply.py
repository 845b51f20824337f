"""PLY files, read by their header: the columns of the vertices, whatever else the file holds.

Readers accept all three encodings, either naming of types, line ends LF, CRLF or CR, comments, elements before and
after the vertices, and list properties; writers write binary little-endian.

Source: the PLY description of Greg Turk (1994), and the sized names of types that later programs use.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from four_d.errors import UserError
from four_d.outputs import read_whole

LOGGER = logging.getLogger(__name__)

_INTEGERS = ("i1", "char int8"), ("u1", "uchar uint8"), ("i2", "short int16"), ("u2", "ushort uint16")
_LONGER = ("i4", "int int32"), ("u4", "uint uint32"), ("i8", "int64"), ("u8", "uint64")
_FLOATS = ("f4", "float float32"), ("f8", "double float64")
_KINDS = {name: kind for kind, names in (*_INTEGERS, *_LONGER, *_FLOATS) for name in names.split()}
_NAMES = {"f4": "float", "f8": "double", "u1": "uchar", "i4": "int"}
_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": ""}
_PADDING = b"\0\t\n\r "
_NOT_A_NUMBER = re.compile(rb"[+-]?(?:1\.#\w+|nan\(\w*\))", re.IGNORECASE)
"""Non-finite numbers as Windows' C library writes them."""

Columns = dict[str, NDArray[np.generic]]
"""Values of each property, in its own type and this machine's byte order."""


@dataclass(frozen=True, kw_only=True)
class _Property:
    name: str
    kind: str
    """Type code as numpy's, without byte order."""
    counts: str | None = None
    """Type code of a list's length; None: a single value."""


@dataclass(frozen=True, kw_only=True)
class _Element:
    name: str
    count: int
    properties: tuple[_Property, ...]

    @property
    def plain(self) -> bool:
        """True if all rows have one size: there are no lists."""
        return all(p.counts is None for p in self.properties)

    def row(self, order: str) -> np.dtype[np.void]:
        """Layout of a row, if plain."""
        return np.dtype([(p.name, order + p.kind) for p in self.properties])


@dataclass(frozen=True, kw_only=True)
class _Header:
    order: str
    """Byte order ``<`` or ``>``; empty for text."""
    elements: tuple[_Element, ...]
    size: int
    """Number of bytes before the first element."""
    windows: bool
    """True if its lines end in CRLF."""


def header(count: int, columns: Sequence[tuple[str, str]]) -> bytes:
    """Header of a binary little-endian file of ``count`` vertices, with columns (name, numpy's type code)."""
    properties = "".join(f"property {_NAMES[kind.lstrip('<')]} {name}\n" for name, kind in columns)
    head = f"ply\nformat binary_little_endian 1.0\ncomment four_d\nelement vertex {count}\n{properties}end_header\n"
    return head.encode("ascii")


def read_vertices(path: Path) -> Columns:
    """Read the single values of every vertex; lists, other elements and padding at the end are skipped.

    Further bytes at the end that belong to no element are skipped too, with a note on stderr.

    Raises:
        UserError: no such file, no PLY, a header that PLY's rules do not allow, no vertices, or fewer bytes or numbers
            than the header declares.

    """
    content = read_whole(path)
    try:
        parsed = _read_header(content)
        if all(element.name != "vertex" for element in parsed.elements):
            names = ", ".join(element.name for element in parsed.elements) or "nothing"
            raise ValueError(f"holds no vertices but {names}; give a file of points or Gaussians")
        return _read_text(content, parsed) if not parsed.order else _read_binary(path, content, parsed)
    except ValueError as error:
        raise UserError(f"{path} {error}") from error


def _read_header(content: bytes) -> _Header:
    first = re.match(rb"ply[ \t]*(\r\n|\n|\r)", content)
    if first is None:
        raise ValueError("is not a PLY file: it does not begin with the line 'ply'; give one that does")
    line_end = first[1]
    last = re.search(re.escape(line_end) + rb"end_header[ \t]*" + re.escape(line_end), content)
    if last is None:
        raise ValueError("is truncated or damaged: its header has no line 'end_header'; copy it again")
    lines = content[first.end() : last.start()].decode("utf-8", "replace").split(line_end.decode())
    order: str | None = None
    elements: list[_Element] = []
    for line in lines:
        match line.split():
            case [] | ["comment" | "obj_info", *_]:
                pass
            case ["format", name, _] if name in _ORDERS:
                order = _ORDERS[name]
            case ["element", name, count] if count.isdecimal():
                elements.append(_Element(name=name, count=int(count), properties=()))
            case ["property", *words] if elements and (parsed := _property(words)) is not None:
                elements[-1] = _with_property(elements[-1], parsed)
            case _:
                raise ValueError(f"has an unknown header line: {line.strip()[:80]!r}; write it again")
    if order is None:
        raise ValueError("has no format line in its header; write it again")
    return _Header(order=order, elements=tuple(elements), size=last.end(), windows=line_end == b"\r\n")


def _property(words: Sequence[str]) -> _Property | None:
    """Parse a property; None for anything else."""
    match words:
        case [kind, name] if kind in _KINDS:
            return _Property(name=name, kind=_KINDS[kind])
        case ["list", counts, kind, name] if counts in _KINDS and kind in _KINDS and _KINDS[counts][0] != "f":
            return _Property(name=name, kind=_KINDS[kind], counts=_KINDS[counts])
        case _:
            return None


def _with_property(element: _Element, new: _Property) -> _Element:
    if any(p.name == new.name for p in element.properties):
        raise ValueError(f"has two properties {new.name} of a {element.name}; write it again")
    return _Element(name=element.name, count=element.count, properties=(*element.properties, new))


def _read_binary(path: Path, content: bytes, parsed: _Header) -> Columns:
    columns: Columns | None = None
    end = parsed.size
    for element in parsed.elements:
        if columns is not None and not element.plain:
            return columns  # rows of unknown size follow, which are not needed
        if columns is None and element.name == "vertex":
            columns, end = _rows(content, end, element, parsed.order)
        elif element.plain:
            end += element.count * element.row(parsed.order).itemsize
        else:
            _, end = _rows(content, end, element, parsed.order)
    assert columns is not None
    if surplus := len(content[end:].strip(_PADDING)):
        if parsed.windows:
            raise ValueError(
                f"is {surplus} bytes longer than its header says: a transfer in text mode has inserted bytes; copy it "
                "again in binary mode"
            )
        LOGGER.warning(f"{path}: ignoring {surplus} bytes after its last element")
    elif end > len(content):
        LOGGER.warning(f"{path} is truncated after its vertices, which are complete")
    return columns


def _rows(content: bytes, start: int, element: _Element, order: str) -> tuple[Columns, int]:
    """Read an element's single values, and the offset of the next element."""
    if not element.plain:
        return _rows_with_lists(content, start, element, order)
    kind = element.row(order)
    end = start + element.count * kind.itemsize
    if end > len(content):
        complete = max(len(content) - start, 0) // max(kind.itemsize, 1)
        raise ValueError(_missing_data(element, complete, f"{end - len(content)} bytes are missing"))
    rows = np.ndarray((element.count,), kind, content, start)
    return {p.name: rows[p.name].astype(p.kind) for p in element.properties}, end


def _rows_with_lists(content: bytes, start: int, element: _Element, order: str) -> tuple[Columns, int]:
    """Read as `_rows`, row by row."""
    kinds = [
        (p, np.dtype(order + p.kind), None if p.counts is None else np.dtype(order + p.counts))
        for p in element.properties
    ]
    offsets: dict[str, list[int]] = {p.name: [] for p in element.properties if p.counts is None}
    for row in range(element.count):
        for p, kind, counts in kinds:
            if counts is None:
                offsets[p.name].append(start)
                start += kind.itemsize
                continue
            length = int(np.frombuffer(content[start : start + counts.itemsize].ljust(counts.itemsize), counts)[0])
            start += counts.itemsize + max(length, 0) * kind.itemsize
        if start > len(content):
            raise ValueError(_missing_data(element, row, "the rest is missing"))
    data = np.frombuffer(content, np.uint8)
    columns: Columns = {}
    for p, kind, counts in kinds:
        if counts is None:
            at = np.array(offsets[p.name], np.int64)[:, None] + np.arange(kind.itemsize)
            columns[p.name] = data[at].view(kind)[:, 0].astype(p.kind)
    return columns, start


def _read_text(content: bytes, parsed: _Header) -> Columns:
    body = _NOT_A_NUMBER.sub(b"nan", content[parsed.size :]).decode("ascii", "replace")
    lines = [line for line in body.splitlines() if line and not line.isspace()]
    start = 0
    for element in parsed.elements:
        rows = lines[start : start + element.count]
        if element.name == "vertex":
            if len(rows) < element.count:
                raise ValueError(_missing_data(element, len(rows), f"{element.count - len(rows)} lines are missing"))
            return _text_rows(rows, element)
        start += element.count
    raise AssertionError("the caller has seen vertices")


def _text_rows(lines: Sequence[str], element: _Element) -> Columns:
    single = [p for p in element.properties if p.counts is None]
    if not lines or not single:
        return {p.name: np.zeros(len(lines), p.kind) for p in single}
    if not element.plain:
        lines = [_without_lists(line.split(), element) for line in lines]
    try:
        values = np.loadtxt(lines, np.float64, comments=None, ndmin=2)
    except ValueError as error:
        raise ValueError(f"has a {element.name} that is not all numbers ({error}); write it again") from error
    if values.shape[1] != len(single):
        raise ValueError(f"has {values.shape[1]} numbers a row where its header says {len(single)}; write it again")
    with np.errstate(over="ignore"):  # values beyond the float's range become infinite
        return {
            p.name: (column if p.kind[0] == "f" else np.nan_to_num(column)).astype(p.kind)
            for p, column in zip(single, values.T, strict=True)
        }


def _without_lists(words: Sequence[str], element: _Element) -> str:
    singles: list[str] = []
    at = 0
    for p in element.properties:
        if at < len(words) and p.counts is None:
            singles.append(words[at])
        elif at < len(words) and words[at].isdecimal():
            at += int(words[at])
        at += 1
    return " ".join(singles)


def _missing_data(element: _Element, complete: int, missing: str) -> str:
    rows = f"{complete:,} of {element.count:,} rows of the element {element.name} are complete"
    return f"is truncated: {rows}, {missing}; copy or write it again"
