"""3D tracking through frame sequences (runs) that may be longer than a model's input, scored against exact truth.

Points are tracked as ``four-d infer`` tracks them (`windows.sliding`): by dense motion, or through Gaussians of given
cameras. The choice of points depends on the ground truth alone, so that models can be compared.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d import surface as surfaces
from four_d.abilities import Hint, Model, Normalisation
from four_d.data.sampling import collate, normalise, to_example
from four_d.errors import UserError
from four_d.geometry import world_points
from four_d.metrics import tracks as metrics
from four_d.metrics.comparison import source_unit
from four_d.metrics.motion import scale_between, true_points
from four_d.types import LIKELY, Clip, map_tensors
from four_d.windows.clips import ClipSource, Prepare
from four_d.windows.cut import Cut
from four_d.windows.sliding import Sliding

METRICS = (
    "track_epe",
    "track_epe_static",
    "track_apd",
    "track_apd_static",
    "track_epe_motion",
    "track_epe_motion_static",
    "track_visible_accuracy",
)
SCALE_METRIC = "track_scale_error"
MOST = 256
"""Maximum number of points tracked in a run."""

Scores = dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Frames of one camera in temporal order."""

    key: str
    clip: Clip
    """Unbatched, in the first camera's coordinates and the source's unit; with the surface if there is one."""


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """Inputs of a model for a run."""

    normalisation: Normalisation = "mean_distance"
    hints: tuple[Hint, ...] = ()
    device: torch.device | str = "cpu"


@dataclass(frozen=True, kw_only=True)
class RunTruth:
    """Positions at all frames' times of dynamic points that the first frame shows, in the run's coordinates."""

    queries: Float[Tensor, "n 3"]
    """(frame, x, y) of pixel centres."""
    points: Float[Tensor, "n t 3"]
    visible: Bool[Tensor, "n t"]


@dataclass(frozen=True, kw_only=True)
class RunTracks:
    """Predicted tracks of these points, in the same coordinates and unit."""

    points: Float[Tensor, "n t 3"]
    visible: Bool[Tensor, "n t"]
    scale: float | None = None
    """Scale correction of the model's lengths, relative to the factor from the training unit to the run's; None for
    Gaussians of given cameras, whose lengths are taken as they are."""


def run_truth(clip: Clip, most: int = MOST) -> RunTruth | None:
    """Ground truth of at most ``most`` pixels of an unbatched clip's first frame.

    Evenly spaced among the pixels whose surface point travels more than 0.01 over the clip (WorldTrack's rule); None
    without any, or without surface or cameras.
    """
    if clip.surface is None or clip.cameras is None or len(clip.times) < 2:
        return None
    y, x = (clip.surface.faces[0] >= 0).nonzero(as_tuple=True)
    pixels = torch.stack([x, y], dim=-1) + 0.5
    tracks = surfaces.tracks(clip.surface, clip.cameras, clip.times, torch.zeros_like(x), pixels)
    moving = metrics.moving(tracks.points * source_unit(clip), tracks.valid).nonzero()[:, 0]
    if not len(moving):
        return None
    chosen = moving[torch.linspace(0, len(moving) - 1, min(most, len(moving))).round().long()]
    queries = torch.cat([torch.zeros(len(chosen), 1), pixels[chosen]], dim=1)
    return RunTruth(queries=queries, points=tracks.points[chosen], visible=tracks.visible[chosen])


def run_scores(model: Model, run: Run, inputs: RunInputs, cut: Cut) -> Scores:
    """All `METRICS` of one run; None if the ground truth has no point to track or the prediction no extent.

    UserError as in `run_tracks`.
    """
    truth = run_truth(run.clip)
    tracks = None if truth is None else run_tracks(model, run, truth.queries, inputs, cut)
    if truth is None or tracks is None:
        return dict.fromkeys(METRICS)
    return track_scores(tracks, truth, source_unit(run.clip))


def track_scores(tracks: RunTracks, truth: RunTruth, unit: float = 1.0) -> Scores:
    """Scores over all points and all times but the first, visible or not; lengths times ``unit``.

    ``_static`` are the scores without motion, with the model's own points of the first frame kept in place.
    ``track_epe_motion`` is of displacements since the first frame, so it ignores errors of the initial positions.
    """
    own, start = tracks.points[:, :1], truth.points[:, :1]
    position = (tracks.points - truth.points)[:, 1:].norm(dim=-1) * unit
    held = (own - truth.points)[:, 1:].norm(dim=-1) * unit
    moved = ((tracks.points - own) - (truth.points - start))[:, 1:].norm(dim=-1) * unit
    every = torch.ones_like(position, dtype=torch.bool)
    right = (tracks.visible == truth.visible)[:, 1:]
    scores: Scores = {
        "track_epe": float(position.mean()),
        "track_epe_static": float(held.mean()),
        "track_apd": float(metrics.apd(position, every)),
        "track_apd_static": float(metrics.apd(held, every)),
        "track_epe_motion": float(moved.mean()),
        "track_epe_motion_static": float((truth.points - start)[:, 1:].norm(dim=-1).mean()) * unit,
        "track_visible_accuracy": float(right.float().mean()),
    }
    return scores if tracks.scale is None else scores | {SCALE_METRIC: abs(math.log(tracks.scale))}


def run_tracks(model: Model, run: Run, queries: Float[Tensor, "n 3"], inputs: RunInputs, cut: Cut) -> RunTracks | None:
    """Points tracked through a run in the windows of ``cut``; None if the prediction has no extent.

    Lengths through Gaussians of given cameras are taken as they are. Else one scale brings all to the truth: the ratio
    of the median distances of points from the first camera, over all valid pixels.

    Raises:
        UserError: a model that tracks no points in 3D or predicts no geometry to scale by, or whose prediction is not
            finite.

    """
    tracker = model.without("gaussians") if model.abilities.moves else model
    clip = dataclasses.replace(run.clip, surface=None, tracks=None)
    source = ClipSource(model=tracker, clip=clip, prepare=preparation(inputs), queries=queries, name=run.key)
    sliding = Sliding(source, cut, tracker.abilities)
    whole = sliding.collect()
    prediction, tracks = sliding.followed(whole.prediction)
    geometry = world_points(prediction)
    if tracks is None or (whole.origin is None and geometry is None):
        raise UserError(
            "this model follows no points in 3D: it has no motion head, and no Gaussians of given cameras or with "
            "depth; take one that has"
        )
    visible = tracks.visible > LIKELY
    if geometry is None or (whole.origin is not None and not tracker.abilities.moves):
        return RunTracks(points=tracks.points, visible=visible)
    scale = scale_between(geometry, *true_points(run.clip))
    return None if scale is None else RunTracks(points=tracks.points * scale, visible=visible, scale=scale / whole.unit)


def preparation(inputs: RunInputs) -> Prepare:
    """Input of the model from a part of a run: normalised as in training, with the hints."""

    def prepare(part: Clip) -> tuple[Clip, float]:
        normalised = normalise(part, inputs.normalisation)
        assert normalised.scale is not None
        shown = collate([to_example(normalised, "", inputs.hints)]).inputs
        unit = float(normalised.scale) / source_unit(part)
        return map_tensors(shown, lambda tensor: tensor.to(inputs.device)), unit

    return prepare
