"""Depth and point terms: error, error weighted by confidence, and shape (VGGT, arXiv 2503.11651 §3.4).

Where paper and released training differ, the defaults follow the released training, and the overlay vggt_paper_losses
the paper.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from four_d.errors import UserError
from four_d.geometry import unproject
from four_d.losses.reduction import Over, below_quantile, group_mean, grouped, nothing
from four_d.losses.schedule import Weight
from four_d.losses.supervision import Need, frames_with_cameras
from four_d.losses.term import LossInputs, LossSpec, LossTerm

LIMIT = 100.0
"""Upper limit of an error; beyond it there is no gradient."""
GRADIENT_SCALES = 4
NORMAL_SCALES = 3
MIN_NORMALS = 10
SMALLEST = 1e-16
"""Lower limit of a vector's length."""
FLAT = 1e-5
"""Height of a triangle, as a fraction of its distance from the origin, below which it has no normal. Neighbours that
half precision makes equal, or nearly so, would otherwise have gradients as large as one over that height."""

UNCOUNTED = "where pixels.regression and pixels.confidence are 0"
"""Reason for settings of errors per pixel to have no effect."""

Maps = Float[Tensor, "b f h w c"]
Masks = Bool[Tensor, "b f h w"]
Weighing = Literal["plain", "confidence", "likelihood"]
"""Weighting of gradient errors: none (released training); times the confidence (paper); or as errors of pixels,
γ·e·c − α·log c, the logarithm also where nothing is valid (an option of the released training)."""


def confidence_weighted(
    errors: Float[Tensor, "*b"], confidence: Float[Tensor, "*b"], gamma: float, alpha: float
) -> Float[Tensor, "*b"]:
    """γ·e·c − α·log c: the likelihood of errors of size α / (γ·c)."""
    return gamma * errors * confidence - alpha * confidence.log()


def gradient_errors(predicted: Maps, target: Maps, valid: Masks) -> list[Float[Tensor, "b f _h _w c"]]:
    """|∂x(p − t)| and |∂y(p − t)| between neighbours that are both valid, 0 elsewhere; limited."""
    difference = torch.where(valid[..., None], predicted - target, 0)
    results: list[Tensor] = []
    for axis in (-2, -3):
        size = difference.shape[axis]
        both = valid.narrow(axis + 1, 1, size - 1) & valid.narrow(axis + 1, 0, size - 1)
        step = difference.narrow(axis, 1, size - 1) - difference.narrow(axis, 0, size - 1)
        results.append(torch.where(both[..., None], step.abs().clamp_max(LIMIT), 0))
    return results


def gradient_term(
    predicted: Maps,
    target: Maps,
    valid: Masks,
    over: Over = "clip",
    confidence: Float[Tensor, "b f h w"] | None = None,
    gamma: float = 1.0,
    alpha: float = 0.0,
) -> Float[Tensor, "g"]:
    """Sum of `gradient_errors` per valid number, averaged over four scales (every 1st, 2nd, 4th, 8th pixel).

    With ``confidence`` they are first weighted by that of the right or the lower one of the two pixels.
    """
    total = grouped(predicted, over)[:, :0].sum(-1)
    for step in (2**scale for scale in range(GRADIENT_SCALES)):
        mask = valid[..., ::step, ::step]
        errors = gradient_errors(predicted[..., ::step, ::step, :], target[..., ::step, ::step, :], mask)
        if confidence is not None:
            sure = confidence[..., ::step, ::step, None]
            seconds = (sure[..., 1:, :], sure[..., 1:, :, :])
            errors = [confidence_weighted(e, c.expand_as(e), gamma, alpha) for e, c in zip(errors, seconds)]
        summed = sum(grouped(each, over).sum(-1) for each in errors)
        total = total + summed / (grouped(mask, over).sum(-1) * predicted.shape[-1]).clamp_min(1)
    return total / GRADIENT_SCALES


def normals(
    points: Float[Tensor, "b f h w 3"], valid: Masks
) -> tuple[Float[Tensor, "4 3 b f h w"], Bool[Tensor, "4 b f h w"]]:
    """Four normals per pixel, of the triangles it forms with its neighbours up-left, left-down, down-right, right-up,
    as long as twice the triangle's area; and which of them have three valid corners. Zero, without gradient, are those
    of triangles without area (`FLAT`).
    """
    planes = points.movedim(-1, 0).contiguous()  # arithmetic on whole planes: several times faster than on triples
    padded = functional.pad(planes, (1, 1, 1, 1))
    inside = functional.pad(valid, (1, 1, 1, 1))
    h, w = valid.shape[-2:]
    shifts = [(0, 1), (1, 0), (2, 1), (1, 2)]  # up, left, down, right
    arms = [padded[..., i : i + h, j : j + w] - planes for i, j in shifts]
    good = [inside[..., i : i + h, j : j + w] & valid for i, j in shifts]
    pairs = list(zip(arms, [*arms[1:], arms[0]]))
    both = torch.stack([one & two for one, two in zip(good, [*good[1:], good[0]])])
    found = torch.stack([cross(one, two) for one, two in pairs])
    return found.masked_fill(flat(found, arms, planes), 0), both


@torch.no_grad()
def flat(found: Float[Tensor, "4 3 *b"], arms: list[Float[Tensor, "3 *b"]], at: Float[Tensor, "3 *b"]) -> Tensor:
    """Mask ``4 1 *b`` of the triangles of `normals` at points ``at`` without area: height ≤ `FLAT` · distance."""
    squares = [arm.square().sum(0) for arm in arms]
    longest = torch.stack([one.maximum(two) for one, two in zip(squares, [*squares[1:], squares[0]])])
    return (found.square().sum(1) <= FLAT**2 * longest * at.square().sum(0))[:, None]


def length(vectors: Float[Tensor, "*b"], axis: int) -> Float[Tensor, "*c"]:
    """Norm over ``axis``, with a finite gradient at zero. (torch's own takes ten times as long on a CPU.)"""
    return vectors.square().sum(axis).clamp_min(SMALLEST**2).sqrt()


def cross(a: Float[Tensor, "3 *b"], b: Float[Tensor, "3 *b"]) -> Float[Tensor, "3 *b"]:
    """Cross product over the first axis."""
    (ax, ay, az), (bx, by, bz) = a, b
    return torch.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx])


def normal_term(
    predicted: Float[Tensor, "b f h w 3"], target: Float[Tensor, "b f h w 3"], valid: Masks, over: Over = "clip"
) -> Float[Tensor, "g"]:
    """1 − cos between normals, averaged over three scales; a scale with fewer than 10 normals gives 0."""
    total = grouped(predicted, over)[:, :0].sum(-1)
    for step in (2**scale for scale in range(NORMAL_SCALES)):
        mask = valid[..., ::step, ::step]
        ours, good = normals(predicted[..., ::step, ::step, :], mask)
        theirs, _ = normals(target[..., ::step, ::step, :], mask)
        errors = 1 - (ours * theirs).sum(1) / (length(ours, 1) * length(theirs, 1))
        values, keep = (grouped(each.movedim(0, 1), over) for each in (errors, good))
        total = total + group_mean(values, keep, at_least=MIN_NORMALS)
    return total / NORMAL_SCALES


@dataclass(frozen=True, kw_only=True)
class PixelTerms:
    """Settings common to depth and points: error per pixel, plain and weighted by confidence."""

    regression: float = 1.0
    """Weight of the plain error."""
    confidence: float = 1.0
    """Weight of the confidence-weighted error; with 0 (and a plain ``gradient_by``) confidence learns nothing."""
    gamma: float = 1.0
    """γ of the confidence-weighted error γ·e·c − α·log c, which errors are multiplied by. 1: VGGT's release."""
    alpha: float = 0.2
    """α of that error: reward of confidence; larger: surer. 0.2: VGGT's release."""
    gradient_by: Weighing = "plain"
    """Weighting of gradients' errors: ``plain`` (VGGT's release), ``confidence`` (its paper: times the confidence), or
    ``likelihood`` (γ·e·c − α·log c, as errors of pixels)."""
    quantile: float | None = 0.98
    """Quantile above which errors are trimmed, where more than 1,000 are; None: never."""
    min_valid: int = 100
    """Valid pixels below which a group gives 0."""
    over: Over = "clip"
    """Domain of means. ``clip``: each clip's values, then all clips alike, so that processes that share a batch do what
    one does; ``batch``: all values of the batch together, as VGGT's release."""

    @property
    def counts(self) -> bool:
        """True if errors per pixel count at all, plain or weighted by confidence."""
        return bool(self.regression or self.confidence)

    @property
    def without_effect(self) -> dict[str, str]:
        """Settings that nothing reads → why."""
        if self.confidence:
            return {}
        unread = {"plain": ("gamma", "alpha"), "confidence": ("alpha",), "likelihood": ()}[self.gradient_by]
        return dict.fromkeys(unread, f"where confidence is 0 and gradient_by {self.gradient_by}")

    def __call__(
        self, errors: Float[Tensor, "b f h w"], confidence: Float[Tensor, "b f h w"], valid: Masks
    ) -> Float[Tensor, "g"]:
        """Sum both weighted terms of each group; one of weight 0 is left out, whatever its value."""
        limited = errors.clamp_max(LIMIT)
        total = grouped(limited, self.over)[:, :0].sum(-1)
        if self.regression:
            total = total + self.regression * self.mean(limited, valid)
        if self.confidence:
            weighed = confidence_weighted(limited, confidence, self.gamma, self.alpha).clamp(-LIMIT, LIMIT)
            total = total + self.confidence * self.mean(weighed, valid)
        return total

    def gradients(
        self, predicted: Maps, target: Maps, confidence: Float[Tensor, "b f h w"], valid: Masks
    ) -> Float[Tensor, "g"]:
        """`gradient_term` of each group, weighted by ``gradient_by``."""
        sure = None if self.gradient_by == "plain" else confidence
        alpha = self.alpha if self.gradient_by == "likelihood" else 0.0
        return gradient_term(predicted, target, valid, self.over, sure, self.gamma, alpha)

    def mean(self, errors: Float[Tensor, "b f h w"], valid: Masks) -> Float[Tensor, "g"]:
        """Trimmed mean of each group."""
        values, keep = grouped(errors, self.over), grouped(valid, self.over)
        if self.quantile is not None:
            keep = below_quantile(values, keep, self.quantile)
        return group_mean(values, keep)

    def reduce(self, values: Float[Tensor, "g"], valid: Masks) -> Float[Tensor, ""]:
        """Mean over groups; those with too few valid pixels count as 0."""
        enough = grouped(valid, self.over).sum(-1) >= self.min_valid
        return torch.where(enough, values, 0).mean()


@dataclass(frozen=True, kw_only=True)
class DepthLossConfig(LossSpec):
    """Error of z-depth in the clip's unit, and of its gradients."""

    needs: ClassVar[tuple[Need, ...]] = ("depth",)
    teaches: ClassVar[tuple[str, ...]] = ("depth",)
    kind: Literal["depth"] = "depth"
    weight: Weight = 1.0
    pixels: PixelTerms = field(default_factory=PixelTerms)
    """Errors per pixel: their weights, and which pixels count."""
    gradient: float = 1.0
    """Weight of `gradient_term`."""

    @property
    def without_effect(self) -> dict[str, str]:
        """Settings that nothing reads → why."""
        unread = {} if self.gradient else {"pixels.gradient_by": "where gradient is 0"}
        return unread if self.pixels.counts else {**unread, "pixels.quantile": UNCOUNTED}

    def build(self) -> DepthLoss:
        """Build the term."""
        return DepthLoss(self)


class DepthLoss(LossTerm[DepthLossConfig]):
    """The term of `DepthLossConfig`."""

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Compute the term. UserError without a depth head; 0 without true depth."""
        prediction, targets = inputs.prediction, inputs.targets
        depth, confidence = prediction.depth, prediction.depth_confidence
        if depth is None or confidence is None:
            raise UserError("the depth loss needs depth; add a head {kind: dense, output: depth} or remove the loss")
        if targets.depth is None or targets.valid is None:
            return nothing(depth, confidence)
        truth, valid = targets.depth, targets.valid
        values = self.config.pixels((depth - truth).abs(), confidence, valid)
        if self.config.gradient:
            values = values + self.config.gradient * self.config.pixels.gradients(
                depth[..., None], truth[..., None], confidence, valid
            )
        return self.config.pixels.reduce(values, valid)


@dataclass(frozen=True, kw_only=True)
class PointsLossConfig(LossSpec):
    """Error of points in the first frame's camera coordinates, in the clip's unit, and of their shape.

    Truth comes from depth and cameras.
    """

    needs: ClassVar[tuple[Need, ...]] = ("cameras", "depth")
    teaches: ClassVar[tuple[str, ...]] = ("points",)
    kind: Literal["points"] = "points"
    weight: Weight = 1.0
    pixels: PixelTerms = field(default_factory=PixelTerms)
    """Errors per pixel: their weights, and which pixels count."""
    normal: float = 1.0
    """Weight of `normal_term` (released training)."""
    gradient: float = 0.0
    """Weight of `gradient_term` (paper)."""

    @property
    def without_effect(self) -> dict[str, str]:
        """Settings that nothing reads → why."""
        unread = {} if self.gradient else {"pixels.gradient_by": "where gradient is 0"}
        return unread if self.pixels.counts else {**unread, "pixels.quantile": UNCOUNTED}

    def build(self) -> PointsLoss:
        """Build the term."""
        return PointsLoss(self)


class PointsLoss(LossTerm[PointsLossConfig]):
    """The term of `PointsLossConfig`."""

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Compute the term. UserError without a points head; 0 without true depth and cameras."""
        prediction, targets = inputs.prediction, inputs.targets
        points, confidence = prediction.points, prediction.points_confidence
        if points is None or confidence is None:
            raise UserError("the points loss needs points; add a head {kind: dense, output: points} or remove the loss")
        if targets.depth is None or targets.valid is None or targets.cameras is None:
            return nothing(points, confidence)
        truth = unproject(targets.depth, targets.cameras)
        valid = targets.valid & frames_with_cameras(targets)[..., None, None]
        values = self.config.pixels(length(points - truth, -1), confidence, valid)
        if self.config.normal:
            values = values + self.config.normal * normal_term(points, truth, valid, self.config.pixels.over)
        if self.config.gradient:
            values = values + self.config.gradient * self.config.pixels.gradients(points, truth, confidence, valid)
        return self.config.pixels.reduce(values, valid)
