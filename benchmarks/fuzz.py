"""Ten thousand damaged data sets: no crash, no hang, nothing written elsewhere, memory bounded.

    python benchmarks/fuzz.py [--trials 10000] [--first 0] [--out docs/results/fuzz.json]

Each trial damages a sound set by its seed (`tests/data/damage.py`), then opens, reads and prepares it as a run does;
every tenth is checked and drawn too (`tests/data/fuzzing.py`). Allocations beyond 1 GiB above the start fail.
The figures are written after every hundred trials; run again, it goes on from the file.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from four_d.errors import UserError
from four_d.outputs import write_json
from tests.data.fuzzing import run

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
    figures = _begun(arguments.out, arguments.first)
    before = peak()
    last_seed = arguments.first + arguments.trials
    for first in range(arguments.first + figures["trials"], last_seed, BLOCK):
        started = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            tally = run(range(first, min(first + BLOCK, last_seed)), Path(folder))
        for name, counted in (("kinds", tally.kinds), ("outcomes", tally.outcomes)):
            figures[name] = dict(sorted((Counter(figures[name]) + counted).items()))
        figures["trials"] += tally.trials
        figures["crashes"] += tally.crashes
        figures["slowest_trial_cpu_s"] = max(figures["slowest_trial_cpu_s"], round(tally.slowest_s, 2))
        figures["cpu_s"] = round(figures["cpu_s"] + time.process_time() - started, 1)
        above = round((peak() - before) / 2**20)
        figures["peak_memory_above_start_mib"] = max(figures["peak_memory_above_start_mib"], above)
        if arguments.out is not None:
            write_json(arguments.out, figures)
        print(f"{figures['trials']} trials, {figures['outcomes']}, {len(figures['crashes'])} crashes", flush=True)
    print(json.dumps(figures, indent=2))


def _begun(path: Path | None, first: int) -> dict[str, Any]:
    """Read the figures so far of the trials from seed ``first`` on."""
    if path is not None and path.exists():
        figures = json.loads(path.read_text())
        if figures["first_seed"] != first:
            raise UserError(f"{path} begins at seed {figures['first_seed']}, not {first}: name another file")
        return figures
    return {
        "first_seed": first,
        "trials": 0,
        "kinds": {},
        "outcomes": {},
        "crashes": [],
        "slowest_trial_cpu_s": 0.0,
        "cpu_s": 0.0,
        "peak_memory_above_start_mib": 0,
    }


def peak() -> int:
    """Largest resident memory so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
