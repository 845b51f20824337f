"""Pixel tracks: distance over all refinements, visibility, and whether the position is near (VGGT's legacy terms)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d import surface as surfaces
from four_d.errors import UserError
from four_d.geometry import project
from four_d.layers import full_precision
from four_d.losses.camera import stage_weights
from four_d.losses.reduction import Over, group_mean, grouped, nothing
from four_d.types import Cameras, Clip, Prediction, Surface, Views, map_tensors

SMALLEST = 1e-7
"""Smaller probabilities count as this."""
NEAREST = 1e-6
"""Points less far before a camera have no pixel in it."""


@dataclass(frozen=True, kw_only=True)
class PixelTruth:
    """Where points truly are in every frame."""

    pixels: Float[Tensor, "*b f n 2"]
    visible: Bool[Tensor, "*b f n"]
    valid: Bool[Tensor, "*b f n"]
    """Where ``pixels`` means something, seen or not."""


def cross_entropy(probability: Float[Tensor, "*b"], truth: Bool[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """−log of the probability given to what is true. (torch's own refuses to run under autocast.)"""
    return -torch.where(truth, probability, 1 - probability).clamp_min(SMALLEST).log()


def pixel_truth(targets: Clip, queries: Float[Tensor, "b n 3"]) -> PixelTruth:
    """Follow the pixels (frame, x, y) by the clip's surface and cameras; a pixel means its centre.

    Nothing is valid in clips that hold no surface. ValueError without surface or cameras at all.
    """
    if targets.surface is None or targets.cameras is None:
        raise ValueError("the truth of pixel tracks needs surfaces and cameras")
    with full_precision(queries.device):
        clips = [
            _follow(
                unpadded(map_tensors(targets.surface, lambda x, i=i: x[i])),
                map_tensors(targets.cameras, lambda x, i=i: x[i]),
                targets.times[i],
                queries[i],
            )
            for i in range(len(queries))
        ]
    names = [field.name for field in dataclasses.fields(PixelTruth)]
    return PixelTruth(**{name: torch.stack([getattr(clip, name) for clip in clips]) for name in names})


def unpadded(surface: Surface) -> Surface:
    """One clip's surface without the times that collating filled up with zeros."""
    count = 1 + int((surface.times.diff() > 0).sum())
    return dataclasses.replace(surface, times=surface.times[:count], vertices=surface.vertices[:count])


def _follow(surface: Surface, cameras: Cameras, times: Float[Tensor, "f"], queries: Float[Tensor, "n 3"]) -> PixelTruth:
    """One clip's, without the batch axis."""
    if not bool((surface.faces >= 0).any()):
        shape = (len(times), len(queries))
        never = torch.zeros(shape, dtype=torch.bool, device=queries.device)
        return PixelTruth(pixels=queries.new_zeros(*shape, 2), visible=never, valid=never)
    height, width = surface.faces.shape[-2:]
    most = torch.tensor([width - 1, height - 1], device=queries.device)
    tracks = surfaces.tracks(surface, cameras, times, queries[:, 0].long(), queries[:, 1:].minimum(most))
    pixels, depth = project(tracks.points.transpose(0, 1), cameras)
    before = depth > NEAREST
    valid = tracks.valid.T & before
    # Behind the camera a projection is finite but may be huge: it must not spoil a sum that leaves it out.
    return PixelTruth(pixels=torch.where(valid[..., None], pixels, 0), visible=tracks.visible.T & valid, valid=valid)


@dataclass(frozen=True, kw_only=True)
class TrackLoss:
    """Of points that are seen in their query's frame: L1 distance where they are seen, and two cross-entropies.

    Truth comes from the targets' surface and cameras. Which pixels are followed, ``targets.query_points`` says; without
    them it is those of the first frame where the prediction has its points.
    """

    needs_surface: ClassVar[bool] = True
    """Without ``data.surface`` there would be no truth, and the loss 0."""
    kind: Literal["track"] = "track"
    weight: float = 0.05
    """The paper's."""
    position: float = 1.0
    """Weight of the distance in pixels, mean of x and y."""
    visibility: float = 1.0
    confidence: float = 1.0
    """Weight of the cross-entropy of being within ``near`` pixels."""
    near: float = 3.0
    stage_decay: float = 0.8
    over: Over = "clip"

    def __call__(self, prediction: Prediction, views: Views | None, targets: Clip) -> Float[Tensor, ""]:  # noqa: ARG002 - all terms have one signature
        """Pixels and nats summed. UserError without tracks; 0 without true surfaces."""
        stages, visible, near = (
            prediction.pixel_track_stages,
            prediction.pixel_tracks_visible,
            prediction.pixel_tracks_confidence,
        )
        if stages is None or visible is None or near is None:
            raise UserError(
                "the track loss needs pixel tracks; add a head {kind: track, grid: [8, 8]} (without grid it follows "
                "only the points that clips name) or remove the loss"
            )
        if targets.surface is None or targets.cameras is None:
            return nothing(stages, visible, near)
        queries = self.queries(stages, targets)
        truth = pixel_truth(targets, queries)
        known = truth.valid & self.seen_at_query(truth, queries)
        close = (stages[-1].detach() - truth.pixels).norm(dim=-1) < self.near
        return (
            self.position * self.distance(stages, truth, known)
            + self.visibility * self.mean(cross_entropy(visible, truth.visible), known)
            + self.confidence * self.mean(cross_entropy(near, close), known)
        )

    def queries(self, stages: Float[Tensor, "i b f n 2"], targets: Clip) -> Float[Tensor, "b n 3"]:
        """Which pixels were followed."""
        if targets.query_points is not None:
            return targets.query_points
        return torch.nn.functional.pad(stages[-1, :, 0].detach(), (1, 0))

    def seen_at_query(self, truth: PixelTruth, queries: Float[Tensor, "b n 3"]) -> Bool[Tensor, "b 1 n"]:
        """Which points are seen where they were asked for."""
        return truth.visible.gather(1, queries[:, None, :, 0].long())

    def distance(
        self, stages: Float[Tensor, "i b f n 2"], truth: PixelTruth, known: Bool[Tensor, "b f n"]
    ) -> Float[Tensor, ""]:
        """Over all refinements, where the point is seen."""
        weights = stage_weights(len(stages), self.stage_decay)
        errors = [weight * (stage - truth.pixels).abs().mean(-1) for weight, stage in zip(weights, stages)]
        return self.mean(torch.stack(errors).sum(0), known & truth.visible)

    def mean(self, values: Float[Tensor, "b f n"], keep: Bool[Tensor, "b f n"]) -> Float[Tensor, ""]:
        """Over each clip's kept values, then over clips."""
        return group_mean(grouped(values, self.over), grouped(keep, self.over)).mean()
