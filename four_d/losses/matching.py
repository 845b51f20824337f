"""Matching loss: cross-entropy of each cell's match in the query frame (ours)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from four_d import geometry
from four_d.constants import vector
from four_d.correlation import pick
from four_d.errors import UserError
from four_d.losses.motion import motion_rows
from four_d.losses.reduction import balanced, check_balance, group_mean, grouped, nothing
from four_d.losses.schedule import Weight
from four_d.losses.supervision import Need, frames_with_cameras
from four_d.losses.term import LossInputs, LossSpec, LossTerm
from four_d.query import frames_at, non_references, reference_frames
from four_d.surface import LEAST_MOTION
from four_d.types import Cameras, Clip

LEAST = 20.0
"""Negative log-probability of a place outside the image."""


@dataclass(frozen=True, kw_only=True)
class MatchingLossConfig(LossSpec):
    """Negative log-likelihood of the true match, for cells whose centre's point is visible in the searched window.

    Truth comes from the targets' motion, depth and cameras.
    """

    needs: ClassVar[tuple[Need, ...]] = ("cameras", "depth", "motion")
    teaches: ClassVar[tuple[str, ...]] = ("match_logits",)
    kind: Literal["matching"] = "matching"
    weight: Weight = 1.0
    balance: float = 0.5
    """Fraction of the total weight for moving cells, however few; 0: all cells count alike."""

    def __post_init__(self) -> None:
        check_balance(self.balance)

    def build(self) -> MatchingLoss:
        """Build the term."""
        return MatchingLoss(self)


class MatchingLoss(LossTerm[MatchingLossConfig]):
    """The term of `MatchingLossConfig`."""

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Compute the term. UserError where frames are not matched; 0 without true motion, depth and cameras."""
        prediction, targets = inputs.prediction, inputs.targets
        logits = prediction.match_logits
        if logits is None:
            raise UserError(
                "the matching loss needs frames to be compared; set 'model.backbone.correlation={}' "
                "(the alternating backbone needs a head {kind: dense, output: motion} too), or remove the loss"
            )
        if targets.motion is None or targets.depth is None or targets.cameras is None or targets.query_times is None:
            return nothing(logits)
        parts = [self.query(logits[:, q], targets, q, prediction.match_frames) for q in range(logits.shape[1])]
        return torch.stack(parts).mean()

    def query(
        self, logits: Float[Tensor, "b r m n k"], targets: Clip, index: int, frames: Int[Tensor, "b r"] | None
    ) -> Float[Tensor, ""]:
        """Loss of one query time; ``frames`` are those of the logits, None: all."""
        found = true_places(targets, index, logits.shape[2:4], logits.shape[-1])
        rows = None if frames is None else motion_rows(targets, frames)
        step, known, moves = found if rows is None else (pick(each, rows) for each in found)
        entropy = place_entropy(logits, step)
        values = grouped(entropy, "clip")
        return balanced(
            lambda where: group_mean(values, grouped(where, "clip")).mean(), known, moves, self.config.balance
        )


def place_entropy(logits: Float[Tensor, "b f m n k"], step: Float[Tensor, "b f m n 2"]) -> Float[Tensor, "b f m n"]:
    """Negative log-probability of a match ``step`` (x, y) cells away, with bilinear weights of the cells around it."""
    side = round(logits.shape[-1] ** 0.5)
    # −∞ outside the image is never the true place, but 0 · ∞ would spoil the gradient of masked cells.
    log = logits.clamp_min(-1e4).log_softmax(-1)
    at = (step + side // 2).clamp(0, side - 1)
    low = at.floor().clamp(max=side - 2)
    part, first = at - low, low.long()
    total = torch.zeros_like(log[..., 0])
    for y in (0, 1):
        for x in (0, 1):
            weight = (part[..., 0] if x else 1 - part[..., 0]) * (part[..., 1] if y else 1 - part[..., 1])
            cell = (first[..., 1] + y) * side + first[..., 0] + x
            found, outside = (each.gather(-1, cell[..., None])[..., 0] for each in (log, logits.isneginf()))
            # A neighbour outside the image has no logit: its bilinear weight counts as a constant.
            total = total - weight * torch.where(outside, -LEAST, found)
    return total


def true_places(
    targets: Clip, index: int, grid: tuple[int, ...], places: int
) -> tuple[Float[Tensor, "b k m n 2"], Bool[Tensor, "b k m n"], Bool[Tensor, "b k m n"]]:
    """True match of each cell in the query frame, as an offset (x, y) in cells; masks of known and of moving matches.

    For the k frames that the true motion is of. Not known: points that the query frame does not see, that lie farther
    away, or have no depth; the query frame's own; clips with several frames of that time, or with unknown cameras.
    """
    assert targets.motion is not None
    assert targets.motion_valid is not None
    assert targets.motion_visible is not None
    assert targets.depth is not None
    assert targets.cameras is not None
    assert targets.query_times is not None
    there = frames_at(targets, targets.query_times[:, index]) & non_references(targets)
    b, count = targets.times.shape
    frames = targets.motion_frames
    frames = torch.arange(count, device=there.device).expand(b, -1) if frames is None else frames
    references = pick(reference_frames(there, targets.camera_ids), frames)
    points = pick(geometry.unproject(targets.depth, targets.cameras), frames) + targets.motion[:, index]
    rows = torch.arange(len(references), device=references.device)[:, None]
    camera = Cameras(
        world_from_camera=targets.cameras.world_from_camera[rows, references],
        intrinsics=targets.cameras.intrinsics[rows, references],
    )
    cell = targets.depth.shape[-2] // grid[0]
    middle = slice(cell // 2, None, cell)
    flat = points[:, :, middle, middle].flatten(2, 3)
    pixels, depth = geometry.project(flat, camera)
    pixels = torch.where(depth[..., None] > geometry.NEAREST, pixels, -1.0).unflatten(2, (grid[0], grid[1]))
    y, x = torch.meshgrid(*(torch.arange(count, device=pixels.device) for count in grid), indexing="ij")
    step = (pixels - (torch.stack([x, y], dim=-1) * cell + cell // 2 + 0.5)) / cell
    size = vector([grid[1] * cell, grid[0] * cell], pixels)
    radius = (round(places**0.5) - 1) // 2
    inside = (step.abs() <= radius).all(-1) & (pixels >= 0).all(-1) & (pixels < size).all(-1)
    seen = (targets.motion_valid[:, index] & targets.motion_visible[:, index])[..., middle, middle]
    if targets.valid is not None:
        seen = seen & pick(targets.valid, frames)[..., middle, middle]
    seen = seen & frames_with_cameras(targets).all(-1)[:, None, None, None]
    # With several frames at that time it is unknown which one sees the point.
    one = (there.sum(-1) == 1)[:, None, None, None]
    known = inside & seen & one & ~pick(there, frames)[..., None, None]
    moves = targets.motion[:, index].norm(dim=-1)[..., middle, middle] > LEAST_MOTION
    return torch.where(known[..., None], step, 0), known, moves
