"""Why the mask gains what it gains (or not): does motion hurt the cameras at all, and would a perfect mask help?

    python -m benchmarks.studies.page_4d_causes [--seed 0]

Takes the runs of `make study-page4d`. Over held-out videos: Spearman's correlation of the share of moving pixels with
the rotation error of the variant without mask, and that variant's rotation error where its matched pixels are weighted
by no mask, by the true one, and by those of the other variants. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.studies.page_4d import STUDY
from four_d.config import load_plain
from four_d.evaluation import EvaluationConfig
from four_d.evaluation.held_out import Videos
from four_d.inference import LoadedModel, load
from four_d.metrics import pose
from four_d.progress import progress
from four_d.refinement import RefinementConfig, refined
from four_d.schema import build
from four_d.types import Example, Prediction

RUNS = Path("runs/studies")
BY = RefinementConfig(by="matches")


def rotation_error(prediction: Prediction, example: Example) -> float:
    """Mean error of all pairs' relative rotations, degrees."""
    cameras, truth = prediction.cameras, example.targets.cameras
    assert cameras is not None
    assert truth is not None
    pairs = pose.pair_errors(cameras.world_from_camera[0].double(), truth.world_from_camera[0].double())
    return float(pairs.rotation_deg.mean())


def masks(example: Example, models: dict[str, LoadedModel]) -> dict[str, Tensor | None]:
    """Probabilities that a pixel moves: none, the truth, and what each model says."""
    assert example.targets.dynamic is not None
    said = {name: model(example.inputs).dynamic for name, model in models.items() if name != "plain"}
    return {"none": None, "true": example.targets.dynamic.float(), **said}


def ranks(values: np.ndarray) -> np.ndarray:
    return values.argsort().argsort().astype(float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    models = {name: load(RUNS / STUDY.name / f"{name}-{seed}") for name in STUDY.variants}
    size = models["plain"].info.image_size
    config = build(EvaluationConfig, {"size": list(size), **load_plain([], STUDY.evaluation, EvaluationConfig)}, "eval")
    errors: dict[str, list[float]] = {}
    shares: list[float] = []
    videos = Videos.open(Path(config.data), config, config.clips)
    with progress("cameras by matches", len(videos.lists), "video") as bar, torch.inference_mode():
        for example in videos:
            plain = models["plain"](example.inputs)
            for name, mask in masks(example, models).items():
                found = refined(dataclasses.replace(plain, dynamic=mask), example.inputs, BY)
                errors.setdefault(name, []).append(rotation_error(found, example))
            assert example.targets.dynamic is not None
            shares.append(float(example.targets.dynamic.float().mean()))
            bar.advance()
    correlation = float(np.corrcoef(ranks(np.array(shares)), ranks(np.array(errors["none"])))[0, 1])
    result = {
        "seed": seed,
        "videos": len(shares),
        "moving_share": round(float(np.mean(shares)), 4),
        "spearman_with_motion": round(correlation, 3),
        "rotation_deg": {name: round(float(np.mean(values)), 4) for name, values in errors.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
