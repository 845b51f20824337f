"""Which frames pictures of Gaussians are compared with, and which are only looked at (DGS-LRM, arXiv 2506.09997)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from four_d.errors import UserError
from four_d.types import SAME_TIME, Clip, map_tensors


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """Frames to compare pictures with, from the time that an example spans; others than its own where there are."""

    count: int = 4
    """Per example."""
    dual: bool = True
    """By twos: the example's camera and another one at the same time, which tells motion from shape. False: only the
    example's own camera."""

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
    """``config.count`` frame indices of a clip of which ``chosen`` are the example's; too few come twice.

    With ``dual``, of a clip with one camera, only that one's.
    """
    own = camera_ids[chosen[0]]
    spanned = np.asarray(times)[list(chosen)]
    candidates = _between(times, camera_ids, own, spanned.min(), spanned.max())
    others = sorted(set(camera_ids) - {own})
    if not config.dual or not others:
        return _draw(candidates, config.count, rng)
    first = _draw(candidates, config.count // 2, rng)
    second = [_at(times, camera_ids, int(rng.choice(others)), times[index], index) for index in first]
    return [index for pair in zip(first, second, strict=True) for index in pair]


def choose_references(
    times: Sequence[float], camera_ids: Sequence[int], chosen: Sequence[int], count: int, rng: np.random.Generator
) -> list[int]:
    """``count`` frames of the example's camera outside the time that it spans; of all if there are too few."""
    own = camera_ids[chosen[0]]
    spanned = np.asarray(times)[list(chosen)]
    every = _between(times, camera_ids, own, -np.inf, np.inf)
    inside = set(_between(times, camera_ids, own, spanned.min(), spanned.max()).tolist())
    outside = np.array([index for index in every if index not in inside], dtype=np.int64)
    return _draw(outside if len(outside) >= count else every, count, rng) if count else []


def _between(
    times: Sequence[float], camera_ids: Sequence[int], camera: int, first: float, last: float
) -> NDArray[np.int64]:
    at = np.asarray(times)
    return np.flatnonzero((np.asarray(camera_ids) == camera) & (at >= first) & (at <= last))


def _draw(candidates: NDArray[np.int64], count: int, rng: np.random.Generator) -> list[int]:
    return [int(i) for i in rng.choice(candidates, count, replace=len(candidates) < count)]


def _at(times: Sequence[float], camera_ids: Sequence[int], camera: int, time: float, otherwise: int) -> int:
    """The frame of a camera at a time; ``otherwise`` where it has none (`types.SAME_TIME`)."""
    gaps = np.where(np.asarray(camera_ids) == camera, np.abs(np.asarray(times) - time), np.inf)
    return int(gaps.argmin()) if gaps.min() <= SAME_TIME else otherwise


def split(clip: Clip, references: int, views: int) -> Clip:
    """An unbatched clip whose last ``views`` frames become its views, and the ``references`` before them references."""
    count = len(clip.times) - views
    order = torch.arange(len(clip.times))
    main = take(clip, order[:count])
    if references:
        main = dataclasses.replace(main, references=order[:count] >= count - references)
    if not views:
        return main
    shown = dataclasses.replace(take(clip, order[count:]), surface=None, tracks=None)
    return dataclasses.replace(main, views=shown)


FRAME_FIELDS = ("images", "times", "camera_ids", "cameras", "depth", "valid", "dynamic", "dynamic_known", "references")


def take(clip: Clip, frames: Int[Tensor, "k"]) -> Clip:
    """Those frames of an unbatched clip; what belongs to no frame stays."""
    parts = {name: map_tensors(getattr(clip, name), lambda tensor: tensor[frames]) for name in FRAME_FIELDS}
    surface = clip.surface
    if surface is not None:
        surface = dataclasses.replace(surface, faces=surface.faces[frames], barycentric=surface.barycentric[frames])
    return dataclasses.replace(clip, **parts, surface=surface)
