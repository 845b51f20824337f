"""Similarity transform between two worlds, such as those of two windows of a long video, from shared frames."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import cast

import roma
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d import fields
from four_d.constants import precise
from four_d.geometry import Similarity, align_points, point_maps, reliable, rotation_angle
from four_d.types import Cameras, Prediction

LOGGER = logging.getLogger(__name__)

MOST_POINTS = 40_000
"""Maximum number of points used by an alignment."""
FEWEST_POINTS = 20
"""Minimum number of points; with fewer, or with all on one line, cameras align the windows."""
ALIKE = 0.5
"""Minimum cosine similarity of two camera paths that count as the same."""
POOR = 0.2
"""Median relative residual above which an alignment is reported as poor."""
STILL = 1e-3
"""RMS distance of camera centres from their mean, in a window's unit, below which they determine no scale."""


@dataclass(frozen=True, kw_only=True)
class Seam:
    """Alignment quality of a window and the one before, an indicator of drift."""

    method: str
    """Basis of the alignment: poses given by the user, points, cameras, cameras without scale (these hardly move, so
    lengths stand), depth (scale only) or none."""
    scale: float
    """Factor from the later window's unit to the result's."""
    points: int
    """Number of points compared."""
    residual: float | None
    """Median distance between a point's two positions, as a fraction of its distance from the camera."""
    residual_90: float | None
    """90 % quantile of the same relative distance."""
    camera_shift: float | None
    """Mean distance between the two camera centres of a shared frame, in the result's unit."""
    camera_turn_deg: float | None
    """Mean angle between the two camera rotations of a shared frame, in degrees."""


def align(before: Prediction, after: Prediction, placed: Similarity | None = None) -> tuple[Similarity, Seam]:
    """Similarity from ``after`` to ``before``, unbatched predictions of the same frames; ``placed`` if it is known.

    A robust fit to the points of the same pixels, weighted by confidence and proximity, moving pixels less. Without
    enough points the cameras' poses determine it, without those the depth ratio.
    """
    pairs = _pairs(before, after)
    method, move = _otherwise(before, after) if placed is None else ("poses", placed)
    fitted = None if pairs is None or placed is not None else _by_points(pairs, None if method == "none" else move)
    if fitted is not None:
        method, move = "points", fitted
    residuals = None if pairs is None or method == "none" else pairs.residuals(move)
    shift, turn = _disagreement(before.cameras, None if after.cameras is None else fields.move(after.cameras, move))
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
    """Positions of the points of n pixels in two windows."""

    source: Float[Tensor, "n 3"]
    target: Float[Tensor, "n 3"]
    distance: Float[Tensor, "n"]
    """Distance from the camera, in the target's unit."""
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
    """Pairs of the pixels that are reliable in both; None if there are too few points."""
    ours, theirs = point_maps(after), point_maps(before)
    if ours is None or theirs is None or ours[1].numel() == 0:
        return None
    (source, depth, certain), (target, distance, sure) = ours, theirs
    keep = reliable(depth, certain) & reliable(distance, sure) & (source + target).isfinite().all(-1)
    chosen = keep.flatten().nonzero()[:, 0]
    if len(chosen) < FEWEST_POINTS:
        return None
    chosen, kind = chosen[:: -(-len(chosen) // MOST_POINTS)], precise(chosen.device)
    weight = (certain.flatten()[chosen] * sure.flatten()[chosen]).clamp_min(0).sqrt().to(kind)
    for moving in (before.dynamic, after.dynamic):
        weight = weight if moving is None else weight * (1.01 - moving.flatten()[chosen].to(kind))
    away = distance.flatten()[chosen].to(kind)
    return _Pairs(
        source=source.reshape(-1, 3)[chosen].to(kind),
        target=target.reshape(-1, 3)[chosen].to(kind),
        distance=away,
        weight=weight / away**2,
    )


def _by_points(pairs: _Pairs, start: Similarity | None, rounds: int = 15) -> Similarity | None:
    """Iteratively reweighted least squares (Geman-McClure) from the best of several starts; None for a line."""
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
    """Candidate similarities, each from a few points drawn by weight: some are free of outliers."""
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
    """True for points on a line or at one place, which determine no rotation."""
    share = weight[:, None] / weight.sum().clamp_min(1e-30)
    centred = points - (points * share).sum(0)
    spread = torch.linalg.eigvalsh(centred.mT @ (centred * share))
    return not bool(spread[1] > 1e-8 * (points**2 * share).sum())


def _otherwise(before: Prediction, after: Prediction) -> tuple[str, Similarity]:
    ratio = None if before.depth is None or after.depth is None else depth_ratio(after.depth, before.depth)
    if before.cameras is not None and after.cameras is not None and len(before.cameras.world_from_camera) > 0:
        source, target = after.cameras.world_from_camera, before.cameras.world_from_camera
        fitted = by_poses(source, target, ratio, STILL)
        if fitted is not None:
            return "cameras", fitted
        fitted = by_poses(source, target, 1.0, STILL)
        assert fitted is not None
        return "cameras without scale", fitted
    if ratio is not None:
        return "depth", dataclasses.replace(Similarity.identity(), scale=ratio)
    return "none", Similarity.identity()


def by_poses(
    source: Float[Tensor, "f 4 4"], target: Float[Tensor, "f 4 4"], ratio: float | None, least: float
) -> Similarity | None:
    """Similarity from one world to another by the frames' poses (world_from_camera) in both.

    The rotation is the chordal mean of those between the frames' orientations, so that a straight path or a static
    camera determines it too. Scale and shift fit centres to centres by least squares, given that rotation; if either
    path is short or they are not `ALIKE`, the scale is ``ratio``.

    Args:
        source: poses in the source world.
        target: poses in the target world.
        ratio: scale from depth (`depth_ratio`); None: unknown.
        least: extent of a path, in the source's unit, up to which it determines no scale.

    Returns:
        None if neither the paths nor ``ratio`` determine the scale.

    """
    source, target = source.cpu().double(), target.cpu().double()
    rotation = cast(Tensor, roma.special_procrustes((target[:, :3, :3] @ source[:, :3, :3].mT).sum(0)))
    mine, theirs = source[:, :3, 3] @ rotation.mT, target[:, :3, 3]
    scale = _path_ratio(mine - mine.mean(0), theirs - theirs.mean(0), ratio, least)
    if scale is None:
        return None
    return Similarity(scale=scale, rotation=rotation, shift=theirs.mean(0) - scale * mine.mean(0))


def _path_ratio(
    mine: Float[Tensor, "f 3"], theirs: Float[Tensor, "f 3"], ratio: float | None, least: float
) -> float | None:
    """Scale of `by_poses`, from centres relative to their mean in a common orientation."""
    both, squared = float((mine * theirs).sum()), float((mine**2).sum())
    path, other = (float((part**2).sum(-1).mean().sqrt()) for part in (mine, theirs))
    if both <= ALIKE * path * other * len(mine) or path <= least:
        return ratio
    if ratio is not None and other <= least * ratio:
        return ratio
    return both / squared


def depth_ratio(
    source: Float[Tensor, "*b"], target: Float[Tensor, "*b"], valid: Bool[Tensor, "*b"] | None = None
) -> float | None:
    """Median ratio of target to source depth over pixels that are ``valid`` and positive in both; None without any."""
    target = target.to(source.device)
    sound = source.isfinite() & target.isfinite() & (source > 1e-6) & (target > 1e-6)
    sound = sound if valid is None else sound & valid.to(source.device)
    one, other = (each[sound].to(precise(each.device)) for each in (target, source))
    return float((one / other).median()) if len(one) else None


def report(seam: Seam, where: str) -> None:
    """Report on stderr an alignment that failed or fits badly."""
    if seam.method == "none":
        LOGGER.warning(f"{where} show nothing to align by: what follows stands as the model gave it")
    elif seam.residual is not None and seam.residual > POOR:
        LOGGER.warning(f"{where} fit badly: half of the points are off by {seam.residual:.0%} of their distance")


def _disagreement(before: Cameras | None, after: Cameras | None) -> tuple[float | None, float | None]:
    """Mean distance of camera centres and mean rotation angle in degrees."""
    if before is None or after is None or len(before.world_from_camera) == 0:
        return None, None
    one, other = (each.world_from_camera.cpu().double() for each in (before, after))
    angle = rotation_angle(one[:, :3, :3].mT @ other[:, :3, :3]).rad2deg().mean()
    return float((one - other)[:, :3, 3].norm(dim=-1).mean()), float(angle)


def _quantile(values: Tensor | None, share: float) -> float | None:
    return None if values is None else float(values.kthvalue(max(1, round(share * len(values)))).values)
