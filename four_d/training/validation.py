"""Figures and images of a model on one validation clip."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from four_d import drawing, fields, geometry
from four_d.config import RECORDED
from four_d.metrics.catalogue import METRICS, VALIDATION
from four_d.metrics.comparison import Comparison
from four_d.metrics.metric import Metric, check_own
from four_d.training import parallel
from four_d.types import Clip, Prediction, map_tensors

MAX_FRAMES_SHOWN = 8

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


def draw(prediction: Prediction, targets: Clip, title: str) -> NDArray[np.uint8] | None:
    """Frames over true and predicted depth of the first clip of a batch; None for a model without depth or points.

    Predictions are scaled to the truth's median over the clip, and drawn in its colour range.
    """
    predicted = _predicted_depth(prediction)
    if not predicted:
        return None
    count = min(MAX_FRAMES_SHOWN, targets.images.shape[1])
    chosen = np.linspace(0, targets.images.shape[1] - 1, count).round().astype(int)
    images = (targets.images[0].movedim(1, -1).clamp(0, 1) * 255).round().byte().cpu().numpy()
    rows, labels = [[images[i] for i in chosen]], ["image"]
    limits, median = None, None
    if targets.depth is not None and targets.valid is not None and bool(targets.valid[0].any()):
        truth, valid = targets.depth[0].cpu().numpy(), targets.valid[0].cpu().numpy()
        limits, median = drawing.depth_limits(truth, valid), float(np.median(truth[valid]))
        rows.append([drawing.depth_image(truth[i], valid[i], limits) for i in chosen])
        labels.append("true depth")
    for label, tensor in predicted.items():
        depth = tensor[0].float().cpu().numpy()
        where = depth > 0
        if median is not None and where.any():
            depth = depth * median / float(np.median(depth[where]))
        rows.append([drawing.depth_image(depth[i], where[i], limits) for i in chosen])
        labels.append(label)
    return drawing.grid(rows, labels, [f"frame {i}" for i in chosen], title)


def _predicted_depth(prediction: Prediction) -> dict[str, Tensor]:
    """Depth as the heads give it: of the depth head, and of the point head seen from the predicted cameras."""
    found: dict[str, Tensor] = {}
    if prediction.depth is not None:
        found["depth"] = prediction.depth
    if prediction.points is not None and prediction.cameras is not None:
        camera_from_world = geometry.invert_pose(prediction.cameras.world_from_camera.float())
        flat = geometry.transform(camera_from_world, prediction.points.float().flatten(2, 3))
        found["points"] = flat[..., 2].unflatten(2, prediction.points.shape[2:4])
    return found
