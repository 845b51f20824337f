"""Wrapper that shows a model only two frames at a time, to measure what pairs alone achieve."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from jaxtyping import Float
from torch import Tensor

from four_d import fields, geometry
from four_d.abilities import Abilities, Model
from four_d.errors import UserError
from four_d.metrics.motion import own_time
from four_d.types import Clip, Prediction

AT_ONCE = 16
"""Number of pairs per call of the model."""
NO_LENGTH = 1e-12

Pair = tuple[int, int]
Answers = Mapping[Pair, Prediction]
"""Pair → unbatched prediction of its two frames, in the camera of the first."""


@dataclass(frozen=True, kw_only=True)
class Pairwise(Model):
    """Model of whole clips built from a model that is given pairs of frames.

    The pair (first, t) gives camera, depth and points of frame t; the pair (t, q) gives the motion of t's pixels to the
    time of q, rotated from t's camera into the first. A query time stands for the first frame of that time; motion to
    a frame's own time is 0, and visible. Each pair has its own scale: the median distance of points from the camera of
    the frame that two pairs share brings all to the unit of (first, second).
    """

    model: Model

    @property
    def abilities(self) -> Abilities:
        """The model's abilities without Gaussians."""
        return dataclasses.replace(self.model.without("gaussians").abilities, seen_as="pairwise")

    def __call__(self, clip: Clip) -> Prediction:
        """Predict a batched clip from its pairs; UserError if there is no pair or the model predicts no cameras."""
        if clip.times.shape[-1] < 2:
            raise UserError("pairwise needs two frames; give a longer clip, or set pairwise=false")
        return fields.stack([self._one(fields.unstack(clip, i)) for i in range(len(clip.times))])

    def passes(self, clip: Clip) -> Iterator[Prediction]:
        """Yield the answers one by one; they are made together, since a pair serves several."""
        whole = self(clip)
        for index in range(fields.size(whole, "q") or 1):
            yield fields.take(whole, "q", [index])

    def _one(self, clip: Clip) -> Prediction:
        """Prediction of an unbatched clip."""
        frames = len(clip.times)
        targets = [] if clip.query_times is None else _targets(clip.query_times, clip.times)
        own = own_time(clip.times, clip.times).tolist()
        asked = [(t, q) for q in targets for t in range(frames) if not own[q][t]]
        pairs = list(dict.fromkeys([(0, t) for t in range(1, frames)] + asked))
        answers = dict(zip(pairs, self._ask(clip, pairs), strict=True))
        units = [_unit(answers, t) for t in range(frames)]
        whole = _geometry(answers, units)
        if not targets or answers[0, 1].motion is None:
            return whole
        return dataclasses.replace(whole, **_motion(answers, whole, targets, asked))

    def _ask(self, clip: Clip, pairs: Sequence[Pair]) -> list[Prediction]:
        predictions: list[Prediction] = []
        for start in range(0, len(pairs), AT_ONCE):
            group = pairs[start : start + AT_ONCE]
            prediction = self.model.without("gaussians")(fields.stack([_pair(clip, *pair) for pair in group]))
            if prediction.cameras is None:
                raise UserError("pairwise joins pairs by their cameras, and the model has no camera head; leave it out")
            kept = fields.without(fields.delivered(prediction), "n", "k")
            predictions += [fields.unstack(kept, i) for i in range(len(group))]
        return predictions


def _targets(query_times: Float[Tensor, "q"], times: Float[Tensor, "f"]) -> list[int]:
    """Index of the first frame of each query time; UserError if there is none."""
    same = own_time(query_times, times)
    if not bool(same.any(-1).all()):
        raise UserError("a query time is the time of no frame; ask for times of the clip's own frames")
    return same.int().argmax(-1).tolist()


def _pair(clip: Clip, first: int, second: int) -> Clip:
    """Two frames of an unbatched clip in the camera of the first, with the second's time as query time."""
    pair = fields.take(clip, "f", [first, second])
    cameras = None if pair.cameras is None else geometry.rebase(pair.cameras)
    asked = None if clip.query_times is None else clip.times[[second]]
    return dataclasses.replace(pair, cameras=cameras, query_times=asked, query_points=None)


def _distance(prediction: Prediction, frame: int) -> float | None:
    """Median distance of a frame's points from its camera; None without points."""
    assert prediction.cameras is not None
    cameras = geometry.rebase(prediction.cameras)
    points = geometry.world_points(dataclasses.replace(prediction, cameras=cameras))
    if points is None:
        return None
    return float((points[frame] - cameras.world_from_camera[frame, :3, 3]).norm(dim=-1).median())


def _ratio(length: float | None, other: float | None) -> float:
    """Ratio of two lengths; 1 if either is unknown or zero."""
    return length / other if length and other and min(length, other) > NO_LENGTH else 1.0


def _unit(answers: Answers, frame: int) -> float:
    """Factor from the unit of the pair (first, frame) to that of the pair (first, second)."""
    return 1.0 if frame == 0 else _ratio(_distance(answers[0, 1], 0), _distance(answers[0, frame], 0))


def _geometry(answers: Answers, units: Sequence[float]) -> Prediction:
    """Prediction without motion, in the first frame's camera and the unit of the pair (first, second)."""
    frames: list[Prediction] = []
    for t, unit in enumerate(units):
        pair = fields.scale(fields.without(answers[0, max(t, 1)], "q"), unit)
        assert pair.cameras is not None
        own = dataclasses.replace(pair, cameras=geometry.rebase(pair.cameras))
        frames.append(fields.take(own, "f", [min(t, 1)]))
    return fields.join(frames, "f")


def _motion(answers: Answers, whole: Prediction, targets: Sequence[int], asked: Sequence[Pair]) -> dict[str, Tensor]:
    """Motion (q f h w 3) and visibility (q f h w) of all frames to the times of the target frames."""
    assert whole.cameras is not None
    poses = whole.cameras.world_from_camera
    like = cast(Tensor, answers[0, 1].motion)[0, 0]
    seen = answers[0, 1].motion_visible is not None
    motion = like.new_zeros(len(targets), len(poses), *like.shape)
    visible = like.new_ones(motion.shape[:-1])
    distances = [_distance(whole, t) for t in range(len(poses))]
    for t, target in asked:
        pair, rotation = answers[t, target], poses[t, :3, :3]
        assert pair.motion is not None
        moved = pair.motion[0, 0] @ rotation.mT * _ratio(distances[t], _distance(pair, 0))
        rows = [row for row, frame in enumerate(targets) if frame == target]
        motion[rows, t] = moved
        if pair.motion_visible is not None:
            visible[rows, t] = pair.motion_visible[0, 0]
    return {"motion": motion, "motion_visible": visible} if seen else {"motion": motion}
