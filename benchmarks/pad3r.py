"""The study of PAD3R: its ladder of parts on synthetic videos, each fitted by ``four-d fit``, resumable.

    python benchmarks/pad3r.py [--only RUNG] [--things dog,eel] [--coverages 40,140] [--summary]

Each fit becomes a line of ``docs/results/raw/pad3r.jsonl`` when it ends, and is not made again;
``docs/results/pad3r.json`` follows from the lines. A scene is compared after the one rotation, shift and scale that fit
all its cameras best: one camera does not tell how large an object is, and the object's file has another surface.
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
from typing import Any, cast

import roma
import torch
from jaxtyping import Float
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.generate import commit, processor  # noqa: E402 - this script is run by its path
from benchmarks.studies import pad3r_clips as clips  # noqa: E402
from four_d import config, fields  # noqa: E402
from four_d.fitting import FitRequest, fit  # noqa: E402
from four_d.geometry import Similarity, project  # noqa: E402
from four_d.inference import load  # noqa: E402
from four_d.objects import read_object  # noqa: E402
from four_d.rendering import contributors, render  # noqa: E402
from four_d.rendering.scene import means_at  # noqa: E402
from four_d.scene import DeformableScene  # noqa: E402
from four_d.training import train  # noqa: E402
from four_d.types import Gaussians, map_tensors  # noqa: E402

RUNS = Path("runs/studies/pad3r")
RESULTS = ROOT / "docs" / "results"
RAW = RESULTS / "raw" / "pad3r.jsonl"
LADDER, ALL = (40, 140), (0, 40, 90, 140, 180)
"""Degrees of azimuth at which all rungs are fitted, and the last one."""
STEPS, POSE_STEPS, GAUSSIANS = 400, 300, 2000
RUNGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "cameras": ({"pose_steps": 0, "tracks": None}, ()),
    "posenet": ({"tracks": None}, ()),
    "tracks": ({}, ("losses.tracks.directions=forward",)),
    "full": ({}, ()),
}
"""Rung → what differs in the request, and settings of the run."""
KEYS = ("psnr", "pose_error_deg", "track_error", "chamfer")


def align(truth: Float[Tensor, "f 4 4"], found: Float[Tensor, "f 4 4"]) -> Similarity:
    """Similarity from a scene's object coordinates to the video's, by its cameras.

    The scale is that of distances from the object's middle: cameras that hardly move tell none by their places.
    """
    product = (truth[:, :3, :3] @ found[:, :3, :3].mT).sum(0)
    rotation = cast(Tensor, roma.special_procrustes(product)).double()
    scale = float((truth[:, :3, 3].norm(dim=-1) / found[:, :3, 3].norm(dim=-1)).median())
    shift = (truth[:, :3, 3].double() - scale * found[:, :3, 3].double() @ rotation.mT).mean(0)
    return Similarity(scale=scale, rotation=rotation, shift=shift)


@torch.no_grad()
def scores(scene: DeformableScene, name: str, coverage: int, scale: float) -> dict[str, float]:
    """Figures of a fitted scene; lengths in the object's radii."""
    thing, seed = clips.THINGS[name](), 100 + list(clips.THINGS).index(name)
    times, truth = torch.arange(clips.FRAMES) / clips.RATE, clips.path(coverage, seed)
    found = scene.cameras(torch.arange(clips.FRAMES))
    placed = align(truth, found)
    turned = placed.rotation.float() @ found[:, :3, :3]
    angles = roma.rotmat_geodesic_distance(turned, truth[:, :3, :3])
    return {
        "psnr": held_out(scene, thing, placed, truth),
        "pose_error_deg": float(torch.rad2deg(angles).mean()),
        "track_error": track_error(scene, thing, placed, truth, times) / scale,
        "chamfer": chamfer(scene, thing, placed, times[:: clips.FRAMES // 5]) / scale,
    }


def moved_at(scene: DeformableScene, placed: Similarity, times: Float[Tensor, "t"]) -> Gaussians:
    """The scene's Gaussians at times of the clip, batched, in the video's coordinates."""
    own = times * clips.RATE * (scene.times[1] - scene.times[0])  # a folder of frames has a rate of its own
    moved = scene.deformation.deform(scene.gaussians(), own)
    return fields.stack([fields.move(dataclasses.replace(moved, offset_times=times), placed)])


def held_out(scene: DeformableScene, thing: clips.Thing, placed: Similarity, truth: Float[Tensor, "f 4 4"]) -> float:
    """PSNR over black at cameras and times that the video does not have."""
    middle = truth[len(truth) // 2, :3, 3]
    azimuth = float(torch.rad2deg(torch.atan2(middle[0], -middle[2])))
    moments = (torch.linspace(0.05, 0.95, clips.MOMENTS) * (clips.FRAMES - 1)).floor().add(0.5) / clips.RATE
    values: list[float] = []
    for turn in clips.HELD_OUT:
        shown = clips.cameras(clips.camera(azimuth + turn, 10).repeat(len(moments), 1, 1))
        size = (clips.SIZE, clips.SIZE)
        pictures = [
            render(each, shown, moments[None], size).colour.clamp(0, 1)
            for each in (clips.at_times(thing, moments), moved_at(scene, placed, moments))
        ]
        errors = (pictures[0] - pictures[1]).square().flatten(2).mean(-1)[0]
        values += (-10 * errors.clamp_min(1e-10).log10()).tolist()
    return statistics.fmean(values)


def track_error(
    scene: DeformableScene,
    thing: clips.Thing,
    placed: Similarity,
    truth: Float[Tensor, "f 4 4"],
    times: Float[Tensor, "t"],
) -> float:
    """Mean distance over all frames between true points and those that the scene carries on from their first pixels."""
    exact = clips.at_times(thing, times)
    shown = clips.cameras(truth)
    first = map_tensors(shown, lambda tensor: tensor[:, :1])
    every = means_at(exact, times[None])[0][:, ::16]
    pixels, z = project(every[:1], fields.unstack(first, 0))
    depth = render(exact, first, times[None, :1], (clips.SIZE, clips.SIZE)).depth[0, 0]
    column, row = pixels[0].long().clamp(0, clips.SIZE - 1).unbind(-1)
    seen = z[0] < depth[row, column] + 0.06
    own = fields.stack([scene.at(times[:1])])
    assert own.gaussians is not None
    assert own.cameras is not None
    # in its own camera: what the scene shows at that pixel
    found = contributors(
        own.gaussians, own.cameras, times[None, :1], pixels[:, seen][None], 8, size=(clips.SIZE, clips.SIZE)
    )
    shares, members = found.weights[0, 0], found.indices[0, 0].clamp_min(0)
    covered = shares.sum(-1) > 0.1
    shares = shares / shares.sum(-1, keepdim=True).clamp_min(0.1)
    carried = means_at(moved_at(scene, placed, times), times[None])[0][:, members]
    distance = ((carried * shares[..., None]).sum(2) - every[:, seen]).norm(dim=-1)
    # a point that the scene does not show is off by its radius
    return float(torch.where(covered, distance, placed.scale).mean())


def chamfer(scene: DeformableScene, thing: clips.Thing, placed: Similarity, times: Float[Tensor, "t"]) -> float:
    """Mean of the distances of each surface's points from the other's nearest."""
    ours = means_at(moved_at(scene, placed, times), times[None])[0]
    theirs = means_at(clips.at_times(thing, times), times[None])[0][:, ::2]
    both = [torch.cdist(a, b) for a, b in zip(ours, theirs, strict=True)]
    return statistics.fmean(float(each.amin(0).mean() + each.amin(1).mean()) / 2 for each in both)


def clip_of(name: str, coverage: int) -> Path:
    """The folder of a video, made if it is not there."""
    source = RUNS / "clips" / f"{name}-{coverage}"
    if not (source / "tracks.npz").is_file():
        clips.make(name, coverage, source)
    return source


def pose_net(name: str) -> Path:
    """The pose network of one object, whose file is the same at all coverages; trained once."""
    folder, file = RUNS / "pose_nets", clip_of(name, LADDER[0]) / "object.ply"
    values = [f"folder={folder}", f"name={name}", f"data.sources.renders.path={file}", f"loop.max_steps={POSE_STEPS}"]
    if train(config.load(["pose_net"], values)).exit_code:
        raise SystemExit(1)
    return folder / name


def run(rung: str, name: str, coverage: int) -> dict[str, Any]:
    """One fit and its line."""
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
    )
    out, began = RUNS / f"{rung}-{name}-{coverage}", time.monotonic()
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
        **scores(scene, name, coverage, scale),
        "frame_psnr": result.validation["frame_psnr"],
        "steps": STEPS,
        "minutes": round((time.monotonic() - began) / 60, 2),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "machine": f"{os.cpu_count()} × {processor()}, Python {platform.python_version()}",
        "command": shlex.join(["python", "benchmarks/pad3r.py", *sys.argv[1:]]),
    }


def read_raw() -> dict[tuple[str, str, int], dict[str, Any]]:
    """The newest line of each fit."""
    lines = [json.loads(text) for text in RAW.read_text().splitlines()] if RAW.is_file() else []
    return {(line["rung"], line["thing"], line["coverage"]): line for line in lines}


def publish() -> None:
    """Write and print the mean of each rung and coverage over the objects, and each object's figures."""
    lines = list(read_raw().values())
    summary: dict[str, dict[str, Any]] = {}
    for rung in RUNGS:
        for coverage in ALL:
            own = [line for line in lines if (line["rung"], line["coverage"]) == (rung, coverage)]
            if own:
                means = {key: statistics.fmean(line[key] for line in own) for key in KEYS}
                each = {line["thing"]: {key: line[key] for key in KEYS} for line in own}
                summary.setdefault(rung, {})[str(coverage)] = {**means, "per_thing": each}
                print(rung, coverage, len(own), {key: round(value, 3) for key, value in means.items()})
    (RESULTS / "pad3r.json").write_text(json.dumps(summary, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(RUNGS))
    parser.add_argument("--things", type=lambda text: text.split(","), default=list(clips.THINGS))
    parser.add_argument("--coverages", type=lambda text: [int(part) for part in text.split(",")], default=None)
    parser.add_argument("--summary", action="store_true", help="only the figures of what was fitted")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    done = read_raw()
    RAW.parent.mkdir(parents=True, exist_ok=True)
    for coverage in [] if arguments.summary else arguments.coverages or ALL:
        for name in arguments.things:
            for rung in [arguments.only] if arguments.only else RUNGS:
                wanted = rung == "full" or coverage in LADDER or arguments.coverages is not None
                if wanted and (rung, name, coverage) not in done:
                    line = run(rung, name, coverage)
                    with RAW.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    print(json.dumps({key: line[key] for key in ("rung", "thing", "coverage", *KEYS)}), flush=True)
    publish()


if __name__ == "__main__":
    main()
