"""Listing and stacking of files for all readers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from four_d.datasets import decode
from four_d.datasets.sequence import Depth, PerFrame
from four_d.errors import UserError
from four_d.ordering import in_order
from four_d.types import Cameras

if TYPE_CHECKING:
    from _typeshed import SupportsRichComparison

LOGGER = logging.getLogger(__name__)

N = TypeVar("N", bound=np.generic)

NO_FILE = Path()
"""Place of a frame's depth file where there is none."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
SAME_SHAPE = 0.01
"""Relative difference of two aspect ratios up to which one picture is the other, resized."""
HALF_PIXEL = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
"""Difference of a camera matrix with corner origin and the same one that counts from the first pixel's centre."""
OPENGL = np.diag([1.0, -1, -1, 1])
"""Camera axes of OpenGL (and Blender) in OpenCV's and the reverse: a pose is multiplied by it from the right."""


def missing(path: Path, layout: str) -> UserError:
    """Make the error for a missing part of a data set."""
    return UserError(f"{path} is missing; expected layout: {layout}")


def folder(path: Path, layout: str) -> Path:
    """Return ``path``, which must be a folder."""
    if not path.is_dir():
        raise missing(path, layout)
    return path


def file(path: Path, layout: str) -> Path:
    """Return ``path``, which must be a file."""
    if not path.is_file():
        raise missing(path, layout)
    return path


def listed(
    directory: Path, pattern: str, layout: str, key: Callable[[Path], SupportsRichComparison] | None = None
) -> list[Path]:
    """List matching visible files of a folder, in natural order or by ``key``. UserError if there is none."""
    matching = [path for path in folder(directory, layout).glob(pattern) if not path.name.startswith(".")]
    matches = in_order(matching) if key is None else sorted(matching, key=key)
    if not matches:
        raise missing(directory / pattern, layout)
    return matches


def is_image(path: Path) -> bool:
    """True for a visible file that has an image's suffix."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def number(path: Path) -> int:
    """Number at the end of a file's stem: 0_00012 → 12, img7 → 7, frame-000200.color → 200."""
    digits = path.name.split(".")[0]
    tail = digits[len(digits.rstrip("0123456789")) :]
    if not tail:
        raise UserError(f"{path} has no number in its name; remove it or move it out of the folder")
    return int(tail)


def chosen(names: Iterable[str], only: Sequence[str] | None) -> list[str]:
    """Select the ``names`` in ``only`` (all if None). UserError for an unknown name in ``only``."""
    available = list(names)
    if only is None:
        return available
    unknown = [name for name in only if name not in available]
    if unknown:
        raise UserError(f"there is no sequence {', '.join(unknown)}; choose from {', '.join(available)}")
    return [name for name in available if name in only]


def images(paths: Sequence[Path]) -> NDArray[np.uint8]:
    """Read images, f h w 3."""
    return stacked([decode.image(path) for path in paths], paths)


def depth(paths: Sequence[Path], read: Callable[[Path], NDArray[np.float32]], max_depth: float | None = None) -> Depth:
    """Read depth f h w and its validity: finite, positive and at most ``max_depth`` (None: any).

    Frames of `NO_FILE` have none; if all are, h and w are 1.
    """
    present = {index: path for index, path in enumerate(paths) if path != NO_FILE}
    stored = stacked([read(path) for path in present.values()], list(present.values())) if present else None
    values = np.zeros((len(paths), *((1, 1) if stored is None else stored.shape[1:])), np.float32)
    if stored is not None:
        values[list(present)] = stored
    valid = np.isfinite(values) & (values > 0)
    if max_depth is not None:
        valid &= values <= max_depth
    return np.where(valid, values, 0).astype(np.float32), valid


def image_loader(paths: Sequence[Path]) -> PerFrame[Path, NDArray[np.uint8]]:
    """Loader of `images`."""
    return PerFrame(images, list(paths))


def depth_loader(
    paths: Sequence[Path], read: Callable[[Path], NDArray[np.float32]], max_depth: float | None = None
) -> PerFrame[Path, Depth]:
    """Loader of `depth`."""
    return PerFrame(partial(depth, read=read, max_depth=max_depth), list(paths))


def resized(maps: NDArray[N], size: tuple[int, int]) -> NDArray[N]:
    """Nearest value of maps f h w at the pixel centres of another size; never a mean, which no surface has."""
    rows, columns = (
        np.minimum(((np.arange(to) + 0.5) * of / to).astype(int), of - 1) for of, to in zip(maps.shape[1:], size)
    )
    return np.ascontiguousarray(maps[:, rows[:, None], columns])


def masks(paths: Sequence[Path], frames: int | None = None) -> NDArray[np.bool_]:
    """Read masks, f h w, for ``frames`` frames: False after the last file; None: one per file."""
    stored = stacked([decode.mask(path) for path in paths], paths)
    padding = np.zeros((max((frames or 0) - len(stored), 0), *stored.shape[1:]), np.bool_)
    return np.concatenate([stored, padding]) if len(padding) else stored


def cameras(poses: NDArray[np.float64], intrinsics: NDArray[np.float64]) -> Cameras:
    """Make float64 cameras. A pose that is not finite becomes the identity, marked unknown.

    Args:
        poses: world_from_camera, f 4 4, OpenCV axes.
        intrinsics: 3 3 or f 3 3, corner origin.

    """
    known = np.asarray(np.isfinite(poses).all((1, 2)))
    poses = np.where(known[:, None, None], poses, np.eye(4))
    return Cameras(
        world_from_camera=torch.from_numpy(poses),
        intrinsics=torch.from_numpy(np.broadcast_to(intrinsics, (len(poses), 3, 3)).copy()),
        known=torch.from_numpy(known),
    )


def inverted(poses: NDArray[np.float64]) -> NDArray[np.float64]:
    """world_from_camera of camera_from_world, f 4 4, or the reverse."""
    return np.linalg.inv(poses).astype(np.float64)


def pinhole(fx: float, fy: float, x: float, y: float, *, centre_origin: bool) -> NDArray[np.float64]:
    """Intrinsics 3 3 with corner origin. ``centre_origin``: the given principal point counts from a pixel's centre."""
    shift = 0.5 if centre_origin else 0.0
    return np.array([[fx, 0, x + shift], [0, fy, y + shift], [0, 0, 1]])


def frame_times(count: int, rate: float) -> tuple[float, ...]:
    """Times in seconds of ``count`` frames at ``rate`` per second."""
    return tuple(i / rate for i in range(count))


def numbered_times(numbers: Sequence[int], rate: float) -> tuple[float, ...]:
    """Times in seconds, from 0, of frames with these numbers at ``rate`` per second."""
    return tuple((each - numbers[0]) / rate for each in numbers)


def partly(directory: Path, paths: Sequence[Path]) -> list[Path]:
    """Replace files that are missing by `NO_FILE`, which is logged; none at all if every one is missing."""
    present = [path if path.is_file() else NO_FILE for path in paths]
    lost = [path.name for path, there in zip(paths, present, strict=True) if there == NO_FILE]
    if lost and len(lost) < len(paths):
        listed = f"{', '.join(lost[:3])}{' …' if len(lost) > 3 else ''}"
        LOGGER.warning(f"{directory} has no file for {len(lost)} of {len(paths)} images ({listed}): these have none")
    return [] if len(lost) == len(paths) else present


def same_length(paths: Sequence[Path], others: Sequence[Path]) -> None:
    """Raise UserError unless two lists have the same length."""
    if len(paths) != len(others):
        raise UserError(
            f"{paths[0].parent} has {len(paths)} frames, {others[0].parent} has {len(others)}; unpack both again"
        )


def millimetres() -> Callable[[Path], NDArray[np.float32]]:
    """Reader of 16-bit PNG depth in millimetres."""
    return partial(decode.depth_png, per_metre=1000.0)


def npy_or_millimetres(path: Path) -> NDArray[np.float32]:
    """Read depth in metres: of ``.npy`` as it is, of 16-bit PNG in millimetres."""
    return decode.depth_npy(path) if path.suffix == ".npy" else millimetres()(path)


def same_shape(one: Sequence[int], other: Sequence[int]) -> bool:
    """True if two sizes (height, width) can be of one picture: of one aspect ratio, but for the rounding to pixels."""
    small, large = sorted(((one[0], one[1]), (other[0], other[1])), key=lambda size: size[0] * size[1])
    height = small[1] * large[0] / large[1]
    return abs(small[0] - height) <= max(1.0, SAME_SHAPE * height)


def stacked(frames: Sequence[NDArray[N]], paths: Sequence[Path]) -> NDArray[N]:
    """Stack frames of one size. UserError, with the file's name, for another."""
    for frame, path in zip(frames, paths, strict=True):
        if frame.shape != frames[0].shape:
            raise UserError(
                f"{path} is {_size(frame)}, the first frame {_size(frames[0])}; all frames of a sequence have one "
                f"size: unpack or download it again"
            )
    return np.stack(frames)


def _size(frame: NDArray[np.generic]) -> str:
    return f"{frame.shape[1]} × {frame.shape[0]}"
