"""Multi-view sets in the forms that MVTracker evaluates on: Panoptic Studio and DexYCB, static synchronised cameras.

Facts: ethz-vlg/mvtracker at commit ceea8ad, mvtracker/datasets/{panoptic_studio,dexycb}_multiview_dataset.py. Cameras
are camera_from_world with OpenCV's axes, one for each view; tracks are positions in the world, in metres.
"""

from __future__ import annotations

from collections.abc import Sequence as Several
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from four_d.datasets import decode, files
from four_d.datasets.facts import DataSet, Licence
from four_d.datasets.sequence import Depth, PerFrame, Sequence, WorldTracks
from four_d.errors import UserError
from four_d.ordering import in_order
from four_d.types import Cameras

RATE = 30.0
PANOPTIC_LAYOUT = (
    "SEQ/{ims/CAM/*.jpg,dynamic3dgs_depth/depths_00.npy,tapvid3d_annotations.npz [trajectories, per_view_visibilities, "
    "query_points_3d, intrinsics, extrinsics]}"
)
DEXYCB_LAYOUT = (
    "SEQ/{view_00/{rgb/*.jpg,depth/*.png,intrinsics_extrinsics.npz [intrinsics, extrinsics]},tracks_3d.npz [tracks_3d, "
    "tracks_2d_visibilities]}"
)


def read_panoptic(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List every sequence with annotations, all views of it."""
    paths = in_order(files.folder(root, PANOPTIC_LAYOUT).glob("*/tapvid3d_annotations.npz"))
    places = {path.parent.name: path.parent for path in paths}
    if not places:
        raise files.missing(root / "SEQ" / "tapvid3d_annotations.npz", PANOPTIC_LAYOUT)
    return [panoptic(name, places[name]) for name in files.chosen(places, only)]


def panoptic(name: str, directory: Path, views: list[int] | None = None) -> Sequence:
    """Sequence as seen by the views of these numbers; None: by all that are there."""
    anno, ims = directory / "tapvid3d_annotations.npz", files.folder(directory / "ims", PANOPTIC_LAYOUT)
    if views is None:
        views = [files.number(path) for path in in_order(path for path in ims.iterdir() if path.is_dir())]
    folders = [ims / str(view) for view in views]
    maps = [files.file(directory / "dynamic3dgs_depth" / f"depths_{view:02d}.npy", PANOPTIC_LAYOUT) for view in views]
    images = [_images(folder, PANOPTIC_LAYOUT) for folder in folders]
    count = _common(images)
    times = files.frame_times(count, RATE)
    return Sequence(
        name=name,
        frames=count * len(views),
        times=times * len(views),
        camera_ids=_ids(len(views), count),
        images=files.image_loader([path for paths in images for path in paths]),
        cameras=partial(_panoptic_cameras, anno, views, count),
        depth=PerFrame(_stored_depth, [(path, at, count) for path in maps for at in range(count)]),
        world_tracks=partial(_panoptic_tracks, anno, views, times),
    )


def read_dexycb(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List every sequence with tracks, all views of it."""
    paths = in_order(files.folder(root, DEXYCB_LAYOUT).glob("*/tracks_3d.npz"))
    places = {path.parent.name: path.parent for path in paths if next(path.parent.glob("view_*"), None) is not None}
    if not places:
        raise files.missing(root / "SEQ" / "tracks_3d.npz", DEXYCB_LAYOUT)
    return [dexycb(name, places[name]) for name in files.chosen(places, only)]


def dexycb(name: str, directory: Path, count_of_views: int | None = None) -> Sequence:
    """Sequence as seen by its first views; None: by all of them."""
    folders = in_order(path for path in directory.glob("view_*") if path.is_dir())[:count_of_views]
    images = [_images(folder / "rgb", DEXYCB_LAYOUT) for folder in folders]
    maps = [files.listed(folder / "depth", "*.png", DEXYCB_LAYOUT) for folder in folders]
    count = _common(images)
    for paths, own in zip(images, maps, strict=True):
        files.same_length(paths, own)
    times = files.frame_times(count, RATE)
    lenses = [files.file(folder / "intrinsics_extrinsics.npz", DEXYCB_LAYOUT) for folder in folders]
    return Sequence(
        name=name,
        frames=count * len(folders),
        times=times * len(folders),
        camera_ids=_ids(len(folders), count),
        images=files.image_loader([path for paths in images for path in paths]),
        cameras=partial(_dexycb_cameras, lenses, count),
        depth=files.depth_loader([path for own in maps for path in own], files.millimetres()),
        world_tracks=partial(_dexycb_tracks, directory / "tracks_3d.npz", len(folders), times),
    )


def _images(folder: Path, layout: str) -> list[Path]:
    found = [path for path in files.listed(folder, "*", layout) if files.is_image(path)]
    if not found:
        raise files.missing(folder / "*.jpg", layout)
    return found


def _common(images: list[list[Path]]) -> int:
    """Number of frames of each view, which must be one."""
    for paths in images:
        files.same_length(images[0], paths)
    return len(images[0])


def _ids(views: int, count: int) -> tuple[int, ...] | None:
    return tuple(view for view in range(views) for _ in range(count)) if views > 1 else None


def _panoptic_cameras(anno: Path, views: list[int], count: int) -> Cameras:
    """Read the views' cameras; intrinsics are those of a renderer, which count from the corner."""
    stored = decode.npz(anno, ["intrinsics", "extrinsics"])
    return _repeated(
        anno, _chosen(anno, stored["intrinsics"], views), _chosen(anno, stored["extrinsics"], views), count
    )


def _dexycb_cameras(paths: list[Path], count: int) -> Cameras:
    """Read a file for each view; RealSense's intrinsics count from pixel centres."""
    stored = [decode.npz(path, ["intrinsics", "extrinsics"]) for path in paths]
    lenses = [each["intrinsics"][:3, :3].astype(np.float64) + files.HALF_PIXEL for each in stored]
    return _repeated(paths[0], lenses, [each["extrinsics"] for each in stored], count)


def _repeated(
    path: Path, intrinsics: Several[NDArray[np.generic]], extrinsics: Several[NDArray[np.generic]], count: int
) -> Cameras:
    """Cameras that stand still: each one's ``count`` frames, camera by camera."""
    poses = np.tile(np.eye(4), (len(extrinsics), 1, 1))
    for pose, stored, k in zip(poses, extrinsics, intrinsics, strict=True):
        if stored.shape not in ((3, 4), (4, 4)) or k.shape != (3, 3):
            raise UserError(
                f"{path}: intrinsics are {k.shape} and extrinsics {stored.shape} a view, not 3 × 3 and 3 × 4"
            )
        pose[:3] = stored[:3].astype(np.float64)
    lenses = np.stack([k.astype(np.float64) for k in intrinsics])
    return files.cameras(files.inverted(poses).repeat(count, axis=0), lenses.repeat(count, axis=0))


def _chosen(path: Path, values: NDArray[np.generic], views: list[int]) -> list[NDArray[np.generic]]:
    """Rows of the views of an array that has one for every camera."""
    if max(views) >= len(values):
        raise UserError(f"{path} is of {len(values)} cameras, and ims has one numbered {max(views)}; unpack it again")
    return [values[view] for view in views]


def _stored_depth(items: list[tuple[Path, int, int]]) -> Depth:
    """Read frames of files that each hold a whole view, t h w, in metres."""
    values: list[NDArray[np.float32]] = []
    stored: tuple[Path, NDArray[np.generic]] | None = None
    for path, at, count in items:
        if stored is None or stored[0] != path:
            stored = path, decode.mapped_npy(path, (count, None, None), "fiu")
        values.append(np.asarray(stored[1][at], np.float32))
    depth = np.stack(values)
    valid = np.isfinite(depth) & (depth > 0)
    return np.where(valid, depth, 0).astype(np.float32), valid


def _panoptic_tracks(anno: Path, views: list[int], times: tuple[float, ...]) -> WorldTracks:
    """Read tracks; a point counts as seen from the time of its query on, as MVTracker has it."""
    stored = decode.npz(anno, ["trajectories", "per_view_visibilities", "query_points_3d"])
    seen = np.asarray(np.stack(_chosen(anno, stored["per_view_visibilities"], views)).astype(bool).any(0))
    tracks = _tracks(anno, stored["trajectories"], seen, times)
    start = np.rint(stored["query_points_3d"][:, 0].astype(np.float64))
    if start.shape != (len(tracks.points),):
        raise UserError(f"{anno}: query_points_3d are {len(start)}, trajectories {len(tracks.points)}; unpack it again")
    asked = np.arange(len(times)) >= start[:, None]
    return WorldTracks(points=tracks.points, known=tracks.known, visible=tracks.visible & asked, times=times)


def _dexycb_tracks(path: Path, views: int, times: tuple[float, ...]) -> WorldTracks:
    stored = decode.npz(path, ["tracks_3d", "tracks_2d_visibilities"])
    if len(stored["tracks_2d_visibilities"]) != views:
        raise UserError(
            f"{path} is of {len(stored['tracks_2d_visibilities'])} views, and {views} are there; unpack all"
        )
    seen = np.asarray(stored["tracks_2d_visibilities"].astype(bool).any(0))
    return _tracks(path, stored["tracks_3d"], seen, times)


def _tracks(path: Path, points: NDArray[np.generic], seen: NDArray[np.bool_], times: tuple[float, ...]) -> WorldTracks:
    """Tracks of positions t n 3, NaN where unknown, and whether any view sees them, t n."""
    if points.shape != (*seen.shape, 3) or len(points) != len(times):
        raise UserError(f"{path}: positions are {points.shape}, visibility {seen.shape}, images {len(times)} a view")
    places = points.astype(np.float64).transpose(1, 0, 2)
    known = np.asarray(np.isfinite(places).all(-1))
    return WorldTracks(points=np.where(known[..., None], places, 0), known=known, visible=seen.T & known, times=times)


PANOPTIC = DataSet(
    name="panoptic",
    title="Panoptic Studio in MVTracker's form",
    home="github.com/ethz-vlg/mvtracker: panoptic-multiview.tar.gz; domedb.perception.cs.cmu.edu",
    licences=(Licence(text="not checked, see the set's own page"),),
    layout=PANOPTIC_LAYOUT,
    reader=read_panoptic,
    depth_tolerance=0.05,
    notes="depth is that of fitted Gaussians (Dynamic 3DGS), not of a sensor; 30 frames a second are nominal",
)
DEXYCB = DataSet(
    name="dexycb",
    title="DexYCB in MVTracker's form",
    home="github.com/ethz-vlg/mvtracker, scripts/dex_ycb_to_neus_format.py; dex-ycb.github.io",
    licences=(
        Licence(text="not checked", said_by="we: see the set's own page"),
        Licence(text="CC BY-NC 4.0", said_by="those who publish parts of it (MANUS-DexYCB)"),
    ),
    layout=DEXYCB_LAYOUT,
    reader=read_dexycb,
    depth_tolerance=0.05,
    notes="depth is that of the sensors; 30 frames a second are nominal",
)
