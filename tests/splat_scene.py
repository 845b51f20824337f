"""Gaussians of the flying ball of `test_viewer`, one per pixel of the first frame; those of the ball move."""

from __future__ import annotations

import dataclasses

import torch

from four_d.geometry import unproject
from four_d.types import Gaussians, Prediction
from tests.test_viewer import Truth, ball


def splatted(frames: int = 5, size: tuple[int, int] = (45, 80)) -> Truth:
    """The flying ball with Gaussians, as a perfect model would say it."""
    truth, _ = ball(frames, size)
    said = dataclasses.replace(truth.prediction, gaussians=gaussians(truth.prediction, truth.images, truth.times))
    return dataclasses.replace(truth, prediction=said)


def gaussians(prediction: Prediction, images: torch.Tensor, times: list[float]) -> Gaussians:
    """One per pixel of the first frame, as large as the pixel."""
    assert prediction.depth is not None
    assert prediction.cameras is not None
    assert prediction.dynamic is not None
    depth, rides = prediction.depth[0].flatten(), prediction.dynamic[0].flatten()
    count = len(depth)
    along = torch.linspace(0, 1, len(times))
    path = torch.stack([along * 1.4, -0.9 * along * (1 - along), -0.3 * along], dim=-1)
    size = 0.7 * depth / prediction.cameras.intrinsics[0, 0, 0]
    return Gaussians(
        means=unproject(prediction.depth, prediction.cameras)[0].reshape(-1, 3),
        quats=torch.tensor([1.0, 0, 0, 0]).expand(count, 4),
        scales=size[:, None].expand(count, 3),
        opacities=torch.full((count,), 0.95),
        harmonics=((images[0].flatten(1).T - 0.5) / 0.28209479)[:, None],
        offsets=path[:, None] * rides[:, None],
        offset_times=torch.tensor(times),
    )
