"""Keypoints of creatures: their places, their pixels in each frame, and whether they are seen there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic.cameras import CameraPath
from data_prep.synthetic.cast import Cast, Troupe
from data_prep.synthetic.render import Lens, Moment, ray_directions
from four_d.data.contract import KeypointArrays, KeypointInfo

Array = NDArray[np.float64]
NEAREST_M = 0.05
"""Depth below which a point has no pixel."""
SLACK_M = 0.003
"""Tolerance in depth of a point that lies on a surface, which triangles approximate."""


@dataclass(frozen=True, kw_only=True)
class Points:
    """All keypoints of a world. n points, t times."""

    info: KeypointInfo
    where: NDArray[np.float32]
    """t n 3, as shards store them."""
    reach: Array
    """n: `Keypoint.reach`"""
    limbs: NDArray[np.bool_]
    """n b: true for the bodies whose surface shows the point."""


def keypoints_of(cast: Cast) -> Points:
    """Positions of all keypoints of a cast, creature by creature."""
    troupe, motion = cast.troupe, cast.motion
    bodies = motion.positions.shape[1]
    where: list[Array] = []
    reach: list[float] = []
    limbs: list[NDArray[np.bool_]] = []
    first = troupe.first
    for creature in troupe.creatures:
        for point in creature.keypoints:
            body, local = first + point.limb, point.place - creature.limbs[point.limb].centre
            where.append(motion.positions[:, body] + np.einsum("tij,j->ti", motion.rotations[:, body], local))
            reach.append(point.reach)
            own = np.zeros(bodies, bool)
            own[[first + limb for limb in point.limbs]] = True
            limbs.append(own)
        first += len(creature.limbs)
    return Points(
        info=_info(troupe),
        where=np.stack(where, 1).astype(np.float32),
        reach=np.array(reach),
        limbs=np.stack(limbs),
    )


def _info(troupe: Troupe) -> KeypointInfo:
    names: list[str] = []
    instances: list[int] = []
    edges: list[tuple[int, int]] = []
    rigid: list[bool] = []
    for creature, instance in zip(troupe.creatures, troupe.instances):
        edges += [(a + len(names), b + len(names)) for a, b in creature.bones]
        ends = [(creature.keypoints[a], creature.keypoints[b]) for a, b in creature.bones]
        rigid += [not set(one.limbs).isdisjoint(other.limbs) for one, other in ends]
        names += [point.name for point in creature.keypoints]
        instances += [instance] * len(creature.keypoints)
    return KeypointInfo(names=names, instances=instances, edges=edges, rigid=rigid)


class Recorder:
    """Collector of the keypoints of c cameras' frames, while these are rendered."""

    def __init__(self, points: Points, cameras: int, size: tuple[int, int]) -> None:
        """``size``: width and height of a frame."""
        self._points, self._size = points, size
        shape = (cameras, *points.where.shape[:2])
        self._pixels = np.zeros((*shape, 2), np.float32)
        self._ahead, self._seen = np.zeros(shape, bool), np.zeros(shape, bool)

    @property
    def info(self) -> KeypointInfo:
        """Names and bones."""
        return self._points.info

    def record(self, moment: Moment, path: CameraPath, camera: int, time: int) -> None:
        """Look for the points in one frame."""
        at = (camera, time)
        self._pixels[at], self._ahead[at], self._seen[at] = sight(self._points, moment, path, time, self._size)

    def arrays(self) -> KeypointArrays:
        """Keypoints of all frames, ordered by camera, then time."""
        points = np.tile(self._points.where, (len(self._pixels), 1, 1))
        return KeypointArrays(
            points=points,
            valid=np.ones(points.shape[:2], bool),
            pixels=self._pixels.reshape(-1, *self._pixels.shape[2:]),
            pixels_valid=self._ahead.reshape(points.shape[:2]),
            visible=self._seen.reshape(points.shape[:2]),
        )


def sight(
    points: Points, moment: Moment, path: CameraPath, time: int, size: tuple[int, int]
) -> tuple[Array, NDArray[np.bool_], NDArray[np.bool_]]:
    """Pixels (n 2) of the points in a frame of ``size`` (width, height), whether they are known, and seen (n each).

    A point inside a limb is seen if the first surface along its ray is one of its own limbs' and no farther from it
    than its reach: the limb's skin, not the far side of a trunk.
    """
    pose, intrinsics = path.world_from_camera[time], path.intrinsics
    offset = points.where[time].astype(np.float64) - pose[:3, 3]
    camera = np.einsum("ji,nj->ni", pose[:3, :3], offset)
    depth = camera[:, 2]
    ahead = depth > NEAREST_M
    focal = np.array([intrinsics[0, 0], intrinsics[1, 1]])
    flat = camera[:, :2] / np.where(ahead, depth, 1.0)[:, None] * focal + intrinsics[:2, 2]
    pixels = np.where(ahead[:, None], flat, 0.0)
    inside = ahead & (pixels >= 0).all(-1) & (pixels < size).all(-1)
    hits = Lens(moment, pose[:3, 3]).hits(ray_directions(pose, intrinsics, pixels))
    before = (hits.depth - depth) / np.where(ahead, depth, 1.0) * np.linalg.norm(offset, axis=-1)
    body = np.where(hits.faces >= 0, moment.stage.face_body[hits.faces], -1)
    own = (body >= 0) & points.limbs[np.arange(len(body)), body] & (np.abs(before) <= points.reach)
    return pixels, ahead, inside & ((hits.faces < 0) | (before > -SLACK_M) | own)
