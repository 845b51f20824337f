"""Matches between two images by their corners alone, to a fraction of a pixel; no camera is needed or believed.

Corners are those of Shi and Tomasi (CVPR 1994), described by the normalised windows around them at two scales, matched
where each is the other's best and the second best is clearly worse, and refined as Lucas and Kanade (IJCAI 1981) do.
That suffices for neighbouring frames of a video; where cameras stand too far apart there are few matches or none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

CORNERS = 500
"""Most corners of an image."""
LONG_SIDE = 640
"""Longer side in pixels above which images are reduced before they are matched."""
_WEAKEST = 0.002
"""Response of the weakest corner over that of the strongest."""
_FAINTEST = 1e-6
"""Response below which there is no corner: that of noise of a grey level."""
_SPACING = 5
"""Side in pixels of the square in which a corner is the strongest."""
_ALIKE, _CLEARER = 0.75, 0.85
"""Least correlation of two windows, and how much of the second best one's distance the best may have."""
_WINDOW, _STEPS = 11, 6
"""Side in pixels of the windows that are aligned, and steps of the alignment."""
_ALIGNED = 0.85
"""Least correlation of aligned windows."""
_DRIFT = 2.5
"""Pixels that the alignment may move a match."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """Corners of one image, of its reduced copy ``grey``."""

    grey: Float[Tensor, "h w"]
    pixels: Float[Tensor, "n 2"]
    """(x, y) in ``grey``, corner origin."""
    descriptors: Float[Tensor, "n d"]
    factor: float
    """Pixels of the image per pixel of ``grey``."""


def features(image: Float[Tensor, "3 h w"]) -> Features:
    """Find and describe the corners of an image with values from 0 to 1."""
    grey = image.float().mean(0)
    factor = max(max(grey.shape) / LONG_SIDE, 1.0)
    if factor > 1:
        size = [max(round(side / factor), 1) for side in grey.shape]
        grey = functional.interpolate(grey[None, None], size, mode="area")[0, 0]
    pixels = _corners(grey)
    windows = [_windows(_blur(grey, width), pixels, 8, step) for width, step in ((3, 2.0), (5, 4.0))]
    descriptors = torch.cat([_normalised(window) for window in windows], dim=1) / 2**0.5
    return Features(grey=grey, pixels=pixels, descriptors=descriptors, factor=factor)


def match(a: Features, b: Features) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n 2"]]:
    """Match the corners of two images: pixels (x, y) in each, of the images as they were given, corner origin."""
    if min(len(a.pixels), len(b.pixels)) < 2:
        return a.pixels.new_zeros(0, 2), b.pixels.new_zeros(0, 2)
    alike = a.descriptors @ b.descriptors.T
    (best, second), there = alike.topk(2, dim=1).values.T, alike.argmax(1)
    mutual = alike.argmax(0)[there] == torch.arange(len(there))
    clear = (1 - best) < _CLEARER**2 * (1 - second)  # squared distances
    chosen = mutual & clear & (best > _ALIKE)
    from_a, from_b = a.pixels[chosen], b.pixels[there[chosen]]
    moved, sound = _align(a.grey, b.grey, from_a, from_b)
    return from_a[sound] * a.factor, moved[sound] * b.factor


def _blur(grey: Float[Tensor, "h w"], width: int) -> Float[Tensor, "h w"]:
    half = width // 2
    padded = functional.pad(grey[None, None], (half,) * 4, mode="replicate")
    return functional.avg_pool2d(padded, width, 1)[0, 0]


def _slopes(grey: Float[Tensor, "h w"]) -> tuple[Float[Tensor, "h w"], Float[Tensor, "h w"]]:
    padded = functional.pad(grey[None, None], (1,) * 4, mode="replicate")[0, 0]
    return (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2, (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2


def _corners(grey: Float[Tensor, "h w"]) -> Float[Tensor, "n 2"]:
    """Strongest corners: the smaller eigenvalue of the structure tensor, strongest of its surroundings."""
    height, width = grey.shape
    x, y = _slopes(_blur(grey, 3))
    xx, yy, xy = (_blur(product, 5) for product in (x * x, y * y, x * y))
    response = (xx + yy) / 2 - (((xx - yy) / 2).square() + xy.square()).sqrt()
    peak = functional.max_pool2d(response[None, None], _SPACING, 1, _SPACING // 2)[0, 0]
    border = 4
    inner = torch.zeros_like(response, dtype=torch.bool)
    inner[border : height - border, border : width - border] = True
    chosen = inner & (response >= peak) & (response > max(_WEAKEST * float(response.max()), _FAINTEST))
    strength, place = response.where(chosen, torch.zeros(())).flatten().topk(min(CORNERS, response.numel()))
    place = place[strength > 0]
    return torch.stack([place % width, place // width], dim=-1).float() + 0.5


def _windows(grey: Float[Tensor, "h w"], pixels: Float[Tensor, "n 2"], side: int, step: float) -> Float[Tensor, "n d"]:
    """Sample a square of ``side`` × ``side`` places, ``step`` apart, around each pixel."""
    offset = (torch.arange(side, dtype=grey.dtype) - (side - 1) / 2) * step
    offsets = torch.stack(torch.meshgrid(offset, offset, indexing="xy"), dim=-1).reshape(-1, 2)
    places = pixels[:, None] + offsets
    size = places.new_tensor([grey.shape[1], grey.shape[0]])
    grid = places / size * 2 - 1
    sampled = functional.grid_sample(grey[None, None], grid[None], padding_mode="border", align_corners=False)
    return sampled[0, 0]


def _normalised(windows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return functional.normalize(windows - windows.mean(1, keepdim=True), dim=1, eps=1e-3)


def _align(
    a: Float[Tensor, "h w"], b: Float[Tensor, "k l"], from_a: Float[Tensor, "n 2"], from_b: Float[Tensor, "n 2"]
) -> tuple[Float[Tensor, "n 2"], Tensor]:
    """Shift each match in ``b`` until the windows are equal up to brightness; and which ones are sound."""
    a, b = _blur(a, 3), _blur(b, 3)
    wanted = _normalised(_windows(a, from_a, _WINDOW, 1.0))
    slopes = _slopes(b)
    place = from_b.clone()
    for _ in range(_STEPS):
        seen = _windows(b, place, _WINDOW, 1.0)
        contrast = (seen - seen.mean(1, keepdim=True)).norm(dim=1, keepdim=True).clamp_min(1e-3)
        missing = wanted * contrast - (seen - seen.mean(1, keepdim=True))
        x, y = (_windows(slope, place, _WINDOW, 1.0) for slope in slopes)
        xx, yy, xy = x.square().sum(1), y.square().sum(1), (x * y).sum(1)
        by_x, by_y = (x * missing).sum(1), (y * missing).sum(1)
        determinant = (xx * yy - xy.square()).clamp_min(1e-9)
        shift = torch.stack([yy * by_x - xy * by_y, xx * by_y - xy * by_x], dim=-1) / determinant[:, None]
        place = place + shift.clamp(-1, 1)
    alike = (_normalised(_windows(b, place, _WINDOW, 1.0)) * wanted).sum(1)
    return place, (alike > _ALIGNED) & ((place - from_b).norm(dim=1) < _DRIFT)
