"""Plain folder of a user's own data: frames of one camera or several, and what is known of them."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from four_d.datasets import decode, files, own
from four_d.datasets.facts import DataSet, Licence
from four_d.datasets.sequence import Sequence, Task, WorldTracks
from four_d.errors import UserError
from four_d.metrics.pose import read_tum
from four_d.ordering import in_order
from four_d.video.footage import VIDEO_SUFFIXES, footage
from four_d.video.images import IMAGE_SUFFIXES, quiet, size_of

LOGGER = logging.getLogger(__name__)

LAYOUT = (
    "frames/ (or images/) with NAME.{png,jpg}, a folder or a video for each camera, and, each optional, "
    "depth/NAME.{png,npy} (z-depth; PNG of 16 bits in millimetres, or metres), masks/NAME.png (what moves), "
    "cameras.json (world_from_camera, OpenCV axes, metres; intrinsics 3 × 3, pixels from the top-left corner) or "
    "poses.txt (16 numbers a line, or 'time tx ty tz qx qy qz qw', one line per image) and intrinsics.txt, tracks.npz; "
    "or folders of such folders"
)
FRAMES = ("frames", "images")
CAMERAS = "cameras.json"
AS_WRITTEN = "write it as docs/data.md says"
Json = Mapping[str, object]
KNOWN = frozenset({"fps", "metric", "cameras", "frames"}) | {"format", "conventions", "unit", "size_model"}
"""Entries of cameras.json, those that `four-d infer` writes among them."""
OF_CAMERA = frozenset({"intrinsics", "distortion", "size", "world_from_camera"})
OF_FRAME = OF_CAMERA | {"image", "time"} | {"camera", "size_original", "intrinsics_original", "intrinsics_model"}


@dataclass(frozen=True, kw_only=True)
class _Known:
    """Content of cameras.json."""

    path: Path
    frames: Mapping[str, Json]
    """Image, as "left/000" → its entry."""
    cameras: Mapping[str, Json]
    """Camera → what holds of all its frames."""
    rate: float
    metric: bool

    def entry(self, name: str, camera: str) -> Json:
        """Values of an image, its own before those of its camera."""
        return {**self.cameras.get(camera, {}), **self.frames.get(name, {})}


def read_folder(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List ``root`` as one sequence if it has ``frames`` or ``images``, else each of its folders that has.

    A video, or a folder of nothing but images, is a sequence too, of which no more is known.
    """
    if root.is_file() or (root.is_dir() and _is_frames(root)):
        return [_sequence(root, root) for _ in files.chosen([root.stem], only)]
    files.folder(root, LAYOUT)
    places = [root] if _frames(root) else [path for path in in_order(root.iterdir()) if path.is_dir() and _frames(path)]
    if not places and any(_is_image(path) for path in _visible(root)):
        other = next(path.name for path in in_order(_visible(root)) if not _is_image(path))
        raise UserError(f"{root} has images beside something else ({other}); move the images to {root / 'images'}")
    if not places:
        raise files.missing(root / "images", LAYOUT)
    directories = {path.name: path for path in places}
    return [_sequence(directories[name], _frames(directories[name])) for name in files.chosen(directories, only)]


def _frames(directory: Path) -> Path | None:
    return next((directory / name for name in FRAMES if (directory / name).is_dir()), None)


def _is_frames(directory: Path) -> bool:
    """True if a folder holds images, and no other files or folders that a user put there."""
    inside = _visible(directory)
    return bool(inside) and all(_is_image(path) for path in inside)


def _visible(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if not quiet(path)]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()


def _sequence(directory: Path, frames: Path | None) -> Sequence:
    assert frames is not None
    known = _known(directory / CAMERAS)
    shots = _shots(frames, known)
    if known is not None:
        _check_names(known, shots, [_name(shot) for shot in shots])
    elif directory != frames:
        shots = _with_texts(directory, shots)
    if directory != frames:
        shots = _with_files(directory, frames, shots)
    tracks = directory / "tracks.npz"
    has_tracks = directory != frames and tracks.is_file()
    shots = own.turned(shots, has_tracks)
    moments = sorted({shot.time for shot in shots})
    times = tuple(time - moments[0] for time in moments)
    sequence = own.sequence(
        directory.stem if directory.is_file() else directory.name,
        shots,
        world_tracks=partial(_tracks, tracks, times, moments[0]) if has_tracks else None,
    )
    posed = sequence.cameras is not None and any(shot.world_from_camera is not None for shot in shots)
    metric = None if known is None else known.metric
    told = (directory / name for name in (CAMERAS, "poses.txt", "intrinsics.txt"))
    listing = tuple(path for path in told if path.is_file())
    return replace(sequence, tasks=_tasks(sequence, posed), metric=metric, listing=listing)


def _tasks(sequence: Sequence, posed: bool) -> tuple[Task, ...]:
    tasks: list[Task] = ["pose"] if posed else []
    if sequence.depth is not None:
        tasks.extend(("video_depth", "depth"))
    if posed and sequence.depth is not None:
        tasks.append("points")
    if sequence.masks is not None:
        tasks.append("mask")
    return tuple(tasks)


def _shots(frames: Path, known: _Known | None) -> list[own.Shot]:
    """List all images of all cameras, with what cameras.json says of them."""
    if frames.is_file():
        return _of_video("", frames, known)
    inside = in_order(_visible(frames))
    cameras = [path for path in inside if path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES]
    images = [path for path in inside if _is_image(path)]
    if images and cameras:
        raise UserError(f"{frames} has images and cameras ({cameras[0].name}); give each camera a folder")
    if images:
        return _of_images({"": own.pictures(frames)}, known)
    if not cameras:
        raise files.missing(frames / "*.png", LAYOUT)
    shots = [shot for path in cameras if path.is_file() for shot in _of_video(path.stem, path, known)]
    found = {path.name: own.pictures(path) for path in cameras if path.is_dir()}
    return shots + _of_images(found, known)


def _of_images(cameras: Mapping[str, list[Path]], known: _Known | None) -> list[own.Shot]:
    """Shots of each camera's image files. Those without a time in cameras.json get one by their numbers or names."""
    rate = own.RATE if known is None else known.rate
    shots: list[own.Shot] = []
    for camera, images in cameras.items():
        size, lenses = size_of(images[0], turn=False), dict[object, own.Lens]()
        listed = [own.Shot(image=path, camera=camera, size=size, time=math.nan) for path in images]
        shots += listed if known is None else [_with_entry(shot, known, _name(shot), lenses) for shot in listed]
    if not any(math.isnan(shot.time) for shot in shots):
        return shots
    places = own.moments({camera: [path.stem for path in images] for camera, images in cameras.items()}, CAMERAS)
    moments = [place / rate for camera in cameras for place in places[camera]]
    return [
        replace(shot, time=moment) if math.isnan(shot.time) else shot
        for shot, moment in zip(shots, moments, strict=True)
    ]


def _name(shot: own.Shot) -> str:
    """Name of an image in cameras.json: its file's, or its number in a video, after that of its camera."""
    own_name = _bare(shot.image.name) if shot.frame is None else str(shot.frame)
    return f"{shot.camera}/{own_name}" if shot.camera else own_name


def _of_video(camera: str, path: Path, known: _Known | None) -> list[own.Shot]:
    source = footage(path, silent=True)
    source.survey()
    height, width = next(iter(source.frames([0]))).shape[:2]
    lenses = dict[object, own.Lens]()
    shots = [
        own.Shot(image=path, frame=at, camera=camera, time=float(time), size=(height, width))
        for at, time in enumerate(source.times)
    ]
    return shots if known is None else [_with_entry(shot, known, _name(shot), lenses) for shot in shots]


def _with_entry(shot: own.Shot, known: _Known, name: str, lenses: dict[object, own.Lens]) -> own.Shot:
    """Add what cameras.json says of an image: time, pose, intrinsics and distortion."""
    what = f"{known.path}: {name}"
    try:
        entry = known.entry(name, shot.camera)
        time = float(cast(float, entry["time"])) if "time" in entry else shot.time
        if "time" in entry and not math.isfinite(time):
            raise ValueError(f"the time {time}")
        pose = entry.get("world_from_camera")
        given = None if pose is None else np.array(pose, np.float64).reshape(4, 4)
        matrix = entry.get("intrinsics", entry.get("intrinsics_original"))
        if matrix is None and given is not None:
            raise ValueError("a pose without intrinsics")
        if matrix is None:
            return replace(shot, time=time, world_from_camera=given)
        k = np.array(matrix, np.float64).reshape(3, 3)
        coefficients = [float(value) for value in cast(list[float], entry.get("distortion") or [])]
        size = cast(dict[str, int], entry.get("size") or entry.get("size_original") or {})
        calibrated = (int(size.get("height", shot.size[0])), int(size.get("width", shot.size[1])))
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{what} has a value that is no camera's ({error}); {AS_WRITTEN}") from error
    if given is not None and not np.isfinite(given).all():
        given = None
    lens = own.lens_of(k, coefficients, calibrated, shot.size, what)
    lens = lenses.setdefault((lens.matrix.tobytes(), lens.coefficients), lens)
    return replace(shot, time=time, world_from_camera=given, lens=lens)


def _known(path: Path) -> _Known | None:
    """Read cameras.json; None if it is not there."""
    if not path.is_file():
        return None
    content = decode.json_object(path, AS_WRITTEN)
    try:
        entries = cast(list[dict[str, object]], content.get("frames", []))
        names = [_bare(str(entry["image"])) for entry in entries]
        cameras = content.get("cameras", {})
        rate = float(cast(float, content.get("fps", own.RATE)))
        # files of four-d infer state a unit in words, which is never metres
        metric = content.get("metric", "unit" not in content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} lists no frames with an image ({error!r}); {AS_WRITTEN}") from error
    if not isinstance(cameras, dict) or not all(
        isinstance(each, dict) for each in cast(dict[str, object], cameras).values()
    ):
        raise UserError(f"{path}: cameras is not an object of one object for each camera; {AS_WRITTEN}")
    if not 0 < rate < math.inf:
        raise UserError(f"{path}: fps is {rate:g}; give frames per second above 0")
    if not isinstance(metric, bool):
        raise UserError(f"{path}: metric is {metric!r}; it is true or false")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{path} has {len(twice)} images twice, as {twice[0]!r}; keep one entry of each")
    cameras = cast(dict[str, Json], cameras)
    _refuse_unknown(path, content, KNOWN, "")
    for name, entry in (*zip(names, entries, strict=True), *cameras.items()):
        _refuse_unknown(path, entry, OF_FRAME if name in names else OF_CAMERA, f" of {name!r}")
    return _Known(path=path, frames=dict(zip(names, entries, strict=True)), cameras=cameras, rate=rate, metric=metric)


def _refuse_unknown(path: Path, content: Json, known: frozenset[str], where: str) -> None:
    """Raise UserError for entries that would be passed over in silence, as would a lens of another model."""
    for entry in content:
        if entry not in known:
            raise UserError(
                f"{path}: the entry {entry!r}{where} means nothing here; known are {', '.join(sorted(known))}"
            )


def _bare(name: str) -> str:
    """Name of an image without its suffix; other dots stay."""
    path = Path(name)
    return str(path.with_suffix("")) if path.suffix.lower() in IMAGE_SUFFIXES else str(path)


def _check_names(known: _Known, shots: list[own.Shot], names: list[str]) -> None:
    """Raise UserError for entries that are of no image, and for calibration of some images only: both would vanish."""
    strangers = [name for name in known.frames if name not in names]
    if strangers:
        raise UserError(
            f"{known.path} has {strangers[0]!r}, and there is no such image (one is {names[0]!r}); name each as the "
            "image is, with its camera's folder where there are several"
        )
    cameras = {shot.camera for shot in shots}
    if lost := sorted(known.cameras.keys() - cameras):
        raise UserError(f"{known.path} has a camera {lost[0]!r}; the cameras are {', '.join(sorted(cameras))}")
    lenses = [shot.lens is not None for shot in shots]
    if any(lenses) and not all(lenses):
        raise UserError(f"{known.path} has no intrinsics of {names[lenses.index(False)]!r}; give those of every image")


def _with_texts(directory: Path, shots: list[own.Shot]) -> list[own.Shot]:
    """Add poses.txt and intrinsics.txt, where they are, to the images of one camera. UserError for several."""
    poses, matrix = directory / "poses.txt", directory / "intrinsics.txt"
    if poses.is_file():
        files.file(matrix, LAYOUT)
    if not matrix.is_file():
        return shots
    cameras = sorted({shot.camera for shot in shots})
    if len(cameras) > 1:
        raise UserError(
            f"{matrix} is of one camera, and there are {len(cameras)} ({', '.join(cameras)}); write {CAMERAS}"
        )
    lens = own.lens_of(decode.matrix(matrix, 3, 3), (), shots[0].size, shots[0].size, str(matrix))
    shots = [replace(shot, lens=lens) for shot in shots]
    if not poses.is_file():
        return shots
    if _stamped(poses):
        times, stored = read_tum(poses)
        moments, values = times.tolist(), stored.numpy()
    else:
        values = decode.matrices(poses, 4, 4)
        moments = [shot.time for shot in shots]
    if len(values) != len(shots):
        raise UserError(
            f"{poses} has {len(values)} poses for {len(shots)} images; write one line for each, in their order"
        )
    known = np.asarray(np.isfinite(values).all((1, 2)))
    return [
        replace(shot, time=float(time), world_from_camera=pose if sure else None)
        for shot, time, pose, sure in zip(shots, moments, values, known, strict=True)
    ]


def _stamped(path: Path) -> bool:
    """True if a trajectory has lines of eight numbers."""
    lines = (
        line
        for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    )
    return len(next(lines, "").split()) == 8


def _with_files(directory: Path, frames: Path, shots: list[own.Shot]) -> list[own.Shot]:
    """Add depth and masks that are named as the images; masks must be there for all, depth for one at least."""
    depth = _matching(directory / "depth", frames, shots, (".png", ".npy"))
    masks = _matching(directory / "masks", frames, shots, (".png",))
    there = files.partly(directory / "depth", depth)
    if depth and not there:
        files.file(depth[0], LAYOUT)
    for path in masks:
        files.file(path, LAYOUT)
    if there:
        pairs = zip(shots, there, strict=True)
        shots = [replace(shot, depth=None if path == files.NO_FILE else path) for shot, path in pairs]
    if masks:
        shots = [replace(shot, mask=path) for shot, path in zip(shots, masks, strict=True)]
    return shots


def _matching(directory: Path, frames: Path, shots: list[own.Shot], kinds: tuple[str, ...]) -> list[Path]:
    """Files of a folder that are named as the images, whether there or not; none if there is no such folder."""
    if not directory.is_dir():
        return []
    there: dict[tuple[Path, str], Path] = {}
    for path in directory.rglob("*"):
        if path.suffix.lower() in kinds and not path.name.startswith("."):
            there[path.relative_to(directory).with_suffix(""), path.suffix.lower()] = path
    found: list[Path] = []
    for shot in shots:
        stem = shot.image.relative_to(frames).with_suffix("")
        stem = stem if shot.frame is None else stem / f"{shot.frame:06d}"
        options = [there[stem, kind] for kind in kinds if (stem, kind) in there]
        found.append(options[0] if options else directory / f"{stem}{kinds[0]}")
    if strangers := sorted(set(there.values()) - set(found)):
        LOGGER.warning(f"{directory}: {len(strangers)} files are of no image and passed over, as {strangers[0].name}")
    return found


def _tracks(path: Path, times: tuple[float, ...], start: float) -> WorldTracks:
    """Read tracks.npz: points n t 3 in the world, visible n t, and if they are there valid n t and times t.

    Its times are on the clock of the images', of which the first is at ``start``; without any they are the images' own.
    """
    arrays = decode.npz(path, ["points", "visible"], optional=["times", "valid"])
    points, visible = arrays["points"].astype(np.float64), arrays["visible"].astype(bool)
    moments = arrays["times"].astype(np.float64) - start if "times" in arrays else np.array(times)
    valid = arrays["valid"].astype(bool) if "valid" in arrays else np.ones(visible.shape, bool)
    if points.shape != (*visible.shape, 3) or visible.shape != valid.shape or visible.shape[1:] != moments.shape:
        shapes = f"points are {points.shape}, visible {visible.shape}, times {moments.shape}"
        raise UserError(f"{path}: {shapes}; give n × t × 3, n × t and t")
    known = valid & np.isfinite(points).all(-1)
    return WorldTracks(
        points=np.where(known[..., None], points, 0),
        known=known,
        visible=visible & known,
        times=tuple(moments.tolist()),
    )


FOLDER = DataSet(
    name="folder",
    title="a plain folder, or a video, of your own",
    home="",
    licences=(Licence(text="unknown"),),
    layout=LAYOUT,
    reader=read_folder,
    depth_tolerance=0.05,
    takes_files=True,
)
