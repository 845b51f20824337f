"""Crops of a video about its object, as a camera would take them that looks straight at it, and the way back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import roma
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from four_d.constants import vector
from four_d.geometry import invert_pose, make_pose, pixel_centres, rays
from four_d.types import Cameras
from four_d.viewpoints import FILL, ObjectPose, decode_pose

GREY = 0.5
"""Colour of what is not the object."""
FINEST = 8
"""Most samples of a pixel's side, against aliasing."""


@dataclass(frozen=True, kw_only=True)
class Crops:
    """Square pictures of f frames by cameras at the video's own place, each turned to its object and with its own lens.

    The object's bounding box, by its mask, is in the middle and fills `viewpoints.FILL`, as in training.
    """

    images: Float[Tensor, "f 3 s s"]
    """`GREY` beside the object."""
    masks: Float[Tensor, "f s s"]
    """Part of each pixel that the object covers."""
    camera_from_crop: Float[Tensor, "f 3 3"]
    focal: Float[Tensor, "f"]
    """Focal length in pixels of the crop; the principal point is its middle."""


def crop_object(
    images: Float[Tensor, "f 3 h w"],
    masks: Bool[Tensor, "f h w"],
    intrinsics: Float[Tensor, "f 3 3"],
    size: int,
) -> Crops:
    """Crop frames about their masks, none of which is empty, to ``size`` pixels a side."""
    looks = [_look(mask, lens, size) for mask, lens in zip(masks, intrinsics)]
    turns = torch.stack([turn for turn, _ in looks])
    focal = torch.stack([length for _, length in looks])
    shown = torch.cat([images * masks[:, None] + GREY * ~masks[:, None], masks[:, None].to(images)], dim=1)
    looked = zip(shown, intrinsics, turns, focal)
    warped = torch.cat([_warp(frame[None], lens, turn, length, size) for frame, lens, turn, length in looked])
    outside = 1 - warped[:, 4:]  # of the frame: neither the object nor its surroundings
    return Crops(images=warped[:, :3] + GREY * outside, masks=warped[:, 3], camera_from_crop=turns, focal=focal)


def _look(mask: Bool[Tensor, "h w"], lens: Float[Tensor, "3 3"], size: int) -> tuple[Tensor, Tensor]:
    """Rotation camera_from_crop and focal length of the crop about a mask."""
    y, x = mask.nonzero().to(lens).unbind(-1)
    corners = torch.cat([torch.stack([x + dx, y + dy], dim=-1) for dx in (0, 1) for dy in (0, 1)])
    seen = rays(lens, corners)
    turn = torch.eye(3).to(lens)
    extent = lens.new_ones(())
    for _ in range(4):  # the middle of a box on another image plane is not quite the middle
        local = seen @ turn
        plane = local[:, :2] / local[:, 2:].clamp_min(1e-3)
        low, high = plane.amin(0), plane.amax(0)
        extent = (high - low).max()
        aim = functional.normalize(torch.cat([(low + high) / 2, low.new_ones(1)]), dim=0)
        axis = torch.stack([-aim[1], aim[0], torch.zeros_like(aim[0])])
        length = axis.norm()
        angle = torch.atan2(length, aim[2])
        turn = turn @ roma.rotvec_to_rotmat(axis * (angle / length.clamp_min(1e-12)))
    return turn, FILL * size / extent


def _warp(
    image: Float[Tensor, "1 c h w"], lens: Float[Tensor, "3 3"], turn: Float[Tensor, "3 3"], focal: Tensor, size: int
) -> Float[Tensor, "1 c+1 size size"]:
    """Picture of the turned camera, and where it lies in the frame."""
    height, width = image.shape[-2:]
    fine = min(max(math.ceil(float(lens[0, 0] / focal)), 1), FINEST)
    own = lens.new_tensor([[0, 0, size * fine / 2], [0, 0, size * fine / 2], [0, 0, 1]])
    own[0, 0] = own[1, 1] = focal * fine
    seen = rays(own, pixel_centres(size * fine, size * fine, lens).flatten(0, 1)) @ turn.mT
    pixels = (seen / seen[:, 2:].clamp_min(1e-6)) @ lens.mT
    grid = pixels[:, :2] / vector([width, height], pixels) * 2 - 1
    grid = torch.where(seen[:, 2:] > 0, grid, 2.0).view(1, size * fine, size * fine, 2).to(image)
    whole = torch.cat([image, torch.ones_like(image[:, :1])], dim=1)
    return functional.avg_pool2d(functional.grid_sample(whole, grid, align_corners=False), fine)


def crop_cameras(pose: ObjectPose, crops: Crops, intrinsics: Float[Tensor, "f 3 3"]) -> Cameras:
    """Cameras of the video, in the object's world, by poses in its crops.

    The object's centre keeps its pixel and its apparent size; where a crop's focal length is the one that poses assume
    (`viewpoints.FOCAL`), every point keeps its pixel.
    """
    size = crops.images.shape[-1]
    assumed = decode_pose(pose, (size, size))
    zoom = crops.focal / assumed.intrinsics[..., 0, 0]
    shift = invert_pose(assumed.world_from_camera)[..., :3, 3]
    # farther away by a longer lens: the same pixel needs the same shift aside, which is the object's own length
    shift = torch.cat([shift[..., :2], shift[..., 2:] * zoom[..., None]], dim=-1)
    turn = crops.camera_from_crop
    camera_from_object = make_pose(turn @ pose.rotation, (turn @ shift[..., None])[..., 0])
    return Cameras(world_from_camera=invert_pose(camera_from_object), intrinsics=intrinsics)
