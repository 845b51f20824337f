"""Captures of nerfstudio and instant-ngp: transforms.json beside images."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from four_d.datasets import decode, files, own
from four_d.datasets.facts import DataSet, Licence
from four_d.datasets.sequence import Sequence
from four_d.errors import UserError
from four_d.ordering import natural

LOGGER = logging.getLogger(__name__)

FILE = "transforms.json"
AS_WRITTEN = "write it as nerfstudio does"
LAYOUT = (
    "transforms.json with frames of file_path, transform_matrix and, if any, depth_file_path; images by these paths"
)
PINHOLES = (None, "OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")
COEFFICIENTS = ("k1", "k2", "p1", "p2", "k3")
REFUSED = ("k4", "k5", "k6", "s1", "s2", "s3", "s4")
"""Coefficients of other models."""
Json = dict[str, object]


def read_nerfstudio(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List a capture as one sequence, in the order of the images' names, or each of its folders that is one."""
    places = [root] if (root / FILE).is_file() else [path.parent for path in sorted(root.glob(f"*/{FILE}"))]
    captures = {path.name: path for path in places}
    if not captures:
        raise files.missing(root / FILE, LAYOUT)
    return [_capture(captures[name], name) for name in files.chosen(captures, only)]


def _capture(root: Path, name: str) -> Sequence:
    content = decode.json_object(root / FILE, AS_WRITTEN)
    unit = _unit(root / FILE, content)
    form = Form(file=FILE, axes=files.OPENGL, depth="depth_file_path", read_depth=partial(_depth, unit=unit))
    return form.sequence(root, name, content)


def _unit(path: Path, content: Json) -> float:
    """Lengths of the capture's unit in one count of depth."""
    given = content.get("depth_unit_scale_factor", 0.001)
    try:
        unit = float(cast(float, given))
    except (TypeError, ValueError):
        unit = math.nan
    if not 0 < unit < math.inf:
        raise UserError(f"{path}: depth_unit_scale_factor is {given!r}; give the unit of depth, a number above 0")
    return unit


@dataclass(frozen=True, kw_only=True)
class Form:
    """Differences between nerfstudio's captures and layouts that extend them."""

    file: str
    """Name of the JSON file."""
    axes: NDArray[np.float64]
    """4 4: OpenCV's camera axes in the file's."""
    depth: str
    """Entry of a frame that names its depth file."""
    read_depth: Callable[[Path], NDArray[np.float32]]

    def sequence(self, root: Path, name: str, content: Json) -> Sequence:
        """List the frames of a file's ``content``, in the order of the images' names, or of times where all have one.

        Those of several cameras have a ``camera_id``. Images that are missing are left out, with a note.
        """
        path = root / self.file
        listed = _timed(_listed(root, path, content), path)
        there = [(image, frame) for image, frame in listed if image.is_file()]
        if not there:
            raise UserError(
                f"{path} has {len(listed)} frames, and the image of none is there; unpack the images beside it"
            )
        if len(there) < len(listed):
            LOGGER.warning(f"{path}: {len(listed) - len(there)} of {len(listed)} images are missing and left out")
        sizes, lenses = own.sizes_by({image: image for image, _ in there}), dict[object, own.Lens]()
        shots = [self._shot(root, image, frame, sizes[image], lenses) for image, frame in there]
        return replace(own.sequence(name, shots, depth=self.read_depth), listing=(path,))

    def _shot(self, root: Path, image: Path, frame: Json, size: own.Size, lenses: dict[object, own.Lens]) -> own.Shot:
        """Read one frame; equal lenses become one, so that its images are undistorted together."""
        what = f"{root / self.file}: {frame['file_path']}"
        try:
            time = float(cast(float, frame["time"]))
            lens = _lens(frame, size, what)
            pose = np.array(frame["transform_matrix"], np.float64).reshape(4, 4)
        except UserError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{what} lacks, or has no readable, {error}; {AS_WRITTEN}") from error
        depth = frame.get(self.depth)
        return own.Shot(
            image=image,
            camera=_camera(frame),
            time=time,
            size=size,
            lens=lenses.setdefault((lens.matrix.tobytes(), lens.coefficients), lens),
            world_from_camera=pose @ self.axes,
            depth=None if depth is None else files.file(root / str(depth), LAYOUT),
        )


def _listed(root: Path, path: Path, content: Json) -> list[tuple[Path, Json]]:
    """Images, whether there or not, and their frames' values, which go before the file's, in the order of names."""
    frames = cast(list[Json], content.get("frames") or [])
    try:
        found = [(_image(root, str(frame["file_path"])), {**content, **frame}) for frame in frames]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: a frame has no file_path ({error}); {AS_WRITTEN}") from error
    return sorted(found, key=lambda pair: [natural(part) for part in pair[0].parts])


def _timed(listed: list[tuple[Path, Json]], path: Path) -> list[tuple[Path, Json]]:
    """Give all frames times by their images' names, unless all have one: missing images still take theirs."""
    if all("time" in frame for _, frame in listed):
        return listed
    names: dict[str, list[str]] = {}
    for image, frame in listed:
        names.setdefault(_camera(frame), []).append(image.stem)
    left = {camera: iter(order) for camera, order in own.moments(names, path.name).items()}
    return [(image, {**frame, "time": next(left[_camera(frame)]) / own.RATE}) for image, frame in listed]


def _camera(frame: Json) -> str:
    return str(frame.get("camera_id", ""))


def _image(root: Path, written: str) -> Path:
    """Image of a file_path, which in Blender's captures has no suffix."""
    path = root / written
    if files.is_image(path):
        return path
    options = [path.with_name(path.name + suffix) for suffix in files.IMAGE_SUFFIXES]
    return next((option for option in options if option.is_file()), path)


def _lens(frame: Json, size: own.Size, what: str) -> own.Lens:
    """Lens of a frame, whose own values go before those of the file. KeyError without a focal length."""
    model = frame.get("camera_model")
    if model not in PINHOLES or frame.get("is_fisheye"):
        raise UserError(
            f"{what} is of {model or 'a fisheye camera'}, which is not undistorted here; undistort the images first"
        )

    def number(name: str, default: float | None = None) -> float:
        value = frame[name] if default is None else frame.get(name, default)
        return float(cast(float, value))

    height, width = number("h", size[0]), number("w", size[1])
    fx = number("fl_x") if "fl_x" in frame else width / 2 / math.tan(number("camera_angle_x") / 2)
    fy = number("fl_y", fx)
    if "fl_y" not in frame and "camera_angle_y" in frame:
        fy = height / 2 / math.tan(number("camera_angle_y") / 2)
    k = np.array([[fx, 0, number("cx", width / 2)], [0, fy, number("cy", height / 2)], [0, 0, 1]])
    values = [number(name, 0.0) for name in COEFFICIENTS]
    for name in REFUSED:
        if number(name, 0.0):
            raise UserError(
                f"{what} has a coefficient {name}, which is not undistorted here; undistort the images first"
            )
    return own.lens_of(k, values if any(values) else (), (round(height), round(width)), size, what)


def _depth(path: Path, unit: float) -> NDArray[np.float32]:
    """Read depth in the capture's unit: both counts of a PNG and values of an .npy are in ``unit``."""
    return decode.depth_npy(path) * np.float32(unit) if path.suffix == ".npy" else decode.depth_png(path, 1 / unit)


NERFSTUDIO = DataSet(
    name="nerfstudio",
    title="a capture of nerfstudio or instant-ngp (transforms.json)",
    home="",
    licences=(Licence(text="unknown"),),
    layout=LAYOUT,
    reader=read_nerfstudio,
    metric=False,
    depth_tolerance=0.05,
    notes="OpenCV's distortion is taken out, fisheye is refused; the capture's unit; without time, 30 images a second",
)
