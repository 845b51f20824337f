"""Figures and images of a model on one validation clip."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from four_d import drawing, fields, geometry
from four_d.config import RECORDED
from four_d.deformation.prediction import ScenePrediction
from four_d.drawing import Map
from four_d.metrics.catalogue import METRICS, VALIDATION
from four_d.metrics.comparison import Comparison
from four_d.metrics.metric import Metric, check_own
from four_d.rendering import render
from four_d.training import parallel
from four_d.types import Cameras, Clip, Geometry, Prediction, map_tensors

MAX_FRAMES_SHOWN = 8
LARGEST_ERROR = 0.5
"""Mean difference of colours, of values in [0, 1], that is drawn as the largest."""

Weighted = dict[str, tuple[float, float]]
"""Figure → (value, weight); weight 0 where the truth does not allow it."""


def validation_metrics(losses: Iterable[str] = (), own: Sequence[Metric] = ()) -> dict[str, Metric]:
    """Every figure that validation may give, by name: the loss, its terms, the catalogue's metrics, the caller's own.

    UserError for one of ``own`` that has no function, or the name of another figure.
    """
    terms = {name: Metric(name, "term of the loss", better="lower") for name in ("loss", *losses)}
    check_own(own, {*METRICS, *terms, *RECORDED})
    return {**terms, **{metric.name: metric for metric in (*VALIDATION, *own)}}


def figures(
    prediction: Prediction,
    terms: Mapping[str, Tensor],
    supervised: Mapping[str, Tensor],
    targets: Clip,
    metrics: Iterable[Metric] = VALIDATION,
) -> Weighted:
    """Loss terms with ground truth (``supervised`` is 1, not 0), and the metrics that prediction and truth allow.

    Batches of one clip.
    """
    found: Weighted = {name: (float(value), float(supervised.get(name, 1.0))) for name, value in terms.items()}
    shown = fields.unstack(fields.delivered(prediction), 0)
    kept = map_tensors(shown, lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)
    video = Comparison(kept, fields.unstack(targets, 0))
    values = {metric.name: metric.compute(video) for metric in metrics if metric.compute is not None}
    return found | {name: (value, 1.0) for name, value in values.items() if value is not None}


class Means:
    """Weighted means of figures over all clips of all processes."""

    def __init__(self) -> None:
        self._sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add(self, found: Weighted, weight: float) -> None:
        """Add one clip; weight 0 for a repeat that only pads a rank. All ranks must add equally often."""
        for name, (value, own) in found.items():
            total = self._sums[name]
            total[0] += weight * own * value if weight * own else 0.0
            total[1] += weight * own

    def take(self, device: torch.device) -> dict[str, float]:
        """Return the means and reset; a collective call of all processes."""
        # a process whose clips lack some truth has not met all figures
        names = list(dict.fromkeys(name for each in parallel.gather(list(self._sums)) for name in each))
        flat = parallel.total([number for name in names for number in self._sums[name]], device)
        self._sums.clear()
        return {name: flat[2 * i] / flat[2 * i + 1] for i, name in enumerate(names) if flat[2 * i + 1]}


@dataclass(frozen=True, kw_only=True)
class _Map:
    """Map of a prediction, of all frames."""

    label: str
    values: Map
    drawing: drawing.Drawing
    length: bool
    of: str
    """Name of the field with whose truth it is compared."""
    truth: fields.Truth | None


@dataclass(frozen=True, kw_only=True)
class _Truth:
    """True map of all frames; values that are not known are 0."""

    values: Map
    known: NDArray[np.bool_]


def draw(prediction: Prediction, targets: Clip, title: str) -> drawing.RgbImage | None:
    """Frames over true and predicted maps of the first clip of a batch; None for a model without any.

    Of a fitted scene: its renders, and their errors where the object's mask is known, black outside the mask.

    Maps are the fields that are drawn (`types.drawn`), those of `CERTAINTY` aside, and the depth of predicted points.
    They are drawn in the truth's scale, if there is truth; lengths are first brought to its median over the clip.
    """
    clip = fields.unstack(targets, 0)
    chosen = np.linspace(0, len(clip.images) - 1, min(MAX_FRAMES_SHOWN, len(clip.images))).round().astype(int)
    images = (clip.images.movedim(1, -1).clamp(0, 1) * 255).round().byte().cpu().numpy()
    rows: dict[str, list[drawing.RgbImage]] = {"image": [images[i] for i in chosen]}
    for each in _maps(fields.unstack(prediction, 0)):
        truth, values, image = _truth(targets, each), each.values, each.drawing.image
        scale = each.drawing.style.scale(values if truth is None else truth.values)
        if truth is not None:
            rows[f"true {each.of}"] = [_known(image(truth.values[i], scale), truth.known[i]) for i in chosen]
            if each.length and (values > 0).any():
                median = float(np.median(truth.values[truth.known]))
                values = values * median / float(np.median(values[values > 0]))
        rows[each.label] = [image(values[i], scale) for i in chosen]
    if isinstance(prediction, ScenePrediction):
        rows |= _renders(prediction, targets, chosen.tolist())
    if len(rows) == 1:
        return None
    return drawing.grid(list(rows.values()), list(rows), [f"frame {i}" for i in chosen], title)


def _renders(prediction: ScenePrediction, targets: Clip, frames: list[int]) -> dict[str, list[drawing.RgbImage]]:
    """Rows of a fitted scene's renders of the first clip's frames, and of their errors."""
    if prediction.gaussians is None or prediction.cameras is None:
        return {}
    first = (slice(1), frames)
    cameras = Cameras(
        world_from_camera=prediction.cameras.world_from_camera[first], intrinsics=prediction.cameras.intrinsics[first]
    )
    size = (targets.images.shape[-2], targets.images.shape[-1])
    with torch.no_grad():
        gaussians = fields.take(prediction.gaussians, "b", slice(1))
        shown = render(gaussians, cameras, targets.times[first], size).colour[0].clamp(0, 1)
    found = {"render": [*(shown.movedim(1, -1) * 255).round().byte().cpu().numpy()]}
    if targets.dynamic is not None:
        truth = targets.images[0, frames] * targets.dynamic[0, frames, None]
        errors = (shown - truth.to(shown)).abs().mean(1).cpu().numpy()
        found |= {f"error, to {LARGEST_ERROR:g}": [drawing.range_image(each, (0.0, LARGEST_ERROR)) for each in errors]}
    return found


def _maps(prediction: Prediction) -> list[_Map]:
    """Maps to draw, those that are compared with one truth side by side."""
    found = [
        _Map(
            label=leaf.label,
            values=values,
            drawing=how,
            length=leaf.geometry is Geometry.LENGTH,
            of=leaf.label,
            truth=leaf.truth,
        )
        for leaf, how, values in fields.drawings(prediction)
        if not leaf.certainty
    ]
    found += _depth_of_points(prediction)
    compared = [each.of for each in found]
    return sorted(found, key=lambda each: compared.index(each.of))


def _depth_of_points(prediction: Prediction) -> list[_Map]:
    """Depth of the point head's points, seen from the predicted cameras; none without both."""
    depth = next(each for each in fields.declared(Prediction) if each.name == "depth")
    if prediction.points is None or prediction.cameras is None or depth.drawing is None:
        return []
    camera_from_world = geometry.invert_pose(prediction.cameras.world_from_camera.float())
    flat = geometry.transform(camera_from_world, prediction.points.float().flatten(1, 2))
    values = flat[..., 2].unflatten(1, prediction.points.shape[1:3]).cpu().numpy()
    return [_Map(label="points", values=values, drawing=depth.drawing, length=True, of=depth.name, truth=depth.truth)]


def _truth(targets: Clip, of: _Map) -> _Truth | None:
    """True map of the first clip of a batch; None where nothing of it is known, or it is of another shape."""
    values, valid = (None, None) if of.truth is None else of.truth(targets)
    if values is None or values.shape[1:] != of.values.shape:
        return None
    known = torch.ones_like(values, dtype=torch.bool) if valid is None else valid
    known = known.reshape(*known.shape, *[1] * (values.ndim - known.ndim)).expand_as(values)
    if not bool(known[0].any()):
        return None
    return _Truth(values=values.masked_fill(~known, 0)[0].float().cpu().numpy(), known=known[0].cpu().numpy())


def _known(image: drawing.RgbImage, known: NDArray[np.bool_]) -> drawing.RgbImage:
    """Image h w 3 of values h w … with the unknown ones grey; one of another size as it is."""
    if known.shape[:2] != image.shape[:2]:
        return image
    whole = np.logical_and.reduce(known.reshape(*image.shape[:2], -1), axis=-1)
    return np.where(whole[..., None], image, np.array(drawing.INVALID_COLOUR, np.uint8))
