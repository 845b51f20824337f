"""Crops, resizing, mirroring and colour changes, of images together with their cameras and ground truth."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d import fields
from four_d.errors import UserError
from four_d.geometry import inside
from four_d.types import Clip, Geometry

EDGE = 1.05
"""Ratio of neighbouring depths above which they lie on two surfaces, and depth is not interpolated between them."""


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
    zoom: float = 0.8
    """Least side of a crop as a fraction of the largest window of the wanted aspect; drawn between it and 1."""
    mirror_share: float = 0.0
    """Fraction of the clips mirrored left to right, the scene and its cameras with them."""

    def __post_init__(self) -> None:
        if not 0 < self.zoom <= 1:
            raise UserError(f"zoom is {self.zoom}; choose a fraction in (0, 1]")


NO_AUGMENT = AugmentConfig(colour_share=0.0, grey_share=0.0, zoom=1.0)


def augment(
    clip: Clip, size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator, *, alike: bool = False
) -> Clip:
    """Augment an unbatched clip to ``size`` (rows, columns): crop, resize, mirror, colour.

    Ground truth stays consistent: a pixel's point still reprojects to it, with the changed cameras. With ``alike``
    equal colours stay equal across frames.
    """
    zoom = float(rng.uniform(config.zoom, 1.0))
    clip = crop(clip, size, zoom)
    if rng.random() < config.mirror_share:
        clip = fields.mirror(clip, size[1])
    if rng.random() < config.colour_share:
        clip = dataclasses.replace(clip, images=jitter(clip.images, config, rng, alike=alike))
    if rng.random() < config.grey_share:
        clip = dataclasses.replace(clip, images=_grey(clip.images).expand(-1, 3, -1, -1).clone())
    return clip


def crop(clip: Clip, size: tuple[int, int], zoom: float) -> Clip:
    """Crop the largest window around the principal point of aspect ``size``, times ``zoom``, and resize it to ``size``.

    Windows have sub-pixel places and one size for the whole clip, so that the principal point lands on the centre
    exactly, where VGGT's pose encoding takes it to be, and the focal lengths of a camera stay constant. A clip without
    cameras is cropped around the image's centre. Images are filtered against aliasing; depth is interpolated inside a
    surface and never across an edge; everything else is resampled to the nearest pixel. ValueError for maps of other
    frames than the clip's (``motion``, ``views``), which are made after cropping.
    """
    height, width = clip.images.shape[-2:]
    centre = _centres(clip)
    half = torch.minimum(centre, torch.tensor([width, height]) - centre).amin(0)
    if bool((half <= 0).any()):
        raise UserError("a principal point lies outside its image; correct the intrinsics of this clip")
    pixel = 2 * zoom * min(float(half[0]) / size[1], float(half[1]) / size[0])
    extent = torch.tensor([size[1] * pixel, size[0] * pixel])
    corner = centre - extent / 2
    if (height, width) == size and bool((corner.abs() < 1e-6).all()):
        return clip
    columns, rows = _positions(corner[:, 0], pixel, size[1]), _positions(corner[:, 1], pixel, size[0])
    changes: dict[str, object] = {"images": resize(clip.images, rows, columns, pixel)}
    if clip.depth is not None and clip.valid is not None:
        changes["depth"], changes["valid"] = resample_depth(clip.depth, clip.valid, rows, columns)

    def act(leaf: fields.Leaf, tensor: Tensor) -> Tensor:
        if leaf.geometry is Geometry.INTRINSICS:
            return _crop_intrinsics(tensor, corner, pixel)
        if leaf.geometry is Geometry.PIXEL:
            return _crop_pixels(leaf, tensor, corner, pixel)
        return _crop_maps(leaf, tensor, rows, columns)

    return _seen_inside(dataclasses.replace(fields.apply(clip, act), **changes))


def _centres(clip: Clip) -> Float[Tensor, "f 2"]:
    frames, _, height, width = clip.images.shape
    if clip.cameras is None:
        return torch.tensor([width / 2, height / 2]).expand(frames, 2)
    return clip.cameras.intrinsics[:, :2, 2]


def _positions(corner: Float[Tensor, "f"], pixel: float, count: int) -> Float[Tensor, "f n"]:
    """Source coordinates (corner origin) of the centres of the new pixels along one axis."""
    return corner[:, None] + (torch.arange(count) + 0.5) * pixel


def _crop_intrinsics(intrinsics: Float[Tensor, "f 3 3"], corner: Float[Tensor, "f 2"], pixel: float) -> Tensor:
    cropped = intrinsics.clone()
    cropped[:, :2, 2] -= corner
    cropped[:, :2] /= pixel
    return cropped


def _crop_pixels(leaf: fields.Leaf, pixels: Tensor, corner: Float[Tensor, "f 2"], pixel: float) -> Tensor:
    if leaf.axes[-1] == "3":
        frame, xy = pixels[:, :1], pixels[:, 1:]
        return torch.cat([frame, (xy - corner[frame[:, 0].long()]) / pixel], dim=-1)
    own = leaf.dim("f", pixels)
    if own is None:
        return (pixels - corner[0]) / pixel
    return (pixels - corner.view(*[-1 if place == own else 1 for place in range(pixels.ndim - 1)], 2)) / pixel


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


def resize(
    images: Float[Tensor, "f c y x"], rows: Float[Tensor, "f h"], columns: Float[Tensor, "f w"], pixel: float
) -> Float[Tensor, "f c h w"]:
    """Resample images at new pixel centres by a triangle filter as wide as the new pixel (or the old, if wider)."""
    along_y = _filter(rows, images.shape[-2], pixel)
    along_x = _filter(columns, images.shape[-1], pixel)
    return torch.einsum("fhy,fcyx,fwx->fchw", along_y, images, along_x).clamp(0, 1)


def _filter(positions: Float[Tensor, "f n"], length: int, pixel: float) -> Float[Tensor, "f n l"]:
    width = max(pixel, 1.0)
    centres = torch.arange(length, device=positions.device) + 0.5
    inside = positions.clamp(0.5, length - 0.5)
    weights = (1 - (centres - inside[..., None]).abs() / width).clamp_min(0)
    return weights / weights.sum(-1, keepdim=True)


def _nearest(maps: Tensor, rows: Float[Tensor, "f h"], columns: Float[Tensor, "f w"]) -> Tensor:
    """Value of the source pixel that holds each new centre; axes of ``maps``: … f y x."""
    y = rows.floor().long().clamp(0, maps.shape[-2] - 1)
    x = columns.floor().long().clamp(0, maps.shape[-1] - 1)
    return _gather(maps, y, x)


def _gather(maps: Tensor, y: Tensor, x: Tensor) -> Tensor:
    frames = torch.arange(maps.shape[-3])[:, None, None]
    return maps[..., frames, y[:, :, None], x[:, None, :]]


def resample_depth(
    depth: Float[Tensor, "f y x"],
    valid: Bool[Tensor, "f y x"],
    rows: Float[Tensor, "f h"],
    columns: Float[Tensor, "f w"],
) -> tuple[Float[Tensor, "f h w"], Bool[Tensor, "f h w"]]:
    """Resample depth at new pixel centres.

    Where the four neighbours are valid and of one surface, 1/z is interpolated (and continued by the last half pixel
    at the image's border): it is linear in the pixel on a plane. Elsewhere the pixel that holds the centre counts.
    """
    y, x = rows - 0.5, columns - 0.5
    y0 = y.floor().long().clamp(0, max(depth.shape[-2] - 2, 0))
    x0 = x.floor().long().clamp(0, max(depth.shape[-1] - 2, 0))
    inverse = torch.where(valid, 1 / depth.clamp_min(1e-12), torch.zeros_like(depth))
    corners = torch.stack(
        [
            _gather(inverse, (y0 + dy).clamp_max(depth.shape[-2] - 1), (x0 + dx).clamp_max(depth.shape[-1] - 1))
            for dy in (0, 1)
            for dx in (0, 1)
        ]
    )
    v, u = (y - y0)[:, :, None], (x - x0)[:, None, :]
    top, bottom = corners[0] * (1 - u) + corners[1] * u, corners[2] * (1 - u) + corners[3] * u
    smooth = top * (1 - v) + bottom * v
    one_surface = (corners.amin(0) > 0) & (corners.amax(0) <= EDGE * corners.amin(0))
    chosen = torch.where(one_surface, smooth, _nearest(inverse, rows, columns))
    new_valid = chosen > 0
    return torch.where(new_valid, 1 / chosen.clamp_min(1e-12), torch.zeros_like(chosen)), new_valid


def jitter(
    images: Float[Tensor, "f 3 h w"], config: AugmentConfig, rng: np.random.Generator, *, alike: bool = False
) -> Float[Tensor, "f 3 h w"]:
    """Change brightness, contrast, saturation and hue at random; one draw for the clip, or one per frame.

    Contrast is about each frame's mean. ``alike``: one draw, and contrast about the clip's mean.
    """
    count = len(images) if rng.random() < config.per_frame_share and not alike else 1

    def draw(spread: float, middle: float = 1.0) -> Float[Tensor, "f 1 1 1"]:
        return torch.from_numpy(rng.uniform(middle - spread, middle + spread, (count, 1, 1, 1))).float()

    images = (images * draw(config.brightness)).clamp(0, 1)
    mean = _grey(images).mean((0, -1, -2) if alike else (-1, -2), keepdim=True)
    images = (mean + (images - mean) * draw(config.contrast)).clamp(0, 1)
    grey = _grey(images)
    images = (grey + (images - grey) * draw(config.saturation)).clamp(0, 1)
    return turn_hue(images, draw(config.hue, 0.0)[:, 0, 0, 0] * 2 * math.pi)


def _grey(images: Float[Tensor, "f 3 h w"]) -> Float[Tensor, "f 1 h w"]:
    """Luma of ITU-R BT.601."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device)
    return torch.einsum("fchw,c->fhw", images, weights)[:, None]


def turn_hue(images: Float[Tensor, "f 3 h w"], angle: Float[Tensor, "g"]) -> Float[Tensor, "f 3 h w"]:
    """Turn colours about the grey axis of RGB by ``angle`` (radians; one per frame or one for all), then clamp."""
    axis = torch.full((3,), 1 / math.sqrt(3))
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    cosine, sine = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    rotation = cosine * torch.eye(3) + sine * cross + (1 - cosine) * torch.outer(axis, axis)
    turned = torch.einsum("fij,fjhw->fihw", rotation.expand(len(images), 3, 3), images)
    return turned.clamp(0, 1)
