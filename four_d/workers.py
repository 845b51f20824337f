"""Worker processes: start without forking this process, signal handling, and description of their exit."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, SpawnContext

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that a terminal or a cluster sends to every process of a job; the workers' parent handles them."""
PRELOADED = ["four_d.data.loading"]
"""Modules that the server imports once, so that workers start in milliseconds and share its memory."""


def context() -> ForkServerContext | SpawnContext:
    """Start method of every worker process of this project.

    Never by a fork of this process: it has threads (torch's, wandb's, embree's), and a lock that one of them holds at
    that moment stays locked in the child for ever. As always but with fork, a script that gets here needs
    ``if __name__ == "__main__":``.

    Workers hold `SIGNALS` back, so they end when they are told to or killed: close and join a pool before leaving it.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    chosen = multiprocessing.get_context("forkserver")
    chosen.set_forkserver_preload(PRELOADED)
    resource_tracker.ensure_running()  # before the signals are held: starting it lets SIGINT and SIGTERM through again
    with _held():
        forkserver.ensure_running()
    return chosen


@contextmanager
def _held() -> Generator[None]:
    """Block signals; processes started meanwhile keep them blocked until they call `ignore_signals`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_signals() -> None:
    """Ignore signals from now on; call it first in a worker. SIGKILL, or its parent's end, ends it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def describe_exit(exit_code: int | None) -> str:
    """Describe a process's end, and the usual cause, for an error message."""
    if exit_code is not None and exit_code < 0:
        return (
            f"was killed by {signal.Signals(-exit_code).name}; most often memory had run out (the machine's, the "
            f"job's, or /dev/shm of a container)"
        )
    return (
        f"ended with exit code {exit_code}; what it said stands above (a script that starts workers needs "
        f'`if __name__ == "__main__":`)'
    )
