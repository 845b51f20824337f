"""Scores of points followed in 3D under WorldTrack's and TAPVid-3D's protocol (`metrics.tracks` has the definitions).

The pixels that a clip's truth starts from are followed through the model's dense motion (`tracking.follow`), and beside
it stand two predictors whose points never move in the world:

| name | predicts |
|---|---|
| ``model_static`` | the model's own places and cameras, without its motion |
| ``static_points`` | no image: one depth everywhere, seen by a still camera with a field of view of 53° |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d import geometry
from four_d.errors import UserError
from four_d.evaluation.abilities import hints_taken
from four_d.evaluation.published_result import Row
from four_d.evaluation.runs import Watched
from four_d.metrics import tracks
from four_d.metrics.baselines import Model, StaticCamera
from four_d.protocols.sequence import Sequence, TrackTruth
from four_d.protocols.table import TrackProtocol
from four_d.tracking import Moves, follow
from four_d.types import Cameras, Clip, map_tensors

SEEN = 0.5
"""Probability above which a point counts as seen."""
WORLD_ALIGNMENTS: dict[str, tracks.WorldAlignment] = {
    "median": "global",
    "sim3_closed": "sim3_closed",
    "sim3_ransac": "sim3",
    "per_trajectory": "per_trajectory",
    "none": "none",
}
"""What our keys call the alignments of WorldTrack."""

Scores = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class TrackSettings:
    """How tracks are scored."""

    protocol: TrackProtocol
    scaling: str
    frames: int | None = None
    """The first ones of a clip; None = all that the sequence has."""
    intrinsics: bool = False
    """Whether the model is given the true ones."""

    def note(self) -> str:
        """What was run, in words."""
        part = "" if self.frames is None else f", the first {self.frames} frames only"
        given = ", the model is given the true intrinsics" if self.intrinsics else ""
        return f"tracks aligned by {self.scaling}{part}{given}"


@dataclass(frozen=True, kw_only=True)
class Followed:
    """What a predictor says of a clip's queries; the first frame's camera coordinates, its own unit, on the CPU."""

    points: Float[Tensor, "n t 3"]
    visible: Bool[Tensor, "n t"]
    world_from_camera: Float[Tensor, "t 4 4"] | None


@dataclass(frozen=True, kw_only=True)
class _Truth:
    """Of the clip's first frames, in float64."""

    queries: Float[Tensor, "n 3"]
    """(frame, x, y) in the pictures' own pixels."""
    points: Float[Tensor, "n t 3"]
    """In each frame's camera."""
    known: Bool[Tensor, "n t"]
    visible: Bool[Tensor, "n t"]
    cameras: Cameras
    picture: tuple[int, int]


def check_model(model: Model, settings: TrackSettings) -> None:
    """UserError for a model that cannot be scored so: without motion, or given intrinsics that it does not take."""
    inner = getattr(model, "model", model)
    if not isinstance(inner, Moves) or not getattr(inner, "moves", True):
        raise UserError(
            "this model predicts no motion (it has no motion head), so it follows no points; take one that does"
        )
    if settings.intrinsics and "intrinsics" not in (hints_taken(model) or ()):
        raise UserError("this model takes no intrinsics (backbone.hints); leave intrinsics out, or take another model")


def score_tracks(
    model: Model,
    sequence: Sequence,
    settings: TrackSettings,
    shown: Callable[[np.ndarray, tuple[float, ...]], Clip],
) -> Row:
    """The scores of one clip.

    Args:
        model: one that `check_model` lets pass.
        sequence: has tracks.
        settings: the protocol, and how it is run.
        shown: pictures f h w 3 and times to the clip that the model is given.

    Raises:
        UserError: no track starts in the frames, or the prediction is not finite.

    """
    count = min(settings.frames or sequence.frames, sequence.frames)
    images = sequence.images()[:count]
    truth = _truth(sequence, count, (images.shape[1], images.shape[2]))
    clip = shown(images, sequence.times[:count])
    size = clip.images.shape[-2], clip.images.shape[-1]
    if settings.intrinsics:
        clip = dataclasses.replace(clip, cameras=_intrinsics(truth, size, clip))
    queries = _queries(truth, size, snapped=settings.protocol == "world")
    score = _world_scores if settings.protocol == "world" else _camera_scores
    mine = _follow(cast(Moves, getattr(model, "model", model)), clip, queries)
    others = {"model_static": _stopped(mine, queries), "static_points": _flat(clip, queries)}
    return Row(
        sequence=sequence.name,
        task="tracks",
        frames=count,
        scores=score(mine, truth, settings.scaling),
        weight=sequence.weight,
        baselines={name: score(other, truth, settings.scaling) for name, other in others.items()},
    )


def _truth(sequence: Sequence, count: int, picture: tuple[int, int]) -> _Truth:
    assert sequence.tracks is not None
    assert sequence.cameras is not None
    stored: TrackTruth = sequence.tracks()
    kept = stored.queries[:, 0] < count
    if not kept.any():
        raise UserError(f"no track of {sequence.name} starts within its first {count} frames; take more frames")
    parts = (torch.from_numpy(part[:count][:, kept]).transpose(0, 1) for part in (stored.known, stored.visible))
    known, visible = parts
    cameras = sequence.cameras()
    return _Truth(
        queries=torch.from_numpy(stored.queries[kept]),
        points=torch.from_numpy(stored.points[:count][:, kept]).transpose(0, 1),
        known=known,
        visible=visible,
        cameras=map_tensors(cameras, lambda tensor: tensor[:count]),
        picture=picture,
    )


def _queries(truth: _Truth, size: tuple[int, int], *, snapped: bool) -> Float[Tensor, "n 3"]:
    """In the pixels that the model sees; ``snapped`` to the centre of the pixel they lie in, as WorldTrack reads."""
    (height, width), (rows, columns) = truth.picture, size
    sides = torch.tensor([columns, rows], dtype=torch.float64)
    pixels = truth.queries[:, 1:] * sides / torch.tensor([width, height], dtype=torch.float64)
    if snapped:
        pixels = torch.minimum(pixels.floor(), sides - 1) + 0.5
    return torch.cat([truth.queries[:, :1], torch.minimum(pixels.clamp_min(0), sides)], dim=1).float()


def _intrinsics(truth: _Truth, size: tuple[int, int], clip: Clip) -> Cameras:
    """The true intrinsics in the pixels that the model sees; no poses."""
    (height, width), (rows, columns) = truth.picture, size
    scale = torch.tensor([columns / width, rows / height, 1.0], dtype=torch.float64)[:, None]
    intrinsics = (scale * truth.cameras.intrinsics)[None].to(clip.images)
    every = torch.ones_like(clip.times, dtype=torch.bool)
    poses = torch.eye(4).to(clip.images).expand(*clip.times.shape, 4, 4)
    return Cameras(world_from_camera=poses, intrinsics=intrinsics, known=~every, intrinsics_known=every)


def _follow(model: Moves, clip: Clip, queries: Float[Tensor, "n 3"]) -> Followed:
    watched = Watched(model)
    found = follow(watched, clip, queries)
    cameras = None if watched.first is None else watched.first.cameras
    poses = None if cameras is None else cameras.world_from_camera[0].double().cpu()
    points = found.points.double().cpu()
    if not bool(points.isfinite().all()) or not (poses is None or bool(poses.isfinite().all())):
        raise UserError("the prediction is not finite: the model has diverged, or the pictures are damaged")
    return Followed(points=points, visible=(found.visible > SEEN).cpu(), world_from_camera=poses)


def _stopped(mine: Followed, queries: Float[Tensor, "n 3"]) -> Followed:
    """Every point where it is at its query's own time, and always seen."""
    own = mine.points[torch.arange(len(queries)), queries[:, 0].long()]
    return dataclasses.replace(mine, points=own[:, None].expand_as(mine.points), visible=torch.ones_like(mine.visible))


def _flat(clip: Clip, queries: Float[Tensor, "n 3"]) -> Followed:
    """Points on one plane before a camera that stands still, always seen."""
    cameras = StaticCamera()(clip).cameras
    assert cameras is not None
    intrinsics, frames = cameras.intrinsics[0, 0].double().cpu(), clip.times.shape[1]
    points = geometry.rays(intrinsics, queries[:, 1:].double())
    return Followed(
        points=points[:, None].expand(-1, frames, -1),
        visible=torch.ones(len(queries), frames, dtype=torch.bool),
        world_from_camera=cameras.world_from_camera[0].double().cpu(),
    )


def _world_scores(found: Followed, truth: _Truth, scaling: str) -> Scores:
    """WorldTrack's, in the first camera's coordinates, over all points known and over those of dynamic tracks.

    The dynamic ones are aligned by themselves, as St4RTrack's code does.
    """
    poses = geometry.rebase(truth.cameras).world_from_camera
    points = geometry.transform(poses, truth.points.transpose(0, 1)).transpose(0, 1)
    moving = tracks.moving(points, truth.known)
    scores: Scores = {}
    for suffix, where in (("", truth.known), ("_dynamic", truth.known & moving[:, None])):
        if where.any():
            aligned = _aligned(found.points, points, where, scaling)
            errors = tracks.endpoint_errors(aligned, points)
            scores[f"apd_world_{scaling}{suffix}"] = float(tracks.apd(errors, where))
            scores[f"epe_world_{scaling}{suffix}"] = float(tracks.epe(errors, where))
            scores |= _flow(aligned, points, where, f"world_{scaling}{suffix}")
    scores["track_dynamic_share"] = float(moving.double().mean())
    return scores | _scale(found.points[truth.known], points[truth.known])


def _flow(predicted: Tensor, truth: Tensor, where: Bool[Tensor, "n t"], name: str) -> Scores:
    """Classic scene flow scores of displacements since the first frame, whose own are left out."""
    chosen = where[:, 1:] & where[:, :1]
    if not chosen.any():
        return {}
    mine, true = ((points[:, 1:] - points[:, :1])[chosen] for points in (predicted, truth))
    return {f"sceneflow_{score}_{name}": value for score, value in vars(tracks.scene_flow(mine, true)).items()}


def _aligned(predicted: Tensor, truth: Tensor, known: Bool[Tensor, "n t"], scaling: str) -> Float[Tensor, "n t 3"]:
    """The prediction after an alignment over all points known; 0 elsewhere."""
    generator = torch.Generator().manual_seed(0)
    together = scaling != "per_trajectory"
    groups = [known] if together else [known & one[:, None] for one in torch.eye(len(known), dtype=torch.bool)]
    aligned = torch.zeros_like(truth)
    for group in (group for group in groups if group.any()):
        mine, true = predicted[group][None], truth[group][None]
        aligned[group] = tracks.align_world(mine, true, WORLD_ALIGNMENTS[scaling], generator)[0]
    return aligned


def _camera_scores(found: Followed, truth: _Truth, scaling: str) -> Scores:
    """TAPVid-3D's: AJ, APD and OA in each frame's camera coordinates."""
    if found.world_from_camera is None:
        raise UserError("the model predicts no cameras, and TAPVid-3D's points are each frame's camera's; take another")
    camera_from_world = geometry.invert_pose(found.world_from_camera)
    there = geometry.transform(camera_from_world, found.points.transpose(0, 1)).transpose(0, 1)
    focal = float(truth.cameras.intrinsics[0].diagonal()[:2].prod().sqrt()) * tracks.SHORT_SIDE / min(truth.picture)
    scores = tracks.tapvid3d(
        there,
        found.visible,
        truth.points,
        truth.visible,
        focal=focal,
        query_frames=truth.queries[:, 0].long(),
        scaling=cast(tracks.Scaling, scaling),
    )
    both = found.visible & truth.visible
    return {
        f"aj_tapvid3d_{scaling}": scores.jaccard,
        f"apd_tapvid3d_{scaling}": scores.within,
        "oa_tapvid3d": scores.occlusion,
    } | (_scale(there[both], truth.points[both]) if both.any() else {})


def _scale(predicted: Float[Tensor, "n 3"], truth: Float[Tensor, "n 3"]) -> Scores:
    """Metres to the predictor's unit of length, whatever the alignment."""
    return {"track_scale": float(tracks.median_scale(predicted, truth))}
