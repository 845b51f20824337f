"""Keypoints and bones: over the images that a model saw, and in the page's 3D view (`skeletons.js`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d.drawing import RgbImage, draw_skeleton, point_colours
from four_d.types import LIKELY, Prediction
from four_d.viewer.trails import packed

SIDE = 320
"""Size in pixels up to which smaller images are enlarged, by a whole factor."""


def skeletons(
    images: Float[Tensor, "f 3 r c"], prediction: Prediction, edges: Sequence[tuple[int, int]]
) -> list[RgbImage]:
    """Draw the keypoints of an unbatched prediction over its images; none if it has no ``keypoint_pixels``."""
    pixels = _tensor(prediction, "keypoint_pixels")
    if pixels is None:
        return []
    known, scale = np.ones(pixels.shape[1], bool), max(1, SIDE // max(images.shape[-2:]))
    shown = (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    return [
        draw_skeleton(image, places, known, seen, edges, scale)
        for image, places, seen in zip(shown, pixels.float().numpy(), _visible(prediction, pixels).numpy(), strict=True)
    ]


def skeletons_in_space(
    prediction: Prediction, edges: Sequence[tuple[int, int]], unit: float
) -> dict[str, object] | None:
    """Page data of n keypoints over f frames (`trails.packed`); None if the prediction has no ``keypoints``.

    ``points`` f n 3 in scene units of ``unit`` lengths (float32), ``seen`` f n and ``colours`` n 3 (bytes), ``edges``.
    """
    points = _tensor(prediction, "keypoints")
    if points is None or not points.shape[1]:
        return None
    return {
        "points": packed(points.float().numpy() / unit, "<f4"),
        "seen": packed(_visible(prediction, points[..., 0]).numpy(), "u1"),
        "colours": packed(np.array(point_colours(points.shape[1])), "u1"),
        "edges": [list(edge) for edge in edges],
    }


def _visible(prediction: Prediction, like: Float[Tensor, "f n *k"]) -> Bool[Tensor, "f n"]:
    """Keypoints that are likely visible; all where the model says nothing of it."""
    sure = _tensor(prediction, "keypoint_visible")
    return torch.ones(like.shape[:2], dtype=torch.bool) if sure is None else sure > LIKELY


def _tensor(prediction: Prediction, name: str) -> Tensor | None:
    """Field of the keypoint head's class, which this room does not know."""
    found = getattr(prediction, name, None)
    return found if isinstance(found, Tensor) else None
