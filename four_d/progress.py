"""Progress of long work: a bar with rate, time left and figures on a terminal; a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

LOG_EVERY_S = 15.0
"""Seconds between lines where there is no terminal."""


class Bar:
    """One running bar: call `advance` as work gets done."""

    def __init__(self, description: str, total: int, unit: str, bars: Progress | None, *, silent: bool = False) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._bars, self._silent = bars, silent
        self._task: TaskID | None = bars.add_task(description, total=total, figures="") if bars else None
        self._done = self._begun = 0
        self._start = self._last = time.monotonic()

    def advance(self, count: int = 1, **figures: float | str) -> None:
        """``count`` more are done; ``figures`` (loss=0.3) stand beside the rate."""
        self._done += count
        now = time.monotonic()
        rate = (self._done - self._begun) / max(now - self._start, 1e-9)
        text = f"{rate:.3g} {self._unit}/s " + " ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items()
        )
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, advance=count, figures=text)
        elif not self._silent and (
            now - self._last >= LOG_EVERY_S or (self._done == self._total and now - self._start > 2)
        ):
            self._last = now
            left = (self._total - self._done) / max(rate, 1e-9)
            print(
                f"{self._description}: {self._done}/{self._total} {text.strip()} {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def expect(self, total: int) -> None:
        """The work is now thought to be ``total`` units."""
        self._total = total
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, total=total)

    def resume(self, done: int) -> None:
        """``done`` were done in an earlier run; they do not count for the rate."""
        self._done = self._begun = done
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done)


@contextmanager
def progress(description: str, total: int, unit: str = "item", *, shown: bool = True) -> Generator[Bar]:
    """Show the progress of ``total`` units of work on stderr; nothing where ``shown`` is False (other ranks)."""
    console = Console(stderr=True)
    if not (shown and console.is_terminal):
        yield Bar(description, total, unit, None, silent=not shown)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console) as bars:
        yield Bar(description, total, unit, bars)
