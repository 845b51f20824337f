"""Places of one frame's points in another frame, to a fraction of a pixel, by pixels alone: nothing is learned (ours).

The likeliest place anywhere in the other frame is found by small normalised windows of reduced images; gradients then
lead to the exact one, from coarse to fine (Lucas and Kanade, IJCAI 1981; the inverse-compositional form of Baker and
Matthews, IJCV 2004), whatever the brightness and contrast. Each place comes with its information: what the window's
texture tells across and along it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from four_d.correlation import pick
from four_d.layers import full_type

SEARCHED = 64
"""Longer side of the reduced images in which a place is searched, in pixels, about."""
WINDOW = 7
"""Side of the searched windows in pixels of the reduced images."""
SHARPNESS = 30.0
"""Factor on the cosine of two windows before the softmax, which says how sure a place is."""
FOLLOWED = 7
"""Side of the windows that are followed by gradients, in pixels of each level."""
MARGIN = 3
"""Pixels of each level from the border within which windows show too much of what is not there."""
STEPS, FAR = 5, 4.0
"""Steps by gradients at each level, and pixels of the level beyond which they have lost the place."""
NOISE = 0.02
"""Standard deviation of brightness (0 to 1) that matched windows may always differ by."""
EXACT = 1e-3
"""Standard deviation of a place that no texture lowers, in longer sides of the image; at least `LEAST` pixels."""
LEAST = 0.07
ALIKE = 0.7
"""Least correlation of windows that are the same."""


@dataclass(frozen=True, kw_only=True)
class Pyramid:
    """Grey images of all frames, from the finest level to the coarsest, each half as large."""

    levels: tuple[Float[Tensor, "b f _h _w"], ...]
    factors: tuple[float, ...]
    """Pixels of the image per pixel of the level."""

    @staticmethod
    def of(images: Float[Tensor, "b f 3 h w"]) -> Pyramid:
        """Reduce images until the longer side has about `SEARCHED` pixels."""
        grey = images.to(full_type(images.dtype)).mean(2)
        levels, factors = [grey], [1.0]
        while max(levels[-1].shape[-2:]) >= 1.5 * SEARCHED:
            levels.append(functional.avg_pool2d(levels[-1], 2, ceil_mode=True, count_include_pad=False))
            factors.append(2 * factors[-1])
        return Pyramid(levels=tuple(levels), factors=tuple(factors))


def corners(pyramid: Pyramid, cells: int) -> Float[Tensor, "b f n 2"]:
    """Pixels (corner origin) with the best texture of each cell, by the smaller eigenvalue of the structure tensor.

    The longer side has at most ``cells`` cells (Shi and Tomasi, CVPR 1994).
    """
    grey, factor = pyramid.levels[-1], pyramid.factors[-1]
    x, y = _slopes(grey)
    xx, yy, xy = (functional.avg_pool2d(each, 5, 1, 2) for each in (x * x, y * y, x * y))
    response = (xx + yy) / 2 - (((xx - yy) / 2).square() + xy.square()).sqrt()
    inner = functional.pad(torch.ones_like(response[..., MARGIN:-MARGIN, MARGIN:-MARGIN]), (MARGIN,) * 4)
    response = response * inner - (1 - inner)
    height, width = grey.shape[-2:]
    side = max(height, width) / min(cells, max(height, width))
    grid = max(1, round(height / side)), max(1, round(width / side))
    _, index = functional.adaptive_max_pool2d(response, grid, return_indices=True)
    index = index.flatten(-2)
    return (torch.stack([index % width, index // width], dim=-1).to(grey) + 0.5) * factor


def _slopes(grey: Float[Tensor, "*b h w"]) -> tuple[Float[Tensor, "*b h w"], Float[Tensor, "*b h w"]]:
    padded = functional.pad(grey, (1, 1, 1, 1), mode="replicate")
    return (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2, (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2


@dataclass(frozen=True, kw_only=True)
class Places:
    """Places of points in other frames."""

    pixels: Float[Tensor, "*b n 2"]
    """Corner origin."""
    information: Float[Tensor, "*b n 2 2"]
    """Inverse covariance of the place, per square pixel; 0 where the place was lost."""


def search(
    images: Float[Tensor, "b f 3 h w"], points: Float[Tensor, "b f n 2"], others: Int[Tensor, "b f"]
) -> tuple[Float[Tensor, "b f n 2"], Float[Tensor, "b f n"]]:
    """Likeliest places of each frame's points anywhere in its other frame, and their probability.

    Exact to about a pixel of images reduced to `SEARCHED`. Memory: points times these pixels, of one pair at a time.
    """
    factor = max(1, round(max(images.shape[-2:]) / SEARCHED))
    small = functional.avg_pool2d(
        images.to(full_type(images.dtype)).flatten(0, 1), factor, ceil_mode=True, count_include_pad=False
    )
    rows, columns = small.shape[-2:]
    padded = functional.pad(small, (WINDOW // 2,) * 4, mode="replicate")
    cell = (points / factor).floor().long()
    index = cell[..., 1].clamp(0, rows - 1) * columns + cell[..., 0].clamp(0, columns - 1)
    padded = padded.unflatten(0, images.shape[:2])
    places, sure = list[Tensor](), list[Tensor]()
    for frame in range(images.shape[1]):  # one at a time: all windows of a long video are many
        windows = functional.unfold(padded[:, frame], WINDOW)
        ours = _unit(windows.gather(2, index[:, frame, None].expand(-1, windows.shape[1], -1)))
        theirs = _unit(functional.unfold(pick(padded, others[:, frame]), WINDOW))
        logits = SHARPNESS * (_unit(ours).mT @ theirs)  # twice: of unit length even where nearly flat
        top, best = logits.max(-1)
        found = torch.stack([best % columns, best // columns], dim=-1)
        places.append((points[:, frame] / factor - cell[:, frame] + found) * factor)
        sure.append((top - logits.logsumexp(-1)).exp())
    return torch.stack(places, dim=1), torch.stack(sure, dim=1)


def _unit(windows: Float[Tensor, "p d n"]) -> Float[Tensor, "p d n"]:
    """Windows with zero mean per channel, of unit length."""
    channels = windows.unflatten(1, (3, -1))
    return functional.normalize((channels - channels.mean(2, keepdim=True)).flatten(1, 2), dim=1, eps=1e-2)


def follow(
    pyramid: Pyramid,
    points: Float[Tensor, "b f n 2"],
    others: Int[Tensor, "b f o"],
    there: Float[Tensor, "b f o n 2"],
    warp: Float[Tensor, "b f o n 2 2"],
) -> Places:
    """Places in the other frames to which the windows around each frame's points lead by gradients.

    ``there`` is where they begin, ``warp`` how a step in a point's own frame appears in the other.
    """
    place, sound = there, torch.ones_like(there[..., 0], dtype=torch.bool)
    information = torch.zeros_like(warp)
    for grey, factor in zip(reversed(pyramid.levels), reversed(pyramid.factors)):
        moved, information, aligned = _align(grey, points / factor, others, place / factor, warp)
        near = (moved - place / factor).norm(dim=-1) <= FAR
        sound = sound & near & aligned
        place = torch.where(near[..., None], moved * factor, place)
        information = information / factor**2
    height, width = pyramid.levels[0].shape[-2:]
    floor = max(LEAST, EXACT * max(height, width)) ** 2
    # (information⁻¹ + floor)⁻¹, without the inverse of what may be singular
    information = information @ inverse(torch.eye(2).to(place) + floor * information)
    inside = ((place >= MARGIN) & (place <= place.new_tensor([width, height]) - MARGIN)).all(-1)
    return Places(pixels=place, information=information * (sound & inside)[..., None, None])


def inverse(matrix: Float[Tensor, "*b 2 2"]) -> Float[Tensor, "*b 2 2"]:
    """Inverse in closed form."""
    a, b, c, d = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 1, 0], matrix[..., 1, 1]
    adjugate = torch.stack([torch.stack([d, -b], dim=-1), torch.stack([-c, a], dim=-1)], dim=-2)
    return adjugate / (a * d - b * c)[..., None, None]


def _align(
    grey: Float[Tensor, "b f h w"],
    points: Float[Tensor, "b f n 2"],
    others: Int[Tensor, "b f o"],
    there: Float[Tensor, "b f o n 2"],
    warp: Float[Tensor, "b f o n 2 2"],
) -> tuple[Float[Tensor, "b f o n 2"], Float[Tensor, "b f o n 2 2"], Bool[Tensor, "b f o n"]]:
    """Places at one level, their information by texture, and where windows are alike."""
    b, f, o = there.shape[:3]
    reach = torch.arange(FOLLOWED, device=there.device, dtype=there.dtype) - FOLLOWED // 2
    offsets = torch.stack(torch.meshgrid(reach, reach, indexing="xy"), dim=-1).reshape(-1, 2)
    maps = torch.stack([grey, *_slopes(grey)], dim=2).flatten(0, 1)
    own = _windows(maps, points.flatten(0, 1)[..., None, :] + offsets)
    own = (own - own.mean(-1, keepdim=True)).unflatten(0, (b, f))
    first, slopes = own[:, :, 0], own[:, :, 1:]
    spread = first.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-4)
    normal = torch.einsum("bfink,bfjnk->bfnij", slopes, slopes)
    solve = inverse(normal + 1e-4 * torch.eye(2).to(normal))
    slopes = slopes.movedim(2, 3)  # b f n 2 k
    found = list[tuple[Tensor, Tensor, Tensor]]()
    for index in range(o):  # one at a time, for memory
        turn, place, picked = warp[:, :, index], there[:, :, index], others[:, :, index]
        warped, theirs = offsets @ turn.mT, pick(grey, picked).flatten(0, 1)[:, None]
        left = alike = first
        for step in range(STEPS + 1):
            at = (place[..., None, :] + warped).flatten(0, 1)
            seen = _windows(theirs, at)[:, 0].unflatten(0, (b, f))
            seen = seen - seen.mean(-1, keepdim=True)
            scale = seen.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-4)
            left = seen * (spread / scale).clamp(0.5, 2.0) - first
            if step == STEPS:
                alike = (seen * first).mean(-1) / (scale * spread)[..., 0]
            else:
                back = (solve @ (slopes @ left[..., None])).clamp(-1, 1)
                place = place - (turn @ back)[..., 0]
        noise = left.square().mean(-1) + NOISE**2
        outer = inverse(turn)  # to the other frame's pixels
        found.append((place, outer.mT @ normal @ outer / noise[..., None, None], alike > ALIKE))
    place, information, alike = (torch.stack(each, dim=2) for each in zip(*found))
    return place, information, alike


def _windows(maps: Float[Tensor, "p c h w"], pixels: Float[Tensor, "p n k 2"]) -> Float[Tensor, "p c n k"]:
    """Values at pixels (corner origin), bilinearly."""
    size = torch.tensor([maps.shape[-1], maps.shape[-2]], device=maps.device, dtype=maps.dtype)
    return functional.grid_sample(maps, 2 * pixels / size - 1, padding_mode="border", align_corners=False)
