"""Ground truth of a stored clip as tensors, in its own world and units: cameras, depth and the dynamics mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d import surface as surfaces
from four_d.data.contract import RawClip
from four_d.types import Cameras, Surface


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Ground truth of a clip's frames, stored by its source or derived from its surface."""

    times: Float[Tensor, "f"]
    cameras: Cameras | None
    surface: Surface | None
    depth: Float[Tensor, "f h w"] | None
    """0 where invalid."""
    dynamic: Bool[Tensor, "f h w"] | None


def cameras_of(clip: RawClip) -> Cameras | None:
    """A clip's cameras in float32, one per frame; None if it has none."""
    if clip.world_from_camera is None or clip.intrinsics is None:
        return None
    return Cameras(
        world_from_camera=torch.from_numpy(clip.world_from_camera).float(),
        intrinsics=torch.from_numpy(clip.intrinsics).float(),
    )


def truth(clip: RawClip) -> Truth:
    """Assemble a clip's ground truth. ValueError if a frame's time is not on the surface's axis."""
    times, cameras = torch.tensor(clip.info.times, dtype=torch.float64).float(), cameras_of(clip)
    if clip.surface is None:
        depth = None if clip.depth is None else torch.from_numpy(clip.depth)
        dynamic = None if clip.dynamic is None else torch.from_numpy(clip.dynamic)
        return Truth(times=times, cameras=cameras, surface=None, depth=depth, dynamic=dynamic)
    surface = surfaces.decode(clip.surface, clip.info)
    depth, dynamic = surfaces.depth_and_dynamic(surface, cameras, times)
    return Truth(times=times, cameras=cameras, surface=surface, depth=depth, dynamic=dynamic)
