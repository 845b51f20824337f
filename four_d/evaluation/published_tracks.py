"""3D tracking scores under the protocols of WorldTrack and TAPVid-3D (`metrics.tracks` has the definitions).

The query pixels of a clip's ground truth are tracked by the model's dense motion as ``four-d infer`` does it
(`windows.sliding`), by default in one window; compared with two predictors whose points never move in the world:

| name | predicts |
|---|---|
| ``model_static`` | the model's own positions and cameras, without its motion |
| ``static_points`` | without images: constant depth, seen by a static camera with a field of view of 53° |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from four_d import geometry
from four_d.abilities import Model
from four_d.datasets.sequence import Sequence, TrackTruth
from four_d.errors import UserError
from four_d.evaluation.published_result import Row
from four_d.metrics import tracks
from four_d.metrics.baselines import StaticCamera
from four_d.protocols.protocol import TrackProtocol
from four_d.types import LIKELY, Cameras, Clip, map_tensors
from four_d.windows.clips import ClipSource, as_given
from four_d.windows.cut import Cut
from four_d.windows.sliding import Sliding

Scores = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class FollowSettings:
    """Alignment and inputs of scores of points that a model follows."""

    scaling: str
    frames: int | None = None
    """Number of first frames to use; None = all of the sequence."""
    window: Cut | None = None
    """Windows in which the model sees the frames; None: all in one pass."""
    intrinsics: bool = False
    """Give the model the true intrinsics."""
    device: str = "cpu"

    def note(self) -> str:
        """Description of the settings."""
        part = "" if self.frames is None else f", the first {self.frames} frames only"
        part += "" if self.window is None else f", in windows of {self.window.frames} frames"
        given = ", the model is given the true intrinsics" if self.intrinsics else ""
        return f"tracks aligned by {self.scaling}{part}{given}"


@dataclass(frozen=True, kw_only=True)
class TrackSettings(FollowSettings):
    """Definitions, alignment and inputs of track scores."""

    protocol: TrackProtocol


@dataclass(frozen=True, kw_only=True)
class Followed:
    """Predicted tracks of a clip's queries, in the first frame's camera and the predictor's unit, on the CPU."""

    points: Float[Tensor, "n t 3"]
    visible: Bool[Tensor, "n t"]
    world_from_camera: Float[Tensor, "f 4 4"] | None


@dataclass(frozen=True, kw_only=True)
class _Truth:
    """Ground truth of the clip's first frames, in float64."""

    queries: Float[Tensor, "n 3"]
    """(frame, x, y) in pixels of the original images."""
    points: Float[Tensor, "n t 3"]
    """Positions in each frame's camera coordinates."""
    known: Bool[Tensor, "n t"]
    visible: Bool[Tensor, "n t"]
    cameras: Cameras
    picture: tuple[int, int]


def check_model(model: Model, settings: FollowSettings) -> None:
    """Raise UserError for a model without motion, or one that does not take the intrinsics it should be given."""
    if not model.abilities.moves:
        raise UserError(
            "this model predicts no motion (it has no motion head), so it follows no points; take one that does"
        )
    if settings.intrinsics and "intrinsics" not in model.abilities.hints:
        raise UserError("this model takes no intrinsics (backbone.hints); leave intrinsics out, or take another model")


def score_tracks(
    model: Model,
    sequence: Sequence,
    settings: TrackSettings,
    shown: Callable[[np.ndarray, tuple[float, ...]], Clip],
) -> Row:
    """Scores of one clip.

    Args:
        model: accepted by `check_model`.
        sequence: has tracks.
        settings: protocol, alignment and inputs.
        shown: from images (f h w 3) and times to an unbatched clip at the size of the model's input.

    Raises:
        UserError: no track starts in the frames, or the prediction is not finite.

    """
    count = min(settings.frames or sequence.frames, sequence.frames)
    images = sequence.images()[:count]
    truth = _truth(sequence, count, (images.shape[1], images.shape[2]))
    clip = shown(images, sequence.times[:count])
    size = clip.images.shape[-2], clip.images.shape[-1]
    if settings.intrinsics:
        clip = with_intrinsics(clip, truth.cameras, truth.picture)
    queries = _queries(truth, size, snapped=settings.protocol == "world")
    score = {"world": _world_scores, "tapvid3d": _camera_scores, "dpm": _point_map_scores}[settings.protocol]
    mine = follow_queries(model.without("gaussians"), clip, queries, settings, sequence.name)
    others = {"model_static": stopped(mine, queries[:, 0].long()), "static_points": _flat(clip, queries)}
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
    """Queries in pixels of the model's input; ``snapped`` to the centres of their pixels, as WorldTrack does."""
    pixels = shown_at(truth.queries[:, 1:], truth.picture, size)
    if snapped:
        sides = torch.tensor([size[1], size[0]], dtype=torch.float64)
        pixels = torch.minimum(pixels.floor(), sides - 1) + 0.5
    return torch.cat([truth.queries[:, :1], pixels], dim=1).float()


def shown_at(pixels: Float[Tensor, "n 2"], picture: tuple[int, int], size: tuple[int, int]) -> Float[Tensor, "n 2"]:
    """Pixels of an image of ``picture`` rows and columns in the model's input of ``size``, moved inside it."""
    sides = torch.tensor([size[1], size[0]], dtype=torch.float64)
    resized = pixels.double() * sides / torch.tensor([picture[1], picture[0]], dtype=torch.float64)
    return torch.minimum(resized.clamp_min(0), sides)


def with_intrinsics(clip: Clip, cameras: Cameras, picture: tuple[int, int]) -> Clip:
    """Add true intrinsics, of images of ``picture`` rows and columns, to an unbatched clip; no poses."""
    size = clip.images.shape[-2], clip.images.shape[-1]
    intrinsics = geometry.resize(cameras, picture, size).intrinsics.to(clip.images)
    every = torch.ones_like(clip.times, dtype=torch.bool)
    poses = torch.eye(4).to(clip.images).expand(*clip.times.shape, 4, 4)
    given = Cameras(world_from_camera=poses, intrinsics=intrinsics, known=~every, intrinsics_known=every)
    return dataclasses.replace(clip, cameras=given)


def follow_queries(
    model: Model, clip: Clip, queries: Float[Tensor, "n 3"], settings: FollowSettings, name: str
) -> Followed:
    """Follow pixels (frame, x, y) of an unbatched clip, whose frames are ordered by time; ``name`` is for errors."""
    source = ClipSource(model=model, clip=clip, prepare=as_given(settings.device), queries=queries, name=name)
    whole = Cut(frames=len(source.moments), overlap=1)
    sliding = Sliding(source, settings.window or whole, model.abilities)
    prediction, tracks = sliding.followed(sliding.collect().prediction)
    assert tracks is not None  # `check_model` refuses such a model
    cameras = prediction.cameras
    return Followed(
        points=tracks.points.double(),
        visible=tracks.visible > LIKELY,
        world_from_camera=None if cameras is None else cameras.world_from_camera.double(),
    )


def stopped(mine: Followed, times: Int[Tensor, "n"]) -> Followed:
    """Hold every point at its position at its query's time, always visible."""
    own = mine.points[torch.arange(len(times)), times]
    return dataclasses.replace(mine, points=own[:, None].expand_as(mine.points), visible=torch.ones_like(mine.visible))


def _flat(clip: Clip, queries: Float[Tensor, "n 3"]) -> Followed:
    """Points on a plane in front of a static camera, always visible."""
    cameras = StaticCamera()(map_tensors(clip, lambda tensor: tensor[None])).cameras
    assert cameras is not None
    intrinsics, frames = cameras.intrinsics[0, 0].double(), len(clip.times)
    points = geometry.rays(intrinsics, queries[:, 1:].double())
    return Followed(
        points=points[:, None].expand(-1, frames, -1),
        visible=torch.ones(len(queries), frames, dtype=torch.bool),
        world_from_camera=cameras.world_from_camera[0].double(),
    )


def _world_scores(followed: Followed, truth: _Truth, scaling: str) -> Scores:
    """WorldTrack scores in the first camera's coordinates, over all known points and over those of dynamic tracks.

    The dynamic tracks are aligned separately, as in St4RTrack's code.
    """
    poses = geometry.rebase(truth.cameras).world_from_camera
    points = geometry.transform(poses, truth.points.transpose(0, 1)).transpose(0, 1)
    moving = tracks.moving(points, truth.known)
    scores: Scores = {}
    for suffix, where in (("", truth.known), ("_dynamic", truth.known & moving[:, None])):
        if where.any():
            aligned = _aligned(followed.points, points, where, scaling)
            errors = tracks.endpoint_errors(aligned, points)
            scores[f"apd_world_{scaling}{suffix}"] = float(tracks.apd(errors, where))
            scores[f"epe_world_{scaling}{suffix}"] = float(tracks.epe(errors, where))
            scores |= _flow(aligned, points, where, f"world_{scaling}{suffix}")
    scores["track_dynamic_fraction"] = float(moving.double().mean())
    return scores | _scale(followed.points[truth.known], points[truth.known])


def _point_map_scores(followed: Followed, truth: _Truth, scaling: str) -> Scores:
    """EPE of V-DPM in the first camera's coordinates: of all query frames and times, and of each two of a pair.

    Lengths are fractions of the true points' mean distance from the first camera.
    """
    poses = geometry.rebase(truth.cameras).world_from_camera
    points = geometry.transform(poses, truth.points.transpose(0, 1)).transpose(0, 1)
    errors = tracks.endpoint_errors(_aligned(followed.points, points, truth.known, scaling), points)
    errors = errors / points[truth.known].norm(dim=-1).mean()
    moving = tracks.moving(points, truth.known)
    scores: Scores = {"track_dynamic_fraction": float(moving.double().mean())}
    frames, times = truth.queries[:, :1], torch.arange(points.shape[1])
    maps = {"": torch.ones_like(truth.known)}
    if bool(frames.max() > 0):
        maps |= {f"_{i}_{j}": (frames == i) & (times == j) for i in range(2) for j in range(2)}
    for which, part in maps.items():
        for suffix, where in (("", truth.known & part), ("_dynamic", truth.known & part & moving[:, None])):
            if where.any():
                scores[f"epe_dpm{which}_{scaling}{suffix}"] = float(tracks.epe(errors, where))
    return scores | _scale(followed.points[truth.known], points[truth.known])


def _flow(predicted: Tensor, truth: Tensor, where: Bool[Tensor, "n t"], name: str) -> Scores:
    """Standard scene flow scores of displacements since the first frame, excluding the first frame itself."""
    chosen = where[:, 1:] & where[:, :1]
    if not chosen.any():
        return {}
    mine, true = ((points[:, 1:] - points[:, :1])[chosen] for points in (predicted, truth))
    return {f"sceneflow_{score}_{name}": value for score, value in vars(tracks.scene_flow(mine, true)).items()}


def _aligned(predicted: Tensor, truth: Tensor, known: Bool[Tensor, "n t"], scaling: str) -> Float[Tensor, "n t 3"]:
    """Prediction aligned over all known points; 0 elsewhere."""
    generator = torch.Generator().manual_seed(0)
    together = scaling != "per_trajectory"
    groups = [known] if together else [known & one[:, None] for one in torch.eye(len(known), dtype=torch.bool)]
    aligned = torch.zeros_like(truth)
    for group in (group for group in groups if group.any()):
        mine, true = predicted[group][None], truth[group][None]
        aligned[group] = tracks.align_world(mine, true, tracks.WORLD_ALIGNMENTS[scaling], generator)[0]
    return aligned


def _camera_scores(followed: Followed, truth: _Truth, scaling: str) -> Scores:
    """TAPVid-3D scores AJ, APD and OA in each frame's camera coordinates."""
    if followed.world_from_camera is None:
        raise UserError("the model predicts no cameras, and TAPVid-3D's points are each frame's camera's; take another")
    camera_from_world = geometry.invert_pose(followed.world_from_camera)
    there = geometry.transform(camera_from_world, followed.points.transpose(0, 1)).transpose(0, 1)
    focal = float(truth.cameras.intrinsics[0].diagonal()[:2].prod().sqrt()) * tracks.SHORT_SIDE / min(truth.picture)
    scores = tracks.tapvid3d(
        there,
        followed.visible,
        truth.points,
        truth.visible,
        focal=focal,
        query_frames=truth.queries[:, 0].long(),
        scaling=cast(tracks.Scaling, scaling),
    )
    both = followed.visible & truth.visible
    return {
        f"aj_tapvid3d_{scaling}": scores.jaccard,
        f"apd_tapvid3d_{scaling}": scores.within,
        "oa_tapvid3d": scores.occlusion,
    } | (_scale(there[both], truth.points[both]) if both.any() else {})


def _scale(predicted: Float[Tensor, "n 3"], truth: Float[Tensor, "n 3"]) -> Scores:
    """Metres per unit of the predictor, independent of the alignment."""
    return {"track_scale": float(tracks.median_scale(predicted, truth))}
