"""Gaussians of one clip by optimisation from scratch, for as long as one is willing to wait: what a feed-forward model
is measured against.

    python benchmarks/optimise.py --data runs/studies/data/held_out_calm --seconds 3 --clips 8 [--seed 0] \
        [--row optimised_10x --beside runs/studies/dgs_lrm/deformable-0/scores.json]

A clip's posed frames are all that is seen, as by the model: no depth, no motion. Gaussians start at random depths along
random pixels' rays. Everything is optimised by Adam, a random half of the frames at a time, until the seconds are over
(the compiled renderer is built before). Prints a JSON line per clip (`evaluation.novel`) and their means. With
``--row`` these are also a raw line of the study of DGS-LRM, with what the model that ``--beside`` names scored on the
same clips, which are some of those that it was scored on.
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from four_d import geometry
from four_d.evaluation import EvaluationConfig, Videos
from four_d.evaluation.held_out import evenly
from four_d.evaluation.novel import copy_scores, novel_scores, size_of
from four_d.evaluation.result import COPY
from four_d.losses.photometric import PhotometricLossConfig
from four_d.losses.term import LossInputs
from four_d.progress import progress
from four_d.types import Clip, Gaussians, Prediction, Segment, map_tensors

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.generate import commit, processor  # noqa: E402 - this script is run by its path
from benchmarks.studies import SIDE  # noqa: E402

COUNT = SIDE**2
"""As many Gaussians as a frame has pixels; a model of two key frames has twice as many."""
NEAR, FAR = 0.1, 2.0
"""Depths at the start, in the unit in which a fifth of the pixels is farther away than ½."""
RATES = {"means": 2e-3, "scales": 2e-2, "quats": 1e-2, "opacities": 3e-2, "colours": 2e-2, "offsets": 1e-3}
STILL = 0.02
"""Weight of the offsets' mean length: what need not move stands still."""


def start(clip: Clip, generator: torch.Generator) -> dict[str, Tensor]:
    """Parameters of `COUNT` Gaussians of an unbatched clip with cameras."""
    assert clip.cameras is not None
    height, width = size_of(clip)
    frames = torch.randint(len(clip.times), (COUNT,), generator=generator)
    rows, columns = (torch.randint(side, (COUNT,), generator=generator) for side in (height, width))
    depth = NEAR * (FAR / NEAR) ** torch.rand(COUNT, generator=generator)
    maps = torch.ones(len(clip.times), height, width)
    rays = geometry.unproject(maps, clip.cameras)[frames, rows, columns]
    centres = clip.cameras.world_from_camera[frames, :3, 3]
    wide = depth * width / clip.cameras.intrinsics[0, 0, 0] / COUNT**0.5
    times = clip.times.unique()
    return {
        "means": centres + depth[:, None] * (rays - centres),
        "scales": wide.log()[:, None].expand(-1, 3).clone(),
        "quats": torch.tensor([1.0, 0, 0, 0]).repeat(COUNT, 1),
        "opacities": torch.zeros(COUNT),
        "colours": clip.images[frames, :, rows, columns].clamp(0.02, 0.98).logit(),
        "offsets": torch.zeros(len(times), COUNT, 3),
        "times": times,
    }


def gaussians_of(values: dict[str, Tensor]) -> Gaussians:
    """Batched, of parameters."""
    colour = (values["colours"].sigmoid() - 0.5) / 0.28209479177387814
    single = Gaussians(
        means=values["means"],
        quats=values["quats"],
        scales=values["scales"].exp(),
        opacities=values["opacities"].sigmoid(),
        harmonics=colour[:, None],
        offsets=values["offsets"],
        offset_times=values["times"],
    )
    return map_tensors(single, lambda tensor: tensor[None])


def optimise(clip: Clip, seconds: float, seed: int) -> tuple[Gaussians, int]:
    """Gaussians fitted to an unbatched clip, and the number of steps."""
    assert clip.cameras is not None
    generator = torch.Generator().manual_seed(seed)
    values = start(clip, generator)
    moved = [values[name].requires_grad_() for name in RATES]
    adam = torch.optim.Adam([{"params": [p], "lr": rate} for p, rate in zip(moved, RATES.values(), strict=True)])
    loss, count, steps = PhotometricLossConfig().build(), max(len(clip.times) // 2, 1), 0
    began = time.monotonic()
    while (share := (time.monotonic() - began) / seconds) < 1:
        for group, rate in zip(adam.param_groups, RATES.values(), strict=True):
            group["lr"] = rate * 0.05**share
        some = torch.randperm(len(clip.times), generator=generator)[:count]
        shown = Clip(
            images=clip.images[some][None],
            times=clip.times[some][None],
            camera_ids=clip.camera_ids[some][None],
            cameras=map_tensors(clip.cameras, lambda tensor, some=some: tensor[some][None]),
        )
        found = gaussians_of(values)
        targets = dataclasses.replace(shown, views=shown)
        value = loss(LossInputs(prediction=Prediction(gaussians=found), targets=targets))
        (value + STILL * values["offsets"].norm(dim=-1).mean()).backward()
        adam.step()
        adam.zero_grad()
        steps += 1
    return map_tensors(gaussians_of(values), lambda tensor: tensor[0].detach()), steps


def build(clip: Clip) -> None:
    """Draw once, so that the renderer is there before any time is taken."""
    optimise(map_tensors(clip, lambda tensor: tensor[0]), 0.01, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seconds", type=float, required=True, help="per clip")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--frames", type=int, default=6)
    parser.add_argument("--stride", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--row", help="of the study's table, whose raw line this becomes")
    parser.add_argument("--beside", type=Path, help="a model's scores.json")
    arguments = parser.parse_args()
    config = EvaluationConfig(
        data=arguments.data,
        frames=arguments.frames,
        stride=arguments.stride,
        size=(SIDE, SIDE),
        pictures=True,
        normalisation="disparity",
    )
    scored = None if arguments.beside is None else json.loads(arguments.beside.read_text())["per_video"]
    videos = Videos.open(Path(arguments.data), config, None if scored is None else len(scored["keys"]))
    videos = dataclasses.replace(videos, lists=tuple(evenly(videos.lists, arguments.clips)))
    lines: list[dict[str, Any]] = []
    copied: list[dict[str, float]] = []
    build(next(iter(videos)).targets)
    with progress("optimising", len(videos.lists), "clip") as bar:
        for number, example in enumerate(videos):
            clip = map_tensors(example.targets, lambda tensor: tensor[0])
            assert clip.cameras is not None
            cameras = dataclasses.replace(clip.cameras, known=None, intrinsics_known=None)
            seen = dataclasses.replace(clip, cameras=cameras)
            found, steps = optimise(seen, arguments.seconds, arguments.seed + number)
            lines.append(
                {"key": example.key[0], "steps": steps, **novel_scores([Segment(gaussians=found, start=0.0)], seen)}
            )
            copied.append(copy_scores(seen))
            print(json.dumps(lines[-1]), flush=True)
            bar.advance()
    found = {
        "clips": len(lines),
        "seconds_per_clip": arguments.seconds,
        "seed": arguments.seed,
        **means(lines),
        "predictors": {COPY: means(copied)},
        "beside": {} if scored is None else beside(scored, [line["key"] for line in lines]),
    }
    print(json.dumps(found))
    if arguments.row is not None:
        write_row(arguments.row, found)


def means(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean of each figure over the clips that have it."""
    names = dict.fromkeys(name for line in lines for name in line if name != "key")
    return {name: statistics.fmean(line[name] for line in lines if name in line) for name in names}


def beside(per_video: Mapping[str, Any], keys: list[str]) -> dict[str, float]:
    """A model's scores on these clips: PSNR, and PSNR of what moves."""
    places = [per_video["keys"].index(key) for key in keys]
    figures = {name: per_video["model"][name] for name in ("render_psnr", "render_psnr_dynamic")}
    known = {name: [values[place] for place in places] for name, values in figures.items()}
    return {name: statistics.fmean(v for v in values if v is not None) for name, values in known.items()}


def write_row(row: str, found: Mapping[str, Any]) -> None:
    """Append a raw line of the study."""
    line = {
        "study": "dgs_lrm",
        "variant": row,
        **found,
        "image_free": {},
        "digest": f"{found['clips']} of the study's clips",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "machine": f"{os.cpu_count()} × {processor()}, Python {platform.python_version()}",
        "command": shlex.join(["python", "benchmarks/optimise.py", *sys.argv[1:]]),
    }
    with (ROOT / "docs" / "results" / "raw" / "dgs_lrm.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
