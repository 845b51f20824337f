"""Rival of the study of SirenPose: base's keypoints after the Savitzky–Golay filter that suits training clips best.

    python -m benchmarks.studies.siren_pose_smoothed [--seeds 0,1,2]

For each seed of ``base``, every filter (degree and width) is tried on training clips. The one chosen has the least
acceleration error among those whose keypoint error is at most `WORSE` times the unfiltered one: what the study asks of
the term. It is scored on the held-out clips, and becomes a raw line of the study (`make study-siren-pose` first).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from scipy.signal import savgol_filter
from torch import Tensor

from benchmarks.studies import DATA
from benchmarks.studies.siren_pose import STUDY
from benchmarks.study import RUNS, Run, raw_file, raw_line
from four_d.abilities import Abilities, Model
from four_d.config import load_plain
from four_d.evaluation import Evaluation, EvaluationConfig, Videos, evaluate, run
from four_d.inference import load
from four_d.schema import build
from four_d.types import Clip, Prediction

WORSE = 1.02
"""Largest keypoint error beside the unfiltered one."""
FILTERS = [(degree, width) for degree in (1, 2, 3) for width in (3, 5, 7, 9, 11) if width > degree + 1]
TRAINING_VIDEOS = 60


@dataclass(frozen=True, kw_only=True)
class Remembering(Model):
    """Model that is computed once for each video."""

    model: Model
    answers: dict[bytes, Prediction] = field(default_factory=dict[bytes, Prediction])

    @property
    def abilities(self) -> Abilities:
        """The model's."""
        return self.model.abilities

    def __call__(self, clip: Clip) -> Prediction:
        """Predict a clip, or remember what was predicted."""
        key = clip.images.numpy().tobytes()
        if key not in self.answers:
            self.answers[key] = self.model(clip)
        return self.answers[key]


@dataclass(frozen=True, kw_only=True)
class Smoothed(Model):
    """Model whose 3D keypoints are filtered over a video's evenly spaced frames."""

    model: Model
    degree: int
    width: int

    @property
    def abilities(self) -> Abilities:
        """The model's."""
        return self.model.abilities

    def __call__(self, clip: Clip) -> Prediction:
        """Predict a clip, then filter it."""
        found = self.model(clip)
        points = cast("Float[Tensor, 'b f joints 3'] | None", getattr(found, "keypoints", None))
        if points is None:
            return found
        smooth = savgol_filter(points.double().numpy(), self.width, self.degree, axis=1, mode="interp")
        return dataclasses.replace(found, keypoints=torch.from_numpy(np.ascontiguousarray(smooth)).to(points))  # pyright: ignore[reportCallIssue] - a head's own field


def figures(evaluation: Evaluation) -> tuple[float, float]:
    """Acceleration error and keypoint error."""
    row = evaluation.rows[evaluation.name]
    return row["keypoint_acceleration_error"].mean, row["keypoint_mpjpe"].mean


def tried(model: Model, videos: Videos) -> Iterator[tuple[tuple[int, int] | None, tuple[float, float]]]:
    """Yield the figures without a filter (None), then of each."""
    for chosen in (None, *FILTERS):
        seen = model if chosen is None else Smoothed(model=model, degree=chosen[0], width=chosen[1])
        evaluation = evaluate(seen, videos, predictors={}, tasks=("keypoints",), device=torch.device("cpu"))
        yield chosen, figures(evaluation)


def best_filter(model: Model, config: EvaluationConfig) -> tuple[tuple[int, int] | None, dict[str, Any]]:
    """Best filter on training clips, None where none is allowed, and the figures of all."""
    videos = Videos.open(Path(config.data), config, TRAINING_VIDEOS)
    found = dict(tried(Remembering(model=model), videos))
    limit = WORSE * found[None][1]
    allowed = {name: each for name, each in found.items() if each[1] <= limit}
    best = min(allowed, key=lambda name: allowed[name][0])
    return best, {
        "none" if name is None else f"degree {name[0]}, width {name[1]}": each for name, each in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=STUDY.seeds)
    for seed in parser.parse_args().seeds:
        model = load(RUNS / STUDY.name / f"base-{seed}")
        given = {"size": list(model.info.image_size), **load_plain([], STUDY.evaluation, EvaluationConfig)}
        config = build(EvaluationConfig, {**given, "normalisation": model.abilities.normalisation}, "eval")
        training = dataclasses.replace(config, data=str(DATA / "train_creatures"))
        chosen, table = best_filter(model, training)
        seen = model if chosen is None else Smoothed(model=model, degree=chosen[0], width=chosen[1])
        line = raw_line(
            Run(study=STUDY, variant="smoothed", seed=seed), cast(Any, run(seen, config).to_dict()), 0.0, steps=0
        )
        line |= {"filter": chosen, "on_training_clips": table}
        with raw_file(STUDY).open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
