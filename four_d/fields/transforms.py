"""Moving, scaling and mirroring values by the geometry of their fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from four_d.errors import UserError
from four_d.fields.declarations import Leaf, apply
from four_d.geometry import Similarity, make_pose
from four_d.keypoints import mirrored_names
from four_d.types import Geometry

T = TypeVar("T")
COLUMNS = frozenset({"w", "x", "columns"})
"""Axes that run from left to right in the image, which mirroring flips."""


def move(value: T, similarity: Similarity) -> T:
    """Move ``value`` from the similarity's b to its a: a becomes the world, in a's unit.

    UserError for Gaussians whose colours depend on the direction, ValueError for fields that cannot be moved.
    """
    return apply(value, lambda leaf, tensor: _moved(leaf, tensor, similarity))


def _moved(leaf: Leaf, tensor: Tensor, similarity: Similarity) -> Tensor:
    match leaf.geometry:
        case Geometry.LENGTH:
            return tensor * similarity.scale
        case Geometry.POINT:
            return similarity.points(tensor)
        case Geometry.DISPLACEMENT:
            return similarity.displacements(tensor)
        case Geometry.NORMAL:
            return similarity.normals(tensor)
        case Geometry.POSE:
            return similarity.poses(tensor)
        case Geometry.QUATERNION:
            return similarity.quaternions(tensor)
        case Geometry.TURN:
            return similarity.turns(tensor)
        case Geometry.UNIT:
            return tensor / similarity.scale
        case _:
            return _unmoved(leaf, tensor)


def _unmoved(leaf: Leaf, tensor: Tensor) -> Tensor:
    if leaf.geometry is Geometry.FIXED:
        raise ValueError(f"{leaf.name} is bound to its coordinates; leave it out first (fields.delivered)")
    if leaf.geometry is Geometry.HARMONICS and tensor.shape[-2] > 1:
        raise UserError("Gaussians whose colours depend on the direction cannot be turned; give those of degree 0")
    return tensor


def scale(value: T, factor: float | Tensor) -> T:
    """Multiply every length by ``factor``."""
    return _resize(value, lambda length: length * factor, lambda unit: unit / factor)


def divide(value: T, divisor: float | Tensor) -> T:
    """Divide every length by ``divisor``, exact to the last bit, unlike scaling by its inverse."""
    return _resize(value, lambda length: length / divisor, lambda unit: unit * divisor)


def _resize(value: T, lengths: Callable[[Tensor], Tensor], units: Callable[[Tensor], Tensor]) -> T:
    return apply(value, lambda leaf, tensor: _resized(leaf, tensor, lengths, units))


def _resized(
    leaf: Leaf, tensor: Tensor, lengths: Callable[[Tensor], Tensor], units: Callable[[Tensor], Tensor]
) -> Tensor:
    match leaf.geometry:
        case Geometry.LENGTH | Geometry.POINT | Geometry.DISPLACEMENT:
            return lengths(tensor)
        case Geometry.POSE:
            return make_pose(tensor[..., :3, :3], lengths(tensor[..., :3, 3]))
        case Geometry.UNIT:
            return units(tensor)
        case Geometry.FIXED:
            return _unmoved(leaf, tensor)
        case _:
            return tensor


def mirror(value: T, width: int) -> T:
    """Mirror a value: images of ``width`` pixels left to right, and x → −x in the world.

    UserError for Gaussians whose colours depend on the direction, ValueError for fields that cannot be mirrored.
    """
    return apply(value, lambda leaf, tensor: _mirrored(leaf, tensor, width))


def _mirrored(leaf: Leaf, tensor: Tensor, width: int) -> Tensor:
    if any(" " in axis and not COLUMNS.isdisjoint(axis.split()) for axis in leaf.axes):
        raise ValueError(f"{leaf.name} counts columns within other things, and cannot be mirrored")
    flipped = [dim for axis in COLUMNS if (dim := leaf.dim(axis, tensor)) is not None]
    return _reflect(leaf, tensor.flip(flipped) if flipped else tensor, width)


def _reflect(leaf: Leaf, tensor: Tensor, width: int) -> Tensor:
    match leaf.geometry:
        case Geometry.POINT | Geometry.DISPLACEMENT | Geometry.NORMAL:
            return tensor * torch.tensor([-1, 1, 1]).to(tensor)
        case Geometry.POSE:
            matrix = torch.diag(torch.tensor([-1, 1, 1, 1]).to(tensor))
            return matrix @ tensor @ matrix
        case Geometry.QUATERNION | Geometry.TURN:
            return tensor * torch.tensor([1, 1, -1, -1]).to(tensor)
        case Geometry.INTRINSICS:
            intrinsics = tensor.clone()
            intrinsics[..., 0, 2] = width - intrinsics[..., 0, 2]
            return intrinsics
        case Geometry.PIXEL:
            pixels = tensor.clone()
            pixels[..., -2] = width - pixels[..., -2]
            return pixels
        case Geometry.NAME:
            return mirrored_names(tensor)
        case _:
            return _unmoved(leaf, tensor)
