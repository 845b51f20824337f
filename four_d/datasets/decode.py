"""Decoders for files of published data sets: images, depth, flow, cameras, trajectories, masks.

Every function takes a path and raises `UserError` with the file's name and a remedy where the file is missing,
truncated or of another kind. Nothing here depends on a data set.
"""

from __future__ import annotations

import importlib
import json
import pickle
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from four_d.errors import UserError

UNPACK_AGAIN = "unpack or download it again"
SINTEL_TAG = 202021.25
"""First float32 of .flo, .dpt and .cam; its bytes spell PIEH."""
LARGEST_SIDE = 20_000
"""Largest plausible side of an image in a header; larger ones count as damage."""

T = TypeVar("T")


def _refused(path: Path, why: object, remedy: str = UNPACK_AGAIN) -> UserError:
    return UserError(f"{path} {why}; {remedy}")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _refused(path, f"cannot be read ({error.strerror or error})") from error


def _text(path: Path) -> str:
    try:
        return _content(path).decode("utf-8-sig")  # Windows' editors begin with a mark
    except UnicodeDecodeError as error:
        raise _refused(path, "is not a text file") from error


def json_value(path: Path, remedy: str = UNPACK_AGAIN) -> object:
    """Read a JSON file. UserError with ``remedy`` if it is not one."""
    try:
        return cast(object, json.loads(_text(path)))
    except ValueError as error:
        raise _refused(path, f"is not readable JSON ({error})", remedy) from error


def json_object(path: Path, remedy: str = UNPACK_AGAIN) -> dict[str, object]:
    """Read a JSON file that holds one object. UserError with ``remedy`` if it does not."""
    content = json_value(path, remedy)
    if not isinstance(content, dict):
        raise _refused(path, "is not one JSON object", remedy)
    return cast(dict[str, object], content)


def hdf5(path: Path, remedy: str = UNPACK_AGAIN) -> Any:  # noqa: ANN401  h5py has no types
    """Open an HDF5 file (extra `hdf5`), to be closed by the caller. UserError without h5py, or for another file."""
    try:
        h5py = importlib.import_module("h5py")
    except ImportError as error:
        raise UserError(f"reading {path} takes h5py; install it with: pip install 'four_d[hdf5]'") from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise _refused(path, f"is not there or not HDF5 ({error})", remedy) from error


def _open_image(path: Path, convert: Callable[[Image.Image], T]) -> T:
    """Open an image and return ``convert`` of it, with loading errors as UserError."""
    try:
        with Image.open(path) as opened:
            opened.load()
            return convert(opened)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, UserError):
            raise
        raise _refused(path, f"is not a readable image ({error})") from error


def image(path: Path) -> NDArray[np.uint8]:
    """Read an image as RGB, h w 3, as it is stored; greyscale is repeated, alpha dropped."""

    def to_rgb(opened: Image.Image) -> NDArray[np.uint8]:
        if opened.mode.startswith("I") or opened.mode == "F":  # Pillow would clip it to white
            raise _refused(path, "is grey of more than 8 bits", "convert all images to 8 bits by one rule")
        return np.array(opened.convert("RGB"))

    return _open_image(path, to_rgb)


def image_size(path: Path) -> tuple[int, int]:
    """Read height and width from the header."""
    try:
        with Image.open(path) as opened:
            return opened.height, opened.width
    except (OSError, SyntaxError) as error:
        raise _refused(path, f"is not a readable image ({error})") from error


def depth_png(path: Path, per_metre: float) -> NDArray[np.float32]:
    """Read z-depth in metres from a 16-bit PNG with ``per_metre`` counts to the metre; 0 = invalid."""

    def to_metres(opened: Image.Image) -> NDArray[np.float32]:
        if not opened.mode.startswith("I"):
            raise _refused(path, f"has mode {opened.mode}, not one channel of 16 bits", "use the set's own depth files")
        return (np.array(opened).astype(np.float64) / per_metre).astype(np.float32)

    return _open_image(path, to_metres)


def depth_npy(path: Path) -> NDArray[np.float32]:
    """Read depth as stored: h w, or h w 1 as in DyCheck."""
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _refused(path, f"is not a readable .npy ({error})") from error
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise _refused(
            path, f"holds {values.dtype} {values.shape}, not depth of h × w", "use the set's own depth files"
        )
    return values.astype(np.float32)


def mapped_npy(path: Path, shape: Sequence[int | None], kinds: str) -> NDArray[np.generic]:
    """Map an .npy of numbers into memory without reading it.

    Args:
        path: the file.
        shape: expected sizes; None: any.
        kinds: letters of the kinds of numbers that it may hold: f floats, i integers, u without sign.

    """
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _refused(path, f"is not a readable .npy ({error})") from error
    fits = values.ndim == len(shape) and all(want in (None, is_) for want, is_ in zip(shape, values.shape))
    if not fits or values.dtype.kind not in kinds:
        wanted = " × ".join("any" if want is None else str(want) for want in shape)
        raise _refused(path, f"holds {values.dtype} {values.shape}, not numbers of {wanted}")
    return values


def tensors(path: Path, keys: Sequence[str]) -> dict[str, torch.Tensor]:
    """Read tensors of a dictionary that torch saved; nothing else in it is made."""
    try:
        content = cast(dict[str, object], torch.load(path, map_location="cpu", weights_only=True))
        found = {key: content[key] for key in keys}
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise _refused(path, f"has no readable {' and '.join(keys)} ({type(error).__name__})") from error
    if not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise _refused(path, f"holds something other than tensors as {' and '.join(keys)}")
    return cast(dict[str, torch.Tensor], found)


def npz(path: Path, keys: Sequence[str], optional: Sequence[str] = ()) -> dict[str, NDArray[np.generic]]:
    """Read arrays of numbers of an .npz; ``optional`` ones where they are there."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:  # a damaged file is closed, too
            return {key: np.asarray(content[key]) for key in (*keys, *(key for key in optional if key in content))}
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise _refused(path, f"has no readable {' and '.join(keys)} ({error})") from error


def _tagged(path: Path, channels: int) -> NDArray[np.float32]:
    """Read values, h w channels, of a file with tag, int32 width, int32 height and float32 values."""
    content = _content(path)
    if len(content) < 12 or np.frombuffer(content, "<f4", 1)[0] != SINTEL_TAG:
        raise _refused(path, f"does not begin with the tag {SINTEL_TAG}")
    width, height = (int(side) for side in np.frombuffer(content, "<i4", 2, offset=4))
    if not (0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE):
        raise _refused(path, f"declares an implausible size, {width} × {height}")
    expected = 12 + 4 * channels * width * height
    if len(content) != expected:
        raise _refused(path, f"has {len(content)} bytes, {expected} are needed for {width} × {height}")
    return np.frombuffer(content, "<f4", offset=12).reshape(height, width, channels).astype(np.float32)


def depth_dpt(path: Path) -> NDArray[np.float32]:
    """Read Sintel's .dpt: depth h w as stored; the sky is large and finite."""
    return _tagged(path, 1)[..., 0]


def flow_flo(path: Path) -> NDArray[np.float32]:
    """Read Middlebury's .flo: h w (u, v) in pixels to the next frame."""
    return _tagged(path, 2)


def camera_cam(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read Sintel's .cam: intrinsics 3 3 as stored (centre origin) and camera_from_world 4 4."""
    content = _content(path)
    if len(content) < 4 or np.frombuffer(content, "<f4", 1)[0] != SINTEL_TAG:
        raise _refused(path, f"does not begin with the tag {SINTEL_TAG}")
    if len(content) != 4 + 8 * 21:
        raise _refused(path, f"has {len(content)} bytes, a camera has {4 + 8 * 21}")
    values = np.frombuffer(content[4:], "<f8")
    if not np.isfinite(values).all():
        raise _refused(path, "holds values that are not finite")
    pose = np.eye(4)
    pose[:3] = values[9:].reshape(3, 4)
    return values[:9].reshape(3, 3).copy(), pose


def mask(path: Path) -> NDArray[np.bool_]:
    """Read the mask of all annotated objects, h w. In a palette 0 is background, and so is 255, void."""

    def to_mask(opened: Image.Image) -> NDArray[np.bool_]:
        if opened.mode == "P":
            values = np.array(opened)
            return (values > 0) & (values < 255)
        if opened.mode.startswith("I"):
            return np.array(opened) > 0
        return np.array(opened.convert("RGB")).max(-1) > 0

    return _open_image(path, to_mask)


def matte(path: Path) -> NDArray[np.bool_]:
    """Read an alpha matte as a mask of opacity above ½, h w: the alpha channel where there is one, else grey."""

    def to_mask(opened: Image.Image) -> NDArray[np.bool_]:
        alpha = opened.getchannel("A") if "A" in opened.getbands() else opened.convert("L")
        return np.array(alpha) > 127

    return _open_image(path, to_mask)


def matrix(path: Path, rows: int, columns: int) -> NDArray[np.float64]:
    """Read numbers of a text file, separated by white space; inf and nan are allowed (ScanNet's lost poses)."""
    return matrices(path, rows, columns, at_most=1)[0]


def matrices(path: Path, rows: int, columns: int, at_most: int | None = None) -> NDArray[np.float64]:
    """Read all matrices of a text file: n rows columns (see `matrix`). # begins a comment."""
    words = [word for line in _text(path).splitlines() for word in line.partition("#")[0].split()]
    size = rows * columns
    try:
        values = np.array([float(word) for word in words])
    except ValueError as error:
        raise _refused(path, f"holds something that is not a number ({error})") from error
    count = len(values) // size
    if not count or len(values) != count * size or (at_most is not None and count > at_most):
        raise _refused(path, f"holds {len(values)} numbers, a matrix has {rows} × {columns}")
    return values.reshape(count, rows, columns)


def stamped(path: Path) -> tuple[NDArray[np.float64], list[str]]:
    """Read times (s) and the rest of each line of a list like TUM's rgb.txt; # begins a comment; commas are spaces."""
    times: list[float] = []
    names: list[str] = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        words = line.replace(",", " ").split(maxsplit=1)
        if not words or words[0].startswith("#"):
            continue
        try:
            times.append(float(words[0]))
            names.append(words[1].strip())
        except (ValueError, IndexError) as error:
            raise UserError(f"{path}:{number} is not 'time name': {line[:60]!r}; {UNPACK_AGAIN}") from error
    if not times:
        raise _refused(path, "lists nothing; expected lines 'time name'")
    return np.array(times), names


def associate(
    a: NDArray[np.float64], b: NDArray[np.float64], within: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Associate times as TUM's own tool: indices ascending in ``a``, the closest pair first, each time used once.

    Pairs differ by less than ``within`` seconds. (`metrics.pose.associate` is evo's rule.)
    """
    order = np.argsort(b, kind="stable")
    ranked = b[order]
    low, high = np.searchsorted(ranked, a - within, "left"), np.searchsorted(ranked, a + within, "right")
    first = np.repeat(np.arange(len(a)), high - low)
    second = np.concatenate([order[i:j] for i, j in zip(low, high)] or [order[:0]])
    gaps = np.abs(a[first] - b[second])
    ranking = np.lexsort((b[second], a[first], gaps))
    pairs: dict[int, int] = {}
    used: set[int] = set()
    for i, j in zip(first[ranking].tolist(), second[ranking].tolist()):
        if i not in pairs and j not in used and abs(a[i] - b[j]) < within:
            pairs[i] = j
            used.add(j)
    chosen = sorted(pairs, key=lambda i: float(a[i]))
    return np.array(chosen, np.intp), np.array([pairs[i] for i in chosen], np.intp)


def camera_nerfies(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[int, int]]:
    """Read a JSON camera of Nerfies and DyCheck: world_from_camera 4 4, intrinsics 3 3, and their (height, width).

    ``orientation`` holds the rotation of camera_from_world, ``position`` the camera's centre; axes are OpenCV's and
    pixel (0, 0) is the corner (Nerfies casts rays through x + 0.5). Distortion must be zero.
    """
    content = cast(dict[str, Any], json_object(path))
    try:
        rotation = np.array(content["orientation"], np.float64).reshape(3, 3)
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = rotation.T, np.array(content["position"], np.float64)
        focal, aspect = float(content["focal_length"]), float(content.get("pixel_aspect_ratio", 1.0))
        x, y = map(float, content["principal_point"])
        skew, (width, height) = float(content.get("skew", 0.0)), content["image_size"]
        distortion = np.array(
            [*content.get("radial_distortion", ()), *content.get("tangential_distortion", ())], np.float64
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _refused(path, f"is not a camera of Nerfies or DyCheck ({error!r})") from error
    if np.abs(distortion).max(initial=0.0) > 1e-9 or abs(skew) > 1e-9:
        raise _refused(path, "has distortion or skew", "undistort the images first")
    return pose, np.array([[focal, 0, x], [0, focal * aspect, y], [0, 0, 1]]), (int(height), int(width))
