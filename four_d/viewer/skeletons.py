"""Keypoints and bones over the images that a model saw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from four_d.drawing import RgbImage, draw_skeleton
from four_d.types import LIKELY, Prediction

SIDE = 320
"""Size in pixels up to which smaller images are enlarged, by a whole factor."""


def skeletons(
    images: Float[Tensor, "f 3 r c"], prediction: Prediction, edges: Sequence[tuple[int, int]]
) -> list[RgbImage]:
    """Draw the keypoints of an unbatched prediction over its images; none if it has no ``keypoint_pixels``."""
    pixels = getattr(prediction, "keypoint_pixels", None)
    if not isinstance(pixels, Tensor):
        return []
    sure = getattr(prediction, "keypoint_visible", None)
    visible = sure > LIKELY if isinstance(sure, Tensor) else torch.ones_like(pixels[..., 0], dtype=torch.bool)
    known, scale = np.ones(pixels.shape[1], bool), max(1, SIDE // max(images.shape[-2:]))
    shown = (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    return [
        draw_skeleton(image, places, known, seen, edges, scale)
        for image, places, seen in zip(shown, pixels.float().numpy(), visible.numpy(), strict=True)
    ]
