"""What the tests compute of a clip, in NumPy and on their own: an independent reading of the layout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from four_d.data.contract import RawClip

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Looks:
    """Per frame f and pixel."""

    seen: NDArray[np.bool_]
    points: Array
    """f h w 3 at the frame's time"""
    depth: Array
    pixels: Array
    """f h w 2: where the points project to"""
    dynamic: NDArray[np.bool_]


def vertices_at(clip: RawClip) -> Array:
    """t v 3"""
    surface = clip.surface
    assert surface is not None
    vertices = np.repeat(surface.vertices[None].astype(np.float64), len(surface.moving_vertices), 0)
    vertices[:, surface.moving] = surface.moving_vertices
    return vertices


def time_index(clip: RawClip) -> NDArray[np.int64]:
    return np.array([clip.info.surface_times.index(t) for t in clip.info.times])  # pyright: ignore


def place(clip: RawClip, frame: int, time: int, vertices: Array) -> Array:
    """h w 3: where what ``frame`` saw is at surface time ``time``."""
    surface = clip.surface
    assert surface is not None
    second, third = surface.barycentric[frame].astype(np.float64) / 65535
    corners = vertices[time][surface.triangles[surface.faces[frame]]]
    weights = np.stack([1 - second - third, second, third], -1)
    return np.einsum("hwk,hwki->hwi", weights, corners)


def project(clip: RawClip, frame: int, points: Array) -> tuple[Array, Array]:
    """Pixels (… 2) and z-depth (…) in a frame."""
    assert clip.world_from_camera is not None
    assert clip.intrinsics is not None
    pose = clip.world_from_camera[frame]
    camera = (points - pose[:3, 3]) @ pose[:3, :3]
    image = camera @ clip.intrinsics[frame].T
    return image[..., :2] / image[..., 2:], camera[..., 2]


def look(clip: RawClip) -> Looks:
    assert clip.surface is not None
    assert clip.info.surface_times is not None
    vertices, when, times = vertices_at(clip), time_index(clip), np.array(clip.info.surface_times)
    points, depth, pixels, dynamic = [], [], [], []
    seen = clip.surface.faces >= 0
    for frame, now in enumerate(when):
        near = now + 1 if now + 1 < len(times) else now - 1
        here = place(clip, frame, now, vertices)
        speed = np.linalg.norm(place(clip, frame, near, vertices) - here, axis=-1) / abs(times[near] - times[now])
        at, z = project(clip, frame, here)
        points.append(here)
        depth.append(z)
        pixels.append(at)
        dynamic.append((speed > 0.05) & seen[frame])
    return Looks(
        seen=seen, points=np.stack(points), depth=np.stack(depth), pixels=np.stack(pixels), dynamic=np.stack(dynamic)
    )


def hidden_share(clip: RawClip, looks: Looks) -> float:
    """Of the points that a camera sees first and that are in its last picture's bounds, the share hidden there."""
    frames, vertices = len(vertices_at(clip)), vertices_at(clip)
    height, width = looks.depth.shape[1:]
    hidden = inside_all = 0
    for first in range(0, len(clip.images), frames):
        last = first + frames - 1
        at, z = project(clip, last, place(clip, first, frames - 1, vertices))
        inside = looks.seen[first] & (z > 0.1) & (at > 0).all(-1) & (at[..., 0] < width) & (at[..., 1] < height)
        column, row = np.floor(at[inside]).astype(int).T
        window = [
            np.where(looks.seen[last], looks.depth[last], np.inf)[
                np.clip(row + dy, 0, height - 1), np.clip(column + dx, 0, width - 1)
            ]
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
        ]
        hidden += int((z[inside] > np.max(window, 0) * 1.05).sum())  # behind all that is seen about there
        inside_all += int(inside.sum())
    return hidden / max(inside_all, 1)


def camera_turn(clip: RawClip) -> list[float]:
    """Of each camera, the greatest angle (degrees) between its first frame's axes and a later one's."""
    assert clip.world_from_camera is not None
    frames = len(clip.info.surface_times or [])
    rotation = clip.world_from_camera[:, :3, :3].reshape(-1, frames, 3, 3)
    trace = np.einsum("ctij,cij->ct", rotation, rotation[:, 0])
    return np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1))).max(1).tolist()


def winding(points: Array, vertices: Array, triangles: NDArray[np.int32]) -> Array:
    """How often a closed mesh encloses each point (n): the solid angle over 4π (Van Oosterom and Strackee 1983)."""
    corners = vertices[triangles][None] - points[:, None, None]
    length = np.linalg.norm(corners, axis=-1)
    a, b, c = corners[..., 0, :], corners[..., 1, :], corners[..., 2, :]
    top = np.einsum("nmi,nmi->nm", a, np.cross(b, c))
    bottom = length.prod(-1) + sum(
        np.einsum("nmi,nmi->nm", corners[..., i, :], corners[..., j, :]) * length[..., 3 - i - j]
        for i, j in ((0, 1), (0, 2), (1, 2))
    )
    return 2 * np.arctan2(top, bottom).sum(-1) / (4 * np.pi)
