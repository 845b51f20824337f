"""Origin of the keypoint error: where a whole track is off, or how it moves. Why a filter loses nothing by smoothing.

    python -m benchmarks.studies.siren_pose_causes [--runs base-0,full-0]

Takes runs of `make study-siren-pose` and the study's held-out videos. Prints, and writes to
docs/results/siren_pose_causes.json, for each run, in metres: the mean distance from the truth; that of each track's
mean over the video from the true mean; what is left of each track after that is taken off; along and across the line
of sight.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.studies.siren_pose import STUDY
from benchmarks.study import RESULTS, RUNS
from four_d.config import load_plain
from four_d.evaluation import EvaluationConfig, Videos
from four_d.inference import load
from four_d.schema import build


def parts(found: Tensor, truth: Tensor, valid: Tensor, sight: Tensor) -> dict[str, float]:
    """Errors of one video's tracks f n 3, whose frames' lines of sight are the unit vectors f n 3."""
    whole = valid.all(0)
    away = (found - truth)[:, whole]
    constant = away.mean(0, keepdim=True)
    moving = away - constant
    along = (away * sight[:, whole]).sum(-1, keepdim=True) * sight[:, whole]
    return {
        "error": float(away.norm(dim=-1).mean()),
        "constant": float(constant.norm(dim=-1).mean()),
        "varying": float(moving.norm(dim=-1).mean()),
        "along_sight": float(along.norm(dim=-1).mean()),
        "across_sight": float((away - along).norm(dim=-1).mean()),
    }


def measure(name: str) -> dict[str, float]:
    """Mean over the study's held-out videos, in metres."""
    model = load(RUNS / STUDY.name / name)
    given = {"size": list(model.info.image_size), **load_plain([], STUDY.evaluation, EvaluationConfig)}
    config = build(EvaluationConfig, {**given, "normalisation": model.abilities.normalisation}, "eval")
    rows: list[dict[str, float]] = []
    for example in Videos.open(Path(config.data), config, config.clips).shown(name):
        targets = example.targets
        assert targets.keypoints is not None
        assert targets.cameras is not None
        assert targets.scale is not None
        with torch.no_grad():
            found = cast(Tensor, getattr(model(example.inputs), "keypoints"))[0]  # noqa: B009 - a head's own field
        truth, metres = targets.keypoints, float(targets.scale[0])
        sight = functional.normalize(truth.points[0] - targets.cameras.world_from_camera[0, :, None, :3, 3], dim=-1)
        row = parts(found * metres, truth.points[0] * metres, truth.valid[0], sight)
        rows += [row] if row["error"] == row["error"] else []  # videos without a point that is always known
    return {key: round(statistics.fmean(row[key] for row in rows), 4) for key in rows[0]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=lambda text: text.split(","), default=["base-0", "full-0"])
    found = {name: measure(name) for name in parser.parse_args().runs}
    (RESULTS / "siren_pose_causes.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
