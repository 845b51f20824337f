"""Listing and stacking files, as all readers need it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from four_d.errors import UserError
from four_d.protocols import decode
from four_d.protocols.sequence import Depth
from four_d.types import Cameras

N = TypeVar("N", bound=np.generic)

PICTURES = (".png", ".jpg", ".jpeg")


def missing(path: Path, layout: str) -> UserError:
    """The error for something that a set should hold."""
    return UserError(f"{path} is missing; expected layout: {layout}")


def folder(path: Path, layout: str) -> Path:
    """``path``, which must be a folder."""
    if not path.is_dir():
        raise missing(path, layout)
    return path


def file(path: Path, layout: str) -> Path:
    """``path``, which must be a file."""
    if not path.is_file():
        raise missing(path, layout)
    return path


def listed(
    where: Path, pattern: str, layout: str, key: Callable[[Path], object] = lambda path: path.name
) -> list[Path]:
    """The files of a folder that match, in the order of ``key``; an error if there is none."""
    found = sorted(folder(where, layout).glob(pattern), key=key)  # pyright: ignore[reportArgumentType, reportCallIssue]
    if not found:
        raise missing(where / pattern, layout)
    return found


def number(path: Path) -> int:
    """The number at the end of a file's stem: 0_00012 → 12, img7 → 7, frame-000200.color → 200."""
    digits = path.name.split(".")[0]
    tail = digits[len(digits.rstrip("0123456789")) :]
    if not tail:
        raise UserError(f"{path} has no number in its name; remove it or move it out of the folder")
    return int(tail)


def chosen(names: Iterable[str], only: Sequence[str] | None) -> list[str]:
    """``names`` that are in ``only`` (all if None); an error for one of ``only`` that is unknown."""
    known = list(names)
    if only is None:
        return known
    unknown = [name for name in only if name not in known]
    if unknown:
        raise UserError(f"there is no sequence {', '.join(unknown)}; choose of {', '.join(known)}")
    return [name for name in known if name in only]


def images(paths: Sequence[Path]) -> NDArray[np.uint8]:
    """Pictures, f h w 3."""
    return _stacked([decode.image(path) for path in paths], paths)


def depth(paths: Sequence[Path], read: Callable[[Path], NDArray[np.float32]], most: float | None = None) -> Depth:
    """Depth f h w and where it is valid: finite, positive and, where a set says so, at most ``most``."""
    values = _stacked([read(path) for path in paths], paths)
    valid = np.isfinite(values) & (values > 0)
    if most is not None:
        valid &= values <= most
    return np.where(valid, values, 0).astype(np.float32), valid


def masks(paths: Sequence[Path]) -> NDArray[np.bool_]:
    """Masks, f h w."""
    return _stacked([decode.mask(path) for path in paths], paths)


def cameras(poses: NDArray[np.float64], intrinsics: NDArray[np.float64]) -> Cameras:
    """Float64 cameras. A pose that is not finite is not known and becomes the identity.

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


def pinhole(fx: float, fy: float, x: float, y: float, *, centre_origin: bool) -> NDArray[np.float64]:
    """Intrinsics 3 3 with corner origin. ``centre_origin``: the given principal point counts from a pixel's centre."""
    shift = 0.5 if centre_origin else 0.0
    return np.array([[fx, 0, x + shift], [0, fy, y + shift], [0, 0, 1]])


def frame_times(count: int, rate: float) -> tuple[float, ...]:
    """Seconds of ``count`` frames at ``rate`` per second."""
    return tuple(i / rate for i in range(count))


def same_length(paths: Sequence[Path], others: Sequence[Path]) -> None:
    """Two lists that belong together must be as long."""
    if len(paths) != len(others):
        raise UserError(
            f"{paths[0].parent} has {len(paths)} frames, {others[0].parent} has {len(others)}; unpack both again"
        )


def millimetres() -> Callable[[Path], NDArray[np.float32]]:
    """Reader of PNG of 16 bits in millimetres."""
    return partial(decode.depth_png, per_metre=1000.0)


def _stacked(frames: Sequence[NDArray[N]], paths: Sequence[Path]) -> NDArray[N]:
    for frame, path in zip(frames, paths, strict=True):
        if frame.shape != frames[0].shape:
            raise UserError(
                f"{path} is {_size(frame)}, the first frame {_size(frames[0])}; a sequence has one size: "
                f"unpack or download it again"
            )
    return np.stack(frames)


def _size(frame: NDArray[np.generic]) -> str:
    return f"{frame.shape[1]} × {frame.shape[0]}"
