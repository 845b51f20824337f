"""Point tracks of a video, as NPZ."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from four_d.errors import UserError

LARGE = 4_000_000
"""Number of values of dense motion above which it is written as float16: about three digits."""


@dataclass(frozen=True, kw_only=True)
class TrackTable:
    """Tracks of n points over t times, and in the images of f frames. Pixels are original ones, times seconds.

    At least one of ``points`` and ``pixels`` is set: a 2D track head predicts no positions in space, a model without
    cameras none in images.
    """

    queries: NDArray[np.float32]
    """n 3: frame, x, y of the query pixels."""
    times: NDArray[np.float64]
    """t, ascending."""
    frame_times: NDArray[np.float64]
    """f, each one of ``times``."""
    frame_cameras: NDArray[np.int64]
    """f: camera id of each frame."""
    visible: NDArray[np.float32]
    """n t: probability that a frame of that time sees the point."""
    moving: NDArray[np.bool_]
    """n: True if the point moves in the world; without ``points``, in the image."""
    unit: str
    """Unit of length, in words."""
    confidence: NDArray[np.float32] | None = None
    """n t: a track head's confidence in the place in the image; dense motion is not trained to have any."""
    points: NDArray[np.float32] | None = None
    """n t 3, in the first frame's camera."""
    pixels: NDArray[np.float32] | None = None
    """n f 2: x, y, also outside the image."""
    motion: NDArray[np.float32] | None = None
    """t r c 3: position of the point of each of the first frame's pixels, on the model's grid, at each time, minus its
    position in the first frame."""

    def __post_init__(self) -> None:
        """Raise ValueError if the arrays' shapes are inconsistent."""
        n, t, f = len(self.queries), len(self.times), len(self.frame_times)
        shapes = {"queries": (n, 3), "visible": (n, t), "confidence": (n, t), "moving": (n,), "frame_cameras": (f,)}
        shapes |= {"points": (n, t, 3), "pixels": (n, f, 2)}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise ValueError(f"{name} of tracks is {value.shape} instead of {shape}")
        if self.motion is not None and (self.motion.ndim != 4 or self.motion.shape[::3] != (t, 3)):
            raise ValueError(f"motion of tracks is {self.motion.shape} instead of ({t}, rows, columns, 3)")
        if self.points is None and self.pixels is None:
            raise ValueError("tracks have neither points nor pixels")
        if not np.isin(self.frame_times, self.times).all():
            raise ValueError("a frame of the tracks has a time that is not among their times")

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def frame_indices(self) -> NDArray[np.intp]:
        """f: index of each frame's time in ``times``."""
        return np.argmax(self.frame_times[:, None] == self.times, axis=1)


def write_tracks(path: Path, table: TrackTable) -> None:
    """Write a compressed NPZ with an array for each field that is not None; ``unit`` is a scalar text."""
    arrays: dict[str, NDArray[np.generic]] = {
        name: np.asarray(value) for name, value in vars(table).items() if value is not None
    }
    if table.motion is not None and table.motion.size > LARGE:
        arrays["motion"] = table.motion.astype(np.float16)
    np.savez_compressed(path, **arrays)  # pyright: ignore[reportArgumentType]


def read_tracks(path: Path) -> TrackTable:
    """Read `write_tracks`' file; large motion has lost digits.

    Raises:
        UserError: the file is missing, damaged or another program's.

    """
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {field.name: content[field.name] for field in fields(TrackTable) if field.name in content}
        if "motion" in arrays:
            arrays["motion"] = arrays["motion"].astype(np.float32)
        return TrackTable(**{**arrays, "unit": str(arrays["unit"])})  # pyright: ignore[reportArgumentType]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} does not hold tracks of four_d ({error}); run four-d infer again") from error
