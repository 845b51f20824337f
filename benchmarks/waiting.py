"""Waiting threads of OpenMP, which torch computes with on a CPU: that spin, or that sleep, alone and beside other work.

    python benchmarks/waiting.py [--task step --task inference] [--way passive --way active] [--rounds 12]
                                 [--threads 2] [--most-seconds 120] [--data DIR] [--out docs/results/waiting.json]

Each way to wait has a process of its own, since libgomp reads its variables when it is loaded. The processes take
turns, in another random order each round, and are stopped (SIGSTOP) out of turn, so that no thread of theirs spins
into another's turn. Rounds alternate between "alone" and "beside a spinner": one busy process of one thread.

- **step**: a training step of `vggt overlays/tiny`, 8 images in memory. **inference**: `model(video)` of 24 frames,
  `checkpoints/unified-base`, without tracks and Gaussians.
- **times_default**: time of a turn ÷ that of libgomp's default in the same round, by the clock; median and quartiles.
- **others**: cores that all other processes took during turns, median; "alone" is as quiet as the machine was.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
WAYS: dict[str, dict[str, str]] = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "active": {"OMP_WAIT_POLICY": "active"},
    "spin 1,000": {"GOMP_SPINCOUNT": "1000"},
    "spin 10,000": {"GOMP_SPINCOUNT": "10000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
PLACES = ("alone", "beside a spinner")
TASKS = ("step", "inference")
WARM_UP = 2
FRAMES = 24


def training_step(data: Path) -> Callable[[], object]:
    """Step of the smallest config, its images in memory."""
    from benchmarks.loop import FIXED, Bare
    from four_d.config import load
    from four_d.training.parallel import World
    from four_d.training.run import RunData

    values = [*FIXED, f"data.sources.it.path={data}", "data.images_per_batch=8"]
    config = load(["vggt", "overlays/tiny"], values)
    return Bare(config, itertools.repeat(RunData(config, World()).training[0])).step


def inference(video: Path) -> Callable[[], object]:
    """Pass of the reference model over a video."""
    from benchmarks.inference import MODEL, prepared
    from four_d.inference import Request, Selection

    asked = Request(video=video, selection=Selection(max_frames=FRAMES), tracks=False)
    return partial(prepared(MODEL, "windows"), asked)


@contextmanager
def material(task: str, data: Path | None) -> Iterator[Path]:
    """Training data, or a video."""
    from benchmarks.inference import make_video
    from benchmarks.train import data_folder

    if task == "step":
        with data_folder(data, 8, 0) as folder:
            yield folder
    else:
        with tempfile.TemporaryDirectory() as folder:
            make_video(Path(folder) / "video.mp4", FRAMES, (64, 64))
            yield Path(folder) / "video.mp4"


def child(task: str, path: Path) -> None:
    """Do the task once for each line on stdin; print its seconds by the clock and of the processor."""
    run = training_step(path) if task == "step" else inference(path)
    for _ in range(WARM_UP):
        run()
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter(), time.process_time()
        run()
        print(json.dumps([time.perf_counter() - began[0], time.process_time() - began[1]]), flush=True)


@contextmanager
def waiting(task: str, ways: Sequence[str], threads: int, path: Path) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Processes of a task, one for each way to wait, stopped."""
    started: dict[str, subprocess.Popen[str]] = {}
    try:
        for way in ways:
            inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
            environment = {**inherited, "OMP_NUM_THREADS": str(threads), **WAYS[way]}
            command = [sys.executable, __file__, "--child", task, "--path", str(path)]
            one = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
            )
            started[way] = one
            if line_of(one) != "ready\n":
                sys.exit(f"{way}: the process ended")
            one.send_signal(signal.SIGSTOP)
        yield started
    finally:
        for one in started.values():
            one.kill()
            one.wait()


@contextmanager
def spinner(wanted: bool) -> Iterator[None]:
    """Busy process of one thread, if wanted."""
    one = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if wanted else None
    try:
        yield
    finally:
        if one is not None:
            one.kill()
            one.wait()


def line_of(one: subprocess.Popen[str]) -> str:
    """Next line that a process prints."""
    assert one.stdout is not None
    return one.stdout.readline()


def busy_seconds() -> float:
    """Processor seconds that the whole machine has worked since it started."""
    fields = [int(each) for each in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")  # without idle, and waiting for disks


class Turn(NamedTuple):
    """A task done once."""

    seconds: float
    processor_seconds: float
    others: float
    """Cores that all other processes took."""


def turn(one: subprocess.Popen[str]) -> Turn:
    """Let a process do its task once."""
    assert one.stdin is not None
    one.send_signal(signal.SIGCONT)
    began, busy = time.perf_counter(), busy_seconds()
    one.stdin.write("\n")
    one.stdin.flush()
    seconds, processor = json.loads(line_of(one))
    others = (busy_seconds() - busy - processor) / (time.perf_counter() - began)
    one.send_signal(signal.SIGSTOP)
    return Turn(seconds, processor, others)


def measure(task: str, settings: argparse.Namespace, path: Path) -> list[dict[str, Any]]:
    """Rows of a task: each way in each place."""
    ways = ["default", *(settings.way or list(WAYS)[1:])]
    found: dict[tuple[str, str], dict[int, Turn]] = {(place, way): {} for place in PLACES for way in ways}
    order = random.Random(0)
    with waiting(task, ways, settings.threads, path) as started:
        for number in range(settings.rounds):
            for place in PLACES:
                with spinner(place != PLACES[0]):
                    for way in order.sample(ways, len(ways)):
                        turns = found[place, way]
                        if way == "default" or sum(each.seconds for each in turns.values()) < settings.most_seconds:
                            turns[number] = turn(started[way])
                            print(place, way, turns[number], file=sys.stderr)
    return [row(place, way, turns, found[place, "default"]) for (place, way), turns in found.items()]


def row(place: str, way: str, turns: dict[int, Turn], default: dict[int, Turn]) -> dict[str, Any]:
    """Figures of a way in a place."""
    ratios = [each.seconds / default[number].seconds for number, each in turns.items()]
    low, middle, high = (round(float(each), 3) for each in np.percentile(ratios, [25, 50, 75]))
    medians = [round(statistics.median(each), 4) for each in zip(*turns.values(), strict=True)]
    times = {"median": middle, "quartile_1": low, "quartile_3": high}
    named = dict(zip(Turn._fields, medians, strict=True))
    return {"place": place, "way": way, "times_default": times, **named, "rounds": len(turns)}


def main() -> None:
    settings = parse().parse_args()
    if settings.child:
        child(settings.child, settings.path)
        return
    from benchmarks.generate import commit, processor
    from four_d.outputs import write_json

    told: dict[str, Any] = {"machine": f"{processor()}, {os.cpu_count()} cores", "threads": settings.threads}
    told |= {"commit": commit(), "command": shlex.join(["python", *sys.argv])}
    for task in settings.task or TASKS:
        before = os.getloadavg()
        with material(task, settings.data) as path:
            rows = measure(task, settings, path)
        for each in rows:
            print(json.dumps(each), flush=True)
        whole = json.loads(settings.out.read_text()) if settings.out.is_file() else {}
        write_json(settings.out, {**whole, task: {**told, "load": [before, os.getloadavg()], "rows": rows}})


def parse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, action="append", help="default: both")
    parser.add_argument("--way", choices=list(WAYS)[1:], action="append", help="beside the default; all if not given")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--most-seconds", type=float, default=120.0, help="of a way in a place, after which it is left")
    parser.add_argument("--data", type=Path, help="a data set's folder; made anew if not given")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/waiting.json")
    parser.add_argument("--child", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
