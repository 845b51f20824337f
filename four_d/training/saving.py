"""Checkpoints of a run on disk: whole or not there at all, written while training goes on, ``last.ckpt`` last."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import cast

import torch
from lightning.fabric.plugins import CheckpointIO
from torch import distributed
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.device_mesh import DeviceMesh

from four_d import sharding
from four_d.checkpoints import LAST
from four_d.config import CheckpointConfig
from four_d.errors import UserError
from four_d.outputs import sync_folder
from four_d.sharding import SKELETON, State
from four_d.training import parallel

LOGGER = logging.getLogger(__name__)

_STEP = re.compile(r"step-(\d+)\.ckpt")
_PARTIAL = ".partial"

Attempt = Callable[[], None]


def step_file(folder: Path, step: int) -> Path:
    """Path of the checkpoint of a step, to which ``last.ckpt`` is a link once it is complete."""
    return folder / LAST.parent / f"step-{step:07d}.ckpt"


def read(path: Path, mesh: DeviceMesh | None = None) -> State:
    """Read a run's checkpoint of any strategy (`sharding.read`); UserError where a part of it lacks or is damaged."""
    with readable(path):
        return sharding.read(path, mesh)


@contextmanager
def readable(path: Path) -> Generator[None]:
    """Turn what reading a run's checkpoint raises into a UserError."""
    try:
        yield
    except Exception as error:
        # a damaged file raises whatever the zip reader or the unpickler stumbles over
        found = f"{type(error).__name__}: {_reason(error)}"
        if path.is_dir() and not (path / SKELETON).is_file():
            found = f"a folder without {SKELETON}, which four_d writes"
        raise UserError(
            f"{path} cannot be read ({found}); link it to an older step-*.ckpt beside it, or remove it to begin anew"
        ) from error


def clean(folder: Path) -> None:
    """Remove what a killed process left half-written in a run's folder. Only for the one process that trains there."""
    for each in (folder / LAST.parent).glob(f".*{_PARTIAL}*"):
        shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()


class Writer(CheckpointIO):
    """Lightning's way to the disk: one checkpoint at a time, each whole or not there.

    A file or folder is written under another name, flushed with its folder, then renamed; only then ``last.ckpt`` is
    linked to it, and older ones beyond ``keep`` go. In the background, a copy of the state on the CPU is written.
    """

    def __init__(self, folder: Path, settings: CheckpointConfig, timeout: timedelta | None = None) -> None:
        """``timeout``: time that processes wait for each other's parts; None: torch's own."""
        self._folder, self._settings, self._timeout = folder, settings, timeout
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._group: distributed.ProcessGroup | None = None
        self.failure: str | None = None
        """Why the newest checkpoint was not written; None where it was."""

    @property
    def must_stop(self) -> bool:
        """True if a checkpoint could not be written, and the run must not go on without."""
        return self.failure is not None and self._settings.on_failure == "stop"

    def save_checkpoint(self, checkpoint: State, path: str | Path, storage_options: object = None) -> None:  # noqa: ARG002 - Lightning's signature
        """Copy the state and write it. Where its tensors are split, all processes must call it."""
        self.wait()
        path = Path(path)
        state, tensors = sharding.split(checkpoint)
        if tensors and not (self._settings.sharded and _STEP.fullmatch(path.name)):
            state, tensors = sharding.gathered(checkpoint, kept=_first()), {}
        else:
            state = sharding.gathered(state)
        if tensors:
            attempt = self._folder_attempt(path, state, tensors)
        elif _first():
            attempt = partial(write_file, state, path)
        else:
            return
        self._pending = self._pool.submit(self._attempt, attempt, path)
        if not self._settings.background:
            self.wait()

    def wait(self) -> None:
        """Wait for the checkpoint that is being written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> str | None:
        """Wait, and end the thread; return why the newest checkpoint could not be written, None where it was."""
        self.wait()
        self._pool.shutdown()
        return self.failure and f"{self.failure}; make room there, and start again: the run goes on from its last one"

    def load_checkpoint(self, path: str | Path, *_: object, **__: object) -> State:
        """Read a checkpoint of any strategy."""
        return read(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint, for Lightning's callbacks."""
        self.wait()
        _remove(Path(path))

    def _folder_attempt(self, path: Path, skeleton: State, tensors: Mapping[str, object]) -> Attempt:
        """Copy the tensors and let torch write them from a thread, on a group of gloo of their own."""
        if self._group is None:
            self._group = cast(distributed.ProcessGroup, distributed.new_group(backend="gloo", timeout=self._timeout))
        beside = path.with_name(f".{path.name}{_PARTIAL}")
        if _first():
            shutil.rmtree(beside, ignore_errors=True)
            with suppress(OSError):  # torch meets the same error when it writes there, and tells all processes
                beside.mkdir(parents=True)
        distributed.barrier(self._group)
        with sharding.quiet_saving():
            writer = FileSystemWriter(beside, sync_files=True)
            written = async_save(dict(tensors), storage_writer=writer, process_group=self._group)
        return partial(_finish_folder, cast("Future[object]", written), skeleton, beside, path)

    def _attempt(self, write: Attempt, path: Path) -> None:
        """Write, then let ``last.ckpt`` point there; or keep the reason why not."""
        try:
            write()
            if _first() and _STEP.fullmatch(path.name):
                _point(self._folder / LAST, path)
                _prune(self._folder / LAST, self._settings.keep)
            self.failure = None
        except (OSError, RuntimeError, CheckpointException) as error:
            _remove_partial(path)
            self.failure = f"{path} cannot be written ({_reason(error)})"
            goes_on = (
                "the run stops" if self.must_stop else "training goes on, and the next one is tried when it is due"
            )
            LOGGER.error(f"{self.failure}; older checkpoints are as they were, {goes_on}")


def _first() -> bool:
    return not parallel.running() or distributed.get_rank() == 0


def write_file(state: State, path: Path) -> None:
    """Write a state as a file that is whole or not there."""
    beside = path.with_name(f".{path.name}{_PARTIAL}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_state(state, beside)
    beside.replace(path)
    sync_folder(path.parent)


def _finish_folder(written: Future[object], skeleton: State, beside: Path, path: Path) -> None:
    """Complete a folder once all processes wrote their parts."""
    written.result()
    if _first():
        write_state(skeleton, beside / SKELETON)
        sync_folder(beside)
        _remove(path)  # of a step that a killed run had reached and not linked
        beside.replace(path)
        sync_folder(path.parent)


def write_state(state: State, path: Path) -> None:
    """Write a state, and wait until the disk has it."""
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def _point(link: Path, path: Path) -> None:
    """Let a relative link point to a checkpoint beside it, from one moment to the next."""
    beside = link.with_name(f".{link.name}{_PARTIAL}")
    beside.unlink(missing_ok=True)
    beside.symlink_to(path.name)
    beside.replace(link)
    sync_folder(link.parent)


def _prune(link: Path, keep: int) -> None:
    """Remove checkpoints of steps but the newest ``keep``, and what later steps left that are repeated."""
    newest = int(cast(re.Match[str], _STEP.fullmatch(link.resolve().name))[1])
    found = {int(match[1]): each for each in link.parent.iterdir() if (match := _STEP.fullmatch(each.name))}
    past = sorted((step for step in found if step <= newest), reverse=True)
    for step in [*past[keep:], *(step for step in found if step > newest)]:
        _remove(found[step])


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        aside = path.with_name(f".{path.name}.old{_PARTIAL}")  # never half a folder under a checkpoint's name
        shutil.rmtree(aside, ignore_errors=True)
        path.replace(aside)
        shutil.rmtree(aside)
    else:
        path.unlink(missing_ok=True)


def _remove_partial(path: Path) -> None:
    beside = path.with_name(f".{path.name}{_PARTIAL}")
    with suppress(OSError):
        shutil.rmtree(beside) if beside.is_dir() else beside.unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
    """First line of an error; of several processes' errors, the first one's."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (found, _) = next(iter(error.failures.items()))
        return f"process {rank}: {_reason(found)}"
    return (str(error).strip() or type(error).__name__).splitlines()[0]
