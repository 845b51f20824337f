"""Mapping between original pixels and model pixels, and resizing to the model's input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from four_d.errors import UserError
from four_d.types import Cameras

Size = tuple[int, int]
"""Height and width."""


Pictures = Sequence[UInt8[np.ndarray, "_h _w 3"]]
"""RGB frames; all frames of one camera have the same size."""


def sizes_of(frames: Pictures) -> list[Size]:
    """Height and width of each frame."""
    return [(frame.shape[0], frame.shape[1]) for frame in frames]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Centred crop of an original image, scaled to the model's input: original = (left, top) + model / scale.

    Both axes have the same scale, so that pixels stay square.
    """

    original: Size
    model: Size
    scale: float
    """Number of model pixels per original pixel."""
    left: float
    """Number of original pixels cropped at the left (and at the right)."""
    top: float


@dataclass(frozen=True)
class Fits:
    """Fit of each of f frames: cameras may differ in image size, the model's input size is common."""

    of_frames: tuple[Fit, ...]

    @property
    def model(self) -> Size:
        """Rows and columns of the model's input."""
        return self.of_frames[0].model

    @property
    def originals(self) -> list[Size]:
        """Original size of each frame."""
        return [own.original for own in self.of_frames]

    def take(self, part: slice) -> Fits:
        """Fits of some of the frames."""
        return Fits(self.of_frames[part])

    @staticmethod
    def join(parts: Sequence[Fits]) -> Fits:
        """Concatenate the fits of several parts."""
        return Fits(tuple(own for part in parts for own in part.of_frames))

    def to_original(self, intrinsics: Float[Tensor, "f 3 3"]) -> Float[Tensor, "f 3 3"]:
        """Convert intrinsics from model pixels to each frame's original pixels."""
        scale, corner = self._maps(intrinsics)
        result = intrinsics.clone()
        result[:, :2, :] = intrinsics[:, :2, :] / scale[:, None, None]
        result[:, :2, 2] += corner
        return result

    def to_model(self, intrinsics: Float[Tensor, "f 3 3"]) -> Float[Tensor, "f 3 3"]:
        """Inverse of `to_original`."""
        scale, corner = self._maps(intrinsics)
        result = intrinsics.clone()
        result[:, :2, 2] -= corner
        result[:, :2, :] *= scale[:, None, None]
        return result

    def points_to_original(self, points: Float[Tensor, "*b 2"], frames: Int[Tensor, "*#b"]) -> Float[Tensor, "*b 2"]:
        """Convert (x, y) from model pixels to original pixels of each point's frame."""
        scale, corner = self._maps(points)
        return points / scale[frames][..., None] + corner[frames]

    def points_to_model(self, points: Float[Tensor, "*b 2"], frames: Int[Tensor, "*#b"]) -> Float[Tensor, "*b 2"]:
        """Inverse of `points_to_original`."""
        scale, corner = self._maps(points)
        return (points - corner[frames]) * scale[frames][..., None]

    def check_seen(self, points: Float[Tensor, "n 2"], frames: Int[Tensor, "n"]) -> None:
        """Raise UserError for a point (original pixels) outside the part of its frame that the model sees."""
        rows, columns = self.model
        corners = torch.tensor([[0.0, 0], [columns, rows]])
        for (x, y), (column, row), frame in zip(
            points.tolist(), self.points_to_model(points, frames).tolist(), frames, strict=True
        ):
            if not (0 <= column <= columns and 0 <= row <= rows):
                (left, top), (right, bottom) = self.points_to_original(corners, frame).tolist()
                seen = f"x from {left:.4g} to {right:.4g} and y from {top:.4g} to {bottom:.4g}"
                raise UserError(f"point {x:g},{y:g} is outside what the model sees; choose {seen}")

    def original_cameras(self, cameras: Cameras) -> Cameras:
        """Cameras with intrinsics converted to original pixels."""
        return Cameras(
            world_from_camera=cameras.world_from_camera,
            intrinsics=self.to_original(cameras.intrinsics),
            known=cameras.known,
        )

    def _maps(self, like: Tensor) -> tuple[Float[Tensor, "f"], Float[Tensor, "f 2"]]:
        """Scale of each frame, and its (left, top)."""
        rows = [(own.scale, own.left, own.top) for own in self.of_frames]
        numbers = torch.tensor(rows, dtype=like.dtype, device=like.device)
        return numbers[:, 0], numbers[:, 1:]


def shape_between(sizes: Sequence[Size]) -> tuple[float, float]:
    """Height and width, up to a factor, with the geometric mean of the largest and smallest aspect ratio.

    No other shape has a smaller worst-case crop.
    """
    widest, tallest = (extreme(sizes, key=lambda size: size[1] / size[0]) for extreme in (max, min))
    return math.sqrt(widest[0] * tallest[0]), math.sqrt(widest[1] * tallest[1])


def fit(originals: Sequence[Size], trained: Size, patch: int, *, exact: Size | None = None) -> Fits:
    """Input size in whole patches with the images' aspect ratio and about the number of pixels of training.

    A model does best at its training size; rotary positions allow other grids of about as many patches. At most half a
    patch a side is cropped, evenly, for whole patches. Images of several shapes are cropped to one (`shape_between`).
    A model that takes one size alone, ``exact``, sees the middle of other shapes.
    """
    if exact is not None:
        return Fits(tuple(cover(original, exact) for original in originals))
    height, width = shape_between(originals)
    ideal = math.sqrt(trained[0] * trained[1] / (height * width))
    rows, columns = (max(1, round(side * ideal / patch)) for side in (height, width))
    return Fits(tuple(cover(original, (rows * patch, columns * patch)) for original in originals))


def cover(original: Size, model: Size) -> Fit:
    """Fit of an image that fills the model's input with the smallest crop."""
    height, width = original
    scale = max(model[0] / height, model[1] / width)
    return Fit(
        original=original,
        model=model,
        scale=scale,
        left=(width - model[1] / scale) / 2,
        top=(height - model[0] / scale) / 2,
    )


def regrid(depth: NDArray[np.float32], seen: Fit, to: Fit) -> NDArray[np.float32]:
    """Nearest values of depth (rows, columns of ``seen``) on the grid of another fit of the same image; 0 outside."""
    rows, columns = to.model
    y = ((np.arange(rows) + 0.5) / to.scale + to.top - seen.top) * seen.scale
    x = ((np.arange(columns) + 0.5) / to.scale + to.left - seen.left) * seen.scale
    result = np.zeros(to.model, np.float32)
    inside = np.ix_((y >= 0) & (y < seen.model[0]), (x >= 0) & (x < seen.model[1]))
    height, width = depth.shape
    picked = depth[np.ix_(y.clip(0, height - 1).astype(int), x.clip(0, width - 1).astype(int))]
    result[inside] = picked[inside]
    return result


def resize(frames: Pictures | Sequence[Float[Tensor, "3 _h _w"]], to: Fits) -> Float[Tensor, "f 3 r c"]:
    """Resize frames (uint8, or floats in [0, 1]) to the model's input, antialiased, as floats in [0, 1].

    Only one channel of one frame at a time is a float at full size: 24 frames of 4K would take 2.4 GB.
    """
    result = np.empty((len(frames), 3, *to.model), np.float32)
    for frame, small, own in zip(frames, result, to.of_frames, strict=True):
        for channel in range(3):
            small[channel] = _resize(_plane(frame, channel), own)
    return torch.from_numpy(result)


def _plane(frame: UInt8[np.ndarray, "h w 3"] | Float[Tensor, "3 h w"], channel: int) -> NDArray[np.float32]:
    if isinstance(frame, Tensor):
        return frame[channel].detach().float().cpu().numpy()
    return frame[..., channel].astype(np.float32) / np.float32(255)


def resize_masks(masks: Sequence[Bool[np.ndarray, "_h _w"]], to: Fits) -> Bool[Tensor, "f r c"]:
    """Resize masks to the model's input: a pixel is set if more than half of its area is."""
    shares = [
        _resize(mask.astype(np.float32), own, Image.Resampling.BOX)
        for mask, own in zip(masks, to.of_frames, strict=True)
    ]
    return torch.from_numpy(np.stack(shares) > 0.5)


def resize_depth(depth: Float[np.ndarray, "h w"], to: Fit) -> Float[np.ndarray, "r c"]:
    """Resize depth to the model's input by nearest neighbour, without blending."""
    (height, width), (rows, columns) = to.original, to.model
    y = ((np.arange(rows) + 0.5) / to.scale + to.top).astype(int).clip(0, height - 1)
    x = ((np.arange(columns) + 0.5) / to.scale + to.left).astype(int).clip(0, width - 1)
    return depth[y[:, None], x]


def _resize(
    plane: NDArray[np.float32], to: Fit, by: Image.Resampling = Image.Resampling.BICUBIC
) -> NDArray[np.float32]:
    if to.original == to.model:
        return plane
    height, width = to.original
    # rounding errors must not reach beyond the image
    left, top = max(to.left, 0.0), max(to.top, 0.0)
    box = (left, top, min(width - left, width), min(height - top, height))
    image = Image.fromarray(plane).resize((to.model[1], to.model[0]), by, box=box)
    return np.asarray(image).clip(0, 1)
