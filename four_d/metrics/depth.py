"""Errors of z-depth after a stated alignment.

Depth of a pose-free model has no unit, so every score is taken after an alignment, and the alignment belongs to the
score's name: ``depth_absrel_median_frame`` is AbsRel after median scaling of each frame by itself. All
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
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

Alignment = Literal["none", "median", "scale", "scaleshift"]
Region = Literal["frame", "clip"]

Values = Float[Tensor, "*b n"]
Mask = Bool[Tensor, "*b n"]

THRESHOLD = 1.25
"""Ratio within which a pixel counts as correct for δ."""


@dataclass(frozen=True, kw_only=True)
class DepthScores:
    """One value per clip. Where ``pixels`` is 0 nothing could be scored: the values are 0 and must be left out."""

    absrel: Float[Tensor, "*b"]
    delta: Float[Tensor, "*b"]
    pixels: Int[Tensor, "*b"]
    """Valid pixels."""
    frames: Int[Tensor, "*b"]
    """Frames with a valid pixel."""


def masked_median(values: Values, valid: Mask) -> Float[Tensor, "*b"]:
    """Median of the valid values, 0 where there is none; an even count gives the mean of the middle two."""
    marked = torch.where(valid, values, torch.nan)
    lower, upper = marked.nanmedian(dim=-1).values, -(-marked).nanmedian(dim=-1).values  # faster than sorting
    return torch.where(valid.any(-1), (lower + upper) / 2, 0)


def masked_mean(values: Values, valid: Mask) -> Float[Tensor, "*b"]:
    """Mean of the valid values, 0 where there is none."""
    return torch.where(valid, values, 0).sum(-1) / valid.sum(-1).clamp_min(1)


def align(prediction: Values, target: Values, valid: Mask, alignment: Alignment) -> Values:
    """Align the prediction to the target by ``alignment`` over the last axis.

    A degenerate prediction (median ≤ 0, all zeros) becomes 0, whose AbsRel is 1; a constant one becomes the target's
    mean under ``scaleshift``.
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
    """Fraction of valid pixels with max(p/g, g/p) < ``threshold``; p ≤ 0 counts as wrong; 0 where there is none."""
    right = (prediction < threshold * target) & (target < threshold * prediction)
    return masked_mean(right.to(prediction.dtype), valid)


def scores(
    prediction: Float[Tensor, "*b f h w"],
    target: Float[Tensor, "*b f h w"],
    valid: Bool[Tensor, "*b f h w"],
    alignment: Alignment,
    region: Region,
    scored_pixels: Bool[Tensor, "*b f h w"] | None = None,
) -> DepthScores:
    """AbsRel and δ of clips, in float64.

    ``region="clip"``: one alignment and one mean over all valid pixels. ``region="frame"``: each frame is aligned and
    scored alone; the clip's value is the plain mean over its frames with a valid pixel. Pixels whose target is not
    positive and finite are left out even where ``valid``. ``scored_pixels`` selects those of the valid pixels that are
    scored and counted; the alignment is over all of them.
    """
    valid = valid & (target > 0) & target.isfinite()
    rows = _grouped(valid, region)
    p = torch.where(rows, _grouped(prediction, region).double(), 0.0)
    g = torch.where(rows, _grouped(target, region).double(), 0.0)
    aligned = align(p, g, rows, alignment)
    if scored_pixels is not None:
        valid = valid & scored_pixels
        rows = _grouped(valid, region)
    scored = rows.any(-1)
    return DepthScores(
        absrel=masked_mean(absrel(aligned, g, rows), scored),
        delta=masked_mean(delta(aligned, g, rows), scored),
        pixels=valid.flatten(-3).sum(-1),
        frames=valid.flatten(-2).any(-1).sum(-1),
    )


def _grouped(values: Tensor, region: Region) -> Tensor:
    """Reshape ``*b f h w`` to ``*b groups n``."""
    return values.flatten(-2) if region == "frame" else values.flatten(-3).unsqueeze(-2)


PublishedAlignment = Literal["metric", "median", "scale", "scaleshift"]
"""Alignment modes of the code behind published tables; `published` describes each."""
WEISZFELD_ITERATIONS = 10
ADAM_STEPS = 1000
ADAM_RATE = 1e-4
ADAM_TOLERANCE = 1e-6
"""Change of the summed error below which the fit of scale and shift ends."""
MIN_DEPTH = 1e-5
"""Depth below which log RMSE and δ take this value."""
NEAREST_TRUTH = 1e-3
"""Depth at or below which truth does not count in `published_disparity`."""
LEAST_DISPARITY = 1e-3


@dataclass(frozen=True, kw_only=True)
class PublishedScores:
    """Scores over all pixels, as in MonST3R's and CUT3R's tables. Lengths in the target's unit."""

    absrel: float
    sqrel: float
    rmse: float
    logrmse: float
    delta125: float
    delta125_2: float
    """Fraction of pixels with a ratio below 1.25²."""
    delta125_3: float
    pixels: int
    """Weight in the mean over sequences."""


def published(
    prediction: Float[Tensor, "n"],
    target: Float[Tensor, "n"],
    alignment: PublishedAlignment,
    clip: float | None = None,
) -> PublishedScores:
    """Scores of valid pixels (targets > 0, at least one) after an alignment as published code runs it.

    - ``metric``: none; ``median``: times median(g) / median(p), the lower middle value of an even count;
    - ``scale``: about the least Σ |s·p − g|: ten Weiszfeld rounds from mean(g) / mean(p), at least 1e-3;
    - ``scaleshift``: towards the least Σ |s·p + t − g|: at most 1000 steps of Adam at rate 1e-4 from the median ratio
      and t = 0. It moves s and t by at most about 0.1 each, which is part of the protocol.

    ``clip``: the greatest depth after alignment.
    """
    aligned = align_published(prediction, target, alignment)
    aligned = aligned if clip is None else aligned.clamp_max(clip)
    error = aligned - target
    safe = aligned.clamp_min(MIN_DEPTH)  # a fit may make depths negative, which have no logarithm
    ratio = torch.maximum(safe / target, target / safe)
    return PublishedScores(
        absrel=float((error.abs() / target).mean()),
        sqrel=float((error.square() / target).mean()),
        rmse=float(error.square().mean().sqrt()),
        logrmse=float((safe.log() - target.log()).square().mean().sqrt()),
        delta125=float((ratio < THRESHOLD).double().mean()),
        delta125_2=float((ratio < THRESHOLD**2).double().mean()),
        delta125_3=float((ratio < THRESHOLD**3).double().mean()),
        pixels=len(target),
    )


def align_published(
    prediction: Float[Tensor, "n"], target: Float[Tensor, "n"], alignment: PublishedAlignment
) -> Float[Tensor, "n"]:
    """Align the prediction by one of the alignments of `published`."""
    if alignment == "metric":
        return prediction
    if alignment == "median":
        return prediction * (target.median() / prediction.median())
    if alignment == "scale":
        return prediction * _weiszfeld(prediction, target)
    scale, shift = _adam(prediction, target)
    return prediction * scale + shift


def _weiszfeld(prediction: Float[Tensor, "n"], target: Float[Tensor, "n"]) -> Float[Tensor, ""]:
    scale = target.mean() / prediction.mean()
    for _ in range(WEISZFELD_ITERATIONS):
        weighted = prediction / ((scale * prediction - target).abs() + 1e-8)
        scale = (weighted * target).sum() / (weighted * prediction).sum()
    return scale.clamp_min(1e-3)


def _adam(prediction: Float[Tensor, "n"], target: Float[Tensor, "n"]) -> tuple[float, float]:
    """Scale and shift after Adam's steps (β 0.9 and 0.999) on the summed absolute error, whose gradient is exact."""
    fitted = torch.tensor([float(target.median() / prediction.median()), 0.0], dtype=torch.float64)
    first, second = torch.zeros_like(fitted), torch.zeros_like(fitted)
    before = torch.inf
    for step in range(1, ADAM_STEPS + 1):
        error = prediction * float(fitted[0]) + float(fitted[1]) - target
        sign = error.sign()
        gradient = torch.tensor([float((sign * prediction).sum()), float(sign.sum())], dtype=torch.float64)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient.square()
        corrected = first / (1 - 0.9**step), second / (1 - 0.999**step)
        fitted = fitted - ADAM_RATE * corrected[0] / (corrected[1].sqrt() + 1e-8)
        loss = float(error.abs().sum())
        if abs(before - loss) < ADAM_TOLERANCE:
            break
        before = loss
    return float(fitted[0]), float(fitted[1])


@dataclass(frozen=True, kw_only=True)
class DisparityScores:
    """Scores as in DepthCrafter's and Video Depth Anything's tables: of each frame, then the mean over frames."""

    absrel: float
    rmse: float
    delta125: float


def published_disparity(
    prediction: Float[Tensor, "f h w"], target: Float[Tensor, "f h w"], valid: Bool[Tensor, "f h w"], farthest: float
) -> DisparityScores:
    """Scores of a video after one least-squares fit of scale and shift from predicted to true disparity.

    Facts: DepthAnything/Video-Depth-Anything at commit 4f5ae23, benchmark/eval. Pixels count at which the truth lies
    between `NEAREST_TRUTH` and ``farthest``; disparities are at least `LEAST_DISPARITY` before and after the fit, and
    depths at most ``farthest``. Frames without such pixels are left out; at least one must have some.

    Args:
        prediction: disparities in any unit, at the truth's size.
        target: true depth.
        valid: pixels with true depth.
        farthest: depth at or beyond which truth does not count.

    """
    counts = valid & (target > NEAREST_TRUTH) & (target < farthest)
    said, true = prediction.double().clamp_min(LEAST_DISPARITY), target.double()
    design = torch.stack([said[counts], torch.ones_like(said[counts])], dim=-1)
    wanted = 1 / (true[counts] + 1e-8)
    scale, shift = torch.linalg.lstsq(design, wanted[:, None], driver="gelsd").solution[:, 0].cpu().tolist()
    aligned = (1 / (scale * said + shift).clamp_min(LEAST_DISPARITY)).clamp(NEAREST_TRUTH, farthest)
    kept = counts.flatten(1).any(-1)
    aligned, true, counts = aligned[kept], true[kept], counts[kept]
    error = (aligned - true).abs()
    ratio = torch.maximum(aligned / true, true / aligned)
    return DisparityScores(
        absrel=float(_mean_of_frames(error / true, counts)),
        rmse=float(_per_frame(error.square(), counts).sqrt().mean()),
        delta125=float(_mean_of_frames((ratio < THRESHOLD).double(), counts)),
    )


def _per_frame(values: Float[Tensor, "f h w"], counts: Bool[Tensor, "f h w"]) -> Float[Tensor, "f"]:
    return torch.where(counts, values, 0.0).flatten(1).sum(-1) / counts.flatten(1).sum(-1)


def _mean_of_frames(values: Float[Tensor, "f h w"], counts: Bool[Tensor, "f h w"]) -> Float[Tensor, ""]:
    return _per_frame(values, counts).mean()


def resize_linear(prediction: Float[Tensor, "f r c"], size: tuple[int, int]) -> Float[Tensor, "f h w"]:
    """Resize maps by linear interpolation (pixel centres at half, no low-pass), as OpenCV's ``INTER_LINEAR``."""
    if tuple(prediction.shape[-2:]) == size:
        return prediction
    return torch.nn.functional.interpolate(prediction[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def resize_nearest(maps: Shaped[Tensor, "f r c"], size: tuple[int, int]) -> Shaped[Tensor, "f h w"]:
    """Resize maps by nearest pixel, without interpolating between surfaces."""
    rows, columns = (((torch.arange(n) + 0.5) * m / n).long() for n, m in zip(size, maps.shape[1:], strict=True))
    return maps[:, rows][:, :, columns]


def resize_cubic(prediction: Float[Tensor, "f r c"], size: tuple[int, int]) -> Float[Tensor, "f h w"]:
    """Resize maps by cubic convolution (a = −0.75, pixel centres at half, edges repeated, no low-pass).

    This is the arithmetic of OpenCV's ``INTER_CUBIC``, with which published code resizes predictions.
    """
    if tuple(prediction.shape[-2:]) == size:
        return prediction
    return torch.nn.functional.interpolate(prediction[:, None], size, mode="bicubic", align_corners=False)[:, 0]
