"""Clips in memory as videos to slide windows over (`sliding`)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from four_d import fields
from four_d.abilities import Model
from four_d.errors import UserError
from four_d.geometry import Similarity, invert_pose, rebase
from four_d.tracking import PointTracks
from four_d.types import Cameras, Clip, Prediction, map_tensors, same_time
from four_d.windows.frames import join_frames, take_frames
from four_d.windows.join import Part
from four_d.windows.segments import times_apart
from four_d.windows.sliding import Predict, predict

Prepare = Callable[[Clip], tuple[Clip, float]]
"""From an unbatched part of a clip to the model's input (batch axis of one, on its device), and the factor from its
unit of length to the clip's."""


def as_given(device: torch.device | str) -> Prepare:
    """Input of a model that is shown the clip's own fields, in its own unit."""
    return lambda part: (map_tensors(part, lambda tensor: tensor[None].to(device)), 1.0)


@dataclass(frozen=True, kw_only=True)
class ClipOutputs:
    """Outputs of a model for some frames of a clip, unbatched, on the CPU (`join.Outputs`)."""

    prediction: Prediction
    unit: float = 1.0
    """Factor from the unit of the first window's input to the clip's; 1 if the lengths are in the clip's unit."""
    origin: Float[Tensor, "4 4"] | None = None
    """Pose in the clip of the camera whose coordinates these are, if the model was given the cameras and predicts none:
    lengths are then in the clip's unit."""

    def take(self, part: slice) -> ClipOutputs:
        """Consecutive frames, without tracked points and Gaussians."""
        return dataclasses.replace(self, prediction=take_frames(self.prediction, part))

    def join(self, later: Sequence[ClipOutputs]) -> ClipOutputs:
        """Add the outputs of later frames; without any they stay unchanged."""
        if not later:
            return self
        return dataclasses.replace(self, prediction=join_frames([each.prediction for each in (self, *later)]))

    def placed_on(self, before: ClipOutputs) -> Similarity | None:
        """Similarity to the world of the window before, by the given cameras; None without those."""
        if before.origin is None or self.origin is None:
            return None
        return Similarity.of_pose(invert_pose(before.origin.double()) @ self.origin.double())

    def moved(self, move: Similarity, before: ClipOutputs) -> ClipOutputs:
        """Move into the world of the window before."""
        return dataclasses.replace(before, prediction=fields.move(self.prediction, move))


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """Clip in memory, as a `sliding.Source`."""

    model: Model
    clip: Clip
    """Unbatched, frames ordered by time. What the model is given of it, ``prepare`` decides."""
    prepare: Prepare
    queries: Float[Tensor, "n 3"] | None = None
    """Points to track, (frame, x, y) in pixels of the images."""
    name: str = "the video"
    """Name in errors."""

    @property
    def times(self) -> list[float]:
        """Seconds of all frames."""
        return self.clip.times.tolist()

    @property
    def moments(self) -> list[range]:
        """Frames of each moment."""
        new = ~same_time(self.clip.times[1:], self.clip.times[:-1])
        starts = [0, *(new.nonzero()[:, 0] + 1).tolist(), len(self.clip.times)]
        return [range(start, stop) for start, stop in itertools.pairwise(starts)]

    def size(self) -> tuple[int, int]:
        """Rows and columns of the images."""
        return self.clip.images.shape[-2], self.clip.images.shape[-1]

    def points(self) -> Float[Tensor, "n 3"] | None:
        """Points to track."""
        return self.queries

    def windows(self, plan: Sequence[range], *, gaussians: bool) -> Iterator[Predict[ClipOutputs]]:
        """Yield the windows one after the other; without ``gaussians`` the model leaves them out."""
        model = self.model if gaussians else self.model.without("gaussians")
        for frames in plan:
            times = self.clip.times[frames.start : frames.stop]
            seconds = times if len(plan) == 1 else times - times[0]
            yield partial(self._predict, model, list(frames), seconds)

    def again(self, part: Part[ClipOutputs], moments: Sequence[range]) -> ClipOutputs:  # noqa: ARG002 - of the clip
        """Predict frames of the clip, which may repeat, with Gaussians but no motion."""
        rows = [row for moment in moments for row in moment]
        apart = times_apart(self.clip.times[[moment.start for moment in moments]].double().numpy(), 1)
        since = torch.from_numpy(np.repeat(apart - apart[0], [len(moment) for moment in moments]))
        model = self.model.without(*self.model.abilities.queried)
        return self._predict(model, rows, since.to(self.clip.times), None, tracks=False)[0]

    def outputs(self, prediction: Prediction, part: Clip, inputs: Clip, unit: float) -> ClipOutputs:
        """Outputs for a part of the clip, from the model's unbatched prediction for its ``inputs``."""
        cameras, given = part.cameras, inputs.cameras
        known = given is not None and (given.known is None or bool(given.known.all()))
        if prediction.cameras is not None or cameras is None or not known:
            return ClipOutputs(prediction=prediction, unit=unit)
        own = Cameras(world_from_camera=rebase(cameras).world_from_camera, intrinsics=cameras.intrinsics)
        placed = dataclasses.replace(fields.scale(prediction, unit), cameras=own)
        return ClipOutputs(prediction=placed, origin=cameras.world_from_camera[0])

    def _predict(
        self,
        model: Model,
        rows: list[int],
        seconds: Float[Tensor, "f"],
        queries: Float[Tensor, "n 3"] | None,
        *,
        tracks: bool,
    ) -> tuple[ClipOutputs, PointTracks | None]:
        """Outputs for some of the frames, in the first one's coordinates, and points tracked through them."""
        part = dataclasses.replace(
            fields.take(self.clip, "f", rows), times=seconds, views=None, query_times=None, query_points=queries
        )
        own = part if part.cameras is None else dataclasses.replace(part, cameras=rebase(part.cameras))
        inputs, unit = self.prepare(own)
        prediction, tracked = predict(model, inputs, tracks=tracks)
        prediction = map_tensors(fields.unstack(fields.delivered(prediction), 0), _on_cpu)
        values = [tensor for _, tensor in fields.leaves(prediction)] + ([] if tracked is None else [tracked.points])
        if not all(bool(tensor.isfinite().all()) for tensor in values):
            raise UserError(
                f"the prediction for {self.name} is not finite: the model has diverged, or the pictures are damaged"
            )
        outputs = self.outputs(prediction, part, inputs, unit)
        tracked = None if tracked is None else map_tensors(tracked, _on_cpu)
        return outputs, tracked if tracked is None or outputs.origin is None else fields.scale(tracked, unit)


def _on_cpu(tensor: Tensor) -> Tensor:
    """Move a tensor to the CPU, floats in single precision."""
    return tensor.cpu().float() if tensor.is_floating_point() else tensor.cpu()
