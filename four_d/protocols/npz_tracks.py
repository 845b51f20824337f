"""Clips of 3D point tracks in TAPVid-3D's form: WorldTrack (St4RTrack; DePT3R, 4RC) and TAPVid-3D itself.

Key names are those of the files, not of TAPVid-3D's README. Pixels count from the picture's corner, as the code that
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

from four_d.errors import UserError
from four_d.geometry import project
from four_d.protocols import files
from four_d.protocols.sequence import Sequence, TrackTruth
from four_d.types import Cameras

_FORM = "images_jpeg_bytes t, tracks_XYZ t n 3 (m, each frame's camera), visibility t n, fx_fy_cx_cy 4"
WORLDTRACK_LAYOUT = (
    f"{{adt_mini,pstudio_mini,po_mini,ds_mini}}/NAME.npz with {_FORM}, extrinsics_w2c t 4 4 (not in pstudio_mini)"
)
TAPVID3D_LAYOUT = f"{{adt,drivetrack,pstudio}}/NAME.npz with {_FORM}, queries_xyt n 3"
WORLDTRACK_FRAMES = 64
"""The first ones of a clip are scored."""
STILL = "pstudio"
"""What names of sources begin with whose cameras do not move: their files have no ``extrinsics_w2c``."""
RATES = {"drivetrack": 10.0}
"""Frames per second of sources that do not have 30."""
LEAST_DEPTH = 1e-6

_IMAGES, _POINTS, _VISIBLE = "images_jpeg_bytes", "tracks_XYZ", "visibility"
_INTRINSICS, _POSES, _QUERIES = "fx_fy_cx_cy", "extrinsics_w2c", "queries_xyt"


def read_worldtrack(root: Path, only: tuple[str, ...] | None) -> list[Sequence]:
    """First 64 frames of each clip; asked for are the tracks seen in the first, at the pixels that show them.

    ``only`` names clips (``adt_mini/NAME``) or whole sources (``adt_mini``); so it does in `read_tapvid3d`.
    """
    return _Set(
        sources=("adt_mini", "pstudio_mini", "po_mini", "ds_mini"),
        layout=WORLDTRACK_LAYOUT,
        keys=(_IMAGES, _POINTS, _VISIBLE, _INTRINSICS, _POSES),
        frames=WORLDTRACK_FRAMES,
    ).read(root, only)


def read_tapvid3d(root: Path, only: tuple[str, ...] | None) -> list[Sequence]:
    """All frames of each clip; asked for are the file's own queries. Poses are known only where a file has them."""
    return _Set(
        sources=("adt", "drivetrack", "pstudio"),
        layout=TAPVID3D_LAYOUT,
        keys=(_IMAGES, _POINTS, _VISIBLE, _INTRINSICS, _QUERIES),
        frames=None,
    ).read(root, only)


@dataclass(frozen=True, kw_only=True)
class _Set:
    """What a set of such clips is made of."""

    sources: tuple[str, ...]
    layout: str
    keys: tuple[str, ...]
    """Those that every file needs, but poses where cameras stand still."""
    frames: int | None

    def read(self, root: Path, only: tuple[str, ...] | None) -> list[Sequence]:
        """Lists files and reads their headers."""
        wanted = [source for source in self.sources if only is None or any(_of(name, source) for name in only)]
        clips = {source: files.listed(root / source, "*.npz", self.layout) for source in wanted}
        names = {f"{source}/{path.stem}": path for source, paths in clips.items() for path in paths}
        for name in only or ():
            if name not in names and name not in wanted:
                raise UserError(
                    f"there is no sequence {name}; choose of {', '.join(self.sources)}, or clips such as "
                    f"{next(iter(names), self.sources[0] + '/NAME')}"
                )
        chosen = [name for name in names if only is None or name in only or name.partition("/")[0] in only]
        counts = {source: sum(_of(name, source) for name in chosen) for source in wanted}
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


def _of(name: str, source: str) -> bool:
    return name.partition("/")[0] == source


@dataclass(frozen=True, kw_only=True)
class _Clip:
    """One file. Every error names it and the key."""

    path: Path
    layout: str
    keys: tuple[str, ...]
    frames: int | None
    still: bool

    def count(self) -> int:
        """Frames, from the file's headers; all keys must be there."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                found = [name.removesuffix(".npy") for name in archive.namelist()]
                stored = archive.read(f"{_VISIBLE}.npy") if _VISIBLE in found else b""
            shape = _header(io.BytesIO(stored))[0] if stored else (0,)
        except (OSError, zipfile.BadZipFile, zlib.error, ValueError) as error:
            raise UserError(f"{self.path} is no readable npz ({error}); make or download it again") from error
        missing = [key for key in self.keys if key not in found]
        if missing:
            raise self._error(missing[0], f"is missing (the file has {', '.join(found)})")
        self._check(_VISIBLE, shape, (None, None))
        if 0 in shape:
            raise self._error(_VISIBLE, f"has the shape {shape}: no tracks, or no frames")
        return shape[0] if self.frames is None else min(self.frames, shape[0])

    def images(self) -> NDArray[np.uint8]:
        """The pictures, f h w 3."""
        stored = self._stored(_IMAGES)
        total = self._array(_VISIBLE).shape[0]
        self._check(_IMAGES, stored.shape, (total,))
        pictures = [self._picture(frame, item) for frame, item in enumerate(stored[: self.count()])]
        for frame, picture in enumerate(pictures):
            if picture.shape != pictures[0].shape:
                raise self._error(_IMAGES, f"has frames of several sizes (frame {frame} differs from the first)")
        return np.stack(pictures)

    def cameras(self) -> Cameras:
        """Poses as the file has them; where it has none, the identity, known if the camera stands still."""
        count, focal = self.count(), self._array(_INTRINSICS).astype(np.float64)
        self._check(_INTRINSICS, focal.shape, (4,))
        if not (np.isfinite(focal).all() and (focal[:2] > 0).all()):
            raise self._error(_INTRINSICS, f"is {focal.tolist()}, no camera's")
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
        if not (np.abs(np.linalg.det(poses[finite])) > LEAST_DEPTH).all():
            raise self._error(_POSES, "has a matrix that is no pose")
        poses[finite] = np.linalg.inv(poses[finite])
        return files.cameras(poses, intrinsics)

    def tracks(self, queried: bool) -> TrackTruth:
        """The tracks whose query is within the clip's frames and the picture."""
        points, known, visible = self._points()
        queries = self._queries(points.shape[1]) if queried else self._first_pixels(points[0])
        kept = (queries[:, 0] < len(points)) & (True if queried else visible[0] & self._inside(queries))
        if not kept.any():
            where = _QUERIES if queried else _VISIBLE
            raise self._error(where, f"asks for no track within the first {len(points)} frames")
        queries = queries[kept]
        if queried:
            height, width = self._size()
            queries[:, 1:] = queries[:, 1:].clip(0, [width, height])
        return TrackTruth(queries=queries, points=points[:, kept], known=known[:, kept], visible=visible[:, kept])

    def _points(self) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
        seen, points = self._array(_VISIBLE), self._array(_POINTS).astype(np.float64)
        self._check(_POINTS, points.shape, (*seen.shape, 3))
        points, seen = points[: self.count()], seen[: self.count()].astype(bool)
        known = np.asarray(np.isfinite(points).all(-1))
        return np.where(known[..., None], points, 0), known, seen & known

    def _queries(self, count: int) -> NDArray[np.float64]:
        stored = self._array(_QUERIES).astype(np.float64)
        self._check(_QUERIES, stored.shape, (count, 3))
        total = self._array(_VISIBLE).shape[0]
        frames = stored[:, 2]
        if not (np.isfinite(stored).all() and (frames == frames.round()).all() and (frames >= 0).all()):
            raise self._error(_QUERIES, "holds something else than x, y and a frame's number")
        if frames.max() >= total:
            raise self._error(_QUERIES, f"names frame {frames.max():g} of a clip of {total}")
        return stored[:, [2, 0, 1]]

    def _first_pixels(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where the first frame shows the points: queries n 3; behind the camera outside the picture."""
        camera = self.cameras()
        first = Cameras(world_from_camera=torch.eye(4).double(), intrinsics=camera.intrinsics[0])
        pixels, z = project(torch.from_numpy(points), first)
        pixels = torch.where((z > LEAST_DEPTH)[:, None] & pixels.isfinite(), pixels, -1.0)
        return np.concatenate([np.zeros((len(points), 1)), pixels.numpy()], axis=1)

    def _inside(self, queries: NDArray[np.float64]) -> NDArray[np.bool_]:
        height, width = self._size()
        x, y = queries[:, 1], queries[:, 2]
        return (x >= 0) & (x < width) & (y >= 0) & (y < height)

    def _size(self) -> tuple[int, int]:
        height, width, _ = self._picture(0, self._stored(_IMAGES)[0]).shape
        return height, width

    def _picture(self, frame: int, item: object) -> NDArray[np.uint8]:
        content = item.tobytes() if isinstance(item, np.ndarray) else bytes(cast(bytes, item))
        try:
            with Image.open(io.BytesIO(content)) as picture:
                return np.array(picture.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise self._error(_IMAGES, f"does not hold a readable JPEG at frame {frame} ({error})") from error

    def _array(self, key: str) -> NDArray[np.generic]:
        found = self._optional(key)
        if found is None:
            raise self._error(key, "is missing")
        return found

    def _optional(self, key: str) -> NDArray[np.generic] | None:
        try:
            with np.load(self.path, allow_pickle=False) as content:
                return np.asarray(content[key]) if key in content else None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise self._error(key, f"cannot be read ({error})") from error

    def _stored(self, key: str) -> NDArray[np.generic]:
        """An array that may hold objects, of which only bytes and arrays of numbers are let in."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                file = io.BytesIO(archive.read(f"{key}.npy"))
            shape, objects = _header(file)
            if objects:
                return np.asarray(_Bytes(file).load()).reshape(shape)
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
            wanted = " ".join("any" if side is None else str(side) for side in expected)
            raise self._error(key, f"has the shape {shape}, not {wanted}")

    def _error(self, key: str, what: str) -> UserError:
        return UserError(f"{self.path}: {key} {what}; expected layout: {self.layout}")


def _header(file: io.BytesIO) -> tuple[tuple[int, ...], bool]:
    """Shape of the array in an .npy, and whether it holds objects; the file then stands at its content."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, bool(dtype.hasobject)


class _Bytes(pickle.Unpickler):
    """Reads pickled arrays of bytes; anything else in the file is refused and never run."""

    ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "scalar"),
            ("numpy._core.numeric", "_frombuffer"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module_name: str, global_name: str) -> object:
        """The class of that name, if it is one of the few that arrays of bytes need."""
        name = module_name.replace("numpy.core", "numpy._core")
        if (name, global_name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks to run {module_name}.{global_name}, and only bytes are read")
        old = np.lib.NumpyVersion(np.__version__) < "2.0.0"
        return super().find_class(name.replace("numpy._core", "numpy.core") if old else name, global_name)
