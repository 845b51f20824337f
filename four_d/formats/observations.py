"""Observations of a cloud's points in frames: the tracks of COLMAP's points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from four_d.formats.clouds import PointCloud
from four_d.geometry import project
from four_d.types import Cameras

NEAR = 24
"""Frames before and after a point's own in which it is searched, which bounds the memory for a long video."""
AGREE = 0.05
"""Fraction of its depth by which a point may differ from another frame's depth at its pixel."""


@dataclass(frozen=True, kw_only=True)
class Observations:
    """m observations, by frame and within each by the points' order."""

    frames: NDArray[np.int64]
    """m"""
    points: NDArray[np.int64]
    """m: rows of the cloud."""
    pixels: NDArray[np.float64]
    """m 2: x, y."""


def observe(
    cloud: PointCloud,
    cameras: Cameras,
    depth: Callable[[int], Float[Tensor, "h w"]],
    *,
    times: list[float],
    moving: Callable[[int], Bool[Tensor, "h w"]] | None = None,
) -> Observations:
    """Find each point's pixel in its own frame, and in every nearby frame that sees it.

    Another frame sees a point if its depth at the point's pixel is the point's, with inverse depth interpolated
    linearly, as is exact on planes. Moving points are seen at their own time only. Frames are processed one by one.

    Args:
        cloud: cloud of these frames.
        cameras: cameras of f frames, in pixels of the depth maps.
        depth: function of a frame's z-depth; 0 where there is none.
        times: seconds, f; frames of one time see moving points alike.
        moving: function of a frame's mask of moving pixels; None: all are static.

    """
    points, own_frame = torch.from_numpy(cloud.points).double(), torch.from_numpy(cloud.frames).long()
    seconds = torch.tensor(times, dtype=torch.float64)
    moves = torch.zeros(len(points), dtype=torch.bool)
    observed: list[tuple[Tensor, Tensor]] = []
    if moving is not None:
        for frame in range(len(times)):
            rows = (own_frame == frame).nonzero()[:, 0]
            pixels, _ = project(points[rows], _camera(cameras, frame))
            moves[rows] = _sample(moving(frame), pixels) > 0
    for frame in range(len(times)):
        rows = ((own_frame - frame).abs() <= NEAR).nonzero()[:, 0]
        pixels, z = project(points[rows], _camera(cameras, frame))
        depth_map = depth(frame)
        agrees = (z * _sample(1 / depth_map.double().clamp_min(1e-12), pixels) - 1).abs() <= AGREE
        if moving is not None:
            agrees &= (seconds[own_frame[rows]] == seconds[frame]) | ~(
                moves[rows] | (_sample(moving(frame), pixels) > 0)
            )
        inside = (z > 0) & ((pixels >= 0) & (pixels <= torch.tensor(depth_map.shape[::-1]))).all(-1)
        chosen = inside & (agrees | (own_frame[rows] == frame))
        observed.append((rows[chosen], pixels[chosen]))
    return Observations(
        frames=np.repeat(np.arange(len(observed)), [len(rows) for rows, _ in observed]),
        points=torch.cat([rows for rows, _ in observed]).numpy(),
        pixels=torch.cat([pixels for _, pixels in observed]).numpy(),
    )


def _camera(cameras: Cameras, frame: int) -> Cameras:
    return Cameras(
        world_from_camera=cameras.world_from_camera[frame].double(), intrinsics=cameras.intrinsics[frame].double()
    )


def _sample(values: Tensor, pixels: Float[Tensor, "n 2"]) -> Float[Tensor, "n"]:
    """Sample a map h w bilinearly, clamped to its border."""
    position = (pixels / pixels.new_tensor(values.shape[::-1]) * 2 - 1).clamp(-2, 2)
    sampled = torch.nn.functional.grid_sample(
        values.to(pixels)[None, None], position[None, None], padding_mode="border", align_corners=False
    )
    return sampled[0, 0, 0]
