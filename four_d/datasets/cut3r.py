"""Sets in the form that CUT3R's preparation scripts give them, on which a dozen projects train.

Family A: ``[SPLIT/]SCENE[/left]/{rgb/N.jpg, depth/N.npy, cam/N.npz}``, camera files with ``pose`` and ``intrinsics``.
Family B: ``SCENE…/N_{rgb.jpg, depth.npy, cam.npz}``, with ``camera_pose`` and ``camera_intrinsics``.
Family C (DUSt3R's exports): ``SCENE/FRAME_CAMERA.{jpg, exr, npz}``, with ``cam2world`` and ``intrinsics``.
Poses are world_from_camera with OpenCV's axes, in metres. The form has no tracks; raw sets have them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from four_d.datasets import decode, files
from four_d.datasets.exr import depth_exr
from four_d.datasets.facts import DataSet, Licence
from four_d.datasets.sequence import PerFrame, Sequence
from four_d.errors import UserError
from four_d.ordering import in_order
from four_d.types import Cameras

A_LAYOUT = "[SPLIT/]SCENE[/left]/{rgb/00000.{jpg,png},depth/00000.npy,cam/00000.npz [pose, intrinsics]}"
B_LAYOUT = "SCENE/…/00000_{rgb.{jpg,png},depth.{npy,png},cam.npz [camera_pose, camera_intrinsics]}"
C_LAYOUT = "SCENE/00000_1.{jpg,exr,npz [cam2world, intrinsics]} (frame and camera) and, if there, invalid_files.h5"
LAYOUTS = {"A": A_LAYOUT, "B": B_LAYOUT, "C": C_LAYOUT}
DEPTHS = 4
"""Most folders between the root and a scene's files."""
CENTIMETRES = 100.0
VKITTI2_FARTHEST = 655.0 - 1 / CENTIMETRES
"""Largest depth (m) of Virtual KITTI 2 that is no sky: CUT3R's own reader takes 655 m and more for it (vkitti2.py at
commit 8bc15dc); the raw set's sky is the last count, 655.35 m."""


@dataclass(frozen=True, kw_only=True)
class _Form:
    """Use of the form by one set."""

    family: Literal["A", "B", "C"]
    farthest: float | None = None
    """Largest valid depth (m), beyond which is sky; None: any."""
    posed: bool = True
    """False for a set whose poses are stand-ins."""
    centre_origin: bool = False
    """True if principal points count from pixel centres."""
    rate: float = 30.0
    """Frames per second."""

    def read(self, root: Path, only: tuple[str, ...] | None) -> list[Sequence]:
        """List the scenes under ``root`` by their paths."""
        places = dict(self._scenes(files.folder(root, self.layout)))
        if self.family == "C":
            return [self._export(name, paths) for name, paths in self._cameras_of(root, places, only).items()]
        if not places:
            raise files.missing(root / ("SCENE/rgb" if self.family == "A" else "SCENE/00000_rgb.png"), self.layout)
        return [self._sequence(name, places[name]) for name in files.chosen(places, only)]

    @property
    def layout(self) -> str:
        return LAYOUTS[self.family]

    def _scenes(self, root: Path, names: tuple[str, ...] = ()) -> Iterator[tuple[str, Path]]:
        """Walk down to the folders that hold frames, which are not walked further."""
        sign = {"A": "rgb", "B": "*_cam.npz", "C": "*_[0-9].npz"}[self.family]
        holds = next(root.glob(sign), None) is not None
        if holds:
            yield "/".join(names) or root.name, root
        elif len(names) < DEPTHS:
            for path in in_order(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
                yield from self._scenes(path, (*names, path.name))

    def _sequence(self, name: str, directory: Path) -> Sequence:
        if self.family == "A":
            images = [path for path in files.listed(directory / "rgb", "*", A_LAYOUT) if files.is_image(path)]
            maps = [directory / "depth" / f"{path.stem}.npy" for path in images]
            cams = [files.file(directory / "cam" / f"{path.stem}.npz", A_LAYOUT) for path in images]
        else:
            images = [path for path in files.listed(directory, "*_rgb.*", B_LAYOUT) if files.is_image(path)]
            stems = [path.name.removesuffix(f"_rgb{path.suffix}") for path in images]
            kind = "npy" if (directory / f"{stems[0]}_depth.npy").is_file() else "png"
            maps = [directory / f"{stem}_depth.{kind}" for stem in stems]
            cams = [files.file(directory / f"{stem}_cam.npz", B_LAYOUT) for stem in stems]
        maps = [files.file(path, self.layout) for path in maps]
        keys = ("pose", "intrinsics") if self.family == "A" else ("camera_pose", "camera_intrinsics")
        return Sequence(
            name=name,
            frames=len(images),
            times=files.frame_times(len(images), self.rate),
            images=files.image_loader(images),
            cameras=PerFrame(partial(self._cameras, keys=keys), cams),
            depth=files.depth_loader(maps, _depth, self.farthest),
        )

    def _cameras_of(self, root: Path, scenes: dict[str, Path], only: tuple[str, ...] | None) -> dict[str, list[Path]]:
        """Images of each camera of each scene, as ``SCENE/1``, without those that invalid_files.h5 names."""
        found: dict[str, list[Path]] = {}
        for name, directory in scenes.items():
            for path in in_order(directory.glob("*_[0-9].jpg")):
                found.setdefault(f"{name}/{path.stem[-1]}", []).append(path)
        if not found:
            raise files.missing(root / "SCENE" / "00000_1.jpg", C_LAYOUT)
        wrong = _invalid(root / "invalid_files.h5")
        kept = {
            name: [p for p in found[name] if (p.parent.name, p.stem) not in wrong] for name in files.chosen(found, only)
        }
        return {name: paths for name, paths in kept.items() if paths}

    def _export(self, name: str, images: list[Path]) -> Sequence:
        first = _frame(images[0])
        return Sequence(
            name=name,
            frames=len(images),
            times=tuple((_frame(path) - first) / self.rate for path in images),
            images=files.image_loader(images),
            cameras=PerFrame(
                partial(self._cameras, keys=("cam2world", "intrinsics")),
                [files.file(path.with_suffix(".npz"), C_LAYOUT) for path in images],
            ),
            depth=files.depth_loader(
                [files.file(path.with_suffix(".exr"), C_LAYOUT) for path in images], depth_exr, self.farthest
            ),
        )

    def _cameras(self, paths: list[Path], keys: tuple[str, str]) -> Cameras:
        stored = [_camera(path, keys) for path in paths]
        intrinsics = np.stack([k for _, k in stored])
        intrinsics[:, :2, 2] += 0.5 if self.centre_origin else 0.0
        poses = np.stack([pose for pose, _ in stored])
        return files.cameras(poses if self.posed else np.full_like(poses, np.nan), intrinsics)


def _frame(path: Path) -> int:
    """Number of the frame in FRAME_CAMERA."""
    digits = path.stem.rpartition("_")[0]
    if not digits.isdigit():
        raise UserError(f"{path} is not named FRAME_CAMERA; remove it or move it out of the folder")
    return int(digits)


def _invalid(path: Path) -> set[tuple[str, str]]:
    """Scenes and images of Waymo's invalid_files.h5, whose ``invalid_pairs`` are CAMERA_FRAME; none without it."""
    if not path.is_file():
        return set()
    with decode.hdf5(path) as content:
        try:
            pairs = [(scene, bytes(pair).decode()) for scene in content for pair in content[scene]["invalid_pairs"][:]]
        except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} has no readable invalid_pairs ({error}); unpack or download it again") from error
    return {(scene, f"{pair.partition('_')[2]}_{pair.partition('_')[0]}") for scene, pair in pairs}


def _depth(path: Path) -> NDArray[np.float32]:
    """Read depth in metres: of ``.npy`` as it is, of 16-bit PNG in centimetres."""
    return decode.depth_npy(path) if path.suffix == ".npy" else decode.depth_png(path, CENTIMETRES)


def _camera(path: Path, keys: tuple[str, str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read a camera file: pose 4 4 and intrinsics 3 3."""
    stored = decode.npz(path, keys)
    pose, intrinsics = (stored[key].astype(np.float64) for key in keys)
    if pose.shape != (4, 4) or intrinsics.shape != (3, 3):
        raise UserError(f"{path}: {keys[0]} is {pose.shape}, {keys[1]} {intrinsics.shape}, not 4 × 4 and 3 × 3")
    return pose, intrinsics


def _set(name: str, title: str, form: _Form, *licences: Licence, notes: str = "") -> DataSet:
    return DataSet(
        name=f"cut3r_{name}",
        title=f"{title}, as CUT3R prepares it",
        home="github.com/CUT3R/CUT3R, datasets_preprocess, from the raw set",
        licences=licences,
        layout=form.layout,
        reader=form.read,
        notes=notes,
    )


POINTODYSSEY_LICENCES = (
    Licence(text="CC BY-NC-SA 4.0", said_by="its page"),
    Licence(text="MIT", said_by="its hub card"),
)
TARTANAIR_LICENCES = (Licence(text="CC BY 4.0"),)
VKITTI2_LICENCES = (Licence(text="CC BY-NC-SA 3.0"),)
SPRING_LICENCES = (Licence(text="CC BY 4.0"),)
MVS_SYNTH_LICENCES = (
    Licence(text="other: terms of its own, not checked", said_by="its hub card"),
    Licence(text="non-commercial", said_by="MapAnything's list of its training data"),
)
HOI4D_LICENCES = (
    Licence(text="none stated of the data", said_by="its instructions' repository, whose code is MIT"),
    Licence(text="CC BY-NC 4.0", said_by="others' lists; its own page was not seen"),
)
CUT3R = DataSet(
    name="cut3r",
    title="your own scenes in the form of CUT3R's prepared sets (family A)",
    home="",
    licences=(Licence(text="unknown"),),
    layout=A_LAYOUT,
    reader=_Form(family="A").read,
    notes="30 frames a second are nominal; each camera of a scene is a sequence",
)
CUT3R_SETS = (
    CUT3R,
    _set("pointodyssey", "PointOdyssey", _Form(family="A", farthest=1000.0), *POINTODYSSEY_LICENCES),
    _set("dynamic_replica", "DynamicReplica, left eye", _Form(family="A"), Licence(text="CC BY-NC 4.0")),
    _set("spring", "Spring", _Form(family="A", rate=24.0), *SPRING_LICENCES),
    _set(
        "bedlam",
        "BEDLAM",
        _Form(family="A", farthest=200.0),
        Licence(text="non-commercial research, education and art (bedlam.is.tue.mpg.de/license.html)"),
    ),
    _set("mvs_synth", "MVS-Synth", _Form(family="A"), *MVS_SYNTH_LICENCES),
    _set(
        "hoi4d",
        "HOI4D",
        _Form(family="A", posed=False),
        *HOI4D_LICENCES,
        notes="intrinsics only: the poses in the files are stand-ins",
    ),
    _set("tartanair", "TartanAir", _Form(family="B", farthest=1000.0), *TARTANAIR_LICENCES),
    _set(
        "vkitti2",
        "Virtual KITTI 2",
        _Form(family="B", farthest=VKITTI2_FARTHEST, centre_origin=True, rate=10.0),
        *VKITTI2_LICENCES,
    ),
    _set(
        "waymo",
        "Waymo Open",
        _Form(family="C", centre_origin=True, rate=10.0),
        Licence(text="Waymo terms, non-commercial"),
        notes="sparse depth of the lidar; each camera is a sequence",
    ),
)
