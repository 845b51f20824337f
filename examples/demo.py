"""The whole of four_d on two CPU cores: make video, train, evaluate, export, and look at a real clip.

`make demo` runs this; about ten minutes. What is already there is not made again: `rm -r runs/demo` starts over.
The same by hand:

    four-d data make --shards 0:20 --clips-per-shard 25 --seed 1 --cameras 2 --frames 8 --size 64 runs/demo/data/train
    four-d data make --shards 0:2 --held-out ... runs/demo/data/held_out
    four-d train vggt overlays/tiny overlays/demo
    four-d eval runs/demo data=runs/demo/data/held_out train_data=runs/demo/data/train
    four-d export runs/demo --out runs/demo/model
    four-d infer tests/data/bikes.mp4 --model runs/demo/model --out runs/demo/bikes
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from data_prep.synthetic import WorldSettings, make
from four_d import config as configs
from four_d import viewer
from four_d.data.show import show
from four_d.errors import UserError
from four_d.evaluation import Evaluation, EvaluationConfig, run, summary
from four_d.export import export
from four_d.inference import Result, infer, load
from four_d.training import TrainResult, train

ROOT = Path(__file__).resolve().parent.parent
RUN = Path("runs/demo")
TRAIN, HELD_OUT = RUN / "data/train", RUN / "data/held_out"
REAL_VIDEO = ROOT / "tests/data/bikes.mp4"
WORLDS = WorldSettings(width=64, height=64, cameras=2, frames=8)
CLIPS_PER_SHARD = 25
TRAIN_SHARDS, HELD_OUT_SHARDS = range(20), range(2)
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


def make_data() -> None:
    """Shards to train on and held-out ones, whose textures and shapes the former lack; and a picture of a clip."""
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


def train_model() -> TrainResult:
    """The tiny model, for as long as the overlay says."""
    return train(configs.load(["vggt", "overlays/tiny", "overlays/demo"], [f"folder={RUN.parent}"]))


def evaluate() -> Evaluation:
    """On all held-out videos, beside predictors that ignore the image, fitted on the training worlds."""
    settings = EvaluationConfig(data=str(HELD_OUT), train_data=str(TRAIN), frames=4, train_clips=120)
    return run(load(RUN), settings)


def look(scores: Evaluation, stages: Stages) -> Result:
    """Run the exported model on a real video; the page shows it and how the model was made."""

    def page(result: Result, folder: Path) -> None:
        write_page(folder / "report.html", result, scores, stages)

    return infer(load(RUN / "model"), REAL_VIDEO, RUN / "bikes", page=page, overwrite=True)


SCORE_COLUMNS = ("held-out worlds", "model", "ignoring the image", "which", "ratio")


def score_rows(scores: Evaluation) -> list[list[str]]:
    """The three headline figures, each beside the best predictor that ignores the image."""
    figures = summary(scores)
    rows = [
        ("depth AbsRel, median-aligned", "depth_absrel_median", "depth_absrel_baseline", "mean map"),
        ("relative rotation error, degrees", "rot_error_deg", "rot_baseline_deg", "best of three"),
        ("ATE after Sim(3), metres", "ate_sim3", "ate_baseline", "best of three"),
    ]
    return [
        [text, f"{figures[ours]:.4g}", f"{figures[theirs]:.4g}", which, f"{figures[ours] / figures[theirs]:.2f}"]
        for text, ours, theirs, which in rows
    ]


def write_page(path: Path, result: Result, scores: Evaluation, stages: Stages) -> None:
    """The report: the video first, then scores, a clip of the training worlds and the course of training."""
    table = viewer.Table(columns=SCORE_COLUMNS, rows=score_rows(scores))
    newest = sorted((RUN / "pictures").glob("*.png"), key=lambda picture: picture.stem[-7:])[-2:]  # by step
    pictures = [viewer.Picture(data=p.read_bytes(), caption=f"Prediction beside truth: {p.stem}") for p in newest]
    truth = sorted((RUN / "clip").glob("*.png"))
    pictures += [viewer.Picture(data=p.read_bytes(), caption=f"A held-out clip and its truth: {p.stem}") for p in truth]
    viewer.report(
        path,
        result,
        title="four_d demo: bikes.mp4",
        summary="A model trained for minutes on two CPU cores, on synthetic worlds only, looks at a real video.",
        facts=[(name, f"{seconds:.0f} s") for name, seconds in stages.seconds.items()],
        sections=[
            viewer.Section(title="Held-out synthetic worlds", text=scores.note, tables=[table]),
            viewer.Section(title="What it was trained on, and how it did", pictures=pictures),
        ],
    )


def close(scores: Evaluation, stages: Stages) -> None:
    """Write the summary, move the page to where people look for it, and print what was made and where."""
    figures: dict[str, object] = {**summary(scores), "seconds": stages.seconds}
    (RUN / "summary.json").write_text(json.dumps(figures, indent=1) + "\n")
    (RUN / "bikes/report.html").replace(RUN / "report.html")
    scores.write(RUN / "evaluation.json")
    console = Console()
    table = Table(*SCORE_COLUMNS)
    for row in score_rows(scores):
        table.add_row(*row)
    console.print(table)
    table = Table(title=f"made in {sum(stages.seconds.values()):.0f} s")
    for heading in ("what", "where", "seconds"):
        table.add_column(heading, justify="right" if heading == "seconds" else "left")
    made = [
        ("shards: training, held-out", f"{TRAIN}, {HELD_OUT}", "data"),
        ("run: config, metrics, checkpoints, pictures", str(RUN), "training"),
        ("scores beside image-free predictors", str(RUN / "evaluation.json"), "evaluation"),
        ("model: weights, config, card, program", str(RUN / "model"), "export"),
        ("real video: cameras, depth, points", str(RUN / "bikes"), "video"),
        ("the page to open", str(RUN / "report.html"), ""),
        ("summary of figures", str(RUN / "summary.json"), ""),
    ]
    for what, where, stage in made:
        table.add_row(what, where, f"{stages.seconds[stage]:.0f}" if stage else "")
    console.print(table)


def main() -> int:
    """All stages; 0 if they all came to their end, 143 if training was asked to stop."""
    stages = Stages()
    try:
        stages("data", "making synthetic multi-view video", make_data)
        trained = stages("training", "training a small model", train_model)
        if trained.exit_code:
            return trained.exit_code
        scores = stages("evaluation", "evaluating on held-out worlds", evaluate)
        stages("export", "exporting", lambda: export(RUN, RUN / "model", scores=summary(scores), overwrite=True))
        stages("video", "looking at a real video", lambda: look(scores, stages))
        close(scores, stages)
    except UserError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
