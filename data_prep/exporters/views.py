"""Content of a clip as layouts of one folder per view want it: rows of each camera, depth, tracks in each view."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from four_d import geometry
from four_d import surface as surfaces
from four_d.data.contract import RawClip
from four_d.data.truth import truth
from four_d.types import SAME_TIME, Cameras

TOLERANCE = 0.02
"""Share of its depth by which a track may lie behind stored depth and is still seen, where the source states none."""


class Unfit(Exception):  # noqa: N818  # nothing went wrong
    """Clip that a layout cannot hold; the message gives the reason."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Choices of an export."""

    tracks: int = 4096
    """Tracks of a clip with a surface, in layouts that have tracks: of pixels evenly chosen over all its frames."""


@dataclass(frozen=True, kw_only=True)
class ViewTracks:
    """Tracks of n points at t moments in v views."""

    points: NDArray[np.float64]
    """t n 3, world."""
    pixels: NDArray[np.float64]
    """v t n 2: (x, y), corner origin, inside the image or not."""
    visible: NDArray[np.bool_]
    """v t n"""
    instances: NDArray[np.int32]
    """n: instance of the clip; 0 where unknown."""
    dropped: int
    """Tracks left out because their position is unknown at some moment."""


def rows_by_camera(clip: RawClip) -> dict[int, list[int]]:
    """Frames of each camera, in order of time."""
    ids = clip.info.camera_ids
    return {camera: [frame for frame, of in enumerate(ids) if of == camera] for camera in sorted(set(ids))}


def moments(clip: RawClip) -> list[float]:
    """Times that all cameras share. Raises `Unfit` if they see different ones."""
    times = [[clip.info.times[frame] for frame in rows] for rows in rows_by_camera(clip).values()]
    first = times[0]
    for other in times[1:]:
        if len(other) != len(first) or np.abs(np.subtract(other, first)).max() > SAME_TIME:
            raise Unfit("its cameras see different moments")
    return first


def require_cameras(clip: RawClip) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Poses f 4 4 and intrinsics f 3 3. Raises `Unfit` without."""
    if clip.world_from_camera is None or clip.intrinsics is None:
        raise Unfit("it has no camera poses")
    return clip.world_from_camera, clip.intrinsics


def require_depth(clip: RawClip) -> NDArray[np.float32]:
    """z-depth f h w, 0 where invalid. Raises `Unfit` without."""
    depth = truth(clip).depth
    if depth is None:
        raise Unfit("it has no depth")
    return depth.numpy().astype(np.float32)


def view_tracks(clip: RawClip, depth: NDArray[np.float32], most: int) -> ViewTracks:
    """Tracks of a clip whose cameras share their moments: of its surface, or those that it stores.

    Of the surface visibility is exact (`surface.visible`). Stored tracks of one camera have their own; of several
    cameras those see a point that is inside the image, visible to some camera, and not behind the depth there. Raises
    `Unfit` if there are none.
    """
    rows = list(rows_by_camera(clip).values())
    cameras = _cameras(clip)
    if clip.surface is not None:
        points, visible, instances = _of_surface(clip, cameras, rows, most)
        dropped = 0
    elif clip.tracks is not None and clip.info.track_times is not None:
        at = _nearest(clip.info.track_times, moments(clip))
        known = clip.tracks.valid[:, at].all(-1)
        points = clip.tracks.points[known][:, at].astype(np.float64).transpose(1, 0, 2)
        seen = clip.tracks.visible[known][:, at].T
        visible = seen[None] if len(rows) == 1 else np.stack([seen & near for near in _near(clip, points, depth, rows)])
        instances, dropped = np.zeros(points.shape[1], np.int32), int((~known).sum())
    else:
        raise Unfit("it has neither tracks nor a surface")
    if not points.shape[1]:
        raise Unfit("none of its tracks is known at every moment")
    pixels = np.stack([pixels for pixels, _ in _projected(cameras, points, rows)])
    return ViewTracks(points=points, pixels=pixels, visible=visible, instances=instances, dropped=dropped)


def _cameras(clip: RawClip) -> Cameras:
    poses, intrinsics = require_cameras(clip)
    return Cameras(world_from_camera=torch.from_numpy(poses), intrinsics=torch.from_numpy(intrinsics))


def _of_surface(
    clip: RawClip, cameras: Cameras, rows: list[list[int]], most: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int32]]:
    """Points t n 3, visibility v t n and instances n of pixels evenly chosen over all frames."""
    assert clip.surface is not None
    surface, hit = surfaces.decode(clip.surface, clip.info), np.argwhere(clip.surface.faces >= 0)
    if not len(hit):
        raise Unfit("its surface is seen nowhere")
    chosen = hit[np.unique(np.linspace(0, len(hit) - 1, min(most, len(hit))).round().astype(int))]
    frame, y, x = (torch.from_numpy(column) for column in chosen.T)
    times = torch.tensor(clip.info.times, dtype=torch.float64).float()
    single = Cameras(world_from_camera=cameras.world_from_camera.float(), intrinsics=cameras.intrinsics.float())
    found = surfaces.tracks(surface, single, times, frame, torch.stack([x, y], dim=-1) + 0.5)
    points = found.points[:, rows[0]].double().numpy().transpose(1, 0, 2)
    visible = np.stack([found.visible[:, row].numpy().T for row in rows])
    instances = clip.surface.instances[clip.surface.faces[tuple(chosen.T)]]
    return points, visible, instances.astype(np.int32)


def _projected(
    cameras: Cameras, points: NDArray[np.float64], rows: list[list[int]]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Pixels t n 2 and depths t n of points t n 3 in each view."""
    for row in rows:
        part = Cameras(
            world_from_camera=cameras.world_from_camera[row].double(), intrinsics=cameras.intrinsics[row].double()
        )
        pixels, z = geometry.project(torch.from_numpy(points), part)
        yield pixels.numpy(), z.numpy()


def _near(
    clip: RawClip, points: NDArray[np.float64], depth: NDArray[np.float32], rows: list[list[int]]
) -> Iterator[NDArray[np.bool_]]:
    """Points (t n) inside each view and not behind its depth; where depth is unknown, nothing hides them."""
    limit = 1 + max(clip.info.depth_tolerance or 0.0, TOLERANCE)
    height, width = depth.shape[1:]
    for row, (pixels, z) in zip(rows, _projected(_cameras(clip), points, rows), strict=True):
        inside = (z > 0) & (pixels >= 0).all(-1) & (pixels < [width, height]).all(-1)
        column, line = (np.where(inside, pixels[..., axis], 0).astype(int) for axis in (0, 1))
        there = depth[np.array(row)[:, None], line, column]
        yield inside & ((there == 0) | (z <= there * limit))


def _nearest(axis: list[float], times: list[float]) -> list[int]:
    """Index in ``axis`` of each time, which the contract says is there."""
    return [int(np.abs(np.subtract(axis, time)).argmin()) for time in times]
