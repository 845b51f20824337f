"""The video of a fit as shards of one clip, which is read like any other data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from four_d.data.contract import ClipInfo, RawClip
from four_d.data.shards import finalise, shard_done, write_shard
from four_d.errors import UserError
from four_d.video.fit import Fits, fit, resize, resize_masks, sizes_of
from four_d.video.footage import Selection, footage, stream
from four_d.video.mask import as_masks

WINDOW = 16
"""Frames that are held at their original size at once."""
SOURCE = "fit"


@dataclass(frozen=True, kw_only=True)
class FittedClip:
    """Facts of the clip in the shards."""

    times: NDArray[np.float64]
    """Seconds of the frames."""
    total: int
    """Frames of the video."""
    indices: tuple[int, ...]
    """Frames of the video that were taken."""
    fits: Fits
    images: NDArray[np.uint8]
    """f h w 3, as they are fitted."""
    masks: NDArray[np.bool_]
    """f h w."""


def write_clip(video: Path, mask: Path, size: int, out: Path, *, most: int = 300) -> FittedClip:
    """Write up to ``most`` frames at about size² pixels, and the mask as what moves, as shards in ``out``.

    UserError where the video or the mask cannot be read, has one frame only, or the mask is empty in every frame.
    """
    frames = stream(footage(video), Selection(max_frames=most))
    if len(frames) < 2:
        raise UserError(f"{video} has one frame; a fit needs two and more")
    plan = [range(start, min(start + WINDOW, len(frames))) for start in range(0, len(frames), WINDOW)]
    images, masks, fits = list[NDArray[np.uint8]](), list[NDArray[np.bool_]](), list[Fits]()
    for part in frames.windows(plan):
        to = fit(sizes_of(part.frames), (size, size), 1)
        images.append((resize(part.frames, to).permute(0, 2, 3, 1) * 255).round().byte().numpy())
        masks.append(resize_masks(as_masks(mask, part), to).numpy())
        fits.append(to)
    shown, kept = np.concatenate(images), np.concatenate(masks)
    if not kept.any():
        raise UserError(f"{mask} marks nothing in any frame of {video}; give one that is nonzero where the object is")
    info = ClipInfo(
        source=SOURCE,
        licence="the user's own",
        metric=False,
        width=shown.shape[2],
        height=shown.shape[1],
        times=frames.times.tolist(),
        camera_ids=[0] * len(shown),
    )
    if not shard_done(out, 0):
        write_shard(out, 0, [RawClip(key=SOURCE, info=info, images=shown, dynamic=kept)], lossless=True)
    finalise(out, SOURCE)
    return FittedClip(
        times=frames.times,
        total=frames.total,
        indices=tuple(range(len(shown))) if frames.indices is None else frames.indices,
        fits=Fits.join(fits),
        images=shown,
        masks=kept,
    )
