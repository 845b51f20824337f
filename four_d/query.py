"""Query times of motion: the frames at a query time, and the conditioning of tokens on it.

DePT3R, arXiv 2512.13122. A query time is the time of one frame or of several (a rig of cameras). The answer, a motion
map, is for every pixel of every frame the position of its point at that time minus that at the frame's own time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from four_d.constants import on_host, traced
from four_d.correlation import Comparison, CorrelationConfig, SoftMatches
from four_d.errors import UserError
from four_d.types import SAME_TIME, Clip, same_time

GAP = 4
"""Length of `gap_numbers`."""
LONGEST_GAP = 1.0
"""Limit of time gaps in seconds."""


@dataclass(frozen=True, kw_only=True)
class QueryConfig:
    """Conditioning of tokens on the query time."""

    gaps: bool = False
    """Encode the seconds between each frame and the query in its tokens. False, as DePT3R."""

    def build(self, width: int, correlation: CorrelationConfig | None) -> Query:
        """Build the module. ``correlation`` compares frames with the query frame; None, as DePT3R: attention only."""
        comparison = None if correlation is None else Comparison(correlation, width)
        return Query(width, comparison, gaps=self.gaps)


def query_times(clip: Clip) -> Float[Tensor, "b q"]:
    """Query times of a clip; the first frame's time without any."""
    return clip.times[..., :1] if clip.query_times is None else clip.query_times


def frames_at(clip: Clip, query: Float[Tensor, "b"]) -> Bool[Tensor, "b f"]:
    """Mask of the frames at a query time, one of the clip's. UserError if a clip has a query time without a frame."""
    check_query_times(clip)
    return same_time(clip.times, query[:, None])


def check_query_times(clip: Clip) -> None:
    """Raise UserError unless every query time is the time of a frame of its clip."""
    if clip.query_times is None or traced():
        return
    times, queries = on_host(clip.times), on_host(clip.query_times)
    missing = ~same_time(times[:, None], queries[..., None]).any(-1)
    if not bool(missing.any()):
        return
    row, number = missing.nonzero()[0].tolist()
    present, query_time = times[row], float(queries[row, number])
    nearest = float(present[(present - query_time).abs().argmin()])
    raise UserError(
        f"query time {query_time:g} s is no frame's time; the clip has frames from {float(present.min()):g} to "
        f"{float(present.max()):g} s, the nearest at {nearest:g} s"
    )


def non_references(clip: Clip) -> Bool[Tensor, "b f"]:
    """Mask of the frames that are no references."""
    return torch.ones_like(clip.times, dtype=torch.bool) if clip.references is None else ~clip.references


def distinct_times(clip: Clip, count: int) -> Float[Tensor, "b t"]:
    """Distinct times of the frames that are no references, ascending. UserError unless there are ``count``."""
    if not traced():
        _check_number_of_times(clip, count)
    times, new = _new_times(clip.times, clip.references)
    return times.gather(1, (~new).long().argsort(dim=1, stable=True)[:, :count])


def _new_times(
    times: Float[Tensor, "b f"], references: Bool[Tensor, "b f"] | None
) -> tuple[Float[Tensor, "b f"], Bool[Tensor, "b f"]]:
    """Times in order, infinite for references, and the first of each."""
    ordered = (times if references is None else times.masked_fill(references, torch.inf)).sort(dim=1).values
    return ordered, functional.pad(ordered.diff(dim=1) > SAME_TIME, (1, 0), value=True) & ordered.isfinite()


def _check_number_of_times(clip: Clip, count: int) -> None:
    references = None if clip.references is None else on_host(clip.references)
    counts = _new_times(on_host(clip.times), references)[1].sum(1)
    if not bool((counts == count).all()):
        present = int(counts[counts != count][0])
        raise UserError(
            f"this model moves Gaussians to {count} times, and a clip has frames of {present} (references not "
            f"counted); give frames of {count} times, or train a model with the head's frames={present}"
        )


def reference_frames(candidates: Bool[Tensor, "b f"], camera_ids: Int[Tensor, "b f"]) -> Int[Tensor, "b f"]:
    """Choose for each frame one of those in ``there``: its own camera's, or else that of the lowest camera id."""
    same_camera = candidates[:, None] & (camera_ids[:, :, None] == camera_ids[:, None, :])
    usable = torch.where(same_camera.any(-1, keepdim=True), same_camera, candidates[:, None])
    ids = camera_ids[:, None].expand_as(usable)
    return ids.masked_fill(~usable, torch.iinfo(ids.dtype).max).argmin(-1)


def gap_numbers(seconds: Float[Tensor, "*b"]) -> Float[Tensor, "*b 4"]:
    """Encode a time gap: signed, absolute, squared (as in free fall) and bounded.

    Gaps are clamped to `LONGEST_GAP`: no model was trained on longer ones.
    """
    seconds = seconds.clamp(-LONGEST_GAP, LONGEST_GAP)
    return torch.stack([seconds, seconds.abs(), seconds.square(), (2 * seconds).tanh()], dim=-1)


class Query(nn.Module):
    """Addition to the patch tokens for a query time: a learned vector in its frames, matches with them, and the time
    gap to them.

    All are initialised to zero, so that a model tuned from weights without a query begins with their outputs.
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
    ) -> tuple[Float[Tensor, "b f p c"], SoftMatches | None]:
        """Condition the patch tokens of all frames on the query; also return the matches in the query frame.

        UserError: see `frames_at`; or missing features for matching.
        """
        at_time = frames_at(clip, query)
        patches = patches + (at_time[..., None, None] * self.embedding).to(patches.dtype)
        if self.gap is not None:
            patches = patches + self.gap(gap_numbers(query[:, None] - clip.times))[:, :, None].to(patches.dtype)
        if self.comparison is None:
            return patches, None
        if features is None:
            raise UserError(
                "the query decoder compares frames, and the backbone gives no features; set model.backbone.correlation "
                "or decoder.correlation=null"
            )
        added, matches = self.comparison(features, reference_frames(at_time, clip.camera_ids))
        return patches + added.to(patches.dtype), matches
