"""Crops, resizing, mirroring and colour: every change of the image is made to its camera and its truth as well."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d.errors import UserError
from four_d.types import Cameras, Clip, Surface, Tracks

EDGE = 1.05
"""Neighbouring depths whose ratio exceeds this lie on two surfaces: no depth is interpolated between them."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes of a training clip. The defaults are VGGT's (training/config/default.yaml)."""

    colour_share: float = 0.9
    """Share of the clips whose colours change."""
    per_frame_share: float = 0.3
    """Of these, the share whose frames change independently."""
    brightness: float = 0.5
    """Factor in [1 − x, 1 + x]; contrast and saturation likewise."""
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.1
    """Turn of the colour circle in [−x, x], 0.5 = half a turn."""
    grey_share: float = 0.05
    zoom: float = 0.8
    """A crop keeps between this share and all of the largest window of the wanted aspect."""
    mirror_share: float = 0.0
    """Share of the clips mirrored left to right, the scene and its cameras with them."""

    def __post_init__(self) -> None:
        if not 0 < self.zoom <= 1:
            raise UserError(f"zoom is {self.zoom}; choose a share in (0, 1]")


NO_AUGMENT = AugmentConfig(colour_share=0.0, grey_share=0.0, zoom=1.0)


def augment(clip: Clip, size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator) -> Clip:
    """A random variant of an unbatched clip at ``size`` (rows, columns): crop, resize, mirror, colour.

    The truth stays true: what a pixel shows still reprojects to it, with the changed cameras.
    """
    zoom = float(rng.uniform(config.zoom, 1.0))
    clip = crop(clip, size, zoom)
    if rng.random() < config.mirror_share:
        clip = mirror(clip)
    if rng.random() < config.colour_share:
        clip = dataclasses.replace(clip, images=jitter(clip.images, config, rng))
    if rng.random() < config.grey_share:
        clip = dataclasses.replace(clip, images=_grey(clip.images).expand(-1, 3, -1, -1).clone())
    return clip


def crop(clip: Clip, size: tuple[int, int], zoom: float) -> Clip:
    """The largest window around the principal point of aspect ``size``, times ``zoom``, resized to ``size``.

    Windows have sub-pixel places and one size for the whole clip, so that the principal point lands on the centre
    exactly, where VGGT's pose encoding takes it to be, and the focal lengths of a camera stay constant. A clip without
    cameras is cropped around the image's centre. Images are filtered against aliasing; depth is interpolated inside a
    surface and never across an edge.
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
    images = resize(clip.images, rows, columns, pixel)
    cameras = None if clip.cameras is None else _crop_cameras(clip.cameras, corner, pixel)
    depth, valid, dynamic = clip.depth, clip.valid, clip.dynamic
    if depth is not None and valid is not None:
        depth, valid = resample_depth(depth, valid, rows, columns)
    if dynamic is not None:
        dynamic = _nearest(dynamic, rows, columns)
    surface = None if clip.surface is None else _crop_surface(clip.surface, rows, columns)
    return dataclasses.replace(
        clip, images=images, cameras=cameras, depth=depth, valid=valid, dynamic=dynamic, surface=surface
    )


def _centres(clip: Clip) -> Float[Tensor, "f 2"]:
    frames, _, height, width = clip.images.shape
    if clip.cameras is None:
        return torch.tensor([width / 2, height / 2]).expand(frames, 2)
    return clip.cameras.intrinsics[:, :2, 2]


def _positions(corner: Float[Tensor, "f"], pixel: float, count: int) -> Float[Tensor, "f n"]:
    """Source coordinates (corner origin) of the centres of the new pixels along one axis."""
    return corner[:, None] + (torch.arange(count) + 0.5) * pixel


def _crop_cameras(cameras: Cameras, corner: Float[Tensor, "f 2"], pixel: float) -> Cameras:
    intrinsics = cameras.intrinsics.clone()
    intrinsics[:, :2, 2] -= corner
    intrinsics[:, :2] /= pixel
    return dataclasses.replace(cameras, intrinsics=intrinsics)


def _crop_surface(surface: Surface, rows: Float[Tensor, "f h"], columns: Float[Tensor, "f w"]) -> Surface:
    """Correspondence cannot be interpolated: the nearest pixel's is taken, up to half a pixel beside the new centre."""
    barycentric = _nearest(surface.barycentric.transpose(0, 1), rows, columns).transpose(0, 1)
    return dataclasses.replace(surface, faces=_nearest(surface.faces, rows, columns), barycentric=barycentric)


def resize(
    images: Float[Tensor, "f c y x"], rows: Float[Tensor, "f h"], columns: Float[Tensor, "f w"], pixel: float
) -> Float[Tensor, "f c h w"]:
    """Images at new pixel centres by a triangle filter as wide as the new pixel (or the old, if that is wider)."""
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
    """The source pixel that holds each new centre; axes of ``maps``: … f y x."""
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
    """Depth at new pixel centres.

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


def mirror(clip: Clip) -> Clip:
    """The clip as seen in a mirror: images, maps, cameras and scene flipped left to right (x → −x in the world)."""
    flip = torch.tensor([-1.0, 1.0, 1.0])
    cameras, surface, tracks = clip.cameras, clip.surface, clip.tracks
    if cameras is not None:
        matrix = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))
        intrinsics = cameras.intrinsics.clone()
        intrinsics[:, 0, 2] = clip.images.shape[-1] - intrinsics[:, 0, 2]
        poses = matrix @ cameras.world_from_camera @ matrix
        cameras = dataclasses.replace(cameras, world_from_camera=poses, intrinsics=intrinsics)
    if surface is not None:
        surface = _mirror_surface(surface, flip)
    if tracks is not None:
        tracks = Tracks(points=tracks.points * flip, visible=tracks.visible, valid=tracks.valid, times=tracks.times)
    names = ("images", "depth", "valid", "dynamic")
    maps = {name: getattr(clip, name).flip(-1) for name in names if getattr(clip, name) is not None}
    return dataclasses.replace(clip, cameras=cameras, surface=surface, tracks=tracks, **maps)


def _mirror_surface(surface: Surface, flip: Float[Tensor, "3"]) -> Surface:
    return dataclasses.replace(
        surface,
        faces=surface.faces.flip(-1),
        barycentric=surface.barycentric.flip(-1),
        vertices=surface.vertices * flip,
    )


def jitter(
    images: Float[Tensor, "f 3 h w"], config: AugmentConfig, rng: np.random.Generator
) -> Float[Tensor, "f 3 h w"]:
    """Random brightness, contrast, saturation and hue; one draw for the clip, or one per frame."""
    count = len(images) if rng.random() < config.per_frame_share else 1

    def draw(spread: float, middle: float = 1.0) -> Float[Tensor, "f 1 1 1"]:
        return torch.from_numpy(rng.uniform(middle - spread, middle + spread, (count, 1, 1, 1))).float()

    images = (images * draw(config.brightness)).clamp(0, 1)
    mean = _grey(images).mean((-1, -2), keepdim=True)
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
