"""User-supplied motion masks, matched to the frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Bool, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from four_d.errors import UserError
from four_d.video.fit import sizes_of
from four_d.video.footage import Video
from four_d.video.foreign import check_there
from four_d.video.images import listed, several
from four_d.video.remarks import Remarks

LOSSY_SUFFIXES = frozenset({".jpg", ".jpeg"})
MOSTLY = 0.9
"""Fraction of set pixels above which a mask is suspected to be inverted."""

Mask = (
    str
    | Path
    | Bool[np.ndarray, "*f h w"]
    | UInt8[np.ndarray, "*f h w"]
    | Bool[Tensor, "*f h w"]
    | Sequence[Bool[np.ndarray, "_h _w"] | UInt8[np.ndarray, "_h _w"] | Bool[Tensor, "_h _w"]]
)
"""Image or folder of images; array of one mask for all frames or one for each; or list of one for each. Nonzero pixels
move."""


def as_masks(mask: object, video: Video) -> list[Bool[np.ndarray, "_h _w"]]:
    """Masks of all frames of the video at their original size.

    A single mask serves all frames. If there are as many masks as the source has frames, those of the chosen frames are
    used. Images are read as label images: a palette's index, or any channel but transparency.

    Raises:
        UserError: another size or count, or not a mask.

    """
    masks = _read(Path(mask), video) if isinstance(mask, str | Path) else _from_array(mask, video)
    each = masks * len(video.frames) if len(masks) == 1 else masks
    for index, ((name, found), size) in enumerate(zip(each, sizes_of(video.frames), strict=True)):
        if found.shape != size:
            sizes = f"{found.shape[1]}×{found.shape[0]}, frame {index} is {size[1]}×{size[0]}"
            raise UserError(f"{name} is {sizes}; give it at that size")
    return [found for _, found in each]


_Named = tuple[str, NDArray[np.bool_]]
"""Name of a mask in errors, and the mask."""


def _from_array(mask: object, video: Video) -> list[_Named]:
    if isinstance(mask, Sequence):
        masks = [_array(each, (2,)) for each in cast(Sequence[object], mask)]
    else:
        array = _array(mask, (2, 3))
        masks = [array] if array.ndim == 2 else list(array)
    return [("the mask", masks[row]) for row in video.rows_of(len(masks), "masks")]


def _array(mask: object, axes: tuple[int, ...]) -> NDArray[np.bool_]:
    array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else mask
    if not isinstance(array, np.ndarray) or array.dtype not in (np.bool_, np.uint8) or array.ndim not in axes:
        what = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise UserError(f"the mask is {what}; give a path, or bool or uint8 (height, width) or (frames, height, width)")
    return cast(NDArray[np.uint8], array) != 0


def mask_files(path: Path, said: Remarks | None = None) -> list[Path]:
    """Image file, or those of a folder in natural order. UserError if there is none."""
    check_there(path, "an image, or a folder of images, that marks what moves")
    return [path] if path.is_file() else listed(path, "masks (one per frame or one for all)", said)


def check_masks(path: Path, said: Remarks | None = None) -> None:
    """Raise UserError if there is no mask or the first cannot be read; reports suspicious ones."""
    files = mask_files(path, said)
    share = float(read_mask(files[0]).mean())
    if said is not None and share > MOSTLY:
        said.say(f"marks {share:.0%} of the picture as moving; invert it if it marks what stands still")


def _read(path: Path, video: Video) -> list[_Named]:
    files = mask_files(path)
    chosen = [files[index] for index in video.rows_of(len(files), "masks")]
    return [(f"mask {file}", read_mask(file)) for file in chosen]


def read_mask(file: Path) -> NDArray[np.bool_]:
    """Read an image file as a mask, h w: True for anything but 0 or black; of one colour, for what is not transparent.

    UserError for a lossy file, or one of several pages.
    """
    if file.suffix.lower() in LOSSY_SUFFIXES:
        raise UserError(f"mask {file} is a JPEG, whose zeros do not stay zero; save it as PNG")
    try:
        with Image.open(file) as opened:
            if several(opened):
                raise UserError(f"mask {file} holds {several(opened)} pages; save them as a folder of PNGs")
            image = ImageOps.exif_transpose(opened)
            if image.mode in ("RGBA", "LA"):
                colour = image.convert(image.mode[:-1])
                image = image.getchannel("A") if _is_flat(colour) and not _is_flat(image) else colour
            pixels = np.asarray(image) != 0
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"mask {file} does not decode as an image ({error}); save it as PNG") from error
    return pixels if pixels.ndim == 2 else pixels.any(-1)


def _is_flat(image: Image.Image) -> bool:
    """True if all pixels are equal."""
    return all(low == high for low, high in np.reshape(image.getextrema(), (-1, 2)))
