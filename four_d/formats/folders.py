"""Folders that appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from four_d.errors import UserError

MARKER = ".four_d.json"
"""Lists what a result folder holds, so that a later run may replace it and nothing of the user's."""


@contextmanager
def new_folder(out: Path, kind: str, *, overwrite: bool = False) -> Generator[Path]:
    """Give a temporary folder beside ``out``; it takes ``out``'s name when the block ends without an error.

    An existing ``out`` is replaced if it is empty, holds an earlier result of the same ``kind`` and nothing else, or
    if ``overwrite`` says so.

    Raises:
        UserError: ``out`` is a file, holds something else, or cannot be written; then nothing new is left behind.

    """
    _refuse(out, kind, overwrite=overwrite)
    partial = out.parent / f".{out.name}.{os.getpid()}.partial"
    try:
        partial.mkdir(parents=True)
        yield partial
        entries = sorted(entry.name for entry in partial.iterdir())
        (partial / MARKER).write_text(json.dumps({"kind": kind, "entries": entries}) + "\n")
        _swap(partial, out)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"cannot write {out}: {reason}; free some space or choose another --out folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse(out: Path, kind: str, *, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; choose another --out folder or remove it")
    if overwrite or not out.is_dir():
        return
    present = {entry.name for entry in out.iterdir()} - {MARKER}
    foreign = sorted(present - _earlier(out, kind))
    if foreign:
        raise UserError(f"{out} holds {foreign[0]}, not written here; choose another --out folder or empty it")


def _earlier(out: Path, kind: str) -> set[str]:
    """Names that an earlier result of this kind put into the folder."""
    try:
        found = json.loads((out / MARKER).read_text())
        return set(found["entries"]) if found["kind"] == kind else set()
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
        return set()


def _swap(partial: Path, out: Path) -> None:
    """Rename ``partial`` to ``out``; an old ``out`` steps aside first and goes only when the new one is in place."""
    if not out.exists():
        partial.rename(out)
        return
    old = out.parent / f".{out.name}.{os.getpid()}.old"
    out.rename(old)
    try:
        partial.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old)
