"""Where the query frame shows what each cell shows: the cross-entropy of being found there (ours)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from four_d import geometry
from four_d.correlation import pick
from four_d.errors import UserError
from four_d.layers import full_precision
from four_d.losses.motion import LEAST_MOTION
from four_d.losses.reduction import group_mean, grouped, nothing
from four_d.query import frames_at, kept, reference_frames
from four_d.types import Cameras, Clip, Prediction, Views

NEAREST = 1e-6
"""Points less far before a camera have no pixel in it."""
LEAST = 20.0
"""The log of a probability counts as at least minus this."""


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
                "the matching loss needs frames to be compared; set model.backbone.correlation={kind: correlation} "
                "(the alternating backbone needs a head {kind: dense, output: motion} too), or remove the loss"
            )
        if targets.motion is None or targets.depth is None or targets.cameras is None or targets.query_times is None:
            return nothing(logits)
        with full_precision(logits.device):
            parts = [self.query(logits[:, q], targets, q, prediction.match_frames) for q in range(logits.shape[1])]
        return torch.stack(parts).mean()

    def query(
        self, logits: Float[Tensor, "b r m n k"], targets: Clip, index: int, frames: Int[Tensor, "b r"] | None
    ) -> Float[Tensor, ""]:
        """Of one query time; ``frames`` are those that the logits are of, None: all."""
        found = true_places(targets, index, logits.shape[2:4], logits.shape[-1])
        step, known, moves = found if frames is None else (pick(each, frames) for each in found)
        entropy = place_entropy(logits, step)
        shares = ((self.balance, known & moves), (1 - self.balance, known & ~moves))
        return sum(
            (share * group_mean(grouped(entropy, "clip"), grouped(where, "clip")).mean() for share, where in shares),
            start=logits.new_zeros(()),
        )


def place_entropy(logits: Float[Tensor, "b f m n k"], step: Float[Tensor, "b f m n 2"]) -> Float[Tensor, "b f m n"]:
    """−log of the probability of being ``step`` (x, y) cells away, the cells around that point weighed bilinearly."""
    side = round(logits.shape[-1] ** 0.5)
    # −∞ outside the image is never the right place, but 0 · ∞ would spoil the gradient of what is left out.
    log = logits.clamp_min(-1e4).log_softmax(-1)
    at = (step + side // 2).clamp(0, side - 1)
    low = at.floor().clamp(max=side - 2)
    part, first = at - low, low.long()
    total = torch.zeros_like(log[..., 0])
    for y in (0, 1):
        for x in (0, 1):
            weight = (part[..., 0] if x else 1 - part[..., 0]) * (part[..., 1] if y else 1 - part[..., 1])
            cell = (first[..., 1] + y) * side + first[..., 0] + x
            # A neighbour outside the image has no share of a point inside.
            total = total - weight * log.gather(-1, cell[..., None])[..., 0].clamp_min(-LEAST)
    return total


def true_places(
    targets: Clip, index: int, grid: tuple[int, ...], places: int
) -> tuple[Float[Tensor, "b f m n 2"], Bool[Tensor, "b f m n"], Bool[Tensor, "b f m n"]]:
    """How many cells (x, y) away the query frame shows what each shows, where that is known, and whether it moves.

    Not known: points that the query frame does not see, that lie farther away, or have no depth; the query frame's own;
    clips with several frames of that time, or with unknown cameras.
    """
    assert targets.motion is not None
    assert targets.motion_valid is not None
    assert targets.motion_visible is not None
    assert targets.depth is not None
    assert targets.cameras is not None
    assert targets.query_times is not None
    there = frames_at(targets, targets.query_times[:, index]) & kept(targets)
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
    pixels = torch.where(depth[..., None] > NEAREST, pixels, -1.0).unflatten(2, (grid[0], grid[1]))
    y, x = torch.meshgrid(*(torch.arange(count, device=pixels.device) for count in grid), indexing="ij")
    step = (pixels - (torch.stack([x, y], dim=-1) * cell + cell // 2 + 0.5)) / cell
    size = pixels.new_tensor([grid[1] * cell, grid[0] * cell])
    radius = (round(places**0.5) - 1) // 2
    inside = (step.abs() <= radius).all(-1) & (pixels >= 0).all(-1) & (pixels < size).all(-1)
    seen = (targets.motion_valid[:, index] & targets.motion_visible[:, index])[..., middle, middle]
    if targets.valid is not None:
        seen = seen & targets.valid[..., middle, middle]
    if targets.cameras.known is not None:
        seen = seen & targets.cameras.known.all(-1)[:, None, None, None]
    # Of several frames of that time it is not known which one sees the point.
    one = (there.sum(-1) == 1)[:, None, None, None]
    known = inside & seen & one & ~there[..., None, None]
    moves = targets.motion[:, index].norm(dim=-1)[..., middle, middle] > LEAST_MOTION
    return torch.where(known[..., None], step, 0), known, moves
