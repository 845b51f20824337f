"""Consistency checks of a clip's geometry, each with one measured number, its limit and the usual causes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from four_d import fields, geometry
from four_d import surface as surfaces
from four_d.data.contract import RawClip
from four_d.data.depth_maps import Sentinel, depth_map_findings, sentinel
from four_d.data.diagnosis import DEPTH_TOLERANCE, convention_findings, reading_of
from four_d.data.measures import Finding, Measure, Note, Unchecked
from four_d.data.readings import SHIFTS, mistakes
from four_d.data.skeletons import keypoint_measures
from four_d.data.tracks import track_measures
from four_d.data.truth import Truth, truth
from four_d.types import SAME_TIME, Cameras, Surface

ROTATION_LIMIT, ROTATION_NOTE = 1e-2, 1e-4
"""Largest entry of RᵀR − 1, and from where on it is said."""
CENTRE_LIMIT_PX = 0.05
"""Median distance of a surface point's projection from its pixel's centre."""
OUTLIER_LIMIT_PX = 0.5
"""Limit of that distance for all but 1 % of a frame's pixels."""
DEPTH_RANGE_M = (0.1, 200.0)
"""Range of a frame's median depth if its unit is the metre."""


def findings(clip: RawClip, depth_tolerance: float | None = None) -> Iterator[Finding]:
    """Run every check that the clip's modalities allow, and say which they do not allow.

    The clip must conform to the layout (`contract.problems`). Depths within a relative difference of
    ``depth_tolerance`` are equal; None takes what the clip states, else `DEPTH_TOLERANCE`.
    """
    tolerance = depth_tolerance or clip.info.depth_tolerance or DEPTH_TOLERANCE
    yield from keypoint_measures(clip)
    strange = sentinel(clip)
    yield from depth_map_findings(clip, strange)
    clip = _without(clip, strange)
    if clip.world_from_camera is None or clip.intrinsics is None:
        why = "the clip has no cameras" if clip.intrinsics is None else "the clip has intrinsics but no poses"
        yield Unchecked(what="conventions", why=why)
        return
    yield from _camera_findings(clip)
    if (missing := _times_missing(clip)) is not None:
        yield missing
        return
    clip = dataclasses.replace(
        clip, world_from_camera=geometry.orthonormal(torch.from_numpy(clip.world_from_camera)).numpy()
    )
    known = truth(clip)
    if clip.surface is not None and known.surface is not None and known.cameras is not None:
        measured = list(_surface_measures(clip, known.surface, known.cameras, known.times))
        yield from measured
        if not all(m.ok for m in measured):
            yield Unchecked(what="images against the surface", why="poses and surface do not fit")
            return
    if known.depth is not None and clip.info.metric:
        yield _unit_measure(known.depth)
    yield from convention_findings(clip, known, tolerance)
    if known.depth is not None:
        yield from track_measures(clip, known, tolerance)


def _without(clip: RawClip, found: Sentinel | None) -> RawClip:
    """Clear what is no depth, so that other checks tell of other faults."""
    if found is None or clip.depth is None:
        return clip
    is_depth = np.abs(clip.depth - found.value) > (clip.info.depth_unit or 0) / 2
    return dataclasses.replace(clip, depth=np.where(is_depth, clip.depth, np.float32(0)))


def _camera_findings(clip: RawClip) -> Iterator[Finding]:
    poses, intrinsics, w, h = clip.world_from_camera, clip.intrinsics, clip.info.width, clip.info.height
    assert poses is not None
    assert intrinsics is not None
    rotation = poses[:, :3, :3]
    skew = np.abs(rotation.transpose(0, 2, 1) @ rotation - np.eye(3)).max((1, 2))
    skew = np.maximum(skew, np.abs(poses[:, 3] - [0, 0, 0, 1]).max(-1))
    if ROTATION_NOTE < skew.max() <= ROTATION_LIMIT:
        yield Note(
            text=f"rotations are off orthonormal by up to {skew.max():.1g}, which is tolerated: the nearest rotation "
            "is checked",
            frame=int(skew.argmax()),
        )
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
        limit=1 - 2 * ROTATION_LIMIT,
        above=False,
        frame=int(determinant.argmin()),
        what="determinant of the pose's rotation",
        remedy="an axis is flipped (mirrored frame): camera axes are x right, y down, z forward",
    )
    centre = np.abs(intrinsics[:, :2, 2] / [w, h] - 0.5).max(-1)
    yield Measure(
        check="principal point",
        value=float(centre.max()),
        limit=0.49,  # at 0.5 are intrinsics of images twice as large
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
        if not axis:
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
    yield from _centre_measures(surface, cameras, times, clip)


def _centre_measures(surface: Surface, cameras: Cameras, times: Float[Tensor, "f"], clip: RawClip) -> Iterator[Measure]:
    surface_points, hit = surfaces.points(surface, times).flatten(1, 2), (surface.faces >= 0).flatten(1)
    error, z = _centre_errors(surface_points, cameras, surface.faces.shape[-2:])
    errors = [e[h] if bool(h.any()) else torch.zeros(1) for e, h in zip(error, hit)]
    medians = torch.stack([e.median() for e in errors])
    # torch.quantile refuses more than 2**24 values
    tails = torch.stack([e.quantile(0.99) if len(e) < 2**24 else e.max() for e in errors])
    behind = torch.stack([((depth <= 0) & h).sum() / h.sum().clamp_min(1) for depth, h in zip(z, hit)])
    cause = late = ""
    worst = int(medians.argmax())
    if not bool(medians.max() <= CENTRE_LIMIT_PX):
        cause = _cause_of_shift(surface, cameras, times, clip, worst)
    elif not bool(tails.max() <= OUTLIER_LIMIT_PX):
        late = _cause_of_outliers(surface, cameras, times, clip, int(tails.argmax()))
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
        remedy=cause or late or "part of the surface is wrong: check the vertices of one object at this frame's time",
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


def _cause_of_shift(surface: Surface, cameras: Cameras, times: Float[Tensor, "f"], clip: RawClip, worst: int) -> str:
    """Remedy of the usual mistake that, undone, brings the points back to their pixels; empty if none."""
    known = Truth(times=times, cameras=cameras, surface=None, depth=None, dynamic=None)
    reading = reading_of(clip, known)
    undone = {mistake.remedy: mistake.undo(reading) for mistake in mistakes(reading) if mistake.touches == "cameras"}
    readings = {remedy: (read.cameras, read.camera_at) for remedy, read in undone.items()}
    readings |= {remedy: (k, reading.camera_at) for remedy, k in _half_pixels(cameras).items()}
    frames = sorted({worst, 0, len(times) // 2})
    points = surfaces.points(fields.take(surface, "f", torch.tensor(frames)), times[frames]).flatten(1, 2)
    for remedy, (corrected, camera_at) in readings.items():
        rows = [row for row, frame in enumerate(frames) if int(camera_at[frame]) >= 0]
        if worst not in [frames[row] for row in rows]:
            continue
        at = torch.stack([camera_at[frames[row]] for row in rows])
        error, z = _centre_errors(points[rows], fields.take(corrected, "b", at), surface.faces.shape[-2:])
        hit = [surface.faces[frames[row]].flatten() >= 0 for row in rows]
        medians = [float(e[h].median()) if bool(h.any()) else 0.0 for e, h in zip(error, hit, strict=True)]
        if max(medians) <= CENTRE_LIMIT_PX and all(bool((d[h] > 0).all()) for d, h in zip(z, hit, strict=True)):
            return remedy
    return ""


def _half_pixels(cameras: Cameras) -> dict[str, Cameras]:
    corrected: dict[str, Cameras] = {}
    for name, shift in (("add 0.5 to cx and cy", 0.5), ("subtract 0.5 from cx and cy", -0.5)):
        k = cameras.intrinsics.clone()
        k[..., :2, 2] += shift
        remedy = f"half a pixel off: {name}, pixel (0, 0) is the corner and its centre is (0.5, 0.5)"
        corrected[remedy] = dataclasses.replace(cameras, intrinsics=k)
    return corrected


def _cause_of_outliers(surface: Surface, cameras: Cameras, times: Float[Tensor, "f"], clip: RawClip, worst: int) -> str:
    """Shift of the frames' times against the surface that, undone, brings what moves back to its pixels."""
    ids = clip.info.camera_ids
    for shift in SHIFTS:
        source = worst + shift
        if not 0 <= source < len(ids) or ids[source] != ids[worst]:
            continue
        frame = torch.tensor([worst])
        points = surfaces.points(fields.take(surface, "f", frame), times[[source]]).flatten(1, 2)
        error, _ = _centre_errors(points, fields.take(cameras, "b", frame), surface.faces.shape[-2:])
        hit = error[0][surface.faces[worst].flatten() >= 0]
        if len(hit) and float(hit[:: max(1, len(hit) // 2**20)].quantile(0.99)) <= OUTLIER_LIMIT_PX:
            count, way = abs(shift), "late" if shift < 0 else "early"
            return (
                f"the surface comes {count} frame{'s' * (count > 1)} too {way} against the frames: shift times or "
                "surface_times"
            )
    return ""


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
