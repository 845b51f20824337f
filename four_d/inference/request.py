"""Request to a model: a video, hints, and windows."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

import torch
from jaxtyping import Float
from torch import Tensor

from four_d.abilities import Abilities, check_sees_scenes
from four_d.errors import UserError
from four_d.formats.cameras import read_cameras
from four_d.inference import hints
from four_d.inference.hints import Known
from four_d.inference.keypoints import Instance, instances_of
from four_d.keypoints import check_edges, check_skeleton
from four_d.video.fit import Fits
from four_d.video.footage import Selection, check_footage
from four_d.video.inputs import Frames
from four_d.video.mask import Mask, check_masks
from four_d.video.remarks import Remarks
from four_d.windows.cut import Cut

Points = Sequence[tuple[float, float] | tuple[int | float, float, float]]
"""(x, y) in original pixels of the first frame, or (frame, x, y) with the index of any chosen frame; (0, 0) is the
corner of the top-left pixel."""


class Asked(TypedDict, total=False):
    """Fields of a `Request` beside the video, as keywords of a call."""

    selection: Selection | None
    mask: Mask | None
    points: Points | None
    keypoints: Sequence[str] | Sequence[Instance] | None
    keypoint_edges: Sequence[tuple[str, str]]
    known: Known | None
    window: int | None
    overlap: int | None
    tracks: bool
    merge: float


@dataclass(frozen=True, kw_only=True)
class Request:
    """Video, hints and windows of one inference run."""

    video: Frames
    """Video file or folder of images (or frames); several: synchronised cameras that start at the same time."""
    selection: Selection | None = None
    """Choice of frames of a file or folder; arrays and lists are taken whole."""
    mask: Mask | None = None
    """Motion mask (nonzero: moving) in place of the model's own: an image for all frames, or a folder of images."""
    points: Points | None = None
    """Pixels to track: X,Y of the first frame or FRAME,X,Y (default for a model with motion: a grid). A model with
    motion or Gaussians tracks them in 3D, one with a track head in the images."""
    keypoints: Sequence[str] | Sequence[Instance] | None = None
    """Keypoints to find, for a model with a keypoints head: names, or instances with names and a box each, in pixels of
    the first frame, so that two of a kind can be told apart."""
    keypoint_edges: Sequence[tuple[str, str]] = ()
    """Bones to draw between keypoints, each two of their names, in every instance that has both."""
    known: Known | None = None
    """Known cameras and depth, for a model that takes them."""
    window: int | None = None
    """Number of frames of each camera seen at once; a longer video is split into overlapping windows (default 24, or
    twice as many as in training)."""
    overlap: int | None = None
    """Number of frames that neighbouring windows share (default: a quarter)."""
    tracks: bool = True
    """Track points, which takes a while with a model of dense motion."""
    merge: float = 0.0
    """Relative difference of depths, such as 0.1, up to which Gaussians of two key frames become one (`merged`), which
    makes fewer of them; 0: all are kept."""

    def __post_init__(self) -> None:
        """Raise UserError for an empty list of points, points without ``tracks``, keypoints that are none, and a
        ``merge`` that is no share.
        """
        if self.points is not None and not self.tracks:
            raise UserError("points are given to be followed, and tracks are off; leave one of the two out")
        if self.points is not None and not len(self.points):
            raise UserError("points are an empty list; give at least one (x, y)")
        if not 0 <= self.merge < 1:
            raise UserError(f"merge is {self.merge:g}; choose a share of the depth below 1, such as 0.1, or 0 for none")
        if self.keypoints is not None:
            try:
                check_skeleton(self.keypoint_names, self.keypoint_instances, (), ())
            except ValueError as error:
                raise UserError(str(error)) from error
        self.bones  # noqa: B018 - which refuses names that are not asked for

    @property
    def instances(self) -> tuple[Instance, ...]:
        """Instances whose keypoints are asked for. UserError as in `keypoints.instances_of`."""
        return instances_of(self.keypoints or ())

    @property
    def keypoint_names(self) -> tuple[str, ...]:
        """Names of all keypoints, instance by instance."""
        return tuple(name for each in self.instances for name in each.names)

    @property
    def keypoint_instances(self) -> tuple[int, ...]:
        """Number of each keypoint's instance, from 0."""
        return tuple(number for number, each in enumerate(self.instances) for _ in each.names)

    @property
    def bones(self) -> tuple[tuple[int, int], ...]:
        """Bones as indices of `keypoint_names`, of every instance that has both ends.

        UserError for a name that is not among them, ends of two instances, and bones that are none.
        """
        names, edges, start = self.keypoint_names, list[tuple[int, int]](), 0
        unknown = [name for edge in self.keypoint_edges for name in edge if name not in names]
        if unknown:
            raise UserError(f"a bone ends at {unknown[0]!r}, which is not among the keypoints; add it there")
        for each in self.instances:
            place = {name: start + index for index, name in enumerate(each.names)}
            start += len(each.names)
            edges += [(place[one], place[two]) for one, two in self.keypoint_edges if one in place and two in place]
        for one, two in self.keypoint_edges:
            if not any(names[start] == one and names[end] == two for start, end in edges):
                raise UserError(f"no instance has both ends of the bone {one}:{two}; add them there, or leave it out")
        try:
            check_edges(edges, names)
        except ValueError as error:
            raise UserError(str(error)) from error
        return tuple(edges)

    @property
    def videos(self) -> Sequence[object]:
        """Videos, one for each camera."""
        several = isinstance(self.video, Sequence) and not isinstance(self.video, str)
        return cast(Sequence[object], self.video) if several else [self.video]

    @property
    def files(self) -> list[Path]:
        """All input files and folders."""
        known = self.known or Known()
        return [
            Path(each) for each in (*self.videos, self.mask, known.cameras, known.depth) if isinstance(each, str | Path)
        ]

    def cut(self, trained: int, exact: int | None = None) -> Cut:
        """Windows for a model trained on ``trained`` frames, or one that takes ``exact`` so many.

        UserError for windows that cannot be joined, or that the model does not take.
        """
        if exact is not None and self.window not in (None, exact):
            raise UserError(f"window is {self.window}, and this model takes exactly {exact} frames; leave it out")
        cut = Cut.of(trained, exact if self.window is None else self.window, self.overlap)
        frames, shared = cut.frames, cut.overlap
        if frames < 2:
            raise UserError(f"window is {frames}; take at least 2 frames at once")
        if shared < 1:
            raise UserError(f"overlap is {shared}; windows are joined by frames that both see: share at least 1")
        if shared >= frames:
            raise UserError(f"overlap is {shared}, and a window has {frames} frames; share fewer")
        return cut

    def check(self) -> None:
        """Raise UserError for inputs that no model could use: missing or unreadable files, inconsistent values.

        Needs no model, since loading a large one takes minutes.
        """
        known = self.known or Known()
        dataclasses.replace(self, window=sys.maxsize if self.window is None else self.window).cut(0)
        if known.intrinsics is not None:
            hints.check_count(known.intrinsics, len(self.videos))
        if isinstance(self.mask, str | Path):
            check_masks(Path(self.mask))
        if isinstance(known.cameras, str | Path):
            read_cameras(Path(known.cameras))
        if isinstance(known.depth, str | Path):
            hints.depth_files(Path(known.depth), known.depth_unit)
        for each in self.videos:
            if isinstance(each, str | Path):
                check_footage(Path(each), self.selection if len(self.videos) == 1 else None)

    def check_for(self, model: Abilities) -> None:
        """Raise UserError for inputs that the model does not take; reports skipped files beside masks and depth."""
        check_sees_scenes(model)
        if self.mask is not None and not model.masks:
            raise UserError("this model does not ask what moves (backbone.dynamics is off); leave the mask out")
        if isinstance(self.mask, str | Path):
            check_masks(Path(self.mask), Remarks(self.mask))
        if self.points is not None and not (model.follows or model.gives_gaussians):
            raise UserError("this model follows no points (it has no motion, track or gaussian head); leave them out")
        if self.keypoints is not None and "keypoints" not in model.outputs:
            raise UserError("this model finds no keypoints (it has no keypoints head); leave them out")
        if any(each.box is not None for each in self.instances) and "boxes" not in model.hints:
            raise UserError(f"this model {model.hints_text}, not boxes; ask for names alone, or take another model")
        if self.known is not None:
            hints.check(self.known, model)

    @property
    def asked(self) -> Float[Tensor, "n 3"] | None:
        """Points as (frame, x, y) in original pixels."""
        points = self.points
        return None if points is None else torch.tensor([(0.0, *point)[-3:] for point in points], dtype=torch.float32)

    def queries(self, to: Fits, frames: int, cameras: int) -> Float[Tensor, "n 3"] | None:
        """Points as (frame, x, y) in model pixels; UserError for one outside the frames or the model's crop.

        Args:
            to: fits of the frames, at least of one per camera.
            frames: number of frames.
            cameras: number of cameras; frames are ordered by time, then by camera.

        """
        asked = self.asked
        if asked is None:
            return None
        for frame, x, y in asked.tolist():
            if frame not in range(frames):
                which = "the only frame is 0" if frames == 1 else f"choose 0 to {frames - 1}"
                raise UserError(f"frame {frame:g} of point {x:g},{y:g} is not among the frames taken; {which}")
        places, of_frames = asked[:, 1:], asked[:, 0].long() % cameras
        to.check_seen(places, of_frames)
        return torch.cat([asked[:, :1], to.points_to_model(places, of_frames)], dim=-1)
