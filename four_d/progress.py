"""Progress of long work: a bar with rate, time left and figures on a terminal; periodic lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

LOG_EVERY_S = 15.0
"""Seconds between lines without a terminal."""
FIRST_ESTIMATE = 10
"""Units after which the first line estimates the duration, unless that is below `LOG_EVERY_S`."""


class Bar:
    """Running progress bar; call `advance` as work gets done."""

    def __init__(self, description: str, total: int, unit: str, bars: Progress | None, *, silent: bool = False) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._bars, self._silent = bars, silent
        self._task: TaskID | None = bars.add_task(description, total=total, figures="") if bars else None
        self._done = 0
        self._opened = self._last = time.monotonic()
        self._first: tuple[int, float] | None = None
        self._begun = 0
        self._estimated = False

    def advance(self, count: int = 1, **figures: float | str) -> None:
        """Add ``count`` done units; ``figures`` (loss=0.3) are shown beside the rate.

        The rate is measured after the first call, which includes all one-time work.
        """
        self._done += count
        now = time.monotonic()
        if self._first is None:
            self._first = self._done, now
        rate = (self._done - self._first[0]) / max(now - self._first[1], 1e-9)
        parts = [f"{rate:.3g} {self._unit}/s"] if rate else []
        parts += [f"{name} {f'{value:.4g}' if isinstance(value, float) else value}" for name, value in figures.items()]
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, advance=count, figures=" ".join(parts))
        elif not self._silent:
            self._log(now, rate, parts)

    def _log(self, now: float, rate: float, parts: list[str]) -> None:
        """Write a line if it is due."""
        left = (self._total - self._done) / rate if rate else None
        first = not self._estimated and self._done - self._begun >= FIRST_ESTIMATE and left is not None
        self._estimated |= first
        over = self._done == self._total and now - self._opened > 2
        if now - self._last >= LOG_EVERY_S or (first and left is not None and left >= LOG_EVERY_S) or over:
            self._last = now
            parts = [*parts, *([] if left is None else [f"{left:.0f} s left"])]
            print(f"{self._description}: {self._done}/{self._total} {' '.join(parts)}", file=sys.stderr, flush=True)

    def expect(self, total: int) -> None:
        """Change the expected total to ``total`` units."""
        self._total = total
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, total=total)

    def resume(self, done: int) -> None:
        """Start from ``done`` units of an earlier run, which do not count for the rate."""
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
