"""Checks of depth maps that need no camera: their place on the image, and numbers that stand for unknown depth."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from four_d.data.contract import RawClip
from four_d.data.evidence import EDGE_RATIO
from four_d.data.measures import Finding, Measure, Unchecked

FRAMES = 8
"""Frames whose depth is laid on their images."""
REACH = 0.03
"""Largest shift that is tried, in longer sides of the image; at least eight pixels."""
SHIFT_LIMIT, SIDE_LIMIT = 1.5, 0.004
"""Pixels, and share of the image's longer side, by which depth may lie beside the image."""
SENTINEL_LIMIT = 0.001
"""Share of the known pixels that may hold one number far from all others."""
_GAP, _NEAR = 0.1, 0.05
"""Surroundings of such a number, relative to it, and how many pixels they may hold relative to it."""
_SMALLEST = 12
"""Least longer side of an image, in the largest shift: in smaller ones a shift lays other things on each other."""
_CLEAR = 1.25
"""Factor by which edges must coincide better when shifted."""
_SIGMA = 5.0
"""Standard deviations by which edges must coincide better than by chance."""
_LAST_COUNT = 65535
"""Last count of 16 bits, which is no depth even if the camera stands still."""
_FAR = 3.0
"""Factor beyond all other depths, of which there must be more, from which on a number is none of them."""
_FORWARD = 0.01
"""Way along its axis, relative to the depth, and turn in radians from which on a camera sees no wall at one depth."""


@dataclass(frozen=True, kw_only=True)
class Sentinel:
    """Number that is stored where depth is unknown, and the share of known pixels that hold it."""

    value: float
    share: float


def sentinel(clip: RawClip) -> Sentinel | None:
    """Find the largest or smallest depth of a clip if many pixels hold it exactly and none are near."""
    if clip.depth is None or not clip.info.depth_unit:
        return None
    numbers = np.zeros(_LAST_COUNT + 1, np.int64)  # of pixels that hold each count
    for depth in clip.depth:  # one by one, for the sake of memory
        numbers += np.bincount(_counts(depth, clip.info.depth_unit).ravel(), minlength=len(numbers))
    numbers[0] = 0
    known = np.flatnonzero(numbers)
    for value in (int(known[-1]), int(known[0])) if len(known) else ():
        share = float(numbers[value] / numbers.sum())
        around = numbers[math.ceil(value * (1 - _GAP)) : math.floor(value * (1 + _GAP)) + 1].sum()
        near = float((around - numbers[value]) / numbers.sum())
        if share > SENTINEL_LIMIT and near < _NEAR * share and _apart(clip, value, clip.info.depth_unit):
            return Sentinel(value=value * clip.info.depth_unit, share=share)
    return None


def _counts(depth: NDArray[np.float32], unit: float) -> NDArray[np.int32]:
    return np.rint(depth / unit).clip(0, _LAST_COUNT).astype(np.int32)


def _apart(clip: RawClip, value: int, unit: float) -> bool:
    """Tell a number from a wall that a camera sees at one depth: it stays where the camera goes forward or turns, or is
    far from all that is seen where the camera goes sideways.
    """
    if value == _LAST_COUNT:
        return True
    assert clip.depth is not None
    frames: list[int] = []  # that hold the number
    held, others, nearest, farthest = 0, 0, math.inf, 0.0  # held: beside other depths in a frame
    for frame, stored in enumerate(clip.depth):
        holds = _counts(stored, unit) == value
        if not holds.any():
            continue
        frames.append(frame)
        different = stored[(stored > 0) & ~holds]
        if len(different):
            held, others = held + int(holds.sum()), others + len(different)
            nearest, farthest = min(nearest, float(different.min())), max(farthest, float(different.max()))
    if clip.world_from_camera is None or len(frames) < 2:
        return False
    depth = value * unit
    if others > held and not nearest / _FAR < depth < farthest * _FAR:
        return bool(np.ptp(clip.world_from_camera[frames, :3, 3], axis=0).max() > 0)
    poses = clip.world_from_camera[frames]
    forward = (poses[:, :3, 3] - poses[0, :3, 3]) @ poses[0, :3, 2]
    turned = np.linalg.norm(poses[:, :3, 2] - poses[0, :3, 2], axis=-1)
    return bool(np.ptp(forward) > _FORWARD * depth or turned.max() > _FORWARD)


def depth_map_findings(clip: RawClip, found: Sentinel | None) -> Iterator[Finding]:
    """Check a clip's depth maps by themselves; ``found`` is what `sentinel` found."""
    if clip.depth is None:
        return
    yield Measure(
        check="depth values",
        value=0.0 if found is None else found.share,
        limit=SENTINEL_LIMIT,
        what="share of the known depths that are one number, with none near it",
        remedy="" if found is None else f"{found.value:.6g} is no depth: store 0 where depth is unknown",
    )
    yield _place(clip)


def _place(clip: RawClip) -> Finding:
    """Lay depth's edges on the images', at every small shift."""
    assert clip.depth is not None
    reach = max(8, round(REACH * max(clip.info.width, clip.info.height)))
    if max(clip.info.width, clip.info.height) < _SMALLEST * reach:
        return Unchecked(what="place of depth on the image", why="the images are too small")
    chosen = np.unique(np.linspace(0, len(clip.images) - 1, FRAMES).round().astype(int)).tolist()
    maps = [_coincidence(clip, frame, reach) for frame in chosen]
    maps = [each for each in maps if each is not None]
    if not maps:
        return Unchecked(what="place of depth on the image", why="too few edges in depth or image")
    total = torch.stack(maps).mean(0)
    total = total / total.std().clamp_min(1e-9)  # frames of one view are no independent evidence
    peak = int(total.argmax())
    y, x = divmod(peak, 2 * reach + 1)
    x, y = x - reach, y - reach
    here = float(total[reach - 1 : reach + 2, reach - 1 : reach + 2].max())
    best = float(total.flatten()[peak])
    if best < _SIGMA:
        return Unchecked(what="place of depth on the image", why="its edges are not those of the image")
    better = sum(float(each.flatten()[peak]) > float(each[reach, reach]) for each in maps) / len(maps)
    away = float(np.hypot(x, y)) if best > _CLEAR * max(here, 0) and better > 0.7 else 0.0
    ways = [
        f"{abs(n)} pixels too far {way}"
        for n, way in ((x, "right" if x > 0 else "left"), (y, "down" if y > 0 else "up"))
        if n
    ]
    return Measure(
        check="place of depth",
        value=away,
        limit=max(SHIFT_LIMIT, SIDE_LIMIT * max(clip.info.width, clip.info.height)),
        what="pixels by which depth must be shifted for its edges to lie on those of the image",
        remedy=f"depth lies {' and '.join(ways)}: shift it, or register it to the image",
    )


def _coincidence(clip: RawClip, frame: int, reach: int) -> Float[Tensor, "s s"] | None:
    """Number of edges of depth that lie on one of the image, by shift, in standard deviations over all shifts."""
    assert clip.depth is not None
    depth = torch.from_numpy(np.ascontiguousarray(clip.depth[frame]))
    known = depth > 0
    high = functional.max_pool2d(depth[None, None], 3, 1, 1)[0, 0]
    low = -functional.max_pool2d(-depth.where(known, torch.full_like(depth, torch.inf))[None, None], 3, 1, 1)[0, 0]
    whole = functional.avg_pool2d(known[None, None].float(), 3, 1, 1)[0, 0] > 0.99
    edge = (whole & (high > low * EDGE_RATIO)).float()
    if float(edge.sum()) < 4 * reach:
        return None
    image = torch.from_numpy(clip.images[frame].copy()).float().mean(-1)
    x = functional.pad(image[:, 2:] - image[:, :-2], (1, 1))
    y = functional.pad((image[2:] - image[:-2]).T, (1, 1)).T
    slope = (x.square() + y.square()).sqrt()
    slope = slope / (functional.avg_pool2d(slope[None, None], 31, 1, 15)[0, 0] + 8)  # alike in dull and busy places
    slope = slope - slope.mean()
    size = [side + 2 * reach for side in edge.shape]
    spectrum = torch.fft.rfft2(slope, s=size).conj() * torch.fft.rfft2(edge - edge.mean(), s=size)
    shifts = torch.fft.irfft2(spectrum, s=size).roll((reach, reach), (0, 1))[: 2 * reach + 1, : 2 * reach + 1]
    return (shifts - shifts.mean()) / shifts.std().clamp_min(1e-9)
