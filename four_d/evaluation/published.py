"""Scores under published protocols: a model on the videos of a set, as the code behind the papers' tables runs.

What is read and how it is scored says `four_d.protocols`; here are the passes through the model, the scores and the
table. Pictures are stretched to whole patches with the protocol's longest side, as VGGT's loading does. ``depth`` (of
single frames) shows the model one frame at a time; everything else shows the whole video, or windows for depth.
A sequence that fails is reported and does not lose the others'.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from four_d import geometry
from four_d.errors import UserError
from four_d.evaluation.pictures import lpips_at
from four_d.evaluation.published_result import Missing, Published, Row, Skip
from four_d.evaluation.published_tracks import TrackSettings, check_model, score_tracks
from four_d.evaluation.published_views import ViewSettings, check_views, score_views
from four_d.evaluation.result import LpipsFacts
from four_d.evaluation.runs import windows
from four_d.evaluation.scores import PROBABLY_MOVES
from four_d.metrics import depth, masks, points, pose
from four_d.metrics.baselines import Model
from four_d.progress import progress
from four_d.protocols.sequence import Sequence, Task
from four_d.protocols.table import PROTOCOLS, PointSettings, Protocol
from four_d.similarity import LPIPS_WEIGHTS
from four_d.types import Cameras, Clip, Prediction, map_tensors

Size = tuple[int, int]
T = TypeVar("T")
NEEDS: dict[Task, str] = {
    "pose": "cameras",
    "video_depth": "depth",
    "depth": "depth",
    "points": "points, or depth and cameras",
    "mask": "a mask of what moves",
    "tracks": "motion",
    "views": "Gaussians",
}
"""What a task takes from the model."""


@dataclass(frozen=True, kw_only=True)
class PublishedConfig:
    """What ``four-d eval … protocol=NAME`` scores on."""

    protocol: str
    """A name of `PROTOCOLS`."""
    root: str
    """The set's folder, laid out as it is downloaded."""
    sequences: tuple[str, ...] | None = None
    """Names of the videos to take; None = those of the protocol."""
    tasks: tuple[str, ...] | None = None
    """Of the protocol's tasks, those to score; None = all."""
    long_side: int | None = None
    """Longest side of what the model sees; None = the protocol's."""
    window: tuple[int, int] | None = None
    """Frames and stride of windows for video depth, and of those that Gaussians are made of; None = the protocol's, and
    as many frames as the model's Gaussians move to, sharing one."""
    lpips_weights: str | None = LPIPS_WEIGHTS
    """File or folder of LPIPS's weights, by which pictures are scored where it holds any; None: never."""
    max_points: int = 500_000
    """Most points of a point map that are compared, at even steps; published code takes all."""
    frames: int | None = None
    """Of ``tracks``: how many of a clip's first frames the model sees; None = the protocol's, in one pass."""
    scaling: str | None = None
    """Of ``tracks``: how predictions are aligned; None = the protocol's first."""
    intrinsics: bool = False
    """Of ``tracks``: whether the model is given the true intrinsics, which it must take."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise UserError(f"protocol is {self.protocol!r}; choose one of {', '.join(PROTOCOLS)}")
        offered = PROTOCOLS[self.protocol].tasks
        wrong = [task for task in self.tasks or () if task not in offered]
        if wrong or self.tasks == ():
            raise UserError(f"tasks is {list(self.tasks or ())}; {self.protocol} has {', '.join(offered)}")
        if min(self.max_points, 14 if self.long_side is None else self.long_side) < 4:
            raise UserError("max_points and long_side must be at least 4")
        if self.window is not None and not 0 < self.window[1] <= self.window[0]:
            raise UserError(f"window is {list(self.window)}; write [frames,stride] with 0 < stride ≤ frames")
        self._check_tracks()

    def _check_tracks(self) -> None:
        scalings = PROTOCOLS[self.protocol].scalings
        if not scalings and (self.frames, self.scaling, self.intrinsics) != (None, None, False):
            names = ", ".join(name for name, protocol in PROTOCOLS.items() if protocol.scalings)
            raise UserError(f"frames, scaling and intrinsics are of tracks, which {self.protocol} has none of: {names}")
        if self.scaling is not None and self.scaling not in scalings:
            raise UserError(f"scaling is {self.scaling!r}; {self.protocol} has {', '.join(scalings)}")
        if self.frames is not None and self.frames < 2:
            raise UserError(f"frames is {self.frames}; a track needs 2 at least")

    def views(self) -> ViewSettings | None:
        """How held-out pictures are scored; None where the protocol has none."""
        if "views" not in PROTOCOLS[self.protocol].tasks:
            return None
        return ViewSettings(window=self.window, lpips=lpips_at(self.lpips_weights, self.device), device=self.device)

    def tracks(self) -> TrackSettings | None:
        """How tracks are scored; None where the protocol has none."""
        found = PROTOCOLS[self.protocol]
        if found.tracks is None:
            return None
        scaling = self.scaling or found.scalings[0]
        return TrackSettings(protocol=found.tracks, scaling=scaling, frames=self.frames, intrinsics=self.intrinsics)


def run_protocol(model: Model, config: PublishedConfig, *, patch: int, trained: Size | None = None) -> Published:
    """Score a model on the videos under ``config.root``.

    Args:
        model: takes clips of one video, sides multiples of ``patch``, on ``config.device``.
        config: what to score.
        patch: of what image sides must be multiples.
        trained: rows and columns that the model was trained at, for the note.

    Raises:
        UserError: no such set under ``root``, or no sequence that could be scored.

    """
    protocol, tracks, views = PROTOCOLS[config.protocol], config.tracks(), config.views()
    if tracks is not None:
        check_model(model, tracks)
    if views is not None:
        check_views(model)
    sequences = protocol.open(Path(config.root), config.sequences)
    tasks = protocol.tasks if config.tasks is None else config.tasks
    note = f"{len(sequences)} videos of {config.root}, long side {config.long_side or protocol.long_side}"
    note += "" if trained is None else f" (the model was trained at {trained[0]} × {trained[1]})"
    note += "" if tracks is None else f"; {tracks.note()}"
    lpips = None if views is None else LpipsFacts.of(views.lpips)
    note += "" if views is None else f"; LPIPS of {lpips.network}" if lpips else "; no weights of LPIPS"
    result = Published(protocol=protocol.name, source=protocol.source, note=note, lpips=lpips)
    jobs = [(sequence, task) for sequence in sequences for task in tasks if task in sequence.tasks]
    if not jobs:
        raise UserError(f"{config.root} has no video with truth for {', '.join(tasks)}; {protocol.layout}")
    runner = Runner(model=model, protocol=protocol, config=config, patch=patch, views=views)
    with progress(f"evaluating on {protocol.name}", len(jobs), "sequence") as bar:
        for sequence, task in jobs:
            _attempt(runner, sequence, cast(Task, task), result)
            bar.advance()
    return result


def _attempt(runner: Runner, sequence: Sequence, task: Task, result: Published) -> None:
    """Add a row, or the reason why there is none."""
    try:
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
    """A model under a protocol. Keeps its last pass: tasks of one sequence share it."""

    model: Model
    protocol: Protocol
    config: PublishedConfig
    patch: int
    views: ViewSettings | None = None
    _last: tuple[Sequence, Prediction] | None = None

    def row(self, sequence: Sequence, task: Task) -> Row:
        """The scores of one sequence. Raises `Skip`, `UserError` and whatever reading or the model raises."""
        tracks = self.config.tracks()
        if task == "tracks" and tracks is not None:
            return _finite(score_tracks(self.model, sequence, tracks, self.clip))
        if task == "views" and self.views is not None:
            return _finite(score_views(self.model, sequence, self.views, self.clip))
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
        """What the model says of the whole video."""
        if self._last is None or self._last[0] is not sequence:
            self._last = None
            images = sequence.images()
            self._last = sequence, self.pass_through(images, sequence.times)
        return self._last[1]

    def pass_through(self, images: UInt8[np.ndarray, "f h w 3"], times: tuple[float, ...]) -> Prediction:
        """One pass: unbatched, on the CPU, at the model's resolution."""
        with torch.inference_mode():
            prediction = self.model(self.clip(images, times))
        kept = Prediction(
            cameras=prediction.cameras, depth=prediction.depth, points=prediction.points, dynamic=prediction.dynamic
        )
        return map_tensors(kept, _settled)

    def clip(self, images: UInt8[np.ndarray, "f h w 3"], times: tuple[float, ...]) -> Clip:
        """What the model is shown, with a batch axis of one."""
        size = model_size((images.shape[1], images.shape[2]), self.long_side, self.patch)
        device = torch.device(self.config.device)
        stamps = torch.tensor(times, dtype=torch.float32, device=device)[None]
        pictures = stretch(images, size)[None].to(device)
        return Clip(images=pictures, times=stamps, camera_ids=torch.zeros_like(stamps, dtype=torch.long))

    @property
    def long_side(self) -> int:
        """Longest side of what the model sees."""
        return self.config.long_side or self.protocol.long_side

    def video_depth(self, sequence: Sequence) -> tuple[dict[str, float], float]:
        """Every alignment of the protocol, one fit for the whole sequence."""
        prediction, target = self._depth_pixels(self._video(sequence), *_depth_truth(sequence, self.protocol))
        scores: dict[str, float] = {}
        for alignment in self.protocol.alignments:
            found = depth.published(prediction, target, alignment, self.protocol.clip_depth)
            scores |= {f"depth_{name}_published_{alignment}": value for name, value in _depth_values(found).items()}
        return scores, float(len(target))

    def _video(self, sequence: Sequence) -> Tensor:
        """Depth of the whole video; of windows that follow the first only the frames that are new, as published."""
        window = self.config.window
        if window is None and self.protocol.window is not None:
            window = self.protocol.window.frames, self.protocol.window.stride
        if window is None or sequence.frames <= window[0]:
            return _required(self.seen(sequence).depth, "video_depth")
        images = sequence.images()
        parts: list[Tensor] = []
        done = 0
        for first, last in windows(sequence.frames, *window):
            times = tuple(time - sequence.times[first] for time in sequence.times[first:last])
            predicted = _required(self.pass_through(images[first:last], times).depth, "video_depth")
            parts.append(predicted[done - first :])
            done = last
        return torch.cat(parts)

    def _depth_pixels(self, predicted: Tensor, truth: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Valid pixels of prediction and truth, at the truth's size, where the fits run."""
        resized = depth.resize(predicted, (truth.shape[1], truth.shape[2]))
        return resized[valid].to(self.config.device), truth[valid].to(self.config.device)

    def frame_depth(self, sequence: Sequence) -> tuple[dict[str, float], float]:
        """Every alignment for single frames: each seen, fitted and scored alone; the mean is by valid pixels."""
        truth, valid = _depth_truth(sequence, self.protocol)
        images = sequence.images()
        rows: list[Row] = []
        for i in (i for i in range(sequence.frames) if bool(valid[i].any())):
            predicted = _required(self.pass_through(images[i : i + 1], (0.0,)).depth, "depth")
            prediction, target = self._depth_pixels(predicted, truth[i : i + 1], valid[i : i + 1])
            scores: dict[str, float] = {}
            for alignment in self.protocol.frame_alignments:
                found = _depth_values(depth.published(prediction, target, alignment, self.protocol.clip_depth))
                scores |= {f"depth_{name}_published_frame_{alignment}": value for name, value in found.items()}
            rows.append(Row(sequence=str(i), task="depth", frames=1, scores=scores, weight=float(len(target))))
        frames = Published(protocol="", source="", note="", rows=rows)
        return frames.means(), sum(row.weight for row in rows)

    def pose(self, sequence: Sequence) -> tuple[dict[str, float], float]:
        """ATE and RPE after Sim(3) as evo, and AUC@30 with RRA and RTA as VGGT."""
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
        """Accuracy and completeness, with normals or per-pixel distance as the protocol has them."""
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
        valid = valid if settings.crop is None else valid & central(size, settings.crop)
        mine, theirs = (points.thin(part[valid], self.config.max_points) for part in (predicted, target))
        if len(mine) < 4:
            raise Skip("no valid depth within the crop")
        if settings.icp_distance is not None:
            mine = geometry.transform(points.icp(mine, theirs, settings.icp_distance), mine)
        found = points.scores(mine, theirs, normals=settings.normals)
        scores = _point_values(found)
        if settings.alignment == "trajectory":
            apart = (mine - theirs).norm(dim=-1)
            scores |= {"dist": float(apart.mean()), "dist_median": float(apart.median())}
        return {f"points_{name}_published_{settings.alignment}": value for name, value in scores.items()}, 1.0

    def mask(self, sequence: Sequence) -> tuple[dict[str, float], float]:
        """J and F of the frames that have a truth: means and recalls."""
        assert sequence.masks is not None
        truth = torch.from_numpy(sequence.masks())[: sequence.mask_frames]
        predicted = _required(self.seen(sequence).dynamic, "mask")[: len(truth)]
        size = truth.shape[1], truth.shape[2]
        soft = torch.nn.functional.interpolate(predicted[:, None].float(), size, mode="bilinear", align_corners=False)
        mine = soft[:, 0] > PROBABLY_MOVES
        overlap, edge = masks.region(mine, truth), masks.contour(mine, truth)
        scores: dict[str, float] = {}
        for letter, values in (("j", overlap), ("f", edge)):
            scores[f"mask_{letter}m_davis"] = float(values.mean())
            scores[f"mask_{letter}r_davis"] = float((values > masks.RECALL).double().mean())
        return scores, 1.0


def model_size(picture: Size, long_side: int, patch: int) -> Size:
    """Rows and columns in whole patches: the longest side nearest to ``long_side``, the other in proportion."""
    factor = long_side / max(picture)
    rows, columns = (max(1, round(side * factor / patch)) * patch for side in picture)
    return rows, columns


def stretch(images: UInt8[np.ndarray, "f h w 3"], size: Size) -> Float[Tensor, "f 3 r c"]:
    """Whole pictures at another size as floats in [0, 1]; low-passed when they shrink."""
    if images.shape[1:3] != size:
        shape = size[1], size[0]
        resized = [np.asarray(Image.fromarray(image).resize(shape, Image.Resampling.BICUBIC)) for image in images]
        images = np.stack(resized)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1))).float() / 255


def rank(world_from_camera: Float[Tensor, "f 4 4"]) -> int:
    """Dimensions in which the camera moves: singular values of its centres' covariance above float64's epsilon."""
    centres = world_from_camera[:, :3, 3].double()
    centred = centres - centres.mean(0)
    singular = torch.linalg.svdvals(centred.mT @ centred / max(len(centres), 1))
    return int((singular > torch.finfo(torch.float64).eps).sum())


def central(size: Size, crop: Size) -> Tensor:
    """A mask of the central ``crop`` of a map (as far as it has so many pixels)."""
    mask = torch.zeros(size, dtype=torch.bool)
    top, left = (max(side // 2 - part // 2, 0) for side, part in zip(size, crop, strict=True))
    mask[top : top + crop[0], left : left + crop[1]] = True
    return mask


def _finite(row: Row) -> Row:
    if not np.isfinite(
        [*row.scores.values(), *(v for scores in row.baselines.values() for v in scores.values())]
    ).all():
        raise UserError("scores are not finite: the truth or the prediction holds extreme values")
    return row


def _settled(tensor: Tensor) -> Tensor:
    """Unbatched, in float32, on the CPU; `UserError` where it is not finite."""
    settled = tensor[0].float().cpu()
    if not bool(settled.isfinite().all()):
        raise UserError("the prediction is not finite: the model has diverged, or the pictures are damaged")
    return settled


def _required(value: T | None, task: Task) -> T:
    if value is None:
        raise Skip(f"the model does not predict {NEEDS[task]}")
    return value


def _depth_values(found: depth.PublishedScores) -> dict[str, float]:
    return {name: value for name, value in vars(found).items() if name != "pixels"}


def _point_values(found: points.PointScores) -> dict[str, float]:
    scores = {
        "accuracy": found.accuracy,
        "accuracy_median": found.accuracy_median,
        "completeness": found.completeness,
        "completeness_median": found.completeness_median,
    }
    for suffix, pair in (("", found.normals), ("_median", found.normals_median)):
        if pair is not None:
            scores |= {f"nc1{suffix}": pair[0], f"nc2{suffix}": pair[1], f"nc{suffix}": sum(pair) / 2}
    return scores


def _depth_truth(sequence: Sequence, protocol: Protocol) -> tuple[Tensor, Tensor]:
    """True depth and the pixels that count. `Skip` where there is none."""
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
    """Predicted points in float64: the point map where the protocol prefers it, else `geometry.world_points`."""
    chosen = replace(seen, depth=None) if prefer_map and seen.points is not None else seen
    return _required(geometry.world_points(map_tensors(chosen, lambda tensor: tensor.double())), "points")


def _point_truth(sequence: Sequence, protocol: Protocol, size: Size) -> tuple[Tensor, Tensor]:
    """True points in the first camera's coordinates at the model's resolution, and where they are valid.

    Depth is taken from the nearest pixel, so that none is made up between surfaces.
    """
    truth, valid = _depth_truth(sequence, protocol)
    cameras, known = _camera_truth(sequence)
    if not bool(known[0]):
        raise Skip("the first camera is not known")
    height, width = sequence.images().shape[1:3]
    scale = torch.tensor([size[1] / width, size[0] / height, 1.0], dtype=torch.float64)
    moved = replace(geometry.rebase(cameras), intrinsics=scale[:, None] * cameras.intrinsics, known=None)
    rows, columns = (((torch.arange(n) + 0.5) * (m / n)).long() for n, m in zip(size, truth.shape[1:], strict=True))
    truth, valid = (part[:, rows][:, :, columns] for part in (truth, valid))
    return geometry.unproject(truth.double(), moved), valid & known[:, None, None]


def _by_trajectory(predicted: Tensor, seen: Prediction, sequence: Sequence) -> Tensor:
    """Predicted points after the similarity that lays the predicted camera centres on the true ones."""
    truth, known = _camera_truth(sequence)
    if rank(truth.world_from_camera[known]) < 2:
        raise Skip("the true camera does not move, or on a line: no Sim(3) can be fitted (as published)")
    theirs = geometry.rebase(truth).world_from_camera[known][:, :3, 3].double()
    mine = _required(seen.cameras, "points").world_from_camera.double()[known][:, :3, 3]
    scale, rotation, translation = geometry.align_points(mine, theirs)
    return scale * (predicted @ rotation.mT) + translation
