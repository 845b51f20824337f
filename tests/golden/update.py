"""Write down what the small seeded model says now: ``python -m tests.golden.update``.

Explain the change in the commit.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from four_d.backbones.alternating import AlternatingConfig
from four_d.backbones.patches import StemPatchConfig
from four_d.geometry import make_pose
from four_d.heads.camera import CameraHeadConfig
from four_d.heads.dense import DenseHeadConfig
from four_d.losses import CameraLossConfig, DepthLossConfig, PointsLossConfig
from four_d.model import ModelConfig
from four_d.types import Cameras, Clip
from tests.helpers import loss_value

PATH = Path(__file__).with_name("model.json")
DENSE = {"channels": (8, 12, 16, 16), "features": 16, "last_features": 8}
CONFIG = ModelConfig(
    backbone=AlternatingConfig(
        patches=StemPatchConfig(channels=(4, 8)),
        patch_size=8,
        width=32,
        rounds=3,
        heads=2,
        registers=2,
        layer_scale=0.5,
        special_std=0.5,
    ),
    heads={
        "camera": CameraHeadConfig(width=32, depth=1, heads=2, start=(0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0)),
        "depth": DenseHeadConfig(**DENSE),
        "points": DenseHeadConfig(output="points", **DENSE),
    },
)


def draw(generator: np.random.Generator, *shape: int) -> torch.Tensor:
    """Uniform numbers in [0, 1), from numpy: its stream does not change with versions of torch."""
    return torch.from_numpy(generator.random(shape))


def measure() -> dict[str, float]:
    """Means and deviations of outputs, values of losses, norms of gradients per part; all in float64."""
    model, generator = CONFIG.build().double(), np.random.default_rng(0)
    for parameter in model.parameters():
        noise = 2 * draw(generator, *parameter.shape) - 1
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 10
        parameter.data = noise * (3 / fan_in) ** 0.5 + 0.5 * (parameter.dim() == 1)
    for name in ("depth", "points"):
        for parameter in model.heads[name].out.parameters():
            parameter.data *= 0.1  # exponentials follow
    b, f, h, w = 2, 3, 32, 24
    clip = Clip(
        images=draw(generator, b, f, 3, h, w),
        times=torch.zeros(b, f, dtype=torch.float64),
        camera_ids=torch.zeros(b, f, dtype=torch.long),
    )
    intrinsics = torch.tensor([[30.0, 0, 12], [0, 30, 16], [0, 0, 1]], dtype=torch.float64).expand(b, f, -1, -1)
    rotation = torch.eye(3, dtype=torch.float64).expand(b, f, -1, -1)
    targets = Clip(
        images=clip.images,
        times=clip.times,
        camera_ids=clip.camera_ids,
        cameras=Cameras(world_from_camera=make_pose(rotation, draw(generator, b, f, 3)), intrinsics=intrinsics),
        depth=1 + draw(generator, b, f, h, w),
        valid=draw(generator, b, f, h, w) > 0.1,
    )
    prediction = model(clip)
    losses = {
        "camera": loss_value(CameraLossConfig(), prediction, targets),
        "depth": loss_value(DepthLossConfig(), prediction, targets),
        "points": loss_value(PointsLossConfig(), prediction, targets),
    }
    sum(losses.values(), start=torch.zeros(())).backward()
    outputs = {
        "pose_encodings": prediction.pose_encodings,
        "depth": prediction.depth,
        "depth_confidence": prediction.depth_confidence,
        "points": prediction.points,
        "points_confidence": prediction.points_confidence,
    }
    result = {f"loss/{name}": value.item() for name, value in losses.items()}
    for name, value in outputs.items():
        result |= {f"mean/{name}": value.mean().item(), f"std/{name}": value.std().item()}
    for name, part in [("backbone", model.backbone), *model.heads.items()]:
        result[f"gradient/{name}"] = torch.cat([p.grad.flatten() for p in part.parameters()]).norm().item()
    return result


if __name__ == "__main__":
    PATH.write_text(json.dumps(measure(), indent=1, sort_keys=True) + "\n")
    print(f"wrote {PATH}")
