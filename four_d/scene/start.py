"""The scene that a fit begins with: an object, and the cameras that are believed to see it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from four_d.errors import UserError
from four_d.scene.model import LARGEST, SMALLEST, DeformableScene, DeformableSceneConfig
from four_d.types import Gaussians

CERTAIN = 1e-3
"""Distance of opacities from 0 and 1, where a logit is infinite."""


def initial_scene(
    config: DeformableSceneConfig,
    gaussians: Gaussians,
    times: Float[Tensor, "t"],
    poses: Float[Tensor, "t 4 4"],
    intrinsics: Float[Tensor, "t 3 3"],
) -> DeformableScene:
    """Make a scene at rest of an object's Gaussians.

    Args:
        config: sizes, which must be those of what is given.
        gaussians: unbatched, in the object's coordinates and of radius 1; colours of higher degree than 0 are left out,
            since a prediction turns the world.
        times: of the frames, in seconds, ascending.
        poses: object_from_camera of each frame.
        intrinsics: of each frame, for images of ``config.image_size``.

    Raises:
        UserError: sizes that do not agree, or times that do not ascend.

    """
    if len(gaussians.means) != config.gaussians or not len(times) == len(poses) == len(intrinsics) == config.frames:
        raise UserError(
            f"the scene is of {config.gaussians} Gaussians and {config.frames} frames; there are "
            f"{len(gaussians.means)} Gaussians, {len(times)} times, {len(poses)} poses and {len(intrinsics)} intrinsics"
        )
    if not bool((times.diff() > 0).all()):
        raise UserError("times of a scene must ascend, one frame each; leave out frames of the same time")
    scene = DeformableScene(config, gaussians.means, times)
    with torch.no_grad():
        scene.quats.copy_(gaussians.quats)
        scene.log_scales.copy_(gaussians.scales.clamp(SMALLEST, LARGEST).log())
        scene.opacity_logits.copy_(gaussians.opacities.clamp(CERTAIN, 1 - CERTAIN).logit())
        scene.harmonics.copy_(gaussians.harmonics[:, :1])
        scene.poses.copy_(poses)
        scene.intrinsics.copy_(intrinsics)
    return scene
