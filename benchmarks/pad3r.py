"""The study of PAD3R: its ladder of parts on synthetic videos, each fitted by ``four-d fit``, resumable.

    python benchmarks/pad3r.py [--only cameras,full] [--things dog,eel] [--coverages 40,140] [--seed 0] [--summary]

Each fit becomes a line of ``docs/results/raw/pad3r.jsonl`` when it ends, and is not made again;
``docs/results/pad3r.json`` follows from the lines. What is compared: `benchmarks.studies.pad3r_scores`.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.generate import commit, processor  # noqa: E402 - this script is run by its path
from benchmarks.studies import pad3r_clips as clips  # noqa: E402
from benchmarks.studies.pad3r_scores import scores  # noqa: E402
from four_d import config  # noqa: E402
from four_d.fitting import FitRequest, fit  # noqa: E402
from four_d.inference import load  # noqa: E402
from four_d.objects import read_object  # noqa: E402
from four_d.scene import DeformableScene  # noqa: E402
from four_d.training import train  # noqa: E402

RUNS = Path("runs/studies/pad3r")
RESULTS = ROOT / "docs" / "results"
RAW = RESULTS / "raw" / "pad3r.jsonl"
LADDER, ALL = (40, 140), (0, 40, 90, 140, 180)
"""Degrees of azimuth at which all rungs are fitted, and the last one."""
STEPS, GAUSSIANS = 300, 2000
POSE_STEPS, PICTURES = 320, 2560
"""Steps of the pose network and number of its pictures, each of which it sees four times."""
RUNGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "cameras": ({"pose_steps": 0, "tracks": None}, ()),
    "posenet": ({"tracks": None}, ()),
    "tracks": ({}, ("losses.tracks.directions=forward",)),
    "full": ({}, ()),
    "siren_pose": ({}, ("losses.siren_pose={kind: siren_pose, source: scene, without_truth: true, weight: 0.1}",)),
}
"""Rung → what differs in the request, and settings of the run. The last is `full` with a term of another paper."""
STEPS_OF_LADDER = ("cameras", "posenet", "tracks", "full")
KEYS = ("psnr", "pose_error_deg", "track_error", "chamfer")
FIGURES = (*KEYS, *(f"{key}_in_world" for key in KEYS))


def clip_of(name: str, coverage: int) -> Path:
    """The folder of a video, made if it is not there."""
    source = RUNS / "clips" / f"{name}-{coverage}"
    if not (source / "tracks.npz").is_file():
        clips.make(name, coverage, source)
    return source


def pose_net(name: str) -> Path:
    """The pose network of one object, whose file is the same at all coverages; trained once."""
    folder, file = RUNS / "pose_nets", clip_of(name, LADDER[0]) / "object.ply"
    renders = {"path": file, "count": PICTURES, "gaussians": GAUSSIANS}
    values = [f"folder={folder}", f"name={name}", f"loop.max_steps={POSE_STEPS}"]
    values += [f"data.sources.renders.{key}={value}" for key, value in renders.items()]
    if train(config.load(["pose_net"], values)).exit_code:
        raise SystemExit(1)
    return folder / name


def run(rung: str, name: str, coverage: int, seed: int) -> dict[str, Any]:
    """One fit and its line. The pose network is of seed 0 in all."""
    source = clip_of(name, coverage)
    changes, settings = RUNGS[rung]
    request = FitRequest(
        video=source / "frames",
        object=source / "object.ply",
        mask=source / "masks",
        tracks=source / "tracks.npz",
        size=clips.SIZE,
        focal=clips.FOCAL / clips.SIZE,
        gaussians=GAUSSIANS,
        steps=STEPS,
        pose_net=None if rung == "cameras" else pose_net(name),
        seed=seed,
    )
    out, began = RUNS / f"{rung}-{name}-{coverage}-{seed}", time.monotonic()
    result = fit(dataclasses.replace(request, **changes), out, settings)
    if result.exit_code:
        raise SystemExit(result.exit_code)
    scene = load(out / "scene").model
    assert isinstance(scene, DeformableScene)
    scale = read_object(source / "object.ply").file_from_object.scale
    return {
        "rung": rung,
        "thing": name,
        "coverage": coverage,
        "seed": seed,
        **scores(scene, name, coverage, scale),
        "frame_psnr": result.validation["frame_psnr"],
        "steps": STEPS,
        "minutes": round((time.monotonic() - began) / 60, 2),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "machine": f"{os.cpu_count()} × {processor()}, Python {platform.python_version()}",
        "command": shlex.join(["python", "benchmarks/pad3r.py", *sys.argv[1:]]),
    }


def read_raw() -> dict[tuple[str, str, int, int], dict[str, Any]]:
    """The newest line of each fit."""
    lines = [json.loads(text) for text in RAW.read_text().splitlines()] if RAW.is_file() else []
    return {(line["rung"], line["thing"], line["coverage"], line["seed"]): line for line in lines}


def publish() -> None:
    """Write and print the mean of each rung and coverage over the objects, and each object's figures."""
    lines = list(read_raw().values())
    summary: dict[str, dict[str, Any]] = {}
    for rung in STEPS_OF_LADDER:
        for coverage in ALL:
            own = [line for line in lines if (line["rung"], line["coverage"], line["seed"]) == (rung, coverage, 0)]
            if own:
                summary.setdefault(rung, {})[str(coverage)] = means = means_of(own)
                means["per_thing"] = {line["thing"]: {key: line[key] for key in FIGURES} for line in own}
                print(rung, coverage, len(own), {key: round(means[key], 3) for key in FIGURES})
    pairs = [line for line in lines if line["rung"] == "siren_pose"]
    for line in pairs:
        place = {key: line[key] for key in ("thing", "coverage", "seed")}
        without = [each for each in lines if each["rung"] == "full" and {**each, **place} == each]
        entry = {"with": {key: line[key] for key in FIGURES}, "without": means_of(without) if without else None}
        name = f"{line['thing']}, {line['coverage']}°, seed {line['seed']}"
        summary.setdefault("siren_pose", {})[name] = entry
        print("siren_pose", name, entry)
    (RESULTS / "pad3r.json").write_text(json.dumps(summary, indent=1) + "\n")


def means_of(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean of every figure."""
    return {key: statistics.fmean(line[key] for line in lines) for key in FIGURES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(STEPS_OF_LADDER), metavar="RUNGS")
    parser.add_argument("--things", type=lambda text: text.split(","), default=list(clips.THINGS))
    parser.add_argument("--coverages", type=lambda text: [int(part) for part in text.split(",")], default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--summary", action="store_true", help="only the figures of what was fitted")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.only) - set(RUNGS))
    if unknown:
        parser.error(f"no rung is called {', '.join(unknown)}; choose from {', '.join(RUNGS)}")
    torch.manual_seed(0)
    done = read_raw()
    RAW.parent.mkdir(parents=True, exist_ok=True)
    for coverage in [] if arguments.summary else arguments.coverages or ALL:
        for name in arguments.things:
            for rung in arguments.only:
                wanted = rung == "full" or coverage in LADDER or arguments.coverages is not None
                if wanted and (rung, name, coverage, arguments.seed) not in done:
                    line = run(rung, name, coverage, arguments.seed)
                    with RAW.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    print(json.dumps({key: line[key] for key in ("rung", "thing", "coverage", *KEYS)}), flush=True)
    publish()


if __name__ == "__main__":
    main()
