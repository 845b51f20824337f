"""Captures of nerfstudio and instant-ngp: transforms.json beside images."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
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
LAYOUT = (
    "transforms.json with frames of file_path, transform_matrix and, if any, depth_file_path; images by these paths"
)
PINHOLES = (None, "OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")
COEFFICIENTS = ("k1", "k2", "p1", "p2", "k3")
Json = dict[str, object]


def read_nerfstudio(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List a capture as one sequence, in the order of the images' names, or each of its folders that is one."""
    places = [root] if (root / FILE).is_file() else [path.parent for path in sorted(root.glob(f"*/{FILE}"))]
    captures = {path.name: path for path in places}
    if not captures:
        raise files.missing(root / FILE, LAYOUT)
    return [_capture(captures[name], name) for name in files.chosen(captures, only)]


def _capture(root: Path, name: str) -> Sequence:
    path = root / FILE
    content = _content(path)
    listed = cast(list[Json], content.get("frames") or [])
    try:
        found = [(_image(root, str(frame["file_path"])), {**content, **frame}) for frame in listed]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: a frame has no file_path ({error}); write it as nerfstudio does") from error
    there = [(image, frame) for image, frame in found if image.is_file()]
    if not there:
        raise UserError(f"{path} has {len(listed)} frames, and the image of none is there; unpack the images beside it")
    if len(there) < len(found):
        LOGGER.warning(f"{path}: {len(found) - len(there)} of {len(found)} images are missing and left out")
    there.sort(key=lambda pair: [natural(part) for part in pair[0].parts])
    sizes, lenses = own.image_sizes([image for image, _ in there]), dict[object, own.Lens]()
    shots = [_shot(root, image, frame, sizes[image], lenses, index) for index, (image, frame) in enumerate(there)]
    if not all("time" in frame for _, frame in there):
        shots = [replace(shot, time=index / own.RATE) for index, shot in enumerate(shots)]
    unit = float(cast(float, content.get("depth_unit_scale_factor", 0.001)))
    return own.sequence(name, shots, depth=partial(_depth, unit=unit))


def _shot(root: Path, image: Path, frame: Json, size: own.Size, lenses: dict[object, own.Lens], index: int) -> own.Shot:
    """Read one frame; equal lenses become one, so that its images are undistorted together."""
    what = f"{root / FILE}: {frame['file_path']}"
    try:
        time = float(cast(float, frame.get("time", index)))
        lens = _lens(frame, size, what)
        pose = np.array(frame["transform_matrix"], np.float64).reshape(4, 4)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{what} lacks, or has no readable, {error}; write it as nerfstudio does") from error
    depth = frame.get("depth_file_path")
    return own.Shot(
        image=image,
        time=time,
        size=size,
        lens=lenses.setdefault((lens.matrix.tobytes(), lens.coefficients), lens),
        world_from_camera=pose @ np.diag([1.0, -1, -1, 1]),
        depth=None if depth is None else files.file(root / str(depth), LAYOUT),
    )


def _content(path: Path) -> Json:
    try:
        content = cast(object, json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); write it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not an object of frames; write it as nerfstudio does")
    return cast(Json, content)


def _image(root: Path, written: str) -> Path:
    """Image of a file_path, which in Blender's captures has no suffix."""
    path = root / written
    if path.suffix.lower() in files.IMAGE_SUFFIXES:
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
    if number("k4", 0.0):
        raise UserError(f"{what} has a coefficient k4, which is not undistorted here; undistort the images first")
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
