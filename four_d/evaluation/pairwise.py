"""A model that never sees more than two frames at a time: what pairs alone are worth."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor

from four_d import geometry
from four_d.errors import UserError
from four_d.metrics.baselines import Model
from four_d.metrics.motion import own_time
from four_d.types import Cameras, Clip, Prediction, map_tensors

AT_ONCE = 16
"""Pairs per call of the model."""
FIELDS = ("cameras", "depth", "points", "dynamic", "motion", "motion_visible")
"""What of a prediction is kept."""
NO_LENGTH = 1e-12

T = TypeVar("T")
Pair = tuple[int, int]
Said = Mapping[Pair, Prediction]
"""Unbatched predictions of the two frames of each pair, in the first one's camera."""


@dataclass(frozen=True, kw_only=True)
class Pairwise:
    """A model of whole clips made of one that is shown pairs of frames.

    The pair (first, t) gives t's camera, depth and points; the pair (t, q) the motion of t's pixels to q's time, which
    t's camera turns into the first one's. A query time means the first frame that has it; motion to a frame's own time
    is 0, and seen. Each pair speaks in a unit of its own: the frame that two pairs share, by the medians of its points'
    distances from its camera, brings all to the unit of (first, second).
    """

    model: Model

    def __call__(self, clip: Clip) -> Prediction:
        """What the pairs say of a batched clip; `UserError` where there is no pair, or the model gives no cameras."""
        if clip.times.shape[-1] < 2:
            raise UserError("pairwise needs two frames; give a longer clip, or set pairwise=false")
        return _stack([self._one(map_tensors(clip, lambda t, i=i: t[i])) for i in range(len(clip.times))])

    def _one(self, clip: Clip) -> Prediction:
        """Of an unbatched clip."""
        frames = len(clip.times)
        targets = [] if clip.query_times is None else _targets(clip.query_times, clip.times)
        own = own_time(clip.times, clip.times).tolist()
        asked = [(t, q) for q in targets for t in range(frames) if not own[q][t]]
        pairs = list(dict.fromkeys([(0, t) for t in range(1, frames)] + asked))
        said = dict(zip(pairs, self._ask(clip, pairs), strict=True))
        units = [_unit(said, t) for t in range(frames)]
        whole = _geometry(said, units)
        if not targets or said[0, 1].motion is None:
            return whole
        return dataclasses.replace(whole, **_motion(said, whole, targets, asked))

    def _ask(self, clip: Clip, pairs: Sequence[Pair]) -> list[Prediction]:
        found: list[Prediction] = []
        for start in range(0, len(pairs), AT_ONCE):
            group = pairs[start : start + AT_ONCE]
            prediction = self.model(_stack([_pair(clip, *pair) for pair in group]))
            if prediction.cameras is None:
                raise UserError("pairwise joins pairs by their cameras, and the model has no camera head; leave it out")
            kept = Prediction(**{name: getattr(prediction, name) for name in FIELDS})
            found += [map_tensors(kept, lambda t, i=i: t[i]) for i in range(len(group))]
        return found


def _targets(query_times: Float[Tensor, "q"], times: Float[Tensor, "f"]) -> list[int]:
    """The first frame of each query time."""
    same = own_time(query_times, times)
    if not bool(same.any(-1).all()):
        raise UserError("a query time is the time of no frame; ask for times of the clip's own frames")
    return same.int().argmax(-1).tolist()


def _pair(clip: Clip, first: int, second: int) -> Clip:
    """Two frames of an unbatched clip, in the first one's camera; motion is asked for to the second's time."""

    def two(value: T) -> T:
        return map_tensors(value, lambda tensor: tensor[[first, second]])

    names = ("images", "times", "camera_ids", "depth", "valid", "dynamic", "dynamic_known")
    cameras = two(clip.cameras)
    if cameras is not None:
        cameras = dataclasses.replace(cameras, world_from_camera=_relative(cameras))
    asked = None if clip.query_times is None else clip.times[[second]]
    return Clip(cameras=cameras, query_times=asked, **{name: two(getattr(clip, name)) for name in names})


def _relative(cameras: Cameras) -> Float[Tensor, "f 4 4"]:
    """Poses in the first frame's camera."""
    return geometry.invert_pose(cameras.world_from_camera[:1]) @ cameras.world_from_camera


def _distance(prediction: Prediction, frame: int) -> float | None:
    """Median distance of a frame's points from its camera; None without points."""
    assert prediction.cameras is not None
    poses = _relative(prediction.cameras)
    cameras = Cameras(world_from_camera=poses, intrinsics=prediction.cameras.intrinsics)
    points = geometry.world_points(dataclasses.replace(prediction, cameras=cameras))
    if points is None:
        return None
    return float((points[frame] - poses[frame, :3, 3]).norm(dim=-1).median())


def _ratio(length: float | None, other: float | None) -> float:
    """Of two lengths of one thing; 1 where either is unknown or nothing."""
    return length / other if length and other and min(length, other) > NO_LENGTH else 1.0


def _unit(said: Said, frame: int) -> float:
    """Units of the pair (first, second) per unit of the pair (first, frame)."""
    return 1.0 if frame == 0 else _ratio(_distance(said[0, 1], 0), _distance(said[0, frame], 0))


def _geometry(said: Said, units: Sequence[float]) -> Prediction:
    """Everything but motion, in the first frame's camera and the unit of (first, second)."""
    views = [(said[0, max(t, 1)], min(t, 1)) for t in range(len(units))]

    def every(name: str, *, length: bool) -> Tensor | None:
        values = [(getattr(pair, name), place, unit if length else 1.0) for (pair, place), unit in zip(views, units)]
        return None if values[0][0] is None else torch.stack([value[place] * unit for value, place, unit in values])

    poses, intrinsics = [], []
    for (pair, place), unit in zip(views, units, strict=True):
        assert pair.cameras is not None
        pose = _relative(pair.cameras)[place]
        poses.append(geometry.make_pose(pose[:3, :3], pose[:3, 3] * unit))
        intrinsics.append(pair.cameras.intrinsics[place])
    return Prediction(
        cameras=Cameras(world_from_camera=torch.stack(poses), intrinsics=torch.stack(intrinsics)),
        depth=every("depth", length=True),
        points=every("points", length=True),
        dynamic=every("dynamic", length=False),
    )


def _motion(said: Said, whole: Prediction, targets: Sequence[int], asked: Sequence[Pair]) -> dict[str, Tensor]:
    """Motion and visibility q f h w of all frames to the times of the target frames."""
    assert whole.cameras is not None
    poses = whole.cameras.world_from_camera
    like = cast(Tensor, said[0, 1].motion)[0, 0]
    seen = said[0, 1].motion_visible is not None
    motion = like.new_zeros(len(targets), len(poses), *like.shape)
    visible = like.new_ones(motion.shape[:-1])
    distances = [_distance(whole, t) for t in range(len(poses))]
    for t, target in asked:
        pair, rotation = said[t, target], poses[t, :3, :3]
        assert pair.motion is not None
        moved = pair.motion[0, 0] @ rotation.mT * _ratio(distances[t], _distance(pair, 0))
        rows = [row for row, frame in enumerate(targets) if frame == target]
        motion[rows, t] = moved
        if pair.motion_visible is not None:
            visible[rows, t] = pair.motion_visible[0, 0]
    return {"motion": motion, "motion_visible": visible} if seen else {"motion": motion}


def _stack(values: Sequence[T]) -> T:
    """One batch of equal dataclasses of tensors."""
    first = values[0]
    if isinstance(first, Tensor):
        return cast(T, torch.stack(cast(list[Tensor], list(values))))
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        names = [field.name for field in dataclasses.fields(first)]
        return dataclasses.replace(first, **{name: _stack([getattr(v, name) for v in values]) for name in names})
    return first
