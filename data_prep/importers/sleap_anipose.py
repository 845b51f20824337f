"""Import of sessions in sleap-anipose's layout: synchronised videos of several views, SLEAP's tracks in each, the
triangulated points and Anipose's calibration.
"""

from __future__ import annotations

import logging
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import roma
import torch
from numpy.typing import NDArray

from data_prep.importers.frames import CLIP_FRAMES, Reel, cut, finite, inside, shrink
from data_prep.importers.vocabulary import Vocabulary, canonical
from data_prep.importers.writing import Origin, Planned, digest, write_clips
from four_d import geometry
from four_d.data.contract import ClipInfo, KeypointArrays, KeypointInfo, ObjectInfo, RawClip
from four_d.data.manifest import Manifest
from four_d.data.skeletons import LEAST_PIXEL_LIMIT, PIXEL_LIMIT
from four_d.datasets import decode
from four_d.datasets.lens import Lens
from four_d.errors import UserError
from four_d.keypoints import check_skeleton, knn_edges
from four_d.types import Cameras
from four_d.video.footage import VIDEO_SUFFIXES

LOGGER = logging.getLogger("four_d.data_prep")  # not __name__: users silence, and the program shows, "four_d"

Unit = Literal["m", "cm", "mm"]
METRES: Mapping[Unit, float] = {"m": 1.0, "cm": 0.01, "mm": 0.001}
CALIBRATION = "calibration.toml"
POINTS = "points3d.h5"
NAME_LENGTH = 24
"""Characters of a session's and of a view's name in keys."""
_KEY = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Choices of an import of sessions."""

    unit: Unit | None = None
    """Unit of the calibration's board and so of all positions; None: unknown, and the clips are not metric."""
    views: tuple[str, ...] = ()
    """Views to take, by their names in the calibration; none: all."""
    long_side: int | None = None
    """Longer side of the stored images in pixels; None: as they are."""
    clip_frames: int = CLIP_FRAMES
    """Most times of a clip."""
    name: str = "sleap-anipose"
    """Name of the source in the manifest."""
    licence: str = "unknown"


@dataclass(frozen=True, kw_only=True)
class _Tracks:
    """One view's analysis file of SLEAP: a animals, n nodes."""

    path: Path
    nodes: tuple[str, ...]
    animals: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    pixels: NDArray[np.float64]
    """f a n 2, OpenCV's and SLEAP's pixels; NaN where missing."""


@dataclass(kw_only=True)
class _View:
    """One view with its files."""

    name: str
    tracks: _Tracks
    reel: Reel
    size: tuple[int, int]
    lens: Lens
    world_from_camera: NDArray[np.float64]
    pixels: NDArray[np.float64]
    """f a n 2, undistorted, corner origin; NaN where missing."""
    fault: str | None = None
    """Reason why the calibration is not to be trusted; None if it is."""
    error: float = 0.0
    """Median distance of tracked pixels from the projected points."""


@dataclass(frozen=True, kw_only=True)
class _Session:
    """One session, read but for its frames."""

    name: str
    settings: Settings
    nodes: tuple[str, ...]
    animals: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    points: NDArray[np.float64]
    """f a n 3, source units; NaN where missing."""
    views: list[_View] = field(default_factory=list[_View])
    origin: Origin


def import_sleap_anipose(
    sessions: Sequence[Path], out: Path, settings: Settings | None = None, *, clips_per_shard: int = 16
) -> Manifest:
    """Write sessions as shards in ``out``: rigs of synchronised views with cameras, pixels and positions.

    A session is a folder with ``calibration.toml``, ``points3d.h5`` and, for each view of the calibration, a folder of
    its name with one ``*.analysis.h5`` and one video, or both beside the calibration, their names beginning with the
    view's. Frames are matched by their numbers. Images and pixels are undistorted. A pixel that no track has is that
    of the projected point, and not visible.

    A view whose tracks are farther from the projected points than `skeletons.PIXEL_LIMIT` of its longer side (median)
    becomes a clip of its own, as it is: without cameras, positions or undistortion. A view without files is left out.
    Both are said.

    Args:
        sessions: folders.
        out: folder of the shards.
        settings: choices.
        clips_per_shard: clips of each shard but the last.

    Raises:
        UserError: without the extra `hdf5`; a missing or unreadable file; files that disagree about nodes, animals,
            frames or image sizes; no view that reprojects; what `write_clips` refuses.

    """
    settings = settings or Settings()
    vocabulary = Vocabulary()
    plans: list[Planned] = []
    for folder in sessions:
        session = _read(folder, settings)
        _count(session, vocabulary)
        plans += _plans(session)
    return write_clips(out, plans, vocabulary, name=settings.name, clips_per_shard=clips_per_shard)


def _read(folder: Path, settings: Settings) -> _Session:
    """Read a session and judge its views."""
    entries = _calibration(folder / CALIBRATION)
    if unknown := [name for name in settings.views if name not in entries]:
        raise UserError(f"{folder / CALIBRATION} has no view {unknown[0]!r}; it has {', '.join(entries)}")
    chosen = {name: entry for name, entry in entries.items() if name in settings.views or not settings.views}
    found: dict[str, tuple[Path, Path]] = {}
    for name in chosen:
        files = _files(folder, name)
        if files is None:
            LOGGER.warning(f"{folder}: {name} is in {CALIBRATION} and has neither tracks nor video: it is left out")
        else:
            found[name] = files
    if not found:
        raise UserError(f"{folder} has no tracks (VIEW/*.analysis.h5) and videos of the views {', '.join(chosen)}")
    tracks = {name: _tracks(files[0]) for name, files in found.items()}
    first = next(iter(tracks.values()))
    for each in tracks.values():
        _require_alike(first, each)
    points = _points(folder / POINTS, first)
    views = [_view(name, tracks[name], found[name][1], chosen[name], folder / CALIBRATION) for name in found]
    for view in views:
        _judge(view, points)
    _tell(folder, views, chosen)
    used = [folder / CALIBRATION, folder / POINTS, *(path for files in found.values() for path in files)]
    session = folder.resolve().name
    options = {"unit": settings.unit, "views": list(found), "long_side": settings.long_side}
    more = {"clip_frames": settings.clip_frames, "name": settings.name, "licence": settings.licence}
    files = {f"{session}/{path.relative_to(folder).as_posix()}": digest(path) for path in used}
    return _Session(
        name=session,
        settings=settings,
        nodes=first.nodes,
        animals=first.animals,
        edges=first.edges or _nearest(points),
        points=points,
        views=views,
        origin=Origin(name="four-d data import sleap-anipose", files=files, settings={**options, **more}),
    )


def _calibration(path: Path) -> dict[str, dict[str, Any]]:
    """Cameras of Anipose's calibration by name."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; a session of sleap-anipose has one") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} is not TOML ({error}); give Anipose's calibration") from error
    tables = [
        cast(dict[str, Any], value) for value in content.values() if isinstance(value, dict) and "matrix" in value
    ]
    entries = {str(table.get("name")): table for table in tables}
    if not tables or len(entries) < len(tables):
        raise UserError(f"{path} names no cameras, or two alike; give Anipose's calibration, with a name for each")
    return entries


def _files(folder: Path, view: str) -> tuple[Path, Path] | None:
    """Analysis file and video of a view; None if it has neither. UserError for one of the two, or several."""
    own = folder / view
    if own.is_dir():
        inside = sorted(path for path in own.iterdir() if path.is_file())
        tables = [path for path in inside if path.name.endswith("analysis.h5")]
        tables = tables or [path for path in inside if path.suffix == ".h5"]
    else:
        named = re.compile(rf"{re.escape(view)}(?![A-Za-z0-9])")
        beside = sorted(folder.iterdir()) if folder.is_dir() else []
        inside = [path for path in beside if path.is_file() and named.match(path.name)]
        tables = [path for path in inside if path.suffix == ".h5"]
    videos = [path for path in inside if path.suffix.lower() in VIDEO_SUFFIXES]
    if not tables and not videos:
        return None
    for what, files in (("analysis file of tracks", tables), ("video", videos)):
        if len(files) != 1:
            listed = ", ".join(path.name for path in files) or "none"
            raise UserError(
                f"{folder}: view {view} needs one {what} and has {listed}; leave one there, or say other --views"
            )
    return tables[0], videos[0]


def _array(path: Path, file: Any, name: str) -> NDArray[Any]:  # noqa: ANN401
    try:
        return np.asarray(file[name][()])
    except (KeyError, OSError, AttributeError) as error:
        raise UserError(
            f"{path} has no readable array {name!r}; export it again from SLEAP or sleap-anipose"
        ) from error


def _texts(values: NDArray[Any]) -> tuple[str, ...]:
    return tuple(each.decode() if isinstance(each, bytes) else str(each) for each in values.tolist())


def _tracks(path: Path) -> _Tracks:
    with decode.hdf5(path, "a session of sleap-anipose has one") as file:
        nodes, tracks = _texts(_array(path, file, "node_names")), _array(path, file, "tracks")
        edges = _array(path, file, "edge_inds") if "edge_inds" in file else np.zeros((0, 2), int)
        animals = _texts(_array(path, file, "track_names")) if "track_names" in file else ()
    if tracks.ndim != 4 or tracks.shape[1] != 2 or tracks.shape[2] != len(nodes) or tracks.dtype.kind != "f":
        raise UserError(
            f"{path}: tracks are {tracks.dtype} {tracks.shape}; an analysis file of SLEAP has floats "
            f"(animals, 2, {len(nodes)} nodes, frames)"
        )
    if edges.size and (edges.ndim != 2 or edges.shape[1] != 2):
        raise UserError(f"{path}: edge_inds are {edges.shape}, not (edges, 2); export it again from SLEAP")
    pairs = tuple((int(a), int(b)) for a, b in edges.reshape(-1, 2).tolist())
    names = [canonical(node) for node in nodes]
    try:
        check_skeleton(names, [1] * len(names), pairs, [False] * len(pairs))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    names_of = animals if len(animals) == len(tracks) else tuple(f"track_{index}" for index in range(len(tracks)))
    pixels = tracks.astype(np.float64).transpose(3, 0, 2, 1)
    pixels[~finite(pixels)] = np.nan
    return _Tracks(path=path, nodes=nodes, animals=names_of, edges=pairs, pixels=pixels)


def _require_alike(first: _Tracks, other: _Tracks) -> None:
    """Raise UserError for views of other nodes, or other numbers of animals or frames."""
    if first.nodes != other.nodes:
        raise UserError(f"{first.path} and {other.path} have other nodes, or another order; export both alike")
    for what, axis in (("animals", 1), ("frames", 0)):
        counts = first.pixels.shape[axis], other.pixels.shape[axis]
        if counts[0] != counts[1]:
            raise UserError(
                f"{first.path} has {counts[0]} {what} and {other.path} {counts[1]}; views of a session are matched by "
                "number, so export both with the same"
            )


def _points(path: Path, tracks: _Tracks) -> NDArray[np.float64]:
    with decode.hdf5(path, "a session of sleap-anipose has one") as file:
        points = _array(path, file, "tracks")
    wanted = (*tracks.pixels.shape[:3], 3)
    if points.shape != wanted or points.dtype.kind != "f":
        raise UserError(
            f"{path}: tracks are {points.dtype} {points.shape}, and the views' make floats {wanted} (frames, animals, "
            "nodes, xyz); triangulate all frames of the same tracks"
        )
    points = points.astype(np.float64)
    points[~finite(points)] = np.nan
    return points


def _view(name: str, tracks: _Tracks, video: Path, entry: Mapping[str, Any], calibration: Path) -> _View:
    what = f"{calibration}: {name}"
    if entry.get("fisheye"):
        raise UserError(f"{what} is a fisheye camera, which four_d does not read; undistort it first, or leave it out")
    try:
        lens = Lens.of(entry["matrix"], list(entry.get("distortions", ())), what)
        rotation = torch.tensor(entry["rotation"], dtype=torch.float64)
        translation = torch.tensor(entry["translation"], dtype=torch.float64)
        pose = geometry.make_pose(roma.rotvec_to_rotmat(rotation.reshape(3)), translation.reshape(3))
        said = tuple(int(side) for side in entry["size"]) if "size" in entry else None
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{what} lacks or breaks one of matrix, distortions, rotation, translation, size ({error})"
        ) from error
    reel = Reel(video)
    size = reel.size()
    if not bool(pose.isfinite().all()):
        raise UserError(f"{what} has a pose that is not finite; calibrate again, or leave it out with --views")
    if said is not None and said != size:
        raise UserError(f"{what} is calibrated for images of {said[0]} × {said[1]}, {video} has {size[0]} × {size[1]}")
    if len(reel.times) < len(tracks.pixels):
        raise UserError(f"{video} has {len(reel.times)} frames, its tracks {len(tracks.pixels)}; give the whole video")
    return _View(
        name=name,
        tracks=tracks,
        reel=reel,
        size=size,
        lens=lens,
        world_from_camera=geometry.invert_pose(pose).numpy(),
        pixels=lens.undistort(tracks.pixels),
    )


def _bound(view: _View) -> float:
    return max(PIXEL_LIMIT * max(view.size), LEAST_PIXEL_LIMIT)


def _project(view: _View, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Undistorted pixels (… 2) of points (… 3); NaN behind the camera."""
    cameras = Cameras(
        world_from_camera=torch.from_numpy(view.world_from_camera), intrinsics=torch.from_numpy(view.lens.intrinsics)
    )
    pixels, depth = geometry.project(torch.from_numpy(points.reshape(-1, 3)), cameras)
    pixels = torch.where((depth > 0)[:, None], pixels, torch.nan).numpy()
    return pixels.reshape(*points.shape[:-1], 2)


def _judge(view: _View, points: NDArray[np.float64]) -> None:
    """Compare the view's tracks with the projected points."""
    both = finite(view.pixels) & finite(points)
    if not both.any():
        view.fault = "none of its tracked points is triangulated, so that its calibration cannot be compared"
        return
    away = np.linalg.norm(_project(view, points)[both] - view.pixels[both], axis=-1)
    view.error = float(np.median(np.where(np.isfinite(away), away, np.inf)))
    if not view.error <= _bound(view):
        view.fault = (
            f"by its calibration the triangulated points are {view.error:.3g} pixels (median) from its tracks, more "
            f"than {_bound(view):.3g}"
        )


def _tell(folder: Path, views: Sequence[_View], entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Say which views are not trusted. UserError if none is, or the others are of several sizes."""
    sound = [view for view in views if view.fault is None]
    for view in views:
        same = [
            name
            for name, entry in entries.items()
            if name != view.name
            and all(entry.get(key) == entries[view.name].get(key) for key in ("rotation", "translation"))
        ]
        if view.fault is not None:
            copied = f" (its pose in {CALIBRATION} is that of {same[0]})" if same else ""
            view.fault += copied
            if sound:
                LOGGER.warning(
                    f"{folder}: {view.name} becomes a clip of its own, without cameras and positions: {view.fault}"
                )
    if not sound:
        raise UserError(
            f"{folder}: no view agrees with {POINTS}; it is of another calibration or session. {views[0].name}: "
            f"{views[0].fault}"
        )
    LOGGER.warning(
        f"{folder}: median distance of tracks from projected points in pixels, undistorted: "
        + ", ".join(f"{view.name} {view.error:.3g} (at most {_bound(view):.3g})" for view in sound)
    )
    if len({view.size for view in sound}) > 1:
        listed = ", ".join(f"{view.name} {view.size[0]} × {view.size[1]}" for view in sound)
        raise UserError(f"{folder}: views of one clip have one size, and these have several: {listed}; choose --views")


def _nearest(points: NDArray[np.float64]) -> tuple[tuple[int, int], ...]:
    """Bones between neighbours, by mean distances over frames and animals."""
    flat = torch.from_numpy(np.nan_to_num(points).reshape(-1, *points.shape[2:])).float()
    valid = torch.from_numpy(finite(points).reshape(-1, points.shape[2]))
    return tuple((int(a), int(b)) for a, b in knn_edges(flat, valid).tolist())


def _count(session: _Session, vocabulary: Vocabulary) -> None:
    for view in session.views:
        known = finite(view.tracks.pixels)
        for labelled in known[known.any(-1)].tolist():
            vocabulary.add(session.settings.name, session.nodes, labelled)


def _plans(session: _Session) -> list[Planned]:
    """Clips of the rig of all sound views, then of each other view."""
    sound = [view for view in session.views if view.fault is None]
    groups = [(sound, "")]
    groups += [
        ([view], f"{_KEY.sub('-', view.name)[:NAME_LENGTH]}-") for view in session.views if view.fault is not None
    ]
    stem = _KEY.sub("-", session.name)[:NAME_LENGTH]
    found: list[Planned] = []
    empty = 0
    for views, name in groups:
        for part in cut(len(session.points), session.settings.clip_frames, len(views)):
            own = [finite(view.pixels[part.start : part.stop]).any(2).any(0) for view in views]
            present = np.any(own, axis=0)
            if not present.any():
                empty += 1
                continue
            key = f"{stem}-{name}{part.start:06d}"
            make = partial(_clip, session, views, part, np.flatnonzero(present).tolist(), key)
            found.append(Planned(key=key, origin=session.origin, make=make))
    if empty:
        LOGGER.warning(f"{session.name}: {empty} clips in which nothing is tracked are left out")
    if not found:
        raise UserError(f"{session.name}: no view tracks anything")
    return found


def _clip(session: _Session, views: Sequence[_View], part: range, animals: Sequence[int], key: str) -> RawClip:
    """Read the frames of one clip: of a rig, or of a view alone whose calibration is not trusted."""
    settings, rows = session.settings, slice(part.start, part.stop)
    trusted = views[0].fault is None
    scale = METRES[settings.unit] if settings.unit else 1.0
    count, nodes = len(part), len(session.nodes)
    images: list[NDArray[np.uint8]] = []
    arrays: list[KeypointArrays] = []
    intrinsics: list[NDArray[np.float64]] = []
    poses: list[NDArray[np.float64]] = []
    points = session.points[rows][:, animals] if trusted else np.full((count, len(animals), nodes, 3), np.nan)
    for view in views:
        frames = view.reel.take(part)
        straight = view.lens.undistort_images(frames) if trusted else np.stack(frames)
        small, factors = shrink(straight, settings.long_side)
        images.append(small)
        tracked = (view.pixels if trusted else view.tracks.pixels + 0.5)[rows][:, animals]
        projected = _project(view, points)
        arrays.append(_keypoints(points * scale, tracked * factors, projected * factors, small.shape[2:0:-1]))
        matrix = view.lens.intrinsics * [[factors[0]], [factors[1]], [1.0]]
        pose = view.world_from_camera.copy()
        pose[:3, 3] *= scale
        intrinsics.append(np.broadcast_to(matrix, (count, 3, 3)))
        poses.append(np.broadcast_to(pose, (count, 4, 4)))
    times = np.array(views[0].reel.times)[rows]
    pictures = np.concatenate(images)
    edges = [(a + nodes * place, b + nodes * place) for place in range(len(animals)) for a, b in session.edges]
    info = ClipInfo(
        source=settings.name,
        licence=settings.licence,
        metric=settings.unit is not None,
        width=pictures.shape[2],
        height=pictures.shape[1],
        times=np.tile(times - times[0], len(views)).tolist(),
        camera_ids=np.repeat(np.arange(len(views)), count).tolist(),
        objects=[ObjectInfo(name="surroundings"), *(ObjectInfo(name=session.animals[index]) for index in animals)],
        keypoints=KeypointInfo(
            names=[canonical(node) for _ in animals for node in session.nodes],
            instances=[place + 1 for place in range(len(animals)) for _ in session.nodes],
            edges=edges,
            rigid=[False] * len(edges),
        ),
    )
    return RawClip(
        key=key,
        info=info,
        images=pictures,
        world_from_camera=np.concatenate(poses) if trusted else None,
        intrinsics=np.concatenate(intrinsics) if trusted else None,
        keypoints=KeypointArrays(
            **{name: np.concatenate([getattr(each, name) for each in arrays]) for name in vars(arrays[0])}
        ),
    )


def _keypoints(
    points: NDArray[np.float64], tracked: NDArray[np.float64], projected: NDArray[np.float64], size: Sequence[int]
) -> KeypointArrays:
    """Arrays of one view (f a n …), animals one after the other; projected pixels stand where there is no track."""
    seen, valid = finite(tracked), finite(points)
    pixels = np.where(seen[..., None], tracked, projected)
    known = finite(pixels)
    shape = (len(points), -1)
    return KeypointArrays(
        points=np.nan_to_num(points).astype(np.float32).reshape(*shape, 3),
        valid=valid.reshape(shape),
        pixels=np.where(known[..., None], pixels, 0).astype(np.float32).reshape(*shape, 2),
        pixels_valid=known.reshape(shape),
        visible=(seen & inside(pixels.astype(np.float32), size)).reshape(shape),
    )
