"""Scores of one video by name, as far as prediction and ground truth allow them."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor

from four_d import fields, geometry
from four_d.abilities import Model
from four_d.data.sampling import normalise
from four_d.errors import UserError
from four_d.evaluation.features import Features
from four_d.evaluation.novel import novel_scores
from four_d.metrics.catalogue import VIDEO
from four_d.metrics.comparison import Comparison
from four_d.metrics.metric import Metric, Task
from four_d.metrics.motion import MotionScores
from four_d.similarity import LPIPS
from four_d.types import Clip, Example, Prediction, Segment, map_tensors
from four_d.windows.align import depth_ratio
from four_d.windows.clips import ClipSource
from four_d.windows.join import Part
from four_d.windows.segments import Segments

Scores = dict[str, float | None]
"""Metric name → value of one video; None if its ground truth does not allow the metric."""

SECONDS = "seconds_per_clip"
TASKS: tuple[Task, ...] = get_args(Task)
"""All tasks."""
WORDS = {
    "cameras.world_from_camera": "camera poses",
    "cameras.intrinsics": "intrinsics",
    "dynamic": "a mask",
    "gaussians": "Gaussians",
    "motion_visible": "visibility",
}
"""Field → its name in error messages, if that differs."""


def columns(clips: Sequence[Scores]) -> dict[str, tuple[float | None, ...]]:
    """Metric → values of all videos, for metrics that at least one video allows."""
    metrics = dict.fromkeys(metric for clip in clips for metric, value in clip.items() if value is not None)
    return {metric: tuple(clip.get(metric) for clip in clips) for metric in metrics}


def score_batch(
    model: Model,
    example: Example,
    row: str,
    device: torch.device,
    *,
    timed: bool = False,
    tasks: Collection[Task] = TASKS,
    lpips: LPIPS | None = None,
    metrics: Sequence[Metric] = VIDEO,
    features: Features | None = None,
) -> list[Scores]:
    """Scores of every video of a batch; ``row`` names the predictor in errors, ``timed`` adds `SECONDS`.

    ``features`` collects those of renders.
    """
    inputs = map_tensors(example.inputs, lambda tensor: tensor.to(device))
    videos: list[_Video] = []
    seconds = 0.0
    seeing = model if _takes(model, inputs) else model.without("gaussians")
    for prediction, took in _predict(seeing, inputs, device):
        seconds += took
        for index, key in enumerate(example.key):
            if len(videos) == index:
                targets = map_tensors(fields.unstack(example.targets, index), lambda tensor: tensor.cpu())
                video = _Video(prediction, index, row, key, targets, tasks, metrics)
                if "pictures" in tasks and example.targets.views is not None:
                    segments = _segments(model, example, prediction, index, device)
                    video.add_pictures(segments, lpips, device, features)
                videos.append(video)
            videos[index].add(prediction, index)
        del prediction  # frees its memory before the next one is computed
    clock: Scores = {SECONDS: seconds / len(example.key)} if timed else {}
    return [video.scores() | clock for video in videos]


def _segments(
    model: Model, example: Example, first: Prediction, index: int, device: torch.device
) -> tuple[Segment, ...]:
    """Gaussians of one video; if its number of times is not the model's, in segments as ``four-d infer`` makes them."""
    if first.gaussians is not None:
        return (Segment(gaussians=fields.unstack(first.gaussians, index), start=-torch.inf),)
    count, inputs = model.abilities.times, fields.unstack(replace(example.inputs, query_times=None), index)
    if count is None:
        return ()
    order = inputs.times.argsort(stable=True)
    seen = Prediction(cameras=first.cameras, depth=first.depth, points=first.points, dynamic=first.dynamic)
    seen = map_tensors(fields.unstack(seen, index), lambda tensor: tensor.float().cpu())
    truth = map_tensors((example.targets.depth, example.targets.valid), lambda tensor: tensor[index])
    disparity = model.abilities.normalisation == "disparity"

    def prepare(part: Clip) -> tuple[Clip, float]:
        """Input in a unit of its own, by the true depth, which the model sees only as a hint."""
        scaled = normalise(part, "disparity") if disparity else part
        hinted = scaled if inputs.depth is not None else replace(scaled, depth=None, valid=None)
        unit = 1.0 if scaled.scale is None else float(scaled.scale)
        return map_tensors(replace(hinted, scale=None), lambda tensor: tensor[None].to(device)), unit

    clip = fields.take(replace(inputs, depth=truth[0], valid=truth[1], scale=None), "f", order)
    source = ClipSource(model=model, clip=clip, prepare=prepare)
    segments = Segments(source.again, count, source.times, source.moments)
    whole = source.outputs(fields.take(seen, "f", order), clip, clip, 1.0)
    segments.add(Part(frames=range(len(order)), value=whole))
    return segments.end()


class _Video:
    """Accumulator of the scores of one video of a batch over the model's passes (one per query time)."""

    def __init__(
        self,
        first: Prediction,
        index: int,
        row: str,
        key: str,
        targets: Clip,
        tasks: Collection[Task],
        metrics: Sequence[Metric],
    ) -> None:
        self._targets = targets
        mine = _sound(fields.unstack(fields.delivered(first), index), row, key)
        self._name, self._seen = (row, key), Prediction(cameras=mine.cameras, depth=mine.depth)
        self._scores = compute(Comparison(mine, targets), metrics, tasks)
        self._motion: MotionScores | None = None
        if "motion" in tasks and first.motion is not None and targets.motion is not None:
            points = geometry.world_points(mine)
            self._motion = MotionScores(None if points is None else points.float(), targets)

    def add_pictures(
        self, segments: Sequence[Segment], lpips: LPIPS | None, device: torch.device, features: Features | None
    ) -> None:
        scale = gaussian_scale(self._seen, self._targets) if segments else None
        if scale is None:
            return
        sound = [
            replace(part, gaussians=map_tensors(part.gaussians, lambda t: _finite(t, "Gaussians", *self._name)))
            for part in segments
        ]
        self._scores = self._scores | novel_scores(sound, self._targets, scale, lpips, device, features)

    def add(self, prediction: Prediction, index: int) -> None:
        if self._motion is None:
            return
        moved = _optional(prediction.motion, index, "motion", *self._name)
        assert moved is not None
        self._motion.add(moved, _optional(prediction.motion_visible, index, "visibility", *self._name))

    def scores(self) -> Scores:
        return self._scores | ({} if self._motion is None else self._motion.result())


def _takes(model: Model, clip: Clip) -> bool:
    """True if one pass of the model takes all times of every clip of the batch."""
    wanted = model.abilities.times
    return wanted is None or all(len(times.unique()) == wanted for times in clip.times)


def _predict(model: Model, clip: Clip, device: torch.device) -> Iterator[tuple[Prediction, float]]:
    """Yield the predictions, one per query time, each with its duration in seconds, including the device's pending
    work.
    """
    passes = model.passes(clip)
    while True:
        _synchronise(device)
        began = time.perf_counter()
        with torch.inference_mode():
            prediction = next(passes, None)
        _synchronise(device)
        if prediction is None:
            return
        yield prediction, time.perf_counter() - began
        del prediction  # frees its memory before the next one is computed


def gaussian_scale(prediction: Prediction, targets: Clip) -> float | None:
    """Factor from a model's lengths to the unit of the ground truth; 1 for a model that is given the cameras.

    The median ratio of depths; None if the clip has no depth. UserError for a model that predicts cameras but no depth.
    """
    if prediction.cameras is None:
        return 1.0
    if prediction.depth is None:
        raise UserError(
            "this model finds cameras itself and has no depth head, so nothing says how long its lengths are; leave "
            "its pictures out (pictures=false)"
        )
    truth, valid = Comparison(prediction, targets).true_depth
    return depth_ratio(prediction.depth, truth, valid)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _optional(values: Tensor | None, index: int, what: str, row: str, key: str) -> Tensor | None:
    return None if values is None else _finite(values[index], what, row, key).float()


def _sound(prediction: Prediction, row: str, key: str) -> Prediction:
    """Convert a prediction to double precision on the CPU; UserError if it is not finite."""

    def act(leaf: fields.Leaf, tensor: Tensor) -> Tensor:
        what = WORDS.get(leaf.name, WORDS.get(leaf.name.partition(".")[0], leaf.name))
        return _finite(tensor, what, row, key) if tensor.is_floating_point() else tensor.cpu()

    return fields.apply(prediction, act)


def _finite(values: Tensor, what: str, row: str, key: str) -> Tensor:
    if not bool(values.isfinite().all()):
        raise UserError(
            f"{row} predicts {what} that are not finite on clip {key}: it has diverged; take another checkpoint"
        )
    return values.double().cpu()


def compute(video: Comparison, metrics: Sequence[Metric], tasks: Collection[Task]) -> Scores:
    """Values of the metrics that have a function and belong to these tasks."""
    chosen = [metric for metric in metrics if metric.task is None or metric.task in tasks]
    return {metric.name: metric.compute(video) for metric in chosen if metric.compute is not None}
