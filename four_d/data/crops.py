"""Crops of a clip's images to a training size, together with its cameras and ground truth."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from four_d import fields
from four_d.errors import UserError
from four_d.geometry import inside
from four_d.types import Clip, Geometry

EDGE = 1.05
"""Ratio of neighbouring depths above which they lie on two surfaces, and depth is not interpolated between them."""
REDUCTIONS = (8, 4, 2)
"""Factors by which a JPEG can be decoded smaller at once."""
ENLARGED = 0.9
"""Least size of a new pixel, in pixels of a reduced image: that of an image which is enlarged by a ninth. A reduced
image is a little softer than one resized at once: the standard deviation of the filter is 0.48 to 0.55 new pixels
instead of 0.41."""


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Windows of a clip's frames, and the size to which they are resized."""

    corner: NDArray[np.int64]
    """f 2: x, y of the window's first pixel."""
    pixel: NDArray[np.float64]
    """f 2: width and height of a new pixel in source pixels."""
    size: tuple[int, int]
    """Rows and columns of the new images."""
    reduction: int
    """Divisor of ``corner``: images may be this many times smaller than the source before they are resized."""

    def reordered(self, order: NDArray[np.int64]) -> Crop:
        """Windows of frames in another order."""
        return dataclasses.replace(self, corner=self.corner[order], pixel=self.pixel[order])

    def changes(self, source: tuple[int, int]) -> bool:
        """False if the windows are whole images of ``source`` (rows, columns) in their own size."""
        return source != self.size or bool(self.corner.any()) or bool((np.abs(self.pixel - 1) > 1e-9).any())

    def image(self, frame: int, pixels: Tensor, reduced: int = 1) -> Tensor:
        """Resize a frame's window: ``1 c y x`` of uint8 or float to ``1 c h w``.

        A triangle filter as wide as the new pixel (or the old, if wider). ``reduced``: how many times smaller than the
        source ``pixels`` are.
        """
        x, y = (self.corner[frame] // reduced).tolist()
        width, height = (self.pixel[frame] / reduced).tolist()
        columns = _extent(self.size[1] * width, pixels.shape[-1] - x)
        rows = _extent(self.size[0] * height, pixels.shape[-2] - y)
        window = pixels[..., y : y + rows, x : x + columns]
        # beneath `interpolate`, which takes a size or scales and not both: windows end within a pixel
        return torch.ops.aten._upsample_bilinear2d_aa(window, self.size, False, 1 / height, 1 / width)

    def pixels(self, frame: int, image: NDArray[np.uint8], reduced: int = 1) -> NDArray[np.uint8]:
        """Resize a frame's window of ``y x 3`` to ``3 h w``, as `image` does."""
        return self.image(frame, torch.from_numpy(image).permute(2, 0, 1)[None], reduced)[0].numpy()

    def centres(self) -> tuple[Float[Tensor, "f h"], Float[Tensor, "f w"]]:
        """Source coordinates (corner origin) of the centres of the new rows and columns."""
        corner, pixel = torch.from_numpy(self.corner), torch.from_numpy(self.pixel)
        places = [corner[:, axis, None] + (torch.arange(n) + 0.5) * pixel[:, axis, None] for axis, n in self._axes()]
        return places[0].float(), places[1].float()

    def _axes(self) -> list[tuple[int, int]]:
        return [(1, self.size[0]), (0, self.size[1])]


def _extent(wanted: float, available: int) -> int:
    return min(max(math.ceil(wanted - 1e-6), 1), available)


@dataclass(frozen=True, kw_only=True)
class CropRule:
    """Largest windows around the principal points of an aspect, times ``zoom``.

    A clip without cameras is cropped around its images' centre. The principal point lands on the centre exactly, where
    VGGT's pose encoding takes it to be. Windows begin at whole source pixels, at multiples of 2 (4, 8) where they are
    resized to about half (a quarter, an eighth) or less. So the two focal lengths may change by factors that differ a
    little, by at most so many pixels of half a window; they stay constant where the principal point does.
    """

    size: tuple[int, int]
    """Rows and columns."""
    zoom: float = 1.0

    def at(self, centres: NDArray[np.float64], source: tuple[int, int]) -> Crop:
        """Windows for principal points (f 2) in images of ``source`` (rows, columns).

        UserError for a principal point outside its image.
        """
        length, size = np.array(source[::-1], np.float64), np.array(self.size[::-1], np.float64)
        half = np.minimum(centres, length - centres).min(0)
        if not (half > 0).all():
            raise UserError("a principal point lies outside its image; correct the intrinsics of this clip")
        pixel = 2 * self.zoom * float((half / size).min())
        reduction = next((factor for factor in REDUCTIONS if pixel >= ENLARGED * factor), 1)
        corner = centres - size / 2 * pixel
        whole = np.rint(corner / reduction) * reduction
        leaves = (whole < 0) | (2 * centres - whole > length + 1e-9)
        whole = np.where(leaves, np.ceil(corner / reduction - 1e-9) * reduction, whole)
        # a window of a pixel or so has no whole pixels within
        whole = np.where(centres - whole < (centres - corner) / 2, np.floor(corner), whole)
        return Crop(
            corner=whole.astype(np.int64), pixel=2 * (centres - whole) / size, size=self.size, reduction=reduction
        )


def principal_points(
    intrinsics: NDArray[np.float64] | None, frames: int, source: tuple[int, int]
) -> NDArray[np.float64]:
    """Principal points (f 2) of ``intrinsics`` (f 3 3); None: the centres of images of ``source`` (rows, columns)."""
    if intrinsics is None:
        return np.tile(np.array([source[1], source[0]]) / 2, (frames, 1))
    return intrinsics[:, :2, 2]


def crop(clip: Clip, rule: CropRule) -> Clip:
    """Crop an unbatched clip. ValueError for maps of other frames than the clip's (``motion``, ``views``)."""
    height, width = clip.images.shape[-2:]
    lenses = None if clip.cameras is None else clip.cameras.intrinsics.double().numpy()
    window = rule.at(principal_points(lenses, len(clip.images), (height, width)), (height, width))
    if not window.changes((height, width)):
        return clip
    images = torch.cat([window.image(frame, image[None]) for frame, image in enumerate(clip.images)])
    return cropped(clip, window, images.clamp(0, 1))


def cropped(clip: Clip, window: Crop, images: Float[Tensor, "f 3 h w"]) -> Clip:
    """Give an unbatched clip the ``images`` of a window, and crop all else of it.

    Depth is interpolated inside a surface and never across an edge; everything else is resampled to the nearest pixel.
    """
    rows, columns = window.centres()
    done = {"images": images}
    if clip.depth is not None:
        done["depth"] = resample_depth(clip.depth, rows, columns)
        done["valid"] = done["depth"] > 0
    corner, pixel = torch.from_numpy(window.corner).float(), torch.from_numpy(window.pixel).float()

    def act(leaf: fields.Leaf, tensor: Tensor) -> Tensor:
        if leaf.name in done:
            return done[leaf.name]
        if leaf.geometry is Geometry.INTRINSICS:
            return _crop_intrinsics(tensor, window)
        if leaf.geometry is Geometry.PIXEL:
            return _crop_pixels(leaf, tensor, corner, pixel)
        return _crop_maps(leaf, tensor, rows, columns)

    return _seen_inside(fields.apply(clip, act))


def _crop_intrinsics(intrinsics: Float[Tensor, "f 3 3"], window: Crop) -> Tensor:
    found = intrinsics.double()
    found[:, :2, 2] -= torch.from_numpy(window.corner)
    found[:, :2] /= torch.from_numpy(window.pixel)[:, :, None]
    return found.to(intrinsics.dtype)


def _crop_pixels(
    leaf: fields.Leaf, pixels: Tensor, corner: Float[Tensor, "f 2"], pixel: Float[Tensor, "f 2"]
) -> Tensor:
    if leaf.axes[-1] == "3":
        frame, xy = pixels[:, :1], pixels[:, 1:]
        of = frame[:, 0].long()
        return torch.cat([frame, (xy - corner[of]) / pixel[of]], dim=-1)
    own = leaf.dim("f", pixels)
    if own is None:
        return (pixels - corner[0]) / pixel[0]
    shape = [-1 if place == own else 1 for place in range(pixels.ndim - 1)]
    return (pixels - corner.view(*shape, 2)) / pixel.view(*shape, 2)


def _seen_inside(clip: Clip) -> Clip:
    """Clip in which keypoints that a crop has cut off are not visible."""
    if clip.keypoints is None:
        return clip
    pixels, size = clip.keypoints.pixels, (clip.images.shape[-2], clip.images.shape[-1])
    within = inside(pixels, torch.ones_like(pixels[..., 0]), size)
    return dataclasses.replace(
        clip, keypoints=dataclasses.replace(clip.keypoints, visible=clip.keypoints.visible & within)
    )


def _crop_maps(leaf: fields.Leaf, tensor: Tensor, rows: Float[Tensor, "f h"], columns: Float[Tensor, "f w"]) -> Tensor:
    """Resample by nearest pixel, because neither masks nor correspondence can be interpolated."""
    dims = [leaf.dim(axis, tensor) for axis in ("f", "h", "w")]
    if dims[1] is None and dims[2] is None:
        return tensor
    if any(dim is None for dim in dims):
        raise ValueError(
            f"{leaf.name} ('{' '.join(leaf.axes)}') does not have all axes f, h and w, and cannot be cropped"
        )
    present = [dim for dim in dims if dim is not None]
    return _nearest(tensor.movedim(present, (-3, -2, -1)), rows, columns).movedim((-3, -2, -1), present)


def _nearest(maps: Tensor, rows: Float[Tensor, "f h"], columns: Float[Tensor, "f w"]) -> Tensor:
    """Value of the source pixel that holds each new centre; axes of ``maps``: … f y x."""
    y = rows.floor().long().clamp(0, maps.shape[-2] - 1)
    x = columns.floor().long().clamp(0, maps.shape[-1] - 1)
    return _gather(maps, y, x)


def _gather(maps: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Rows y (f h) and columns x (f w) of maps (… f y x), one axis after the other: many times faster than at once."""
    frames = [
        maps[..., frame, :, :].index_select(-2, rows).index_select(-1, columns)
        for frame, (rows, columns) in enumerate(zip(y, x, strict=True))
    ]
    return torch.stack(frames, dim=-3)


def resample_depth(
    depth: Float[Tensor, "f y x"], rows: Float[Tensor, "f h"], columns: Float[Tensor, "f w"]
) -> Float[Tensor, "f h w"]:
    """Resample depth (0 where it is invalid) at new pixel centres.

    Where the four neighbours are valid and of one surface, 1/z is interpolated (and continued by the last half pixel
    at the image's border): it is linear in the pixel on a plane. Elsewhere the pixel that holds the centre counts.
    """
    # one frame at a time, while it is in the processor's cache
    found = torch.stack([_resampled(*each) for each in zip(depth, rows, columns, strict=True)])
    return found.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)  # damaged vertices make any depth


def _resampled(depth: Float[Tensor, "y x"], rows: Float[Tensor, "h"], columns: Float[Tensor, "w"]) -> Tensor:
    height, width = depth.shape
    y, x = rows - 0.5, columns - 0.5
    y0, x0 = y.floor().long().clamp(0, max(height - 2, 0)), x.floor().long().clamp(0, max(width - 2, 0))
    above, below = depth.index_select(0, y0), depth.index_select(0, (y0 + 1).clamp_max(height - 1))
    x1 = (x0 + 1).clamp_max(width - 1)
    a, b, c, d = [line.index_select(1, place) for line in (above, below) for place in (x0, x1)]
    nearest = torch.minimum(torch.minimum(a, b), torch.minimum(c, d))
    farthest = torch.maximum(torch.maximum(a, b), torch.maximum(c, d))
    one_surface = (nearest > 0) & (farthest <= EDGE * nearest)
    u, v = (x - x0)[None, :], (y - y0)[:, None]
    top, bottom = (torch.lerp(left.reciprocal(), right.reciprocal(), u) for left, right in ((a, b), (c, d)))
    smooth = torch.lerp(top, bottom, v).reciprocal()
    return torch.where(one_surface, smooth, _nearest(depth[None], rows[None], columns[None])[0])
