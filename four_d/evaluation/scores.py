"""The scores of one video: what prediction and truth allow, by name."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from four_d import geometry
from four_d.errors import UserError
from four_d.evaluation.motion import MotionScores, motion_scores
from four_d.evaluation.novel import novel_scores
from four_d.metrics import depth, masks, points, pose
from four_d.metrics.baselines import Model
from four_d.similarity import LPIPS
from four_d.tracking import Moves
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
POINT_METRICS = ("points_accuracy", "points_accuracy_median", "points_completeness", "points_completeness_median")
MASK_METRICS = ("mask_iou", "mask_f")
SECONDS = "seconds_per_clip"
Task = Literal["depth", "pose", "points", "mask", "motion", "pictures", "tracks"]
TASKS: tuple[Task, ...] = get_args(Task)
"""What is scored."""
PROBABLY_MOVES = 0.5
"""Probability above which a pixel counts as moving."""
FEWEST_POINTS = 4
"""Fewer do not hold a similarity."""


def columns(clips: Sequence[Scores]) -> dict[str, tuple[float | None, ...]]:
    """Metric → values over videos, of metrics that at least one video allows."""
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
) -> list[Scores]:
    """The scores of every video of a batch; ``row`` names the predictor in errors, ``timed`` adds `SECONDS`."""
    inputs = map_tensors(example.inputs, lambda tensor: tensor.to(device))
    videos: list[_Video] = []
    seconds = 0.0
    for prediction, took in _predict(model, inputs, device):
        seconds += took
        for index, key in enumerate(example.key):
            if len(videos) == index:
                videos.append(_Video(prediction, index, row, key, _clip_at(example.targets, index), tasks, lpips))
            videos[index].add(prediction, index)
        del prediction  # before the next is made
    clock: Scores = {SECONDS: seconds / len(example.key)} if timed else {}
    return [video.scores() | clock for video in videos]


class _Video:
    """The scores of one video of a batch, told of the model's passes; holds what depends on no query time."""

    def __init__(
        self,
        first: Prediction,
        index: int,
        row: str,
        key: str,
        targets: Clip,
        tasks: Collection[Task],
        lpips: LPIPS | None,
    ) -> None:
        mine = Prediction(
            depth=None if first.depth is None else _finite(first.depth[index], "depth", row, key),
            cameras=None if first.cameras is None else _cameras_at(first.cameras, index, row, key),
            points=None if first.points is None else _finite(first.points[index], "points", row, key),
            dynamic=None if first.dynamic is None else _finite(first.dynamic[index], "a mask", row, key),
        )
        self._name = row, key
        self._scores = score_clip(mine, targets, tasks)
        if "pictures" in tasks and first.gaussians is not None and targets.views is not None:
            gaussians = map_tensors(first.gaussians, lambda tensor: _finite(tensor[index], "Gaussians", row, key))
            scale = gaussian_scale(mine, targets)
            found = {} if scale is None else novel_scores(gaussians, targets, scale, lpips)
            self._scores = self._scores | {f"pictures_{name}": value for name, value in found.items()}
        self._motion: MotionScores | None = None
        if "motion" in tasks and first.motion is not None and targets.motion is not None:
            points = geometry.world_points(mine)
            self._motion = MotionScores(None if points is None else points.float(), targets)

    def add(self, prediction: Prediction, index: int) -> None:
        if self._motion is None:
            return
        moved = _optional(prediction.motion, index, "motion", *self._name)
        assert moved is not None
        self._motion.add(moved, _optional(prediction.motion_visible, index, "visibility", *self._name))

    def scores(self) -> Scores:
        return self._scores | ({} if self._motion is None else self._motion.result())


def _predict(model: Model, clip: Clip, device: torch.device) -> Iterator[tuple[Prediction, float]]:
    """What the model says, one query time after the other if it can, and the seconds that each took, with all that the
    device still had to do.
    """
    passes = model.passes(clip) if isinstance(model, Moves) else (model(clip) for _ in range(1))
    while True:
        _synchronise(device)
        began = time.perf_counter()
        with torch.inference_mode():
            prediction = next(passes, None)
        _synchronise(device)
        if prediction is None:
            return
        yield prediction, time.perf_counter() - began
        del prediction  # before the next is made


def gaussian_scale(prediction: Prediction, targets: Clip) -> float | None:
    """What brings the lengths of a model that finds the cameras itself to the truth's unit; 1 for one given them.

    The median ratio of depths; None where the clip has none. UserError for a model that finds cameras but no depth.
    """
    if prediction.cameras is None:
        return 1.0
    if prediction.depth is None:
        raise UserError(
            "this model finds cameras itself and has no depth head, so nothing says how long its lengths are; leave "
            "its pictures out (pictures=false)"
        )
    truth, valid = _depth(targets)
    return float((truth.to(prediction.depth)[valid] / prediction.depth[valid]).median()) if bool(valid.any()) else None


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _optional(values: Tensor | None, index: int, what: str, row: str, key: str) -> Tensor | None:
    return None if values is None else _finite(values[index], what, row, key).float()


def _clip_at(clip: Clip, index: int) -> Clip:
    """One clip of a batch, with what scores need."""
    part = Clip(
        images=clip.images,
        times=clip.times,
        camera_ids=clip.camera_ids,
        cameras=clip.cameras,
        depth=clip.depth,
        valid=clip.valid,
        dynamic=clip.dynamic,
        dynamic_known=clip.dynamic_known,
        query_times=clip.query_times,
        motion=clip.motion,
        motion_valid=clip.motion_valid,
        motion_visible=clip.motion_visible,
        scale=clip.scale,
        views=clip.views,
    )
    return map_tensors(part, lambda tensor: tensor[index].cpu())


def _cameras_at(cameras: Cameras, index: int, row: str, key: str) -> Cameras:
    poses = _finite(cameras.world_from_camera[index], "camera poses", row, key)
    intrinsics = _finite(cameras.intrinsics[index], "intrinsics", row, key)
    return Cameras(world_from_camera=poses, intrinsics=intrinsics)


def _finite(values: Tensor, what: str, row: str, key: str) -> Tensor:
    if not bool(values.isfinite().all()):
        raise UserError(
            f"{row} predicts {what} that are not finite on clip {key}: it has diverged; take another checkpoint"
        )
    return values.double().cpu()


def score_clip(prediction: Prediction, targets: Clip, tasks: Collection[Task] = TASKS) -> Scores:
    """All metrics of one unbatched clip that prediction and truth allow; lengths in the targets' normalised unit."""
    scores: Scores = {}
    if prediction.depth is not None and "depth" in tasks:
        scores |= depth_scores(prediction.depth, targets)
    if prediction.cameras is not None and "pose" in tasks:
        scores |= pose_scores(prediction.cameras, targets)
    predicted = geometry.world_points(prediction)
    if predicted is not None and "points" in tasks:
        scores |= point_scores(predicted, targets)
    if prediction.dynamic is not None and "mask" in tasks:
        scores |= mask_scores(prediction.dynamic, targets)
    if "motion" in tasks:
        scores |= motion_scores(prediction, None if predicted is None else predicted.float(), targets)
    return scores


def depth_scores(predicted: Tensor, targets: Clip) -> Scores:
    """AbsRel and δ<1.25 under every fit of `DEPTH_FITS`, and AbsRel of moving and of static pixels after the median fit
    to all pixels of the frame; None where the clip has no such pixel with valid depth.
    """
    truth, valid = _depth(targets)
    truth = truth.to(predicted)
    scores: Scores = {}
    for alignment, region in DEPTH_FITS:
        result = depth.scores(predicted, truth, valid, alignment, region)
        usable = int(result.pixels) > 0
        scores[depth.name("absrel", alignment, region)] = float(result.absrel) if usable else None
        scores[depth.name("delta125", alignment, region)] = float(result.delta) if usable else None
    dynamic, known = _dynamic(targets)
    for part, where in (("dynamic", dynamic), ("static", ~dynamic)):
        result = depth.scores(predicted, truth, valid, "median", "frame", where & known[:, None, None])
        scores[f"depth_absrel_median_{part}"] = float(result.absrel) if int(result.pixels) else None
    return scores


def _depth(targets: Clip) -> tuple[Tensor, Tensor]:
    """True depth and where it is valid; zeros where there is none."""
    frames, _, height, width = targets.images.shape
    truth = torch.zeros(frames, height, width) if targets.depth is None else targets.depth
    return truth, truth > 0 if targets.valid is None else targets.valid & (truth > 0)


def _dynamic(targets: Clip) -> tuple[Tensor, Tensor]:
    """True mask, and the frames that have one."""
    frames, _, height, width = targets.images.shape
    if targets.dynamic is None:
        return torch.zeros(frames, height, width, dtype=torch.bool), torch.zeros(frames, dtype=torch.bool)
    known = torch.ones(frames, dtype=torch.bool) if targets.dynamic_known is None else targets.dynamic_known
    return targets.dynamic, known


def mask_scores(predicted: Tensor, targets: Clip) -> Scores:
    """J and F of probabilities above `PROBABLY_MOVES`, means over the frames with a known mask; None without."""
    dynamic, known = _dynamic(targets)
    if not bool(known.any()):
        return dict.fromkeys(MASK_METRICS)
    mine, truth = predicted[known] > PROBABLY_MOVES, dynamic[known]
    overlap, edge = masks.region(mine, truth), masks.contour(mine, truth)
    return dict(zip(MASK_METRICS, (float(overlap.mean()), float(edge.mean())), strict=True))


def point_scores(predicted: Tensor, targets: Clip) -> Scores:
    """Accuracy and completeness over the video's valid pixels, in source units; None without depth or cameras.

    The prediction is aligned by the similarity with the least squared error over all valid pixels, so far points weigh
    most. Of more than `points.MAX_POINTS` pixels that many are taken at even steps, the same ones on both sides.
    """
    truth, valid = _depth(targets)
    cameras = targets.cameras
    if cameras is None or not (cameras.known is None or bool(cameras.known.all())) or int(valid.sum()) < FEWEST_POINTS:
        return dict.fromkeys(POINT_METRICS)
    known = map_tensors(Cameras(world_from_camera=cameras.world_from_camera, intrinsics=cameras.intrinsics), _double)
    target = geometry.unproject(truth.double(), known)[valid]
    aligned = points.align_corresponding(predicted[valid].double(), target)
    found = points.scores(points.thin(aligned), points.thin(target))
    unit = 1.0 if targets.scale is None else float(targets.scale)
    values = found.accuracy, found.accuracy_median, found.completeness, found.completeness_median
    return {metric: value * unit for metric, value in zip(POINT_METRICS, values, strict=True)}


def _double(tensor: Tensor) -> Tensor:
    return tensor.double()


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
