"""Keypoints of a video as JSON: names, bones, and what was found in every frame."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from four_d.errors import UserError
from four_d.outputs import new_file

FORMAT = 1
DIGITS = 5
"""Decimals that are written."""


@dataclass(frozen=True, kw_only=True)
class FrameKeypoints:
    """Keypoints of one frame, in the order of their names; what was not found at all is None."""

    time: float
    """Seconds."""
    camera: int
    """Number of the camera, from 0."""
    pixels: NDArray[np.floating]
    """n 2: (x, y) in the original picture, whose top left corner is (0, 0)."""
    depth: NDArray[np.floating] | None = None
    """n: z-depth."""
    points: NDArray[np.floating] | None = None
    """n 3: position in the first frame's camera."""
    visible: NDArray[np.floating] | None = None
    """n: probability."""
    confidence: NDArray[np.floating] | None = None
    """n: probability."""


@dataclass(frozen=True, kw_only=True)
class KeypointTable:
    """Keypoints of a video."""

    names: Sequence[str]
    instances: Sequence[int]
    """Number of the thing that each belongs to, from 0."""
    edges: Sequence[tuple[int, int]] = ()
    """Bones: indices of two names, from 0."""
    unit: str
    """Unit of length, in words."""
    frames: Sequence[FrameKeypoints] = field(default_factory=list[FrameKeypoints])


def write_keypoints(path: Path, table: KeypointTable) -> None:
    """Write a table as JSON (`docs/inference.md`), a line per frame."""
    head = {
        "format": FORMAT,
        "names": list(table.names),
        "instances": list(table.instances),
        "edges": [list(edge) for edge in table.edges],
        "unit": table.unit,
    }
    lines = ",\n".join(json.dumps(_plain(frame)) for frame in table.frames)
    text = json.dumps(head)[:-1]
    with new_file(path) as partial:
        partial.write_text(f'{text}, "frames": [\n{lines}\n]}}\n')


def read_keypoints(path: Path) -> KeypointTable:
    """Read what `write_keypoints` wrote. UserError for a file that is missing or of another form."""
    try:
        content = cast(dict[str, object], json.loads(path.read_text()))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, not {FORMAT}")
        rows = cast(list[dict[str, object]], content["frames"])
        names = cast(list[str], content["names"])
        return KeypointTable(
            names=names,
            instances=cast(list[int], content.get("instances", [0] * len(names))),  # of an earlier version: one
            edges=[cast(tuple[int, int], tuple(edge)) for edge in cast(list[list[int]], content["edges"])],
            unit=cast(str, content["unit"]),
            frames=[_frame(row) for row in rows],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a keypoints.json of four_d ({error}); give one as four-d infer --keypoints writes it"
        ) from error


def _plain(frame: FrameKeypoints) -> dict[str, object]:
    return {
        name: np.round(value.astype(np.float64), DIGITS).tolist() if isinstance(value, np.ndarray) else value
        for name, value in vars(frame).items()
        if value is not None
    }


def _frame(row: dict[str, object]) -> FrameKeypoints:
    values = {name: np.array(value) if isinstance(value, list) else value for name, value in row.items()}
    return FrameKeypoints(**values)  # pyright: ignore[reportArgumentType]
