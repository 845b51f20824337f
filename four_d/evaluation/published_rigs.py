"""Scores of 3D tracks in the world of several cameras, after MVTracker (`metrics.rig_tracks` has the definitions).

Published models are given depth, cameras and the query's true position. Here a model sees the images of all views, as
one clip of a rig, and is asked for the pixel at which the first view that sees the point shows it. The alignment says
how its world is brought to the set's; ``cameras`` uses the true poses and no track. Beside the model stand:

| name | predicts |
|---|---|
| ``model_static`` | the model's own positions and cameras, without its motion |
| ``copycat`` | each point stays at its true position at its query, always visible (the published baseline) |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from four_d import fields, geometry
from four_d.abilities import Model
from four_d.datasets.sequence import Sequence
from four_d.errors import UserError
from four_d.evaluation.published_result import Row, Skip
from four_d.evaluation.published_tracks import (
    Followed,
    FollowSettings,
    follow_queries,
    shown_at,
    stopped,
    with_intrinsics,
)
from four_d.metrics import rig_tracks
from four_d.metrics.published import RIG_SCORES
from four_d.metrics.rig_tracks import RigThresholds
from four_d.metrics.tracks import median_scale
from four_d.types import Cameras, Clip, map_tensors
from four_d.windows.align import by_poses

Scores = dict[str, float]
STANDS = 1e-6
"""Extent of the predicted cameras, as a fraction of the points' median distance, up to which they give no scale."""


@dataclass(frozen=True, kw_only=True)
class RigSettings(FollowSettings):
    """Thresholds, alignment and inputs of scores of a rig's tracks."""

    thresholds: RigThresholds


@dataclass(frozen=True, kw_only=True)
class _Truth:
    """Ground truth of the first times, in the set's world; float64."""

    queries: Int[Tensor, "n"]
    views: Int[Tensor, "n"]
    """First view that sees the point at its query."""
    points: Float[Tensor, "n t 3"]
    visible: Bool[Tensor, "n t"]
    cameras: Cameras
    """Cameras of all frames, time by time."""
    count: int
    """Number of views."""

    @property
    def scored(self) -> Bool[Tensor, "n t"]:
        """Times at which a distance is measured."""
        return rig_tracks.from_query(self.visible, self.queries)


def score_rig_tracks(
    model: Model,
    sequence: Sequence,
    settings: RigSettings,
    shown: Callable[[np.ndarray, tuple[float, ...]], Clip],
) -> Row:
    """Scores of one scene.

    Args:
        model: has motion (`published_tracks.check_model`).
        sequence: has tracks of a rig.
        settings: thresholds, alignment and inputs.
        shown: from images (f h w 3) and times to an unbatched clip at the size of the model's input.

    Raises:
        UserError: no track is asked for in the frames, the prediction has no cameras or is not finite.
        Skip: neither the predicted nor the true cameras say how long the model's lengths are.

    """
    order = _by_time(sequence, settings.frames)
    truth, images = _truth(sequence, order), sequence.images()[order]
    clip = shown(images, tuple(sequence.times[frame] for frame in order))
    clip = dataclasses.replace(clip, camera_ids=torch.arange(len(order)) % truth.count)
    picture, size = (images.shape[1], images.shape[2]), (clip.images.shape[-2], clip.images.shape[-1])
    if settings.intrinsics:
        clip = with_intrinsics(clip, truth.cameras, picture)
    frames = truth.queries * truth.count + truth.views
    queries = torch.cat([frames[:, None], shown_at(_pixels(truth, frames), picture, size)], dim=1).float()
    mine = follow_queries(model.without("gaussians"), clip, queries, settings, sequence.name)
    others = {"model_static": stopped(mine, truth.queries)}
    scores = {
        name: _scores(_placed(each, truth, settings), each.visible, truth, settings)
        for name, each in {"": mine, **others}.items()
    }
    own = truth.points[torch.arange(len(truth.queries)), truth.queries]
    copied = own[:, None].expand_as(truth.points)
    baselines = {name: scores[name] for name in others}
    baselines["copycat"] = _scores(copied, torch.ones_like(truth.visible), truth, settings)
    first = geometry.invert_pose(truth.cameras.world_from_camera[0])
    scale = median_scale(mine.points[truth.scored], geometry.transform(first, truth.points[truth.scored]))
    return Row(
        sequence=sequence.name,
        task="rig_tracks",
        frames=len(order),
        scores=scores[""] | {"track_scale": float(scale)},
        baselines=baselines,
    )


def _by_time(sequence: Sequence, moments: int | None) -> list[int]:
    """Frames of the first ``moments`` times (None: of all), time by time and view by view."""
    ids = sequence.camera_ids or (0,) * sequence.frames
    order = sorted(range(sequence.frames), key=lambda frame: (sequence.times[frame], ids[frame]))
    return order if moments is None else order[: moments * len(set(ids))]


def _truth(sequence: Sequence, order: list[int]) -> _Truth:
    assert sequence.rig_tracks is not None
    assert sequence.cameras is not None
    stored, cameras = sequence.rig_tracks(), fields.take(sequence.cameras(), "b", order)
    visible = torch.from_numpy(stored.visible)
    count = len(order) // len(visible)
    queries, points = torch.from_numpy(stored.queries), torch.from_numpy(stored.points)[:, :count]
    visible = visible[..., :count]
    kept = (queries < count) & rig_tracks.counted(visible.any(0), queries)
    if not kept.any():
        raise UserError(
            f"no track of {sequence.name} is asked for and seen again within its first {count} times; take more frames"
        )
    queries, visible = queries[kept], visible[:, kept]
    return _Truth(
        queries=queries,
        views=visible[:, torch.arange(len(queries)), queries].int().argmax(0),
        points=points[kept],
        visible=visible.any(0),
        cameras=map_tensors(dataclasses.replace(cameras, known=None), lambda tensor: tensor.double()),
        count=len(visible),
    )


def _pixels(truth: _Truth, frames: Int[Tensor, "n"]) -> Float[Tensor, "n 2"]:
    """Pixels of the original images at which the queries' points are seen."""
    points = truth.points[torch.arange(len(frames)), truth.queries]
    pixels, _ = geometry.project(points[:, None], fields.take(truth.cameras, "b", frames))
    return pixels[:, 0]


def _placed(mine: Followed, truth: _Truth, settings: RigSettings) -> Float[Tensor, "n t 3"]:
    """Predicted positions in the set's world."""
    poses, chosen = truth.cameras.world_from_camera, truth.scored
    if settings.scaling == "none":
        return geometry.transform(poses[0], mine.points)
    if settings.scaling == "sim3_closed":
        fit = geometry.align_points(mine.points[chosen], truth.points[chosen])
        return geometry.apply_fit(fit, mine.points.flatten(0, 1)).view_as(mine.points)
    if mine.world_from_camera is None:
        raise UserError("the model predicts no cameras, by which its world would be placed; take scaling=sim3_closed")
    distance = float(mine.points[chosen].norm(dim=-1).median())
    move = by_poses(mine.world_from_camera, poses, None, STANDS * distance)
    if move is None:
        raise Skip("the predicted cameras of the views stand in one place: they say no scale; take scaling=sim3_closed")
    return move.points(mine.points)


def _scores(
    placed: Float[Tensor, "n t 3"], visible: Bool[Tensor, "n t"], truth: _Truth, settings: RigSettings
) -> Scores:
    found = rig_tracks.rig_scores(placed, visible, truth.points, truth.visible, truth.queries, settings.thresholds)
    moved = rig_tracks.movement(truth.points, truth.scored)
    groups = rig_tracks.grouped(found, moved, settings.thresholds)
    return {
        f"{word}_mvtracker_{settings.scaling}{suffix}": means[name]
        for suffix, means in groups.items()
        for name, word in RIG_SCORES.items()
    }
