"""Frames of videos for imported clips: read once, in order, cut into clips and made smaller."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.importers.writing import MOST_FRAMES
from four_d.errors import UserError
from four_d.video.footage import footage

CLIP_FRAMES = 48
"""Times of a clip, unless another number is asked for: all its images are in memory while it is written."""


class Reel:
    """Video file or folder of images whose frames are taken in order, decoded once. UserError if it is neither."""

    def __init__(self, path: Path) -> None:
        self._source = footage(path)
        self._source.survey()
        self._frames: Iterator[NDArray[np.uint8]] = iter(())
        self._next = -1
        self.path = path
        self.times = list(self._source.times)
        """Seconds of each frame since the first."""

    def size(self) -> tuple[int, int]:
        """Width and height."""
        height, width = next(iter(self._source.frames([0]))).shape[:2]
        return width, height

    def take(self, frames: Sequence[int]) -> list[NDArray[np.uint8]]:
        """Read ascending frames (h w 3); one before the last that was taken starts the decoding again."""
        if not 0 <= self._next <= frames[0]:
            self._frames = self._source.frames(range(frames[0], len(self.times)))
            self._next = frames[0]
        taken: list[NDArray[np.uint8]] = []
        for frame in frames:
            taken += itertools.islice(self._frames, frame - self._next, frame - self._next + 1)
            self._next = frame + 1
        return taken


def cut(total: int, most: int, cameras: int = 1) -> list[range]:
    """Cut ``total`` times into as few clips as possible of at most ``most`` times and about equal length.

    UserError for fewer than one time, or more than a clip's frames hold.
    """
    if most < 1 or most * cameras > MOST_FRAMES:
        raise UserError(f"clip frames is {most}; choose from 1 to {MOST_FRAMES // cameras}")
    ends = np.linspace(0, total, -(-total // most) + 1).round().astype(int).tolist()
    return [range(start, stop) for start, stop in itertools.pairwise(ends)]


def shrink(images: NDArray[np.uint8], long_side: int | None) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Make images (f h w 3) smaller, antialiased, until their longer side is ``long_side``; with factors of x and y."""
    height, width = images.shape[1:3]
    if long_side is None or long_side >= max(width, height):
        return images, np.ones(2)
    if long_side < 1:
        raise UserError(f"long side is {long_side}; choose 1 or more")
    factor = long_side / max(width, height)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    small = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) for image in images]
    return np.stack(small), np.array([size[0] / width, size[1] / height])


def finite(values: NDArray[np.floating]) -> NDArray[np.bool_]:
    """True for vectors (… c) without NaN or infinity."""
    return np.asarray(np.isfinite(values).all(-1))


def inside(pixels: NDArray[np.floating], size: Sequence[int]) -> NDArray[np.bool_]:
    """True for pixels (… 2, corner origin) within an image of this width and height; False for NaN."""
    return np.asarray(((pixels >= 0) & (pixels < np.asarray(size))).all(-1))
