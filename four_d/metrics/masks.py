"""J and F of masks, as in the DAVIS benchmark (Perazzi et al. 2016): region overlap and contour accuracy.

Over frames: JM and FM are means, JR and FR the fractions of frames above `RECALL`; over videos all four are averaged.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Masks = Bool[Tensor, "f h w"]

RECALL = 0.5
TOLERANCE = 0.008
"""Greatest distance between matching contours, as a fraction of the image's diagonal."""


def region(prediction: Masks, target: Masks) -> Float[Tensor, "f"]:
    """J: intersection over union of each frame; 1 where both are empty."""
    both = (prediction & target).flatten(1).sum(1).double()
    either = (prediction | target).flatten(1).sum(1).double()
    return torch.where(either > 0, both / either.clamp_min(1), torch.ones_like(both))


def contour(prediction: Masks, target: Masks, tolerance: float = TOLERANCE) -> Float[Tensor, "f"]:
    """F: harmonic mean of the fractions of either contour that lie within the tolerance of the other; float64.

    Within = inside a disk of radius ceil(``tolerance`` · diagonal) px around a contour pixel. Both contours empty: 1;
    one empty: 0.
    """
    radius = math.ceil(tolerance * math.hypot(*target.shape[-2:]))
    predicted_contour, true_contour = boundary(prediction), boundary(target)
    precision = _fraction_near(predicted_contour, dilate(true_contour, radius))
    recall = _fraction_near(true_contour, dilate(predicted_contour, radius))
    total = precision + recall
    return torch.where(total > 0, 2 * precision * recall / torch.where(total > 0, total, 1), 0)


def _fraction_near(edge: Masks, near: Masks) -> Float[Tensor, "f"]:
    """Fraction of the edge's pixels that are near; 1 for an empty edge."""
    count = edge.flatten(1).sum(1).double()
    hits = (edge & near).flatten(1).sum(1).double()
    return torch.where(count > 0, hits / count.clamp_min(1), torch.ones_like(count))


def boundary(masks: Masks) -> Masks:
    """Contours one pixel wide: pixels that differ from their neighbour right, below, or right below.

    The last row is compared to the right only, the last column below only; the last pixel is never on a contour.
    """
    edge = torch.zeros_like(masks)
    edge[:, :, :-1] |= masks[:, :, :-1] ^ masks[:, :, 1:]
    edge[:, :-1] |= masks[:, :-1] ^ masks[:, 1:]
    edge[:, :-1, :-1] |= masks[:, :-1, :-1] ^ masks[:, 1:, 1:]
    return edge


def dilate(masks: Masks, radius: int) -> Masks:
    """Dilate masks by a disk of ``radius`` (dx² + dy² ≤ radius²)."""
    height, width = masks.shape[-2:]
    padded = torch.nn.functional.pad(masks.int(), (radius + 1, radius, radius, radius))
    # a disk is a stack of rows; with running sums each costs two look-ups, whatever its length
    before = padded.cumsum(-1)
    result = torch.zeros_like(masks)
    for dy in range(-radius, radius + 1):
        reach = math.isqrt(radius**2 - dy**2)
        rows = before[:, radius + dy : radius + dy + height]
        first, last = radius - reach, radius + reach + 1
        result |= rows[..., last : last + width] > rows[..., first : first + width]
    return result
