"""How often a step of training waits for a CUDA device, counted on a pretended one (`tests.pretend_cuda`), by config.

    python benchmarks/host_waits.py [CONFIG …] [--out docs/results/scaling.json]

Each config trains at the smallest sizes, is validated, resumed, exported, evaluated or run on a video; a device error
ends the script. The waits of one step and of one that also records its figures go into the file, with what they are
for; other keys of the file stay. Configs that draw Gaussians are counted once as with gsplat, for whose kernels a
stand-in draws, and once in plain torch (``CONFIG:torch``).
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.on_cuda import CONFIGS, DRAWN, IN_TORCH, Report, run  # noqa: E402, I001 - before four_d, which they check
from tests.pretend_cuda import lacking  # noqa: E402
from benchmarks.generate import commit, processor  # noqa: E402

EVERY = (*CONFIGS, *(f"{name}{IN_TORCH}" for name in DRAWN), "references")


def counted(report: Report) -> dict[str, object]:
    """Figures of a config."""
    return {
        "step": len(report.waits),
        "recorded_step": len(report.recorded),
        "for": dict(Counter(report.waits)),
        "float64": report.doubles,
        "operations": report.operations,
        "done": report.done,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="*", default=EVERY, help=f"among {', '.join(EVERY)}")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/scaling.json")
    arguments = parser.parse_args()
    reason = lacking()
    if reason is not None:
        sys.exit(reason)
    found = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    for name in arguments.configs:
        with tempfile.TemporaryDirectory() as folder:
            report = run(name, Path(folder))
        print(
            f"{name}: {len(report.waits)} waits a step, {len(report.recorded)} with figures; {', '.join(report.done)}"
        )
        found.setdefault("host_waits", {})[name] = counted(report)
        passed = [each for each in EVERY if each in found["host_waits"]]
        found["pretend_cuda_configs"] = passed
        steps = {each: figures["step"] for each, figures in found["host_waits"].items() if each != "references"}
        found["host_waits_per_step"] = steps
        found["host_waits_provenance"] = {
            "machine": f"{processor()}, {platform.system()}, torch {torch.__version__}, no GPU: a pretended one",
            "commit": commit(),
            "command": shlex.join(["python", *sys.argv]),
        }
        arguments.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
