"""Novel views of held-out clips: which frames were not shown to the model, and how its pictures of them score."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from four_d import geometry
from four_d.evaluation.pictures import score_pictures
from four_d.rendering import render
from four_d.similarity import LPIPS
from four_d.types import Cameras, Clip, Gaussians, Views, map_tensors, same_time

COPY = "copy_"
"""Prefix of what copying the nearest input frame scores."""


def novel_frames(times: Sequence[float], chosen: Sequence[int]) -> list[int]:
    """The other frames of a clip within the time that ``chosen`` span: other cameras', and its own between them."""
    spanned = np.asarray(times)[list(chosen)]
    inside = (np.asarray(times) >= spanned.min()) & (np.asarray(times) <= spanned.max())
    return [int(index) for index in np.flatnonzero(inside) if int(index) not in set(chosen)]


def novel_scores(gaussians: Gaussians, clip: Clip, scale: float = 1.0, lpips: LPIPS | None = None) -> dict[str, float]:
    """Of an unbatched clip with ``views``: `score_pictures` of them, of those from the input's cameras, and of copies.

    ``scale`` is what the Gaussians' lengths are multiplied by first: one for a model that was given no poses. ``lpips``
    is a network with loaded weights.

    ``psnr`` … are over all views; ``novel_time_psnr`` … over views of cameras that the model saw, at other times;
    ``copy_psnr`` … are those of the input frame nearest in time. Nothing is scored without views and their cameras.
    """
    views = clip.views
    if views is None or views.cameras is None:
        return {}
    sized = geometry.scale_gaussians(gaussians, scale)
    cameras = Cameras(world_from_camera=views.cameras.world_from_camera, intrinsics=views.cameras.intrinsics)
    batch = map_tensors((sized, cameras, views.times), lambda tensor: tensor[None].float())
    pictures = map_tensors(render(*batch, size_of(views)), lambda tensor: tensor[0])
    scores = score_pictures(pictures, views, lpips=lpips)
    seen = torch.isin(views.camera_ids, clip.camera_ids)
    if bool(seen.any()) and not bool(seen.all()):
        some = map_tensors((pictures, _bare(views)), lambda tensor: tensor[seen])
        scores |= {f"novel_time_{name}": value for name, value in score_pictures(*some, lpips=lpips).items()}
    copied = score_pictures(copies(clip, views), views, lpips=lpips)
    return scores | {COPY + name: value for name, value in copied.items()}


def size_of(clip: Clip) -> tuple[int, int]:
    """Height and width of its images."""
    return clip.images.shape[-2], clip.images.shape[-1]


def _bare(views: Clip) -> Clip:
    """What scores need, all with frames as the first axis."""
    return dataclasses.replace(views, metric=None, scale=None, surface=None, tracks=None)


def copies(clip: Clip, views: Clip) -> Views:
    """In place of each view the input frame nearest in time; of several the one whose camera is nearest."""
    nearest = nearest_frames(clip, views)
    images = clip.images[nearest]
    ones = torch.ones_like(images[:, 0])
    return Views(colour=images, alpha=ones, depth=ones)


def nearest_frames(clip: Clip, views: Clip) -> Int[Tensor, "v"]:
    """By time, and by distance of cameras where times are equal."""
    apart = (views.times[:, None] - clip.times).abs()
    if clip.cameras is None or views.cameras is None:
        return apart.argmin(1)
    away = (_centres(views.cameras)[:, None] - _centres(clip.cameras)).norm(dim=-1)
    tied = same_time(apart, apart.amin(1, keepdim=True))
    return torch.where(tied, away, torch.inf).argmin(1)


def _centres(cameras: Cameras) -> Float[Tensor, "f 3"]:
    return cameras.world_from_camera[:, :3, 3]
