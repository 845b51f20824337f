"""Choice of the frames whose geometry is checked: all of a short clip, runs of neighbouring frames of a long one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST_FRAMES = 96
"""Most frames of a clip whose geometry is checked."""
MOST_PIXELS = 2**25
"""Most pixels of these frames together, which bounds memory; but `LEAST_FRAMES` in any case."""
LEAST_FRAMES = 8
RUN = 16
"""Frames of a run, which holds all pairs of frames that are compared and every shift in time that is tried."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Frames of a clip, in order, and the number of the run that each is of."""

    frames: list[int]
    streams: list[int]


def whole(camera_ids: Sequence[int]) -> Chosen:
    """Choose all frames: a run for each camera."""
    return Chosen(frames=list(range(len(camera_ids))), streams=list(camera_ids))


def choose(times: Sequence[float], camera_ids: Sequence[int], pixels: int) -> Chosen:
    """Choose frames of images of ``pixels`` pixels: evenly spread cameras, and times that are the same for all."""
    most = max(LEAST_FRAMES, min(MOST_FRAMES, MOST_PIXELS // max(pixels, 1)))
    if len(camera_ids) <= most:
        return whole(camera_ids)
    ids, at = np.array(camera_ids), np.array(times)
    of_camera = {int(name): np.flatnonzero(ids == name) for name in np.unique(ids)}
    longest = max(of_camera.values(), key=len)
    length = min(RUN, most, len(longest))
    names = _evenly(list(of_camera), max(most // length, 1))
    count = max(most // (length * len(names)), 1)
    starts = at[longest[_evenly(range(len(longest) - length + 1), count)]]
    frames: dict[int, int] = {}
    run = 0
    for name in names:
        own = of_camera[name]
        for start in starts:
            first = min(int(np.searchsorted(at[own], start)), max(len(own) - length, 0))
            for frame in own[first : first + length].tolist():
                frames.setdefault(frame, run)
            run += 1
    order = sorted(frames)
    return Chosen(frames=order, streams=[frames[frame] for frame in order])


def _evenly(values: Sequence[int], count: int) -> list[int]:
    """Take ``count`` of the values, evenly spread, all if there are fewer."""
    count = min(count, len(values))
    return [values[int((i + 0.5) * len(values) / count)] for i in range(count)]
