"""Choices of the caller of a fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from four_d.errors import UserError
from four_d.objects import ObjectProvider, Up

MOST_FRAMES = 999
"""Frames of a clip in the shard layout."""
AUTO = "auto"
"""Tracks of the model."""
POSE_STEPS = 300
"""Steps of the pose network, unless another number is given."""
LEAST_SIDE = 16
"""Least ``size``: SSIM needs a few pixels."""


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """One video, the object in it, and how long to fit."""

    video: Path
    """Video file or folder of images."""
    object: Path | ObjectProvider | None = None
    """File of the object: splats (PLY) or a mesh (GLB, OBJ, PLY), as image-to-3D models write them; or
    synthetic:KIND@SEED, a creature or shape of our generator, as synthetic:animal@3. None: ``init`` says."""
    init: str | None = None
    """Begin with a feed-forward model's Gaussians of a key frame and its cameras, instead of with an object: a
    reference model (unified, dgs_lrm), or the path of an exported folder or run folder."""
    mask: Path | None = None
    """Image or folder of images, one per frame: nonzero where the object is. None: what ``model`` sees move."""
    tracks: Path | Literal["auto"] | None = None
    """NPZ of 2D tracks through the video: tracks.npz of ``four-d infer``, or CoTracker's or TAPIR's arrays; or auto:
    those of ``model``."""
    model: Path | None = None
    """Exported folder or run folder that gives what is not given of mask and tracks, and the cameras of an ``init``
    that needs them (default: the best reference model)."""
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
    pose_steps: int | None = None
    """Steps of the pose network on renders of the object (default: 300, and 0 with ``init``); 0: none, and frames begin
    with the cameras of ``init``, or without it as seen from the front."""
    pose_net: Path | None = None
    """Pose network trained before on this object (``four-d train pose_net``, or ``pose_net/`` of another fit); None:
    train one."""
    steps: int = 1500
    """Steps of the fit."""
    seed: int = 0
    """Seed of both trainings."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device; auto: cuda if there is a GPU, else Apple's (mps), else the CPU."""

    def __post_init__(self) -> None:
        if not 2 <= self.max_frames <= MOST_FRAMES:
            raise UserError(f"max_frames is {self.max_frames}; choose from 2 to {MOST_FRAMES}")
        if (self.object is None) == (self.init is None):
            raise UserError(
                "give the object's file (--object), or a model whose Gaussians a fit begins with (--init unified): "
                f"{'neither is given' if self.init is None else 'both are given'}"
            )
        if self.up is not None and not isinstance(self.object, Path):
            raise UserError("up is for the file of an object, and there is none; leave it out")
        if self.size < LEAST_SIDE or self.steps < 1 or self.gaussians < 1 or self.focal <= 0 or self.trained < 0:
            raise UserError(
                f"size is at least {LEAST_SIDE}; steps, gaussians and focal are positive, pose_steps is not negative"
            )
        if self.model is not None and self.mask is not None and self.tracks != AUTO and self.init is None:
            raise UserError("model is for a mask or tracks that are not given; leave it out, or the mask")
        if self.pose_net is not None and not self.trained:
            raise UserError("pose_steps=0 begins every frame at the front, and pose_net is given; leave one out")

    @property
    def trained(self) -> int:
        """Steps of the pose network; 0: it is not asked."""
        usual = POSE_STEPS if self.init is None or self.pose_net is not None else 0
        return usual if self.pose_steps is None else self.pose_steps

    @property
    def files(self) -> list[Path]:
        """All input files and folders."""
        begun = None if self.init is None or not Path(self.init).exists() else Path(self.init)
        given = (self.video, self.object, begun, self.mask, self.tracks, self.model, self.pose_net)
        return [each for each in given if isinstance(each, Path)]

    def same_inputs(self) -> dict[str, object]:
        """Choices that what is in a fit's folder depends on: all but the length of the fit and the device."""
        return {
            **{name: str(value) for name, value in vars(self).items() if name not in ("steps", "device")},
            "pose_steps": str(self.trained),
        }
