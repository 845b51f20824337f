"""Formats of an export beside the model as it runs here: sizes, largest differences, speed.

    python benchmarks/export.py                        # the best reference model, all formats: docs/results/export.json
    python benchmarks/export.py --model DIR --format onnx

What is in the file stays until it is measured again. A format that cannot express the model is recorded with the
reason. It prints the rows of the table in docs/inference.md.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.generate import commit, processor  # noqa: E402
from four_d.errors import UserError  # noqa: E402
from four_d.exporting import FORMATS, NOTE, export  # noqa: E402

MODEL = ROOT / "checkpoints/unified-base"


def measure(model: Path, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Facts of the model's programs, and the figures of each format; of one that is refused, why."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            note = json.loads((export(model, Path(folder) / "model", formats=names) / NOTE).read_text())
        except UserError as error:
            if len(names) == 1:
                return {}, {names[0]: {"refused": str(error)}}
            alone = [measure(model, [name]) for name in names]
            return {key: value for facts, _ in alone for key, value in facts.items()}, {
                name: figures for _, found in alone for name, figures in found.items()
            }
    facts = {key: note[key] for key in ("torch", "input", "shapes", "frames", "traced_frames", "tolerance")}
    return facts, {name: note["formats"][name] for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--format", choices=FORMATS, action="append", help="default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/export.json")
    arguments = parser.parse_args()
    found = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    provenance = {
        "machine": f"{processor()}, {torch.get_num_threads()} threads",
        "commit": commit(),
        "command": shlex.join(["python", *sys.argv]),
    }
    facts, measured = measure(arguments.model, arguments.format or FORMATS)
    found |= {"model": arguments.model.name, **facts}
    for name, figures in measured.items():
        found.setdefault("formats", {})[name] = {**figures, **provenance}
        print(row(name, figures), flush=True)
    arguments.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def row(name: str, figures: dict[str, Any]) -> str:
    """Row of the table in docs/inference.md."""
    if "refused" in figures:
        return f"| `{name}` | refused: {figures['refused']} | | | |"
    differences = figures["differences"]
    worst = max(differences, key=lambda each: differences[each]["relative"])
    size, most = figures["bytes"] / 1e6, differences[worst]
    speed = f"{figures['times_eager']:.2f}" if "times_eager" in figures else "the same code"
    return f"| `{name}` | {size:.1f} MB | {most['relative']:.1e} (`{worst}`) | {most['absolute']:.1e} | {speed} |"


if __name__ == "__main__":
    main()
