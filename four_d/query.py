"""When motion is asked for: query times, the frames of that time, and how tokens learn of it.

DePT3R, arXiv 2512.13122. A query time is the time of a frame, or of several that share it (a rig of cameras). The
answer, a motion map, says for every pixel of every frame where its point is then, minus where it is at its own time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from four_d.correlation import Comparison, CorrelationConfig, Found
from four_d.errors import UserError
from four_d.types import SAME_TIME, Clip, same_time

GAP = 4
"""Numbers that `gap_numbers` gives."""
LONGEST_GAP = 1.0
"""Seconds."""


@dataclass(frozen=True, kw_only=True)
class QueryConfig:
    """How tokens learn which frames the query is about."""

    kind: Literal["query"] = "query"
    gaps: bool = False
    """Tell each frame the seconds between it and the query. False, as DePT3R."""

    def build(self, width: int, correlation: CorrelationConfig | None) -> Query:
        """With ``correlation``, frames are compared with the query frame; None, as DePT3R: attention may do that."""
        comparison = None if correlation is None else Comparison(correlation, width)
        return Query(width, comparison, gaps=self.gaps)


def asked(clip: Clip) -> Float[Tensor, "b q"]:
    """The query times; the first frame's where the clip names none."""
    return clip.times[..., :1] if clip.query_times is None else clip.query_times


def frames_at(clip: Clip, query: Float[Tensor, "b"]) -> Bool[Tensor, "b f"]:
    """The frames of a query time. UserError if a clip has none at that time."""
    there = same_time(clip.times, query[:, None])
    if clip.query_times is None or torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return there
    missing = ~there.any(-1)
    if bool(missing.any()):
        row = int(missing.nonzero()[0])
        times, wanted = clip.times[row], float(query[row])
        nearest = float(times[(times - wanted).abs().argmin()])
        raise UserError(
            f"query time {wanted:g} s is the time of no frame; the clip has frames from {float(times.min()):g} to "
            f"{float(times.max()):g} s, the nearest at {nearest:g} s"
        )
    return there


def kept(clip: Clip) -> Bool[Tensor, "b f"]:
    """Frames that are no references."""
    return torch.ones_like(clip.times, dtype=torch.bool) if clip.references is None else ~clip.references


def distinct_times(clip: Clip, count: int) -> Float[Tensor, "b t"]:
    """The ``count`` different times of the frames that are no references, ascending. UserError if there are others."""
    times = torch.where(kept(clip), clip.times, torch.inf).sort(dim=1).values
    new = functional.pad(times.diff(dim=1) > SAME_TIME, (1, 0), value=True) & times.isfinite()
    counts = new.sum(1)
    if not (torch.compiler.is_compiling() or torch.compiler.is_exporting() or bool((counts == count).all())):
        found = int(counts[counts != count][0])
        raise UserError(
            f"this model moves Gaussians to {count} times, and a clip has frames of {found} (references not "
            f"counted); give frames of {count} times, or train a model with the head's frames={found}"
        )
    return times.gather(1, (~new).long().argsort(dim=1, stable=True)[:, :count])


def reference_frames(there: Bool[Tensor, "b f"], camera_ids: Int[Tensor, "b f"]) -> Int[Tensor, "b f"]:
    """For each frame one of those that are ``there``: its own camera's, or else that with the lowest camera id."""
    own = there[:, None] & (camera_ids[:, :, None] == camera_ids[:, None, :])
    usable = torch.where(own.any(-1, keepdim=True), own, there[:, None])
    ids = camera_ids[:, None].expand_as(usable)
    return ids.masked_fill(~usable, torch.iinfo(ids.dtype).max).argmin(-1)


def gap_numbers(seconds: Float[Tensor, "*b"]) -> Float[Tensor, "*b 4"]:
    """A signed time, its length, its square (what falls moves so) and a bounded form.

    Times beyond `LONGEST_GAP` count as that: no model has learned what longer ones mean.
    """
    seconds = seconds.clamp(-LONGEST_GAP, LONGEST_GAP)
    return torch.stack([seconds, seconds.abs(), seconds.square(), (2 * seconds).tanh()], dim=-1)


class Query(nn.Module):
    """What to add to the patch tokens for a query time: a learned vector in its frames, what is found by comparing with
    them, and how far away in time they are.

    All are zero at the start, so that a model tuned from weights without a query begins with their outputs.
    """

    def __init__(self, width: int, comparison: Comparison | None = None, *, gaps: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(width))
        self.gap = nn.Linear(GAP, width, bias=False) if gaps else None
        if self.gap is not None:
            nn.init.zeros_(self.gap.weight)
        self.comparison = comparison

    def forward(
        self,
        clip: Clip,
        query: Float[Tensor, "b"],
        patches: Float[Tensor, "b f p c"],
        features: Float[Tensor, "b f d y x"] | None,
    ) -> tuple[Float[Tensor, "b f p c"], Found | None]:
        """Patch tokens of all frames with what the query adds, and where the query frame shows the same.

        UserError: see `frames_at`; or nothing to compare by.
        """
        there = frames_at(clip, query)
        patches = patches + (there[..., None, None] * self.embedding).to(patches.dtype)
        if self.gap is not None:
            patches = patches + self.gap(gap_numbers(query[:, None] - clip.times))[:, :, None].to(patches.dtype)
        if self.comparison is None:
            return patches, None
        if features is None:
            raise UserError(
                "the query decoder compares frames, and the backbone gives no features; set model.backbone.correlation "
                "or decoder.correlation=null"
            )
        added, found = self.comparison(features, reference_frames(there, clip.camera_ids))
        return patches + added.to(patches.dtype), found
