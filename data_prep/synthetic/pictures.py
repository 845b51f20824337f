"""Photographs of a folder as textures: what they are, and how they come onto surfaces."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from four_d.errors import UserError
from four_d.formats.glb import to_linear
from four_d.video.images import IMAGE_SUFFIXES, picture, quiet, size_of
from four_d.video.remarks import some

LOGGER = logging.getLogger("four_d.data_prep")
Array = NDArray[np.float64]
Floats = NDArray[np.float32]
Random = np.random.Generator
LONGEST = 1024
"""Longer side to which photographs are reduced as they are read."""
DARKEST, LIGHTEST = 0.02, 0.9
"""Range of albedo."""


class Photographs:
    """Readable images below a folder, in order of their names; the same folder gives the same pictures."""

    def __init__(self, folder: Path) -> None:
        """List the files. UserError if there is none."""
        self.folder = folder
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; give one of photographs")
        found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and not quiet(path))
        self.files = sorted((path for path in found if path.is_file()), key=lambda path: path.as_posix())
        if not self.files:
            raise UserError(f"{folder} holds no images; put photographs there ({' '.join(sorted(IMAGE_SUFFIXES))})")

    def check(self) -> None:
        """Warn of the files whose header does not read. UserError if no file does."""
        broken: list[str] = []
        for path in self.files:
            try:
                size_of(path, turn=True)
            except UserError:
                broken.append(self.name(path))
        if len(broken) == len(self.files):
            raise UserError(f"none of the {len(broken)} images in {self.folder} can be read ({some(broken)})")
        if broken:
            LOGGER.warning(f"{self.folder}: passing over {len(broken)} images that cannot be read: {some(broken)}")

    def name(self, path: Path) -> str:
        """Path of a file below the folder."""
        return path.relative_to(self.folder).as_posix()

    def draw(self, rng: Random) -> tuple[str, NDArray[np.uint8]]:
        """Name and pixels (h w 3, upright, sRGB) of a photograph; of one that does not decode, the next instead."""
        first = int(rng.integers(len(self.files)))
        for step in range(len(self.files)):
            path = self.files[(first + step) % len(self.files)]
            pixels = _read(path)
            if pixels is not None:
                return self.name(path), pixels
        raise UserError(f"none of the {len(self.files)} images in {self.folder} can be read")


@lru_cache(maxsize=64)
def _read(path: Path) -> NDArray[np.uint8] | None:
    """Pixels of a photograph, at most `LONGEST` long; None, with a warning, if it does not decode."""
    try:
        pixels = picture(path, turn=True)
    except UserError as error:
        LOGGER.warning(f"{error}; another takes its place")
        return None
    image = Image.fromarray(pixels)
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return np.asarray(image)


@lru_cache(maxsize=16)
def photographs(folder: Path) -> Photographs:
    """List of a folder's photographs, made once per process."""
    return Photographs(folder)


def tile_of(pixels: NDArray[np.uint8], side: int) -> Floats:
    """Resample pixels (h w 3, sRGB) of any shape to a tile (side side 3) of linear albedo, stretched to a square."""
    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS)
    return np.clip(to_linear(np.asarray(image) / 255), DARKEST, LIGHTEST).astype(np.float32)


def square(rng: Random, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Random square of an image, of at least half its shorter side."""
    height, width = pixels.shape[:2]
    side = max(int(min(height, width) * rng.uniform(0.5, 1.0)), 1)
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    return pixels[top : top + side, left : left + side]


def cover(rng: Random, pixels: NDArray[np.uint8], width: float, height: float) -> NDArray[np.uint8]:
    """Largest window of an image with the proportions of a surface ``width`` × ``height``, at a random place."""
    rows, columns = pixels.shape[:2]
    shape = min(rows, max(round(columns * height / width), 1)), min(columns, max(round(rows * width / height), 1))
    top, left = (int(rng.integers(have - want + 1)) for have, want in zip((rows, columns), shape))
    return pixels[top : top + shape[0], left : left + shape[1]]
