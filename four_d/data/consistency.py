"""Consistency checks of a clip's geometry, each with one measured number, its limit and the usual causes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d import fields, geometry
from four_d import surface as surfaces
from four_d.data.agreement import DEPTH_TOLERANCE, Measure, pair_measures, pose_mistakes, track_measures
from four_d.data.contract import RawClip
from four_d.data.skeletons import keypoint_measures
from four_d.data.truth import truth
from four_d.types import SAME_TIME, Cameras, Surface

ROTATION_LIMIT = 1e-4
"""Largest entry of RᵀR − 1 (and distance of the determinant from 1)."""
CENTRE_LIMIT_PX = 0.05
"""Median distance of a surface point's projection from its pixel's centre."""
OUTLIER_LIMIT_PX = 0.5
"""Limit of that distance for all but 1 % of a frame's pixels."""
DEPTH_RANGE_M = (0.1, 200.0)
"""Range of a frame's median depth if its unit is the metre."""


def measure(clip: RawClip, depth_tolerance: float = DEPTH_TOLERANCE) -> Iterator[Measure]:
    """Run every check that the clip's modalities allow. The clip must conform to the layout (`contract.problems`).

    Depths within a relative difference of ``depth_tolerance`` are equal.
    """
    yield from keypoint_measures(clip)
    if clip.world_from_camera is None or clip.intrinsics is None:
        return
    yield from _camera_measures(clip)
    if (missing := _times_missing(clip)) is not None:
        yield missing
        return
    known = truth(clip)
    if clip.surface is not None and known.surface is not None and known.cameras is not None:
        yield from _surface_measures(clip, known.surface, known.cameras, known.times)
    if known.depth is not None:
        if clip.info.metric:
            yield _unit_measure(known.depth)
        yield from pair_measures(clip, known, depth_tolerance)
        yield from track_measures(clip, known, depth_tolerance)


def _camera_measures(clip: RawClip) -> Iterator[Measure]:
    poses, intrinsics, w, h = clip.world_from_camera, clip.intrinsics, clip.info.width, clip.info.height
    assert poses is not None
    assert intrinsics is not None
    rotation = poses[:, :3, :3]
    skew = np.abs(rotation.transpose(0, 2, 1) @ rotation - np.eye(3)).max((1, 2))
    skew = np.maximum(skew, np.abs(poses[:, 3] - [0, 0, 0, 1]).max(-1))
    yield Measure(
        check="rotation",
        value=float(skew.max()),
        limit=ROTATION_LIMIT,
        frame=int(skew.argmax()),
        what="the pose's rotation differs from an orthonormal matrix",
        remedy="write rigid poses, without scale, with 0 0 0 1 as the last row",
    )
    determinant = np.linalg.det(rotation)
    yield Measure(
        check="handedness",
        value=float(determinant.min()),
        limit=1 - 1e-3,
        above=False,
        frame=int(determinant.argmin()),
        what="determinant of the pose's rotation",
        remedy="an axis is flipped (mirrored frame): camera axes are x right, y down, z forward",
    )
    centre = np.abs(intrinsics[:, :2, 2] / [w, h] - 0.5).max(-1)
    yield Measure(
        check="principal point",
        value=float(centre.max()),
        limit=0.5,
        frame=int(centre.argmax()),
        what="distance of the principal point from the image's middle, in image sizes",
        remedy="intrinsics are in pixels of the stored images, as fx fy cx cy; rescale them with the images",
    )
    focal = np.abs(np.log(np.maximum(intrinsics[:, (0, 1), (0, 1)], 1e-9) / max(w, h))).max(-1)
    yield Measure(
        check="focal length",
        value=float(np.exp(focal.max())),
        limit=15.0,
        frame=int(focal.argmax()),
        what="factor between focal length and image size",
        remedy="intrinsics are in pixels of the stored images, as fx fy cx cy; rescale them with the images",
    )


def _times_missing(clip: RawClip) -> Measure | None:
    """Count frames whose time is missing from the surface or the tracks."""
    for name, axis in (("surface_times", clip.info.surface_times), ("track_times", clip.info.track_times)):
        if axis is None:
            continue
        gaps = np.abs(np.subtract.outer(clip.info.times, axis)).min(-1)
        if gaps.max() > SAME_TIME:
            return Measure(
                check="times",
                value=float(gaps.max()),
                limit=SAME_TIME,
                frame=int(gaps.argmax()),
                what=f"seconds between the frame's time and the nearest of {name}",
                remedy=f"put every frame's time into {name}, in seconds from the clip's start",
            )
    return None


def _surface_measures(
    clip: RawClip, surface: Surface, cameras: Cameras, times: Float[Tensor, "f"]
) -> Iterator[Measure]:
    stored = clip.surface
    assert stored is not None
    total = stored.barycentric.astype(np.int64).sum(1).max((1, 2))
    yield Measure(
        check="barycentric",
        value=float(total.max() / surfaces.BARYCENTRIC_ONE),
        limit=1 + 3 / surfaces.BARYCENTRIC_ONE,
        frame=int(total.argmax()),
        what="largest sum of the two stored weights",
        remedy="store the weights of the face's second and third vertex, 65535 = 1",
    )
    jump = np.abs(stored.moving_vertices[0] - stored.vertices[stored.moving]).max(initial=0)
    yield Measure(
        check="first time",
        value=float(jump),
        limit=1e-4,
        what="distance between a vertex of vertices and of moving_vertices[0]",
        remedy="vertices holds the positions at the first of surface_times; check order and time of moving_vertices",
    )
    moves = np.zeros(len(stored.vertices), bool)
    moves[stored.moving] = np.abs(stored.moving_vertices - stored.moving_vertices[:1]).max((0, 2), initial=0) > 1e-5
    yield Measure(
        check="surroundings",
        value=float(moves[stored.triangles[stored.instances == 0]].any(-1).sum()),
        limit=0.0,
        what="faces of instance 0 that move",
        remedy="instance 0 is the static surroundings; number what moves from 1",
    )
    yield from _centre_measures(surface, cameras, times)


def _centre_measures(surface: Surface, cameras: Cameras, times: Float[Tensor, "f"]) -> Iterator[Measure]:
    surface_points, hit = surfaces.points(surface, times).flatten(1, 2), (surface.faces >= 0).flatten(1)
    error, z = _centre_errors(surface_points, cameras, surface.faces.shape[-2:])
    errors = [e[h] if bool(h.any()) else torch.zeros(1) for e, h in zip(error, hit)]
    medians = torch.stack([e.median() for e in errors])
    # torch.quantile refuses more than 2**24 values
    tails = torch.stack([e.quantile(0.99) if len(e) < 2**24 else e.max() for e in errors])
    behind = torch.stack([((depth <= 0) & h).sum() / h.sum().clamp_min(1) for depth, h in zip(z, hit)])
    cause = ""
    worst = int(medians.argmax())
    if not bool(medians.max() <= CENTRE_LIMIT_PX):
        worst_only = slice(worst, worst + 1)
        cause = _cause_of_shift(
            surface_points[worst_only], hit[worst], fields.take(cameras, "b", worst_only), surface.faces.shape[-2:]
        )
    yield Measure(
        check="pixel centres",
        value=float(medians.max()),
        limit=CENTRE_LIMIT_PX,
        frame=worst,
        what="pixels (median) between a surface point's projection and the centre of the pixel that saw it",
        remedy=cause or "poses, intrinsics or vertices do not belong to these face maps",
    )
    yield Measure(
        check="pixel outliers",
        value=float(tails.max()),
        limit=OUTLIER_LIMIT_PX,
        frame=int(tails.argmax()),
        what="the same distance for the 99 % quantile of a frame",
        remedy="part of the surface is wrong: check the vertices of one object at this frame's time",
    )
    yield Measure(
        check="in front",
        value=float(behind.max()),
        limit=0.0,
        frame=int(behind.argmax()),
        what="fraction of the surface points that lie behind the camera that saw them",
        remedy=cause or "camera axes are x right, y down, z forward",
    )


def _centre_errors(
    surface_points: Float[Tensor, "f p 3"], cameras: Cameras, size: tuple[int, ...]
) -> tuple[Float[Tensor, "f p"], Float[Tensor, "f p"]]:
    pixels, z = geometry.project(surface_points, cameras)
    return (pixels - geometry.pixel_centres(size[0], size[1], surface_points).reshape(-1, 2)).norm(dim=-1), z


def _cause_of_shift(
    surface_points: Float[Tensor, "1 p 3"], hit: Bool[Tensor, "p"], cameras: Cameras, size: tuple[int, ...]
) -> str:
    """Remedy of the usual mistake that, undone, brings the points back to their pixels; empty if none."""
    for remedy, corrected in {**pose_mistakes(cameras), **_intrinsics_mistakes(cameras)}.items():
        error, z = _centre_errors(surface_points, corrected, size)
        if bool(error[0][hit].median() <= CENTRE_LIMIT_PX) and bool((z[0][hit] > 0).float().mean() > 0.99):
            return remedy
    return ""


def _intrinsics_mistakes(cameras: Cameras) -> dict[str, Cameras]:
    corrected: dict[str, Cameras] = {}
    for name, shift in (("add 0.5 to cx and cy", 0.5), ("subtract 0.5 from cx and cy", -0.5)):
        k = cameras.intrinsics.clone()
        k[..., :2, 2] += shift
        remedy = f"half a pixel off: {name}, pixel (0, 0) is the corner and its centre is (0.5, 0.5)"
        corrected[remedy] = dataclasses.replace(cameras, intrinsics=k)
    swapped = cameras.intrinsics[..., [1, 0, 2], :][..., :, [1, 0, 2]]
    corrected["fx, cx and fy, cy are swapped: their order is fx fy cx cy"] = dataclasses.replace(
        cameras, intrinsics=swapped
    )
    return corrected


def _unit_measure(depth: Float[Tensor, "f h w"]) -> Measure:
    """Measure the least plausible median depth of a frame, as a factor outside the range."""
    medians = torch.stack([frame[frame > 0].median() if bool((frame > 0).any()) else torch.ones(()) for frame in depth])
    low, high = DEPTH_RANGE_M
    factor = torch.maximum(low / medians, medians / high)
    worst = int(factor.argmax())
    return Measure(
        check="units",
        value=float(factor[worst]),
        limit=1.0,
        frame=worst,
        what=f"factor by which the median depth, {float(medians[worst]):.3g} m, is outside {low:g} to {high:g} m",
        remedy="lengths are not in metres: convert them (millimetres: divide by 1000), or set metric to false",
    )
