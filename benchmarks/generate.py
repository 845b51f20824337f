"""Speed of making synthetic clips, with all annotations and written to shards.

    python benchmarks/generate.py [--clips 12] [--cameras 4] [--frames 24] [--size 128] [--seed 1] [--bodies]

Figures are per minute of one core's processor time, so that other work on the machine matters little. Prints one JSON
object as its last line.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar
from unittest.mock import patch

from data_prep.synthetic import WorldSettings, cast, clip, clip_seed, generate, make, world
from four_d.data import shards

P = ParamSpec("P")
R = TypeVar("R")
STAGES = {
    "compose": (clip, "compose"),
    "moments": (clip, "make_moment"),
    "film": (clip, "film"),
    "develop": (clip, "develop"),
    "of compose: physics": (cast, "simulate"),
    "of compose: cameras": (world, "choose_cameras"),
    "encode": (shards, "encode_clip"),
}


def timed(function: Callable[P, R], spent: dict[str, float], stage: str) -> Callable[P, R]:
    """The same function; its processor time is added to ``spent``."""

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent[stage] = spent.get(stage, 0.0) + time.process_time() - start

    return wrapper


def measure(clips: int, seed: int, settings: WorldSettings) -> dict[str, object]:
    """Make one shard in this process."""
    generate(clip_seed(seed, 999, 0), settings)  # imports and first allocations
    spent: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as patches:
        for stage, (module, name) in STAGES.items():
            patches.enter_context(patch.object(module, name, timed(getattr(module, name), spent, stage)))
        cpu, wall = time.process_time(), time.perf_counter()
        manifest = make(Path(folder), range(1), seed, clips_per_shard=clips, settings=settings)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    assert manifest is not None
    return {
        "clips_per_core_minute": round(60 * clips / cpu, 1),
        "cpu_s_per_clip": round(cpu / clips, 3),
        "wall_s_per_clip": round(wall / clips, 3),
        "cpu_s_per_clip_by_stage": {stage: round(s / clips, 3) for stage, s in spent.items()},
        "bytes_per_clip": manifest.bytes // clips,
    }


def commit() -> str:
    found = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("clips", 12), ("cameras", 4), ("frames", 24), ("size", 128), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--bodies", action="store_true", help="clips of articulated bodies")
    arguments = parser.parse_args()
    settings = WorldSettings(
        cameras=arguments.cameras,
        frames=arguments.frames,
        width=arguments.size,
        height=arguments.size,
        bodies=arguments.bodies,
    )
    figures = {
        "benchmark": "generate",
        **{name: getattr(arguments, name) for name in ("clips", "cameras", "frames", "size", "bodies")},
        **measure(arguments.clips, arguments.seed, settings),
        "seeds": [clip_seed(arguments.seed, 0, 0), clip_seed(arguments.seed, 0, arguments.clips - 1)],
        "machine": f"{processor()}, {platform.system()}, Python {platform.python_version()}",
        "commit": commit(),
        "command": shlex.join(["python", *sys.argv]),
    }
    print(json.dumps(figures, ensure_ascii=False))


if __name__ == "__main__":
    main()
