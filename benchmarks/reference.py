"""Train the reference model in pieces that resume, and record each: ``make reference``.

    python benchmarks/reference.py [--pieces N] [--minutes 15]   # worlds, then trainings, until done
    python benchmarks/reference.py --worlds                      # beside it, on another core: also the next stage's
    python benchmarks/reference.py --keep                        # only write the weights so far
    python benchmarks/reference.py --scale 0.01                  # rehearse the whole, in runs/rehearsal

A piece is ``four-d train`` or ``finetune``, asked to stop after ``--minutes``; its line goes to
``docs/results/raw/reference_training.jsonl``: stage, step, held-out scores, images per second, memory. Run again, it
goes on where it stopped. After a stage, and with ``--keep``, the averaged weights so far are exported in bfloat16 to
``benchmarks/partial``. Committed, they outlive ``runs/``: where a stage's run is gone, the stage goes on from them,
with the steps and the rate that were left, and on worlds of its own: those of the run before are gone too.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - this script is run by its path
from safetensors.torch import load_file, save_file  # noqa: E402

from benchmarks.generate import commit, processor  # noqa: E402
from four_d.checkpoints import CONFIG, LAST, METRICS, WEIGHTS, read_info  # noqa: E402
from four_d.config import load  # noqa: E402
from four_d.devices import emulates_bf16  # noqa: E402
from four_d.training.optimiser import learning_rate  # noqa: E402
from four_d.training.variation import SAME_FOR  # noqa: E402

STOPPED = 143
"""Exit code of a training that was asked to stop, and saved."""
CLIPS = 25
"""Clips of a shard."""
LEAST_STEPS = 20
"""Fewest steps of a stage, however small the scale."""

WORLDS = ("--cameras", "2", "--frames", "12")
VARIED = ("--views", "varied", "--scenes", "room,corridor,table,open", "--moving", "0.03:0.6", "--seconds", "0.5:1.2")
CALM = (
    *("--moving", "0.12:0.55", "--objects", "3:6", "--seconds", "0.5:0.9", "--paths", "handheld,static"),
    *("--starts", "dropped,thrown,slid", "--spin", "0.2", "--rig", "0.5"),
)
FURNISHED = (*VARIED[:3], "furnished,room,table,corridor", *VARIED[4:])
"""Varied views of full places, as real rooms are: after bare ones alone, what is far was said to be too far."""
FAST = ("--moving", "0.12:0.55")
BESIDE = ("--rig", "0.5")
"""Two cameras half a metre apart, one of which judges renders of the other's."""

Line = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Worlds:
    """A kind of world, as arguments of ``four-d data make``."""

    seed: int
    arguments: tuple[str, ...]


KINDS: dict[str, Worlds] = {
    "varied": Worlds(seed=31, arguments=VARIED),
    "fast": Worlds(seed=32, arguments=FAST),
    "calm": Worlds(seed=33, arguments=CALM),
    "near": Worlds(seed=34, arguments=(*VARIED, *BESIDE)),
    "furnished": Worlds(seed=35, arguments=FURNISHED),
    "near_furnished": Worlds(seed=34, arguments=(*FURNISHED, *BESIDE)),
    "open": Worlds(seed=36, arguments=(*VARIED[:3], "open", *VARIED[4:])),
}
HELD_OUT: dict[str, Worlds] = {
    "varied": Worlds(seed=2, arguments=VARIED),
    "furnished": Worlds(seed=3, arguments=FURNISHED),
    "calm": Worlds(seed=2, arguments=CALM),
    "fast": Worlds(seed=1, arguments=FAST),
}
"""Worlds that judge; the seeds of calm and fast are the studies'."""
HELD_OUT_SHARDS = 2


@dataclass(frozen=True, kw_only=True)
class Set:
    """A set of worlds in its folder below the data's."""

    folder: str
    worlds: Worlds
    seed: int
    shards: int
    size: int = 128
    """Rows and columns of its pictures."""
    held_out: bool = False


HELD_OUT_SETS = tuple(
    Set(folder=f"held_out/{name}", worlds=worlds, seed=worlds.seed, shards=HELD_OUT_SHARDS, held_out=True)
    for name, worlds in HELD_OUT.items()
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Place of a training, and its size."""

    runs: Path = Path("runs/reference")
    partial: Path = ROOT / "benchmarks" / "partial"
    """Export of the weights so far."""
    raw: Path = ROOT / "docs" / "results" / "raw" / "reference_training.jsonl"
    """A line per piece."""
    scale: float = 1.0
    """Fraction of worlds and steps."""

    @classmethod
    def of(cls, scale: float) -> Place:
        """The training's own place, or a rehearsal's."""
        folder = Path("runs/rehearsal")
        return (
            cls() if scale == 1 else cls(runs=folder, partial=folder / "partial", raw=folder / "raw.jsonl", scale=scale)
        )

    @property
    def lengths(self) -> dict[str, int]:
        """Steps of each stage."""
        return {name: max(LEAST_STEPS, round(stage.steps * self.scale)) for name, stage in STAGES.items()}

    def data(self, of: Set) -> Path:
        """Folder of a set of worlds."""
        return self.runs / "data" / of.folder

    def log(self, name: str) -> Path:
        """File of what commands say."""
        return self.runs / "logs" / f"{name}.log"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training, from the result of the stage before."""

    shards: dict[str, int]
    """Shards of each kind of world that a run of it makes."""
    worlds: int
    """Number in its worlds' seeds."""
    steps: int
    size: int = 128
    """Rows and columns of its worlds' pictures; larger ones than it is shown teach what sharp pictures look like."""
    shown: str | None = None
    """Stage whose worlds it is shown again, of the kinds that that one has; None: all are its own."""
    settings: tuple[str, ...] = ()
    start: str | None = None
    """Stage that it starts from; None: the one before."""
    rest: str | None = None
    """Stage whose result gives the parts that the one it starts from lacks; None: they begin anew."""

    def sets(self, begun: int) -> dict[str, Set]:
        """Worlds of the run of this stage that begins after ``begun`` steps of it."""
        name = next(name for name, stage in STAGES.items() if stage is self)
        again = {} if self.shown is None else STAGES[self.shown].sets(0)
        number = 100_000 * self.worlds + 10 * begun
        return {
            kind: again.get(kind)
            or Set(
                folder=f"{name}-{begun}/{kind}",
                worlds=KINDS[kind],
                seed=number + KINDS[kind].seed,
                shards=shards,
                size=self.size,
            )
            for kind, shards in self.shards.items()
        }

    def values(self, place: Place, begun: int) -> tuple[str, ...]:
        """Arguments of ``four-d``, but for the run's folder, start and length."""
        sources = (f"data.sources.{kind}.path={place.data(each)}" for kind, each in self.sets(begun).items())
        held_out = (f"data.validation.{name}.path={place.data(each)}" for name, each in zip(HELD_OUT, HELD_OUT_SETS))
        return ("overlays/unified_base", *sources, *held_out, *self.settings)


UNCORRECTED = ("model.refine.mask=null", "optimiser.frozen=[]")
PLAIN = (
    *UNCORRECTED,
    *("model.heads.gaussian=null", "losses.photometric=null", "losses.gaussian_depth=null"),
    *("losses.gaussian_flow=null", "data.views=null"),
    *("model.backbone.correlation=null", "model.backbone.dynamics=null", "model.heads.motion=null"),
    *("model.heads.dynamic=null", "losses.motion=null", "losses.matching=null", "losses.dynamic=null"),
    *("data.query_times=0", "losses.camera.weight=27.0", "losses.depth.weight=2.5", "optimiser.groups.new=null"),
)
SHARP = (
    *UNCORRECTED,
    *("data.sources.calm.weight=1.5", "data.sources.near_furnished.weight=1.5"),
    *("data.sources.furnished.weight=1.5", "data.sources.fast.weight=0.75", "data.sources.varied.weight=0.75"),
    *("data.augment.blur_share=0.3", "data.augment.blur=1.0"),
    *("optimiser.lr=4.0e-4", "optimiser.groups.new.lr=1.0e-3", "weights.fresh=[]"),
)
SHAPES = ("data.image_size=[192,192]", "data.aspect=[0.4,1.35]", "data.augment.zoom=0.85")
SMALLER = ("data.image_size=[128,128]",)
CAMERA = '["heads.camera.*","backbone.matching.*"]'
# As run: the camera head of plain_64, at its full rate after 150 steps, gave one pose for every frame (validation
# said so), and the stage, whose rate was to fall over 3,000 steps, was ended at 1,640. plain_128 begins that head
# anew, at a rate of its own, where a frame has as many tokens as in the demo, whose cameras do learn. `heads` was to
# be the last stage. On real pictures what was far came out too far (docs/results/reference.md): `furnished` goes back
# to where depth had been learned, on its worlds and on full rooms, and `all` joins it with the heads: 1,828 of its
# steps were at 128 × 128 pixels, on fewer furnished worlds, and the rest at 160 × 160, where real pictures' depth was
# 7 % better before any training (smaller pixels, so a smaller unit of Gaussians). `sharp` began at the mean of the
# weights that `all` had before and after 160 × 160 (`unified-base` of commit d6f7869). `shapes` shows it pictures
# that are not square, as videos are; its rate was to fall over 600 steps, and it was ended at 251, since streets
# lost what rooms gained; `wide` goes on from it with open ground for a third of its clips. `mask` trains nothing but
# the mask's correction, which needs cameras by matches, the most of its 7 seconds a step.
STAGES: dict[str, Stage] = {
    "plain_64": Stage(
        shards={"varied": 9, "fast": 9},
        worlds=0,
        steps=1640,
        settings=(*PLAIN, "data.image_size=[64,64]", "optimiser.lr=1.0e-3", "weights=null"),
    ),
    "plain_128": Stage(
        shards={"varied": 16, "fast": 6, "calm": 6},
        worlds=1,
        steps=1800,
        settings=(
            *PLAIN[:-1],
            *SMALLER,
            *("optimiser.lr=8.0e-4", "optimiser.warmup_share=0.1"),
            *(f"weights.fresh={CAMERA}", f"weights.dropped={CAMERA}"),
            *(f"optimiser.groups.new.parameters={CAMERA}", "optimiser.groups.new.lr=4.0e-4"),
        ),
    ),
    "heads": Stage(
        shards={"varied": 10, "fast": 4, "calm": 8, "near": 8},
        worlds=2,
        steps=1000,
        settings=(*UNCORRECTED, *SMALLER, "model.heads.gaussian.unit=0.075"),
    ),
    "furnished": Stage(
        shards={"furnished": 16, "varied": 10, "fast": 4, "calm": 8},
        worlds=2,
        steps=1500,
        settings=(
            *PLAIN[:-1],
            *SMALLER,
            *("optimiser.lr=6.0e-4", "losses.camera.weight=10.0", "weights.fresh=[]", "optimiser.groups.new=null"),
        ),
        start="plain_128",
    ),
    "all": Stage(
        shards={"furnished": 12, "near_furnished": 12, "calm": 10, "fast": 4, "varied": 4},
        worlds=3,
        steps=2250,
        settings=(
            *UNCORRECTED,
            *("data.sources.calm.weight=1.5", "data.sources.near_furnished.weight=1.5"),
            *("data.sources.furnished.weight=1.5", "data.sources.fast.weight=0.75"),
            *("data.sources.varied.weight=0.75", "weights.fresh=[]"),
        ),
        rest="heads",
    ),
    "sharp": Stage(
        shards={"furnished": 12, "near_furnished": 8, "calm": 6, "fast": 3, "varied": 4},
        worlds=5,
        steps=500,
        size=192,
        settings=SHARP,
    ),
    "shapes": Stage(
        shards={"furnished": 12, "near_furnished": 8, "calm": 6, "fast": 3, "varied": 4},
        worlds=5,
        shown="sharp",
        steps=251,
        size=192,
        settings=(*SHARP, *SHAPES),
    ),
    "wide": Stage(
        shards={"furnished": 12, "near_furnished": 8, "calm": 6, "fast": 3, "varied": 4, "open": 8},
        worlds=6,
        shown="sharp",
        steps=700,
        size=192,
        settings=(*SHARP, *SHAPES, "data.aspect=[0.3,1.35]", "data.sources.open.weight=3.0"),
    ),
    "mask": Stage(
        shards={"calm": 4, "fast": 2, "varied": 2, "furnished": 4},
        worlds=4,
        steps=300,
        settings=(
            *('weights.fresh=["refine.*"]', 'optimiser.trainable=["refine.*"]', "optimiser.frozen=[]"),
            *(f"losses.{name}=null" for name in ("camera", "depth", "points", "motion", "matching", "photometric")),
            *("losses.gaussian_depth=null", "losses.gaussian_flow=null", "data.views=null", "data.query_times=0"),
            *("losses.dynamic.positive=4.0", "optimiser.groups.new=null", "optimiser.lr=3.0e-3"),
            *("optimiser.weight_decay=0.0", "loop.epoch_steps=100", "loop.ema=0.98"),
        ),
    ),
}


def four_d(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "four_d.cli", *arguments]


def make(of: Set, place: Place, workers: int) -> None:
    """Make what a set lacks; another process may make shards of it at the same time."""
    shards, clips = max(1, round(of.shards * place.scale)), max(4, round(CLIPS * min(1.0, 10 * place.scale)))
    manifest = place.data(of) / "manifest.json"
    if manifest.is_file() and json.loads(manifest.read_text())["clips"] == shards * clips:
        return  # also where they are many, asking `data make` would take seconds of every piece
    size = ["--shards", f"0:{shards}", "--clips-per-shard", str(clips), "--seed", str(of.seed), "--size", str(of.size)]
    held_out = ["--held-out"] if of.held_out else []
    command = four_d("data", "make", *size, *WORLDS, *of.worlds.arguments, *held_out, "--workers", str(workers))
    log = place.log(f"data-{of.folder.replace('/', '-')}")
    call([*command, str(place.data(of))], log, None, expected=(0,))


def call(command: list[str], log: Path, limit_s: float | None, *, expected: tuple[int, ...]) -> int:
    """Exit code of a command whose output goes to ``log``; after ``limit_s`` seconds it is asked to stop."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        file.write(f"$ {shlex.join(command)}\n")
        file.flush()
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.terminate()
            code = process.wait()
        except BaseException:  # asked to stop itself: the training saves
            process.terminate()
            process.wait()
            raise
    if code not in expected:
        raise SystemExit("\n".join([*log.read_text().splitlines()[-5:], f"exit code {code}; the log is {log}"]))
    return code


def next_stage(
    steps: dict[str, int], partial: tuple[str, int] | None, lengths: dict[str, int]
) -> tuple[str, int] | None:
    """Name of the stage to train, and the steps of it that are done; None after the last.

    Args:
        steps: steps of each stage whose run is there.
        partial: stage and steps of the weights that were kept; None without any.
        lengths: steps of each stage, in their order.

    """
    names = list(lengths)
    reached = {name: steps.get(name, 0) for name in names}
    if partial is not None and partial[0] in reached:
        reached[partial[0]] = max(reached[partial[0]], partial[1])
    latest = max((index for index, name in enumerate(names) if reached[name]), default=0)
    if reached[names[latest]] < lengths[names[latest]]:
        return names[latest], reached[names[latest]]
    return None if latest + 1 == len(names) else (names[latest + 1], 0)


def progress_of(name: str, place: Place) -> tuple[int, int]:
    """Steps of a stage's run, and those before it, of the weights that it began from. Zeros without a run."""
    file = place.runs / name / LAST
    if not file.is_file():
        return 0, 0
    run = cast(Line, torch.load(file, map_location="cpu", mmap=True, weights_only=True)["run"])
    return cast(int, run["step"]), max(0, place.lengths[name] - cast(int, run["config"]["loop"]["max_steps"]))


def kept(place: Place) -> tuple[str, int] | None:
    """Stage of the weights that were kept, and its steps behind them."""
    if not (place.partial / CONFIG).is_file():
        return None
    info = read_info(place.partial / CONFIG)
    stage, _, before = info.name.rpartition("/")[2].partition("@")
    return stage, info.steps + int(before or 0)


def rest(values: tuple[str, ...], done: int, total: int) -> tuple[str, ...]:
    """Settings of the steps that are left of a stage: its rate falls from where it was to where it would have ended."""
    if not done:
        return (f"loop.max_steps={total}",)
    config = load(values[:1], values[1:]).optimiser
    share = learning_rate(done / total, config) / config.lr
    groups = [
        f"optimiser.groups.{name}.lr={share * (each.lr or config.lr):.6g}" for name, each in config.groups.items()
    ]
    return (
        f"loop.max_steps={total - done}",
        f"optimiser.lr={share * config.lr:.6g}",
        f"optimiser.final_lr_share={min(1.0, config.final_lr_share / share):.4g}",
        "optimiser.warmup_share=0.01",
        "weights.fresh=[]",
        "weights.dropped=[]",
        *groups,
    )


def begun(name: str, done: int, place: Place) -> int:
    """Steps of a stage that its run did not make itself: what was done before, where there is no run yet."""
    return progress_of(name, place)[1] if (place.runs / name / LAST).is_file() else done


def command_of(name: str, done: int, place: Place) -> list[str]:
    """Command of a stage's next piece."""
    if (place.runs / name / LAST).is_file():
        return four_d("train", str(place.runs / name / "config.yaml"))
    values, names = STAGES[name].values(place, done), list(STAGES)
    folder = [f"folder={place.runs}", f"name={name}"]
    folder += ["loop.precision=fp32"] if emulates_bf16(torch.device("cpu")) else []
    length = rest(values, done, place.lengths[name])
    if not done and name == names[0]:
        return four_d("train", *values, *folder, *length)
    before = place.runs / (STAGES[name].start or names[names.index(name) - 1])
    weights = before if not done and (before / LAST).is_file() else place.partial
    rest_of = STAGES[name].rest
    if not done and rest_of is not None:
        weights = joined(weights, place.runs / rest_of, place)
    return four_d("finetune", *values, *folder, *length, f"weights.path={weights}")


def joined(weights: Path, rest: Path, place: Place) -> Path:
    """Export of ``rest`` with the weights of a model that has fewer parts, where that has them."""
    exports = [place.runs / "joined" / each for each in ("weights", "rest")]
    for source, export in zip((weights, rest), exports):
        command = four_d("export", str(source), "--out", str(export), "--format", "safetensors", "--overwrite")
        call(command, place.log("joined"), None, expected=(0,))
    fewer, more = (load_file(export / WEIGHTS) for export in exports)
    save_file({name: fewer.get(name, value).contiguous() for name, value in more.items()}, exports[1] / WEIGHTS)
    return exports[1]


def train(name: str, done: int, place: Place, minutes: float) -> bool:
    """One piece, and its line. True if the stage is at its end."""
    began, lines = time.monotonic(), len(metrics(name, place))
    code = call(command_of(name, done, place), place.log(name), 60 * minutes, expected=(0, STOPPED))
    held_out = [line for line in metrics(name, place) if line["split"] == "validation"][-1:]
    stuck = [f"{key} {value}" for line in held_out for key, value in line.items() if key.endswith(SAME_FOR)]
    place.raw.parent.mkdir(parents=True, exist_ok=True)
    with place.raw.open("a") as file:
        line = line_of(name, place, metrics(name, place)[lines:], (time.monotonic() - began) / 60)
        file.write(json.dumps(line) + "\n")
    if stuck:
        raise SystemExit(f"{name} does not learn: {', '.join(stuck)}; the log is {place.log(name)}")
    return code == 0


def metrics(name: str, place: Place) -> list[Line]:
    file = place.runs / name / METRICS
    return [json.loads(text) for text in file.read_text().splitlines()] if file.is_file() else []


def line_of(name: str, place: Place, new: list[Line], minutes: float) -> Line:
    """Record of a piece: the last validation, and the speed by the clock of the run."""
    training = [line for line in new if line["split"] == "train"]
    held_out = [line for line in new if line["split"] == "validation"]
    times = [(b["step"] - a["step"], b["elapsed_s"] - a["elapsed_s"]) for a, b in pairwise(training)]
    pace = [steps / seconds for steps, seconds in times if seconds > 0 and steps > 0]
    values = STAGES[name].values(place, 0)
    last = held_out[-1] if held_out else {}
    return {
        "stage": name,
        "step": sum(progress_of(name, place)),
        "of": place.lengths[name],
        "minutes": round(minutes, 2),
        "images_per_s": round(load(values[:1], values[1:]).data.images_per_batch * median(pace), 2) if pace else None,
        "memory_gb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6, 2),
        "held_out_step": last.get("step"),
        "held_out": {key: value for key, value in last.items() if isinstance(value, float) and key != "elapsed_s"},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "commit": commit(),
        "load": round(os.getloadavg()[0], 1),
        "machine": f"{os.cpu_count()} × {processor()}, Python {platform.python_version()}",
        "command": shlex.join(["python", "benchmarks/reference.py", *sys.argv[1:]]),
    }


def keep(place: Place) -> None:
    """Export the averaged weights of the stage that is furthest, in bfloat16."""
    there = [name for name in STAGES if (place.runs / name / LAST).is_file()]
    if not there:
        raise SystemExit(f"{place.runs} has no run to keep weights of")
    flags = ("--dtype", "bf16", "--format", "safetensors", "--overwrite")
    command = four_d("export", str(place.runs / there[-1]), "--out", str(place.partial), *flags)
    call(command, place.log("keep"), None, expected=(0,))
    before = progress_of(there[-1], place)[1]
    if before:  # the export's own count is of the run alone
        info = json.loads((place.partial / CONFIG).read_text())
        (place.partial / CONFIG).write_text(json.dumps({**info, "name": f"{info['name']}@{before}"}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pieces", type=int, help="end after so many pieces (default: when all is trained)")
    parser.add_argument("--minutes", type=float, default=15.0, help="length of a piece")
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of worlds and steps, to rehearse")
    parser.add_argument("--workers", type=int, default=1, help="processes that make worlds")
    parser.add_argument("--worlds", action="store_true", help="only make worlds: this stage's and the next one's")
    parser.add_argument("--keep", action="store_true", help="only export the weights so far")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    place = Place.of(given.scale)
    if given.keep:
        keep(place)
    elif given.worlds:
        for each in worlds(place):
            make(each, place, given.workers)
    else:
        run(place, given.pieces, given.minutes, given.workers)


def under_way(place: Place) -> tuple[str, int] | None:
    """Stage to train, and the steps of it that are done; None after the last."""
    steps = {name: sum(progress_of(name, place)) for name in STAGES}
    return next_stage(steps, kept(place), place.lengths)


def worlds(place: Place) -> tuple[Set, ...]:
    """Worlds of the run under way, and those that the next stage begins with."""
    found = under_way(place)
    if found is None:
        return ()
    name, done = found
    after = list(STAGES)[list(STAGES).index(name) + 1 :][:1]
    several = (STAGES[name].sets(begun(name, done, place)), *(STAGES[each].sets(0) for each in after))
    return (*HELD_OUT_SETS, *(each for sets in several for each in sets.values()))


def run(place: Place, pieces: int | None, minutes: float, workers: int) -> None:
    """Worlds and pieces, each with its line, until all is trained or so many ``pieces`` are done."""
    done_pieces = 0
    while pieces is None or done_pieces < pieces:
        found = under_way(place)
        if found is None:
            print("all stages are trained", flush=True)
            return
        name, done = found
        for each in (*HELD_OUT_SETS, *STAGES[name].sets(begun(name, done, place)).values()):
            make(each, place, workers)
        if train(name, done, place, minutes):
            keep(place)
        done_pieces += 1
        print(place.raw.read_text().splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
