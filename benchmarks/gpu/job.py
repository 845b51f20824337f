"""Input of a section, and how it times and records."""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Job:
    """One section's order. ``tiny``: sizes that a CPU computes in seconds, to rehearse."""

    device: torch.device
    tiny: bool
    compiles: bool
    """False on a pretended device, which has nothing to compile for."""
    record: Path
    """File of JSON lines, to append to: what was measured stays when the section is stopped."""
    deadline: float
    """On `time.monotonic`'s clock."""

    @property
    def left(self) -> float:
        """Seconds until the section is stopped."""
        return self.deadline - time.monotonic()

    def put(self, table: str, **row: Any) -> None:  # noqa: ANN401 - anything that JSON takes
        """Record a row of a table at once."""
        with self.record.open("a") as file:
            file.write(json.dumps([table, row]) + "\n")
        print(table, *(f"{name}={_short(value)}" for name, value in row.items()), flush=True)

    @contextmanager
    def attempt(self, table: str, **row: Any) -> Generator[dict[str, Any]]:  # noqa: ANN401
        """Record ``row`` and what the block adds to it; if it fails, why, and go on."""
        try:
            yield row
        except Exception as error:  # a measurement that fails is a result
            row["failed"] = reason(error)
            if self.device.type == "cuda" and not isinstance(error, torch.OutOfMemoryError):
                self.put(table, **row)
                row = {}
                torch.cuda.synchronize()  # raises again where the device is lost, which ends the section
        if row:
            self.put(table, **row)

    def done(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object], *, most: int = 7, enough: float = 1.5, warm: bool = False) -> float:
        """Median time of a call: up to ``most`` calls, or as many as fill ``enough`` seconds. First one not counted."""
        if not warm:
            run()
            self.done()
        times: list[float] = []
        while not times or (len(times) < most and sum(times) < enough):
            begin = time.perf_counter()
            run()
            self.done()
            times.append(time.perf_counter() - begin)
        return statistics.median(times)

    def peak(self, run: Callable[[], object]) -> int | None:
        """Most bytes that the allocator gave out during a call, with what is held before; None on a CPU."""
        return self.measure(run, most=0)[1]

    def measure(self, run: Callable[[], object], *, most: int = 5) -> tuple[float, int | None]:
        """Time and `peak` of a call that has run before; the median of more calls where it takes under a second."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        run()
        self.done()
        spent = time.perf_counter() - begin
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None
        return self.seconds(run, most=most, enough=1.0, warm=True) if most and spent < 1 else spent, peak

    def matrix_rate(self, dtype: torch.dtype = torch.bfloat16) -> float:
        """Operations per second of a large product of random matrices: the limit that rates are compared with."""
        side = 256 if self.tiny else 8192
        one, two = (torch.randn(side, side, device=self.device).to(dtype) for _ in range(2))
        calls = 2 if self.tiny else 20 if dtype == torch.bfloat16 else 5

        def products() -> None:
            for _ in range(calls):
                torch.mm(one, two)

        return calls * 2 * side**3 / self.seconds(products)


def beside_package(name: str) -> ModuleType:
    """Load ``tests/NAME.py`` alone: the package `tests` would check the types of every call, which takes time."""
    spec = importlib.util.spec_from_file_location(f"{name}_alone", ROOT / f"tests/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def reason(error: BaseException) -> str:
    """Kind and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
