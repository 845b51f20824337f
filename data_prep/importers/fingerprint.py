"""Digests of the files that a sequence is read from, so that an import that goes on notices a changed source."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import FunctionType, MethodType

from data_prep.importers.writing import digest
from four_d.datasets.files import NO_FILE
from four_d.datasets.sequence import PerFrame, Sequence

LOADERS = ("images", "cameras", "depth", "masks", "tracks", "world_tracks")
"""Fields of a `Sequence` that become part of a clip."""


def fingerprint(sequence: Sequence) -> dict[str, str]:
    """Digest of the files behind each loader of a sequence, and of those that its listing read (``listing``).

    Places of files do not count, their content does. UserError for a file that cannot be read.
    """
    loaders = {name: load for name in LOADERS if (load := getattr(sequence, name)) is not None}
    found = {name: _joined(_paths(load)) for name, load in loaders.items()}
    return {**found, "listing": _joined(sequence.listing)} if sequence.listing else found


def _joined(paths: Iterator[Path] | tuple[Path, ...]) -> str:
    total = hashlib.sha256()
    for path in paths:
        stat = path.stat() if path.is_file() else None
        told = "none" if stat is None else _digest(path, stat.st_size, stat.st_mtime_ns)
        total.update(told.encode())
    return total.hexdigest()[:32]


@lru_cache(maxsize=100_000)
def _digest(path: Path, size: int, changed: int) -> str:  # noqa: ARG001  a changed file is another
    return digest(path)


def _paths(value: object) -> Iterator[Path]:
    """Files that a loader holds, in order: in its arguments, items and closures."""
    if isinstance(value, Path):
        yield from () if value == NO_FILE else (value,)
    elif isinstance(value, PerFrame):
        yield from _paths((value.read, value.items))  # pyright: ignore[reportUnknownMemberType]
    elif isinstance(value, partial):
        yield from _paths((value.func, value.args, value.keywords))  # pyright: ignore[reportUnknownMemberType]
    elif isinstance(value, MethodType):
        yield from _paths(value.__self__)
    elif isinstance(value, FunctionType):
        yield from _paths([cell.cell_contents for cell in value.__closure__ or ()])
    elif isinstance(value, dict):
        yield from _paths(list(value.values()))  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
    elif isinstance(value, (list, tuple)):
        for each in value:  # pyright: ignore[reportUnknownVariableType]
            yield from _paths(each)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _paths([getattr(value, field.name) for field in fields(value)])
