"""The whole of four_d on two CPU cores: make video, train, evaluate, export, and look at a real clip.

`make demo` runs this; about ten minutes, or twice that on processors without AVX-512, which train in float32 (0.75 to
1.15 steps a second were measured on one). It trains a fixed number of steps on two threads, so its figures are the
same on every machine of one kind. What is already there is taken over, and said: `rm -r runs/demo` starts over.
The same by hand:

    four-d data make --shards 0:20 --clips-per-shard 25 --seed 1 --cameras 2 --frames 8 --size 64 runs/demo/data/train
    four-d data make --shards 0:2 --held-out ... runs/demo/data/held_out
    four-d train overlays/demo
    four-d eval runs/demo/training data=runs/demo/data/held_out train_data=runs/demo/data/train
    four-d export runs/demo/training --out runs/demo/model
    four-d infer tests/data/bikes.mp4 --model runs/demo/model --out runs/demo/bikes

Of the same video, the page also shows what the reference model of ``checkpoints/`` sees.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from data_prep.synthetic import WorldSettings, make
from four_d import config as configs
from four_d import drawing, viewer
from four_d.checkpoints import best_reference
from four_d.data.show import show
from four_d.devices import emulates_bf16, usable
from four_d.errors import UserError
from four_d.evaluation import METRICS, Evaluation, EvaluationConfig, image_free, run, summary
from four_d.exporting import export, read_scores
from four_d.inference import LoadedModel, Result, Selection, infer, load
from four_d.inference.stills import stills
from four_d.outputs import new_file
from four_d.training import LAST, TrainResult, train
from four_d.training.variation import stuck

ROOT = Path(__file__).resolve().parent.parent
RUN = Path("runs/demo")
TRAIN, HELD_OUT = RUN / "data/train", RUN / "data/held_out"
SCORES = RUN / "evaluation.json"
TRAINING = RUN / "training"
"""Run folder that the overlay names."""
REAL_VIDEO = ROOT / "tests/data/bikes.mp4"
BESIDE = RUN / "beside.png"
"""Sheet of what the trained model and the reference model see."""
SHORT = Selection(max_frames=12, fps=8.0)
"""Frames that both see for that: the reference model also makes Gaussians and follows points, which takes longer."""
WORLDS = WorldSettings(width=64, height=64, cameras=2, frames=8)
CLIPS_PER_SHARD = 25
TRAIN_SHARDS, HELD_OUT_SHARDS = range(20), range(2)
THREADS = 2
"""Sums of floats depend on how many threads share them."""
T = TypeVar("T")


@dataclass
class Stages:
    """Runs the stages in order, says which it is, and remembers what each took."""

    seconds: dict[str, float] = field(default_factory=dict[str, float])

    def __call__(self, name: str, title: str, work: Callable[[], T]) -> T:
        """The result of ``work``."""
        Console(stderr=True).rule(f"{len(self.seconds) + 1} · {title}")
        start = time.perf_counter()
        result = work()
        self.seconds[name] = round(time.perf_counter() - start, 1)
        return result


def taken_over(what: str, path: Path) -> None:
    """Say that a former demo's ``path``, if there is one, is not made again."""
    if path.exists():
        when = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
        print(f"taking over {what} of {when:%Y-%m-%d %H:%M}: {path} (rm -r {RUN} starts over)", file=sys.stderr)


def make_data() -> None:
    """Shards to train on and held-out ones, whose textures and shapes the former lack; and a picture of a clip."""
    taken_over("the training shards", TRAIN)
    taken_over("the held-out shards", HELD_OUT)
    workers = os.cpu_count() or 1
    for out, shards, held_out in ((TRAIN, TRAIN_SHARDS, False), (HELD_OUT, HELD_OUT_SHARDS, True)):
        make(
            out,
            shards,
            seed=1,
            clips_per_shard=CLIPS_PER_SHARD,
            workers=workers,
            held_out=held_out,
            settings=WORLDS,
        )
    show(HELD_OUT, 0, RUN / "clip")


def precision() -> list[str]:
    """Float32 where the processor emulates bfloat16: measured on one, a step took eight times as long in it."""
    return ["loop.precision=fp32"] if emulates_bf16(usable("auto")) else []


def train_model() -> TrainResult:
    """The tiny model, for as many steps as the overlay says."""
    taken_over("the training run", TRAINING / LAST)
    return train(configs.load(["overlays/demo"], precision()))


def evaluate() -> Evaluation:
    """On all held-out videos, beside predictors that ignore the image, fitted on the training worlds."""
    settings = EvaluationConfig(data=str(HELD_OUT), train_data=str(TRAIN), frames=4, train_clips=120)
    return run(load(TRAINING), settings)


def look(scores: Evaluation, stages: Stages) -> Result:
    """Run the exported model on a real video; the page shows it and how the model was made."""
    model = load(RUN / "model")
    beside(model)

    def page(result: Result, folder: Path) -> None:
        write_page(folder / "report.html", result, scores, stages)

    return infer(model, REAL_VIDEO, RUN / "bikes", page=page, overwrite=True)


def beside(model: LoadedModel) -> None:
    """Draw what the trained model and the repository's reference model see of the real video."""
    path, reference = best_reference([ROOT / "checkpoints"])
    rows = {"trained here": stills(model(REAL_VIDEO, selection=SHORT))}
    rows[reference.name] = stills(load(path)(REAL_VIDEO, selection=SHORT))
    columns = list(rows[reference.name])
    cells = [[row.get(column, np.full_like(row["picture"], 255)) for column in columns] for row in rows.values()]
    with new_file(BESIDE) as partial:
        Image.fromarray(drawing.grid(cells, list(rows), columns)).save(partial, format="png")


HEADLINES = ("depth_absrel_median_frame", "pose_rot_pairs_deg", "pose_ate_sim3")
SCORE_COLUMNS = ("held-out worlds", "model", "image-free", "which", "ratio")


def score_rows(scores: Evaluation) -> list[list[str]]:
    """The three headline figures, each beside the best predictor that ignores the image."""
    rows: list[list[str]] = []
    for name in HEADLINES:
        mine, best = scores.rows[scores.name][name].mean, scores.best_image_free(name)
        assert best is not None
        which, theirs = best[0], best[1].mean
        rows.append([METRICS[name].heading, f"{mine:.4g}", f"{theirs:.4g}", which, f"{mine / theirs:.2f}"])
    return rows


def write_page(path: Path, result: Result, scores: Evaluation, stages: Stages) -> None:
    """The report: the video first, then scores, a clip of the training worlds and the course of training."""
    table = viewer.Table(columns=SCORE_COLUMNS, rows=score_rows(scores))
    newest = sorted((TRAINING / "pictures").glob("*.png"), key=lambda picture: picture.stem[-7:])[-2:]  # by step
    pictures = [viewer.Figure(data=p.read_bytes(), caption=f"Prediction beside truth: {p.stem}") for p in newest]
    truth = sorted((RUN / "clip").glob("*.png"))
    pictures += [viewer.Figure(data=p.read_bytes(), caption=f"A held-out clip and its truth: {p.stem}") for p in truth]
    viewer.report(
        path,
        result,
        title="four_d demo: bikes.mp4",
        summary="A model trained for minutes on two CPU cores, on synthetic worlds only, looks at a real video.",
        facts=[(name, f"{seconds:.0f} s") for name, seconds in stages.seconds.items()],
        sections=[
            viewer.Section(
                title="Beside the reference model",
                text="The reference model of checkpoints/ was trained for hours; of this video it saw 12 frames.",
                figures=[viewer.Figure(data=BESIDE.read_bytes(), caption="The same frames, seen by both models")],
            ),
            viewer.Section(title="Held-out synthetic worlds", text=scores.note, tables=[table]),
            viewer.Section(title="What it was trained on, and how it did", figures=pictures),
        ],
    )


def close(scores: Evaluation, trained: TrainResult, stages: Stages) -> None:
    """Write the summary, move the page to where people look for it, and print what was made and where."""
    figures = {**summary(scores), "image_free": image_free(scores), "seconds": stages.seconds}
    (RUN / "summary.json").write_text(json.dumps(figures, indent=1) + "\n")
    (RUN / "bikes/report.html").replace(RUN / "report.html")
    console = Console()
    table = Table(*SCORE_COLUMNS)
    for row in score_rows(scores):
        table.add_row(*row)
    console.print(table)
    for output, same_for in trained.constant.items():
        console.print(f"[bold red]warning:[/] {stuck(output, same_for)}")
    table = Table(title=f"made in {sum(stages.seconds.values()):.0f} s")
    for heading in ("what", "where", "seconds"):
        table.add_column(heading, justify="right" if heading == "seconds" else "left")
    made = [
        ("shards: training, held-out", f"{TRAIN}, {HELD_OUT}", "data"),
        ("run: config, metrics, checkpoints, pictures", str(TRAINING), "training"),
        ("scores beside image-free predictors", str(SCORES), "evaluation"),
        ("model: weights, config, card, program", str(RUN / "model"), "export"),
        ("real video: cameras, depth, points", str(RUN / "bikes"), "video"),
        ("beside the reference model", str(BESIDE), ""),
        ("the page to open", str(RUN / "report.html"), ""),
        ("summary of figures", str(RUN / "summary.json"), ""),
    ]
    for what, where, stage in made:
        table.add_row(what, where, f"{stages.seconds[stage]:.0f}" if stage else "")
    console.print(table)


def main() -> int:
    """All stages; 0 if they all came to their end, 143 if training was asked to stop."""
    stages = Stages()
    torch.set_num_threads(THREADS)
    try:
        stages("data", "making synthetic multi-view video", make_data)
        trained = stages("training", "training a small model", train_model)
        if trained.exit_code:
            return trained.exit_code
        scores = stages("evaluation", "evaluating on held-out worlds", evaluate)
        scores.write(SCORES)
        stages(
            "export", "exporting", lambda: export(TRAINING, RUN / "model", scores=read_scores(SCORES), overwrite=True)
        )
        stages("video", "looking at a real video", lambda: look(scores, stages))
        close(scores, trained, stages)
    except UserError as error:
        print(f"demo: {error} (rm -r {RUN} starts over)", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
