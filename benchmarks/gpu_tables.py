"""Figures of ``benchmarks/gpu.sh`` as tables in docs/scaling.md, between two markers.

    python benchmarks/gpu_tables.py [OUT/gpu.json] [--print]

Given a file, it is copied to docs/results/gpu.json first; without one the tables are made of what is there. Figures of
a rehearsal are printed at most, never written.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs/results/gpu.json"
PAGE = ROOT / "docs/scaling.md"
BEGIN, END = "<!-- gpu: begin, by benchmarks/gpu_tables.py -->", "<!-- gpu: end -->"
NOTHING = "**Nothing has been measured on a GPU yet.** The script is written and rehearsed; no figure of it exists."
Row = dict[str, Any]


def rows(found: Row, section: str, table: str) -> list[Row]:
    """Rows of a section's table."""
    return found["sections"].get(section, {}).get("figures", {}).get(table, [])


def one(every: Iterable[Row], **like: Any) -> Row:  # noqa: ANN401 - whatever JSON has
    """Last row with these values; an empty one if there is none."""
    return next((row for row in [*every][::-1] if all(row.get(name) == value for name, value in like.items())), {})


def number(row: Row, name: str, scale: float = 1.0, form: str = ".3g") -> str:
    """Figure of a row as text; the reason where it failed, a dash where it is missing."""
    if row.get("failed") and row.get(name) is None:
        return "failed" if "no time" not in row["failed"] else "no time"
    return "–" if row.get(name) is None else format(row[name] * scale, form)


def table(title: str, heads: list[str], lines: list[list[str]]) -> str:
    """A Markdown table under its title; nothing without lines."""
    if not lines:
        return ""
    marks = [heads, ["---"] * len(heads), *lines]
    return "\n".join([title, "", *(f"| {' | '.join(line)} |" for line in marks)])


def forward(found: Row) -> str:
    """Time, memory and utilisation of VGGT-1B."""
    eager, compiled = (rows(found, name, "forward") for name in ("vggt", "vggt_compiled"))
    lines: list[list[str]] = []
    for frames in sorted({row["frames"] for row in [*eager, *compiled]}):
        alone = one(eager, frames=frames, part="backbone")
        paper = alone.get("paper") or (None, None)
        line = [str(frames), "–" if paper[0] is None else f"{paper[0]:g}", "–" if paper[1] is None else f"{paper[1]:g}"]
        line += [number(alone, "seconds"), number(alone, "bytes", 1e-9), number(alone, "utilisation", 100, ".0f")]
        for part, every in (("backbone", compiled), ("model", eager), ("model", compiled)):
            row = one(every, frames=frames, part=part)
            line += [number(row, "seconds"), number(row, "utilisation", 100, ".0f")]
        half = one(compiled, frames=frames, part="model, heads in bf16")
        lines.append([*line, number(half, "seconds"), number(half, "utilisation", 100, ".0f")])
    heads = ["frames", "paper: backbone, s", "GB", "backbone, s", "GB", "%", "compiled, s", "%"]
    heads += ["whole model, s", "%", "compiled, s", "%", "and heads in bf16, s", "%"]
    title = (
        "VGGT-1B's size, random weights, 336 × 518, bf16; %: of the matrix rate above. The paper's table 9 is of an "
        "H100 with FlashAttention 3:"
    )
    return table(title, heads, lines)


def train(found: Row) -> str:
    """Training steps of VGGT-1B."""
    every = rows(found, "vggt_train", "train")
    lines = [
        [
            *(str(row["frames"]), "compiled" if row["compiled"] else "eager"),
            *(number(row, "seconds"), number(row, "bytes", 1e-9), number(row, "utilisation", 100, ".0f")),
        ]
        for row in every
    ]
    title = "Its training step: forward, backward with recomputed blocks, AdamW's update:"
    return table(title, ["frames", "blocks", "s", "GB", "%"], lines)


def reconstruction(found: Row) -> str:
    """DGS-LRM's pass."""
    lines = [
        [
            "compiled" if row["compiled"] else "eager",
            *(number(row, "seconds"), number(row, "backbone_seconds"), number(row, "bytes", 1e-9)),
            number(row, "utilisation", 100, ".0f"),
        ]
        for row in rows(found, "dgs_lrm", "reconstruction")
    ]
    title = "DGS-LRM's size, 24 frames of 512² (its paper: 0.495 s on one A100):"
    return table(title, ["blocks", "s", "backbone alone, s", "GB", "%"], lines)


def kernels(found: Row) -> str:
    """Attention's agreement and rates."""
    rates, trained, errors = (rows(found, "attention", name) for name in ("rate", "train_rate", "parity"))
    names = list(dict.fromkeys(row["kernel"] for row in [*errors, *rates]))
    shapes = list(dict.fromkeys(row["shape"] for row in rates))
    lines: list[list[str]] = []
    for name in names:
        line = [name, *(number(one(errors, kernel=name, bias=bias), "error", 1, ".1e") for bias in (False, True))]
        for shape in shapes:
            pair = (number(one(each, kernel=name, shape=shape), "flops_per_s", 1e-12) for each in (rates, trained))
            line.append(" / ".join(pair))
        lines.append(line)
    title = "Attention in bf16: error from float32 without and with a bias; TFLOP/s forward / with backward:"
    return table(title, ["kernel", "error", "with bias", *shapes], lines)


def splats(found: Row) -> str:
    """Our renderer beside gsplat."""
    lines: list[list[str]] = []
    for row in rows(found, "splats", "agreement"):
        least = min(row["cosines"].values()) if "cosines" in row else None
        worst = number(row, "colour", 1, ".1e"), number(row, "alpha", 1, ".1e")
        verdict = row.get("failed") or ("yes" if row["agree"] else "**no**")
        lines.append([str(row["gaussians"]), *worst, "–" if least is None else f"{least:.5f}", verdict])
    heads = ["Gaussians", "colour, largest difference", "alpha", "least cosine of gradients", "within 2e-4 and 0.999"]
    first = table("gsplat against our renderer in torch:", heads, lines)
    lines = [
        [
            *(str(row["gaussians"]), f"{row['side']}²", row["backend"]),
            *(number(row, "seconds", 1000), number(row, "with_backward", 1000), number(row, "bytes", 1e-9)),
        ]
        for row in rows(found, "splats", "times")
    ]
    heads = ["Gaussians", "picture", "renderer", "ms", "with backward, ms", "GB"]
    return "\n\n".join(filter(None, (first, table("Their times:", heads, lines))))


def steps(found: Row) -> str:
    """Gaussians in a training step."""
    lines: list[str] = []
    for row in rows(found, "step", "agreement"):
        if row.get("missing"):
            lines.append(f"**{row['missing']}**: torch drew in its place.")
        if "terms" in row:
            pairs = ", ".join(f"{name} {a:.5g} and {b:.5g}" for name, (a, b) in row["terms"].items())
            lines.append(f"Losses of one batch with {row['backend']} and with torch: {pairs}; ")
            lines.append(f"cosine of all gradients {row['gradient_cosine']:.5f}.")
    for row in rows(found, "step", "step"):
        what = f"A step of `{row['config']}` without the update, {row['frames']} frames of {row['side']}²"
        lines.append(f"{what}, drawn by {row['backend']}: {number(row, 'seconds')} s, {number(row, 'bytes', 1e-9)} GB.")
    for row in rows(found, "step", "plan"):
        if row.get("ratio") is not None:
            both = (
                f"{number(row, 'planned', 1e-9)} GB planned by `four-d doctor`, {number(row, 'bytes', 1e-9)} GB taken"
            )
            lines.append(
                f"Memory of that step with the update: {both} (ratio {row['ratio']:.2f}; asked: 0.85 to 1.15)."
            )
    return "\n".join(lines)


def tests(found: Row) -> str:
    """Tests that need a GPU."""
    every = rows(found, "tests", "test")
    lines = [[f"`{row['name']}`", row["state"], row.get("why") or ""] for row in every]
    return table("`pytest -m gpu`:", ["test", "result", "why"], lines)


def machine(found: Row) -> str:
    """Lines on the machine, its limits, and what was not done."""
    about, every = found["machine"], found["sections"].values()
    cards = " and ".join(dict.fromkeys(section["nvidia_smi"] for section in every))
    commits = " and ".join(dict.fromkeys(f"`{section['commit']}`" for section in every))
    said = f"{cards} · torch {about['torch']}, CUDA {about['cuda']} · commit {commits} · {found['date'][:10]}"
    lines = [said, "", "```sh", *dict.fromkeys(section["command"] for section in every), "```", ""]
    limits = [f"{row['type']} {number(row, 'flops_per_s', 1e-12)} TFLOP/s" for row in rows(found, "rates", "matrix")]
    if limits:
        copied = number(one(rows(found, "rates", "memory")), "bytes_per_s", 1e-12)
        lines.append(f"Matrix products: {', '.join(limits)}; memory: {copied} TB/s.")
    for name, section in found["sections"].items():
        if section["status"] != "done":
            lines.append(
                f"\nSection `{name}`: {section['status']} ({section.get('why')}); what it had measured is below."
            )
    return "\n".join(lines)


def text(found: Row) -> Iterator[str]:
    """Everything between the markers."""
    yield machine(found)
    yield from filter(None, (part(found) for part in (tests, forward, train, reconstruction, kernels, splats, steps)))


def written(page: str, inner: str) -> str:
    """The page with what is between the markers replaced."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        sys.exit(f"{PAGE} must have the lines {BEGIN} and {END} once each")
    return f"{page.split(BEGIN)[0]}{BEGIN}\n\n{inner}\n\n{END}{page.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path, nargs="?", help="gpu.json of a run")
    parser.add_argument("--print", action="store_true", dest="shown", help="print the tables, write nothing")
    options = parser.parse_args()
    source = options.figures or RESULTS
    found = json.loads(source.read_text()) if source.is_file() else None
    if options.figures and found is None:
        sys.exit(f"{source} is not there")
    inner = NOTHING if found is None else "\n\n".join(text(found))
    if options.shown:
        print(inner)
        return
    if found is not None and (found["rehearsal"] or not found["machine"]["devices"]):
        sys.exit(f"{source} is of a rehearsal: its figures are no measurements (--print shows the tables)")
    page = written(PAGE.read_text(), inner)
    if options.figures and found is not None:
        for each in (found.get("gsplat") or {}, *found["sections"].values()):
            each.pop("log", None)  # lines with the places of that machine
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
