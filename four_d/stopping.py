"""Termination signals as exceptions, so that partial files are removed and resources released."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = tuple(number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None)


@contextmanager
def stopping_cleanly() -> Generator[None]:
    """Let SIGTERM and SIGHUP raise SystemExit(128 + the signal's number), once, in the main thread of this process.

    Nothing changes in other threads, in processes forked meanwhile, and for signals with a handler.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()
    taken = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_DFL]

    def stop(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001  # signal.signal asks for two arguments
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        for each in taken:  # a second one must not interrupt the clean-up
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
