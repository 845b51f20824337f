"""Keypoints carried from one frame to another, as DyCheck scores them (Gao et al. 2022, arXiv 2210.13445)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

RATIO = 0.05
"""Of the picture's longer side: what a keypoint may be off by."""


def pck(
    predicted: Float[Tensor, "n 2"], truth: Float[Tensor, "n 2"], size: tuple[int, int], ratio: float = RATIO
) -> Float[Tensor, ""]:
    """PCK-T: share of keypoints nearer than ``ratio`` · max(height, width) pixels. In [0, 1], higher is better.

    Of one pair of frames, which share a keypoint at least; the figure of a video is the mean over its pairs (`pairs`).
    ``size`` is (height, width). A prediction that is not finite is wrong. (Kulkarni et al. 2019 have it as PCK.)
    """
    assert len(truth), "no keypoint counts"
    return ((predicted - truth).norm(dim=-1) < ratio * max(size)).to(truth).mean()


def pairs(visible: Bool[Tensor, "k n"]) -> Iterator[tuple[int, int, Bool[Tensor, "n"]]]:
    """Every ordered pair (from, to) of different annotated frames that share keypoints, and which those are."""
    for source, target in permutations(range(len(visible)), 2):
        shared = visible[source] & visible[target]
        if bool(shared.any()):
            yield source, target, shared


def pck_of_video(
    carried: Float[Tensor, "k k n 2"],
    points: Float[Tensor, "k n 2"],
    visible: Bool[Tensor, "k n"],
    size: tuple[int, int],
    ratio: float = RATIO,
) -> Float[Tensor, ""]:
    """The mean of `pck` over `pairs`. ``carried[i, j]`` is where frame i's keypoints are predicted to be in frame j.

    Some pair of frames must share a keypoint.
    """
    found = [pck(carried[i, j][shared], points[j][shared], size, ratio) for i, j, shared in pairs(visible)]
    assert found, "no two frames share a keypoint"
    return torch.stack(found).mean()
