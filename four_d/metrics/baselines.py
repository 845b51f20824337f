"""Baselines that ignore the image, for comparison with every score.

Each is a model, ``(Clip) -> Prediction``, that depends on shapes and times but never on a pixel. `untrained` gives
those that need no data; `fit` adds those fitted to statistics of the training clips.

| name | predicts |
|---|---|
| ``flat_depth`` | one depth everywhere |
| ``mean_depth`` | per pixel, the mean over training frames of depth divided by its frame's median |
| ``median_depth`` | per pixel, the value with the least mean AbsRel over the same frames |
| ``static_camera`` | the first frame's pose for all |
| ``line_camera`` | uniform motion without rotation, in the most usual direction of training (forward if untrained) |
| ``mean_trajectory`` | per frame index, the mean training pose relative to the first frame (chordal mean rotation) |
| ``static_points`` | points of ``mean_depth`` (``flat_depth`` if untrained) seen by ``static_camera``, moved as below |
| ``line_points`` | these points seen from ``line_camera`` |
| ``all_moving`` | a mask of everything |
| ``none_moving`` | a mask of nothing |
| ``mean_mask`` | per pixel, True if the fraction of training frames in which it moves exceeds the best threshold |
| ``static_motion``, ``prior_motion`` | dense motion to the query times (`motion_baselines`) |
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

import roma
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import interpolate

from four_d import geometry
from four_d.abilities import Abilities, Model
from four_d.errors import UserError
from four_d.metrics import masks, motion_baselines, pose
from four_d.metrics.depth import masked_median
from four_d.types import Cameras, Clip, Example, Prediction

FOCAL = 1.0
"""Focal length over image size that untrained baselines assume (a field of view of 53°)."""
USUAL_DEG = 15.0
"""Angle within which directions count as one for ``line_camera``."""
CANDIDATES = 500
"""Directions tried for ``line_camera``."""
MEDIAN_SIZE = 64
"""Maximum rows and columns of ``median_depth`` and ``mean_mask``, which need all frames at once."""
THRESHOLDS = 50
"""Number of thresholds tried for ``mean_mask``."""


@dataclass(frozen=True, kw_only=True)
class DepthMap(Model):
    """Constant depth map, in the examples' normalised unit, for every frame; resized bilinearly where sizes differ."""

    depth: Float[Tensor, "h w"]

    @property
    def abilities(self) -> Abilities:
        """No other outputs."""
        return Abilities(outputs=frozenset({"depth"}))

    def __call__(self, clip: Clip) -> Prediction:
        """Predict depth for every frame of the clip."""
        *batch, _, height, width = clip.images.shape
        resized = _resize(self.depth.to(clip.images), (height, width), "bilinear")
        return Prediction(depth=resized.expand(*batch, height, width).contiguous())


@dataclass(frozen=True, kw_only=True)
class MaskMap(Model):
    """Constant mask for every frame; resized to the nearest pixel where sizes differ."""

    dynamic: Float[Tensor, "h w"]

    @property
    def abilities(self) -> Abilities:
        """No other outputs."""
        return Abilities(outputs=frozenset({"dynamic"}))

    def __call__(self, clip: Clip) -> Prediction:
        """Predict a probability for every pixel of the clip."""
        *batch, _, height, width = clip.images.shape
        resized = _resize(self.dynamic.to(clip.images), (height, width), "nearest")
        return Prediction(dynamic=resized.expand(*batch, height, width).contiguous())


@dataclass(frozen=True, kw_only=True)
class PointMap(Model):
    """Depth of one baseline, seen from another's cameras and moved by a third one's motion.

    Predicts points and motion only: depth and cameras are baselines of their own.
    """

    depth: Model
    cameras: Model
    motion: Model

    @property
    def abilities(self) -> Abilities:
        """No other outputs."""
        return Abilities(outputs=frozenset({"points", "motion", "motion_visible"}), queried=frozenset({"motion"}))

    def __call__(self, clip: Clip) -> Prediction:
        """Predict points of every pixel, and their motion."""
        depth, cameras = self.depth(clip).depth, self.cameras(clip).cameras
        assert depth is not None
        assert cameras is not None
        moved = self.motion(clip)
        return Prediction(
            points=geometry.unproject(depth, cameras), motion=moved.motion, motion_visible=moved.motion_visible
        )


@dataclass(frozen=True, kw_only=True)
class StaticCamera(Model):
    """The first frame's camera for all frames."""

    focal: tuple[float, float] = (FOCAL, FOCAL)
    """fx / width and fy / height."""

    @property
    def abilities(self) -> Abilities:
        """No other outputs."""
        return Abilities(outputs=frozenset({"cameras"}))

    def __call__(self, clip: Clip) -> Prediction:
        """Predict identity poses."""
        identity = torch.eye(4, device=clip.images.device, dtype=clip.images.dtype)
        return _pose_prediction(identity.expand(*clip.times.shape, 4, 4), clip, self.focal)


@dataclass(frozen=True, kw_only=True)
class LineCamera(Model):
    """Camera that moves at constant velocity (normalised units per second) without turning."""

    velocity: tuple[float, float, float] = (0.0, 0.0, 1.0)
    focal: tuple[float, float] = (FOCAL, FOCAL)

    @property
    def abilities(self) -> Abilities:
        """No other outputs."""
        return Abilities(outputs=frozenset({"cameras"}))

    def __call__(self, clip: Clip) -> Prediction:
        """Predict poses by the time since the first frame."""
        elapsed = (clip.times - clip.times[..., :1]).to(clip.images)
        centres = elapsed[..., None] * torch.tensor(self.velocity).to(elapsed)
        rotation = torch.eye(3).to(centres).expand(*centres.shape[:-1], 3, 3)
        return _pose_prediction(geometry.make_pose(rotation, centres), clip, self.focal)


@dataclass(frozen=True, kw_only=True)
class MeanTrajectory(Model):
    """Fixed pose per frame index; frames beyond the table keep its last pose."""

    poses: Float[Tensor, "k 4 4"]
    focal: tuple[float, float] = (FOCAL, FOCAL)

    @property
    def abilities(self) -> Abilities:
        """No other outputs."""
        return Abilities(outputs=frozenset({"cameras"}))

    def __call__(self, clip: Clip) -> Prediction:
        """Predict poses by frame index."""
        frames = clip.times.shape[-1]
        index = torch.arange(frames).clamp_max(len(self.poses) - 1)
        poses = self.poses[index].to(clip.images)
        return _pose_prediction(poses.expand(*clip.times.shape, 4, 4), clip, self.focal)


def _pose_prediction(poses: Float[Tensor, "*b f 4 4"], clip: Clip, focal: tuple[float, float]) -> Prediction:
    height, width = clip.images.shape[-2:]
    rows = [[focal[0] * width, 0, width / 2], [0, focal[1] * height, height / 2], [0, 0, 1]]
    intrinsics = torch.tensor(rows, device=poses.device, dtype=poses.dtype).expand(*poses.shape[:-2], 3, 3)
    return Prediction(cameras=Cameras(world_from_camera=poses, intrinsics=intrinsics))


def _resize(image: Float[Tensor, "h w"], size: tuple[int, int], mode: str) -> Float[Tensor, "i j"]:
    if image.shape == size:
        return image
    corners = False if mode == "bilinear" else None
    return interpolate(image[None, None], size, mode=mode, align_corners=corners)[0, 0]


def untrained() -> dict[str, Model]:
    """Make the baselines that need no data."""
    return _with_points(
        {
            "flat_depth": DepthMap(depth=torch.ones(1, 1)),
            "static_camera": StaticCamera(),
            "line_camera": LineCamera(),
            "all_moving": MaskMap(dynamic=torch.ones(1, 1)),
            "none_moving": MaskMap(dynamic=torch.zeros(1, 1)),
            "static_motion": motion_baselines.static(),
        }
    )


def _with_points(models: dict[str, Model]) -> dict[str, Model]:
    """Add the baselines of points made of these models' depth and cameras."""
    depth = models.get("mean_depth", models["flat_depth"])
    motion = models.get("prior_motion", models["static_motion"])
    return models | {
        f"{kind}_points": PointMap(depth=depth, cameras=models[f"{kind}_camera"], motion=motion)
        for kind in ("static", "line")
    }


def fit_baselines(examples: Iterable[Example]) -> dict[str, Model]:
    """Fit all baselines in one pass over (training) examples; those without truth in any example are left out.

    UserError without examples.
    """
    depth, paths, moving = DepthStatistics(), MotionStatistics(), MaskStatistics()
    motion = motion_baselines.DenseMotionStatistics()
    count = 0
    for example in examples:
        count += len(example.key)
        depth.add(example.targets)
        paths.add(example.targets)
        motion.add(example.targets)
        moving.add(example.targets)
    if count == 0:
        raise UserError("there is no training clip to fit the image-free baselines on; check the training data's path")
    return _with_points({**untrained(), **depth.models(), **paths.models(), **moving.models(), **motion.models()})


@dataclass
class DepthStatistics:
    """Running sums for the depth maps, of frames divided by their own median, so that no scene outweighs others."""

    total: Tensor | None = None
    weight: Tensor | None = None
    medians: list[float] = field(default_factory=list[float])
    small: list[Tensor] = field(default_factory=list[Tensor])
    """Normalised frames at low resolution; 0 = invalid."""

    def add(self, targets: Clip) -> None:
        """Add every frame with valid depth; frames of other sizes than the first are resized to it."""
        if targets.depth is None:
            return
        for depth, valid in zip(*_depth_frames(targets), strict=True):
            self._add_frame(depth, valid & (depth > 0))

    def _add_frame(self, depth: Float[Tensor, "h w"], valid: Bool[Tensor, "h w"]) -> None:
        if not valid.any():
            return
        median = masked_median(depth.flatten(), valid.flatten())
        normalised = torch.where(valid, depth / median, 0)
        if self.total is None or self.weight is None:
            self.total = torch.zeros_like(normalised, dtype=torch.float64)
            self.weight = torch.zeros_like(self.total)
        normalised = _resize(normalised, (self.total.shape[0], self.total.shape[1]), "nearest")
        self.total += normalised
        self.weight += normalised > 0
        self.medians.append(float(median))
        rows, columns = min(normalised.shape[0], MEDIAN_SIZE), min(normalised.shape[1], MEDIAN_SIZE)
        self.small.append(_resize(normalised, (rows, columns), "nearest").float())

    def models(self) -> dict[str, Model]:
        """The fitted maps, in the examples' unit: times the mean of the frames' medians."""
        if self.total is None or self.weight is None:
            return {}
        unit = sum(self.medians) / len(self.medians)
        overall = self.total.sum() / self.weight.sum()
        mean = torch.where(self.weight > 0, self.total / self.weight.clamp_min(1), overall)
        return {
            "flat_depth": DepthMap(depth=torch.full((1, 1), unit)),
            "mean_depth": DepthMap(depth=(mean * unit).float()),
            "median_depth": DepthMap(depth=absrel_median(torch.stack(self.small), float(overall)) * unit),
        }


def _depth_frames(targets: Clip) -> tuple[Float[Tensor, "n h w"], Bool[Tensor, "n h w"]]:
    assert targets.depth is not None
    depth = targets.depth.flatten(0, -3).cpu()
    valid = depth > 0 if targets.valid is None else targets.valid.flatten(0, -3).cpu()
    return depth, valid


def absrel_median(frames: Float[Tensor, "n h w"], empty: float) -> Float[Tensor, "h w"]:
    """Minimise Σ |p − g| / g over the frames with g > 0 for every pixel: the median weighted by 1 / g.

    Pixels without any valid frame get ``empty``.
    """
    ordered = torch.where(frames > 0, frames, torch.inf).sort(dim=0).values
    weight = torch.where(ordered.isfinite(), 1 / ordered, 0).cumsum(0)
    index = (weight < weight[-1:] / 2).sum(0, keepdim=True).clamp_max(len(frames) - 1)
    chosen = ordered.gather(0, index)[0]
    return torch.where(chosen.isfinite(), chosen, empty)


def usual_direction(directions: Float[Tensor, "n 3"]) -> Float[Tensor, "3"]:
    """Unit vector whose line has most of the given ones within `USUAL_DEG`, signed as most of those.

    Candidates are the axes and `CANDIDATES` of the vectors. The mean would fail: that of cameras that go left and right
    equally often is anything but sideways.
    """
    axes = torch.eye(3, dtype=directions.dtype)
    spread = torch.linspace(0, len(directions) - 1, min(CANDIDATES, len(directions))).round().long()
    candidates = torch.cat([axes, directions[spread]])
    cosines = candidates @ directions.T
    near = cosines.abs() > math.cos(math.radians(USUAL_DEG))
    best = int(near.sum(-1).argmax())
    sign = 1.0 if float(cosines[best][near[best]].sum()) >= 0 else -1.0
    return sign * candidates[best]


@dataclass
class MaskStatistics:
    """Statistics of masks of moving pixels, at low resolution."""

    small: list[Tensor] = field(default_factory=list[Tensor])

    def add(self, targets: Clip) -> None:
        """Add every frame whose mask is known; frames of other sizes than the first are resized to it."""
        if targets.dynamic is None:
            return
        frames = targets.dynamic.flatten(0, -3).cpu()
        if targets.dynamic_known is not None:
            frames = frames[targets.dynamic_known.flatten().cpu()]
        for frame in frames:
            height, width = self.small[0].shape if self.small else frame.shape
            size = min(height, MEDIAN_SIZE), min(width, MEDIAN_SIZE)
            self.small.append(_resize(frame.float(), size, "nearest") > 0)

    def models(self) -> dict[str, Model]:
        """Fit the mean mask, cut at the threshold with the best mean J over the frames."""
        if not self.small:
            return {}
        frames = torch.stack(self.small)
        mean = frames.float().mean(0)
        cuts = torch.linspace(0, float(mean.max()), THRESHOLDS + 1)[:-1]
        overlaps = torch.stack([masks.region((mean > cut).expand(frames.shape), frames).mean() for cut in cuts])
        return {"mean_mask": MaskMap(dynamic=(mean > cuts[overlaps.argmax()]).float())}


@dataclass
class MotionStatistics:
    """Running sums for the trajectories, in the first frame's camera coordinates."""

    rotations: list[Tensor] = field(default_factory=list[Tensor])
    """Per frame index, the sum of rotation matrices."""
    centres: list[Tensor] = field(default_factory=list[Tensor])
    counts: list[int] = field(default_factory=list[int])
    directions: list[Tensor] = field(default_factory=list[Tensor])
    """Per clip, unit vectors from frame i to j > i in i's camera coordinates, as in RTA."""
    speeds: list[float] = field(default_factory=list[float])
    focals: list[Tensor] = field(default_factory=list[Tensor])

    def add(self, targets: Clip) -> None:
        """Add every clip whose cameras are all known."""
        if targets.cameras is None:
            return
        cameras, frames = targets.cameras, targets.times.shape[-1]
        poses = geometry.rebase(cameras).world_from_camera.double().cpu().reshape(-1, frames, 4, 4)
        intrinsics = cameras.intrinsics.double().cpu().reshape(-1, frames, 3, 3)
        known = torch.ones(len(poses), frames, dtype=torch.bool)
        known = known if cameras.known is None else cameras.known.cpu().reshape(-1, frames)
        times = targets.times.double().cpu().reshape(-1, frames)
        ids = targets.camera_ids.cpu().reshape(-1, frames)
        height, width = targets.images.shape[-2:]
        size = torch.tensor([width, height], dtype=torch.float64)
        for clip in known.all(-1).nonzero()[:, 0].tolist():
            self._add_poses(poses[clip])
            self._add_motion(poses[clip], times[clip], ids[clip])
            self.focals.append(intrinsics[clip].diagonal(dim1=-2, dim2=-1)[:, :2].mean(0) / size)

    def _add_poses(self, poses: Float[Tensor, "f 4 4"]) -> None:
        for index, world_from_camera in enumerate(poses):
            if index == len(self.counts):
                self.rotations.append(torch.zeros(3, 3, dtype=torch.float64))
                self.centres.append(torch.zeros(3, dtype=torch.float64))
                self.counts.append(0)
            self.rotations[index] += world_from_camera[:3, :3]
            self.centres[index] += world_from_camera[:3, 3]
            self.counts[index] += 1

    def _add_motion(self, poses: Float[Tensor, "f 4 4"], times: Float[Tensor, "f"], ids: Int[Tensor, "f"]) -> None:
        first, second = torch.triu_indices(len(poses), len(poses), offset=1)
        steps = (geometry.invert_pose(poses[first]) @ poses[second])[:, :3, 3]
        length = steps.norm(dim=-1, keepdim=True)
        moving = length[:, 0] > pose.STILL
        self.directions.append((steps / length.clamp_min(pose.NO_LENGTH))[moving])
        elapsed = (times[second] - times[first]).abs()
        timed = moving & (ids[first] == ids[second]) & (elapsed > 0)
        self.speeds += [float((length[timed, 0] / elapsed[timed]).mean())] if bool(timed.any()) else []

    def models(self) -> dict[str, Model]:
        """The fitted trajectories."""
        if not self.counts:
            return {}
        x, y = torch.stack(self.focals).mean(0).tolist()
        counts = torch.tensor(self.counts, dtype=torch.float64)[:, None]
        rotations = cast(Tensor, roma.special_procrustes(torch.stack(self.rotations)))
        poses = geometry.make_pose(rotations, torch.stack(self.centres) / counts)
        models: dict[str, Model] = {
            "static_camera": StaticCamera(focal=(x, y)),
            "line_camera": LineCamera(focal=(x, y)),
            "mean_trajectory": MeanTrajectory(poses=poses, focal=(x, y)),
        }
        if self.speeds:
            direction = usual_direction(torch.cat(self.directions))
            vx, vy, vz = (direction * (sum(self.speeds) / len(self.speeds))).tolist()
            models["line_camera"] = LineCamera(velocity=(vx, vy, vz), focal=(x, y))
        return models
