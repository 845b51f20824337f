"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from four_d.errors import UserError


@contextmanager
def new_file(path: Path) -> Generator[Path]:
    """Give a temporary path beside ``path``, with its suffix; it takes that name when the block ends without error.

    Raises:
        UserError: the file cannot be written; then nothing new is left behind.

    """
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"cannot write {path}: {reason}; free some space or choose another place") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file at once. UserError as `new_file`."""
    with new_file(path) as partial:
        partial.write_bytes(content)


def read_whole(path: Path) -> bytes:
    """A file's bytes; UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or type(error).__name__}; check the path") from error
