"""Dense ground truth derived from correspondence: each pixel's mesh face, and the mesh at every time.

Every function takes an unbatched `types.Surface` whose frames are those of the given ``times`` and ``cameras``; frames
are located on the surface's own time axis by their time. Lengths are in the surface's units, positions in its world.
Where a pixel hit nothing (`valid`) the value is 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from four_d.constants import move, on_host
from four_d.geometry import project, rays, transform
from four_d.types import Cameras, Surface, Tracks, same_time

LEAST_MOTION = 0.01
"""Motion, in the clip's unit, above which a point counts as moving."""
DYNAMIC_SPEED = 0.05
"""Source units (m where metric) per second above which a surface point counts as moving."""

DEPTH_TOLERANCE = 0.005
"""Fraction of its depth by which a point must lie behind its pixel's surface to count as hidden."""

BARYCENTRIC_ONE = 65535
"""Stored value of the weight 1."""

Points = Float[Tensor, "f h w 3"]
Mask = Bool[Tensor, "f h w"]


@runtime_checkable
class StoredSurface(Protocol):
    """Stored arrays of a surface in a shard (`data.contract.SurfaceArrays`)."""

    @property
    def faces(self) -> NDArray[np.int32]:
        """F h w; -1 where nothing was hit."""
        ...

    @property
    def barycentric(self) -> NDArray[np.uint16]:
        """F 2 h w; 65535 = 1."""
        ...

    @property
    def triangles(self) -> NDArray[np.int32]:
        """M 3"""
        ...

    @property
    def instances(self) -> NDArray[np.int32]:
        """M"""
        ...

    @property
    def vertices(self) -> NDArray[np.float32]:
        """V 3, at the first time."""
        ...

    @property
    def moving(self) -> NDArray[np.int32]:
        """k: vertices that ever move."""
        ...

    @property
    def moving_vertices(self) -> NDArray[np.float32]:
        """T k 3"""
        ...


@runtime_checkable
class StoredTimes(Protocol):
    """Stored times of a surface in a shard (`data.contract.ClipInfo`)."""

    @property
    def surface_times(self) -> Sequence[float] | None:
        """Seconds, ascending."""
        ...


def decode(arrays: StoredSurface, info: StoredTimes) -> Surface:
    """Decode a stored surface to tensors. ValueError if it has no times."""
    if not info.surface_times:
        raise ValueError("the clip has a surface but no surface_times")
    vertices = torch.from_numpy(np.array(arrays.vertices)).expand(len(info.surface_times), -1, 3)
    if len(arrays.moving):
        vertices = vertices.clone()
        moving = torch.from_numpy(arrays.moving.astype(np.int64))
        vertices[:, moving] = torch.from_numpy(np.array(arrays.moving_vertices))
    barycentric = arrays.barycentric.astype(np.float32) * np.float32(1 / BARYCENTRIC_ONE)
    return Surface(
        faces=torch.from_numpy(np.array(arrays.faces)),
        barycentric=torch.from_numpy(barycentric),
        triangles=torch.from_numpy(np.array(arrays.triangles)),
        instances=torch.from_numpy(np.array(arrays.instances)),
        vertices=vertices,
        times=torch.tensor(info.surface_times, dtype=torch.float64).float(),
    )


def valid(surface: Surface) -> Mask:
    """Mask of pixels that hit something."""
    return surface.faces >= 0


def instances(surface: Surface) -> Int[Tensor, "f h w"]:
    """Object at each pixel; 0 is the static surroundings, -1 nothing."""
    ids = surface.instances.index_select(0, surface.faces.clamp_min(0).flatten())
    return ids.view(surface.faces.shape).masked_fill(surface.faces < 0, -1)


def time_indices(surface: Surface, times: Float[Tensor, "*q"]) -> Int[Tensor, "*q"]:
    """Index of each time on the surface's axis. ValueError if a time is not on it."""
    axis, asked = on_host(surface.times), on_host(times)
    right = torch.searchsorted(axis, asked.contiguous()).clamp_max(len(axis) - 1)
    left = (right - 1).clamp_min(0)
    nearest = torch.where((asked - axis[left]).abs() < (asked - axis[right]).abs(), left, right)
    if not bool(same_time(axis[nearest], asked).all()):
        wrong = asked[(axis[nearest] - asked).abs().argmax()] if asked.ndim else asked
        raise ValueError(f"time {float(wrong):.6f} s is not on the surface's axis of {len(axis)} times")
    return move(nearest, times.device)


def points(surface: Surface, times: Float[Tensor, "f"]) -> Points:
    """World positions at ``times[i]`` of the points that frame i saw; with the frames' own times, as seen."""
    return _points(surface, time_indices(surface, times))


def _corners(surface: Surface, frame: int, time: int) -> Float[Tensor, "p 3 3"]:
    """Positions of the three vertices of each pixel's face; those of face 0 where nothing was hit."""
    faces = surface.faces[frame].flatten().clamp_min(0)
    ids = surface.triangles.index_select(0, faces).flatten()
    return surface.vertices[time].index_select(0, ids).view(-1, 3, 3)


def _points(surface: Surface, at: Int[Tensor, "f"]) -> Points:
    f, h, w = surface.faces.shape
    b = surface.barycentric.view(f, 2, -1, 1)
    positions: list[Tensor] = []
    for frame, time in enumerate(at.tolist()):
        corners = _corners(surface, frame, time)
        origin = corners[:, 0]
        positions.append(
            torch.addcmul(
                torch.addcmul(origin, b[frame, 0], corners[:, 1] - origin), b[frame, 1], corners[:, 2] - origin
            )
        )
    return torch.stack(positions).view(f, h, w, 3).masked_fill_((surface.faces < 0)[..., None], 0.0)


def depth(surface: Surface, cameras: Cameras, times: Float[Tensor, "f"]) -> Float[Tensor, "f h w"]:
    """z-depth of each frame's points. ``times`` and ``cameras`` are the frames' own."""
    return depth_of(points(surface, times), cameras, valid(surface))


def depth_of(points_world: Points, cameras: Cameras, mask: Mask) -> Float[Tensor, "f h w"]:
    """z-depth of one world point per pixel; 0 outside ``mask``."""
    forward, centre = cameras.world_from_camera[:, :3, 2], cameras.world_from_camera[:, :3, 3]
    z = (points_world * forward[:, None, None]).sum(-1) - (forward * centre).sum(-1)[:, None, None]
    return z.masked_fill(~mask, 0.0)


def normals(surface: Surface, cameras: Cameras, times: Float[Tensor, "f"]) -> Points:
    """Unit normals of each pixel's face (flat, not interpolated), in the world, towards its camera."""
    shape = surface.faces.shape
    at = time_indices(surface, times)
    positions = _points(surface, at)
    result = torch.zeros_like(positions)
    for frame, time in enumerate(at.tolist()):
        corners = _corners(surface, frame, time)
        normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        normal = torch.nn.functional.normalize(normal, dim=-1, eps=1e-20)
        view = positions[frame].flatten(0, 1) - cameras.world_from_camera[frame, :3, 3]
        flip = (normal * view).sum(-1, keepdim=True) > 0
        result[frame] = torch.where(flip, -normal, normal).view(*shape[1:], 3)
    return result.masked_fill((surface.faces < 0)[..., None], 0.0)


def dynamic(surface: Surface, times: Float[Tensor, "f"], speed: float = DYNAMIC_SPEED) -> Mask:
    """Mask of pixels whose surface moves faster than ``speed`` between the frame's time and a neighbouring one.

    The first and the last time have one neighbour; with a single time nothing moves.
    """
    return depth_and_dynamic(surface, None, times, speed)[1]


def depth_and_dynamic(
    surface: Surface, cameras: Cameras | None, times: Float[Tensor, "f"], speed: float = DYNAMIC_SPEED
) -> tuple[Float[Tensor, "f h w"] | None, Mask]:
    """Compute `depth` (None without cameras) and `dynamic` at little more than the cost of one."""
    at = time_indices(surface, times)
    positions = _points(surface, at)
    moves = torch.zeros_like(surface.faces, dtype=torch.bool)
    moving = _moving_faces(surface)
    if moving is not None:
        candidates = moving.index_select(0, surface.faces.clamp_min(0).flatten()).view(surface.faces.shape)
        for neighbour in ((at - 1).clamp_min(0), (at + 1).clamp_max(len(surface.times) - 1)):
            seconds = (surface.times[neighbour] - surface.times[at]).abs()
            moves |= _moved(surface, positions, neighbour, seconds * speed, candidates & (seconds > 0)[:, None, None])
    z = None if cameras is None else depth_of(positions, cameras, surface.faces >= 0)
    return z, moves & (surface.faces >= 0)


def _moving_faces(surface: Surface) -> Bool[Tensor, "m"] | None:
    """Mask of faces with a vertex that ever moves; None if there is none."""
    # a stride of 0 is one set of vertices, expanded over the times: nothing moves
    if surface.vertices.stride(0) == 0 or len(surface.times) < 2:
        return None
    moved = (surface.vertices[1:] != surface.vertices[:1]).any(0).any(-1)
    return moved[surface.triangles.long()].any(-1)


def _moved(
    surface: Surface, positions: Points, neighbour: Int[Tensor, "f"], distance: Float[Tensor, "f"], candidates: Mask
) -> Mask:
    frame, y, x = candidates.nonzero(as_tuple=True)
    ids = surface.triangles.index_select(0, surface.faces[frame, y, x]).long()
    at_neighbour = _interpolate(surface.vertices[neighbour[frame, None], ids], surface.barycentric[frame, :, y, x])
    result = torch.zeros_like(candidates)
    result[frame, y, x] = (at_neighbour - positions[frame, y, x]).norm(dim=-1) > distance[frame]
    return result


def _interpolate(corners: Float[Tensor, "*p 3 3"], b: Float[Tensor, "*p 2"]) -> Float[Tensor, "*p 3"]:
    first = corners[..., 0, :]
    return first + b[..., :1] * (corners[..., 1, :] - first) + b[..., 1:] * (corners[..., 2, :] - first)


def scene_flow(surface: Surface, times: Float[Tensor, "f"], to_times: Float[Tensor, "f"]) -> Points:
    """World displacement of frame i's points from ``times[i]`` (its own) to ``to_times[i]`` (any)."""
    return points(surface, to_times) - points(surface, times)


def tracks(
    surface: Surface,
    cameras: Cameras,
    times: Float[Tensor, "f"],
    frame: Int[Tensor, "n"],
    pixels: Float[Tensor, "n 2"],
) -> Tracks:
    """Track the points at pixels (x, y) of frame ``frame`` through all frames: one entry of the time axis per frame.

    A pixel means its centre. `Tracks.valid` is False where it hit nothing. `Tracks.visible` is exact up to the face
    map: see `visible`.
    """
    x, y = pixels.floor().long().unbind(-1)
    face = surface.faces[frame, y, x]
    ids = surface.triangles[face.clamp_min(0).long()].long()
    at = time_indices(surface, times)
    corners = surface.vertices[at[:, None, None], ids]
    positions = _interpolate(corners, surface.barycentric[frame, :, y, x].expand(len(at), -1, -1))
    hit = (face >= 0)[:, None].expand(-1, len(at))
    visibility = visible(surface, cameras, times, positions, face)
    return Tracks(
        points=positions.transpose(0, 1).masked_fill(~hit[..., None], 0.0),
        visible=visibility.T & hit,
        valid=hit,
        times=times,
    )


def visible(
    surface: Surface,
    cameras: Cameras,
    times: Float[Tensor, "f"],
    points_world: Float[Tensor, "f n 3"],
    faces: Int[Tensor, "n"] | None = None,
) -> Bool[Tensor, "f n"]:
    """Visibility of surface point n in frame i; ``faces`` names the point's face, which settles ties.

    The point is projected. Outside the image or behind the camera it is not visible. Where its pixel shows its own
    face, or nothing, it is. Else the plane of the pixel's face is intersected with the ray through the point: it is
    visible unless it lies deeper than that plane, and deeper than the surface at the pixel's centre, by more than
    `DEPTH_TOLERANCE` of its depth. So within a pixel of an occluder's edge the answer is that of the pixel's centre,
    and a point on a surface within the tolerance counts as visible.
    """
    f, h, w = surface.faces.shape
    pixels, z = project(points_world, cameras)
    inside = (z > 1e-6) & (pixels >= 0).all(-1) & (pixels[..., 0] < w) & (pixels[..., 1] < h)
    x, y = pixels[..., 0].clamp(0, w - 1).long(), pixels[..., 1].clamp(0, h - 1).long()
    frame = torch.arange(f, device=x.device)[:, None]
    shown_face = surface.faces[frame, y, x]
    surface_depth = _shown_depth(surface, cameras, times, shown_face, pixels, surface.barycentric[frame, :, y, x])
    unoccluded = shown_face < 0 if faces is None else (shown_face < 0) | (shown_face == faces)
    return inside & (unoccluded | (z <= surface_depth * (1 + DEPTH_TOLERANCE)))


def _shown_depth(
    surface: Surface,
    cameras: Cameras,
    times: Float[Tensor, "f"],
    faces_there: Int[Tensor, "f n"],
    pixels: Float[Tensor, "f n 2"],
    b: Float[Tensor, "f n 2"],
) -> Float[Tensor, "f n"]:
    """Larger depth of the shown face's plane along the exact ray and of the face at the pixel's centre."""
    at = time_indices(surface, times)
    corners = surface.vertices[at[:, None, None], surface.triangles[faces_there.clamp_min(0).long()].long()]
    first = corners[..., 0, :]
    normal = torch.linalg.cross(corners[..., 1, :] - first, corners[..., 2, :] - first)
    rotation, centre = cameras.world_from_camera[:, :3, :3], cameras.world_from_camera[:, None, :3, 3]
    directions = rays(cameras.intrinsics, pixels) @ rotation.mT
    slope = (normal * directions).sum(-1)
    plane = (normal * (first - centre)).sum(-1) / torch.where(slope.abs() < 1e-12, torch.ones_like(slope), slope)
    at_centre = ((_interpolate(corners, b) - centre) * rotation[:, None, :, 2]).sum(-1)
    # a plane seen edge-on is unreliable half a pixel away: limit its depth to twice the centre's
    return torch.maximum(at_centre, plane.minimum(2 * at_centre))


def transform_surface(surface: Surface, a_from_world: Float[Tensor, "4 4"], scale: float = 1.0) -> Surface:
    """Express a surface in a's coordinates, with lengths divided by ``scale`` after the move."""
    return dataclasses.replace(surface, vertices=transform(a_from_world, surface.vertices) / scale)
