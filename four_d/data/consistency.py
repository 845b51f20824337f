"""Consistency checks of a clip's geometry, each with one measured number, its limit and the usual causes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

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
from four_d.data.readings import SHIFTS, of_cameras
from four_d.data.skeletons import keypoint_findings
from four_d.data.tracks import NO_DEPTH, track_findings
from four_d.data.truth import Truth, truth
from four_d.types import SAME_TIME, Cameras, Surface

ROTATION_LIMIT, ROTATION_NOTE = 1e-2, 1e-4
"""Largest entry of RᵀR − 1, and from where on it is said."""
CENTRE_LIMIT_PX = 0.05
"""Median distance of a surface point's projection from its pixel's centre."""
OUTLIER_LIMIT_PX = 0.5
"""Limit of that distance for all but 1 % of a frame's pixels."""
CAUSES = 4
"""Frames beside the worst that a usual mistake must explain to be named."""
DEPTH_RANGE_M = (0.1, 200.0)
"""Range of a frame's median depth if its unit is the metre."""


def findings(
    clip: RawClip, depth_tolerance: float | None = None, streams: Sequence[int] | None = None
) -> Iterator[Finding]:
    """Run every check that the clip's modalities allow, and say which they do not allow.

    The clip must conform to the layout (`contract.problems`). Depths within a relative difference of
    ``depth_tolerance`` are equal; None takes what the clip states, else `DEPTH_TOLERANCE`. ``streams`` has the number
    of each frame's run of neighbouring frames of one camera (`runs.choose`); None: each camera's frames are neighbours.
    """
    streams = clip.info.camera_ids if streams is None else streams
    tolerance = depth_tolerance or clip.info.depth_tolerance or DEPTH_TOLERANCE
    yield from keypoint_findings(clip)
    strange = sentinel(clip)
    yield from depth_map_findings(clip, strange)
    clip = _without(clip, strange)
    if clip.world_from_camera is None or clip.intrinsics is None:
        why = "the clip has no cameras" if clip.intrinsics is None else "the clip has intrinsics but no poses"
        yield from _not_compared(clip, why)
        return
    yield from _camera_findings(clip)
    if (missing := _times_missing(clip)) is not None:
        yield missing
        yield from _not_compared(clip, "times of frames are missing from those of the surface or the tracks")
        return
    clip = dataclasses.replace(
        clip, world_from_camera=geometry.orthonormal(torch.from_numpy(clip.world_from_camera)).numpy()
    )
    known = truth(clip)
    if clip.surface is not None and known.surface is not None and known.cameras is not None:
        measured = list(_surface_measures(clip, known.surface, known.cameras, known.times, streams))
        yield from measured
        if not all(m.ok for m in measured):
            yield Unchecked(what="images against the surface", why="poses and surface do not fit")
            return
    if clip.info.metric:
        yield Unchecked(what="unit of lengths", why=NO_DEPTH) if known.depth is None else _unit_measure(known.depth)
    yield from convention_findings(clip, known, streams, tolerance)
    yield from track_findings(clip, known, tolerance)


def _not_compared(clip: RawClip, why: str) -> Iterator[Unchecked]:
    """Say what is left out where frames cannot be compared."""
    yield Unchecked(what="conventions", why=why)
    if clip.tracks is not None:
        yield Unchecked(what="tracks", why=why)


def _without(clip: RawClip, found: Sentinel | None) -> RawClip:
    """Clear what is no depth, so that other checks tell of other faults."""
    if found is None or clip.depth is None:
        return clip
    cleared = clip.depth.copy()
    for depth in cleared:  # one by one, for the sake of memory
        depth[np.abs(depth - found.value) <= (clip.info.depth_unit or 0) / 2] = 0
    return dataclasses.replace(clip, depth=cleared)


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
    clip: RawClip, surface: Surface, cameras: Cameras, times: Float[Tensor, "f"], streams: Sequence[int]
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
    yield from _centre_measures(surface, cameras, times, clip, streams)


def _centre_measures(
    surface: Surface, cameras: Cameras, times: Float[Tensor, "f"], clip: RawClip, streams: Sequence[int]
) -> Iterator[Measure]:
    rows = [_frame_errors(surface, times, cameras, frame, frame) for frame in range(len(times))]
    medians, tails, behind = torch.tensor(rows).unbind(-1)
    cause = late = ""
    worst = int(medians.argmax())
    stated = clip.info.pixel_tolerance or 0.0
    centre, outlier = CENTRE_LIMIT_PX + stated, OUTLIER_LIMIT_PX + stated
    if not bool(medians.max() <= centre):
        cause = _cause_of_shift(surface, cameras, times, clip, medians.tolist(), streams)
    elif not bool(tails.max() <= outlier):
        late = _cause_of_outliers(surface, cameras, times, streams, int(tails.argmax()))
    yield Measure(
        check="pixel centres",
        value=float(medians.max()),
        limit=centre,
        frame=worst,
        what="pixels (median) between a surface point's projection and the centre of the pixel that saw it",
        remedy=cause or "poses, intrinsics or vertices do not belong to these face maps",
    )
    yield Measure(
        check="pixel outliers",
        value=float(tails.max()),
        limit=outlier,
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


def _frame_errors(
    surface: Surface, times: Float[Tensor, "f"], cameras: Cameras, frame: int, camera: int
) -> tuple[float, float, float]:
    """Distances in pixels of what a frame saw, through one of the cameras, from the centres of the pixels that saw it.

    Returns:
        their median and 99 % quantile, and the share of what lies behind the camera.

    """
    at = torch.tensor([frame])
    points = surfaces.points(fields.take(surface, "f", at), times[at]).flatten(1, 2)
    pixels, z = geometry.project(points, fields.take(cameras, "b", torch.tensor([camera])))
    rows, columns = surface.faces.shape[-2:]
    centres = geometry.pixel_centres(rows, columns, points).reshape(-1, 2)
    hit = surface.faces[frame].flatten() >= 0
    if not bool(hit.any()):
        return 0.0, 0.0, 0.0
    error = (pixels[0] - centres).norm(dim=-1)[hit]
    # torch.quantile refuses more than 2**24 values
    tail = error.quantile(0.99) if len(error) < 2**24 else error.max()
    return float(error.median()), float(tail), float((z[0][hit] <= 0).float().mean())


def _cause_of_shift(
    surface: Surface,
    cameras: Cameras,
    times: Float[Tensor, "f"],
    clip: RawClip,
    medians: Sequence[float],
    streams: Sequence[int],
) -> str:
    """Remedy of the usual mistake that, undone, brings the points of all frames back to their pixels; empty if none.

    ``medians`` are the frames' distances from them, in pixels.
    """
    known = Truth(times=times, cameras=cameras, surface=None, depth=None, dynamic=None)
    reading = reading_of(clip, known, streams)
    undone = {mistake.remedy: mistake.undo(reading) for mistake in of_cameras(reading)}
    readings = {remedy: (read.cameras, read.camera_at) for remedy, read in undone.items()}
    readings |= {remedy: (k, reading.camera_at) for remedy, k in _half_pixels(cameras).items()}
    for remedy, (corrected, camera_at) in readings.items():
        rated = [frame for frame in range(len(times)) if int(camera_at[frame]) >= 0]
        if not rated:
            continue
        places = np.unique(np.linspace(0, len(rated) - 1, CAUSES).astype(int)).tolist()
        chosen = [max(rated, key=lambda frame: medians[frame]), *(rated[place] for place in places)]
        found = (_frame_errors(surface, times, corrected, frame, int(camera_at[frame])) for frame in chosen)
        if all(median <= CENTRE_LIMIT_PX and behind == 0 for median, _, behind in found):
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


def _cause_of_outliers(
    surface: Surface, cameras: Cameras, times: Float[Tensor, "f"], streams: Sequence[int], worst: int
) -> str:
    """Shift of the frames' times against the surface that, undone, brings what moves back to its pixels."""
    for shift in SHIFTS:
        source = worst + shift
        if not 0 <= source < len(streams) or streams[source] != streams[worst]:
            continue
        moved = times.clone()
        moved[worst] = times[source]
        if _frame_errors(surface, moved, cameras, worst, worst)[1] <= OUTLIER_LIMIT_PX:
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
