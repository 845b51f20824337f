"""Random changes of training clips: mirroring of images with their cameras and ground truth, colours, and blur."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from four_d import fields
from four_d.data.crops import CropRule
from four_d.errors import UserError
from four_d.types import Clip


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes of a training clip. The defaults are VGGT's (training/config/default.yaml)."""

    colour_share: float = 0.9
    """Fraction of the clips whose colours change."""
    per_frame_share: float = 0.3
    """Fraction of these whose frames change independently; 0 where renders are compared with frames (``data.views``),
    whose colours must match the model's inputs."""
    brightness: float = 0.5
    """Range x of the factor in [1 − x, 1 + x] on colours."""
    contrast: float = 0.5
    """Range x of the factor in [1 − x, 1 + x] on the distance of colours from the mean grey."""
    saturation: float = 0.5
    """Range x of the factor in [1 − x, 1 + x] on the distance of colours from their own grey."""
    hue: float = 0.1
    """Range x of the hue's shift in [−x, x]; 0.5 = half a turn."""
    grey_share: float = 0.05
    """Fraction of the clips that become grey, 0 to 1."""
    blur_share: float = 0.0
    """Fraction of the clips that are blurred, all frames alike: real pictures are sharp and soft."""
    blur: float = 1.5
    """Largest standard deviation of the blur in pixels, drawn between 0 and it."""
    zoom: float = 0.8
    """Least side of a crop as a fraction of the largest window of the wanted aspect; drawn between it and 1."""
    mirror_share: float = 0.0
    """Fraction of the clips mirrored left to right, the scene and its cameras with them."""
    reverse_share: float = 0.0
    """Fraction of the clips shown backwards in time: the last frame comes first, and what falls rises."""

    def __post_init__(self) -> None:
        if not 0 < self.zoom <= 1:
            raise UserError(f"zoom is {self.zoom}; choose a fraction in (0, 1]")
        if not self.blur > 0:
            raise UserError(f"blur is {self.blur}; choose a width in pixels above 0 (blur_share=0 blurs no clip)")

    def crop_rule(self, size: tuple[int, int], rng: np.random.Generator) -> CropRule:
        """Draw the zoom of a clip's crop to ``size`` (rows, columns)."""
        return CropRule(size=size, zoom=float(rng.uniform(self.zoom, 1.0)))


NO_AUGMENT = AugmentConfig(colour_share=0.0, grey_share=0.0, zoom=1.0)


def augment(clip: Clip, config: AugmentConfig, rng: np.random.Generator, *, alike: bool = False) -> Clip:
    """Augment an unbatched clip, which is cropped already: mirror; colours and blur, in place.

    Ground truth stays consistent: a pixel's point still reprojects to it, with the changed cameras. With ``alike``
    equal colours stay equal across frames.
    """
    if rng.random() < config.mirror_share:
        clip = fields.mirror(clip, clip.images.shape[-1])
    if rng.random() < config.colour_share:
        jitter_(clip.images, config, rng, alike=alike)
    if rng.random() < config.grey_share:
        clip.images.copy_(torch.einsum("fchw,c->fhw", clip.images, LUMA)[:, None])
    if config.blur_share and rng.random() < config.blur_share:  # no draw without it: seeded runs stay as they were
        clip.images.copy_(blurred(clip.images, float(rng.uniform(0, config.blur))))
    return clip


def blurred(images: Float[Tensor, "f 3 h w"], deviation: float) -> Float[Tensor, "f 3 h w"]:
    """Blur images by a Gaussian of a standard deviation in pixels; edges are repeated."""
    radius = math.ceil(3 * deviation)
    if not radius:
        return images
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype)
    weights = torch.softmax(-0.5 * (offsets / deviation) ** 2, 0)
    planes = images.flatten(0, 1)[:, None]
    padded = torch.nn.functional.pad(planes, (radius,) * 4, mode="replicate")
    rows = torch.nn.functional.conv2d(padded, weights[None, None, :, None])
    return torch.nn.functional.conv2d(rows, weights[None, None, None, :]).reshape(images.shape)


def jitter_(
    images: Float[Tensor, "f 3 h w"], config: AugmentConfig, rng: np.random.Generator, *, alike: bool = False
) -> None:
    """Change brightness, contrast, saturation and hue at random, in place; one draw for the clip, or one per frame.

    Contrast is about each frame's mean. ``alike``: one draw, and contrast about the clip's mean.
    """
    count = len(images) if rng.random() < config.per_frame_share and not alike else 1

    def draw(spread: float, middle: float = 1.0) -> Float[Tensor, "f"]:
        drawn = rng.uniform(middle - spread, middle + spread, (count, 1, 1, 1))
        return torch.from_numpy(drawn).float().flatten().expand(len(images))

    brightness, contrast, saturation = draw(config.brightness), draw(config.contrast), draw(config.saturation)
    mixing = saturate(saturation), hue_rotations(draw(config.hue, 0.0) * 2 * math.pi)
    frames = [frame.view(3, -1) for frame in images]  # one at a time, while it is in the processor's cache
    for frame, factor in zip(frames, brightness.tolist(), strict=True):
        frame.mul_(factor).clamp_(0, 1)
    means = torch.stack([frame.mean(-1) @ LUMA for frame in frames])
    means = means.mean().expand(len(frames)) if alike else means
    for number, frame in enumerate(frames):
        factor = float(contrast[number])
        frame.mul_(factor).add_((1 - factor) * float(means[number])).clamp_(0, 1)
        for mix in mixing:
            frame.copy_((mix[number] @ frame).clamp_(0, 1))


LUMA = torch.tensor([0.299, 0.587, 0.114])
"""Weights of red, green and blue in grey, of ITU-R BT.601."""


def saturate(factor: Float[Tensor, "f"]) -> Float[Tensor, "f 3 3"]:
    """Matrices that multiply the distance of colours from their own grey by ``factor``."""
    factor = factor[:, None, None]
    return factor * torch.eye(3) + (1 - factor) * LUMA.expand(3, 3)


def hue_rotations(angle: Float[Tensor, "f"]) -> Float[Tensor, "f 3 3"]:
    """Matrices that turn colours about the grey axis of RGB by ``angle`` (radians)."""
    axis = torch.full((3,), 1 / math.sqrt(3))
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    cosine, sine = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    return cosine * torch.eye(3) + sine * cross + (1 - cosine) * torch.outer(axis, axis)
