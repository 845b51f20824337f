"""Gaussians of videos longer or shorter than a model's Gaussian head supports, in segments.

A Gaussian head moves its Gaussians to a fixed number of times. A longer video is processed again in stretches of that
many times, each beginning at the last time of the one before, and the Gaussians of each are moved into the video's
world (`align.align`). Each segment is shown until the next one's start. A shorter video is padded by repeating frames.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Generic

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from four_d import fields
from four_d.types import Gaussians, Segment, same_time
from four_d.windows.align import align, report
from four_d.windows.cut import Cut
from four_d.windows.frames import take_frames
from four_d.windows.join import Part, W

LOGGER = logging.getLogger(__name__)

FRAME_PERIOD = 1 / 25
"""Duration of a single frame, in seconds."""


def stretches(count: int) -> Cut:
    """Cut of a video into segments of ``count`` times, each beginning with the last time of the one before."""
    return Cut(frames=count, overlap=1)


def padded(times: int, count: int) -> tuple[list[int], list[int]]:
    """Indices of ``count`` times among ``times``, some repeated; and the first row of each among those."""
    repeated = [index * times // count for index in range(count)]
    return repeated, [repeated.index(index) for index in range(times)]


def times_apart(times: Float[np.ndarray, "f"], cameras: int) -> Float[np.ndarray, "f"]:
    """Times (s) in which those of a repeated frame are spread over the interval until the next frame."""
    single = times[::cameras]
    distinct, counts = np.unique(single, return_counts=True)
    if len(distinct) == len(single):
        return times
    gaps = np.diff(distinct, append=distinct[-1] + (np.diff(distinct).mean() if len(distinct) > 1 else FRAME_PERIOD))
    apart = [start + gap * np.arange(count) / count for start, gap, count in zip(distinct, gaps, counts, strict=True)]
    return np.repeat(np.concatenate(apart), cameras)


class Segments(Generic[W]):
    """Builder of a video's segments from frames that arrive in order, in the video's world."""

    def __init__(
        self,
        predict: Callable[[Part[W], Sequence[range]], W],
        count: int,
        times: Sequence[float],
        moments: Sequence[range],
    ) -> None:
        """Start on a video, without reading its frames.

        Args:
            predict: from a part of the video and the frames of its moments, some of them repeated to make ``count``,
                to the model's outputs: Gaussians in the first camera's coordinates, with times since their first, and
                the fields that align them to the video's world.
            count: number of times of a segment.
            times: seconds of all frames.
            moments: frames of each distinct time, in order.

        """
        self._predict, self._count, self._moments = predict, count, moments
        self._times = torch.tensor([times[moment.start] for moment in moments], dtype=torch.float64)
        self._plan = stretches(count).plan(len(moments))
        self._held: Part[W] | None = None
        self._ended = self._times[:1]
        self._made: list[Segment] = []

    def add(self, part: Part[W]) -> None:
        """Add the next frames, in the video's world."""
        held, part = self._held, part.take(part.frames)
        if held is not None:
            frames = range(held.frames.start, part.frames.stop)
            part = Part(frames=frames, value=held.value.join([part.value]))
        self._held = part
        while self._plan and self._moments[self._plan[0].stop - 1].stop <= part.frames.stop:
            self._make(self._held, self._plan.pop(0))

    def end(self) -> tuple[Segment, ...]:
        """All segments, after the last frame; reports on stderr if frames had to be repeated."""
        assert not self._plan
        if len(self._times) < self._count:
            reason = f"this model makes Gaussians of {self._count} times, there are {len(self._times)}"
            LOGGER.warning(f"{reason}: frames are repeated for them")
        return tuple(self._made)

    def _make(self, held: Part[W], span: range) -> None:
        """Build the segment of these times, and release frames that are no longer needed."""
        own = self._moments[span.start : span.stop]
        part = held.take(range(own[0].start, own[-1].stop))
        repeated, first = padded(len(span), self._count)
        outputs = self._predict(part, [own[index] for index in repeated])
        rows = torch.arange(sum(len(own[index]) for index in repeated)).split([len(own[index]) for index in repeated])
        alone = torch.cat([rows[index] for index in first]).tolist()
        move, seam = align(part.value.prediction, take_frames(outputs.prediction, alone))
        report(seam, f"frames {part.frames.start} to {part.frames.stop - 1}, on which Gaussians are placed,")
        self._keep(fields.move(outputs.prediction.gaussians, move), first, self._times[span.start : span.stop])
        self._held = held.take(range(own[0].start, held.frames.stop))

    def _keep(self, gaussians: Gaussians | None, rows: Sequence[int], times: Float[Tensor, "t"]) -> None:
        """Store a segment with these rows of the offsets and turns, at these times."""
        assert gaussians is not None
        assert gaussians.offsets is not None
        own = dataclasses.replace(
            gaussians,
            offsets=gaussians.offsets[list(rows)],
            offset_times=torch.tensor(times.tolist()),
            turns=None if gaussians.turns is None else gaussians.turns[list(rows)],
        )
        # the middle of the overlap, as in `border`; where it is a frame's time, that exactly: rounding decides nothing
        start = (times[:1] + self._ended) / 2 if self._made else times[:1]
        there = self._times[same_time(self._times, start)]
        self._ended = times[-1:]
        self._made.append(Segment(gaussians=own, start=float(there[0] if len(there) else start)))
