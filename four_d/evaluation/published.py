"""Evaluation under published protocols, as the code behind the papers' tables does it.

`four_d.protocols` defines data and scores; this module runs the model and builds the table. Images are stretched to
whole patches with the protocol's longest side, as VGGT's loading does. ``depth`` (of single frames) shows the model
one frame at a time; all else shows the whole video, or windows of it as ``four-d infer`` joins them. A sequence that
fails is reported; the others are still scored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from four_d import geometry
from four_d.abilities import Model, check_sees_scenes
from four_d.datasets.sequence import Sequence, Task
from four_d.devices import told_when_full, usable
from four_d.errors import UserError
from four_d.evaluation.published_config import PublishedConfig
from four_d.evaluation.published_pixels import check_follows, score_pixel_tracks
from four_d.evaluation.published_result import Missing, Published, Row, Skip, means
from four_d.evaluation.published_rigs import score_rig_tracks
from four_d.evaluation.published_tracks import check_model, score_tracks
from four_d.evaluation.published_views import ViewSettings, check_views, score_views
from four_d.evaluation.result import LpipsFacts, lpips_note
from four_d.memory import check_pictures
from four_d.metrics import depth, masks, points, pose
from four_d.progress import progress
from four_d.protocols.protocol import CROPPED, Alignment, PointSettings, Protocol
from four_d.protocols.table import PROTOCOLS
from four_d.types import LIKELY, Cameras, Clip, Prediction, map_tensors
from four_d.windows.clips import ClipSource, as_given
from four_d.windows.cut import Cut
from four_d.windows.sliding import Sliding

Size = tuple[int, int]
T = TypeVar("T")
NEEDS: dict[Task, str] = {
    "pose": "cameras",
    "video_depth": "depth",
    "depth": "depth",
    "points": "points, or depth and cameras",
    "mask": "a mask of what moves",
    "tracks": "motion",
    "pixel_tracks": "tracks of points",
    "rig_tracks": "motion",
    "views": "Gaussians",
}
"""Task → outputs of the model that it requires."""


def run_protocol(model: Model, config: PublishedConfig, *, patch: int, trained: Size) -> Published:
    """Score a model on the videos under ``config.root``.

    Args:
        model: takes clips of one video, sides multiples of ``patch``, on ``config.device``.
        config: set, sequences and tasks to score.
        patch: image height and width must be multiples of this.
        trained: rows and columns of the model's training images.

    Raises:
        UserError: no such set under ``root``, or no sequence can be scored.

    """
    check_sees_scenes(model.abilities)
    config = replace(config, device=str(usable(config.device)))
    protocol, tracks, views = PROTOCOLS[config.protocol], config.tracks() or config.rigs(), config.views()
    if tracks is not None:
        check_model(model, tracks)
    if views is not None:
        check_views(model)
    if "pixel_tracks" in protocol.tasks:
        check_follows(model)
    sequences = protocol.open(Path(config.root), config.sequences)
    tasks = protocol.tasks if config.tasks is None else config.tasks
    side = config.long_side or max(trained)
    note = f"{len(sequences)} videos of {config.root}, long side {side}"
    note += f" (the model was trained at {trained[0]} × {trained[1]})"
    note += "" if tracks is None else f"; {tracks.note()}"
    lpips = None if views is None else LpipsFacts.of(views.lpips)
    note += "" if views is None else f"; {lpips_note(lpips)}"
    note += model.abilities.arithmetic
    digest = _digest(protocol, config, sequences)
    result = Published(protocol=protocol.name, source=protocol.source, note=note, digest=digest, lpips=lpips)
    jobs = [(sequence, task) for sequence in sequences for task in tasks if task in sequence.tasks]
    if not jobs:
        raise UserError(f"{config.root} has no video with truth for {', '.join(tasks)}; {protocol.layout}")
    runner = Runner(model=model, protocol=protocol, config=config, patch=patch, long_side=side, views=views)
    with progress(f"evaluating on {protocol.name}", len(jobs), "sequence") as bar:
        for sequence, task in jobs:
            _attempt(runner, sequence, cast(Task, task), result)
            bar.advance()
    return result


def _digest(protocol: Protocol, config: PublishedConfig, sequences: list[Sequence]) -> str:
    """Digest of what figures depend on beside the model: definitions, settings, and the sequences' names and times."""
    rules = [getattr(protocol, each.name) for each in fields(protocol) if each.name not in ("reader", "layout")]
    free = ("root", "sequences", "device", "precision", "lpips_weights")
    settings = {each.name: getattr(config, each.name) for each in fields(config) if each.name not in free}
    seen = [(sequence.name, sequence.times, sequence.tasks) for sequence in sequences]
    return hashlib.sha256(repr((rules, settings, seen)).encode()).hexdigest()[:12]


def _attempt(runner: Runner, sequence: Sequence, task: Task, result: Published) -> None:
    """Score a sequence in a task; add the row, or the reason why there is none, to ``result``."""
    try:
        with told_when_full("lower long_side or window, set precision=bf16, or device=cpu with more memory"):
            row = runner.row(sequence, task)
        result.rows.append(row)
        if row.lacks is not None:
            result.skipped.append(Missing(sequence=sequence.name, task=task, reason=row.lacks))
    except Skip as reason:
        result.skipped.append(Missing(sequence=sequence.name, task=task, reason=str(reason)))
    except (UserError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        result.failed.append(Missing(sequence=sequence.name, task=task, reason=reason))


@dataclass(kw_only=True)
class Runner:
    """Runner of a model under a protocol, which caches the last prediction for all tasks of a sequence."""

    model: Model
    protocol: Protocol
    config: PublishedConfig
    patch: int
    long_side: int
    """Longest side of the model's input, in pixels."""
    views: ViewSettings | None = None
    _last: tuple[Sequence, Prediction] | None = None

    def row(self, sequence: Sequence, task: Task) -> Row:
        """Scores of one sequence. Raises `Skip`, `UserError`, and any error of reading or of the model."""
        tracks = self.config.tracks()
        if task == "tracks" and tracks is not None:
            return _finite(score_tracks(self.model, sequence, tracks, self.clip))
        rigs = self.config.rigs()
        if task == "rig_tracks" and rigs is not None:
            return _finite(score_rig_tracks(self.model, sequence, rigs, self.clip))
        if task == "views" and self.views is not None:
            return _finite(score_views(self.model, sequence, self.views, self.clip))
        if task == "pixel_tracks":
            cut, device, name = self.config.cut, self.config.device, self.protocol.name
            row = score_pixel_tracks(self.model, sequence, name=name, window=cut, device=device, shown=self.clip)
            return _finite(row)
        score: dict[Task, Callable[[Sequence], tuple[dict[str, float], float]]] = {
            "pose": self.pose,
            "video_depth": self.video_depth,
            "depth": self.frame_depth,
            "points": self.points,
            "mask": self.mask,
        }
        scores, weight = score[task](sequence)
        row = Row(sequence=sequence.name, task=task, frames=sequence.frames, scores=scores, weight=weight)
        return _finite(row)

    def seen(self, sequence: Sequence) -> Prediction:
        """Prediction of the whole video."""
        if self._last is None or self._last[0] is not sequence:
            self._last = None
            self._last = sequence, self.predict(sequence.images(), sequence.times)
        return self._last[1]

    def predict(self, images: UInt8[np.ndarray, "f h w 3"], times: tuple[float, ...]) -> Prediction:
        """Prediction for frames, unbatched, on the CPU, at the model's resolution."""
        model, cut = self.model.without("gaussians"), self.config.cut or Cut(frames=len(times), overlap=1)
        source = ClipSource(model=model, clip=self.clip(images, times), prepare=as_given(self.config.device))
        return Sliding(source, cut, model.abilities, tracks=False).collect().prediction

    def clip(self, images: UInt8[np.ndarray, "f h w 3"], times: tuple[float, ...]) -> Clip:
        """Unbatched clip at the size of the model's input."""
        size = model_size((images.shape[1], images.shape[2]), self.long_side, self.patch)
        stamps = torch.tensor(times, dtype=torch.float32)
        return Clip(images=stretch(images, size), times=stamps, camera_ids=torch.zeros_like(stamps, dtype=torch.long))

    def video_depth(self, sequence: Sequence) -> tuple[dict[str, float], float]:
        """Scores with every alignment of the protocol, each one fit for the whole sequence, and their weight."""
        truth, valid = _depth_truth(sequence, self.protocol)
        predicted = _required(self.seen(sequence).depth, "video_depth")
        alignments: tuple[Alignment, ...] = self.protocol.alignments
        if alignments == ("disparity",):
            return _disparity_scores(predicted, truth, valid, self.protocol, self.config.device)
        if sequence.metric is False:  # lengths are in a unit of their own
            alignments = tuple[Alignment, ...](each for each in alignments if each != "metric")
        return self._depth_scores(predicted, truth, valid, alignments)

    def _depth_scores(
        self, predicted: Tensor, truth: Tensor, valid: Tensor, alignments: tuple[Alignment, ...], kind: str = ""
    ) -> tuple[dict[str, float], float]:
        """Scores at the size of the ground truth, where the fits run, and the number of valid pixels."""
        resized = depth.resize_cubic(predicted, (truth.shape[1], truth.shape[2]))
        prediction, target = (part[valid].to(self.config.device) for part in (resized, truth))
        scores: dict[str, float] = {}
        for alignment in alignments:
            assert alignment != "disparity"  # whose scores are of frames
            values = vars(depth.published(prediction, target, alignment, self.protocol.clip_depth))
            name = f"published_{kind}{alignment}"
            scores |= {f"depth_{score}_{name}": value for score, value in values.items() if score != "pixels"}
        return scores, float(len(target))

    def frame_depth(self, sequence: Sequence) -> tuple[dict[str, float], float]:
        """Scores with every alignment, each frame predicted, fitted and scored alone; the mean is over valid pixels."""
        truth, valid = _depth_truth(sequence, self.protocol)
        images = sequence.images()
        rows: list[tuple[dict[str, float], float]] = []
        for frame in valid.flatten(1).any(1).nonzero()[:, 0].tolist():
            only = slice(frame, frame + 1)
            predicted = _required(self.predict(images[only], (0.0,)).depth, "depth")
            alignments = self.protocol.frame_alignments
            rows.append(self._depth_scores(predicted, truth[only], valid[only], alignments, "frame_"))
        return means(rows), sum(weight for _, weight in rows)

    def pose(self, sequence: Sequence) -> tuple[dict[str, float], float]:
        """ATE and RPE after a Sim(3) alignment, as evo; AUC@30, RRA and RTA, as VGGT."""
        truth, known = _camera_truth(sequence)
        if rank(truth.world_from_camera[known]) < 2:
            raise Skip("the true camera does not move, or on a line: no Sim(3) can be fitted (as published)")
        predicted = _required(self.seen(sequence).cameras, "pose").world_from_camera.double()[known]
        target = truth.world_from_camera[known].double()
        steps, pairs = pose.rpe(predicted, target, "sim3"), pose.pair_errors(predicted, target)
        return {
            "pose_ate_sim3": float(pose.ate(predicted, target, "sim3")),
            "pose_rpe_trans_sim3": float(steps.translation),
            "pose_rpe_rot_deg_sim3": float(steps.rotation_deg),
            "pose_auc30": float(pose.auc(pairs)),
            "pose_rra30": float(pose.rra(pairs, 30)),
            "pose_rta30": float(pose.rta(pairs, 30)),
        }, 1.0

    def points(self, sequence: Sequence) -> tuple[dict[str, float], float]:
        """Accuracy and completeness, with normals or per-pixel distances as the protocol defines them."""
        settings = self.protocol.points or PointSettings(crop=None, alignment="icp", icp_distance=0.1, normals=False)
        seen = self.seen(sequence)
        predicted = _points(seen, prefer_map=settings.alignment == "icp")
        size = predicted.shape[1], predicted.shape[2]
        target, valid = _point_truth(sequence, self.protocol, size)
        if settings.alignment == "trajectory":
            predicted = _by_trajectory(predicted, seen, sequence)
        else:
            predicted = predicted.clone()
            predicted[valid] = points.align_scale_shift(predicted[valid], target[valid])
        valid = valid if settings.crop is None else valid & central(size, settings.crop, max(size) / CROPPED)
        mine, theirs = (points.thin(part[valid], self.config.max_points) for part in (predicted, target))
        if len(mine) < 4:
            raise Skip("no valid depth within the crop")
        if settings.icp_distance is not None:
            mine = geometry.transform(points.icp(mine, theirs, settings.icp_distance), mine)
        measured = points.scores(mine, theirs, normals=settings.normals)
        scores = _point_values(measured)
        if settings.alignment == "trajectory":
            apart = (mine - theirs).norm(dim=-1)
            scores |= {"dist": float(apart.mean()), "dist_median": float(apart.median())}
        return {f"points_{name}_published_{settings.alignment}": value for name, value in scores.items()}, 1.0

    def mask(self, sequence: Sequence) -> tuple[dict[str, float], float]:
        """Means and recalls of J and F over the frames that have ground truth."""
        assert sequence.masks is not None
        truth = torch.from_numpy(sequence.masks())[: sequence.mask_frames]
        predicted = _required(self.seen(sequence).dynamic, "mask")[: len(truth)]
        size = truth.shape[1], truth.shape[2]
        soft = torch.nn.functional.interpolate(predicted[:, None].float(), size, mode="bilinear", align_corners=False)
        mine = soft[:, 0] > LIKELY
        overlap, edge = masks.region(mine, truth), masks.contour(mine, truth)
        scores: dict[str, float] = {}
        for letter, values in (("j", overlap), ("f", edge)):
            scores[f"mask_{letter}m_davis"] = float(values.mean())
            scores[f"mask_{letter}r_davis"] = float((values > masks.RECALL).double().mean())
        return scores, 1.0


def model_size(picture: Size, long_side: int, patch: int) -> Size:
    """Rows and columns in whole patches: the longest side nearest to ``long_side``, the aspect ratio kept."""
    factor = long_side / max(picture)
    rows, columns = (max(1, round(side * factor / patch)) * patch for side in picture)
    return rows, columns


def stretch(images: UInt8[np.ndarray, "f h w 3"], size: Size) -> Float[Tensor, "f 3 r c"]:
    """Stretch images to another size, antialiased, as floats in [0, 1]. Raises as `check_pictures` does."""
    check_pictures(len(images), size)
    if images.shape[1:3] != size:
        shape = size[1], size[0]
        resized = [np.asarray(Image.fromarray(image).resize(shape, Image.Resampling.BICUBIC)) for image in images]
        images = np.stack(resized)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1))).float() / 255


def rank(world_from_camera: Float[Tensor, "f 4 4"]) -> int:
    """Rank of the camera's motion: number of singular values of its centres' covariance above float64's epsilon."""
    centres = world_from_camera[:, :3, 3].double()
    centred = centres - centres.mean(0)
    singular = torch.linalg.svdvals(centred.mT @ centred / max(len(centres), 1))
    return int((singular > torch.finfo(torch.float64).eps).sum())


def central(size: Size, crop: Size, factor: float = 1.0) -> Tensor:
    """Mask of the central ``crop`` of a map, scaled by ``factor`` and limited to the map."""
    mask = torch.zeros(size, dtype=torch.bool)
    rows, columns = (round(part * factor) for part in crop)
    top, left = (max(side // 2 - part // 2, 0) for side, part in zip(size, (rows, columns), strict=True))
    mask[top : top + rows, left : left + columns] = True
    return mask


def _finite(row: Row) -> Row:
    if not np.isfinite(
        [*row.scores.values(), *(v for scores in row.baselines.values() for v in scores.values())]
    ).all():
        raise UserError("scores are not finite: the truth or the prediction holds extreme values")
    return row


def _required(value: T | None, task: Task) -> T:
    if value is None:
        raise Skip(f"the model does not predict {NEEDS[task]}")
    return value


def _point_values(measured: points.PointScores) -> dict[str, float]:
    scores = {
        "accuracy": measured.accuracy,
        "accuracy_median": measured.accuracy_median,
        "completeness": measured.completeness,
        "completeness_median": measured.completeness_median,
    }
    for suffix, pair in (("", measured.normals), ("_median", measured.normals_median)):
        if pair is not None:
            scores |= {f"nc1{suffix}": pair[0], f"nc2{suffix}": pair[1], f"nc{suffix}": sum(pair) / 2}
    return scores


def _disparity_scores(
    predicted: Tensor, truth: Tensor, valid: Tensor, protocol: Protocol, device: str
) -> tuple[dict[str, float], float]:
    """Scores of a video aligned in disparity; every video weighs the same."""
    assert protocol.max_depth is not None
    disparity = torch.where(predicted > 0, 1 / predicted, 0.0)
    resized = depth.resize_linear(disparity, (truth.shape[1], truth.shape[2]))
    on_device = (resized.to(device), truth.to(device), valid.to(device))
    found = vars(depth.published_disparity(*on_device, protocol.max_depth))
    return {f"depth_{score}_published_disparity": value for score, value in found.items()}, 1.0


def _depth_truth(sequence: Sequence, protocol: Protocol) -> tuple[Tensor, Tensor]:
    """True depth and the pixels that count. Raises `Skip` if there is none."""
    assert sequence.depth is not None
    values, valid = sequence.depth()
    truth, mask = torch.from_numpy(values), torch.from_numpy(valid)
    mask = mask & (truth > 0)
    mask = mask if protocol.max_depth is None else mask & (truth < protocol.max_depth)
    if not bool(mask.any()):
        raise Skip("no valid depth")
    return truth, mask


def _camera_truth(sequence: Sequence) -> tuple[Cameras, Tensor]:
    assert sequence.cameras is not None
    cameras = sequence.cameras()
    known = cameras.known
    return cameras, torch.ones(sequence.frames, dtype=torch.bool) if known is None else known


def _points(seen: Prediction, *, prefer_map: bool) -> Tensor:
    """Predicted points in float64: the point map if the protocol prefers it, else `geometry.world_points`."""
    chosen = replace(seen, depth=None) if prefer_map and seen.points is not None else seen
    return _required(geometry.world_points(map_tensors(chosen, lambda tensor: tensor.double())), "points")


def _point_truth(sequence: Sequence, protocol: Protocol, size: Size) -> tuple[Tensor, Tensor]:
    """True points in the first camera's coordinates at the model's resolution, and their validity."""
    truth, valid = _depth_truth(sequence, protocol)
    cameras, known = _camera_truth(sequence)
    if not bool(known[0]):
        raise Skip("the first camera is not known")
    height, width = sequence.images().shape[1:3]
    moved = replace(geometry.resize(geometry.rebase(cameras), (height, width), size), known=None)
    truth, valid = depth.resize_nearest(truth, size), depth.resize_nearest(valid, size)
    return geometry.unproject(truth.double(), moved), valid & known[:, None, None]


def _by_trajectory(predicted: Tensor, seen: Prediction, sequence: Sequence) -> Tensor:
    """Align predicted points by the Sim(3) from predicted to true camera centres."""
    truth, known = _camera_truth(sequence)
    if rank(truth.world_from_camera[known]) < 2:
        raise Skip("the true camera does not move, or on a line: no Sim(3) can be fitted (as published)")
    theirs = geometry.rebase(truth).world_from_camera[known][:, :3, 3].double()
    mine = _required(seen.cameras, "points").world_from_camera.double()[known][:, :3, 3]
    return geometry.apply_fit(geometry.align_points(mine, theirs), predicted.flatten(0, 2)).view_as(predicted)
