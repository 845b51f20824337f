"""Comparison of one clip's prediction with its ground truth, with cached intermediates of all metrics."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from four_d import geometry
from four_d.metrics import depth, masks, points, pose, skeletons
from four_d.surface import LEAST_MOTION
from four_d.trajectories import asked_keypoints
from four_d.types import LIKELY, Cameras, Clip, Prediction

Part = Literal["all", "dynamic", "static"]
"""Pixels that are scored; alignments are over all of them."""

FEWEST_POINTS = 4
"""Minimum number of points for a similarity."""


def source_unit(clip: Clip) -> float:
    """Source units (metres where the data is metric) per unit of an unbatched clip."""
    return 1.0 if clip.scale is None else float(clip.scale)


class Comparison:
    """Unbatched prediction and ground truth, both in the clip's normalised unit.

    A quantity that the prediction lacks, or the truth does not allow, is None. The prediction has all of a model's
    fields, those of a user's own heads too; for a model that answers query times one by one it is the first answer.
    """

    def __init__(self, prediction: Prediction, targets: Clip) -> None:
        self.prediction, self.targets = prediction, targets
        self._depth: dict[tuple[depth.Alignment, depth.Region, Part], depth.DepthScores | None] = {}

    @cached_property
    def unit(self) -> float:
        """Source units per unit of the clip."""
        return source_unit(self.targets)

    @cached_property
    def true_depth(self) -> tuple[Tensor, Tensor]:
        """True depth f h w and its validity; zeros where there is none."""
        targets = self.targets
        truth = torch.zeros_like(targets.images[:, 0]) if targets.depth is None else targets.depth
        return truth, truth > 0 if targets.valid is None else targets.valid & (truth > 0)

    @cached_property
    def dynamic(self) -> tuple[Tensor, Tensor]:
        """True mask f h w of moving pixels, and the frames f that have one."""
        truth, known = self.targets.dynamic, self.targets.dynamic_known
        if truth is None:
            truth = torch.zeros_like(self.targets.images[:, 0], dtype=torch.bool)
            return truth, truth[:, 0, 0]
        return truth, torch.ones_like(truth[:, 0, 0]) if known is None else known

    @cached_property
    def true_cameras(self) -> Cameras | None:
        """True cameras in float64, where all are known."""
        cameras = self.targets.cameras
        if cameras is None or not (cameras.known is None or bool(cameras.known.all())):
            return None
        return Cameras(world_from_camera=cameras.world_from_camera.double(), intrinsics=cameras.intrinsics.double())

    def depth(self, alignment: depth.Alignment, region: depth.Region, part: Part = "all") -> depth.DepthScores | None:
        """AbsRel and δ of the pixels of a part, after a fit to all valid pixels of each region."""
        key = alignment, region, part
        if key not in self._depth:
            self._depth[key] = self._depth_scores(*key)
        return self._depth[key]

    def _depth_scores(self, alignment: depth.Alignment, region: depth.Region, part: Part) -> depth.DepthScores | None:
        predicted = self.prediction.depth
        if predicted is None:
            return None
        truth, valid = self.true_depth
        moves, known = self.dynamic
        mask = None if part == "all" else (moves if part == "dynamic" else ~moves) & known[:, None, None]
        scores = depth.scores(predicted, truth.to(predicted), valid, alignment, region, mask)
        return scores if int(scores.pixels) else None

    @cached_property
    def _poses(self) -> tuple[Tensor, Tensor] | None:
        """Predicted and true poses f 4 4 in float64."""
        predicted, truth = self.prediction.cameras, self.true_cameras
        if predicted is None or truth is None or self.targets.times.shape[-1] < 2:
            return None
        return predicted.world_from_camera.double(), truth.world_from_camera

    @cached_property
    def pairs(self) -> pose.PairErrors | None:
        """Errors of the relative poses of all pairs of frames."""
        return None if self._poses is None else pose.pair_errors(*self._poses, still=pose.STILL)

    @cached_property
    def _trajectories(self) -> tuple[Tensor, Tensor] | None:
        """Poses of three frames or more whose true camera moves."""
        if self._poses is None or len(self._poses[1]) < 3 or float(pose.extent(self._poses[1])) <= pose.STILL:
            return None
        return self._poses

    @cached_property
    def ate(self) -> float | None:
        """Absolute trajectory error after Sim(3), in source units."""
        return None if self._trajectories is None else float(pose.ate(*self._trajectories, "sim3")) * self.unit

    @cached_property
    def steps(self) -> pose.RelativePoseErrors | None:
        """Errors from each frame to the next one of the same camera after Sim(3), in the clip's unit."""
        consecutive = self.targets.camera_ids[1:] == self.targets.camera_ids[:-1]
        if self._trajectories is None or not bool(consecutive.any()):
            return None
        return pose.rpe(*self._trajectories, "sim3", consecutive)

    @cached_property
    def points(self) -> points.PointScores | None:
        """Distances in source units of the video's valid pixels, at most `points.MAX_POINTS` evenly spaced ones.

        The prediction is aligned by the similarity with the least squared error over all valid pixels, so far points
        weigh most.
        """
        predicted, cameras = geometry.world_points(self.prediction), self.true_cameras
        truth, valid = self.true_depth
        if predicted is None or cameras is None or int(valid.sum()) < FEWEST_POINTS:
            return None
        target = geometry.unproject(truth.double(), cameras)[valid]
        aligned = points.align_corresponding(predicted[valid].double(), target)
        return points.scores(points.thin(aligned) * self.unit, points.thin(target) * self.unit)

    @cached_property
    def masks(self) -> tuple[float, float] | None:
        """Mean J and F over the frames with a known mask, of probabilities above `LIKELY`."""
        truth, known = self.dynamic
        if self.prediction.dynamic is None or not bool(known.any()):
            return None
        predicted, true = self.prediction.dynamic[known] > LIKELY, truth[known]
        return float(masks.region(predicted, true).mean()), float(masks.contour(predicted, true).mean())

    @cached_property
    def keypoints(self) -> skeletons.SkeletonScores | None:
        """Errors of keypoints, in source units and pixels; None unless the model was asked for all true ones. UserError
        where it was asked for others.
        """
        truth = asked_keypoints(self.targets)
        predicted = getattr(self.prediction, "keypoints", None)
        if truth is None or predicted is None or predicted.shape != truth.points.shape:
            return None
        return skeletons.scores(
            predicted.double() * self.unit,
            getattr(self.prediction, "keypoint_pixels", None),
            truth,
            truth.points.double() * self.unit,
            self.targets.times.double(),
            self.targets.camera_ids,
            (self.targets.images.shape[-2], self.targets.images.shape[-1]),
        )

    @cached_property
    def object_rotation_error(self) -> float | None:
        """Mean angle in degrees between predicted and true rotations of an object that is the world's origin."""
        predicted, truth = self.prediction.cameras, self.true_cameras
        if predicted is None or truth is None or getattr(self.prediction, "pose_uncertainty", None) is None:
            return None
        rotations = (each.world_from_camera[..., :3, :3].to(truth.world_from_camera) for each in (predicted, truth))
        return float(geometry.rotation_angle(next(rotations).mT @ next(rotations)).rad2deg().mean())

    @cached_property
    def relative_motion_error(self) -> float | None:
        """Mean error of the motion of moving pixels over its mean length."""
        predicted, truth, valid = self.prediction.motion, self.targets.motion, self.targets.motion_valid
        if predicted is None or truth is None or valid is None:
            return None
        lengths = truth.norm(dim=-1)
        moves = valid & (lengths > LEAST_MOTION)
        errors = (predicted.float() - truth).norm(dim=-1)
        return float(errors[moves].sum() / lengths[moves].sum()) if bool(moves.any()) else None
