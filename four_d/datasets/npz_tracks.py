"""Clips of 3D point tracks in TAPVid-3D's form: WorldTrack (St4RTrack; DePT3R, 4RC) and TAPVid-3D itself.

Key names are those of the files, not of TAPVid-3D's README. Pixels count from the image's corner, as the code that
writes the files has it.
"""

from __future__ import annotations

import io
import pickle
import zipfile
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from four_d.datasets import files
from four_d.datasets.facts import DataSet, Licence
from four_d.datasets.pickled import PlainUnpickler
from four_d.datasets.sequence import Sequence, TrackTruth
from four_d.errors import UserError
from four_d.geometry import project
from four_d.types import Cameras

_FORM = "images_jpeg_bytes t, tracks_XYZ t n 3 (m, each frame's camera), visibility t n, fx_fy_cx_cy 4"
WORLDTRACK_LAYOUT = (
    f"{{adt_mini,pstudio_mini,po_mini,ds_mini}}/NAME.npz with {_FORM}, extrinsics_w2c t 4 4 (not in pstudio_mini)"
)
TAPVID3D_LAYOUT = f"{{adt,drivetrack,pstudio}}/NAME.npz with {_FORM}, queries_xyt n 3"
ANY4D_LAYOUT = f"{{drivetrack,pstudio}}/NAME.npz with {_FORM}, extrinsics_w2c t 4 4 (not in pstudio)"
WORLDTRACK_FRAMES = 64
"""Number of a clip's first frames that are scored."""
STILL = "pstudio"
"""Prefix of sources with static cameras, whose files have no ``extrinsics_w2c``."""
RATES = {"drivetrack": 10.0}
"""Frames per second of sources that do not have 30."""
MIN_DEPTH = 1e-6

_IMAGES, _POINTS, _VISIBLE = "images_jpeg_bytes", "tracks_XYZ", "visibility"
_INTRINSICS, _POSES, _QUERIES = "fx_fy_cx_cy", "extrinsics_w2c", "queries_xyt"


def read_worldtrack(root: Path, only: tuple[str, ...] | None) -> list[Sequence]:
    """List the first 64 frames of each clip; queries are the tracks visible in the first frame, at their pixels there.

    ``only`` names clips (``adt_mini/NAME``) or whole sources (``adt_mini``), as in `read_tapvid3d`.
    """
    return _worldtrack(WORLDTRACK_FRAMES).read(root, only)


def read_all_worldtrack(root: Path, only: tuple[str, ...] | None) -> list[Sequence]:
    """List all frames of each clip of the sources that are there, as `read_worldtrack`."""
    return _worldtrack(None).read(root, only, present=True)


def _worldtrack(frames: int | None) -> _Set:
    return _Set(
        sources=("adt_mini", "pstudio_mini", "po_mini", "ds_mini"),
        layout=WORLDTRACK_LAYOUT,
        keys=(_IMAGES, _POINTS, _VISIBLE, _INTRINSICS, _POSES),
        frames=frames,
    )


def read_any4d(root: Path, only: tuple[str, ...] | None) -> list[Sequence]:
    """List the first 64 frames of TAPVid-3D's clips of DriveTrack and Panoptic Studio, as `read_worldtrack`."""
    sources = _Set(
        sources=("drivetrack", "pstudio"),
        layout=ANY4D_LAYOUT,
        keys=(_IMAGES, _POINTS, _VISIBLE, _INTRINSICS, _POSES),
        frames=WORLDTRACK_FRAMES,
    )
    return sources.read(root, only)


def read_tapvid3d(root: Path, only: tuple[str, ...] | None) -> list[Sequence]:
    """List all frames of each clip; queries are the file's own. Poses are known only where a file has them."""
    return _tapvid3d().read(root, only)


def read_all_tapvid3d(root: Path, only: tuple[str, ...] | None) -> list[Sequence]:
    """List the clips of the sources that are there, as `read_tapvid3d`."""
    return _tapvid3d().read(root, only, present=True)


def _tapvid3d() -> _Set:
    return _Set(
        sources=("adt", "drivetrack", "pstudio"),
        layout=TAPVID3D_LAYOUT,
        keys=(_IMAGES, _POINTS, _VISIBLE, _INTRINSICS, _QUERIES),
        frames=None,
    )


@dataclass(frozen=True, kw_only=True)
class _Set:
    """Description of a data set of such clips."""

    sources: tuple[str, ...]
    layout: str
    keys: tuple[str, ...]
    """Keys that every file needs, except poses for static cameras."""
    frames: int | None

    def read(self, root: Path, only: tuple[str, ...] | None, *, present: bool = False) -> list[Sequence]:
        """List files and read their headers; with ``present`` of those sources that are there."""
        chosen_sources = [
            source for source in self.sources if only is None or any(_is_of(name, source) for name in only)
        ]
        if present and only is None:
            chosen_sources = [source for source in chosen_sources if (root / source).is_dir()] or chosen_sources
        clips = {source: files.listed(root / source, "*.npz", self.layout) for source in chosen_sources}
        names = {f"{source}/{path.stem}": path for source, paths in clips.items() for path in paths}
        for name in only or ():
            if name not in names and name not in chosen_sources:
                raise UserError(
                    f"there is no sequence {name}; choose from {', '.join(self.sources)}, or clips such as "
                    f"{next(iter(names), self.sources[0] + '/NAME')}"
                )
        chosen = [name for name in names if only is None or name in only or name.partition("/")[0] in only]
        counts = {source: sum(_is_of(name, source) for name in chosen) for source in chosen_sources}
        return [self._sequence(name, names[name], 1 / counts[name.partition("/")[0]]) for name in chosen]

    def _sequence(self, name: str, path: Path, weight: float) -> Sequence:
        source = name.partition("/")[0]
        keys = tuple(key for key in self.keys if key != _POSES or not source.startswith(STILL))
        clip = _Clip(path=path, layout=self.layout, keys=keys, frames=self.frames, still=source.startswith(STILL))
        count = clip.count()
        return Sequence(
            name=name,
            frames=count,
            times=files.frame_times(count, RATES.get(source, 30.0)),
            tasks=("tracks",),
            images=clip.images,
            cameras=clip.cameras,
            tracks=partial(clip.tracks, queried=_QUERIES in self.keys),
            weight=weight,
        )


def _is_of(name: str, source: str) -> bool:
    return name.partition("/")[0] == source


@dataclass(frozen=True, kw_only=True)
class _Clip:
    """Reader of one file. Every error names the file and the key."""

    path: Path
    layout: str
    keys: tuple[str, ...]
    frames: int | None
    still: bool

    def count(self) -> int:
        """Number of frames, from the file's headers; all keys must exist."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                keys_in_file = [name.removesuffix(".npy") for name in archive.namelist()]
                stored = archive.read(f"{_VISIBLE}.npy") if _VISIBLE in keys_in_file else b""
            shape = _header(io.BytesIO(stored))[0] if stored else (0,)
        except (OSError, zipfile.BadZipFile, zlib.error, ValueError) as error:
            raise UserError(f"{self.path} is not a readable npz ({error}); make or download it again") from error
        missing = [key for key in self.keys if key not in keys_in_file]
        if missing:
            raise self._error(missing[0], f"is missing (the file has {', '.join(keys_in_file)})")
        self._check(_VISIBLE, shape, (None, None))
        if 0 in shape:
            raise self._error(_VISIBLE, f"has the shape {shape}: no tracks, or no frames")
        return shape[0] if self.frames is None else min(self.frames, shape[0])

    def images(self) -> NDArray[np.uint8]:
        """Read the images, f h w 3."""
        stored = self._stored(_IMAGES)
        total = self._array(_VISIBLE).shape[0]
        self._check(_IMAGES, stored.shape, (total,))
        images = [self._decode_image(frame, item) for frame, item in enumerate(stored[: self.count()])]
        for frame, image in enumerate(images):
            if image.shape != images[0].shape:
                raise self._error(_IMAGES, f"has frames of several sizes (frame {frame} differs from the first)")
        return np.stack(images)

    def cameras(self) -> Cameras:
        """Read the poses; without any, the identity, known if the camera is static."""
        count, focal = self.count(), self._array(_INTRINSICS).astype(np.float64)
        self._check(_INTRINSICS, focal.shape, (4,))
        if not (np.isfinite(focal).all() and (focal[:2] > 0).all()):
            raise self._error(_INTRINSICS, f"is {focal.tolist()}, not fx, fy, cx, cy of a camera")
        fx, fy, cx, cy = focal.tolist()
        intrinsics = files.pinhole(fx, fy, cx, cy, centre_origin=False)
        stored = None if self.still else self._optional(_POSES)
        if stored is None:
            unknown = np.full((count, 4, 4), np.eye(4) if self.still else np.nan)
            return files.cameras(unknown, intrinsics)
        self._check(_POSES, stored.shape, (self._array(_VISIBLE).shape[0], 4, 4))
        poses = stored[:count].astype(np.float64)
        finite = np.isfinite(poses).all((1, 2))
        if _POSES in self.keys and not finite.all():
            raise self._error(_POSES, f"has a pose that is not finite at frame {int((~finite).argmax())}")
        if not (np.abs(np.linalg.det(poses[finite])) > MIN_DEPTH).all():
            raise self._error(_POSES, "has a matrix that is not a pose")
        poses[finite] = np.linalg.inv(poses[finite])
        return files.cameras(poses, intrinsics)

    def tracks(self, queried: bool) -> TrackTruth:
        """Read the tracks whose query is within the clip's frames and the image."""
        points, known, visible = self._points()
        queries = self._queries(points.shape[1]) if queried else self._first_pixels(points[0])
        usable = (queries[:, 0] < len(points)) & (True if queried else visible[0] & self._inside(queries))
        if not usable.any():
            key = _QUERIES if queried else _VISIBLE
            raise self._error(key, f"has no track within the first {len(points)} frames")
        queries = queries[usable]
        if queried:
            height, width = self._size()
            queries[:, 1:] = queries[:, 1:].clip(0, [width, height])
        return TrackTruth(queries=queries, points=points[:, usable], known=known[:, usable], visible=visible[:, usable])

    def _points(self) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
        visible, points = self._array(_VISIBLE), self._array(_POINTS).astype(np.float64)
        self._check(_POINTS, points.shape, (*visible.shape, 3))
        points, visible = points[: self.count()], visible[: self.count()].astype(bool)
        known = np.asarray(np.isfinite(points).all(-1))
        return np.where(known[..., None], points, 0), known, visible & known

    def _queries(self, count: int) -> NDArray[np.float64]:
        stored = self._array(_QUERIES).astype(np.float64)
        self._check(_QUERIES, stored.shape, (count, 3))
        total = self._array(_VISIBLE).shape[0]
        frames = stored[:, 2]
        if not (np.isfinite(stored).all() and (frames == frames.round()).all() and (frames >= 0).all()):
            raise self._error(_QUERIES, "holds something other than x, y and a frame number")
        if frames.max() >= total:
            raise self._error(_QUERIES, f"names frame {frames.max():g} of a clip of {total}")
        return stored[:, [2, 0, 1]]

    def _first_pixels(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Queries n 3 at the points' pixels in the first frame; those behind the camera lie outside the image."""
        camera = self.cameras()
        first = Cameras(world_from_camera=torch.eye(4).double(), intrinsics=camera.intrinsics[0])
        pixels, z = project(torch.from_numpy(points), first)
        pixels = torch.where((z > MIN_DEPTH)[:, None] & pixels.isfinite(), pixels, -1.0)
        return np.concatenate([np.zeros((len(points), 1)), pixels.numpy()], axis=1)

    def _inside(self, queries: NDArray[np.float64]) -> NDArray[np.bool_]:
        height, width = self._size()
        x, y = queries[:, 1], queries[:, 2]
        return (x >= 0) & (x < width) & (y >= 0) & (y < height)

    def _size(self) -> tuple[int, int]:
        height, width, _ = self._decode_image(0, self._stored(_IMAGES)[0]).shape
        return height, width

    def _decode_image(self, frame: int, item: object) -> NDArray[np.uint8]:
        content = item.tobytes() if isinstance(item, np.ndarray) else bytes(cast(bytes, item))
        try:
            with Image.open(io.BytesIO(content)) as opened:
                return np.array(opened.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise self._error(_IMAGES, f"does not hold a readable JPEG at frame {frame} ({error})") from error

    def _array(self, key: str) -> NDArray[np.generic]:
        array = self._optional(key)
        if array is None:
            raise self._error(key, "is missing")
        return array

    def _optional(self, key: str) -> NDArray[np.generic] | None:
        try:
            with np.load(self.path, allow_pickle=False) as content:
                return np.asarray(content[key]) if key in content else None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise self._error(key, f"cannot be read ({error})") from error

    def _stored(self, key: str) -> NDArray[np.generic]:
        """Load an array that may hold objects, of which only bytes and arrays of numbers are allowed."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                file = io.BytesIO(archive.read(f"{key}.npy"))
            shape, objects = _header(file)
            if objects:
                return np.asarray(PlainUnpickler(file).load()).reshape(shape)
        except (
            OSError,
            ValueError,
            EOFError,
            TypeError,
            pickle.UnpicklingError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise self._error(key, f"cannot be read ({error})") from error
        return self._array(key)

    def _check(self, key: str, shape: tuple[int, ...], expected: tuple[int | None, ...]) -> None:
        if len(shape) != len(expected) or any(e not in (None, s) for s, e in zip(shape, expected, strict=True)):
            expected_shape = " ".join("any" if side is None else str(side) for side in expected)
            raise self._error(key, f"has the shape {shape}, not {expected_shape}")

    def _error(self, key: str, problem: str) -> UserError:
        return UserError(f"{self.path}: {key} {problem}; expected layout: {self.layout}")


def _header(file: io.BytesIO) -> tuple[tuple[int, ...], bool]:
    """Read an .npy header: shape, and True if the array holds objects; the file is then at its content."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, bool(dtype.hasobject)


WORLDTRACK = DataSet(
    name="worldtrack",
    title="WorldTrack",
    home="github.com/HavenFeng/St4RTrack (its WorldTrack files)",
    licences=(Licence(text="those of Aria Digital Twin, Panoptic Studio, PointOdyssey, Dynamic Replica"),),
    layout=WORLDTRACK_LAYOUT,
    reader=read_all_worldtrack,
)
TAPVID3D = DataSet(
    name="tapvid3d",
    title="TAPVid-3D",
    home="github.com/google-deepmind/tapnet, `tapnet/tapvid3d`: its scripts make the files",
    licences=(
        Licence(
            text="annotations CC BY 4.0; videos: Aria Digital Twin, Waymo Open (non-commercial), Panoptic Studio, each "
            "to be accepted by you"
        ),
    ),
    layout=TAPVID3D_LAYOUT,
    reader=read_all_tapvid3d,
    notes="clips without poses keep their intrinsics, and lose their tracks, which need a world",
)
