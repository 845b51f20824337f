"""Choice of the frames that renders are compared with, and of context frames (DGS-LRM, arXiv 2506.09997)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from four_d import fields
from four_d.errors import UserError
from four_d.types import SAME_TIME, Clip


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """Frames to compare renders with, from the time that an example spans; preferably not its own."""

    count: int = 4
    """Number of views per example."""
    dual: bool = True
    """Choose pairs: the example's camera and another one at the same time, which disambiguates motion and shape. False:
    only the example's own camera."""

    def __post_init__(self) -> None:
        if self.count < 1 or (self.dual and self.count % 2):
            raise UserError(f"data.views.count is {self.count}; choose a positive number, with dual an even one")


def choose_views(
    times: Sequence[float],
    camera_ids: Sequence[int],
    chosen: Sequence[int],
    config: ViewsConfig,
    rng: np.random.Generator,
) -> list[int]:
    """Choose ``config.count`` frame indices of a clip of which ``chosen`` are the example's; too few repeat.

    With ``dual`` and a clip of one camera, only that camera's.
    """
    camera = camera_ids[chosen[0]]
    spanned = np.asarray(times)[list(chosen)]
    candidates = _between(times, camera_ids, camera, spanned.min(), spanned.max())
    other_cameras = sorted(set(camera_ids) - {camera})
    if not config.dual or not other_cameras:
        return _draw(candidates, config.count, rng)
    first = _draw(candidates, config.count // 2, rng)
    second = [_frame_at(times, camera_ids, int(rng.choice(other_cameras)), times[index], index) for index in first]
    return [index for pair in zip(first, second, strict=True) for index in pair]


def choose_references(
    times: Sequence[float], camera_ids: Sequence[int], chosen: Sequence[int], count: int, rng: np.random.Generator
) -> list[int]:
    """Choose ``count`` frames of the example's camera outside its time span; among all if there are too few."""
    camera = camera_ids[chosen[0]]
    spanned = np.asarray(times)[list(chosen)]
    candidates = _between(times, camera_ids, camera, -np.inf, np.inf)
    inside = set(_between(times, camera_ids, camera, spanned.min(), spanned.max()).tolist())
    outside = np.array([index for index in candidates if index not in inside], dtype=np.int64)
    return _draw(outside if len(outside) >= count else candidates, count, rng) if count else []


def _between(
    times: Sequence[float], camera_ids: Sequence[int], camera: int, first: float, last: float
) -> NDArray[np.int64]:
    time_of = np.asarray(times)
    return np.flatnonzero((np.asarray(camera_ids) == camera) & (time_of >= first) & (time_of <= last))


def _draw(candidates: NDArray[np.int64], count: int, rng: np.random.Generator) -> list[int]:
    return [int(i) for i in rng.choice(candidates, count, replace=len(candidates) < count)]


def _frame_at(times: Sequence[float], camera_ids: Sequence[int], camera: int, time: float, otherwise: int) -> int:
    """Frame of a camera at a time; ``otherwise`` where it has none (`types.SAME_TIME`)."""
    gaps = np.where(np.asarray(camera_ids) == camera, np.abs(np.asarray(times) - time), np.inf)
    return int(gaps.argmin()) if gaps.min() <= SAME_TIME else otherwise


def split(clip: Clip, references: int, views: int) -> Clip:
    """Split an unbatched clip: its last ``views`` frames become views, the ``references`` before them references."""
    if not references and not views:
        return clip
    count = len(clip.times) - views
    order = torch.arange(len(clip.times))
    main = fields.take(clip, "f", order[:count])
    if references:
        main = dataclasses.replace(main, references=order[:count] >= count - references)
    if not views:
        return main
    held_out = dataclasses.replace(fields.take(clip, "f", order[count:]), surface=None, tracks=None, keypoints=None)
    return dataclasses.replace(main, views=held_out)
