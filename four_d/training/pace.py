"""Times of steps, in bounded memory and without waiting for the device, and the memory that a process takes."""

from __future__ import annotations

import importlib.util
import math
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

RATIO, LOWEST = 1.05, 1e-6
"""Upper over lower edge of a histogram's bucket, and the first one's lower edge."""
GB = 1e9


class Histogram:
    """Numbers of durations by buckets, each 5 % wide, so that memory does not depend on how many there are."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.most = 0.0
        """Largest duration."""

    def add(self, value: float, count: int = 1) -> None:
        """Add a duration, so many times."""
        bucket = max(0, math.floor(math.log(max(value, LOWEST) / LOWEST, RATIO) + 1e-9))
        self._counts[bucket] = self._counts.get(bucket, 0) + count
        self.most = max(self.most, value)

    def __len__(self) -> int:
        return sum(self._counts.values())

    def quantile(self, share: float) -> float:
        """Duration that this share of all do not exceed, within half a bucket; NaN without any."""
        wanted, seen = share * len(self), 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= wanted:
                return min(_edge(bucket + 0.5), self.most)
        return math.nan

    def buckets(self) -> tuple[list[float], list[int]]:
        """Edges, ascending, and counts between them, from the first to the last bucket with any."""
        first, last = (min(self._counts), max(self._counts)) if self._counts else (0, -1)
        numbers = range(first, last + 1)
        return [_edge(float(each)) for each in range(first, last + 2)], [self._counts.get(each, 0) for each in numbers]

    def restore(self, edges: Sequence[float], counts: Sequence[int], most: float) -> None:
        """Add what `buckets` gave, and the largest duration."""
        for edge, count in zip(edges, counts):
            if count:
                self.add(edge, count)
        self.most = max(self.most, most)


def _edge(bucket: float) -> float:
    return LOWEST * RATIO**bucket


@runtime_checkable
class StepClock(Protocol):
    """Clock of steps, from the arrival of a step's batch to the end of its update."""

    def begin(self) -> None:
        """Mark a step's beginning."""
        ...

    def end(self) -> None:
        """Mark its end."""
        ...

    def take(self) -> list[float]:
        """Durations in seconds of steps that the device has done, each given once; it waits for none."""
        ...


class HostClock:
    """`StepClock` of a device whose work is done when its calls return."""

    def __init__(self) -> None:
        self._began, self._done = 0.0, list[float]()

    def begin(self) -> None:
        """Mark a step's beginning."""
        self._began = time.monotonic()

    def end(self) -> None:
        """Mark its end."""
        self._done.append(time.monotonic() - self._began)

    def take(self) -> list[float]:
        """Durations of the steps since the last call."""
        taken, self._done = self._done, []
        return taken


class CudaClock:
    """`StepClock` of events in CUDA's stream: their times are asked for once the device has passed them."""

    def __init__(self) -> None:
        self._began = torch.cuda.Event(enable_timing=True)
        self._marks = deque[tuple[torch.cuda.Event, torch.cuda.Event]]()

    def begin(self) -> None:
        """Mark a step's beginning."""
        self._began = torch.cuda.Event(enable_timing=True)
        self._began.record()

    def end(self) -> None:
        """Mark its end."""
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        self._marks.append((self._began, mark))

    def take(self) -> list[float]:
        """Durations of the steps that are done."""
        taken: list[float] = []
        while self._marks and self._marks[0][1].query():
            begin, end = self._marks.popleft()
            taken.append(begin.elapsed_time(end) / 1000)
        return taken


def clock_of(device: torch.device) -> StepClock:
    """Clock of steps on a device."""
    return CudaClock() if device.type == "cuda" else HostClock()


def memory(device: torch.device) -> dict[str, float]:
    """Memory in 10⁹ bytes: of this process on the host, now and at most, and on CUDA what its tensors take there.

    The device's peak is that since the last call.
    """
    found: dict[str, float] = {}
    if importlib.util.find_spec("resource") is not None:  # Windows has none
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        statm = Path("/proc/self/statm")
        now = int(statm.read_text().split()[1]) * resource.getpagesize() if statm.is_file() else used
        found = {"host_memory_gb": now / GB, "host_memory_peak_gb": max(now, used) / GB}  # the latter lags behind
    if device.type == "cuda":
        found["device_memory_gb"] = torch.cuda.memory_allocated(device) / GB
        found["device_memory_peak_gb"] = torch.cuda.max_memory_allocated(device) / GB
        torch.cuda.reset_peak_memory_stats(device)
    return found
