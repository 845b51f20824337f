"""A rigid chain that swings before a box room: keypoints and bones with exact truth, drawn as discs over the images."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from four_d.data.contract import KeypointArrays, KeypointInfo, RawClip
from four_d.geometry import project
from tests.helpers import box_clip, torch_cameras

NAMES = ["root", "left_knee", "left_foot", "right_knee", "right_foot"]
EDGES = [(0, 1), (1, 2), (0, 3), (3, 4)]
LENGTHS = (0.7, 0.5, 0.6, 0.4)
COLOURS = np.array([[255, 255, 255], [255, 40, 40], [255, 220, 0], [40, 80, 255], [0, 230, 230]], np.uint8)


def chain_clip(
    seed: int = 0, frames: int = 4, cameras: int = 1, size: int | tuple[int, int] = 32, *, surface: bool = False
) -> RawClip:
    """`box_clip`, with a chain of two legs; without its surface unless that is wanted. All points count as seen that
    are inside the image.
    """
    clip = box_clip(seed, frames, cameras, size)
    points = np.tile(_places(seed, np.array(clip.info.times[:frames])), (cameras, 1, 1)).astype(np.float32)
    pixels, depth = project(torch.from_numpy(points), torch_cameras(clip))
    size = np.array([clip.info.width, clip.info.height])
    inside = (depth.numpy() > 0) & (pixels.numpy() >= 0).all(-1) & (pixels.numpy() < size).all(-1)
    everywhere = np.ones(points.shape[:2], bool)
    return dataclasses.replace(
        clip,
        key=f"chain-{seed:06d}",
        info=dataclasses.replace(
            clip.info,
            surface_times=clip.info.surface_times if surface else None,
            keypoints=KeypointInfo(names=list(NAMES), instances=[4] * 5, edges=list(EDGES), rigid=[True] * 4),
        ),
        images=np.stack([_drawn(*each) for each in zip(clip.images, pixels.numpy(), inside)]),
        surface=clip.surface if surface else None,
        keypoints=KeypointArrays(
            points=points, valid=everywhere, pixels=pixels.numpy(), pixels_valid=everywhere, visible=inside
        ),
    )


def _places(seed: int, times: NDArray[np.float64]) -> NDArray[np.float64]:
    """t n 3 in `box_clip`'s world, whose y points down."""
    rng = np.random.default_rng((seed, 7))
    root = np.array([0.1, -0.3, -0.4]) + rng.uniform(-0.2, 0.2, 3) + times[:, None] * rng.uniform(-0.4, 0.4, 3)
    found = [root]
    for (start, _), length, side in zip(EDGES, LENGTHS, (1, 1, -1, -1)):
        angle = 0.5 * side + 0.4 * np.sin(rng.uniform(2, 5) * times + rng.uniform(0, 6))
        turn = 0.3 * np.sin(rng.uniform(2, 5) * times + rng.uniform(0, 6))
        way = np.stack([np.sin(angle) * np.cos(turn), np.cos(angle) * np.cos(turn), np.sin(turn)], -1)
        found.append(found[start] + length * way)
    return np.stack(found, axis=1)


def _drawn(image: NDArray[np.uint8], pixels: NDArray[np.float32], seen: NDArray[np.bool_]) -> NDArray[np.uint8]:
    image = image // 2
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    for (u, v), colour, shown in zip(pixels, COLOURS, seen):
        if shown:
            image[(x - u) ** 2 + (y - v) ** 2 <= (image.shape[0] / 16) ** 2] = colour
    return image
