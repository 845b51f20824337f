"""2D tracks of any tracker in the form that a fit reads: every frame's pixels, of the frames that are fitted."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from four_d.errors import UserError
from four_d.fitting.clip import FittedClip
from four_d.formats.tracks import read_tracks
from four_d.outputs import new_file

KINDS = (
    "tracks.npz of four-d infer (queries, times, pixels, visible), CoTracker's tracks (frames, points, 2) with "
    "visibility (frames, points), or TAPIR's tracks (points, frames, 2) with occluded or visible (points, frames)"
)


def write_fit_tracks(source: Path, clip: FittedClip, out: Path) -> int:
    """Write ``times``, ``pixels`` (n t 2) and ``visible`` (n t) in pixels of the fitted frames; returns n.

    Args:
        source: NPZ in original pixels (`KINDS`), through the frames that were taken or all of the video.
        clip: the frames that were taken.
        out: NPZ (`losses.tracked_pixels.read_tracks`).

    Raises:
        UserError: a file of another kind, or of another video's number of frames.

    """
    count = len(clip.times)
    pixels, visible = read_any(source, (count, clip.total))
    if pixels.shape[1] == clip.total:
        pixels, visible = pixels[:, clip.indices], visible[:, clip.indices]
    if pixels.shape[1] != count:
        frames = f"{count} frames were taken of {clip.total}" if count != clip.total else f"the video has {count}"
        raise UserError(f"{source} has tracks through {pixels.shape[1]} frames, and {frames}; track the same frames")
    known = np.asarray(np.isfinite(pixels).all(-1))
    placed = clip.fits.points_to_model(
        torch.from_numpy(np.where(known[..., None], pixels, 0)).float().movedim(1, 0), torch.arange(count)[:, None]
    )
    with new_file(out) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            times=clip.times,
            pixels=placed.movedim(0, 1).numpy(),
            visible=np.where(known, visible, 0).astype(np.float32),
        )
    return len(pixels)


def read_any(source: Path, frames: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pixels n t 2 and visibility n t of a file of any of `KINDS`, of a number of ``frames``. UserError for another."""
    try:
        with np.load(source, allow_pickle=False) as archive:
            arrays = {name: cast(NDArray[np.float64], archive[name]) for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{source} cannot be read as NPZ ({error}); give {KINDS}") from error
    if "queries" in arrays and "pixels" in arrays:
        table = read_tracks(source)
        assert table.pixels is not None
        return table.pixels.astype(np.float64), table.visible[:, table.frame_indices].astype(np.float64)
    tracks = arrays.get("tracks")
    if tracks is None:
        raise UserError(f"{source} has {', '.join(arrays) or 'no arrays'}; give {KINDS}")
    seen = arrays.get("visibility", arrays.get("visible", arrays.get("visibles")))
    hidden = arrays.get("occluded")
    tracks = (tracks[0] if tracks.ndim == 4 and len(tracks) == 1 else tracks).astype(np.float64)
    if seen is None and hidden is None:
        raise UserError(f"{source} does not say where its tracks are visible; give {KINDS}")
    visible = 1.0 - cast(NDArray[np.float64], hidden).astype(np.float64) if seen is None else seen.astype(np.float64)
    visible = visible[0] if visible.ndim == 3 and len(visible) == 1 else visible
    if tracks.ndim != 3 or tracks.shape[-1] != 2 or visible.shape != tracks.shape[:2]:
        raise UserError(f"{source}: tracks are {tracks.shape} and their visibility {visible.shape}; give {KINDS}")
    # CoTracker's come frame by frame, TAPIR's point by point
    by_frame = "visibility" in arrays if tracks.shape[0] == tracks.shape[1] else tracks.shape[0] in frames
    return (tracks.swapaxes(0, 1), visible.T) if by_frame else (tracks, visible)
