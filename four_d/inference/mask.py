"""The user's own mask of what moves, brought to the frames' pixels, and the predicted one as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from four_d.errors import UserError
from four_d.inference.video import IMAGE_SUFFIXES, Video

LOSSY_SUFFIXES = frozenset({".jpg", ".jpeg"})

Mask = str | Path | Bool[np.ndarray, "*f h w"] | UInt8[np.ndarray, "*f h w"] | Bool[Tensor, "*f h w"]
"""An image or a folder of images; or an array, of one mask for all frames or of one for each. Nonzero: it moves."""


def as_masks(mask: object, video: Video) -> Bool[np.ndarray, "f h w"]:
    """A mask of every frame of the video at its original size.

    One mask serves all frames. Of as many masks as the video has frames, those of the frames that were taken are used.
    Images count as in label pictures: a palette's index, any channel but transparency.

    Raises:
        UserError: another size, another count, or nothing that is a mask.

    """
    masks = _read(Path(mask), video) if isinstance(mask, str | Path) else _from_array(mask, video)
    height, width = video.frames.shape[1:3]
    if masks.shape[1:] != (height, width):
        raise UserError(
            f"the mask is {masks.shape[2]}×{masks.shape[1]}, the frames are {width}×{height}; give it at their size"
        )
    return np.broadcast_to(masks, (len(video.frames), height, width))


def _from_array(mask: object, video: Video) -> Bool[np.ndarray, "f h w"]:
    array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else mask
    if not isinstance(array, np.ndarray) or array.dtype not in (np.bool_, np.uint8) or array.ndim not in (2, 3):
        what = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise UserError(f"the mask is {what}; give a path, or bool or uint8 (height, width) or (frames, height, width)")
    masks = cast(NDArray[np.uint8], array) != 0
    return masks[None] if masks.ndim == 2 else masks[video.rows_of(len(masks), "masks")]


def _read(path: Path, video: Video) -> Bool[np.ndarray, "f h w"]:
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
        if not files:
            raise UserError(f"{path} holds no images; put masks there, one per frame or one for all")
    elif path.is_file():
        files = [path]
    else:
        raise UserError(f"{path} does not exist; give an image, or a folder of images, that marks what moves")
    chosen = [files[index] for index in video.rows_of(len(files), "masks")]
    height, width = video.frames.shape[1:3]
    masks: list[NDArray[np.bool_]] = []
    for file in chosen:
        found = _read_image(file)
        if found.shape != (height, width):
            size = f"{found.shape[1]}×{found.shape[0]}"
            raise UserError(f"mask {file} is {size}, the frames are {width}×{height}; give it at their size")
        masks.append(found)
    return np.stack(masks)


def _read_image(file: Path) -> NDArray[np.bool_]:
    if file.suffix.lower() in LOSSY_SUFFIXES:
        raise UserError(f"mask {file} is a JPEG, whose zeros do not stay zero; save it as PNG")
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode in ("RGBA", "LA"):
                image = image.convert(image.mode[:-1])
            pixels = np.asarray(image) != 0
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"mask {file} does not decode as an image ({error}); save it as PNG") from error
    return pixels if pixels.ndim == 2 else pixels.any(-1)


def write_masks(folder: Path, moving: Float[np.ndarray, "f h w"] | Sequence[NDArray[np.float32]]) -> None:
    """Probabilities as 8-bit grey pictures, 255 for 1."""
    folder.mkdir()
    for index, frame in enumerate(moving):
        Image.fromarray((frame * 255).round().clip(0, 255).astype(np.uint8)).save(folder / f"{index:06d}.png")
