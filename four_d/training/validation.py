"""Figures and pictures of a model on one validation clip."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from four_d import geometry, pictures
from four_d.losses.motion import LEAST_MOTION
from four_d.metrics import depth as depth_metrics
from four_d.metrics import pose as pose_metrics
from four_d.training import parallel
from four_d.types import Clip, Prediction

MAX_FRAMES_SHOWN = 8

Weighted = dict[str, tuple[float, float]]
"""Figure → (value, weight); weight 0 where the truth does not allow it."""


def figures(prediction: Prediction, terms: Mapping[str, Tensor], targets: Clip) -> Weighted:
    """Loss terms and, for the heads there are, ``depth_absrel_median`` (each frame aligned by its median),
    ``rotation_deg`` (mean error of the relative rotations of all pairs of frames) and ``motion_ratio`` (mean error of
    the motion of what moves over its mean length). Batches of one clip.
    """
    found: Weighted = {name: (float(value), 1.0) for name, value in terms.items()}
    if prediction.depth is not None and targets.depth is not None and targets.valid is not None:
        scores = depth_metrics.scores(prediction.depth.float(), targets.depth, targets.valid, "median", "frame")
        found["depth_absrel_median"] = float(scores.absrel[0]), float(scores.frames[0] > 0)
    if prediction.cameras is not None and targets.cameras is not None and targets.images.shape[1] > 1:
        poses = prediction.cameras.world_from_camera.float()
        errors = pose_metrics.pair_errors(poses, targets.cameras.world_from_camera)
        known = targets.cameras.known is None or bool(targets.cameras.known.all())
        found["rotation_deg"] = float(errors.rotation_deg[0].mean()), float(known)
    if prediction.motion is not None and targets.motion is not None and targets.motion_valid is not None:
        lengths = targets.motion.norm(dim=-1)
        moves = targets.motion_valid & (lengths > LEAST_MOTION)
        errors = (prediction.motion.float() - targets.motion).norm(dim=-1)
        found["motion_ratio"] = float(errors[moves].sum() / lengths[moves].sum()), float(moves.any())
    return found


class Means:
    """Weighted means of figures over all clips of all processes."""

    def __init__(self) -> None:
        self._sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add(self, found: Weighted, weight: float) -> None:
        """Take in one clip; weight 0 for a repeat that only fills up a rank. All ranks add equally often."""
        for name, (value, own) in found.items():
            total = self._sums[name]
            total[0] += weight * own * value if weight * own else 0.0
            total[1] += weight * own

    def take(self, device: torch.device) -> dict[str, float]:
        """The means, for which all processes must ask; then begin anew."""
        names = list(self._sums)
        flat = parallel.total([number for name in names for number in self._sums[name]], device)
        self._sums.clear()
        return {name: flat[2 * i] / flat[2 * i + 1] for i, name in enumerate(names) if flat[2 * i + 1]}


def draw(prediction: Prediction, targets: Clip, title: str) -> NDArray[np.uint8] | None:
    """Frames over true and predicted depth of the first clip of a batch; None for a model without depth or points.

    Predictions are scaled to the truth's median over the clip, and share its colours.
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
        limits, median = pictures.depth_limits(truth, valid), float(np.median(truth[valid]))
        rows.append([pictures.depth_image(truth[i], valid[i], limits) for i in chosen])
        labels.append("true depth")
    for label, tensor in predicted.items():
        depth = tensor[0].float().cpu().numpy()
        where = depth > 0
        if median is not None and where.any():
            depth = depth * median / float(np.median(depth[where]))
        rows.append([pictures.depth_image(depth[i], where[i], limits) for i in chosen])
        labels.append(label)
    return pictures.grid(rows, labels, [f"frame {i}" for i in chosen], title)


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
