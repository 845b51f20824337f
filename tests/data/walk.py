"""A walk through a furnished room, exact and quick to make: textured boxes, an unsteady hand, a lens to choose."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from four_d.data.contract import ClipInfo, RawClip

ROOM = np.array([3.0, 2.0, 4.0])
"""Half the sides of the room, in metres; its middle is the world's origin, y points down."""


def walk(
    frames: int = 8,
    size: tuple[int, int] = (96, 128),
    *,
    seed: int = 0,
    cameras: int = 1,
    still: bool = False,
    squeezed: float = 1.0,
    with_depth: bool = True,
) -> RawClip:
    """Film the room; ``squeezed`` is fy over fx. Further cameras go beside the first, half a metre apart."""
    rng = np.random.default_rng(seed)
    height, width = size
    boxes = np.array([[-1.2, 1.2, 1.0], [1.1, 1.5, 0.3], [0.2, 1.0, 2.6]]) + rng.uniform(-0.3, 0.3, (3, 3))
    sides = rng.uniform(0.5, 1.0, (3, 3))
    waves = rng.normal(size=(40, 3)) * rng.uniform(2, 9, (40, 1)), rng.uniform(0, 7, 40)
    steps = np.zeros(frames) if still else np.cumsum(rng.uniform(0.02, 0.16, frames))
    sway = np.zeros((frames, 3)) if still else rng.normal(size=(frames, 3)) * 0.03
    focal = 0.62 * width
    k = np.array([[focal, 0, 0.53 * width], [0, focal * squeezed, 0.46 * height], [0, 0, 1]])
    images, depths, poses = [], [], []
    for camera in range(cameras):
        for step, jolt in zip(steps, sway):
            turn = np.array([0.08, 0.25 - 0.5 * step, 0.03]) + jolt
            pose = np.eye(4)
            pose[:3, :3] = _rotation(turn)
            pose[:3, 3] = np.array([-1 + 0.5 * camera + 0.8 * step, -0.2, -2.8 + step]) + jolt
            image, depth = _film(pose, k, size, boxes, sides, waves)
            images.append(image)
            depths.append(depth)
            poses.append(pose)
    info = ClipInfo(
        source="walk",
        licence="CC0-1.0",
        metric=True,
        width=width,
        height=height,
        times=[i / 15 for i in range(frames)] * cameras,
        camera_ids=[i for i in range(cameras) for _ in range(frames)],
        depth_unit=2e-4 if with_depth else None,
    )
    return RawClip(
        key=f"walk-{seed}-{cameras}-{int(still)}",
        info=info,
        images=np.stack(images),
        world_from_camera=np.stack(poses),
        intrinsics=np.tile(k, (len(poses), 1, 1)),
        depth=np.stack(depths).astype(np.float32) if with_depth else None,
    )


def _rotation(turn: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rodrigues' formula."""
    angle = float(np.linalg.norm(turn))
    x, y, z = turn / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _film(
    pose: NDArray[np.float64],
    k: NDArray[np.float64],
    size: tuple[int, int],
    boxes: NDArray[np.float64],
    sides: NDArray[np.float64],
    waves: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    x, y = np.meshgrid(np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5)
    rays = np.stack([(x - k[0, 2]) / k[0, 0], (y - k[1, 2]) / k[1, 1], np.ones_like(x)], -1) @ pose[:3, :3].T
    centre = pose[:3, 3]
    depth = ((np.sign(rays) * ROOM - centre) / rays).min(-1)
    part = np.zeros(size)
    for number, (box, side) in enumerate(zip(boxes, sides), start=1):
        near, far = ((box + sign * np.sign(rays) * side / 2 - centre) / rays for sign in (-1, 1))
        enters, leaves = near.max(-1), far.min(-1)
        hit = (enters < leaves) & (enters > 0.05) & (enters < depth)
        depth, part = np.where(hit, enters, depth), np.where(hit, number, part)
    places = centre + rays * depth[..., None]
    pattern = np.sin(places @ waves[0].T + waves[1] + 1.7 * part[..., None])
    colour = [0.6 + 0.3 * np.tanh(pattern[..., c::3].sum(-1) / 2) - 0.3 * (part > 0) for c in range(3)]
    return np.rint(np.stack(colour, -1).clip(0, 1) * 255).astype(np.uint8), depth
