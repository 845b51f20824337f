"""Keypoints that a user asks for: names of instances, their boxes, and these from window to window of a long video."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from four_d.errors import UserError
from four_d.video.fit import Fits

Box = Sequence[int | float]
"""x0, y0, x1, y1: corners with the least and the greatest coordinates; (0, 0) is the corner of the top-left pixel."""


@dataclass(frozen=True, kw_only=True)
class Instance:
    """Thing whose keypoints are asked for."""

    names: Sequence[str]
    """Names of its keypoints."""
    box: Box | None = None
    """Its box in original pixels of the first frame (of several cameras the first one's), which tells it from others of
    its kind; None: it may be anywhere in the picture."""

    def __post_init__(self) -> None:
        """Raise UserError for an instance without names and for a box whose corners are none."""
        if not self.names or isinstance(self.names, str):
            raise UserError(f"{self} has no list of names; say which keypoints to find in it")
        if self.box is None:
            return
        if len(self.box) != 4 or not all(math.isfinite(number) for number in self.box):
            raise UserError(f"{self} is not of four finite numbers; give x0,y0,x1,y1 in pixels of the first frame")
        x0, y0, x1, y1 = self.box
        if not (x0 < x1 and y0 < y1):
            raise UserError(f"{self} has its corners reversed; give x0,y0,x1,y1 with x0 < x1 and y0 < y1")

    def __str__(self) -> str:
        """Text for messages."""
        box = "an instance" if self.box is None else "the box " + ",".join(f"{number:g}" for number in self.box)
        return f"{box} of {', '.join(self.names)}" if self.names else box


def instances_of(asked: Sequence[str] | Sequence[Instance]) -> tuple[Instance, ...]:
    """Instances of a list of them, or the one of a list of names.

    UserError for a mixture, and for several of which one has no box.
    """
    if isinstance(asked, str):
        raise UserError(f"keypoints are a text, {asked!r}; give a list of names")
    names = [each for each in asked if isinstance(each, str)]
    instances = [each for each in asked if isinstance(each, Instance)]
    if names and len(names) < len(asked):
        raise UserError(f"keypoints are instances, and the name {names[0]!r}; give it as one of an instance's")
    if names:
        return (Instance(names=names),)
    bare = [each for each in instances if each.box is None]
    if bare and len(instances) > 1:
        raise UserError(
            f"{bare[0]} has no box, and there are several to tell apart; give each one, or all names as those of one"
        )
    return tuple(instances)


def boxes_to_model(instances: Sequence[Instance], to: Fits) -> Float[Tensor, "k 2 2"] | None:
    """Corners (x, y) of the instances' boxes in model pixels, as far as the model sees them; None without boxes.

    UserError for one that reaches outside the first frame, or of which the model sees nothing.
    """
    found: list[Tensor] = []
    height, width = to.originals[0]
    most = torch.tensor([to.model[1], to.model[0]])
    for each in instances:
        if each.box is None:
            return None
        x0, y0, x1, y1 = each.box
        if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
            raise UserError(
                f"{each} reaches outside the first frame; give it in pixels of that {width}×{height} picture, "
                f"x from 0 to {width} and y from 0 to {height}"
            )
        corners = torch.tensor([[x0, y0], [x1, y1]], dtype=torch.float32)
        corners = to.points_to_model(corners, torch.zeros(2, dtype=torch.long)).clamp_min(0).minimum(most)
        if not bool((corners[0] < corners[1]).all()):
            raise UserError(f"{each} is outside what the model sees, which is the middle of the picture; move it there")
        found.append(corners)
    return torch.stack(found) if found else None


class Boxes:
    """Boxes of instances, in model pixels, at the beginning of each window of a long video.

    A later window's are those of the keypoints that the window before found in the later one's first frame, which both
    see, with the margins that the user's boxes have around those found in the first frame of all.
    """

    def __init__(self, first: Float[Tensor, "k 2 2"], instances: Sequence[Instance], size: tuple[int, int]) -> None:
        """Start on a video whose frames have ``size`` (rows, columns), with the boxes of its first frame."""
        self._counts = [len(each.names) for each in instances]
        self._most = torch.tensor([size[1], size[0]], dtype=torch.float32)
        self._boxes, self._margins = first.float(), torch.zeros_like(first, dtype=torch.float32)
        self._last: tuple[range, Float[Tensor, "f n 2"]] | None = None

    def at(self, frames: range) -> Float[Tensor, "n 2 2"]:
        """Boxes at the first frame of the next window, one for each keypoint."""
        if self._last is not None:
            seen, pixels = self._last
            found = (self._around(pixels[frames.start - seen.start]) + self._margins).clamp_min(0).minimum(self._most)
            # without an answer there is no better place than the last
            self._boxes = torch.where(found.isfinite().all((1, 2), keepdim=True), found, self._boxes)
        return self._boxes.repeat_interleave(torch.tensor(self._counts), dim=0)

    def add(self, frames: range, pixels: Float[Tensor, "f n 2"]) -> None:
        """Add the keypoints that the model found in that window."""
        if self._last is None:
            outwards = self._boxes - self._around(pixels[0].float())
            low, high = outwards[:, :1].clamp_max(0), outwards[:, 1:].clamp_min(0)
            self._margins = torch.cat([low, high], dim=1).nan_to_num(0, 0, 0)
        self._last = frames, pixels.float()

    def _around(self, pixels: Float[Tensor, "n 2"]) -> Float[Tensor, "k 2 2"]:
        parts = pixels.split(self._counts)
        return torch.stack([torch.stack([part.amin(0), part.amax(0)]) for part in parts])
