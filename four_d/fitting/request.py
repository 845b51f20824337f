"""Choices of the caller of a fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from four_d.errors import UserError
from four_d.objects import Up

LEAST_SIDE = 16


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """One video, the object in it, and how long to fit."""

    video: Path
    """Video file or folder of images."""
    object: Path
    """File of the object: splats (PLY) or a mesh (GLB, OBJ, PLY), as image-to-3D models write them."""
    mask: Path
    """Image or folder of images, one per frame: nonzero where the object is."""
    tracks: Path | None = None
    """NPZ of 2D tracks through the video: tracks.npz of ``four-d infer``, or CoTracker's or TAPIR's arrays."""
    cameras: Path | None = None
    """JSON of the object's camera in every frame, in place of an estimate; None: every frame from the front."""
    up: Up | None = None
    """Axis of the object's file that points up; None: the file format's own."""
    size: int = 96
    """Side of a square with as many pixels as the frames that are fitted."""
    focal: float = 1.5
    """Focal length of the frames in units of their longer side, where no cameras say; 1.5: Lab4D's."""
    gaussians: int = 5000
    """Gaussians at the beginning."""
    steps: int = 1500
    """Steps of the fit."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < LEAST_SIDE or self.steps < 1 or self.gaussians < 1 or self.focal <= 0:
            raise UserError(f"size is at least {LEAST_SIDE}; steps, gaussians and focal are positive")
