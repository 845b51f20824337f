"""Score a model on held-out worlds as the cards of the reference models are, and hold it against the bars set for them.

    python benchmarks/held_out.py [--model NAME] [--ways steady,fast,curved] [--sizes 64,160]
    python benchmarks/held_out.py --rehearse                            # a few worlds of each way; nothing is kept

Steady cameras with known intrinsics and fast ones without are the studies' worlds (`benchmarks/studies`), curved paths
of 24 frames are their own; each is scored on pictures of 64 × 64 pixels, enlarged to the model's size as ``four-d
infer`` shows them, and on pictures of the model's size, by ``four-d eval``'s code. Worlds that are not in
``runs/held_out`` are made first. Every evaluation is kept whole in ``runs/held_out/NAME``, as ``four-d export
--scores`` takes it; the figures and the bars go to ``docs/results/held_out.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - this script is run by its path

from benchmarks.real import CHECKPOINTS, described, named, provenance  # noqa: E402
from benchmarks.reference import call, four_d  # noqa: E402
from benchmarks.studies import DataSet, dept3r, page_4d  # noqa: E402
from four_d import evaluation  # noqa: E402
from four_d.abilities import HINTS, Abilities, Hint  # noqa: E402
from four_d.checkpoints import best_reference  # noqa: E402
from four_d.metrics.metric import Task  # noqa: E402
from four_d.outputs import write_json  # noqa: E402

Line = dict[str, Any]

FOLDER = Path("runs/held_out")
RESULTS = ROOT / "docs" / "results" / "held_out.json"
CARD_SIZE = 64
"""Rows and columns of the pictures on which the first reference models were scored."""
FITTED = "0:4"
"""Shards of the training worlds that the image-free predictors are fitted on, at `CARD_SIZE`."""
CURVED = (
    *("--clips-per-shard", "25", "--cameras", "2", "--frames", "24", "--size", "64"),
    *("--seconds", "1.2:2.4", "--paths", "orbit,handheld,follow"),
)


@dataclass(frozen=True, kw_only=True)
class Way:
    """One kind of held-out worlds, and how its videos are shown."""

    held_out: tuple[str, ...]
    """Arguments of ``four-d data make``; the size is set when they are made."""
    train: tuple[str, ...]
    frames: int
    clips: int
    stride: int | None = None
    hints: tuple[Hint, ...] = ()
    tasks: tuple[Task, ...] = evaluation.EvaluationConfig(data="").tasks


def arguments_of(data: tuple[DataSet, ...], name: str) -> tuple[str, ...]:
    return next(each.arguments for each in data if each.name == name)


WAYS: dict[str, Way] = {
    "steady": Way(
        held_out=arguments_of(dept3r.STUDY.data, "held_out_calm"),
        train=arguments_of(dept3r.STUDY.data, "train_calm"),
        frames=6,
        stride=1,
        clips=60,
        hints=("intrinsics",),
    ),
    "fast": Way(
        held_out=arguments_of(page_4d.STUDY.data, "held_out_motion"),
        train=arguments_of(page_4d.STUDY.data, "train_motion"),
        frames=6,
        clips=100,
    ),
    "curved": Way(
        held_out=("--shards", "0:2", "--seed", "3", "--held-out", *CURVED),
        train=("--shards", "0:4", "--seed", "7", *CURVED),
        frames=24,
        stride=1,
        clips=60,
        tasks=("pose",),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Bar:
    """Bar of a figure: so much of another row's, more than that by so much, or a number."""

    way: str
    metric: str
    row: str | None = None
    """Predictor beside the model; `best`: the best that ignores the image; None: the number alone."""
    times: float = 1.0
    plus: float = 0.0

    def limit(self, figures: Line) -> float | None:
        """Number to reach; None if the row has none."""
        if self.row is None:
            return self.plus
        other = figures.get(self.row)
        return None if other is None else self.times * other + self.plus


BARS = (
    *(Bar(way=way, metric="depth_absrel_median_frame", row="mean_depth", times=0.45) for way in ("steady", "fast")),
    Bar(way="fast", metric="pose_rot_pairs_deg", row="best", times=0.35),
    Bar(way="curved", metric="pose_ate_sim3", row="best", times=0.7),
    Bar(way="steady", metric="mask_iou", plus=0.6),
    Bar(way="steady", metric="motion_epe_dynamic", row="best", times=0.5),
    Bar(way="steady", metric="render_psnr", plus=21.0),
    Bar(way="steady", metric="render_psnr_dynamic", row="copy", plus=2.0),
)
ALSO = ("pose_rta15", "pose_auc30", "motion_dynamic_fraction", "seconds_per_clip")
"""Metrics that the table shows beside those of `BARS`."""


def at(arguments: tuple[str, ...], **values: str) -> tuple[str, ...]:
    """Arguments with other values of some flags."""
    changed = list(arguments)
    for name, value in values.items():
        changed[changed.index(f"--{name.replace('_', '-')}") + 1] = value
    return tuple(changed)


def worlds(way: str, kind: str, size: int, *, few: bool) -> Path:
    """Folder of a way's worlds, made if they are not there; ``few``: one shard of 4 clips."""
    place = FOLDER / "data" / f"{way}_{kind}_{size}{'_few' if few else ''}"
    if not (place / "manifest.json").is_file():
        arguments = at(WAYS[way].held_out if kind == "held_out" else at(WAYS[way].train, shards=FITTED), size=str(size))
        arguments = at(arguments, shards="0:1", clips_per_shard="4") if few else arguments
        workers = str(os.cpu_count() or 1)
        command = four_d("data", "make", *arguments, "--workers", workers, str(place))
        call(command, FOLDER / "logs" / f"{place.name}.log", None, expected=(0,))
    return place


def settings(way: Way, abilities: Abilities, size: int, data: Path, train: Path) -> evaluation.EvaluationConfig:
    """Settings of ``four-d eval`` on ``size``: the way's hints that the model takes, and those that it requires."""
    uses = abilities.hints
    needed = {hint for hint, use in uses.items() if use == "required"}
    wanted = tuple(hint for hint in HINTS if hint in needed | (set(way.hints) & set(uses)))
    return evaluation.EvaluationConfig(
        data=str(data),
        train_data=str(train),
        frames=way.frames,
        stride=way.stride,
        clips=way.clips,
        size=(size, size),
        hints=cast(tuple[Hint, ...], wanted),  # pyright widens what `in` narrows
        tasks=way.tasks,
    )


def figures(found: evaluation.Evaluation) -> Line:
    """Per metric the model's mean, and those of the rows that bars are set by."""
    table: Line = {}
    for metric in dict.fromkeys((*(bar.metric for bar in BARS), *ALSO)):
        rows = {row: scores[metric].mean for row, scores in found.rows.items() if metric in scores}
        if found.name not in rows:
            continue
        best = found.best_image_free(metric)
        table[metric] = {"model": round(rows[found.name], 5)}
        table[metric] |= {row: round(rows[row], 5) for row in ("mean_depth", "copy") if row in rows}
        table[metric] |= {} if best is None else {"best": round(best[1].mean, 5), "best_is": best[0]}
    return table


def judged(scores: Mapping[str, Line]) -> list[Line]:
    """Each bar at each size: figure, limit, and whether it is met."""
    lines: list[Line] = []
    for name, table in scores.items():
        way = name.partition("_")[0]
        for bar in BARS:
            limit = bar.limit(table.get(bar.metric, {})) if bar.way == way else None
            if limit is not None and bar.metric in table:
                mine = table[bar.metric]["model"]
                met = mine <= limit if evaluation.METRICS[bar.metric].better == "lower" else mine >= limit
                lines.append({"scored": name, "metric": bar.metric, "model": mine, "bar": round(limit, 5), "met": met})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name in checkpoints/, or whatever four_d.load takes (default: the best one)")
    parser.add_argument("--ways", default=",".join(WAYS), help="kinds of worlds, of steady, fast, curved")
    parser.add_argument("--sizes", help="of the worlds' pictures (default: 64 and the model's own)")
    parser.add_argument("--rehearse", action="store_true", help="a few worlds of each way; nothing is kept")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = named(given.model or best_reference([CHECKPOINTS])[1].name)
    own = [CARD_SIZE, min(model.info.image_size)]
    sizes = dict.fromkeys([int(each) for each in given.sizes.split(",")] if given.sizes else own)
    scores: Line = {}
    name = described(model)["name"]
    for way in given.ways.split(","):
        train = worlds(way, "train", CARD_SIZE, few=given.rehearse)
        for size in sizes:
            data = worlds(way, "held_out", size, few=given.rehearse)
            found = evaluation.run(model, settings(WAYS[way], model.abilities, max(size, own[1]), data, train))
            scores[f"{way}_{size}"] = {**figures(found), "digest": found.digest}
            if not given.rehearse:
                found.write(FOLDER / name / f"{way}_{size}.json")
            print(f"{way}_{size}", json.dumps(scores[f"{way}_{size}"]), flush=True)
    bars = judged(scores)
    print(*(f"{'met   ' if bar['met'] else 'MISSED'} {json.dumps(bar)}" for bar in bars), sep="\n")
    if not given.rehearse:
        kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
        before = kept.get(name, {}).get("scores", {})
        both = {**before, **scores} if kept.get(name, {}).get("model") == described(model) else scores
        kept[name] = {"model": described(model), "scores": both, "bars": judged(both), **provenance(__file__)}
        write_json(RESULTS, kept)


if __name__ == "__main__":
    main()
