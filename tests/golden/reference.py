"""Write down what the reference models say of a real video and score on held-out clips.

``python -m tests.golden.reference`` writes ``reference.json``; explain the change in the commit.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_prep import synthetic
from four_d.evaluation import Evaluation, EvaluationConfig, run
from four_d.inference import Known, Result, Selection, load
from four_d.types import Cameras

ROOT = Path(__file__).parents[2]
PATH = Path(__file__).with_name("reference.json")
VIDEO = ROOT / "tests/data/bikes.mp4"
FRAMES = 52
"""All of the video's."""
CLIPS = 20
POINTS = [(0, 320.5, 140.5), (0, 100.5, 60.5), (20, 400.5, 200.5)]


def measure() -> dict[str, float]:
    """Figures of outputs and scores by name, computed on one thread: sums of floats depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {**_outputs(), **_scores()}
    finally:
        torch.set_num_threads(threads)


def _outputs() -> dict[str, float]:
    unified, posed = (load(ROOT / "checkpoints" / name) for name in ("unified-base", "dgs_lrm-base"))
    everything = Selection(max_frames=FRAMES)
    known = Known(cameras=_walk(), depth=np.full((FRAMES, 272, 640), 3, np.float32))
    results = {
        "unified/spread": unified(VIDEO),
        "unified/windows": unified(VIDEO, selection=everything, points=POINTS, window=20, overlap=6),
        "dgs_lrm/windows": posed(VIDEO, selection=everything, known=known, window=24, overlap=6),
    }
    return {f"{name}/{key}": value for name, result in results.items() for key, value in _figures(result).items()}


def _walk() -> Cameras:
    """A camera for each frame, which walks to the right and turns a little."""
    share = torch.linspace(0, 1, FRAMES, dtype=torch.float64)
    poses = torch.eye(4, dtype=torch.float64).repeat(FRAMES, 1, 1)
    angle = 0.1 * share
    poses[:, 0, 0], poses[:, 0, 2] = angle.cos(), angle.sin()
    poses[:, 2, 0], poses[:, 2, 2] = -angle.sin(), angle.cos()
    poses[:, 0, 3] = 0.5 * share
    intrinsics = torch.tensor([[500.0, 0, 320], [0, 500, 136], [0, 0, 1]], dtype=torch.float64)
    return Cameras(world_from_camera=poses, intrinsics=intrinsics.repeat(FRAMES, 1, 1))


def _figures(result: Result) -> dict[str, float]:
    cameras, tracks = result.cameras, result.tracks
    segments = [segment.gaussians for segment in result.gaussians]
    tensors: dict[str, Tensor | None] = {
        "depth": result.depth,
        "points": result.points,
        "dynamic": result.prediction.dynamic,
        "poses": None if cameras is None else cameras.world_from_camera,
        "intrinsics": None if cameras is None else cameras.intrinsics,
        "pixel_tracks": result.pixel_tracks,
        "tracks": None if tracks is None else tracks.points,
        "tracks_visible": None if tracks is None else tracks.visible,
        "means": torch.cat([each.means for each in segments]) if segments else None,
        "scales": torch.cat([each.scales for each in segments]) if segments else None,
        "offsets": torch.cat([each.offsets.flatten(0, 1) for each in segments if each.offsets is not None])
        if segments
        else None,
    }
    found: dict[str, float] = {}
    for name, tensor in tensors.items():
        if tensor is not None:
            values = tensor.double()
            found |= {f"{name}/mean": float(values.mean()), f"{name}/std": float(values.std())}
    return found


def _scores() -> dict[str, float]:
    synthetic_world = synthetic.WorldSettings(width=64, height=64, cameras=2, frames=12, duration_s=(0.5, 0.9))
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "held_out"
        synthetic.make(
            data, range(1), seed=13, clips_per_shard=CLIPS // 2, workers=1, settings=synthetic_world, held_out=True
        )
        evaluations = {
            name: run(load(ROOT / "checkpoints" / name), EvaluationConfig(data=str(data), frames=12, **settings))
            for name, settings in (
                ("unified-base", {"track_frames": 12}),
                ("dgs_lrm-base", {"track_frames": 12, "hints": ("poses", "intrinsics")}),
            )
        }
    return {
        f"{model}/{metric}": value for model, evaluation in evaluations.items() for metric, value in _means(evaluation)
    }


def _means(evaluation: Evaluation) -> list[tuple[str, float]]:
    """The model's own row, and that of copies."""
    rows = {"": evaluation.rows["model"], "copy/": evaluation.rows["copy"]}
    return [
        (row + metric, score.mean)
        for row, scores in rows.items()
        for metric, score in scores.items()
        if not metric.startswith("seconds") and np.isfinite(score.mean)
    ]


if __name__ == "__main__":
    PATH.write_text(json.dumps(measure(), indent=1, sort_keys=True) + "\n")
    print(f"wrote {PATH}")
