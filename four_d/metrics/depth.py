"""Errors of z-depth after a stated alignment.

Depth of a pose-free model has no unit, so every score is taken after an alignment, and the alignment belongs to the
score's name (`name`): ``depth_absrel_median_frame`` is AbsRel after median scaling of each frame by itself. All
alignments act on depth (not on disparity):

- ``none``: the prediction as it is, in the target's unit (``metric`` in the literature, if that unit is the metre);
- ``median``: times median(target) / median(prediction); an even count has the mean of the middle two as median;
- ``scale``: times the s that minimises Σ (s·p − g)²;
- ``scaleshift``: s·p + t with the s and t that minimise Σ (s·p + t − g)². Least squares; published video-depth tables
  often minimise absolute errors instead and get other numbers.

It is fitted over the valid pixels of a frame (``frame``) or of all frames of a clip together (``clip``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Alignment = Literal["none", "median", "scale", "scaleshift"]
Region = Literal["frame", "clip"]

Values = Float[Tensor, "*b n"]
Mask = Bool[Tensor, "*b n"]

THRESHOLD = 1.25
"""Ratio within which a pixel counts as right for δ."""


@dataclass(frozen=True, kw_only=True)
class DepthScores:
    """One value per clip. Where ``pixels`` is 0 nothing could be scored: the values are 0 and must be left out."""

    absrel: Float[Tensor, "*b"]
    delta: Float[Tensor, "*b"]
    pixels: Int[Tensor, "*b"]
    """Valid pixels."""
    frames: Int[Tensor, "*b"]
    """Frames with a valid pixel."""


def name(score: str, alignment: Alignment, region: Region) -> str:
    """``depth_absrel_median_frame``; without alignment nothing is fitted, but errors still average over ``region``."""
    return f"depth_{score}_{alignment}_{region}"


def masked_median(values: Values, valid: Mask) -> Float[Tensor, "*b"]:
    """Median of the valid values, 0 where there is none; an even count gives the mean of the middle two."""
    marked = torch.where(valid, values, torch.nan)
    lower, upper = marked.nanmedian(dim=-1).values, -(-marked).nanmedian(dim=-1).values  # faster than sorting
    return torch.where(valid.any(-1), (lower + upper) / 2, 0)


def masked_mean(values: Values, valid: Mask) -> Float[Tensor, "*b"]:
    """Mean of the valid values, 0 where there is none."""
    return torch.where(valid, values, 0).sum(-1) / valid.sum(-1).clamp_min(1)


def align(prediction: Values, target: Values, valid: Mask, alignment: Alignment) -> Values:
    """The prediction after ``alignment`` to the target over the last axis.

    A prediction that gives the fit nothing to hold on to (median ≤ 0, all zeros) becomes 0, whose AbsRel is 1; a
    constant one becomes the target's mean under ``scaleshift``.
    """
    if alignment == "none":
        return prediction
    if alignment == "median":
        factor = _ratio(masked_median(target, valid), masked_median(prediction, valid))
        return prediction * factor[..., None]
    if alignment == "scale":
        factor = _ratio(masked_mean(prediction * target, valid), masked_mean(prediction**2, valid))
        return prediction * factor[..., None]
    centre_p = masked_mean(prediction, valid)[..., None]
    centre_g = masked_mean(target, valid)[..., None]
    covariance = masked_mean((prediction - centre_p) * (target - centre_g), valid)
    factor = _ratio(covariance, masked_mean((prediction - centre_p) ** 2, valid))
    return (prediction - centre_p) * factor[..., None] + centre_g


def _ratio(above: Float[Tensor, "*b"], below: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """``above / below``, 0 where ``below`` is not positive."""
    safe = below > 0
    return torch.where(safe, above / torch.where(safe, below, torch.ones_like(below)), torch.zeros_like(above))


def absrel(prediction: Values, target: Values, valid: Mask) -> Float[Tensor, "*b"]:
    """Mean of |p − g| / g over valid pixels (targets there > 0); 0 where there is none."""
    return masked_mean((prediction - target).abs() / torch.where(valid, target, torch.ones_like(target)), valid)


def delta(prediction: Values, target: Values, valid: Mask, threshold: float = THRESHOLD) -> Float[Tensor, "*b"]:
    """Share of valid pixels with max(p/g, g/p) < ``threshold``; p ≤ 0 counts as wrong; 0 where there is none."""
    right = (prediction < threshold * target) & (target < threshold * prediction)
    return masked_mean(right.to(prediction.dtype), valid)


def scores(
    prediction: Float[Tensor, "*b f h w"],
    target: Float[Tensor, "*b f h w"],
    valid: Bool[Tensor, "*b f h w"],
    alignment: Alignment,
    region: Region,
    where: Bool[Tensor, "*b f h w"] | None = None,
) -> DepthScores:
    """AbsRel and δ of clips, in float64.

    ``region="clip"``: one alignment and one mean over all valid pixels. ``region="frame"``: each frame is aligned and
    scored alone; the clip's value is the plain mean over its frames with a valid pixel. Pixels whose target is not
    positive and finite are left out even where ``valid``. ``where`` says which of the valid pixels are scored (and
    counted); the alignment is over all of them.
    """
    valid = valid & (target > 0) & target.isfinite()
    rows = _grouped(valid, region)
    p = torch.where(rows, _grouped(prediction, region).double(), 0.0)
    g = torch.where(rows, _grouped(target, region).double(), 0.0)
    aligned = align(p, g, rows, alignment)
    if where is not None:
        valid = valid & where
        rows = _grouped(valid, region)
    scored = rows.any(-1)
    return DepthScores(
        absrel=masked_mean(absrel(aligned, g, rows), scored),
        delta=masked_mean(delta(aligned, g, rows), scored),
        pixels=valid.flatten(-3).sum(-1),
        frames=valid.flatten(-2).any(-1).sum(-1),
    )


def _grouped(values: Tensor, region: Region) -> Tensor:
    """``*b f h w`` to ``*b groups n``."""
    return values.flatten(-2) if region == "frame" else values.flatten(-3).unsqueeze(-2)
