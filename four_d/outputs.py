"""Atomic writing of files and folders, apart from the inputs, and never over foreign files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from four_d.errors import UserError

MARKER = ".four_d.json"
"""File that lists a result folder's content, so that a later run replaces that and nothing of the user's."""
JUNK = frozenset({MARKER, ".DS_Store", "Thumbs.db", "desktop.ini"})
"""Files of file managers, and our own list, for which a folder is not refused."""
HELD = ".held"
"""Empty file in a temporary folder that whoever uses the folder holds (`hold`)."""

Inputs = Iterable[str | Path | None]


def keep_apart(out: Path, inputs: Inputs) -> None:
    """Raise UserError if the output is, contains or lies in an input, under whatever names.

    Existing files and folders are compared by identity, not by name: links, ``..`` and the case of letters make no
    difference. None stands for an input that is not given.
    """
    for each in inputs:
        if each is None:
            continue
        if _within(out, Path(each)):
            same = out.exists() and out.samefile(each)
            told = "is an input of this command itself" if same else f"lies in {each}, which is read"
            raise UserError(f"{out} {told}; choose another place for the output, beside it")
        if _within(Path(each), out):
            raise UserError(f"{out} holds {each}, which is read; choose another place for the output")


def _within(inner: Path, outer: Path) -> bool:
    """True if ``outer`` exists and is ``inner`` or one of its parent folders."""
    try:
        found = outer.stat()
        around = inner.resolve()
        return any(os.path.samestat(each.stat(), found) for each in (around, *around.parents) if each.exists())
    except (OSError, RuntimeError):  # missing, not accessible, or circular links: reading will report that
        return False


@contextmanager
def new_file(path: Path, inputs: Inputs = ()) -> Generator[Path]:
    """Yield a temporary path beside ``path``, with its suffix; it is flushed to disk and renamed to ``path`` when the
    block ends without error. A link is followed.

    Raises:
        UserError: the file is an input (`keep_apart`) or cannot be written; then nothing new is left behind.

    """
    keep_apart(path, inputs)
    target = Path(os.path.realpath(path))  # for circular links, mkdir fails later
    if target.exists() and not target.is_file():
        raise UserError(f"{path} is {'a folder' if target.is_dir() else 'no ordinary file'}; choose another name")
    partial = target.with_name(f".{target.stem}.{uuid.uuid4().hex[:8]}.partial{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        if not _is_about(error, partial):
            raise
        raise UserError(_cannot(path, error)) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def hold(number: int) -> bool:
    """Lock an open file, by its descriptor, until it is closed; False if another process has it, or there are no locks.

    A partial file that its writer holds is under way; one that can be held was left behind by a process that was killed
    (`remove_left_behind`).
    """
    try:
        import fcntl  # Windows has none

        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def remove_left_behind(paths: Iterable[Path]) -> None:
    """Remove partial files whose writers, which hold them, are gone, and folders whose `HELD` is no longer held."""
    for path in paths:
        with contextlib.suppress(OSError):
            number = os.open(path / HELD if path.is_dir() else path, os.O_RDWR | os.O_CLOEXEC)
            try:
                if hold(number):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                os.close(number)


def sync_folder(folder: Path) -> None:
    """Flush a folder's names to disk, where the system can: a rename before a power cut stays done."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file atomically, text as UTF-8. UserError as `new_file`."""
    with new_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def read_whole(path: Path) -> bytes:
    """Read a file's bytes; UserError if that fails."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or type(error).__name__}; check the path") from error


def check_json(path: Path, key: str, inputs: Inputs = ()) -> None:
    """Raise UserError unless `write_json` may write there: apart from the inputs, over no file but one of its own kind,
    which is known by a key.
    """
    keep_apart(path, inputs)
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file in it")
    if not path.is_file():
        return
    try:
        content = cast(object, json.loads(path.read_bytes()))
    except (OSError, ValueError):
        content = None
    if path.stat().st_size and not (isinstance(content, dict) and key in content):
        raise UserError(f"{path} is there and was not written by this command; choose another name")


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write one JSON object, without NaN. UserError as `new_file`."""
    write_whole(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


@contextmanager
def new_folder(out: Path, kind: str, *, inputs: Inputs = (), overwrite: bool = False) -> Generator[Path]:
    """Yield a temporary folder beside ``out``; it is renamed to ``out`` when the block ends without error.

    Enter it before the work, so that refusals of `check_folder` and write errors come first.

    Raises:
        UserError: as `check_folder`, or ``out`` cannot be written; then nothing new is left behind.

    """
    check_folder(out, kind, inputs=inputs, overwrite=overwrite)
    target = Path(os.path.realpath(out))
    partial = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        partial.mkdir(parents=True)
        yield partial
        files = {name: (partial / name).stat().st_size for name in _files(partial)}
        (partial / MARKER).write_text(json.dumps({"kind": kind, "files": files}) + "\n")
        check_folder(out, kind, inputs=inputs, overwrite=overwrite)  # the work may have taken hours
        _swap(partial, target)
    except OSError as error:
        if not _is_about(error, partial):
            raise
        raise UserError(_cannot(out, error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_folder(out: Path, kind: str, *, inputs: Inputs = (), overwrite: bool = False) -> None:
    """Raise UserError unless ``out`` may be made or replaced.

    It is apart from the inputs (`keep_apart`), and is no file. It may be replaced if it is empty or holds an earlier
    result of the same ``kind`` as it was written, and nothing else; with ``overwrite`` also a result of another kind
    or one that was changed since. What four_d did not write is never removed.
    """
    keep_apart(out, inputs)
    if not out.is_dir():
        if out.exists():
            raise UserError(f"{out} is a file; choose another folder or remove it")
        return
    earlier, written = _earlier(out)
    choose = "choose another folder"
    for name in _files(out):
        if name not in written:
            flag = " (--overwrite replaces only what four_d wrote)" if overwrite else ""
            raise UserError(f"{out} holds {name}, which four_d did not write{flag}; {choose}, or move it away")
        if not overwrite and (out / name).stat().st_size != written[name]:
            raise UserError(
                f"{out}: {name} was changed since four_d wrote it; {choose}, or say --overwrite to replace it"
            )
    if written and earlier != kind and not overwrite:
        raise UserError(f"{out} holds an earlier {earlier}, no {kind}; {choose}, or say --overwrite to replace it")


def _files(folder: Path) -> Iterator[str]:
    """Yield all files and links under a folder, by relative paths with slashes, in order."""
    for around, folders, names in os.walk(folder):
        folders.sort()
        links = [name for name in folders if (Path(around) / name).is_symlink()]
        for name in sorted([*names, *links]):
            if name not in JUNK:
                yield (Path(around) / name).relative_to(folder).as_posix()


def _earlier(out: Path) -> tuple[str, dict[str, int]]:
    """Kind of an earlier result in the folder, and its files with their sizes; empty without a result."""
    try:
        found = json.loads((out / MARKER).read_text())
        return str(found["kind"]), {str(name): int(size) for name, size in found["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "", {}


def _swap(partial: Path, out: Path) -> None:
    """Rename ``partial`` to ``out``; an old ``out`` is moved aside first, and removed once the new one is in place."""
    if not out.exists():
        partial.rename(out)
        return
    old = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}.old"
    try:
        out.rename(old)
        partial.rename(out)
    except BaseException:  # signals, too, must leave the former state
        if not out.exists():
            old.rename(out)
        raise
    finally:
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)


def _is_about(error: OSError, partial: Path) -> bool:
    """True if an error concerns writing: the temporary path, something in it, or a parent folder."""
    if not isinstance(error.filename, str | Path):
        return True
    name = Path(error.filename)
    return name == partial or partial in name.parents or name in partial.parents


def _cannot(path: Path, error: OSError) -> str:
    reason = error.strerror or type(error).__name__
    return f"cannot write {path}: {reason}; free some space or choose another place"
