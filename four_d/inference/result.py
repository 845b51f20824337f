"""Result of inference on a video."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d import fields
from four_d.abilities import UNITS
from four_d.errors import UserError
from four_d.formats.clouds import PointCloud, fuse
from four_d.formats.tracks import TrackTable
from four_d.geometry import Similarity, invert_pose, world_points
from four_d.inference.lens import Given
from four_d.inference.tracks import from_pixels, from_points
from four_d.tracking import PointTracks
from four_d.types import LIKELY, Cameras, Prediction, Segment
from four_d.video.fit import Fits, Pictures
from four_d.windows.frames import join_frames, take_frames


@dataclass(frozen=True, kw_only=True)
class Result:
    """Outputs of a model for a video: f frames, unbatched, on the CPU, in the first frame's camera coordinates."""

    prediction: Prediction
    """Prediction at the model's resolution."""
    images: Float[Tensor, "f 3 r c"]
    """Input images of the model."""
    frames: Pictures
    """Original frames, each camera's at its own size."""
    times: list[float]
    """Seconds of the frames; 25 frames per second if the input has no times."""
    fits: Fits
    """Mapping between model pixels and each frame's original pixels."""
    mask: Bool[Tensor, "f r c"] | None = None
    """Motion mask given by the user."""
    tracks: PointTracks | None = None
    """Points tracked in 3D, by motion or Gaussians; queries and pixels are *original* pixels."""
    camera_ids: tuple[int, ...] | None = None
    """Camera of each frame; None: a single camera."""
    motion: Float[Tensor, "t r c 3"] | None = None
    """Displacement of the first frame's pixels to each of ``tracks.times``."""
    queries: Float[Tensor, "n 3"] | None = None
    """(frame, x, y) of the query points, in *original* pixels."""
    given: Given | None = None
    """Cameras as the user gave them, which `cameras` keeps exactly."""
    unit: str = UNITS["mean_distance"]
    """Unit of length, in words."""
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a constant
    """Device of the model, which also renders its Gaussians."""
    gaussians: tuple[Segment, ...] = ()
    """Gaussians of the whole video in successive segments; a single one is also ``prediction.gaussians``."""

    keypoint_names: tuple[str, ...] = ()
    """Names of the keypoints that were asked for, in the order of ``prediction.keypoints``."""
    keypoint_instances: tuple[int, ...] = ()
    """Number of the instance that each of them belongs to, from 0 in the order in which they were asked for."""
    keypoint_edges: tuple[tuple[int, int], ...] = ()
    """Bones between them, as they were asked for."""

    @property
    def moving(self) -> Bool[Tensor, "f r c"] | None:
        """Motion mask of the user, else of the model; None without either."""
        if self.mask is not None or self.prediction.dynamic is None:
            return self.mask
        return self.prediction.dynamic > LIKELY

    @property
    def depth(self) -> Float[Tensor, "f r c"] | None:
        """z-depth; None if the model predicts none."""
        return self.prediction.depth

    @property
    def points(self) -> Float[Tensor, "f r c 3"] | None:
        """World points of every pixel (`geometry.world_points`)."""
        return world_points(self.prediction)

    @property
    def cameras(self) -> Cameras | None:
        """Cameras with intrinsics in *original* pixels; those in model pixels are ``prediction.cameras``."""
        if self.prediction.cameras is None:
            return None
        predicted = self.fits.original_cameras(self.prediction.cameras)
        return predicted if self.given is None else self.given.over(predicted)

    @property
    def pixel_tracks(self) -> Float[Tensor, "f n 2"] | None:
        """(x, y) of the query points in every frame by the track head, in *original* pixels."""
        tracks = self.prediction.pixel_tracks
        return None if tracks is None else self.fits.points_to_original(tracks, torch.arange(len(tracks))[:, None])

    @property
    def keypoint_pixels(self) -> Float[Tensor, "f joints 2"] | None:
        """(x, y) of the keypoints in every frame, in *original* pixels; None if the model found none."""
        pixels = getattr(self.prediction, "keypoint_pixels", None)
        if not isinstance(pixels, Tensor):
            return None
        return self.fits.points_to_original(pixels, torch.arange(len(pixels))[:, None])

    @property
    def track_table(self) -> TrackTable | None:
        """Table of the tracked points, in 3D if available; None without any."""
        if self.tracks is not None:
            return from_points(self.tracks, self.motion, self.times, self.camera_ids, self.unit)
        if self.pixel_tracks is None or self.queries is None:
            return None
        seen, sure = self.prediction.pixel_tracks_visible, self.prediction.pixel_tracks_confidence
        widths = [width for _, width in self.fits.originals]
        return from_pixels(self.queries, self.pixel_tracks, seen, sure, self.times, self.camera_ids, widths)

    def cloud(self, *, static: bool = False) -> PointCloud | None:
        """Coloured reliable points of all frames (`formats.clouds.fuse`); ``static``: without moving points.

        UserError for ``static`` without a motion mask.
        """
        if not static:
            return fuse(self.images, self.prediction)
        if self.moving is None:
            raise UserError("neither the model nor a mask says what moves; give one with --mask, or take all points")
        return fuse(self.images, _without(self.prediction, self.moving))

    def take(self, part: slice) -> Result:
        """Consecutive frames, without tracked points and Gaussians."""
        return Result(
            prediction=take_frames(self.prediction, part),
            images=self.images[part],
            frames=self.frames[part],
            times=self.times[part],
            fits=self.fits.take(part),
            mask=None if self.mask is None else self.mask[part],
            camera_ids=None if self.camera_ids is None else self.camera_ids[part],
            given=None if self.given is None else self.given.take(part),
            unit=self.unit,
            device=self.device,
            keypoint_names=self.keypoint_names,
            keypoint_instances=self.keypoint_instances,
            keypoint_edges=self.keypoint_edges,
        )

    def join(self, later: Sequence[Result]) -> Result:
        """Add the results of later frames, the inverse of `take`; without any it stays unchanged."""
        if not later:
            return self
        parts = [self, *later]
        masks = [part.mask for part in parts if part.mask is not None]
        ids = [index for part in parts for index in part.camera_ids or ()]
        return Result(
            prediction=join_frames([part.prediction for part in parts]),
            images=torch.cat([part.images for part in parts]),
            frames=[frame for part in parts for frame in part.frames],
            times=[time for part in parts for time in part.times],
            fits=Fits.join([part.fits for part in parts]),
            mask=torch.cat(masks) if masks else None,
            camera_ids=tuple(ids) if ids else None,
            given=Given.join([part.given for part in parts]),
            unit=self.unit,
            device=self.device,
            keypoint_names=self.keypoint_names,
            keypoint_instances=self.keypoint_instances,
            keypoint_edges=self.keypoint_edges,
        )

    def placed_on(self, before: Result) -> Similarity | None:
        """Similarity to the world of the window before, by the user's poses; None without them."""
        if before.given is None or self.given is None or not self.given.posed:
            return None
        return Similarity.of_pose(invert_pose(before.given.origin) @ self.given.origin)

    def moved(self, move: Similarity, before: Result) -> Result:
        """Move into the world of the window before."""
        given = self.given
        if given is not None and before.given is not None:
            given = dataclasses.replace(given, origin=before.given.origin)
        return dataclasses.replace(self, prediction=fields.move(self.prediction, move), given=given)

    def with_tracks(self, tracks: PointTracks | None, queries: Float[Tensor, "n 3"] | None) -> Result:
        """Add tracks (model pixels) through all frames, with the user's ``queries`` (original pixels) if any."""
        if tracks is None:
            return dataclasses.replace(self, queries=queries)
        pixels, places, frames = tracks.pixels, tracks.queries[:, 1:], tracks.queries[:, 0].long()
        asked = torch.cat([tracks.queries[:, :1], self.fits.points_to_original(places, frames)], dim=-1)
        seen = None if pixels is None else self.fits.points_to_original(pixels, torch.arange(pixels.shape[1]))
        asked = asked if queries is None else queries
        return dataclasses.replace(
            self, tracks=dataclasses.replace(tracks, queries=asked, pixels=seen), queries=queries
        )

    def with_segments(self, segments: tuple[Segment, ...]) -> Result:
        """Add Gaussians; a single segment is also added to the prediction."""
        single = segments[0].gaussians if len(segments) == 1 else None
        prediction = dataclasses.replace(self.prediction, gaussians=single)
        return dataclasses.replace(self, gaussians=segments, prediction=prediction)


def _without(prediction: Prediction, moving: Bool[Tensor, "f r c"]) -> Prediction:
    """Remove the geometry of moving pixels."""
    depth, points = prediction.depth, prediction.points
    return dataclasses.replace(
        prediction,
        depth=None if depth is None else depth.masked_fill(moving, 0),
        points=None if points is None else points.masked_fill(moving[..., None], 0),
    )
