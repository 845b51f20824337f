"""Points followed through runs of frames that may be longer than what a model sees at once, beside the exact truth.

A model with a motion head sees the whole run and is read by `tracking.follow`. A model that is given its cameras and
makes Gaussians sees windows of the run, and `chaining.chain` follows the points from one to the next. Which points are
followed depends on the truth alone, so that models can be compared.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import roma
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d import surface as surfaces
from four_d.chaining import Window, chain
from four_d.data.sampling import Hint, Normalisation, collate, normalise, to_example
from four_d.data.views import take
from four_d.errors import UserError
from four_d.evaluation.abilities import moves
from four_d.evaluation.motion import scale_between, true_points
from four_d.geometry import make_pose, move_gaussians, rebase, world_points
from four_d.metrics import tracks as metrics
from four_d.metrics.baselines import Model
from four_d.tracking import Moves, follow
from four_d.types import Cameras, Clip, Gaussians, Prediction, map_tensors

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
"""Points that are followed in a run."""
SEEN = 0.5
"""Probability above which a point counts as seen."""
STANDS = 0.02
"""Share of the scene's distance: the centres of cameras that move less do not say how long a model's lengths are."""
ALIKE = 0.5
"""Least cosine between a model's path and the true one for the same."""

Scores = dict[str, float | None]


class Refused(UserError):  # noqa: N818  # the model, by whoever asked
    """What keeps the Gaussians of a window from being taken; those who asked for them know the remedy."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Frames of one camera in their order."""

    key: str
    clip: Clip
    """Unbatched, in the first camera's coordinates and the source's unit; with the surface, where there is one."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a model sees a run."""

    frames: int
    """Of a window of Gaussians; the next one begins with its last frame."""
    normalisation: Normalisation = "mean_distance"
    hints: tuple[Hint, ...] = ()
    device: torch.device | str = "cpu"
    own_cameras: bool = False
    """Whether a model may find the cameras itself: its Gaussians are then brought to the true ones by `laid`. False
    refuses it."""


@dataclass(frozen=True, kw_only=True)
class RunTruth:
    """Where dynamic points that the first frame shows are at the times of all frames, in the run's coordinates."""

    queries: Float[Tensor, "n 3"]
    """(frame, x, y), centres of pixels."""
    points: Float[Tensor, "n t 3"]
    visible: Bool[Tensor, "n t"]


@dataclass(frozen=True, kw_only=True)
class RunTracks:
    """What a model says of them, in the same coordinates and unit."""

    points: Float[Tensor, "n t 3"]
    visible: Bool[Tensor, "n t"]
    scale: float | None = None
    """What the model's lengths were multiplied by, over what brings the unit of training to the run's; None of a model
    that was given the cameras, whose lengths are taken as they are."""


def run_truth(clip: Clip, most: int = MOST) -> RunTruth | None:
    """Of at most ``most`` pixels of an unbatched clip's first frame, taken evenly from those whose surface point
    travels more than 0.01 over the clip (WorldTrack's rule); None without such, or without surface or cameras.
    """
    if clip.surface is None or clip.cameras is None or len(clip.times) < 2:
        return None
    y, x = (clip.surface.faces[0] >= 0).nonzero(as_tuple=True)
    pixels = torch.stack([x, y], dim=-1) + 0.5
    found = surfaces.tracks(clip.surface, clip.cameras, clip.times, torch.zeros_like(x), pixels)
    moving = metrics.moving(found.points * _unit(clip), found.valid).nonzero()[:, 0]
    if not len(moving):
        return None
    chosen = moving[torch.linspace(0, len(moving) - 1, min(most, len(moving))).round().long()]
    queries = torch.cat([torch.zeros(len(chosen), 1), pixels[chosen]], dim=1)
    return RunTruth(queries=queries, points=found.points[chosen], visible=found.visible[chosen])


def _unit(clip: Clip) -> float:
    return 1.0 if clip.scale is None else float(clip.scale)


def run_scores(model: Model, run: Run, settings: RunSettings) -> Scores:
    """All `METRICS` of one run; None where the truth has no point to follow, or the prediction no extent.

    Raises:
        UserError: a model that neither moves points nor makes Gaussians of given cameras; a prediction that is not
            finite.

    """
    truth = run_truth(run.clip)
    if truth is None:
        return dict.fromkeys(METRICS)
    found = (followed if moves(model) else chained)(model, run, truth.queries, settings)
    if found is None:
        return dict.fromkeys(METRICS)
    if not bool(found.points.isfinite().all()):
        raise UserError(f"the tracks of {run.key} are not finite: the model has diverged; take another checkpoint")
    return track_scores(found, truth, _unit(run.clip))


def track_scores(found: RunTracks, truth: RunTruth, unit: float = 1.0) -> Scores:
    """Over all points and all times but the first, hidden or not; lengths times ``unit``.

    ``_static`` is what standing still scores: of positions the model's own points of the first frame, held there.
    ``track_epe_motion`` is of displacements since the first frame, so it is blind to where the points are said to be.
    """
    own, start = found.points[:, :1], truth.points[:, :1]
    position = (found.points - truth.points)[:, 1:].norm(dim=-1) * unit
    held = (own - truth.points)[:, 1:].norm(dim=-1) * unit
    moved = ((found.points - own) - (truth.points - start))[:, 1:].norm(dim=-1) * unit
    every = torch.ones_like(position, dtype=torch.bool)
    right = (found.visible == truth.visible)[:, 1:]
    scores: Scores = {
        "track_epe": float(position.mean()),
        "track_epe_static": float(held.mean()),
        "track_apd": float(metrics.apd(position, every)),
        "track_apd_static": float(metrics.apd(held, every)),
        "track_epe_motion": float(moved.mean()),
        "track_epe_motion_static": float((truth.points - start)[:, 1:].norm(dim=-1).mean()) * unit,
        "track_visible_accuracy": float(right.float().mean()),
    }
    return scores if found.scale is None else scores | {SCALE_METRIC: abs(math.log(found.scale))}


def chained(model: Model, run: Run, queries: Float[Tensor, "n 3"], settings: RunSettings) -> RunTracks:
    """Points followed through Gaussians of windows, each seen alone, in its own first camera's coordinates and unit.

    The cameras that the model is given bring them into one world. UserError for a model that makes no Gaussians, or
    finds cameras itself.
    """
    parts = windows(len(run.clip.times), settings.frames, settings.frames - 1)
    try:
        found = chain([window_of(model, run, range(*part), settings) for part in parts], queries)
    except Refused as reason:
        raise UserError(f"{reason} and has no motion head; take a model that has either") from None
    return RunTracks(points=found.points, visible=found.visible > SEEN)


def followed(model: Model, run: Run, queries: Float[Tensor, "n 3"], settings: RunSettings) -> RunTracks | None:
    """Points read out of the dense motion of one pass over the whole run, after one scale for all of it.

    The scale is the ratio of the medians of the points' distances from the first camera, over all valid pixels; None
    where either has no extent.
    """
    watched = Watched(cast(Moves, getattr(model, "model", model)))
    shown = normalise(_bare(run.clip), settings.normalisation)
    found = follow(watched, _inputs(shown, run.key, settings), queries)
    assert watched.first is not None
    assert shown.scale is not None
    geometry = world_points(map_tensors(watched.first, lambda tensor: tensor[0].float().cpu()))
    assert geometry is not None  # `follow` refuses such a model
    scale = scale_between(geometry, *true_points(run.clip))
    if scale is None:
        return None
    return RunTracks(
        points=found.points.float().cpu() * scale,
        visible=found.visible.cpu() > SEEN,
        scale=scale * _unit(run.clip) / float(shown.scale),
    )


class Watched:
    """A model's passes, of which the first one's geometry is kept."""

    def __init__(self, model: Moves) -> None:
        self.model = model
        self.first: Prediction | None = None

    def passes(self, clip: Clip) -> Iterator[Prediction]:
        """The model's own."""
        for prediction in self.model.passes(clip):
            if self.first is None:
                self.first = Prediction(cameras=prediction.cameras, depth=prediction.depth, points=prediction.points)
            yield prediction
            del prediction  # before the next is made


def windows(frames: int, length: int, stride: int) -> Iterator[tuple[int, int]]:
    """First and end of each window; the last one ends with the video, so that no frame is lost."""
    first = 0
    while first + length < frames:
        yield first, first + length
        first = min(first + stride, frames - length)
    yield first, frames


def window_of(model: Model, run: Run, frames: range, settings: RunSettings) -> Window:
    """What a model makes of frames of a run, which it sees alone, in the run's coordinates and unit.

    UserError for a run without cameras, a model that finds cameras where that is not allowed, and a prediction that is
    not finite. `Refused` for a model without Gaussians, and for one whose unit of length nothing tells.
    """
    part = take(_bare(run.clip), torch.arange(frames.start, frames.stop))
    if part.cameras is None:
        raise UserError(f"{run.key} has no cameras, which Gaussians are followed by; take other data")
    plain = Cameras(world_from_camera=part.cameras.world_from_camera, intrinsics=part.cameras.intrinsics)
    start = part.times[:1]
    shown = dataclasses.replace(part, cameras=rebase(part.cameras), times=part.times - start)
    shown = normalise(shown, settings.normalisation)
    with torch.inference_mode():
        prediction = model(_inputs(shown, run.key, settings))
    _check_gaussians(prediction, settings)
    assert shown.scale is not None
    placed = _placed(prediction, part, float(shown.scale) / _unit(run.clip))
    if placed.offset_times is not None:
        placed = dataclasses.replace(placed, offset_times=placed.offset_times + start)
    size = part.images.shape[-2], part.images.shape[-1]
    return Window(gaussians=placed, cameras=plain, times=part.times, size=size)


def _check_gaussians(prediction: Prediction, settings: RunSettings) -> None:
    if prediction.gaussians is None:
        raise Refused("this model makes no Gaussians")
    if prediction.cameras is not None and not settings.own_cameras:
        raise UserError(
            "this model finds cameras itself, in a world of its own for each window, and has no motion head: it "
            "follows no points; take one that is given the cameras, or one with a motion head"
        )


def _placed(prediction: Prediction, part: Clip, unit: float) -> Gaussians:
    """The Gaussians of a batch of one in the world of the true cameras; UserError where they are not finite."""
    gaussians = map_tensors(prediction.gaussians, lambda tensor: tensor[0].float().cpu().clone())
    assert gaussians is not None
    assert part.cameras is not None
    if not all(bool(each.isfinite().all()) for each in (gaussians.means, gaussians.scales, gaussians.harmonics)):
        raise UserError("the Gaussians are not finite: the model has diverged; take another checkpoint")
    true = part.cameras.world_from_camera
    if prediction.cameras is None:
        return move_gaussians(gaussians, true[0], unit)
    own = prediction.cameras.world_from_camera[0].double().cpu()
    if not bool(own.isfinite().all()):
        raise UserError("the camera poses are not finite: the model has diverged; take another checkpoint")
    distance = float((gaussians.means - own[0, :3, 3]).norm(dim=-1).median())
    scale, pose = laid(own, true.double().cpu(), distance, _depth_ratio(prediction, part))
    return move_gaussians(gaussians, pose, scale)


def _depth_ratio(prediction: Prediction, part: Clip) -> float | None:
    """True median depth over the model's, of the same pixels; None where either is unknown."""
    if prediction.depth is None or part.depth is None:
        return None
    own = prediction.depth[0].double().cpu()
    known = (part.depth > 0 if part.valid is None else part.valid) & own.isfinite() & (own > 0)
    return float(part.depth[known].double().median() / own[known].median()) if bool(known.any()) else None


def laid(
    own: Float[Tensor, "f 4 4"], true: Float[Tensor, "f 4 4"], distance: float, ratio: float | None
) -> tuple[float, Float[Tensor, "4 4"]]:
    """The similarity from a model's world to the true one, by the poses that the frames have in both.

    The rotation is the chordal mean of those between the frames' orientations, so that it is known of a straight path
    and of a camera that stands still too. Scale and translation lay centres on centres by least squares, given that
    rotation; where either path is short beside the scene (`STANDS`) or they are not `ALIKE`, the scale is ``ratio``.

    Args:
        own: world_from_camera of the model.
        true: likewise, in the other world.
        distance: how far the scene is from the cameras, in the model's unit.
        ratio: true depth over the model's; None: unknown.

    Returns:
        What lengths are multiplied by, and the rigid motion after it.

    Raises:
        Refused: paths that do not tell the scale, without ``ratio``.

    """
    rotation = cast(Tensor, roma.special_procrustes((true[:, :3, :3] @ own[:, :3, :3].mT).sum(0)))
    mine, theirs = own[:, :3, 3] @ rotation.mT, true[:, :3, 3]
    scale = _path_ratio(mine - mine.mean(0), theirs - theirs.mean(0), distance, ratio)
    if scale is None:
        raise Refused(
            "the cameras hardly move, truly or by the model, and there is no depth of both: nothing says how long the "
            "lengths of this model are"
        )
    return scale, make_pose(rotation, theirs.mean(0) - scale * mine.mean(0))


def _path_ratio(
    mine: Float[Tensor, "f 3"], theirs: Float[Tensor, "f 3"], distance: float, ratio: float | None
) -> float | None:
    """The scale of `laid`, of centres about their mean that are turned alike; None where nothing tells it."""
    both, squared = float((mine * theirs).sum()), float((mine**2).sum())
    path, true_path = (float((part**2).sum(-1).mean().sqrt()) for part in (mine, theirs))
    if both <= ALIKE * path * true_path * len(mine) or path <= STANDS * distance:
        return ratio
    if ratio is not None and true_path <= STANDS * distance * ratio:
        return ratio
    return both / squared


def _bare(clip: Clip) -> Clip:
    return dataclasses.replace(clip, surface=None, tracks=None)


def _inputs(normalised: Clip, key: str, settings: RunSettings) -> Clip:
    """What the model sees, with a batch axis of one, on its device."""
    inputs = collate([to_example(normalised, key, settings.hints)]).inputs
    return map_tensors(inputs, lambda tensor: tensor.to(settings.device))
