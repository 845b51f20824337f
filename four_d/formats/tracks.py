"""Points followed through a video, as NPZ."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from four_d.errors import UserError

LARGE = 4_000_000
"""Numbers of dense motion above which they are written as float16: about three digits."""


@dataclass(frozen=True, kw_only=True)
class TrackTable:
    """n points over t times, and in the pictures of f frames. Pixels are original ones, times seconds.

    There are ``points`` or ``pixels`` or both: a 2D track head says nothing of space, a model without cameras nothing
    of pictures.
    """

    queries: NDArray[np.float32]
    """n 3: frame, x, y of the pixels that are followed."""
    times: NDArray[np.float64]
    """t, ascending."""
    frame_times: NDArray[np.float64]
    """f, each one of ``times``."""
    frame_cameras: NDArray[np.int64]
    """f: which camera each frame is of."""
    visible: NDArray[np.float32]
    """n t: probability that a frame of that time sees the point."""
    moving: NDArray[np.bool_]
    """n: whether the point moves in the world; without ``points`` whether it moves in the picture."""
    unit: str
    """What a length of 1 is."""
    confidence: NDArray[np.float32] | None = None
    """n t: a track head's own that the place in the picture is right; dense motion is not trained to have any."""
    points: NDArray[np.float32] | None = None
    """n t 3, in the first frame's camera."""
    pixels: NDArray[np.float32] | None = None
    """n f 2: x, y, also outside the picture."""
    motion: NDArray[np.float32] | None = None
    """t r c 3: where the point of each of the first frame's pixels, on the model's grid, is at each time, minus where
    it is in the first frame."""

    def __post_init__(self) -> None:
        """ValueError if the arrays' shapes do not belong together."""
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
        """f: where among ``times`` each frame's time is."""
        return np.argmax(self.frame_times[:, None] == self.times, axis=1)


def write_tracks(path: Path, table: TrackTable) -> None:
    """Write a compressed NPZ with an array for each field that is not None; ``unit`` is a text of no axes."""
    arrays: dict[str, NDArray[np.generic]] = {
        name: np.asarray(value) for name, value in vars(table).items() if value is not None
    }
    if table.motion is not None and table.motion.size > LARGE:
        arrays["motion"] = table.motion.astype(np.float16)
    np.savez_compressed(path, **arrays)  # pyright: ignore[reportArgumentType]


def read_tracks(path: Path) -> TrackTable:
    """The inverse of `write_tracks`, but for the digits that large motion lost.

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
