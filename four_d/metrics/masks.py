"""J and F of masks, as the DAVIS benchmark has them (Perazzi et al. 2016): region overlap and contour accuracy.

Over frames: JM and FM are means, JR and FR the shares of frames above `RECALL`; over videos all four average alike.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Masks = Bool[Tensor, "f h w"]

RECALL = 0.5
TOLERANCE = 0.008
"""How far contours may be apart, as a share of the image's diagonal."""


def region(prediction: Masks, target: Masks) -> Float[Tensor, "f"]:
    """J: intersection over union of each frame; 1 where both are empty."""
    both = (prediction & target).flatten(1).sum(1).double()
    either = (prediction | target).flatten(1).sum(1).double()
    return torch.where(either > 0, both / either.clamp_min(1), torch.ones_like(both))


def contour(prediction: Masks, target: Masks, tolerance: float = TOLERANCE) -> Float[Tensor, "f"]:
    """F: harmonic mean of the shares of either contour that lie within the tolerance of the other; float64.

    Within = inside a disk of radius ceil(``tolerance`` · diagonal) px around a contour pixel. Both contours empty: 1;
    one empty: 0.
    """
    radius = math.ceil(tolerance * math.hypot(*target.shape[-2:]))
    ours, theirs = boundary(prediction), boundary(target)
    precision = _share(ours, dilate(theirs, radius))
    recall = _share(theirs, dilate(ours, radius))
    total = precision + recall
    return torch.where(total > 0, 2 * precision * recall / torch.where(total > 0, total, 1), 0)


def _share(edge: Masks, near: Masks) -> Float[Tensor, "f"]:
    """Share of the edge's pixels that are near; 1 for an empty edge."""
    count = edge.flatten(1).sum(1).double()
    hits = (edge & near).flatten(1).sum(1).double()
    return torch.where(count > 0, hits / count.clamp_min(1), torch.ones_like(count))


def boundary(masks: Masks) -> Masks:
    """One pixel wide contours: where a mask differs from its neighbour right, below, or right below.

    The last row looks right only, the last column down only, and the last pixel is never part of it.
    """
    edge = torch.zeros_like(masks)
    edge[:, :, :-1] |= masks[:, :, :-1] ^ masks[:, :, 1:]
    edge[:, :-1] |= masks[:, :-1] ^ masks[:, 1:]
    edge[:, :-1, :-1] |= masks[:, :-1, :-1] ^ masks[:, 1:, 1:]
    return edge


def dilate(masks: Masks, radius: int) -> Masks:
    """Every pixel within ``radius`` of a set one (a disk: dx² + dy² ≤ radius²)."""
    height, width = masks.shape[-2:]
    padded = torch.nn.functional.pad(masks.int(), (radius + 1, radius, radius, radius))
    before = padded.cumsum(-1)
    result = torch.zeros_like(masks)
    for dy in range(-radius, radius + 1):
        reach = math.isqrt(radius**2 - dy**2)
        rows = before[:, radius + dy : radius + dy + height]
        first, last = radius - reach, radius + reach + 1
        result |= rows[..., last : last + width] > rows[..., first : first + width]
    return result
