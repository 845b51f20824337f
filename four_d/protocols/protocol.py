"""Published evaluation protocol: its data set, frames, ground truth, depth caps and alignments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from four_d.datasets.sequence import Sequence, Task
from four_d.errors import UserError
from four_d.metrics.rig_tracks import RigThresholds

Alignment = Literal["metric", "median", "scale", "scaleshift", "disparity"]
"""Alignment of depth; ``scale`` and ``scaleshift`` minimise *absolute* errors as published code does (IRLS; Adam),
``disparity`` fits scale and shift of disparity by least squares (`metrics.depth.published_disparity`)."""
TrackProtocol = Literal["world", "tapvid3d", "dpm"]

CROPPED = 512
"""Longest side of maps before published code crops them."""


@dataclass(frozen=True, kw_only=True)
class PointSettings:
    """Settings of the comparison of point maps."""

    crop: tuple[int, int] | None
    """Rows and columns of the central crop of each map, resized to the longest side `CROPPED`; None = all pixels."""
    alignment: Literal["icp", "trajectory"]
    """``icp``: scale and shift, then rigid ICP; ``trajectory``: the Sim(3) of the camera centres, no ICP."""
    icp_distance: float | None
    """Greatest distance (m) of a correspondence in ICP."""
    normals: bool
    """True if normal consistency is part of the protocol."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One published protocol: what to read and how to score it."""

    name: str
    tasks: tuple[Task, ...]
    reader: Callable[[Path, tuple[str, ...] | None], list[Sequence]]
    """Reader that `open` calls."""
    source: str
    """Published code that it follows, with the differences between papers."""
    layout: str
    """Layout under the root, in one line."""
    sequences: int | None = None
    """Number of videos (NYU: images) behind the published figures; None for a user's own data."""
    max_depth: float | None = None
    """Depth (m) at or beyond which truth is not scored."""
    clip_depth: float | None = None
    """Largest depth of predictions after alignment (m)."""
    alignments: tuple[Alignment, ...] = ()
    """Alignments of ``video_depth``: one fit per sequence."""
    frame_alignments: tuple[Alignment, ...] = ()
    """Alignments of ``depth``: one fit per frame."""
    points: PointSettings | None = None
    tracks: TrackProtocol | None = None
    """Definitions that the scores of tracks follow (`metrics.tracks`)."""
    rig: RigThresholds | None = None
    """Distances by which tracks in the world of several cameras are scored (`metrics.rig_tracks`)."""
    scalings: tuple[str, ...] = ()
    """Alignments of predicted tracks, the protocol's own first."""

    def open(self, root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
        """List the sequences under ``root``, in the set's own layout, without reading images or depth.

        Several may have one name where a set takes other frames for another task (`Sequence.tasks`). UserError names
        a missing part and the expected layout, or a name in ``only`` that the protocol lacks.
        """
        if not root.is_dir():
            raise UserError(f"{root} is not a folder; {self.name} expects there: {self.layout}")
        return self.reader(root, only)
