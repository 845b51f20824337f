"""What is known of some of a long video's frames, cut and joined along them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from four_d.inference.fit import Fit
from four_d.inference.seams import Similarity
from four_d.tracking import PointTracks
from four_d.types import Cameras, Prediction, map_tensors


def border(earlier: range, later: range) -> int:
    """The first frame that is taken of the later window: the one nearer to its middle than to the earlier one's."""
    return (earlier.start + earlier.stop + later.start + later.stop - 2) // 4 + 1


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a window gave of some frames; unbatched, on the CPU."""

    frames: range
    """Which of the video's."""
    prediction: Prediction
    """Motion is to the time of the window's first frame."""
    fit: Fit
    images: Float[Tensor, "f 3 r c"]
    originals: UInt8[np.ndarray, "f h w 3"]
    mask: Bool[Tensor, "f r c"] | None = None
    tracks: PointTracks | None = None
    """Of the whole window; pixels are original ones and frames are counted from the window's first."""

    def take(self, frames: range) -> Part:
        """Some neighbouring frames of these, without tracks."""
        part = slice(frames.start - self.frames.start, frames.stop - self.frames.start)
        return Part(
            frames=frames,
            fit=self.fit,
            prediction=take_frames(self.prediction, part),
            images=self.images[part],
            originals=self.originals[part],
            mask=None if self.mask is None else self.mask[part],
        )

    def moved(self, move: Similarity) -> Part:
        """The same in another world."""
        tracks = self.tracks
        if tracks is not None:
            tracks = dataclasses.replace(tracks, points=move.points(tracks.points))
        return dataclasses.replace(self, prediction=move.prediction(self.prediction), tracks=tracks)


_MOTION = frozenset({"motion", "motion_confidence", "motion_visible"})
"""Fields whose frames are the second axis."""
_LEFT_OUT = frozenset(
    {"pose_encodings", "pixel_track_stages", "match_logits", "match_frames", "gaussians", "key_frames"}
)
_OF_POINTS = frozenset({"pixel_tracks", "pixel_tracks_visible", "pixel_tracks_confidence"})
"""Fields whose points differ from window to window."""


def take_frames(prediction: Prediction, part: slice | Sequence[int]) -> Prediction:
    """Some frames of an unbatched prediction, without what was followed and what has no frames."""
    index = part if isinstance(part, slice) else list(part)
    return Prediction(
        **{
            name: map_tensors(value, (lambda tensor: tensor[:, index]) if name in _MOTION else lambda t: t[index])
            for name, value in vars(prediction).items()
            if value is not None and name not in _LEFT_OUT | _OF_POINTS
        }
    )


def join_frames(parts: Sequence[Prediction]) -> Prediction:
    """The inverse of `take_frames`: frames of several predictions one after the other.

    Without motion: each window's is to its own first frame's time.
    """
    joined: dict[str, object] = {}
    for name, first in vars(parts[0]).items():
        values = [getattr(part, name) for part in parts]
        if isinstance(first, Tensor) and name not in _MOTION:
            joined[name] = torch.cat(values)
        elif isinstance(first, Cameras):
            joined[name] = Cameras(
                world_from_camera=torch.cat([value.world_from_camera for value in values]),
                intrinsics=torch.cat([value.intrinsics for value in values]),
            )
    return Prediction(**joined)  # pyright: ignore[reportArgumentType]
