"""TAP-Vid: points followed in the image, in the pickles that the project publishes (DAVIS, Kinetics, RGB-Stacking,
RoboTAP).

Pixels count from the image's corner, and are stored as fractions of its width and height.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from collections.abc import Sequence as Several
from functools import partial
from pathlib import Path
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from four_d.datasets import files
from four_d.datasets.pickled import read_pickle
from four_d.datasets.sequence import PixelTrackTruth, Sequence
from four_d.errors import UserError

QueryMode = Literal["first", "strided"]
"""Frames that points are queried in: ``first``, where each is seen first; ``strided``, every fifth where it is seen."""
LAYOUT = (
    "[FOLDER/]{tapvid_davis,tapvid_rgb_stacking,0000_of_0010,robotap_split0}.pkl: a dict or list of videos, each with "
    "video t h w 3 (or JPEGs), points n t 2 (fractions of width and height), occluded n t"
)
STRIDE = 5
"""Frames between the query frames of ``strided``."""
RATES = {"davis": 24.0, "kinetics": 25.0, "rgb_stacking": 10.0, "robotap": 10.0}
"""Frames per second; the files hold none, and these are approximate."""


def read_tapvid(root: Path, only: tuple[str, ...] | None, mode: QueryMode) -> list[Sequence]:
    """List the videos of all pickles under ``root``, which are read one after the other.

    ``only`` names videos (``davis/bike-packing``) or whole sources (``davis``).
    """
    paths = sorted(root.rglob("*.pkl"))
    if not paths:
        raise files.missing(root / "tapvid_davis.pkl", LAYOUT)
    known: dict[str, Sequence] = {}
    for path in paths:
        source = source_of(path)
        for key, video in videos(path).items():
            name = f"{source}/{key}"
            if name in known:
                raise UserError(f"{path} has the video {key}, which another file of {source} has too; remove one")
            known[name] = _sequence(name, path, key, video, mode)
    sources = sorted({name.partition("/")[0] for name in known})
    for name in only or ():
        if name not in known and name not in sources:
            raise UserError(f"there is no sequence {name}; choose from {', '.join(sources)}, or videos of them")
    chosen = [name for name in known if only is None or name in only or name.partition("/")[0] in only]
    return [known[name] for name in chosen]


def source_of(path: Path) -> str:
    """Name in `RATES` that the file's name holds, or else its folder's; without any the file's own name."""
    named = [source for name in (path.stem, path.parent.name) for source in RATES if source in name]
    return named[0] if named else path.stem


def videos(path: Path) -> Mapping[str, Mapping[str, object]]:
    """Read the videos of a file by name; those of a list are numbered, after the file's name. The last file is kept."""
    return _videos(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _videos(path: Path, changed: int) -> Mapping[str, Mapping[str, object]]:  # noqa: ARG001 - part of the key
    stored = read_pickle(path, LAYOUT)
    if isinstance(stored, dict):
        found = {str(key): value for key, value in cast(dict[object, object], stored).items()}
    elif isinstance(stored, list):
        found = {f"{path.stem}-{index:04d}": value for index, value in enumerate(cast(list[object], stored))}
    else:
        raise UserError(f"{path} holds a {type(stored).__name__}; expected layout: {LAYOUT}")
    for key, video in found.items():
        lacks = {"video", "points", "occluded"} - set(video if isinstance(video, dict) else ())
        if lacks:
            raise UserError(f"{path}: {key} lacks {', '.join(sorted(lacks))}; expected layout: {LAYOUT}")
    return cast("dict[str, dict[str, object]]", found)


def _sequence(name: str, path: Path, key: str, video: Mapping[str, object], mode: QueryMode) -> Sequence:
    points, occluded = np.asarray(video["points"]), np.asarray(video["occluded"])
    frames = len(cast(Several[object], video["video"]))
    told = f"{path}: {key}"
    if points.ndim != 3 or points.shape != (*occluded.shape, 2) or occluded.shape[1] != frames or not points.size:
        raise UserError(
            f"{told} has points {points.shape}, occluded {occluded.shape} and {frames} frames; expected layout: "
            f"{LAYOUT}"
        )
    return Sequence(
        name=name,
        frames=frames,
        times=files.frame_times(frames, RATES.get(name.partition("/")[0], 25.0)),
        tasks=("pixel_tracks",),
        images=partial(_images, path, key),
        pixel_tracks=partial(_truth, path, key, mode),
    )


def _images(path: Path, key: str) -> NDArray[np.uint8]:
    stored = videos(path)[key]["video"]
    if isinstance(stored, np.ndarray) and stored.ndim == 4 and stored.shape[-1] == 3 and stored.dtype == np.uint8:
        return stored
    images: list[NDArray[np.uint8]] = []
    for frame, content in enumerate(cast(Several[object], stored)):
        try:
            with Image.open(io.BytesIO(bytes(cast(bytes, content)))) as opened:
                images.append(np.array(opened.convert("RGB")))
        except (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"{path}: {key} has no readable image at frame {frame} ({error})") from error
        if images[-1].shape != images[0].shape:
            raise UserError(f"{path}: {key} has frames of several sizes (frame {frame} differs from the first)")
    return np.stack(images)


def _truth(path: Path, key: str, mode: QueryMode) -> PixelTrackTruth:
    video = videos(path)[key]
    points = np.asarray(video["points"]).astype(np.float64)
    visible = ~np.asarray(video["occluded"]).astype(bool)
    if not np.isfinite(points[visible]).all():
        raise UserError(f"{path}: {key} has points that are seen and not finite")
    tracks, frames = queried(visible, mode)
    if not len(tracks):
        raise UserError(f"{path}: {key} has no point that is seen in a query frame")
    chosen = np.where(visible[tracks][..., None], points[tracks], 0)
    counted = later(frames, visible.shape[1]) if mode == "first" else others(frames, visible.shape[1])
    start = chosen[np.arange(len(tracks)), frames].clip(0, 1)
    return PixelTrackTruth(
        queries=np.concatenate([frames[:, None].astype(np.float64), start], axis=1),
        points=chosen,
        visible=visible[tracks],
        counted=counted,
    )


def queried(visible: NDArray[np.bool_], mode: QueryMode) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tracks and their query frames, q each, of the visibility n t. A track may have several of ``strided``."""
    if mode == "first":
        tracks = np.nonzero(visible.any(1))[0]
        return tracks, visible[tracks].argmax(1)
    asked = np.zeros_like(visible)
    asked[:, ::STRIDE] = visible[:, ::STRIDE]
    frames, tracks = np.nonzero(asked.T)
    return tracks, frames


def later(frames: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Mask n t of the frames after each query's own."""
    return np.arange(count) > frames[:, None]


def others(frames: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Mask n t of all frames but each query's own."""
    return np.arange(count) != frames[:, None]
