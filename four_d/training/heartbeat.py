"""Files by which the processes of a run see how far each of them is, and name the one that others wait for."""
# ruff: noqa: ARG002  # Lightning passes a hook all its arguments by position

from __future__ import annotations

import faulthandler
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from four_d.data.loading import Step
from four_d.training.parallel import World

LOGGER = logging.getLogger(__name__)

PROCESSES = "processes"
"""Folder in a run's folder for what processes write about themselves."""
LOOKS = 4
"""Looks at the files within the time after which a process is named."""


@dataclass(frozen=True, kw_only=True)
class Beat:
    """Report of a process on itself."""

    rank: int
    host: str
    pid: int
    place: int = 0
    """Number of places in the loop that it has reached, which all processes reach in the same order."""
    doing: str = "starting"
    alive: int = 0
    """Number of times that it has said so."""

    def __str__(self) -> str:
        return f"process {self.rank} ({self.host}, pid {self.pid})"


class Watcher:
    """Judge of the beats of all processes, by this process's own clock: those of other machines may differ."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._moved: dict[int, tuple[int, float]] = {}
        self._alive: dict[int, tuple[int, float]] = {}

    def stopped(self, beats: Mapping[int, Beat], now: float) -> list[Beat]:
        """Processes that the others wait for; all of them where none is behind; none where some moved lately.

        A process that says nothing any more is named whatever the others do.
        """
        for rank, beat in beats.items():
            for known, value in ((self._moved, beat.place), (self._alive, beat.alive)):
                if rank not in known or known[rank][0] != value:
                    known[rank] = (value, now)
        silent = [beat for rank, beat in beats.items() if now - self._alive[rank][1] > self._seconds]
        if silent or any(now - self._moved[rank][1] <= self._seconds for rank in beats):
            return silent
        least = min(beat.place for beat in beats.values())
        return [beat for beat in beats.values() if beat.place == least]


class Heartbeat(Callback):
    """Callback that writes this process's file while a thread watches those of all.

    A process that stops is named on stderr within one and a half times ``seconds``, from the end of the first step on:
    before, each compiles for as long as it takes. The processes that still run then write their stacks beside.
    """

    def __init__(self, folder: Path, world: World, seconds: float) -> None:
        self._folder, self._world, self._seconds = folder / PROCESSES, world, seconds
        self._beat = Beat(rank=world.rank, host=socket.gethostname(), pid=os.getpid())
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._told: tuple[int, ...] = ()

    def reach(self, doing: str) -> None:
        """Note the place that the loop has reached."""
        self._beat = replace(self._beat, place=self._beat.place + 1, doing=doing)

    def start(self) -> None:
        """Begin to write and to watch."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        self._thread.start()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Step, batch_idx: int
    ) -> None:
        """Have the batch."""
        self.reach(f"in the forward pass of step {batch.index + 1}")

    def on_before_backward(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: Tensor
    ) -> None:
        """Begin a backward pass, in which processes meet."""
        self.reach("in a backward pass, or in what follows it")

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Step,
        batch_idx: int,
    ) -> None:
        """Wait for the next batch."""
        self.reach(f"loading the clips of step {batch.index + 2}, or saving")
        if self._thread is None:
            self.start()

    def on_validation_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Step,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Have a clip of the validation."""
        self.reach(f"in validation, clip {batch_idx + 1}")

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Go on with training."""
        self.reach("after a validation")

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """End the watch."""
        self.close()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """End the watch."""
        self.close()

    def close(self) -> None:
        """End the thread, and remove this process's file: the others need not wait for it."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self._file(self._world.rank).unlink(missing_ok=True)

    def _file(self, rank: int) -> Path:
        return self._folder / f"rank-{rank:05d}.json"

    def _watch(self) -> None:
        watcher = Watcher(self._seconds)
        while not self._ended.wait(self._seconds / LOOKS):
            try:
                self._write()
                self._judge(watcher.stopped(self._read(), time.monotonic()))
            except OSError as error:  # a full disk must not end what watches
                LOGGER.warning(f"the heartbeat of process {self._world.rank} cannot be written ({error.strerror})")
                return

    def _write(self) -> None:
        self._beat = replace(self._beat, alive=self._beat.alive + 1)
        beside = self._folder / f".rank-{self._world.rank:05d}.json"
        beside.write_text(json.dumps(asdict(self._beat)))
        beside.replace(self._file(self._world.rank))

    def _read(self) -> dict[int, Beat]:
        """Beats of all processes that have a file."""
        found: dict[int, Beat] = {}
        for rank in range(self._world.size):
            try:
                found[rank] = Beat(**json.loads(self._file(rank).read_text()))
            except (OSError, ValueError, TypeError):  # not begun, or over
                continue
        return found

    def _judge(self, stopped: list[Beat]) -> None:
        """Report those that stopped, once, from the first of the others."""
        ranks = tuple(beat.rank for beat in stopped)
        if ranks == self._told:
            return
        self._told = ranks
        if not ranks:
            return
        stacks = self._folder / f"rank-{self._world.rank:05d}.stacks.txt"
        with stacks.open("w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        others = [rank for rank in range(self._world.size) if rank not in ranks]
        if self._world.rank == (others[0] if others else 0):
            LOGGER.error(describe(stopped, self._world.size, self._seconds, self._folder))


def describe(stopped: list[Beat], size: int, seconds: float, folder: Path) -> str:
    """Line about the processes that stopped."""
    stacks = f"what the others do is in {folder}/rank-*.stacks.txt"
    if len(stopped) == size:
        return f"no process has moved for {seconds:g} s: all are {stopped[0].doing}; {stacks}"
    named = ", ".join(f"{beat}, last {beat.doing}" for beat in stopped)
    return f"the others have waited {seconds:g} s or more for {named}; {stacks}"


def record_flights(folder: Path, environment: Callable[[str, str], object] = os.environ.setdefault) -> None:
    """Let torch record the last collectives of NCCL, and write them to ``folder``/processes when one times out.

    It must be called before processes meet. ``torchfrtrace`` reads the files.
    """
    place = str((folder / PROCESSES / "collectives-").absolute())
    settings = {"BUFFER_SIZE": "2000", "DUMP_ON_TIMEOUT": "1", "DUMP_TEMP_FILE": place}
    older = {"BUFFER_SIZE": "TRACE_BUFFER_SIZE", "DUMP_TEMP_FILE": "DEBUG_INFO_TEMP_FILE"}
    for name, value in settings.items():
        environment(f"TORCH_FR_{name}", value)
        environment(f"TORCH_NCCL_{older.get(name, name)}", value)  # of torch 2.10
    (folder / PROCESSES).mkdir(parents=True, exist_ok=True)
