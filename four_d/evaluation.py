"""Scores of a model on held-out clips, beside those of predictors that ignore the image.

`run` is ``four-d eval``; `evaluate` takes any model and examples. What is scored is fixed (`frame_lists`): each camera
of each clip in turn is one monocular video of ``frames`` frames evenly spread over it, first one first, unaugmented.
A sample that cannot be read ends the run: skipping it would make a figure that looks comparable and is not.
A digest of exactly what was seen stands beside every figure, so that two figures can be known to be comparable.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from four_d.data.loading import fit
from four_d.data.manifest import atomic
from four_d.data.sampling import collate, normalise, to_clip, to_example
from four_d.data.shards import ShardReader, load_manifest
from four_d.errors import UserError
from four_d.metrics import baselines, depth, pose
from four_d.metrics.baselines import Model
from four_d.progress import progress
from four_d.types import Cameras, Clip, Example, Prediction, map_tensors

Scores = dict[str, float | None]
"""Metric name → value of one video; None where its truth does not allow it."""

DEPTH_FITS: tuple[tuple[depth.Alignment, depth.Region], ...] = (
    ("none", "clip"),
    ("median", "frame"),
    ("median", "clip"),
    ("scale", "frame"),
    ("scale", "clip"),
    ("scaleshift", "frame"),
    ("scaleshift", "clip"),
)
DEGREES = (5, 15, 30)
"""Thresholds of RRA and RTA."""
POSE_METRICS = (
    "pose_rot_pairs_deg",
    "pose_rot_first_deg",
    "pose_auc30",
    *(f"pose_{accuracy}{degrees}" for accuracy in ("rra", "rta") for degrees in DEGREES),
    "pose_ate_sim3",
    "pose_rpe_trans_sim3",
    "pose_rpe_rot_deg_sim3",
)
HIGHER = ("depth_delta", "pose_rra", "pose_rta", "pose_auc")
"""What metrics begin with that are better when higher; the others are errors."""
HEADLINES = (
    "depth_absrel_median_frame",
    "depth_absrel_scaleshift_clip",
    "pose_rot_pairs_deg",
    "pose_auc30",
    "pose_ate_sim3",
    "pose_rpe_trans_sim3",
)
BEST = "best_image_free"
LOG_WIDTH = 160

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What ``four-d eval`` scores on."""

    data: str
    """Folder of held-out shards."""
    train_data: str | None = None
    """Folder of the training shards, on which the image-free predictors are fitted; without it only those that need no
    data stand beside the model."""
    frames: int = 8
    """Frames per video, shared among its cameras; a camera with fewer gives all it has."""
    cameras: int = 1
    """Cameras per video: 1 is monocular, 2 joins each camera with the next one of its clip."""
    size: tuple[int, int] | None = None
    """Rows and columns to which images are cropped around the principal point and resized; None = as stored."""
    clips: int | None = None
    """Videos to score, taken evenly from all; None = all."""
    train_clips: int = 200
    """Videos to fit the image-free predictors on, taken evenly from all."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        if min(self.cameras, self.train_clips, 1 if self.clips is None else self.clips) < 1:
            raise UserError("cameras, clips and train_clips must be at least 1")
        if self.frames < 2 or self.frames % self.cameras:
            raise UserError(
                f"frames is {self.frames}; choose a multiple of cameras ({self.cameras}) that is at least 2"
            )


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric over videos."""

    mean: float
    """Over videos, each counting alike."""
    standard_error: float
    """How far the mean may be off for the choice of clips; the videos of one clip count as one draw. 0 for one clip."""
    videos: int
    excluded: int
    """Videos whose truth does not allow this metric: no valid depth, no known camera, a camera that stands still."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The model's scores and the image-free predictors' on the same videos."""

    name: str
    rows: dict[str, dict[str, Score]]
    """Predictor → metric → score; the model under ``name`` comes first."""
    keys: tuple[str, ...]
    """Videos in order; ``clip/camera`` where a clip gives several."""
    per_video: dict[str, dict[str, tuple[float | None, ...]]]
    """Predictor → metric → one value per video."""
    digest: str
    """Of keys, cameras, times and image sizes of all that was scored, in order."""
    note: str = ""
    """What the videos are, in words."""

    def best_image_free(self, metric: str) -> tuple[str, Score] | None:
        """The image-free predictor with the best mean of a metric; None if none has it."""
        rows = [(name, scores[metric]) for name, scores in self.rows.items() if name != self.name and metric in scores]
        if not rows:
            return None
        return (max if higher_is_better(metric) else min)(rows, key=lambda row: row[1].mean)

    def difference(self, metric: str, minuend: str, subtrahend: str) -> Score:
        """Mean difference of two predictors over the videos, paired: its standard error is that of the difference."""
        pairs = zip(self.per_video[minuend][metric], self.per_video[subtrahend][metric], strict=True)
        return _score([None if a is None or b is None else a - b for a, b in pairs], self.keys)

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON: every row with every metric, the best image-free row, and the values per video."""
        rows: dict[str, object] = {
            name: {metric: vars(score) for metric, score in scores.items()} for name, scores in self.rows.items()
        }
        best = {metric: self.best_image_free(metric) for metric in self.rows[self.name]}
        rows[BEST] = {metric: {"predictor": row[0], **vars(row[1])} for metric, row in best.items() if row is not None}
        return {
            "model": self.name,
            "videos": len(self.keys),
            "clips": len({_scene(key) for key in self.keys}),
            "digest": self.digest,
            "note": self.note,
            "summary": summary(self),
            "rows": rows,
            "per_video": {"keys": list(self.keys), **self.per_video},
        }

    def write(self, path: Path) -> None:
        """`to_dict` as JSON; the file appears whole or not at all. `UserError` where it cannot be written."""
        with atomic(path) as file:
            file.write((json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n").encode())

    def table(self) -> Table:
        """The headline metrics, one row per predictor and the model first."""
        metrics = [metric for metric in HEADLINES if metric in self.rows[self.name]]
        table = Table(title=f"{len(self.keys)} videos, digest {self.digest}", caption=self.note or None)
        table.add_column("predictor")
        for metric in metrics:
            table.add_column(f"{metric} {'↑' if higher_is_better(metric) else '↓'}", justify="right", overflow="fold")
        for name, scores in self.rows.items():
            cells = [_cell(scores.get(metric)) for metric in metrics]
            if name == self.name or any(cells):
                table.add_row(name, *cells, style="bold" if name == self.name else None, end_section=name == self.name)
        return table

    def details(self) -> Table:
        """Every metric: the model, the best image-free predictor, and their paired difference."""
        table = Table(title="all metrics: mean over videos ± standard error by clips")
        for heading in ("metric", self.name, "best image-free", "", "difference", "videos"):
            table.add_column(heading, justify="left" if heading in ("metric", "") else "right")
        for metric, score in self.rows[self.name].items():
            best = self.best_image_free(metric)
            arrow = "↑" if higher_is_better(metric) else "↓"
            videos = f"{score.videos}" + (f" (−{score.excluded})" if score.excluded else "")
            if best is None:
                table.add_row(f"{metric} {arrow}", _cell(score), "", "", "", videos)
            else:
                gap = self.difference(metric, self.name, best[0])
                table.add_row(f"{metric} {arrow}", _cell(score), _cell(best[1]), best[0], _cell(gap), videos)
        return table

    def print(self) -> None:
        """Both tables on stdout."""
        console = Console()
        if not console.is_terminal:  # a log has no width, and 80 columns would cut names
            console = Console(width=LOG_WIDTH)
        console.print(self.details())
        console.print(self.table())


def _cell(score: Score | None) -> str:
    return "" if score is None else f"{score.mean:.4g} ± {score.standard_error:.2g}"


def higher_is_better(metric: str) -> bool:
    """True for shares of right pixels or pairs, False for errors."""
    return metric.startswith(HIGHER)


def summary(evaluation: Evaluation) -> dict[str, float]:
    """The demo's figures, as far as the model and the data have them.

    ``depth_absrel_baseline`` is the per-pixel mean map's (the best image-free predictor's if there is no such map);
    ``rot_baseline_deg`` and ``ate_baseline`` are the best image-free predictor's. Rotation is the mean error of the
    relative rotations of all pairs of frames, ATE is in source units (metres where the data is metric).
    """
    rows = evaluation.rows
    figures: dict[str, float] = {}
    for metric, name, baseline in (
        ("depth_absrel_median_frame", "depth_absrel_median", "depth_absrel_baseline"),
        ("pose_rot_pairs_deg", "rot_error_deg", "rot_baseline_deg"),
        ("pose_ate_sim3", "ate_sim3", "ate_baseline"),
    ):
        best = evaluation.best_image_free(metric)
        if metric == "depth_absrel_median_frame" and "mean_depth" in rows and metric in rows["mean_depth"]:
            best = ("mean_depth", rows["mean_depth"][metric])
        if metric in rows[evaluation.name]:
            figures[name] = rows[evaluation.name][metric].mean
        if best is not None:
            figures[baseline] = best[1].mean
    return figures


def run(model: Model, config: EvaluationConfig) -> Evaluation:
    """Score a loaded model as ``config`` says; the image-free predictors are fitted on ``train_data`` first."""
    predictors, fitted_on = baselines.untrained(), "untrained"
    if config.train_data is not None:
        fitting = Videos.open(Path(config.train_data), config, config.train_clips)
        predictors = baselines.fit(fitting.shown("fitting image-free predictors"))
        fitted_on = f"fitted on {len(fitting.lists)} videos of {config.train_data}"
    videos = Videos.open(Path(config.data), config, config.clips)
    cameras = "1 camera" if config.cameras == 1 else f"{config.cameras} cameras"
    note = f"{config.data}: {config.frames} frames of {cameras} per video; image-free predictors {fitted_on}"
    return evaluate(model, videos.shown("evaluating"), predictors=predictors, device=config.device, note=note)


@dataclass(frozen=True, kw_only=True)
class Videos:
    """The fixed videos of a data set, read one at a time."""

    reader: ShardReader
    lists: tuple[tuple[int, tuple[int, ...]], ...]
    """Sample of the reader and its frames, in order."""
    size: tuple[int, int] | None

    @staticmethod
    def open(folder: Path, config: EvaluationConfig, count: int | None) -> Videos:
        """``count`` videos (or all) of a data set; `UserError` where no clip has enough cameras and frames."""
        reader = ShardReader(load_manifest(folder))
        lists = frame_lists([sample.camera_ids for sample in reader.samples], config.frames, config.cameras)
        if not lists:
            raise UserError(
                f"{folder} has no clip of {config.cameras} camera(s) with 2 frames; set cameras=1, or other data"
            )
        return Videos(reader=reader, lists=tuple(evenly(lists, count)), size=config.size)

    def __iter__(self) -> Iterator[Example]:
        """Batches of one video."""
        for index, frames in self.lists:
            raw = self.reader.read(index, frames)
            clip = to_clip(raw)
            clip = clip if self.size is None else fit(clip, self.size)
            yield collate([to_example(normalise(clip), f"{raw.key}/{raw.info.camera_ids[0]}")])

    def shown(self, description: str) -> Iterator[Example]:
        """The same, with a progress bar."""
        with progress(description, len(self.lists), "video") as bar:
            for example in self:
                yield example
                bar.advance()


def frame_lists(
    camera_ids: Sequence[Sequence[int]], frames: int, cameras: int = 1
) -> list[tuple[int, tuple[int, ...]]]:
    """Of each sample, each camera in turn: ``frames`` of its frames evenly spread, its first and last included.

    With several ``cameras`` each is joined by the next ones of its sample (cyclically), camera by camera with
    ``frames // cameras`` frames each. A camera with fewer frames gives all of them; lists of one frame are left out.
    """
    lists: list[tuple[int, tuple[int, ...]]] = []
    for sample, ids in enumerate(camera_ids):
        own = {c: [frame for frame, identity in enumerate(ids) if identity == c] for c in sorted(set(ids))}
        names = list(own)
        for place in range(len(names) if len(names) >= cameras else 0):
            group = [names[(place + step) % len(names)] for step in range(cameras)]
            chosen = tuple(frame for camera in group for frame in evenly(own[camera], frames // cameras))
            lists += [(sample, chosen)] if len(chosen) >= 2 else []
    return lists


def evenly(items: Sequence[T], count: int | None) -> list[T]:
    """``count`` of the items, evenly spread from the first to the last; all if there are no more."""
    if count is None or count >= len(items):
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]


def evaluate(
    model: Model,
    examples: Iterable[Example],
    *,
    predictors: Mapping[str, Model] | None = None,
    name: str = "model",
    device: str | torch.device = "cpu",
    note: str = "",
) -> Evaluation:
    """Score a model and image-free ``predictors`` (`baselines.untrained` by default) on the same batched examples.

    Every video counts alike. The model sees ``inputs`` only, and must be in evaluation mode.

    Raises:
        UserError: there is no example, or a predicted value is not finite (predictor and clip are named).

    """
    models = {name: model, **(baselines.untrained() if predictors is None else predictors)}
    keys: list[str] = []
    results: dict[str, list[Scores]] = {row: [] for row in models}
    digest = hashlib.sha256()
    for example in examples:
        keys += example.key
        digest.update(_seen(example).encode())
        for row, predictor in models.items():
            results[row] += _score_batch(predictor, example, row, torch.device(device))
    if not keys:
        raise UserError("there is nothing to evaluate on: no clip came out of the data")
    per_video = {row: _columns(scores) for row, scores in results.items()}
    return Evaluation(
        name=name,
        rows={
            row: {metric: _score(values, keys) for metric, values in columns.items()}
            for row, columns in per_video.items()
        },
        keys=tuple(keys),
        per_video=per_video,
        digest=digest.hexdigest()[:12],
        note=note,
    )


def _seen(example: Example) -> str:
    """What identifies a batch: keys, cameras, times in microseconds, image size."""
    inputs = example.inputs
    times = (inputs.times.double() * 1e6).round().long().tolist()
    return json.dumps([example.key, inputs.camera_ids.tolist(), times, list(inputs.images.shape[-2:])])


def _columns(clips: Sequence[Scores]) -> dict[str, tuple[float | None, ...]]:
    """Metric → values over videos, of metrics that at least one video allows."""
    metrics = dict.fromkeys(metric for clip in clips for metric, value in clip.items() if value is not None)
    return {metric: tuple(clip.get(metric) for clip in clips) for metric in metrics}


def _score(values: Sequence[float | None], keys: Sequence[str]) -> Score:
    """Mean and its cluster-robust standard error, the clips being the clusters (Liang and Zeger 1986)."""
    present = [(value, _scene(key)) for value, key in zip(values, keys, strict=True) if value is not None]
    count = len(present)
    mean = sum(value for value, _ in present) / max(count, 1)
    sums: dict[str, float] = {}
    for value, scene in present:
        sums[scene] = sums.get(scene, 0.0) + value - mean
    spread = sum(deviation**2 for deviation in sums.values()) * len(sums) / max(len(sums) - 1, 1)
    error = math.sqrt(spread) / max(count, 1) if len(sums) > 1 else 0.0
    return Score(mean=mean, standard_error=error, videos=count, excluded=len(values) - count)


def _scene(key: str) -> str:
    """The clip of a video: videos of one scene err alike and are no independent evidence."""
    return key.rpartition("/")[0] or key


def _score_batch(model: Model, example: Example, row: str, device: torch.device) -> list[Scores]:
    with torch.inference_mode():
        prediction = model(map_tensors(example.inputs, lambda tensor: tensor.to(device)))
    scores: list[Scores] = []
    for index, key in enumerate(example.key):
        targets = _clip_at(example.targets, index)
        mine = Prediction(
            depth=None if prediction.depth is None else _finite(prediction.depth[index], "depth", row, key),
            cameras=None if prediction.cameras is None else _cameras_at(prediction.cameras, index, row, key),
        )
        scores.append(score_clip(mine, targets))
    return scores


def _clip_at(clip: Clip, index: int) -> Clip:
    """One clip of a batch, with what scores need."""
    part = Clip(
        images=clip.images,
        times=clip.times,
        camera_ids=clip.camera_ids,
        cameras=clip.cameras,
        depth=clip.depth,
        valid=clip.valid,
        scale=clip.scale,
    )
    return map_tensors(part, lambda tensor: tensor[index].cpu())


def _cameras_at(cameras: Cameras, index: int, row: str, key: str) -> Cameras:
    poses = _finite(cameras.world_from_camera[index], "camera poses", row, key)
    return Cameras(world_from_camera=poses, intrinsics=cameras.intrinsics[index].float().cpu())


def _finite(values: Tensor, what: str, row: str, key: str) -> Tensor:
    if not bool(values.isfinite().all()):
        raise UserError(
            f"{row} predicts {what} that are not finite on clip {key}: it has diverged; take another checkpoint"
        )
    return values.double().cpu()


def score_clip(prediction: Prediction, targets: Clip) -> Scores:
    """All metrics of one unbatched clip that prediction and truth allow; lengths in the targets' normalised unit."""
    scores: Scores = {}
    if prediction.depth is not None:
        scores |= depth_scores(prediction.depth, targets)
    if prediction.cameras is not None:
        scores |= pose_scores(prediction.cameras, targets)
    return scores


def depth_scores(predicted: Tensor, targets: Clip) -> Scores:
    """AbsRel and δ<1.25 under every fit of `DEPTH_FITS`; None where the clip has no valid depth."""
    truth = torch.zeros_like(predicted) if targets.depth is None else targets.depth.to(predicted)
    valid = truth > 0 if targets.valid is None else targets.valid
    scores: Scores = {}
    for alignment, region in DEPTH_FITS:
        result = depth.scores(predicted, truth, valid, alignment, region)
        usable = int(result.pixels) > 0
        scores[depth.name("absrel", alignment, region)] = float(result.absrel) if usable else None
        scores[depth.name("delta125", alignment, region)] = float(result.delta) if usable else None
    return scores


def pose_scores(predicted: Cameras, targets: Clip) -> Scores:
    """Every pose metric of a clip, None where the truth does not allow it.

    ATE and RPE translation are in source units (times ``targets.scale``), and need a moving camera and three frames;
    RTA needs a pair that moves.
    """
    scores: Scores = dict.fromkeys(POSE_METRICS)
    frames = targets.times.shape[-1]
    cameras = targets.cameras
    if cameras is None or frames < 2 or not (cameras.known is None or bool(cameras.known.all())):
        return scores
    mine, truth = predicted.world_from_camera.double(), cameras.world_from_camera.double()
    pairs = pose.pair_errors(mine, truth, still=pose.STILL)
    scores["pose_rot_first_deg"] = float(pairs.rotation_deg[: frames - 1].mean())
    scores["pose_rot_pairs_deg"] = float(pairs.rotation_deg.mean())
    scores["pose_auc30"] = float(pose.auc(pairs))
    for degrees in DEGREES:
        scores[f"pose_rra{degrees}"] = float(pose.rra(pairs, degrees))
        scores[f"pose_rta{degrees}"] = float(pose.rta(pairs, degrees)) if bool(pairs.moving.any()) else None
    if frames >= 3 and float(pose.extent(truth)) > pose.STILL:
        unit = 1.0 if targets.scale is None else float(targets.scale)
        consecutive = targets.camera_ids[1:] == targets.camera_ids[:-1]
        steps = pose.rpe(mine, truth, "sim3", consecutive)
        scores["pose_ate_sim3"] = float(pose.ate(mine, truth, "sim3")) * unit
        if bool(consecutive.any()):
            scores["pose_rpe_trans_sim3"] = float(steps.translation) * unit
            scores["pose_rpe_rot_deg_sim3"] = float(steps.rotation_deg)
    return scores
