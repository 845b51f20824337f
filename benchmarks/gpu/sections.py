"""The sections, in the order in which they run."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from benchmarks.gpu.job import Job


@dataclass(frozen=True)
class Section:
    """Command of a section, and its time box."""

    place: str
    """``module:function`` below `benchmarks.gpu`."""
    box: float
    """Seconds after which it is stopped; what it recorded until then counts."""
    draws: bool = False
    """True if it needs gsplat's kernels."""

    def load(self) -> Callable[[Job], None]:
        """Import the function."""
        module, name = self.place.split(":")
        return cast(Callable[[Job], None], getattr(importlib.import_module(f"benchmarks.gpu.{module}"), name))


SECTIONS = {
    "rates": Section("rates:run", 40),
    "vggt": Section("vggt:eager", 130),
    "dgs_lrm": Section("dgs_lrm:run", 90),
    "attention": Section("attention:run", 80),
    "vggt_train": Section("vggt:train", 80),
    "vggt_compiled": Section("vggt:compiled", 150),
    "tests": Section("suite:run", 50, draws=True),
    "splats": Section("splats:run", 50, draws=True),
    "step": Section("step:run", 80, draws=True),
}
"""Together 750 s. gsplat compiles meanwhile, and those that need it come last."""
