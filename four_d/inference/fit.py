"""The way from original pixels to the model's and back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from four_d.errors import UserError
from four_d.types import Cameras

Size = tuple[int, int]
"""Height, width."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A centred crop of the original, scaled to the model's grid: original = left, top + model / scale.

    The scale is one for both axes, so pixels stay square and a field of view stays itself.
    """

    original: Size
    model: Size
    scale: float
    """Model pixels per original pixel."""
    left: float
    """Original pixels cut off at the left (and at the right)."""
    top: float

    def to_original(self, intrinsics: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3 3"]:
        """Intrinsics in model pixels to original pixels."""
        offset = torch.tensor([self.left, self.top], dtype=intrinsics.dtype, device=intrinsics.device)
        result = intrinsics.clone()
        result[..., :2, :] = intrinsics[..., :2, :] / self.scale
        result[..., :2, 2] += offset
        return result

    def to_model(self, intrinsics: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3 3"]:
        """The inverse of `to_original`."""
        offset = torch.tensor([self.left, self.top], dtype=intrinsics.dtype, device=intrinsics.device)
        result = intrinsics.clone()
        result[..., :2, 2] -= offset
        result[..., :2, :] *= self.scale
        return result

    def points_to_original(self, points: Float[Tensor, "*b 2"]) -> Float[Tensor, "*b 2"]:
        """(x, y) in model pixels to original pixels."""
        return points / self.scale + torch.tensor([self.left, self.top], dtype=points.dtype, device=points.device)

    def points_to_model(self, points: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
        """The inverse of `points_to_original`. UserError for a point outside what the model sees."""
        found = (points - torch.tensor([self.left, self.top], dtype=points.dtype)) * self.scale
        rows, columns = self.model
        for (x, y), (column, row) in zip(points.tolist(), found.tolist(), strict=True):
            if not (0 <= column <= columns and 0 <= row <= rows):
                (left, top), (right, bottom) = self.points_to_original(
                    torch.tensor([[0.0, 0], [columns, rows]])
                ).tolist()
                seen = f"x from {left:.4g} to {right:.4g} and y from {top:.4g} to {bottom:.4g}"
                raise UserError(f"point {x:g},{y:g} is outside what the model sees; choose {seen}")
        return found

    def original_cameras(self, cameras: Cameras) -> Cameras:
        """The same cameras with intrinsics in original pixels."""
        return Cameras(
            world_from_camera=cameras.world_from_camera,
            intrinsics=self.to_original(cameras.intrinsics),
            known=cameras.known,
        )


def fit(original: Size, trained: Size, patch: int) -> Fit:
    """Keep the shape of the picture and the number of pixels that the model was trained at, in whole patches.

    A model does best at the size it saw in training; its rotary positions allow other grids of about as many patches.
    At most half a patch a side goes: what the whole patches do not cover is cropped evenly.
    """
    height, width = original
    ideal = math.sqrt(trained[0] * trained[1] / (height * width))
    rows, columns = (max(1, round(side * ideal / patch)) for side in (height, width))
    model = rows * patch, columns * patch
    scale = max(model[0] / height, model[1] / width)
    return Fit(
        original=original,
        model=model,
        scale=scale,
        left=(width - model[1] / scale) / 2,
        top=(height - model[0] / scale) / 2,
    )


def resize(frames: UInt8[np.ndarray, "f h w 3"] | Float[Tensor, "f 3 h w"], to: Fit) -> Float[Tensor, "f 3 r c"]:
    """Frames (uint8, or floats in [0, 1]) on the model's grid as floats in [0, 1], low-passed when they shrink."""
    if isinstance(frames, np.ndarray):
        planes = np.moveaxis(frames, -1, 1).astype(np.float32) / 255
    else:
        planes = frames.detach().float().cpu().numpy()
    if to.original == to.model:
        return torch.from_numpy(np.ascontiguousarray(planes))
    return torch.from_numpy(np.stack([np.stack([_resize(plane, to) for plane in frame]) for frame in planes]))


def resize_masks(masks: Bool[np.ndarray, "f h w"], to: Fit) -> Bool[Tensor, "f r c"]:
    """Masks on the model's grid: a pixel is set where more than half of what it covers is."""
    if to.original == to.model:
        return torch.from_numpy(masks.copy())
    shares = [_resize(mask.astype(np.float32), to, Image.Resampling.BOX) for mask in masks]
    return torch.from_numpy(np.stack(shares) > 0.5)


def resize_depth(depth: Float[np.ndarray, "f h w"], to: Fit) -> Float[Tensor, "f r c"]:
    """Depth on the model's grid: that of the original pixel in which a model pixel's centre lies, never a blend."""
    (height, width), (rows, columns) = to.original, to.model
    y = ((np.arange(rows) + 0.5) / to.scale + to.top).astype(int).clip(0, height - 1)
    x = ((np.arange(columns) + 0.5) / to.scale + to.left).astype(int).clip(0, width - 1)
    return torch.from_numpy(np.ascontiguousarray(depth[:, y[:, None], x]))


def _resize(
    plane: NDArray[np.float32], to: Fit, by: Image.Resampling = Image.Resampling.BICUBIC
) -> NDArray[np.float32]:
    height, width = to.original
    # rounding errors must not reach beyond the picture
    left, top = max(to.left, 0.0), max(to.top, 0.0)
    box = (left, top, min(width - left, width), min(height - top, height))
    image = Image.fromarray(plane).resize((to.model[1], to.model[0]), by, box=box)
    return np.asarray(image).clip(0, 1)
