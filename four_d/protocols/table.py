"""Published evaluation protocols: which frames of which set, against what truth, under which caps and alignments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from four_d.protocols.sequence import Sequence, Task

Alignment = Literal["metric", "median", "scale", "scaleshift"]
"""``scale`` and ``scaleshift`` are least *absolute* errors as published code has them (IRLS; Adam)."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """Long videos in overlapping windows: ``frames`` at a time, the next one ``stride`` later."""

    frames: int
    stride: int


@dataclass(frozen=True, kw_only=True)
class PointSettings:
    """How point maps are compared."""

    crop: tuple[int, int] | None
    """Rows and columns of the central crop of each map, at the model's resolution; None = all pixels."""
    alignment: Literal["icp", "trajectory"]
    """``icp``: scale and shift, then rigid ICP; ``trajectory``: the Sim(3) of the camera centres, no ICP."""
    icp_distance: float | None
    """Greatest distance (m) of a correspondence in ICP."""
    normals: bool
    """Whether normal consistency is part of the protocol."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One published protocol: what to read and how to score it."""

    name: str
    tasks: tuple[Task, ...]
    open: Callable[[Path], list[Sequence]]
    """Lists the sequences under a root; reads no picture. `UserError` names what is missing and the layout expected."""
    source: str
    """Whose published code it follows, and where papers differ."""
    layout: str
    """What lies under the root, in one line."""
    max_depth: float | None = None
    """Truth at or beyond this (m) is not scored."""
    clip_depth: float | None = None
    """What predictions are clipped to after alignment (m)."""
    alignments: tuple[Alignment, ...] = ()
    """Of ``video_depth``: one fit per sequence."""
    frame_alignments: tuple[Alignment, ...] = ()
    """Of ``depth``: one fit per frame."""
    scaleshift_rate: float = 1e-4
    """Step of Adam in the published scale-and-shift fit."""
    long_side: int = 518
    """Longest side of the pictures that the model sees."""
    window: Window | None = None
    """None: the whole sequence in one pass."""
    points: PointSettings | None = None


PROTOCOLS: dict[str, Protocol] = {}
