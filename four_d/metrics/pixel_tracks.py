"""Errors of points followed in the image, as TAP-Vid defines them (Doersch et al. 2022).

Pixels are those of an image stretched to `SIDE` × `SIDE`. Only ``counted`` frames of a track are scored. Axes: n
tracks, t frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SIDE = 256
DISTANCES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Pixels within which a point counts as found."""


@dataclass(frozen=True, kw_only=True)
class TapVidScores:
    """Scores of one video. A score over no point is 0."""

    jaccard: float
    """AJ: mean over `DISTANCES` of true positives / (truly visible + false positives)."""
    within: float
    """δ_avg: mean over `DISTANCES` of the fraction of truly visible points that are nearer."""
    occlusion: float
    """OA: fraction of points and frames whose visibility is right."""


def tapvid(
    predicted: Float[Tensor, "n t 2"],
    predicted_visible: Bool[Tensor, "n t"],
    truth: Float[Tensor, "n t 2"],
    visible: Bool[Tensor, "n t"],
    counted: Bool[Tensor, "n t"],
) -> TapVidScores:
    """Compute TAP-Vid's scores of positions as fractions of the image's sides; errors strictly below each distance."""
    errors = SIDE * (predicted.double() - truth.double())[counted].norm(dim=-1)
    seen, said = visible[counted], predicted_visible[counted]
    within = torch.stack([errors < distance for distance in DISTANCES]) & seen
    # as published: a point said to be seen is wrong where it is hidden, and also where it is too far away
    false = said & ~within
    total = seen.sum().clamp_min(1)
    jaccard = (within & said).sum(-1) / (seen.sum() + false.sum(-1)).clamp_min(1)
    return TapVidScores(
        jaccard=float(jaccard.double().mean()),
        within=float((within.sum(-1) / total).double().mean()),
        occlusion=float((said == seen).double().mean()) if len(seen) else 0.0,
    )
