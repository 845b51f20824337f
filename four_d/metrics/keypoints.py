"""Keypoint transfer between frames, as DyCheck scores it (Gao et al. 2022, arXiv 2210.13445)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

RATIO = 0.05
"""Largest error of a correct keypoint, as a fraction of the image's longer side."""


def pck(
    predicted: Float[Tensor, "n 2"], truth: Float[Tensor, "n 2"], size: tuple[int, int], ratio: float = RATIO
) -> Float[Tensor, ""]:
    """PCK-T: fraction of keypoints nearer than ``ratio`` · max(height, width) pixels. In [0, 1], higher is better.

    For one pair of frames with at least one common keypoint; a video's figure is the mean over its pairs (`pairs`).
    ``size`` is (height, width). A prediction that is not finite is wrong. (Kulkarni et al. 2019 have it as PCK.)
    """
    assert len(truth), "no keypoint counts"
    return ((predicted - truth).norm(dim=-1) < ratio * max(size)).to(truth).mean()


def pairs(visible: Bool[Tensor, "k n"]) -> Iterator[tuple[int, int, Bool[Tensor, "n"]]]:
    """Yield every ordered pair (from, to) of different annotated frames with common keypoints, and their mask."""
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
    """Mean of `pck` over `pairs`. ``carried[i, j]`` are the predicted positions of frame i's keypoints in frame j.

    At least one pair of frames must have a common keypoint.
    """
    values = [pck(carried[i, j][shared], points[j][shared], size, ratio) for i, j, shared in pairs(visible)]
    assert values, "no two frames share a keypoint"
    return torch.stack(values).mean()
