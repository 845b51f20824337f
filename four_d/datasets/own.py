"""A user's own pictures as sequences: without distortion, of one size, with what is known of each.

Readers of COLMAP, nerfstudio and plain folders list `Shot`s; what becomes of them stands here once.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Several
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from four_d import geometry
from four_d.datasets import files
from four_d.datasets.lens import Lens
from four_d.datasets.sequence import Depth, PerFrame, Sequence, WorldTracks
from four_d.errors import UserError
from four_d.ordering import natural
from four_d.types import Cameras
from four_d.video.footage import footage
from four_d.video.images import listed, orientation, picture, size_of
from four_d.video.mask import read_mask
from four_d.video.remarks import Remarks

LOGGER = logging.getLogger(__name__)

K = TypeVar("K")
Size = tuple[int, int]
_NUMBER = re.compile(r"[0-9]+$")
_DECIMAL = re.compile(r"[0-9]\.[0-9]+$")
SHARED = 0.5
"""Share of images with a partner in another camera from which images that nothing else tells apart are of several."""
RATE = 30.0
"""Frames per second where nothing tells."""
PACED = 0.5
"""Share of equal steps between images' numbers above which a larger step is a gap in time."""
Orientation = Literal["follow", "ignore", "refuse"]
"""Use of an image's EXIF orientation: ``ignore`` where a calibration is of the pixels as they are stored."""


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One image, and what is known of it."""

    image: Path
    """Image file, or the video that it is a frame of."""
    frame: int | None = None
    """Index in the video; None for an image file."""
    camera: str = ""
    """Name of its camera."""
    time: float = 0.0
    size: Size
    """Height and width of the image."""
    lens: Lens | None = None
    """Calibration in pixels of the image; None: unknown."""
    world_from_camera: NDArray[np.float64] | None = None
    """4 4, OpenCV axes; None: unknown."""
    depth: Path | None = None
    """File of z-depth in the image's view, of any size."""
    mask: Path | None = None
    """File of a mask of what moves."""
    points: NDArray[np.float64] | None = None
    """n 3: points of the world that the image observes, which give depth where there is no file."""
    orientation: Orientation = "ignore"
    target: Size = (0, 0)
    """Size that all images of the sequence get."""

    @property
    def unchanged(self) -> bool:
        """True if its image is given out as it is."""
        return self.size == self.target and (self.lens is None or self.lens.plain)

    @property
    def factor(self) -> float:
        """Size after scaling over size before."""
        return max(self.target[0] / self.size[0], self.target[1] / self.size[1])

    @property
    def corner(self) -> tuple[float, float]:
        """Rows and columns that are cut off at the top and at the left, after scaling."""
        return tuple((of * self.factor - to) / 2 for of, to in zip(self.size, self.target))  # pyright: ignore


def lens_of(
    intrinsics: NDArray[np.float64], coefficients: Several[float], calibrated: Size, size: Size, what: str
) -> Lens:
    """Lens in pixels of an image, from a calibration (3 3, corner origin) that may be of the image at another size.

    UserError where the calibration is of another shape than the image.
    """
    ratios = [to / of for to, of in zip(size, calibrated)]
    if not files.same_shape(calibrated, size):
        raise UserError(
            f"{what} is {size[1]} × {size[0]}, its calibration of {calibrated[1]} × {calibrated[0]}, another shape; "
            "give the images that were calibrated"
        )
    scaled = intrinsics * np.array([[ratios[1]], [ratios[0]], [1.0]])
    return Lens.of(scaled - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]], coefficients, what)


def moments(names: Mapping[str, Several[str]], remedy: str) -> dict[str, list[int]]:
    """Place of each image of each camera in the order of moments, from 0.

    Images of several cameras are of one moment if the numbers at the ends of their names are equal or, unless all have
    numbers of their own, their names; which is logged where a moment is not seen by all. Moments follow one another as
    `timeline` says.

    Args:
        names: camera → names of its images without suffix, in order.
        remedy: file that can give times instead.

    Raises:
        UserError: a camera of several shares no moment with any other.

    """
    if len(names) == 1:
        return {camera: timeline(own) for camera, own in names.items()}
    numbers = {camera: [_NUMBER.search(name) for name in own] for camera, own in names.items()}
    keys: dict[str, list[str]] = {camera: list(own) for camera, own in names.items()}
    numbered = {camera: [str(int(found[0])) for found in own if found] for camera, own in numbers.items()}
    by_number = all(len(set(numbered[camera])) == len(own) for camera, own in names.items())
    keys = numbered if by_number else keys
    word = "number" if by_number else "name"
    ordered = sorted({key for own in keys.values() for key in own}, key=natural)
    order = dict(zip(ordered, timeline(ordered), strict=True))
    seen = Counter(key for own in keys.values() for key in set(own))
    for camera, own in keys.items():
        if all(seen[key] == 1 for key in own):
            raise UserError(
                f"camera {camera} has no image of one {word} with another camera (its first is {names[camera][0]}), so "
                f"nothing tells which were taken together; name those alike, or give times in {remedy}"
            )
    if lone := [key for key in order if seen[key] < len(keys)]:
        LOGGER.warning(
            f"images of {len(keys)} cameras are taken together by their {word}s: {len(lone)} of {len(order)} moments "
            f"are not seen by all ({', '.join(lone[:3])}{' …' if len(lone) > 3 else ''})"
        )
    return {camera: [order[key] for key in own] for camera, own in keys.items()}


def timeline(names: Several[str]) -> list[int]:
    """Places in time, from 0, of images whose names are in order: one after the other, and further on after a gap.

    A gap is a larger step of the numbers at the names' ends, where most of their steps are equal and the others
    multiples of it: there images are missing, and what moves went on. Gaps are logged.
    """
    found = [_NUMBER.search(name) for name in names]
    numbers = [int(match[0]) for match in found if match]
    steps = [after - before for before, after in pairwise(numbers)]
    if len(numbers) < len(names) or min(steps, default=0) <= 0 or any(map(_DECIMAL.search, names)):
        return list(range(len(names)))
    step, count = Counter(steps).most_common(1)[0]
    if count <= PACED * len(steps) or any(each % step for each in steps):
        return list(range(len(names)))
    if gaps := [at for at, each in enumerate(steps) if each != step]:
        LOGGER.warning(
            f"the images' numbers leave {len(gaps)} gaps, which count as time ({names[gaps[0]]} is followed by "
            f"{names[gaps[0] + 1]})"
        )
    return [(number - numbers[0]) // step for number in numbers]


def sequence(
    name: str,
    shots: Several[Shot],
    *,
    depth: Callable[[Path], NDArray[np.float32]] = files.npy_or_millimetres,
    world_tracks: Callable[[], WorldTracks] | None = None,
) -> Sequence:
    """Make a sequence of shots, camera by camera and by time. Images get the size of the first.

    Those of another size are scaled until they cover it, and cut evenly; intrinsics follow. ``depth`` reads a file.
    """
    _check(shots)
    cameras = sorted({shot.camera for shot in shots}, key=natural)
    ordered = sorted(shots, key=lambda shot: (cameras.index(shot.camera), shot.time))
    for one, other in pairwise(ordered):
        if (one.camera, one.time) == (other.camera, other.time):
            raise UserError(
                f"{one.image} and {other.image.name} are of one camera at {one.time:g} s; give each its own time "
                "or each camera its folder"
            )
    ordered = [replace(shot, target=ordered[0].size) for shot in ordered]
    lenses = all(shot.lens is not None for shot in ordered)
    deep = any(shot.depth is not None or shot.points is not None for shot in ordered)
    masked = all(shot.mask is not None for shot in ordered)
    start = min(shot.time for shot in ordered)
    return Sequence(
        name=name,
        frames=len(ordered),
        times=tuple(shot.time - start for shot in ordered),
        camera_ids=tuple(cameras.index(shot.camera) for shot in ordered) if len(cameras) > 1 else None,
        images=PerFrame(_images, ordered),
        cameras=partial(_cameras, ordered) if lenses else None,
        depth=PerFrame(partial(_depths, read=depth), ordered) if deep else None,
        masks=PerFrame(_masks, ordered) if masked else None,
        world_tracks=world_tracks,
    )


def _check(shots: Several[Shot]) -> None:
    """Raise UserError for images that are listed twice or have no finite time; log those that lack the others' pose."""
    twice = [place for place, count in Counter((shot.image, shot.frame) for shot in shots).items() if count > 1]
    if twice:
        image, frame = twice[0]
        raise UserError(
            f"{image}{'' if frame is None else f', frame {frame},'} is listed more than once; keep one entry"
        )
    for shot in shots:
        if not np.isfinite(shot.time):
            raise UserError(f"{shot.image} has the time {shot.time}; give seconds")
    lost = [shot for shot in shots if shot.world_from_camera is None or not np.isfinite(shot.world_from_camera).all()]
    if lost and len(lost) < len(shots):
        LOGGER.warning(f"{len(lost)} of {len(shots)} images have no pose and are left out, as {lost[0].image}")


def _images(shots: list[Shot]) -> NDArray[np.uint8]:
    """Read images, f h w 3; black where a lens saw nothing."""
    result: list[NDArray[np.uint8]] = []
    for _, group in groupby(shots, key=lambda shot: (id(shot.lens), shot.image if shot.frame is not None else None)):
        alike = list(group)
        stored = _video_frames(alike) if alike[0].frame is not None else [_picture(shot) for shot in alike]
        for image, shot in zip(stored, alike, strict=True):
            if image.shape[:2] != shot.size:
                raise UserError(
                    f"{shot.image} is {image.shape[1]} × {image.shape[0]}, others of its camera "
                    f"{shot.size[1]} × {shot.size[0]}; give images of one camera one size"
                )
        lens = alike[0].lens
        straight = stored if lens is None or lens.plain else list(lens.undistort_images(stored))
        result += [_fit_image(image, shot) for image, shot in zip(straight, alike, strict=True)]
    return np.stack(result)


def _picture(shot: Shot) -> NDArray[np.uint8]:
    if shot.orientation == "refuse" and orientation(shot.image) != 1:
        raise UserError(
            f"{shot.image} is stored turned, by its EXIF orientation, and nothing tells whether cameras, depth and "
            "masks are of the stored or of the upright image; store all images upright, without EXIF"
        )
    return picture(shot.image, turn=shot.orientation == "follow")


def _video_frames(shots: Several[Shot]) -> list[NDArray[np.uint8]]:
    source = footage(shots[0].image, silent=True)
    return list(source.frames([shot.frame for shot in shots if shot.frame is not None]))


def _fit_image(image: NDArray[np.uint8], shot: Shot) -> NDArray[np.uint8]:
    if shot.size == shot.target:
        return image
    height, width = shot.target
    top, left = (edge / shot.factor for edge in shot.corner)
    box = (left, top, left + width / shot.factor, top + height / shot.factor)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box=box))


def _intrinsics(shot: Shot) -> NDArray[np.float64]:
    """Matrix 3 3 for the image as it is given out."""
    assert shot.lens is not None
    top, left = shot.corner
    fitted = shot.lens.intrinsics * np.array([[shot.factor], [shot.factor], [1.0]])
    return fitted - [[0, 0, left], [0, 0, top], [0, 0, 0]]


def _cameras(shots: list[Shot]) -> Cameras:
    lost = np.full((4, 4), np.nan)
    poses = np.stack([lost if shot.world_from_camera is None else shot.world_from_camera for shot in shots])
    return files.cameras(poses, np.stack([_intrinsics(shot) for shot in shots]))


def _depths(shots: list[Shot], read: Callable[[Path], NDArray[np.float32]]) -> Depth:
    """Read depth, f h w, and its validity: from files, or where observed points fall.

    Files of images that stay as they are keep their own size.
    """
    if all(shot.points is None and shot.unchanged for shot in shots):
        return files.depth([shot.depth or files.NO_FILE for shot in shots], read)
    values = np.zeros((len(shots), *shots[0].target), np.float32)
    for row, shot in zip(values, shots, strict=True):
        if shot.depth is not None:
            row[:] = _fit_map(read(shot.depth), shot, shot.depth)
        elif shot.points is not None and len(shot.points) and shot.world_from_camera is not None:
            _put_points(row, shot)
    valid = np.isfinite(values) & (values > 0)
    return np.where(valid, values, 0).astype(np.float32), valid


def _put_points(depth: NDArray[np.float32], shot: Shot) -> None:
    """Write the depth of observed points into the pixels that they fall on; the nearest of several."""
    assert shot.world_from_camera is not None
    assert shot.points is not None
    camera = Cameras(
        world_from_camera=torch.from_numpy(shot.world_from_camera), intrinsics=torch.from_numpy(_intrinsics(shot))
    )
    pixels, z = (each.numpy() for each in geometry.project(torch.from_numpy(shot.points), camera))
    height, width = depth.shape
    inside = (z > 0) & (pixels >= 0).all(-1) & (pixels < [width, height]).all(-1)
    column, row = np.floor(pixels[inside]).astype(int).T
    order = np.argsort(-z[inside])
    depth[row[order], column[order]] = z[inside][order]


def _masks(shots: list[Shot]) -> NDArray[np.bool_]:
    paths = [shot.mask for shot in shots if shot.mask is not None]
    if all(shot.unchanged for shot in shots):
        return files.stacked([read_mask(path) for path in paths], paths)
    return np.stack([_fit_map(read_mask(path), shot, path) for shot, path in zip(shots, paths, strict=True)])


def _fit_map(values: NDArray[files.N], shot: Shot, path: Path) -> NDArray[files.N]:
    """Nearest values h w of a map of the image's view, of any size, for the image as it is given out."""
    if not files.same_shape(values.shape, shot.size):
        raise UserError(
            f"{path} is {values.shape[1]} × {values.shape[0]}, its image {shot.size[1]} × {shot.size[0]}, another "
            "shape; give maps of the whole image, of any size"
        )
    straight = values
    if shot.lens is not None and not shot.lens.plain:
        straight = shot.lens.undistort_maps(files.resized(values[None], shot.size))[0]
    height, width = straight.shape
    top, left = shot.corner
    rows = ((np.arange(shot.target[0]) + 0.5 + top) / shot.factor / shot.size[0] * height).astype(int)
    columns = ((np.arange(shot.target[1]) + 0.5 + left) / shot.factor / shot.size[1] * width).astype(int)
    return straight[rows.clip(0, height - 1)[:, None], columns.clip(0, width - 1)]


def pictures(folder: Path) -> list[Path]:
    """Images of a folder in order; what else is in it is passed over, which is logged."""
    found = listed(folder, "a camera's images", Remarks(folder))
    for path in folder.iterdir():
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path} is a link to a file that is not there; mend or remove it")
    return found


def turned(shots: Several[Shot], has_tracks: bool) -> list[Shot]:
    """Have images follow their EXIF orientation where nothing else is known of them, which might not be turned."""
    if has_tracks or any(shot.lens or shot.depth or shot.mask for shot in shots):
        return [replace(shot, orientation="refuse") for shot in shots]
    firsts = {shot.camera: shot for shot in reversed(shots)}
    sizes = {camera: size_of(shot.image, turn=True) for camera, shot in firsts.items() if shot.frame is None}
    return [replace(shot, orientation="follow", size=sizes.get(shot.camera, shot.size)) for shot in shots]


def sizes_by(examples: Mapping[K, Path]) -> dict[K, Size]:
    """Height and width, as stored, of an example image of each key."""
    return {key: size_of(path, turn=False) for key, path in examples.items()}
