"""Matches between frames of a clip that one rigid motion explains, whichever it is, found without its cameras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from four_d.data.contract import ClipInfo
from four_d.data.features import Features, features, match
from four_d.types import SAME_TIME

LEAST = 20
"""Matches of two frames below which they tell nothing."""
RIGID_SHARE = 0.5
"""Share of the matches that one motion must explain: chance explains less."""
_DRAWS = 160
"""Samples of eight matches that are tried."""
_TOLERANCE = 0.0025
"""Distance from the epipolar line that still fits, in longer sides of the image; at least half a pixel."""
RUNS = 3
"""Runs of neighbouring frames of one camera whose frames are paired."""
FARTHEST = 12
"""Most frames from one to the other of a pair of one camera."""


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Matches of two frames, of what one rigid motion explains."""

    here: Float[Tensor, "n 2"]
    there: Float[Tensor, "n 2"]

    @property
    def moved(self) -> float:
        """Median distance between a match's two pixels."""
        return float((self.there - self.here).norm(dim=-1).median())


class Matches:
    """Matches of a clip's frames, computed when they are asked for, once."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._images = images
        self._features: dict[int, Features] = {}
        self._matched: dict[tuple[int, int], Matched | None] = {}

    def __call__(self, a: int, b: int) -> Matched | None:
        """Match frames a and b; None where too few corners of both agree on one motion."""
        if (a, b) not in self._matched:
            here, there = match(self._of(a), self._of(b))
            rigid = rigid_part(here, there, max(self._images.shape[1:3]))
            self._matched[a, b] = None if rigid is None else Matched(here=here[rigid], there=there[rigid])
        return self._matched[a, b]

    def _of(self, frame: int) -> Features:
        if frame not in self._features:
            self._features[frame] = features(torch.from_numpy(self._images[frame].copy()).permute(2, 0, 1) / 255)
        return self._features[frame]


def rigid_part(here: Float[Tensor, "n 2"], there: Float[Tensor, "n 2"], side: int) -> Bool[Tensor, "n"] | None:
    """Matches that the best fundamental matrix explains (RANSAC, Fischler and Bolles 1981); None where it is chance.

    ``side`` is the image's longer side in pixels.
    """
    count = len(here)
    if count < LEAST:
        return None
    a, b = (torch.cat([(p - p.mean(0)) / side * 2, torch.ones(count, 1)], dim=1) for p in (here, there))
    products = (b[:, :, None] * a[:, None, :]).reshape(count, 9)
    chosen = torch.rand(_DRAWS, count, generator=torch.Generator().manual_seed(0)).argsort(1)[:, :8]
    matrices = torch.linalg.svd(products[chosen])[2][:, -1].reshape(-1, 3, 3)
    left, strength, right = torch.linalg.svd(matrices)
    matrices = left * torch.cat([strength[:, :2], torch.zeros(_DRAWS, 1)], dim=1)[:, None] @ right
    to_b, to_a = a @ matrices.mT, b @ matrices
    off = (to_b * b).sum(-1).abs() / (to_b[..., :2].square().sum(-1) + to_a[..., :2].square().sum(-1)).sqrt().clamp_min(
        1e-9
    )
    fits = off * side / 2 < max(_TOLERANCE * side, 0.5)
    best = fits[fits.sum(1).argmax()]
    return best if int(best.sum()) >= max(RIGID_SHARE * count, LEAST * 0.75) else None


def frame_pairs(info: ClipInfo, streams: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of frames to compare: near and far ones of single runs, then different cameras at one time.

    ``streams`` has the number of each frame's run of neighbouring frames of one camera.
    """
    cameras, times, runs = np.array(info.camera_ids), np.array(info.times), np.array(streams)
    pairs: list[tuple[int, int]] = []
    names = np.unique(runs)
    places = 3 if len(names) == 1 else 2
    for name in names[np.unique(np.linspace(0, len(names) - 1, RUNS).astype(int))]:
        frames = np.flatnonzero(runs == name).tolist()
        for step in sorted({1, 3, min(len(frames) // 3, FARTHEST)} & set(range(1, len(frames)))):
            starts = np.unique(np.linspace(0, len(frames) - 1 - step, places).round().astype(int)).tolist()
            pairs += [(frames[start], frames[start + step]) for start in starts]
    same_time = [
        (a, b)
        for a in range(len(times))
        for b in np.flatnonzero((np.abs(times - times[a]) <= SAME_TIME) & (cameras > cameras[a])).tolist()
    ]
    spread = np.unique(np.linspace(0, len(same_time) - 1, 4).round().astype(int)).tolist()
    return pairs + [same_time[i] for i in spread if same_time]
