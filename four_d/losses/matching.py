"""Where the query frame shows what each cell shows: the cross-entropy of being found there (ours)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from four_d import geometry
from four_d.errors import UserError
from four_d.layers import full_precision
from four_d.losses.motion import MOVING
from four_d.losses.reduction import group_mean, grouped, nothing
from four_d.query import frames_at, reference_frames
from four_d.types import Cameras, Clip, Prediction, Views

NEAREST = 1e-6
"""Points less far before a camera have no pixel in it."""


@dataclass(frozen=True, kw_only=True)
class MatchingLoss:
    """Of cells whose middle's point the query frame sees, not farther away than is looked: −log of the right place.

    Truth comes from the targets' motion, depth and cameras.
    """

    needs_queries: ClassVar[bool] = True
    kind: Literal["matching"] = "matching"
    weight: float = 1.0
    balance: float = 0.5
    """Share of the weight that moving cells have together, however few."""

    def __call__(self, prediction: Prediction, views: Views | None, targets: Clip) -> Float[Tensor, ""]:  # noqa: ARG002 - all terms have one signature
        """UserError where frames are not compared; 0 without true motion, depth and cameras."""
        logits = prediction.match_logits
        if logits is None:
            raise UserError(
                "the matching loss needs frames to be compared; set model.backbone.correlation={kind: correlation} and "
                "add a head {kind: dense, output: motion}, or remove the loss"
            )
        if targets.motion is None or targets.depth is None or targets.cameras is None or targets.query_times is None:
            return nothing(logits)
        with full_precision(logits.device):
            parts = [self.query(logits[:, index], targets, index) for index in range(logits.shape[1])]
        return torch.stack(parts).mean()

    def query(self, logits: Float[Tensor, "b f m n k"], targets: Clip, index: int) -> Float[Tensor, ""]:
        """Of one query time."""
        label, known, moves = true_places(targets, index, logits.shape[2:4], logits.shape[-1])
        # −∞ outside the image is never the label, but 0 · ∞ would spoil the gradient of what is left out.
        entropy = torch.nn.functional.cross_entropy(
            logits.clamp_min(-1e4).flatten(0, 3), label.flatten(), reduction="none"
        ).view(label.shape)
        shares = ((self.balance, known & moves), (1 - self.balance, known & ~moves))
        return sum(
            (share * group_mean(grouped(entropy, "clip"), grouped(where, "clip")).mean() for share, where in shares),
            start=logits.new_zeros(()),
        )


def true_places(
    targets: Clip, index: int, grid: tuple[int, ...], places: int
) -> tuple[Int[Tensor, "b f m n"], Bool[Tensor, "b f m n"], Bool[Tensor, "b f m n"]]:
    """Which of the places around each cell is the right one, where that is known, and whether the cell moves.

    Not known: points that the query frame does not see, that lie farther away, or have no depth; the query frame's own;
    clips with several frames of that time, or with unknown cameras.
    """
    assert targets.motion is not None
    assert targets.motion_valid is not None
    assert targets.motion_visible is not None
    assert targets.depth is not None
    assert targets.cameras is not None
    assert targets.query_times is not None
    there = frames_at(targets, targets.query_times[:, index])
    references = reference_frames(there, targets.camera_ids)
    points = geometry.unproject(targets.depth, targets.cameras) + targets.motion[:, index]
    rows = torch.arange(len(references), device=references.device)[:, None]
    camera = Cameras(
        world_from_camera=targets.cameras.world_from_camera[rows, references],
        intrinsics=targets.cameras.intrinsics[rows, references],
    )
    cell = targets.depth.shape[-2] // grid[0]
    middle = slice(cell // 2, None, cell)
    flat = points[:, :, middle, middle].flatten(2, 3)
    pixels, depth = geometry.project(flat, camera)
    cells = torch.where(depth[..., None] > NEAREST, pixels / cell, -1).floor().long().unflatten(2, (grid[0], grid[1]))
    y, x = torch.meshgrid(*(torch.arange(count, device=cells.device) for count in grid), indexing="ij")
    step = cells - torch.stack([x, y], dim=-1)
    radius = (round(places**0.5) - 1) // 2
    inside = (
        (step.abs() <= radius).all(-1) & (cells >= 0).all(-1) & (cells[..., 0] < grid[1]) & (cells[..., 1] < grid[0])
    )
    seen = (targets.motion_valid[:, index] & targets.motion_visible[:, index])[..., middle, middle]
    if targets.valid is not None:
        seen = seen & targets.valid[..., middle, middle]
    if targets.cameras.known is not None:
        seen = seen & targets.cameras.known.all(-1)[:, None, None, None]
    # Of several frames of that time it is not known which one sees the point.
    one = (there.sum(-1) == 1)[:, None, None, None]
    known = inside & seen & one & ~there[..., None, None]
    moves = targets.motion[:, index].norm(dim=-1)[..., middle, middle] > MOVING
    label = (step[..., 1] + radius) * (2 * radius + 1) + step[..., 0] + radius
    return torch.where(known, label, 0), known, moves
