"""Choices of the caller of a fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from four_d.errors import UserError
from four_d.objects import Up

MOST_FRAMES = 999
"""Frames of a clip in the shard layout."""
AUTO = "auto"
"""Tracks of the model."""
LEAST_SIDE = 16
"""Least ``size``: SSIM needs a few pixels."""


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """One video, the object in it, and how long to fit."""

    video: Path
    """Video file or folder of images."""
    object: Path
    """File of the object: splats (PLY) or a mesh (GLB, OBJ, PLY), as image-to-3D models write them."""
    mask: Path | None = None
    """Image or folder of images, one per frame: nonzero where the object is. None: what ``model`` sees move."""
    tracks: Path | Literal["auto"] | None = None
    """NPZ of 2D tracks through the video: tracks.npz of ``four-d infer``, or CoTracker's or TAPIR's arrays; or auto:
    those of ``model``."""
    model: Path | None = None
    """Exported folder or run folder that gives what is not given of mask and tracks (default: the best reference
    model)."""
    up: Up | None = None
    """Axis of the object's file that points up; None: the file format's own."""
    max_frames: int = 300
    """Maximum number of frames, evenly spaced."""
    size: int = 96
    """Side of a square with as many pixels as the frames that are fitted."""
    focal: float = 1.5
    """Focal length of the frames in units of their longer side; 1.5: Lab4D's."""
    gaussians: int = 5000
    """Gaussians at the beginning."""
    pose_steps: int = 300
    """Steps of the pose network on renders of the object; 0: none, and every frame begins as seen from the front."""
    pose_net: Path | None = None
    """Pose network trained before on this object (``four-d train pose_net``, or ``pose_net/`` of another fit); None:
    train one."""
    steps: int = 1500
    """Steps of the fit."""
    seed: int = 0
    """Seed of both trainings."""

    def __post_init__(self) -> None:
        if not 2 <= self.max_frames <= MOST_FRAMES:
            raise UserError(f"max_frames is {self.max_frames}; choose from 2 to {MOST_FRAMES}")
        if self.size < LEAST_SIDE or self.steps < 1 or self.gaussians < 1 or self.focal <= 0 or self.pose_steps < 0:
            raise UserError(
                f"size is at least {LEAST_SIDE}; steps, gaussians and focal are positive, pose_steps is not negative"
            )
        if self.model is not None and self.mask is not None and self.tracks != AUTO:
            raise UserError("model is for a mask or tracks that are not given; leave it out, or the mask")
        if self.pose_net is not None and not self.pose_steps:
            raise UserError("pose_steps=0 begins every frame at the front, and pose_net is given; leave one out")

    @property
    def files(self) -> list[Path]:
        """All input files and folders."""
        given = (self.video, self.object, self.mask, self.tracks, self.model, self.pose_net)
        return [each for each in given if isinstance(each, Path)]

    def same_inputs(self) -> dict[str, object]:
        """Choices that what is in a fit's folder depends on: all but the length of the fit."""
        return {name: str(value) for name, value in vars(self).items() if name != "steps"}
