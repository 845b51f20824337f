"""Stills of a result: one frame's depth, mask, trails and a novel view as pictures of one size."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from PIL import Image

from four_d import drawing, geometry
from four_d.drawing import RgbImage
from four_d.inference.novel_views import CameraPath, camera_path, looked_at, novel_views
from four_d.inference.result import Result
from four_d.types import map_tensors
from four_d.video.fit import Fit

TRAILS = 120
"""Largest number of points with a trail."""
SIDEWAYS = CameraPath(kind="wiggle", amplitude=0.15)
"""Path of the novel view's camera, which is taken a quarter along it, where it is farthest aside."""


def stills(result: Result, frame: int | None = None, height: int = 160) -> dict[str, RgbImage]:
    """Draw a frame: ``picture``, ``depth``, ``moving``, ``trails``, ``novel view``; without what the model lacks.

    Args:
        result: of a video of one camera.
        frame: index; None: the middle one.
        height: rows of each picture in pixels.

    Returns:
        Name → picture of the part that the model sees. Trails are those of moving points up to the frame, of any points
        if none moves. The novel view is rendered from aside, a quarter into the video.

    """
    frame = len(result.times) // 2 if frame is None else frame
    own = result.fits.of_frames[frame]
    size = height, round(height * own.model[1] / own.model[0])
    drawn = {"picture": _seen(result, own, frame, size)}
    if result.depth is not None:
        limits = drawing.depth_limits(result.depth.numpy())
        drawn["depth"] = _resized(drawing.depth_image(result.depth[frame].numpy(), limits=limits), size)
    if result.moving is not None:
        mask = _resized(result.moving[frame].numpy().astype(np.uint8) * 255, size) > 127
        drawn["moving"] = drawing.mask_overlay(drawn["picture"], mask)
    trails = _trails(result, own, frame, drawn["picture"])
    drawn |= {} if trails is None else {"trails": trails}
    view = _novel_view(result, size)
    return drawn | ({} if view is None else {"novel view": view})


def _seen(result: Result, own: Fit, frame: int, size: tuple[int, int]) -> RgbImage:
    """Part of the original frame that the model sees."""
    rows, columns = (side / own.scale for side in own.model)
    box = max(own.left, 0.0), max(own.top, 0.0)
    box = *box, min(own.left + columns, own.original[1]), min(own.top + rows, own.original[0])
    image = Image.fromarray(result.frames[frame])
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.LANCZOS, box=box))


def _resized(image: RgbImage, size: tuple[int, int]) -> RgbImage:
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _trails(result: Result, own: Fit, frame: int, picture: RgbImage) -> RgbImage | None:
    table = result.track_table
    if table is None or table.pixels is None or len(result.times) < 2:
        return None
    chosen = np.flatnonzero(table.moving) if table.moving.any() else np.arange(len(table.moving))
    chosen = chosen[np.linspace(0, len(chosen) - 1, min(TRAILS, len(chosen))).round().astype(int)]
    scale = own.scale * picture.shape[0] / own.model[0]
    pixels = (table.pixels[chosen, : frame + 1] - np.array([own.left, own.top], np.float32)) * scale
    visible = table.visible[chosen][:, np.searchsorted(table.times, table.frame_times[: frame + 1])] > 0.5
    colours = np.array(drawing.point_colours(len(chosen)), np.uint8).reshape(-1, 3)
    return drawing.draw_tracks(picture, pixels, visible, colours)


def _novel_view(result: Result, size: tuple[int, int]) -> RgbImage | None:
    cameras = result.prediction.cameras
    if not result.gaussians or cameras is None:
        return None
    cameras = map_tensors(dataclasses.replace(cameras, known=None), lambda tensor: tensor.float())
    cameras = geometry.resize(cameras, result.fits.model, size)
    times = torch.tensor(result.times)
    along, at = camera_path(cameras, times, looked_at(result.gaussians[0].gaussians, cameras), SIDEWAYS)
    one = slice(len(at) // 4, len(at) // 4 + 1)
    along = map_tensors(along, lambda tensor: tensor[one])
    return next(iter(novel_views(result.gaussians, along, at[one], size, device=result.device)))
