"""Ground truth that loss terms need, and the clips and frames of a batch that have it.

A batch holds placeholders for what only some of its clips have, with masks that tell them from truth
(`data.sampling.collate`): ``valid`` of depth, ``known`` of cameras (`frames_with_cameras`), ``dynamic_known`` of masks
(`frames_with_masks`), ``motion_valid``, ``valid`` of tracks and keypoints, -1 among a surface's ``faces``. A field
that is None is one that no clip has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from four_d.types import Clip

Need = Literal["cameras", "depth", "dynamic", "keypoints", "motion", "surface", "views"]
"""Ground truth of a target clip. A term is an exact 0 where one of its ``needs`` is missing."""


def supervised(targets: Clip, needs: Sequence[Need]) -> Bool[Tensor, "b"]:
    """Mask of the clips of a batch that have every truth in ``needs``, if only for a single frame or pixel."""
    found = torch.ones(len(targets.images), dtype=torch.bool, device=targets.images.device)
    for need in needs:
        found = found & TRUTHS[need].known(targets)
    return found


def frames_with_cameras(clip: Clip) -> Bool[Tensor, "b f"]:
    """Mask of the frames whose cameras are known; none where the batch has no cameras."""
    cameras = clip.cameras
    known = torch.full_like(clip.times, cameras is not None, dtype=torch.bool)
    return known if cameras is None or cameras.known is None else cameras.known


def frames_with_masks(clip: Clip) -> Bool[Tensor, "b f"]:
    """Mask of the frames whose ``dynamic`` is known; none where the batch has no such masks."""
    known = torch.full_like(clip.times, clip.dynamic is not None, dtype=torch.bool)
    return known if clip.dynamic is None or clip.dynamic_known is None else clip.dynamic_known


def _some(targets: Clip, known: Tensor | None) -> Bool[Tensor, "b"]:
    """Mask of the clips in which anything is known; none where the batch lacks the field."""
    if known is None:
        return torch.zeros(len(targets.images), dtype=torch.bool, device=targets.images.device)
    return known.flatten(1).any(-1)


def _keypoints(clip: Clip) -> Bool[Tensor, "b"]:
    keypoints = clip.keypoints
    return _some(clip, None if keypoints is None else keypoints.valid | keypoints.pixels_valid)


def _views(clip: Clip) -> Bool[Tensor, "b"]:
    return _some(clip, None if clip.views is None else frames_with_cameras(clip.views))


@dataclass(frozen=True)
class Truth:
    """Kind of ground truth: the data that it takes, in words, and the clips of a batch that have it."""

    source: str
    known: Callable[[Clip], Bool[Tensor, "b"]]


TRUTHS: dict[Need, Truth] = {
    "cameras": Truth("cameras", lambda clip: _some(clip, frames_with_cameras(clip))),
    "depth": Truth(
        "depth (stored, or a surface with cameras)",
        lambda clip: _some(clip, None if clip.depth is None else clip.valid),
    ),
    "dynamic": Truth(
        "masks of what moves (stored, or a surface with cameras)", lambda clip: _some(clip, frames_with_masks(clip))
    ),
    "keypoints": Truth("keypoints", _keypoints),
    "motion": Truth(
        "motion (a surface or tracks, with cameras)",
        lambda clip: _some(clip, None if clip.motion is None else clip.motion_valid),
    ),
    "surface": Truth("a surface", lambda clip: _some(clip, None if clip.surface is None else clip.surface.faces >= 0)),
    "views": Truth("pictures from known cameras", _views),
}
"""All kinds of ground truth; `data.contract.truths` derives them from modalities."""
