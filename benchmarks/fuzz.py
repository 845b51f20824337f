"""Ten thousand damaged data sets: no crash, no hang, nothing written elsewhere, memory bounded.

    python benchmarks/fuzz.py [--trials 10000] [--first 0] [--out docs/results/fuzz.json]

Each trial damages a sound set by its seed (`tests/data/damage.py`), then opens, reads and prepares it as a run does;
every tenth is checked and drawn too (`tests/data/fuzzing.py`). Allocations beyond 1 GiB above the start fail.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import torch

from four_d.outputs import write_json
from tests.data.fuzzing import Tally, run

ROOM = 2**30
BLOCK = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000, help="number of damaged sets")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--out", type=Path, default=None, help="file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    before, total, started = peak(), Tally(), time.process_time()
    for first in range(arguments.first, arguments.first + arguments.trials, BLOCK):
        last = min(first + BLOCK, arguments.first + arguments.trials)
        with tempfile.TemporaryDirectory() as folder:
            tally = run(range(first, last), Path(folder))
        total.trials += tally.trials
        total.kinds += tally.kinds
        total.outcomes += tally.outcomes
        total.crashes += tally.crashes
        total.slowest_s = max(total.slowest_s, tally.slowest_s)
        print(f"{total.trials} trials, {dict(total.outcomes)}, {len(total.crashes)} crashes", flush=True)
    figures = {
        "first_seed": arguments.first,
        "trials": total.trials,
        "kinds": dict(sorted(total.kinds.items())),
        "outcomes": dict(sorted(total.outcomes.items())),
        "crashes": total.crashes,
        "slowest_trial_cpu_s": round(total.slowest_s, 2),
        "cpu_s": round(time.process_time() - started, 1),
        "peak_memory_above_start_mib": round((peak() - before) / 2**20),
    }
    print(json.dumps(figures, indent=2))
    if arguments.out is not None:
        write_json(arguments.out, figures)


def peak() -> int:
    """Largest resident memory so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
