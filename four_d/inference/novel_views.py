"""Novel-view videos of Gaussians along a camera path over the clip's times.

`camera_path` makes the cameras, `novel_views` the renders, `write_novel_views` the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from four_d.errors import UserError
from four_d.formats.videos import write_video
from four_d.geometry import make_pose
from four_d.progress import progress
from four_d.rendering import render
from four_d.types import Cameras, Gaussians, Segment, map_tensors, same_time, segment_at


@dataclass(frozen=True, kw_only=True)
class CameraPath:
    """Camera path of a novel-view video.

    ``orbit``: a circle of radius ``amplitude`` in the first camera's image plane, looking at the point that the first
    camera looks at. ``wiggle``: left and right only, looking at that point. ``input``: the clip's own camera,
    interpolated between frames; of a rig the first camera.
    """

    kind: Literal["orbit", "wiggle", "input"] = "orbit"
    amplitude: float = 0.1
    """Radius of the circle, as a fraction of the distance to the point looked at."""
    rounds: int = 1
    """Number of circles or wiggles during the video."""
    rate: float = 25.0
    """Frames per second."""
    seconds: float | None = None
    """Duration of the video, over which the clip's time runs evenly; None: that of the clip, clamped to `SECONDS`."""

    def __post_init__(self) -> None:
        """Raise UserError for values that make no video."""
        if not (0 <= self.amplitude < 10 and self.rounds >= 1 and self.rate > 0):
            raise UserError(
                f"amplitude {self.amplitude}, rounds {self.rounds}, rate {self.rate}: give 0 to 10, ≥ 1 and > 0"
            )
        if self.seconds is not None and not self.seconds > 0:
            raise UserError(f"a video of {self.seconds} s; give more than 0")


SECONDS = 2.0, 10.0
"""Minimum and maximum default duration, so that a long clip takes no longer to render than ten seconds."""


def camera_path(
    cameras: Cameras, times: Float[Tensor, "f"], distance: float, way: CameraPath | None = None
) -> tuple[Cameras, Float[Tensor, "v"]]:
    """Cameras (v) of a video and the clip's time at each.

    Args:
        cameras: cameras of the clip's f frames, in any world.
        times: seconds of the frames, in any order; of frames at one time (a rig) ``input`` takes the first.
        distance: from the first camera to the point it looks at, along its axis (`looked_at`).
        way: the path; None: an orbit.

    Returns:
        Cameras in the same world with the first camera's intrinsics (``input``: the nearest frame's); v times.

    """
    way = way or CameraPath()
    start, end = float(times.min()), float(times.max())
    seconds = min(max(end - start, SECONDS[0]), SECONDS[1]) if way.seconds is None else way.seconds
    count = max(round(seconds * way.rate), 1)
    at = torch.linspace(start, end, count, dtype=times.dtype, device=times.device)
    if way.kind == "input":
        return _along(cameras, times, at), at
    angle = 2 * math.pi * way.rounds * torch.arange(count, device=times.device) / count
    round_about = [torch.cos(angle), torch.sin(angle)]
    across = [torch.sin(angle), torch.zeros_like(angle)]
    shift = way.amplitude * distance * torch.stack(round_about if way.kind == "orbit" else across, dim=-1)
    poses = cameras.world_from_camera[0] @ _towards(shift.to(cameras.world_from_camera), distance)
    return Cameras(world_from_camera=poses, intrinsics=cameras.intrinsics[:1].expand(count, 3, 3)), at


def _towards(shift: Float[Tensor, "v 2"], distance: float) -> Float[Tensor, "v 4 4"]:
    """Poses in the first camera's coordinates, shifted in x and y and looking at the point ``distance`` ahead of it."""
    centre = torch.cat([shift, torch.zeros_like(shift[:, :1])], dim=-1)
    ahead = torch.nn.functional.normalize(shift.new_tensor([0, 0, distance]) - centre, dim=-1)
    down = shift.new_tensor([0, 1, 0]).expand_as(ahead)
    right = torch.nn.functional.normalize(torch.linalg.cross(down, ahead), dim=-1)
    rotation = torch.stack([right, torch.linalg.cross(ahead, right), ahead], dim=-1)
    return make_pose(rotation, centre)


def _along(cameras: Cameras, times: Float[Tensor, "f"], at: Float[Tensor, "v"]) -> Cameras:
    """Interpolate the clip's cameras: linear centres, shortest rotations, intrinsics of the nearest frame."""
    import roma

    order = times.argsort(stable=True)
    order = order[torch.cat([order.new_ones(1).bool(), ~same_time(times[order][1:], times[order][:-1])])]
    known, poses = times[order], cameras.world_from_camera[order]
    after = torch.searchsorted(known, at).clamp(0, len(known) - 1)
    before = (after - 1).clamp_min(0)
    gap = known[after] - known[before]
    share = ((at - known[before]) / torch.where(gap > 0, gap, torch.ones_like(gap))).clamp(0, 1).to(poses)
    turn = poses[before, :3, :3].mT @ poses[after, :3, :3]
    part = roma.rotvec_to_rotmat(share[:, None] * roma.rotmat_to_rotvec(turn))
    centres = torch.lerp(poses[before, :3, 3], poses[after, :3, 3], share[:, None])
    nearest = torch.where(share < 0.5, before, after)
    return Cameras(
        world_from_camera=make_pose(poses[before, :3, :3] @ part, centres),
        intrinsics=cameras.intrinsics[order][nearest],
    )


def looked_at(gaussians: Gaussians, cameras: Cameras) -> float:
    """Distance at which the first camera looks: median depth of the Gaussians in front of it; 1 without any."""
    pose = cameras.world_from_camera[0]
    depth = (gaussians.means - pose[:3, 3]) @ pose[:3, 2]
    front = depth[depth > 0]
    return float(front.median()) if len(front) else 1.0


def novel_views(
    gaussians: Gaussians | Sequence[Segment],
    cameras: Cameras,
    times: Float[Tensor, "v"],
    size: tuple[int, int],
    *,
    background: Float[Tensor, "3"] | None = None,
    device: torch.device | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """Yield renders (h w 3) of unbatched Gaussians for successive cameras, each at its time.

    Args:
        gaussians: in the cameras' world; of several segments, each render shows that of its time.
        cameras: v cameras, intrinsics in pixels of ``size``.
        times: v times in seconds.
        size: height and width.
        background: background colour; None: black.
        device: device that renders; None: that of the Gaussians.

    """
    segments = _segments(gaussians)
    device = device or segments[0].gaussians.means.device
    shown, batch = None, None
    with progress("novel views", len(times), "picture") as bar, torch.no_grad():
        for index in range(len(times)):
            segment = segment_at(segments, float(times[index]))
            if batch is None or segment is not shown:
                shown, batch = segment, map_tensors(segment.gaussians, lambda tensor: tensor.detach().to(device)[None])
            one = Cameras(
                world_from_camera=cameras.world_from_camera[None, index : index + 1].to(device),
                intrinsics=cameras.intrinsics[None, index : index + 1].to(device),
            )
            at = times[None, index : index + 1].to(device)
            view = render(batch, one, at, size, background=background)
            yield (view.colour[0, 0].permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
            bar.advance()


def _segments(gaussians: Gaussians | Sequence[Segment]) -> Sequence[Segment]:
    return [Segment(gaussians=gaussians, start=0.0)] if isinstance(gaussians, Gaussians) else gaussians


def write_novel_views(
    file: Path,
    gaussians: Gaussians | Sequence[Segment],
    cameras: Cameras,
    times: Float[Tensor, "f"],
    size: tuple[int, int],
    *,
    way: CameraPath | None = None,
    background: Float[Tensor, "3"] | None = None,
    device: torch.device | None = None,
) -> None:
    """Write an MP4 of unbatched Gaussians along a path around a clip's cameras, over the clip's times.

    Args:
        file: ends in ``.mp4``; written atomically.
        gaussians: in the cameras' world, or segments of them.
        cameras: cameras of the clip's f frames, intrinsics in pixels of ``size``.
        times: seconds of the frames.
        size: height and width of the video.
        way: camera path; None: an orbit.
        background: background colour; None: black.
        device: device that renders; None: that of the Gaussians.

    Raises:
        UserError: as in `write_video`.

    """
    way = way or CameraPath()
    along, at = camera_path(cameras, times, looked_at(_segments(gaussians)[0].gaussians, cameras), way)
    write_video(file, novel_views(gaussians, along, at, size, background=background, device=device), way.rate)
