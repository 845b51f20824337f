"""A fitted scene as a clip of shards: its frames with the cameras, depth, mask and tracks that the fit found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from four_d import checkpoints, fields
from four_d.data.contract import ClipInfo, RawClip, TrackArrays
from four_d.data.shards import ShardReader
from four_d.errors import UserError
from four_d.fitting.stages import CLIP, REQUEST, RUN
from four_d.geometry import inside, project
from four_d.progress import progress
from four_d.rendering import render
from four_d.rendering.scene import means_at
from four_d.scene import DeformableScene
from four_d.types import Cameras, Gaussians, map_tensors

TRACKS = 512
"""Most tracks of a clip."""
DEPTH_COUNTS = 65_000
"""Counts of the largest depth in the shard's 16-bit images."""
COVERED = 0.5
"""Alpha above which the scene shows a pixel's depth."""
NEAR = 0.01
"""Share of the depth within which a Gaussian's centre is on the surface that is seen: half of what checks allow."""


def fitted_files(fit: Path) -> list[Path]:
    """Files that a clip is made of: the scene's weights, and frames and masks. UserError unless they are there."""
    found = [fit / RUN / checkpoints.LAST, *sorted((fit / CLIP).glob("shard-*.tar"))]
    if not (fit / REQUEST).is_file() or len(found) < 2 or not found[0].is_file():
        raise UserError(f"{fit} holds no fitted scene; give the folder of a four-d fit that has ended")
    return found


@torch.no_grad()
def fitted_clip(fit: Path) -> RawClip:
    """Make the clip of a fit's folder, in the object's coordinates, of which the unit is the object's radius.

    Depth is that of the scene where it covers the mask, and unknown elsewhere; ``dynamic`` is the mask. Tracks are the
    centres of opaque Gaussians that some frame sees. UserError where the folder holds no such scene.
    """
    fitted_files(fit)
    with ShardReader(fit / CLIP) as reader:
        own = reader.read(0)
    scene = checkpoints.read(fit / RUN).model
    if not isinstance(scene, DeformableScene) or own.dynamic is None or len(scene.times) != len(own.images):
        raise UserError(f"{fit} holds no scene of its own clip; give the folder of a four-d fit")
    times = torch.tensor(own.info.times, dtype=torch.float32)
    frames = scene.frames_at(times)
    cameras = Cameras(world_from_camera=scene.cameras(frames), intrinsics=scene.intrinsics[frames])
    moving = scene.deformation.deform(scene.gaussians(), times)
    depth = rendered_depth(moving, cameras, times, torch.from_numpy(own.dynamic))
    return RawClip(
        key=own.key,
        info=ClipInfo(
            source=own.info.source,
            licence=own.info.licence,
            metric=False,
            width=own.info.width,
            height=own.info.height,
            times=own.info.times,
            camera_ids=own.info.camera_ids,
            track_times=own.info.times,
            depth_unit=max(float(depth.max()), 1.0) / DEPTH_COUNTS,
        ),
        images=own.images,
        world_from_camera=rigid(cameras.world_from_camera).numpy(),
        intrinsics=cameras.intrinsics.double().numpy(),
        depth=depth.numpy(),
        dynamic=own.dynamic,
        tracks=tracks_of(moving, cameras, times, depth),
    )


def rigid(poses: Float[Tensor, "f 4 4"]) -> Float[Tensor, "f 4 4"]:
    """Poses in double precision whose rotations are exactly that: a product of single ones is off by more than shards
    allow after many steps.
    """
    left, _, right = torch.linalg.svd(poses[:, :3, :3].double())
    found = poses.double().clone()
    found[:, :3, :3] = left @ right
    return found


def rendered_depth(
    gaussians: Gaussians, cameras: Cameras, times: Float[Tensor, "f"], masks: Tensor
) -> Float[Tensor, "f h w"]:
    """z-depth of the scene where it covers the masks; 0 elsewhere."""
    scene, depth = fields.stack([gaussians]), torch.zeros(masks.shape)
    size = (masks.shape[1], masks.shape[2])
    with progress("depth", len(times), "frame") as bar:
        for frame in range(len(times)):
            views = render(scene, one_frame(cameras, frame), times[None, frame : frame + 1], size)
            depth[frame] = torch.where((views.alpha[0, 0] > COVERED) & masks[frame], views.depth[0, 0], 0)
            bar.advance()
    return depth


def one_frame(cameras: Cameras, frame: int) -> Cameras:
    """Batch of one frame's camera."""
    return map_tensors(cameras, lambda tensor: tensor[None, frame : frame + 1])


def tracks_of(
    gaussians: Gaussians, cameras: Cameras, times: Float[Tensor, "f"], depth: Float[Tensor, "f h w"]
) -> TrackArrays:
    """Paths of up to `TRACKS` opaque Gaussians, evenly chosen among those that two frames see on the surface."""
    opaque = (gaussians.opacities > COVERED).nonzero()[:, 0]
    opaque = opaque if len(opaque) else torch.arange(len(gaussians.means))
    points = means_at(fields.stack([gaussians]), times[None])[0][:, opaque]
    pixels, z = project(points, cameras)
    height, width = depth.shape[1:]
    there = inside(pixels, z, (height, width))
    column, row = pixels.nan_to_num(0, 0, 0).long().unbind(-1)
    rows = torch.arange(len(times))[:, None]
    front = depth[rows, row.clamp(0, height - 1), column.clamp(0, width - 1)]
    seen = there & (front > 0) & ((z - front).abs() <= NEAR * front)
    often = (seen.sum(0) >= 2).nonzero()[:, 0]
    chosen = often[torch.linspace(0, len(often) - 1, min(TRACKS, len(often))).round().long()]
    return TrackArrays(
        points=points[:, chosen].movedim(1, 0).float().contiguous().numpy(),
        visible=seen[:, chosen].T.contiguous().numpy(),
        valid=np.ones((len(chosen), len(times)), np.bool_),
    )
