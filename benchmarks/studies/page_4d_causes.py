"""Why the mask gains what it gains (or not): does motion hurt the cameras at all, and would a perfect mask help?

    python -m benchmarks.studies.page_4d_causes [--seed 0]

Takes the runs of `make study-page4d`. For the variant without mask: Spearman's correlation, over held-out videos, of
the share of pixels that move with the rotation error. For the others: rotation error with the predicted mask, with the
true one, with one that says everything stands still, and one that says everything moves. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.studies.page_4d import STUDY
from four_d.config import load_plain
from four_d.evaluation import EvaluationConfig
from four_d.evaluation.held_out import Videos
from four_d.inference import load
from four_d.metrics import pose
from four_d.progress import progress
from four_d.schema import build
from four_d.types import Clip, Example

RUNS = Path("runs/studies")
Mask = Callable[[Example], torch.Tensor | None]


def predicted(_: Example) -> torch.Tensor | None:
    return None


def true(example: Example) -> torch.Tensor | None:
    return example.targets.dynamic


def still(example: Example) -> torch.Tensor | None:
    return torch.zeros_like(example.inputs.images[:, :, 0], dtype=torch.bool)


def moving(example: Example) -> torch.Tensor | None:
    return torch.ones_like(example.inputs.images[:, :, 0], dtype=torch.bool)


MASKS: dict[str, Mask] = {"predicted": predicted, "true": true, "still": still, "moving": moving}


def rotation_errors(variant: str, seed: int, examples: list[Example], mask: Mask) -> np.ndarray:
    """Mean error of all pairs' relative rotations, degrees, per video."""
    model = load(RUNS / STUDY.name / f"{variant}-{seed}")
    errors: list[float] = []
    with progress(f"{variant}, {mask.__name__} mask", len(examples), "video") as bar:
        for example in examples:
            inputs: Clip = dataclasses.replace(example.inputs, dynamic=mask(example))
            cameras, truth = model(inputs).cameras, example.targets.cameras
            assert cameras is not None
            assert truth is not None
            pairs = pose.pair_errors(cameras.world_from_camera[0].double(), truth.world_from_camera[0].double())
            errors.append(float(pairs.rotation_deg.mean()))
            bar.advance()
    return np.array(errors)


def ranks(values: np.ndarray) -> np.ndarray:
    return values.argsort().argsort().astype(float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    size = load(RUNS / STUDY.name / f"plain-{seed}").info.image_size
    config = build(EvaluationConfig, {"size": list(size), **load_plain([], STUDY.evaluation, EvaluationConfig)}, "eval")
    examples = list(Videos.open(Path(config.data), config, config.clips))
    shares = np.array([float(e.targets.dynamic.float().mean()) for e in examples if e.targets.dynamic is not None])
    result: dict[str, object] = {"seed": seed, "videos": len(examples), "moving_share": round(float(shares.mean()), 4)}
    plain = rotation_errors("plain", seed, examples, predicted)
    correlation = float(np.corrcoef(ranks(shares), ranks(plain))[0, 1])
    result["plain"] = {"rotation_deg": round(float(plain.mean()), 4), "spearman_with_motion": round(correlation, 3)}
    for variant in ("mask", "mask_supervised"):
        found = {name: rotation_errors(variant, seed, examples, mask) for name, mask in MASKS.items()}
        result[variant] = {name: round(float(errors.mean()), 4) for name, errors in found.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
