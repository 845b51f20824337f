"""Run a study: every variant with every seed, resumable, one raw line per run; then the table and the plot.

    python benchmarks/study.py page_4d [--only VARIANT] [--seeds 0,1] [--jobs 2] [--summary]

Each run is ``four-d train`` or ``finetune``, then ``four-d eval --json``; its line goes to
``docs/results/raw/NAME.jsonl`` when it ends. Runs that have a line are not run again, unless ``--only`` or ``--seeds``
names them. ``docs/results/NAME.json`` and ``NAME.png`` follow from the raw lines (``--summary``: only that).
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - this script is run by its path

from benchmarks.former import former  # noqa: E402
from benchmarks.generate import commit, processor  # noqa: E402
from benchmarks.studies import Key, Study, Training  # noqa: E402
from four_d.devices import emulates_bf16  # noqa: E402

RUNS = Path("runs/studies")
RESULTS = ROOT / "docs" / "results"
STOPPED = 143
"""Exit code of a training that was asked to stop, and saved."""
RUNNING: set[subprocess.Popen[bytes]] = set()
"""Commands under way."""
STOPPING = threading.Event()
"""Set when the study was asked to stop."""

Line = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training of a variant."""

    study: Study
    variant: str
    seed: int

    @property
    def name(self) -> str:
        """Its folder among the runs."""
        return f"{self.study.name}/{self.variant}-{self.seed}"


def four_d(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "four_d.cli", *arguments]


def call(study: Study, command: list[str], log: Path, limit_s: float | None = None) -> int:
    """The exit code of a command whose output goes to ``log``; after ``limit_s`` seconds it is asked to stop."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        file.write(f"$ {shlex.join(command)}\n")
        file.flush()
        if STOPPING.is_set():
            return STOPPED
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **study.environment})
        RUNNING.add(process)
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.terminate()
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            RUNNING.discard(process)


def stop(number: int, frame: object) -> None:  # noqa: ARG001 - a signal handler's arguments
    """End the commands under way, which save, and then the study: they would train on without it."""
    STOPPING.set()
    for process in list(RUNNING):
        process.terminate()
    raise SystemExit(128 + number)


def finish(code: int, log: Path) -> None:
    """End with the log's last lines if a command failed."""
    if code:
        raise SystemExit("\n".join([*log.read_text().splitlines()[-5:], f"exit code {code}; the log is {log}"]))


def make_data(study: Study) -> None:
    for data in study.data:
        log = RUNS / "logs" / f"data-{data.name}.log"
        workers = str(os.cpu_count() or 1)
        finish(call(study, four_d("data", "make", *data.arguments, "--workers", workers, str(data.path)), log), log)


def train(study: Study, training: Training, name: str, seed: int) -> float:
    """Train in pieces; what is done already is not done again. Minutes that this call took."""
    values = [*training.values, f"folder={RUNS}", f"name={name}", f"seed={seed}", *precision()]
    verb = "train" if training.start is None else "finetune"
    if training.start is not None:
        shared = training.start in study.shared
        values.append(f"weights.path={RUNS / study.name / training.start if shared else former(training.start)}")
    log, began = RUNS / "logs" / f"{name.replace('/', '-')}.log", time.monotonic()
    code = STOPPED
    while code == STOPPED and not STOPPING.is_set():
        code = call(study, four_d(verb, *values), log, 60 * study.piece_minutes)
    finish(code, log)
    return (time.monotonic() - began) / 60


def precision() -> list[str]:
    """Setting of float32 for a processor that has bfloat16 by emulation only, at a tenth of its speed."""
    return ["loop.precision=fp32"] if emulates_bf16(torch.device("cpu")) else []


def evaluate(run: Run, model: str, values: Iterable[str], out: str) -> Line:
    """The scores of a model, also kept beside the runs."""
    name = run.name.replace("/", "-")
    log, file = RUNS / "logs" / f"{name}.log", RUNS / "scores" / f"{name}-{out}"
    file.parent.mkdir(parents=True, exist_ok=True)
    finish(call(run.study, four_d("eval", model, *values, "--json", str(file)), log), log)
    return cast(Line, json.loads(file.read_text()))


def execute(run: Run) -> Line:
    """One run from its start to its raw line."""
    study = run.study
    if run.variant in study.models:
        model = study.models[run.variant]
        folder = former(model.path) if "@" in model.path else model.path
        return raw_line(run, evaluate(run, str(folder), model.evaluation, "scores.json"), 0.0, steps=0)
    training, folder = study.variants[run.variant], str(RUNS / run.name)
    minutes = train(study, training, run.name, run.seed)
    scores = evaluate(run, folder, (*study.evaluation, *training.evaluation), "scores.json")
    if training.also:
        more = evaluate(run, folder, training.also, "more.json")["summary"]
        scores["summary"] = more | scores["summary"]
    metrics = (RUNS / run.name / "metrics.jsonl").read_text().splitlines()
    return raw_line(run, scores, minutes, steps=max(json.loads(text)["step"] for text in metrics))


def raw_line(run: Run, scores: Line, minutes: float, *, steps: int) -> Line:
    study, summary = run.study, scores["summary"]
    figures = {name: score["mean"] for name, score in scores["rows"][scores["model"]].items()} | summary
    return {
        "study": study.name,
        "variant": run.variant,
        "seed": run.seed,
        **{key.name: figures.get(key.metric.name) for key in study.keys},
        "image_free": {key.name: summary["image_free"].get(key.metric.name) for key in study.keys},
        "predictors": {name: summary["predictors"].get(row, {}) for name, row in study.predictors.items()},
        "digest": scores["digest"],
        "settings": precision(),
        "steps": steps,
        "minutes": round(minutes, 2),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "machine": f"{os.cpu_count()} × {processor()}, Python {platform.python_version()}",
        "command": shlex.join(["python", "benchmarks/study.py", *sys.argv[1:]]),
    }


def raw_file(study: Study) -> Path:
    return RESULTS / "raw" / f"{study.name}.jsonl"


def read_raw(study: Study) -> list[Line]:
    """The newest line of each variant and seed, in the study's order."""
    file = raw_file(study)
    lines = [json.loads(text) for text in file.read_text().splitlines()] if file.is_file() else []
    newest = {(line["variant"], line["seed"]): line for line in lines}
    order = [(row, seed) for row in (*study.variants, *study.models, *study.others) for seed in study.seeds]
    return [newest[key] for key in order if key in newest]


def summarise(study: Study, lines: list[Line]) -> Line:
    """Per variant and key: the mean over seeds and each seed's value; and the best image-free predictor's."""
    result: Line = {}
    for variant in (*study.variants, *study.models, *study.others):
        own = [line for line in lines if line["variant"] == variant]
        if not own:
            continue
        result[variant] = {
            key.name: over_seeds({line["seed"]: line.get(key.name) for line in own}) for key in study.keys
        }
        if own[-1].get("beside"):
            result[variant]["beside"] = own[-1]["beside"]
    runs = [line for line in lines if line["variant"] in study.variants]
    for name in study.predictors:
        known = [line["predictors"][name] for line in runs if line.get("predictors", {}).get(name)]
        if known:
            result[name] = {key.name: over_seeds({0: known[-1].get(key.metric.name)}) for key in study.keys}
    if runs:
        result["image_free"] = runs[-1]["image_free"]
        result["digest"] = runs[-1]["digest"]
    digests = {(line["variant"], line["digest"]) for line in lines}
    if len(digests) > len({line["variant"] for line in lines}):
        raise SystemExit(f"{raw_file(study)} mixes runs scored on different clips; run the older ones again")
    return result


def over_seeds(values: dict[int, float | None]) -> Line:
    known = [value for value in values.values() if value is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "per_seed": {str(seed): value for seed, value in values.items()},
    }


def rows_of(study: Study) -> list[str]:
    """In the order of the table."""
    return [*study.predictors, *study.variants, *study.models, *study.others]


def compared(study: Study) -> list[Key]:
    return [key for key in study.keys if key.compared]


def shown(study: Study, summary: Line) -> list[str]:
    """Rows that have a figure to compare."""
    found = [row for row in rows_of(study) if row in summary]
    return [row for row in found if any(summary[row][key.name]["mean"] is not None for key in compared(study))]


def table(study: Study, summary: Line) -> str:
    """Markdown: one row per variant, mean and range over seeds."""
    rows = [["", *(f"{key.label} {key.metric.arrow}".rstrip() for key in compared(study))]]
    for variant in shown(study, summary):
        cells = [(summary[variant][key.name], key.digits) for key in compared(study)]
        rows.append([variant, *(cell_text(cell, digits) for cell, digits in cells)])
    free = summary.get("image_free", {})
    known = ["" if free.get(key.name) is None else f"{free[key.name]:.3g}" for key in compared(study)]
    if any(known):
        rows.append(["ignoring the image", *known])
    text = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([text[0], "|" + " --- |" * len(rows[0]), *text[1:]])


def cell_text(cell: Line, digits: int) -> str:
    """Mean and, of several seeds, the range."""
    known = [f"{value:.{digits}g}" for value in cell["per_seed"].values() if value is not None]
    if not known:
        return ""
    return f"{cell['mean']:.{digits}g}" + (
        f" ({min(known, key=float)}–{max(known, key=float)})" if len(known) > 1 else ""
    )


def plot(study: Study, summary: Line, file: Path) -> None:
    """A panel per key: a dot per seed, a bar at the mean, a line for the best predictor that ignores the image."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    variants = shown(study, summary)
    columns = 3
    rows = -(-len(compared(study)) // columns)
    figure, panels = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.1 * rows), constrained_layout=True)
    for panel, key in zip(panels.flat, compared(study)):
        for place, variant in enumerate(variants):
            values = [v for v in summary[variant][key.name]["per_seed"].values() if v is not None]
            if values:
                panel.plot([place] * len(values), values, "o", color=f"C{place}", alpha=0.7)
                panel.hlines(statistics.fmean(values), place - 0.25, place + 0.25, color=f"C{place}", lw=3)
        free = summary["image_free"].get(key.name)
        if free is not None:
            panel.axhline(free, color="0.4", ls="--", lw=1, label="ignoring the image")
            panel.legend(fontsize=7)
        many = len(variants) > 6
        labels = [v.replace("_", " " if many else "\n") for v in variants]
        slant = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"} if many else {}
        panel.set_xticks(range(len(variants)), labels, fontsize=8, **slant)
        low, high = panel.dataLim.intervaly
        if low > 0 and high > 10 * low:
            panel.set_yscale("log")
        panel.set_xlim(-0.6, len(variants) - 0.4)
        panel.margins(y=0.15)
        panel.set_title(f"{key.label} {key.metric.arrow}".rstrip(), fontsize=9)
        panel.grid(axis="y", alpha=0.3)
    for panel in list(panels.flat)[len(compared(study)) :]:
        panel.set_visible(False)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def publish(study: Study) -> None:
    """Write what follows from the raw lines; print the table."""
    lines = read_raw(study)
    if not lines:
        raise SystemExit(f"{raw_file(study)} has no runs yet")
    summary = summarise(study, lines)
    (RESULTS / f"{study.name}.json").write_text(json.dumps(summary, indent=1) + "\n")
    plot(study, summary, RESULTS / f"{study.name}.png")
    print(table(study, summary))


def wanted(study: Study, only: str | None, seeds: Iterable[int] | None) -> list[Run]:
    """All runs without a raw line; those named, even with one."""
    rows = [*study.variants, *study.models]
    if only is not None and only not in rows:
        raise SystemExit(f"{study.name} has no variant {only!r}; choose one of {', '.join(rows)}")
    chosen = [
        Run(study=study, variant=row, seed=seed)
        for seed in (study.seeds if seeds is None else seeds)
        for row in rows
        if only in (None, row) and (row in study.variants or seed == study.seeds[0])
    ]
    done = {(line["variant"], line["seed"]) for line in read_raw(study)}
    named = only is not None or seeds is not None
    return [run for run in chosen if named or (run.variant, run.seed) not in done]


def run_all(study: Study, runs: list[Run], jobs: int) -> None:
    """Data, shared trainings, then the runs, ``jobs`` at a time."""
    make_data(study)
    for name, training in study.shared.items():
        print(f"{study.name}: shared training {name}", file=sys.stderr, flush=True)
        train(study, training, f"{study.name}/{name}", study.seeds[0])
    raw_file(study).parent.mkdir(parents=True, exist_ok=True)
    done = {(line["variant"], line["seed"]) for line in read_raw(study)}
    for run in runs:
        if (run.variant, run.seed) in done:  # asked for again: from its start
            shutil.rmtree(RUNS / run.name, ignore_errors=True)
    with ThreadPoolExecutor(jobs) as pool:
        for number, future in enumerate(as_completed([pool.submit(execute, run) for run in runs]), start=1):
            line = future.result()
            with raw_file(study).open("a") as file:
                file.write(json.dumps(line) + "\n")
            text = f"{number}/{len(runs)} {line['variant']} seed {line['seed']}, {line['minutes']} min"
            print(f"{study.name}: {text}", file=sys.stderr, flush=True)


def named(name: str) -> Study:
    """The study of that name, with or without its hyphens and underscores."""
    stems = sorted(path.stem for path in (Path(__file__).parent / "studies").glob("[!_]*.py"))
    studies = {stem: importlib.import_module(f"benchmarks.studies.{stem}") for stem in stems}
    found = {stem: cast(Study | None, getattr(module, "STUDY", None)) for stem, module in studies.items()}
    known = {_bare(stem): study for stem, study in found.items() if study is not None and study.name == stem}
    if _bare(name) not in known:
        raise SystemExit(f"there is no study {name!r}; choose one of {', '.join(s.name for s in known.values())}")
    return known[_bare(name)]


def _bare(name: str) -> str:
    return name.replace("_", "").replace("-", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--only", metavar="VARIANT")
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each (default 2)")
    parser.add_argument("--summary", action="store_true", help="only the table and the plot of what was run")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    study = named(arguments.name)
    if not arguments.summary:
        run_all(study, wanted(study, arguments.only, arguments.seeds), arguments.jobs)
    publish(study)


if __name__ == "__main__":
    main()
