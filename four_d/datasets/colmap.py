"""COLMAP's projects: images with cameras, and depth where their points fall."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from four_d.datasets import files, own
from four_d.datasets.facts import DataSet, Licence
from four_d.datasets.sequence import Sequence
from four_d.errors import UserError
from four_d.formats.colmap import NAMES, Camera, Reconstruction, View, model_folder, other_models, read_model
from four_d.ordering import natural

LOGGER = logging.getLogger(__name__)

LAYOUT = "sparse/0/{cameras,images,points3D}.{bin,txt} (or sparse/, colmap/sparse/0/, or beside the images) and images/"
UNDISTORTED = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV")
"""Models whose distortion is the first of OpenCV's k1 k2 p1 p2 k3 k4 k5 k6; the others cannot be undistorted here."""

ABOVE = 3
"""Folders above a model that is given by itself in which its images are looked for: ``dense/0/sparse``, at most."""


def read_colmap(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List a project as one sequence, in the order of the images' names, or each of its folders that is one.

    Images in folders that mostly hold the same names are of synchronised cameras, one per folder.
    """
    projects = {root.name: root} if model_folder(root) is not None else {}
    projects = projects or {path.name: path for path in sorted(root.iterdir()) if path.is_dir() and model_folder(path)}
    if not projects:
        raise files.missing(root / "sparse" / "0" / "cameras.bin", LAYOUT)
    return [_project(projects[name], name) for name in files.chosen(projects, only)]


def _project(root: Path, name: str) -> Sequence:
    folder = model_folder(root)
    assert folder is not None
    if others := other_models(folder):
        listed = ", ".join(path.name for path in others[:3]) + (" …" if len(others) > 3 else "")
        LOGGER.warning(
            f"{folder} is one of {len(others) + 1} models of these images, and the only one that is read; the others "
            f"({listed}) can be given themselves, each as a project"
        )
    model = read_model(folder)
    images = _image_folder(root, folder, model)
    views = sorted(model.views, key=lambda view: [natural(part) for part in PurePosixPath(view.name).parts])
    there = {view.name for view in views if (images / view.name).is_file()}
    if not there:
        example = f", such as {views[0].name}" if views else ""
        raise UserError(f"{images} has none of the {len(views)} images of {folder}{example}; put them there")
    if len(there) < len(views):
        LOGGER.warning(f"{images}: {len(views) - len(there)} of {len(views)} images are missing and left out")
    cameras = _cameras([view.name for view in views], images)
    times = _times(views, cameras)
    sizes = own.sizes_by({view.camera: images / view.name for view in views if view.name in there})
    lenses = {
        identity: _lens(model.cameras[identity], size, f"{folder}: camera {identity}")
        for identity, size in sizes.items()
    }
    shots = [
        own.Shot(
            image=images / view.name,
            camera=camera,
            time=time,
            size=sizes[view.camera],
            lens=lenses[view.camera],
            world_from_camera=view.world_from_camera,
            points=_points(model, view),
        )
        for view, camera, time in zip(views, cameras, times, strict=True)
        if view.name in there
    ]
    listing = tuple(path for part in NAMES for kind in ("bin", "txt") if (path := folder / f"{part}.{kind}").is_file())
    return replace(own.sequence(name, shots), listing=listing)


def _image_folder(root: Path, folder: Path, model: Reconstruction) -> Path:
    """Folder that has most of a model's images: ``images``, or the folder itself, at the model or above, up to root.

    Where the model itself was given, as ``sparse/1``, its project's folders count too.
    """
    inside = [folder, *folder.parents]
    above = inside[: inside.index(root) + 1]
    if root == folder:
        above += folder.absolute().parents[:ABOVE]
    places = [place for base in above for place in (base / "images", base)]
    return max(places, key=lambda place: sum((place / view.name).is_file() for view in model.views))


def _cameras(names: list[str], images: Path) -> list[str]:
    """Camera of each image: its folder if most images have one of the same name in another folder; else all are of one.

    What was decided is logged where there are several folders.
    """
    paths = [PurePosixPath(name) for name in names]
    folders = sorted({str(path.parent) for path in paths}, key=natural)
    if len(folders) == 1:
        return [""] * len(names)
    held = Counter(stem for _, stem in {(path.parent, path.stem) for path in paths})
    shared = sum(held[path.stem] > 1 for path in paths)
    rig = shared >= own.SHARED * len(paths)
    told = "are taken for synchronised cameras" if rig else "are taken for images of one moving camera"
    LOGGER.warning(
        f"{images}: {len(folders)} folders ({', '.join(folders[:3])}{' …' if len(folders) > 3 else ''}) {told}: "
        f"{shared} of {len(paths)} images have one of the same name in another"
    )
    return [str(path.parent) if rig else "" for path in paths]


def _times(views: list[View], cameras: list[str]) -> list[float]:
    """Seconds of each image by `own.timeline`; those of one name are of one moment where cameras are several."""
    if len(set(cameras)) == 1:
        return [at / own.RATE for at in own.timeline([str(PurePosixPath(view.name).with_suffix("")) for view in views])]
    stems = [PurePosixPath(view.name).stem for view in views]
    listed = sorted(set(stems), key=natural)
    order = dict(zip(listed, own.timeline(listed), strict=True))
    return [order[stem] / own.RATE for stem in stems]


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
