"""What a model says of a video."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from four_d.data.sampling import UNITS
from four_d.errors import UserError
from four_d.formats.clouds import PointCloud, fuse
from four_d.formats.tracks import TrackTable
from four_d.geometry import world_points
from four_d.inference.fit import Fit
from four_d.inference.tracks import from_pixels, from_points
from four_d.tracking import PointTracks
from four_d.types import Cameras, Prediction, Segment


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a model says of a video: f frames, no batch axis, on the CPU. Coordinates are the first frame's camera's."""

    prediction: Prediction
    """At the model's resolution."""
    images: Float[Tensor, "f 3 r c"]
    """What the model saw."""
    frames: UInt8[np.ndarray, "f h w 3"]
    """The original frames."""
    times: list[float]
    """Seconds; 25 frames per second where the input does not say."""
    fit: Fit
    """How model pixels and original pixels belong together."""
    mask: Bool[Tensor, "f r c"] | None = None
    """What the user said moves."""
    tracks: PointTracks | None = None
    """Points followed in 3D, by a model that predicts motion; queries and pixels are *original* pixels."""
    camera_ids: tuple[int, ...] | None = None
    """Which camera each frame is of; None: all of one."""
    motion: Float[Tensor, "t r c 3"] | None = None
    """Of the first frame's pixels to each of ``tracks.times``: where their points are then, minus where they are."""
    queries: Float[Tensor, "n 3"] | None = None
    """(frame, x, y) of the points that were asked for, in *original* pixels."""
    unit: str = UNITS["mean_distance"]
    """What lengths are in, in words."""
    gaussians: tuple[Segment, ...] = ()
    """Of the whole video, one segment after the other; of a single one also ``prediction.gaussians``."""

    @property
    def moving(self) -> Bool[Tensor, "f r c"] | None:
        """What moves: as the user said, or else as the model says; None if neither does."""
        if self.mask is not None or self.prediction.dynamic is None:
            return self.mask
        return self.prediction.dynamic > 0.5

    @property
    def depth(self) -> Float[Tensor, "f r c"] | None:
        """z-depth; None if the model has no such head."""
        return self.prediction.depth

    @property
    def points(self) -> Float[Tensor, "f r c 3"] | None:
        """World points of every pixel (`geometry.world_points`)."""
        return world_points(self.prediction)

    @property
    def cameras(self) -> Cameras | None:
        """Poses, and intrinsics in *original* pixels; those in model pixels are ``prediction.cameras``."""
        cameras = self.prediction.cameras
        return None if cameras is None else self.fit.original_cameras(cameras)

    @property
    def pixel_tracks(self) -> Float[Tensor, "f n 2"] | None:
        """Where the track head sees the points that were asked for in every frame: (x, y) in *original* pixels."""
        tracks = self.prediction.pixel_tracks
        return None if tracks is None else self.fit.points_to_original(tracks)

    @property
    def track_table(self) -> TrackTable | None:
        """Points followed through the video, in 3D if the model does that; None if none were."""
        if self.tracks is not None:
            return from_points(self.tracks, self.motion, self.times, self.camera_ids, self.unit)
        if self.pixel_tracks is None or self.queries is None:
            return None
        seen, sure = self.prediction.pixel_tracks_visible, self.prediction.pixel_tracks_confidence
        width = self.frames.shape[2]
        return from_pixels(self.queries, self.pixel_tracks, seen, sure, self.times, self.camera_ids, width)

    def cloud(self, *, static: bool = False) -> PointCloud | None:
        """The reliable points of all frames, coloured (`formats.clouds.fuse`); ``static``: without what moves.

        UserError if that is asked for and nobody says what moves.
        """
        if not static:
            return fuse(self.images, self.prediction)
        if self.moving is None:
            raise UserError("neither the model nor a mask says what moves; give one with --mask, or take all points")
        return fuse(self.images, _without(self.prediction, self.moving))

    def with_segments(self, segments: tuple[Segment, ...]) -> Result:
        """The same with these Gaussians; a single segment is also its prediction's."""
        single = segments[0].gaussians if len(segments) == 1 else None
        prediction = dataclasses.replace(self.prediction, gaussians=single)
        return dataclasses.replace(self, gaussians=segments, prediction=prediction)


def _without(prediction: Prediction, moving: Bool[Tensor, "f r c"]) -> Prediction:
    """No geometry where something moves."""
    depth, points = prediction.depth, prediction.points
    return dataclasses.replace(
        prediction,
        depth=None if depth is None else depth.masked_fill(moving, 0),
        points=None if points is None else points.masked_fill(moving[..., None], 0),
    )
