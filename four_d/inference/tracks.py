"""Table of points tracked through a video, common to all heads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from four_d.formats.tracks import TrackTable
from four_d.tracking import PointTracks, moving

CROSSES = 0.02
"""Minimum range of a moving point in one camera, as a fraction of the image width, if no 3D positions are known."""


def from_points(
    tracks: PointTracks,
    motion: Float[Tensor, "t r c 3"] | None,
    frame_times: Sequence[float],
    camera_ids: Sequence[int] | None,
    unit: str,
) -> TrackTable:
    """Table of points tracked in 3D, with queries and pixels in original pixels."""
    of_frames, times = np.array(frame_times, np.float64), tracks.times.double().numpy().copy()
    at = np.abs(of_frames[:, None] - times).argmin(axis=1)
    times[at] = of_frames  # those of the model have single precision
    return TrackTable(
        queries=_array(tracks.queries),
        times=times,
        frame_times=times[at],
        frame_cameras=_cameras(camera_ids, len(at)),
        visible=_array(tracks.visible),
        moving=moving(tracks).numpy(),
        unit=unit,
        points=_array(tracks.points),
        pixels=None if tracks.pixels is None else _array(tracks.pixels),
        motion=None if motion is None else _array(motion),
    )


def from_pixels(
    queries: Float[Tensor, "n 3"],
    pixels: Float[Tensor, "f n 2"],
    visible: Float[Tensor, "f n"] | None,
    confidence: Float[Tensor, "f n"] | None,
    frame_times: Sequence[float],
    camera_ids: Sequence[int] | None,
    widths: Sequence[int],
) -> TrackTable:
    """Table of points tracked in the images only, in original pixels.

    ``widths`` are those of the f frames. Points are visible throughout if the head predicts no visibility.
    """
    times, at = np.unique(np.array(frame_times, np.float64), return_inverse=True)
    places = _array(pixels.transpose(0, 1))
    of_cameras, shares = _cameras(camera_ids, len(at)), places / np.array(widths)[:, None]
    own = [shares[:, of_cameras == camera] for camera in np.unique(of_cameras)]
    spans = [np.linalg.norm(some.max(axis=1) - some.min(axis=1), axis=-1) for some in own]
    return TrackTable(
        queries=_array(queries),
        times=times,
        frame_times=times[at],
        frame_cameras=of_cameras,
        visible=_of_times(visible, at, places),
        confidence=_of_times(confidence, at, places),
        moving=np.max(spans, axis=0) > CROSSES,
        unit="none",
        pixels=places,
    )


def _of_times(
    of_frames: Float[Tensor, "f n"] | None, at: NDArray[np.intp], places: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Maximum over the frames of each time (n t); 1 without values."""
    found = np.zeros((int(at.max()) + 1, len(places)), np.float32)
    np.maximum.at(found, at, np.ones(places.shape[1::-1], np.float32) if of_frames is None else _array(of_frames))
    return np.ascontiguousarray(found.T)


def _array(values: Tensor) -> NDArray[np.float32]:
    """Array with finite values: behind a camera a pixel may be infinite."""
    return np.nan_to_num(values.float().numpy())


def _cameras(ids: Sequence[int] | None, frames: int) -> NDArray[np.int64]:
    return np.zeros(frames, np.int64) if ids is None else np.array(ids, np.int64)
