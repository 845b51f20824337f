"""Time reversed: a stored clip as it would be if it had been filmed backwards."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from four_d.data.contract import KeypointArrays, RawClip, TrackArrays

FRAMES = ("images", "world_from_camera", "intrinsics", "depth", "dynamic")
"""Arrays of a clip whose first axis is frames."""


def reverse(clip: RawClip, count: int) -> RawClip:
    """Reverse the times of a clip, and the order of its first ``count`` frames, which are an example's.

    The others, references and held-out views, keep their place and get the times that they have in the reversed clip.
    The last of the example's times becomes its first. What falls rises then; cameras, surfaces and paths are exact.
    """
    info, frames = clip.info, len(clip.info.times)
    order = np.concatenate([np.arange(count)[::-1], np.arange(count, frames)])
    turn = min(info.times[:count]) + max(info.times[:count])

    def later(times: list[float] | None) -> list[float] | None:
        """Times of a list in ascending order, which stays ascending."""
        return None if times is None else [turn - time for time in reversed(times)]

    changed = dataclasses.replace(
        info,
        times=[turn - info.times[frame] for frame in order],
        camera_ids=[info.camera_ids[frame] for frame in order],
        surface_times=later(info.surface_times),
        track_times=later(info.track_times),
    )
    surface, tracks = clip.surface, clip.tracks
    if surface is not None:
        vertices = surface.vertices.copy()
        vertices[surface.moving] = surface.moving_vertices[-1]
        surface = dataclasses.replace(
            surface,
            faces=surface.faces[order],
            barycentric=surface.barycentric[order],
            vertices=vertices,
            moving_vertices=surface.moving_vertices[::-1].copy(),
        )
    if tracks is not None:
        tracks = TrackArrays(**{name: value[:, ::-1].copy() for name, value in _arrays(tracks).items()})
    keypoints = clip.keypoints
    if keypoints is not None:
        keypoints = KeypointArrays(**{name: value[order] for name, value in _arrays(keypoints).items()})
    arrays = {name: getattr(clip, name) for name in FRAMES}
    moved = {name: value[order] for name, value in arrays.items() if value is not None}
    crop = None if clip.crop is None else clip.crop.reordered(order)
    return dataclasses.replace(
        clip, info=changed, surface=surface, tracks=tracks, keypoints=keypoints, crop=crop, **moved
    )


def _arrays(value: TrackArrays | KeypointArrays) -> dict[str, NDArray[Any]]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
