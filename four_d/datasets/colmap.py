"""COLMAP's projects: images with cameras, and depth where their points fall."""

from __future__ import annotations

import logging
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from four_d.datasets import files, own
from four_d.datasets.facts import DataSet, Licence
from four_d.datasets.sequence import Sequence
from four_d.errors import UserError
from four_d.formats.colmap import Camera, Reconstruction, View, model_folder, read_model
from four_d.ordering import natural

LOGGER = logging.getLogger(__name__)

LAYOUT = "sparse/0/{cameras,images,points3D}.{bin,txt} (or sparse/, colmap/sparse/0/, or beside the images) and images/"
UNDISTORTED = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV")
"""Models whose distortion is the first of OpenCV's k1 k2 p1 p2 k3 k4 k5 k6; the others cannot be undistorted here."""


def read_colmap(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List a project as one sequence, in the order of the images' names, or each of its folders that is one.

    Images in folders that all hold the same names are of synchronised cameras, one per folder.
    """
    projects = {root.name: root} if model_folder(root) is not None else {}
    projects = projects or {path.name: path for path in sorted(root.iterdir()) if path.is_dir() and model_folder(path)}
    if not projects:
        raise files.missing(root / "sparse" / "0" / "cameras.bin", LAYOUT)
    return [_project(projects[name], name) for name in files.chosen(projects, only)]


def _project(root: Path, name: str) -> Sequence:
    folder = model_folder(root)
    assert folder is not None
    model = read_model(folder)
    images = next((path for path in (root / "images", root / "dense" / "images", root) if path.is_dir()), root)
    views = sorted(model.views, key=lambda view: [natural(part) for part in PurePosixPath(view.name).parts])
    there = [view for view in views if (images / view.name).is_file()]
    if not there:
        example = f", such as {views[0].name}" if views else ""
        raise UserError(f"{images} has none of the {len(views)} images of {folder}{example}; put them there")
    if len(there) < len(views):
        LOGGER.warning(f"{images}: {len(views) - len(there)} of {len(views)} images are missing and left out")
    cameras = _synchronised([view.name for view in there])
    moments = {stem: at for at, stem in enumerate(dict.fromkeys(stem for _, stem in cameras))}
    sizes = own.sizes_by({view.camera: images / view.name for view in there})
    lenses = {
        identity: _lens(model.cameras[identity], size, f"{folder}: camera {identity}")
        for identity, size in sizes.items()
    }
    shots = [
        own.Shot(
            image=images / view.name,
            camera=camera,
            time=moments[stem] / own.RATE,
            size=sizes[view.camera],
            lens=lenses[view.camera],
            world_from_camera=view.world_from_camera,
            points=_points(model, view),
        )
        for view, (camera, stem) in zip(there, cameras, strict=True)
    ]
    return own.sequence(name, shots)


def _synchronised(names: list[str]) -> list[tuple[str, str]]:
    """Camera and moment of each image: folders are cameras if several hold the same names, else all are of one."""
    paths = [PurePosixPath(name) for name in names]
    held: dict[str, set[str]] = {}
    for path in paths:
        held.setdefault(str(path.parent), set()).add(path.stem)
    if len(held) > 1 and len({frozenset(stems) for stems in held.values()}) == 1:
        return [(str(path.parent), path.stem) for path in paths]
    return [("", name) for name in names]


def _lens(camera: Camera, size: own.Size, what: str) -> own.Lens:
    """Lens of a calibrated camera. UserError for a model that cannot be undistorted, by its name."""
    if camera.model not in UNDISTORTED:
        raise UserError(f"{what} is {camera.model}, which is not undistorted here; run colmap image_undistorter first")
    values = camera.distortion
    padded = (*values, *(0.0,) * (4 - len(values))) if values else ()
    return own.lens_of(camera.intrinsics, padded, camera.size, size, what)


def _points(model: Reconstruction, view: View) -> NDArray[np.float64]:
    """Positions n 3 of the points that an image observes."""
    found = [model.points[identity] for identity in view.observed.tolist() if identity in model.points]
    return np.stack(found) if found else np.zeros((0, 3))


COLMAP = DataSet(
    name="colmap",
    title="a project of COLMAP, text or binary",
    home="",
    licences=(Licence(text="unknown"),),
    layout=LAYOUT,
    reader=read_colmap,
    metric=False,
    depth_tolerance=0.05,
    notes="radial and OpenCV distortion is taken out, fisheye models are refused; depth at the sparse points' pixels; "
    "COLMAP's unit; times by the images' order, 30 a second",
)
