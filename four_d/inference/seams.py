"""The similarity between two windows of a long video, found on the frames that both see."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from four_d.formats.clouds import point_maps, reliable
from four_d.geometry import align_points, make_pose, move_gaussians, rotation_angle
from four_d.types import Cameras, Gaussians, Prediction

MOST_POINTS = 40_000
"""That an alignment looks at."""
FEWEST_POINTS = 20
"""With fewer, or with all on one line, cameras align the windows."""


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """a = scale · rotation · b + shift, in float64 on the CPU."""

    scale: float
    rotation: Float[Tensor, "3 3"]
    shift: Float[Tensor, "3"]

    @staticmethod
    def identity() -> Similarity:
        """Changes nothing."""
        return Similarity(
            scale=1.0, rotation=torch.eye(3, dtype=torch.float64), shift=torch.zeros(3, dtype=torch.float64)
        )

    def points(self, points: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        """Places of b in a."""
        return (self.scale * points.double() @ self.rotation.mT + self.shift).to(points.dtype)

    def steps(self, steps: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        """Differences of places of b in a."""
        return (self.scale * steps.double() @ self.rotation.mT).to(steps.dtype)

    def cameras(self, cameras: Cameras) -> Cameras:
        """The same cameras with a as the world."""
        poses = cameras.world_from_camera.double()
        moved = make_pose(self.rotation @ poses[..., :3, :3], self.points(poses[..., :3, 3]))
        return dataclasses.replace(cameras, world_from_camera=moved.to(cameras.world_from_camera.dtype))

    def gaussians(self, gaussians: Gaussians) -> Gaussians:
        """The same Gaussians with a as the world, in a's unit; of colours that are the same from all sides.

        UserError for others.
        """
        return move_gaussians(gaussians, make_pose(self.rotation, self.shift), self.scale)

    def prediction(self, prediction: Prediction) -> Prediction:
        """The same prediction with a as the world, in a's unit."""
        cameras, depth, points, motion = prediction.cameras, prediction.depth, prediction.points, prediction.motion
        return dataclasses.replace(
            prediction,
            cameras=None if cameras is None else self.cameras(cameras),
            depth=None if depth is None else depth * self.scale,
            points=None if points is None else self.points(points),
            motion=None if motion is None else self.steps(motion),
        )


@dataclass(frozen=True, kw_only=True)
class Seam:
    """How well a window fits onto the one before; what tells of drift."""

    method: str
    """What aligned them: points, cameras, depth (scale alone) or none."""
    scale: float
    """What lengths of the later window were multiplied by to be in the result's unit."""
    points: int
    """That were compared."""
    residual: float | None
    """Median distance of a point's two places, as a share of its distance from the camera."""
    residual_90: float | None
    """The same, of which 90 % of the points stay below."""
    camera_shift: float | None
    """Mean distance of a shared frame's two camera centres, in the unit of the result."""
    camera_turn_deg: float | None
    """Mean angle between a shared frame's two camera rotations."""


def align(before: Prediction, after: Prediction) -> tuple[Similarity, Seam]:
    """What brings ``after`` onto ``before``: two predictions of the same frames, unbatched.

    Points of the same pixels, weighed by confidence and the nearer the more, outliers discounted until they no longer
    count; what is said to move counts less. Without enough points the cameras' poses, without those the depths' ratio.
    """
    pairs = _pairs(before, after)
    method, move = _otherwise(before, after)
    found = None if pairs is None else _by_points(pairs, None if method == "none" else move)
    if found is not None:
        method, move = "points", found
    residuals = None if pairs is None or method == "none" else pairs.residuals(move)
    shift, turn = _disagreement(before.cameras, None if after.cameras is None else move.cameras(after.cameras))
    return move, Seam(
        method=method,
        scale=move.scale,
        points=0 if residuals is None else len(residuals),
        residual=_quantile(residuals, 0.5),
        residual_90=_quantile(residuals, 0.9),
        camera_shift=shift,
        camera_turn_deg=turn,
    )


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """Places of the same n pixels in two windows."""

    source: Float[Tensor, "n 3"]
    target: Float[Tensor, "n 3"]
    distance: Float[Tensor, "n"]
    """From the camera, in the target's unit."""
    weight: Float[Tensor, "n"]

    def take(self, chosen: slice | Tensor) -> _Pairs:
        return _Pairs(
            source=self.source[chosen],
            target=self.target[chosen],
            distance=self.distance[chosen],
            weight=self.weight[chosen],
        )

    def residuals(self, move: Similarity) -> Float[Tensor, "n"]:
        return (move.points(self.source) - self.target).norm(dim=-1) / self.distance


def _pairs(before: Prediction, after: Prediction) -> _Pairs | None:
    """The reliable pixels of both; None if there are no points or too few."""
    ours, theirs = point_maps(after), point_maps(before)
    if ours is None or theirs is None or ours[1].numel() == 0:
        return None
    (source, depth, certain), (target, distance, sure) = ours, theirs
    keep = reliable(depth, certain) & reliable(distance, sure) & (source + target).isfinite().all(-1)
    chosen = keep.flatten().nonzero()[:, 0]
    if len(chosen) < FEWEST_POINTS:
        return None
    chosen = chosen[:: -(-len(chosen) // MOST_POINTS)]
    weight = (certain.flatten()[chosen] * sure.flatten()[chosen]).clamp_min(0).sqrt().double()
    for moving in (before.dynamic, after.dynamic):
        weight = weight if moving is None else weight * (1.01 - moving.flatten()[chosen].double())
    away = distance.flatten()[chosen].double()
    return _Pairs(
        source=source.reshape(-1, 3)[chosen].double(),
        target=target.reshape(-1, 3)[chosen].double(),
        distance=away,
        weight=weight / away**2,
    )


def _by_points(pairs: _Pairs, start: Similarity | None, rounds: int = 15) -> Similarity | None:
    """Iteratively reweighted from the best of several starts, outliers ever less (Geman-McClure). None on a line."""
    if _on_a_line(pairs.target, pairs.weight) or _on_a_line(pairs.source, pairs.weight):
        return None
    starts = [_least_squares(pairs, pairs.weight), *_samples(pairs), *([] if start is None else [start])]
    few = pairs.take(slice(None, None, -(-len(pairs.weight) // 1000)))
    move = min(starts, key=lambda each: float(few.residuals(each).median()))
    for _ in range(rounds):
        residuals = pairs.residuals(move)
        spread = (1.4826 * residuals.median()).clamp_min(1e-7)
        move = _least_squares(pairs, pairs.weight / (1 + (residuals / spread / 2) ** 2) ** 2)
    return move


def _samples(pairs: _Pairs, count: int = 100, size: int = 4) -> list[Similarity]:
    """Similarities of a few points each, drawn by weight: some are of no outlier."""
    generator = torch.Generator().manual_seed(0)
    many = pairs.take(torch.linspace(0, len(pairs.weight) - 1, min(len(pairs.weight), 5000)).long())
    drawn = torch.multinomial(many.weight.expand(count, -1) + 1e-30, size, generator=generator)
    scales, rotations, shifts = align_points(many.source[drawn], many.target[drawn])
    return [
        Similarity(scale=float(scale), rotation=rotation, shift=shift)
        for scale, rotation, shift in zip(scales, rotations, shifts, strict=True)
        if bool(scale > 1e-6)
    ]


def _least_squares(pairs: _Pairs, weight: Float[Tensor, "n"]) -> Similarity:
    scale, rotation, shift = align_points(pairs.source, pairs.target, weight)
    return Similarity(scale=float(scale), rotation=rotation, shift=shift)


def _on_a_line(points: Float[Tensor, "n 3"], weight: Float[Tensor, "n"]) -> bool:
    """Or at one place: then a rotation is not determined."""
    share = weight[:, None] / weight.sum().clamp_min(1e-30)
    centred = points - (points * share).sum(0)
    spread = torch.linalg.eigvalsh(centred.mT @ (centred * share))
    return not bool(spread[1] > 1e-8 * (points**2 * share).sum())


def _otherwise(before: Prediction, after: Prediction) -> tuple[str, Similarity]:
    ratio = _depth_ratio(before.depth, after.depth)
    if before.cameras is not None and after.cameras is not None and len(before.cameras.world_from_camera) > 0:
        return "cameras", _by_cameras(before.cameras, after.cameras, ratio)
    if ratio is not None:
        return "depth", dataclasses.replace(Similarity.identity(), scale=ratio)
    return "none", Similarity.identity()


def _by_cameras(before: Cameras, after: Cameras, ratio: float | None) -> Similarity:
    """The mean rotation between the poses; scale by the depths' ratio or else by how far apart the centres are."""
    target, source = before.world_from_camera.double(), after.world_from_camera.double()
    u, _, vh = torch.linalg.svd((target[:, :3, :3] @ source[:, :3, :3].mT).sum(0))
    sign = torch.tensor([1, 1, float(torch.det(u @ vh).sign())], dtype=torch.float64)
    rotation = (u * sign) @ vh
    here, there = source[:, :3, 3], target[:, :3, 3]
    width, wanted = (float((centres - centres.mean(0)).norm(dim=-1).mean()) for centres in (here, there))
    still = min(width, wanted) < 1e-3
    scale = ratio if ratio is not None else 1.0 if still else wanted / width
    return Similarity(scale=scale, rotation=rotation, shift=(there - scale * here @ rotation.mT).mean(0))


def _depth_ratio(before: Tensor | None, after: Tensor | None) -> float | None:
    if before is None or after is None:
        return None
    sound = before.isfinite() & after.isfinite() & (before > 1e-6) & (after > 1e-6)
    return float((before[sound].double() / after[sound].double()).median()) if bool(sound.any()) else None


def _disagreement(before: Cameras | None, after: Cameras | None) -> tuple[float | None, float | None]:
    """Mean distance of centres, mean angle in degrees."""
    if before is None or after is None or len(before.world_from_camera) == 0:
        return None, None
    one, other = before.world_from_camera.double(), after.world_from_camera.double()
    angle = rotation_angle(one[:, :3, :3].mT @ other[:, :3, :3]).rad2deg().mean()
    return float((one - other)[:, :3, 3].norm(dim=-1).mean()), float(angle)


def _quantile(values: Tensor | None, share: float) -> float | None:
    return None if values is None else float(values.kthvalue(max(1, round(share * len(values)))).values)
