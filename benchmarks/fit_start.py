"""How much sooner a fit is good that begins with a feed-forward model's Gaussians: steps and seconds to one PSNR.

    OMP_NUM_THREADS=1 python benchmarks/fit_start.py [--starts ball,front] [--thing dog] [--coverage 40] [--seed 0]

One video of the study of PAD3R is fitted from each start, without tracks and pose network: ``ball`` (grey Gaussians in
a ball, before the camera), ``front`` (the study's object file, before the camera), ``unified`` and ``dgs_lrm``
(``--init``). Every `EVERY` steps the PSNR of the video's own frames is taken. Writes docs/results/fit_start.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import platform
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.generate import commit, processor  # noqa: E402 - this script is run by its path
from benchmarks.studies import pad3r_clips as clips  # noqa: E402
from four_d.fitting import FitRequest, fit  # noqa: E402
from four_d.geometry import identity_quaternion  # noqa: E402
from four_d.objects import CanonicalObject, of_gaussians  # noqa: E402
from four_d.outputs import write_json  # noqa: E402
from four_d.rendering.harmonics import constant  # noqa: E402
from four_d.training.record import read_metrics  # noqa: E402
from four_d.types import Gaussians  # noqa: E402

RUNS, RESULT = Path("runs/studies/fit_start"), ROOT / "docs" / "results" / "fit_start.json"
STEPS, EVERY, SIZE, NUMBER = 150, 25, 64, 1500
STARTS = ("ball", "front", "unified", "dgs_lrm")


@dataclasses.dataclass(frozen=True)
class Ball:
    """Nothing known of the object: grey Gaussians in a ball."""

    def provide(self, gaussians: int | None = None) -> CanonicalObject:
        """Draw them."""
        count, generator = gaussians or NUMBER, torch.Generator().manual_seed(0)
        out = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
        points = out * torch.rand(count, 1, generator=generator) ** (1 / 3)
        ball = Gaussians(
            means=points,
            quats=identity_quaternion(points).repeat(count, 1),
            scales=torch.full_like(points, 0.05),
            opacities=torch.full((count,), 0.8),
            harmonics=constant(torch.full((count, 3), 0.5)),
        )
        return of_gaussians(ball, str(self))

    def __str__(self) -> str:
        return "ball"


def run(start: str, source: Path, seed: int) -> dict[str, Any]:
    """One fit: PSNR by steps, and its seconds."""
    given: dict[str, Any] = {
        "ball": {"object": Ball(), "pose_steps": 0},
        "front": {"object": source / "object.ply", "pose_steps": 0},
    }.get(start, {"init": start})
    request = FitRequest(
        video=source / "frames",
        mask=source / "masks",
        size=SIZE,
        focal=clips.FOCAL / clips.SIZE,
        gaussians=NUMBER,
        steps=STEPS,
        seed=seed,
        **given,
    )
    out = RUNS / f"{start}-{source.name}-{seed}"
    shutil.rmtree(out, ignore_errors=True)
    began, busy = time.monotonic(), time.process_time()
    result = fit(request, out, [f"loop.epoch_steps={EVERY}", "logging.pictures=0"])
    if result.exit_code:
        raise SystemExit(result.exit_code)
    seconds, busy = time.monotonic() - began, time.process_time() - busy
    rows: list[dict[str, Any]] = [dict(row) for row in read_metrics(out / "scene") if "frame_psnr" in row]
    trained = rows[-1]["elapsed_s"]
    return {
        "psnr_by_step": {str(int(row["step"])): round(row["frame_psnr"], 2) for row in rows},
        "seconds": round(seconds, 1),
        "cpu_seconds": round(busy, 1),
        "seconds_before_the_first_step": round(seconds - trained, 1),
    }


def reached(curve: dict[str, float], target: float) -> int | None:
    """First step at which a PSNR is reached."""
    return next((int(step) for step, psnr in curve.items() if psnr >= target), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=lambda text: text.split(","), default=list(STARTS))
    parser.add_argument("--thing", choices=list(clips.THINGS), default="dog")
    parser.add_argument("--coverage", type=float, default=40.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    source = RUNS / "clips" / f"{arguments.thing}-{arguments.coverage:g}"
    if not (source / "tracks.npz").is_file():
        clips.make(arguments.thing, arguments.coverage, source)
    found: dict[str, Any] = {}
    for start in arguments.starts:
        found[start] = run(start, source, arguments.seed)
        publish(found, source.name, arguments.seed)
        print(start, found[start], flush=True)


def publish(found: dict[str, Any], clip: str, seed: int) -> None:
    """Write what was fitted so far; the target is the PSNR that the worst of the fits ends with."""
    target = min(list(each["psnr_by_step"].values())[-1] for each in found.values())
    rows = {start: {**each, "steps_to_target": reached(each["psnr_by_step"], target)} for start, each in found.items()}
    content = {
        "clip": f"{clip}, {clips.FRAMES} frames at {SIZE} × {SIZE}",
        "target_psnr": target,
        "starts": rows,
        "gaussians": NUMBER,
        "seed": seed,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "machine": f"{os.cpu_count()} × {processor()}, Python {platform.python_version()}, one thread",
        "load": os.getloadavg()[1],
        "command": shlex.join(["python", "benchmarks/fit_start.py", *sys.argv[1:]]),
    }
    write_json(RESULT, content)


if __name__ == "__main__":
    main()
