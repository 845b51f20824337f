"""Errors of points followed in 3D, as published protocols define them.

Axes: n tracks, t times, b any. A name says the protocol, since equal words mean different things:

- **WorldTrack** (St4RTrack; DePT3R, 4RC): world coordinates (the first camera's). `epe` in metres, and `apd`: the mean
  over fixed distances of the share within, after `align_world`.
- **TAPVid-3D** (Koppula et al. 2024): camera coordinates; distances that project to 1, 2, 4, 8, 16 pixels of a picture
  whose short side is 256: `tapvid3d`.
- **Scene flow** of FlowNet3D, FLOT and others: `scene_flow`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d.metrics import depth

WORLD_THRESHOLDS = (0.1, 0.3, 0.5, 1.0)
"""Metres of WorldTrack's APD."""
WORLD_DYNAMIC = 0.01
"""Length of a path over the clip (m) above which a track is dynamic (WorldTrack)."""
NO_EXTENT = 1e-12
"""Norms below are none."""


def endpoint_errors(predicted: Float[Tensor, "*b 3"], truth: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b"]:
    """Distances of corresponding points."""
    return (predicted - truth).norm(dim=-1)


def epe(errors: Float[Tensor, "*b"], where: Bool[Tensor, "*b"]) -> Float[Tensor, ""]:
    """Mean of the errors at ``where``, which must hold somewhere."""
    return _counted(errors, where).mean()


def apd(
    errors: Float[Tensor, "*b"], where: Bool[Tensor, "*b"], thresholds: tuple[float, ...] = WORLD_THRESHOLDS
) -> Float[Tensor, ""]:
    """Mean over ``thresholds`` of the share of errors at ``where`` that are at most so large; some must count."""
    counted = _counted(errors, where)
    return torch.stack([(counted <= threshold).to(errors).mean() for threshold in thresholds]).mean()


def _counted(errors: Float[Tensor, "*b"], where: Bool[Tensor, "*b"]) -> Float[Tensor, "n"]:
    counted = errors[where]
    assert counted.numel(), "no error counts"
    return counted


def median_scale(predicted: Float[Tensor, "n 3"], truth: Float[Tensor, "n 3"]) -> Float[Tensor, ""]:
    """WorldTrack's one scale: median norm of the truth over that of the prediction; 1 if that has no extent.

    An even count has the mean of the middle two as median.
    """
    mine, theirs = (_median(points.norm(dim=-1)) for points in (predicted, truth))
    return torch.where(mine > NO_EXTENT, theirs / mine.clamp_min(NO_EXTENT), torch.ones_like(mine))


def _median(values: Float[Tensor, "n"]) -> Float[Tensor, ""]:
    return depth.masked_median(values, torch.ones_like(values, dtype=torch.bool))


def path_length(paths: Float[Tensor, "*b t 3"], valid: Bool[Tensor, "*b t"] | None = None) -> Float[Tensor, "*b"]:
    """Length of each path over its times, in order; a step counts where both its ends are valid."""
    steps = (paths[..., 1:, :] - paths[..., :-1, :]).norm(dim=-1)
    if valid is not None:
        steps = steps * (valid[..., 1:] & valid[..., :-1])
    return steps.sum(-1)


def moving(
    paths: Float[Tensor, "*b t 3"], valid: Bool[Tensor, "*b t"] | None = None, threshold: float = WORLD_DYNAMIC
) -> Bool[Tensor, "*b"]:
    """Dynamic tracks of WorldTrack: the path in the world is longer than ``threshold`` (m)."""
    return path_length(paths, valid) > threshold
