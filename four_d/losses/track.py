"""Pixel tracks: distance over all refinements, visibility, and confidence in the position (VGGT's legacy terms)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d.errors import UserError
from four_d.geometry import NEAREST, project
from four_d.losses.camera import stage_weights
from four_d.losses.reduction import Over, cross_entropy, kept_mean, nothing, weighted
from four_d.losses.schedule import Weight
from four_d.losses.supervision import Need
from four_d.losses.term import LossInputs, LossSpec, LossTerm
from four_d.trajectories import of_surface
from four_d.types import Clip


@dataclass(frozen=True, kw_only=True)
class PixelTruth:
    """True places of points in every frame."""

    pixels: Float[Tensor, "*b f n 2"]
    visible: Bool[Tensor, "*b f n"]
    valid: Bool[Tensor, "*b f n"]
    """Validity of ``pixels``, visible or not."""


def pixel_truth(targets: Clip, queries: Float[Tensor, "b n 3"]) -> PixelTruth:
    """Track pixels (frame, x, y) by the clip's surface and cameras; a pixel means its centre.

    Nothing is valid in clips without a surface. ValueError if the whole batch lacks surface or cameras.
    """
    tracks = of_surface(targets, queries)
    assert targets.cameras is not None
    pixels, depth = project(tracks.points.transpose(1, 2), targets.cameras)
    valid = tracks.valid.mT & (depth > NEAREST)
    # Behind the camera a projection is finite but may be huge: it must not spoil a masked sum.
    pixels = torch.where(valid[..., None], pixels, 0)
    return PixelTruth(pixels=pixels, visible=(tracks.visible.mT > 0) & valid, valid=valid)


@dataclass(frozen=True, kw_only=True)
class TrackLossConfig(LossSpec):
    """L1 distance where points are visible, and two cross-entropies, for points visible in their query frame.

    Truth comes from the targets' surface and cameras. The points are ``targets.query_points``; without them, those of
    the first frame where the prediction has its points.
    """

    needs: ClassVar[tuple[Need, ...]] = ("cameras", "surface")
    teaches: ClassVar[tuple[str, ...]] = ("pixel_tracks",)
    kind: Literal["track"] = "track"
    weight: Weight = 0.05
    """Factor of the term in the total loss; the default is the paper's."""
    position: float = 1.0
    """Weight of the distance in pixels, mean of x and y."""
    visibility: float = 1.0
    """Weight of the cross-entropy of being visible."""
    confidence: float = 1.0
    """Weight of the cross-entropy of being within ``near`` pixels."""
    near: float = 3.0
    """Distance in pixels within which a predicted position counts as right for the confidence."""
    stage_decay: float = 0.8
    """Weight of each refinement relative to the next one, above 0 to 1: the last counts most. 0.8, as RAFT (arXiv
    2003.12039)."""
    over: Over = "clip"
    """Domain of means. ``clip``: each clip's values, then all clips alike, so that processes that share a batch do what
    one does; ``batch``: all values of the batch together, as VGGT's release."""

    @property
    def without_effect(self) -> dict[str, str]:
        """Settings that nothing reads → why."""
        unread = {} if self.confidence else {"near": "where confidence is 0"}
        return unread if self.position else {**unread, "stage_decay": "where position is 0"}

    def build(self) -> TrackLoss:
        """Build the term."""
        return TrackLoss(self)


class TrackLoss(LossTerm[TrackLossConfig]):
    """The term of `TrackLossConfig`."""

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Compute the term, pixels and nats summed. UserError without tracks; 0 without true surfaces."""
        prediction, targets = inputs.prediction, inputs.targets
        stages, visible, near = (
            prediction.pixel_track_stages,
            prediction.pixel_tracks_visible_logits,
            prediction.pixel_tracks_confidence_logits,
        )
        if stages is None or visible is None or near is None:
            raise UserError(
                "the track loss needs pixel tracks; add a head {kind: track, grid: [8, 8]} (without grid it follows "
                "only the points that clips name) or remove the loss"
            )
        if targets.surface is None or targets.cameras is None:
            return nothing(stages, visible, near)
        queries = inputs.queries
        truth = pixel_truth(targets, queries)
        known = truth.valid & self.seen_at_query(truth, queries)
        close = (stages[-1].detach() - truth.pixels).norm(dim=-1) < self.config.near
        parts = (
            (self.config.position, self.distance(stages, truth, known)),
            (self.config.visibility, kept_mean(cross_entropy(visible, truth.visible), known, self.config.over)),
            (self.config.confidence, kept_mean(cross_entropy(near, close), known, self.config.over)),
        )
        return weighted(parts, start=nothing(stages, visible, near))

    def seen_at_query(self, truth: PixelTruth, queries: Float[Tensor, "b n 3"]) -> Bool[Tensor, "b 1 n"]:
        """Mask of the points that are visible in their own query frame."""
        return truth.visible.gather(1, queries[:, None, :, 0].long())

    def distance(
        self, stages: Float[Tensor, "i b f n 2"], truth: PixelTruth, known: Bool[Tensor, "b f n"]
    ) -> Float[Tensor, ""]:
        """Distance over all refinements, where the point is visible."""
        weights = stage_weights(len(stages), self.config.stage_decay)
        errors = [weight * (stage - truth.pixels).abs().mean(-1) for weight, stage in zip(weights, stages)]
        return kept_mean(torch.stack(errors).sum(0), known & truth.visible, self.config.over)
