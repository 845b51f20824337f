"""Usual mistakes, made on purpose in a sound clip; each with words of the remedy that names it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from four_d.data.contract import RawClip

FLIP = np.diag([1.0, -1, -1, 1])


def posed(clip: RawClip, change: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> RawClip:
    assert clip.world_from_camera is not None
    return dataclasses.replace(clip, world_from_camera=np.ascontiguousarray(change(clip.world_from_camera.copy())))


def lens(clip: RawClip, change: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> RawClip:
    """Change the intrinsics as rows of fx, fy, cx, cy."""
    assert clip.intrinsics is not None
    made = clip.intrinsics.copy()
    rows = np.stack([made[:, 0, 0], made[:, 1, 1], made[:, 0, 2], made[:, 1, 2]], axis=1)
    made[:, 0, 0], made[:, 1, 1], made[:, 0, 2], made[:, 1, 2] = change(rows).T
    return dataclasses.replace(clip, intrinsics=made)


def deep(clip: RawClip, factor: float | NDArray[np.floating], unit: float = 1.0) -> RawClip:
    """Change the depth; ``unit`` is the factor of the stored unit."""
    assert clip.depth is not None
    assert clip.info.depth_unit is not None
    info = dataclasses.replace(clip.info, depth_unit=clip.info.depth_unit * unit)
    return dataclasses.replace(clip, info=info, depth=(clip.depth * factor).astype(np.float32))


def translated(clip: RawClip, factor: float) -> RawClip:
    scale = np.ones((4, 4))
    scale[:3, 3] = factor
    return posed(clip, lambda pose: pose * scale)


def along_rays(clip: RawClip) -> NDArray[np.floating]:
    """Length of each pixel's ray of z-depth 1."""
    assert clip.intrinsics is not None
    k = clip.intrinsics[:, :, :, None, None]
    y, x = np.mgrid[: clip.info.height, : clip.info.width] + 0.5
    return np.sqrt(((x - k[:, 0, 2]) / k[:, 0, 0]) ** 2 + ((y - k[:, 1, 2]) / k[:, 1, 1]) ** 2 + 1)


def late(clip: RawClip, stream: str, frames: int) -> RawClip:
    """Let one stream (images, cameras, depth) come some frames later than the others; what has no partner is cut."""
    ids = np.array(clip.info.camera_ids)
    own, other = [], []
    for camera in dict.fromkeys(ids.tolist()):
        rows = np.flatnonzero(ids == camera)
        count = len(rows) - abs(frames)
        own += rows[max(-frames, 0) :][:count].tolist()
        other += rows[max(frames, 0) :][:count].tolist()
    info = dataclasses.replace(
        clip.info,
        times=[clip.info.times[i] for i in other],
        camera_ids=[clip.info.camera_ids[i] for i in other],
    )

    def of(name: str, value: NDArray[np.generic] | None) -> NDArray[np.generic] | None:
        return None if value is None else np.ascontiguousarray(value[own if name == stream else other])

    return dataclasses.replace(
        clip,
        info=info,
        images=of("images", clip.images),
        world_from_camera=of("cameras", clip.world_from_camera),
        intrinsics=of("cameras", clip.intrinsics),
        depth=of("depth", clip.depth),
        dynamic=of("depth", clip.dynamic),
    )  # pyright: ignore[reportArgumentType]


def shifted_depth(clip: RawClip, x: int, y: int) -> RawClip:
    """Move the depth maps right and down by whole pixels; nothing is known where none comes from."""
    assert clip.depth is not None
    made = np.zeros_like(clip.depth)
    height, width = clip.depth.shape[1:]
    made[:, max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)] = clip.depth[
        :, max(-y, 0) : height - max(y, 0), max(-x, 0) : width - max(x, 0)
    ]
    return dataclasses.replace(clip, depth=made)


def with_sentinel(clip: RawClip, value: float, share: float = 0.03) -> RawClip:
    """Store a number where depth is unknown, or in a corner of each frame where it is known everywhere."""
    assert clip.depth is not None
    made = clip.depth.copy()
    if (made == 0).mean() > 0.005:
        made[made == 0] = value
    else:
        side = [round(n * share**0.5) for n in made.shape[1:]]
        made[:, : side[0], : side[1]] = value
    return dataclasses.replace(clip, depth=made)


def turned(clip: RawClip, quarters: int, *, images_only: bool = False) -> RawClip:
    """Turn all pictures clockwise by quarters, or the images alone, which are square or turned by two quarters."""

    def turn(value: NDArray[np.generic] | None) -> NDArray[np.generic] | None:
        return None if value is None else np.ascontiguousarray(np.rot90(value, -quarters, (1, 2)))

    images = turn(clip.images)
    if images_only:
        return dataclasses.replace(clip, images=images)  # pyright: ignore[reportArgumentType]
    info = clip.info
    if quarters % 2:
        info = dataclasses.replace(info, width=info.height, height=info.width)
    return dataclasses.replace(clip, info=info, images=images, depth=turn(clip.depth), dynamic=turn(clip.dynamic))  # pyright: ignore[reportArgumentType]


def transposed(clip: RawClip) -> RawClip:
    def change(pose: NDArray[np.float64]) -> NDArray[np.float64]:
        pose[:, :3, :3] = pose[:, :3, :3].transpose(0, 2, 1).copy()
        return pose

    return posed(clip, change)


def mirrored_world(clip: RawClip, axis: int) -> RawClip:
    mirror = np.eye(4)
    mirror[axis, axis] = -1
    return posed(clip, lambda pose: mirror @ pose @ mirror)


Fault = tuple[Callable[[RawClip], RawClip], str]
FAULTS: dict[str, Fault] = {
    "w2c": (lambda clip: posed(clip, np.linalg.inv), "camera_from_world: invert them"),
    "opengl": (lambda clip: posed(clip, lambda pose: pose @ FLIP), "those of OpenGL"),
    "w2c opengl": (lambda clip: posed(clip, lambda pose: np.linalg.inv(pose @ FLIP)), "with the axes of OpenGL"),
    "transposed": (transposed, "rotations are transposed"),
    "mirrored world": (lambda clip: mirrored_world(clip, 0), "world is mirrored in x"),
    "world upside down": (lambda clip: mirrored_world(clip, 1), "world is mirrored in y"),
    "turned right": (lambda clip: turned(clip, 1), "turned by 90 degrees clockwise"),
    "turned left": (lambda clip: turned(clip, -1), "turned by 90 degrees anticlockwise"),
    "turned about": (lambda clip: turned(clip, 2), "turned by 180 degrees"),
    "images turned about": (lambda clip: turned(clip, 2, images_only=True), "turned by 180 degrees"),
    "poses in mm": (lambda clip: translated(clip, 1000), "depth times 1000 fits"),
    "depth in mm": (lambda clip: deep(clip, 1000, 1000), "depth times 0.001 fits"),
    "odd unit": (lambda clip: deep(clip, 1.7, 1.7), "depth times 0.5"),
    "ray": (lambda clip: deep(clip, along_rays(clip), 2), "along the ray: store z-depth"),
    "swapped centre": (lambda clip: lens(clip, lambda row: row[:, [0, 1, 3, 2]]), "cx and cy are swapped"),
    "anamorphic": (lambda clip: lens(clip, lambda row: row[:, [1, 0, 2, 3]]), "fx and fy are swapped"),
    "half": (lambda clip: lens(clip, lambda row: row / 2), "images half as large: multiply fx, fy, cx and cy by 2"),
    "twice": (lambda clip: lens(clip, lambda row: row * 2), "images twice as large: multiply fx, fy, cx and cy by 0.5"),
    "mirrored": (
        lambda clip: dataclasses.replace(clip, images=np.ascontiguousarray(clip.images[:, :, ::-1])),
        "mirrored left to right",
    ),
    "upside down": (
        lambda clip: dataclasses.replace(clip, images=np.ascontiguousarray(clip.images[:, ::-1])),
        "mirrored upside down",
    ),
    "images late by 1": (lambda clip: late(clip, "images", 1), "images come 1 frame too late"),
    "images early by 2": (lambda clip: late(clip, "images", -2), "images come 2 frames too early"),
    "cameras late by 1": (lambda clip: late(clip, "cameras", 1), "cameras come 1 frame too late"),
    "cameras early by 2": (lambda clip: late(clip, "cameras", -2), "cameras come 2 frames too early"),
    "depth late by 1": (lambda clip: late(clip, "depth", 1), "depth comes 1 frame too late"),
    "depth late by 2": (lambda clip: late(clip, "depth", 2), "depth comes 2 frames too late"),
    "depth right by 4": (lambda clip: shifted_depth(clip, 4, 0), "depth lies 4 pixels too far right"),
    "depth up by 3": (lambda clip: shifted_depth(clip, 0, -3), "depth lies 3 pixels too far up"),
    "sentinel": (lambda clip: with_sentinel(clip, 65.535), "is no depth"),
}
"""Name → what is done to a clip, and words of the remedy that names it."""
