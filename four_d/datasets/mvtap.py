"""Multi-view tracking sets in MV-TAP's forms: its Kubric scenes, and Harmony4D with tracks of fitted bodies.

Facts: cvlab-kaist/MV-TAP at commit f5c2e70, data/kubric_{train,eval}.py, data/harmony4d.py and
scripts/sample_harmony_views.py. Neither set was at hand. That pixels count from the corner is an assumption: nothing
that was read says it. Tracks that do not fit their own cameras are refused, so other mistakes would be noticed.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from four_d.datasets import decode, files
from four_d.datasets.facts import DataSet, Licence
from four_d.datasets.kubric import KUBRIC_LICENCES
from four_d.datasets.pickled import read_npy_dictionary
from four_d.datasets.sequence import Sequence, WorldTracks
from four_d.errors import UserError
from four_d.ordering import in_order
from four_d.types import Cameras

Arrays = dict[str, NDArray[np.generic]]

KUBRIC_LAYOUT = (
    "[PART/]{frames/SEQ/VIEW/rgba_*.png,stacked_tracks/SEQ/tracks.npz|tracks.npy [coords, occluded, cam_rot, "
    "cam_trans, intrinsics]}"
)
HARMONY_LAYOUT = (
    "CATEGORY/SCENE/{cam01/{*.jpg,pinhole_K.npy},extrinsics.npy,rectified_tracks_from_smpl.npy [trajectory, "
    "trajectory_3d, visibility, flow_filter_masks]}"
)
RATE, HARMONY_RATE = 12.0, 30.0
"""Frames per second: MOVi's, and a nominal one, as the set's times are sampled and not stated."""
MEETS, FITS = 0.05, 1.0
"""Largest distance (pixels) between a point's projection and its stored pixel that counts as equal: of rendered scenes,
whose pixels are exact, and of filmed ones."""
UPSIDE = np.diag([1.0, -1, -1, 1])
"""camera_from_world of MV-TAP's Kubric has OpenGL's axes: this makes them OpenCV's, from the left."""


def read_mvtap_kubric(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List every scene of every part, all views of it, as ``PART/SEQ``."""
    files.folder(root, KUBRIC_LAYOUT)
    found = [path for depth in (0, 1) for path in in_order(root.glob("*/" * depth + "frames/*")) if path.is_dir()]
    places = {(path.parents[1] / path.name).relative_to(root).as_posix(): path for path in found}
    if not places:
        raise files.missing(root / "frames" / "SEQ", KUBRIC_LAYOUT)
    return [_kubric(name, places[name]) for name in files.chosen(places, only)]


def _kubric(name: str, directory: Path) -> Sequence:
    tracks = directory.parents[1] / "stacked_tracks" / directory.name / "tracks.npy"
    tracks = tracks if tracks.is_file() else files.file(tracks.with_suffix(".npz"), KUBRIC_LAYOUT)
    # not in natural order: the arrays' views are in that of sorted names
    views = sorted((path for path in directory.iterdir() if path.is_dir()), key=lambda path: path.name)
    images = [files.listed(view, "rgba_*.png", KUBRIC_LAYOUT, key=files.number) for view in views]
    if not images:
        raise files.missing(directory / "VIEW" / "rgba_*.png", KUBRIC_LAYOUT)
    count = len(images[0])
    for paths in images:
        files.same_length(images[0], paths)
    times = files.frame_times(count, RATE)
    return _rig(
        name,
        images,
        times,
        partial(_kubric_cameras, tracks, len(views), count),
        partial(_kubric_tracks, tracks, len(views), times),
    )


def _rig(
    name: str,
    images: list[list[Path]],
    times: tuple[float, ...],
    cameras: partial[Cameras],
    tracks: partial[WorldTracks],
) -> Sequence:
    """Sequence of synchronised cameras."""
    return Sequence(
        name=name,
        frames=len(times) * len(images),
        times=times * len(images),
        camera_ids=tuple(view for view in range(len(images)) for _ in times) if len(images) > 1 else None,
        images=files.image_loader([path for paths in images for path in paths]),
        cameras=cameras,
        world_tracks=tracks,
    )


def _kubric_arrays(path: Path, views: int, count: int) -> Arrays:
    """Arrays by name: pixels v n t 2, occlusion v n t, poses v t 4 4 (world_from_camera) and intrinsics v t 3 3."""
    keys = ("coords", "occluded", "cam_rot", "cam_trans", "intrinsics")
    stored = decode.npz(path, keys) if path.suffix == ".npz" else read_npy_dictionary(path, KUBRIC_LAYOUT)
    if missing := [key for key in keys if key not in stored]:
        raise UserError(f"{path} has no {', '.join(missing)}; expected layout: {KUBRIC_LAYOUT}")
    poses = np.tile(np.eye(4), (views, count, 1, 1))
    try:
        points = stored["coords"].shape[1]
        poses[..., :3, :3] = stored["cam_rot"]
        poses[..., :3, 3] = stored["cam_trans"]
        return {
            "coords": stored["coords"].astype(np.float64).reshape(views, points, count, 2),
            "occluded": stored["occluded"].astype(bool).reshape(views, points, count),
            "intrinsics": stored["intrinsics"].astype(np.float64).reshape(views, count, 3, 3),
            "poses": np.linalg.inv(UPSIDE @ poses),
        }
    except (ValueError, IndexError, TypeError, np.linalg.LinAlgError) as error:
        raise UserError(
            f"{path} is not of {views} views of {count} frames ({error}); expected layout: {KUBRIC_LAYOUT}"
        ) from error


def _kubric_cameras(path: Path, views: int, count: int) -> Cameras:
    found = _kubric_arrays(path, views, count)
    return files.cameras(
        found["poses"].reshape(-1, 4, 4).astype(np.float64), found["intrinsics"].reshape(-1, 3, 3).astype(np.float64)
    )


def _kubric_tracks(path: Path, views: int, times: tuple[float, ...]) -> WorldTracks:
    """Triangulate the tracks, of which the files have the pixels in every view, hidden or not.

    A point is known where all views' rays meet: within `MEETS` pixels in each. UserError if most do not.
    """
    found = _kubric_arrays(path, views, len(times))
    pixels, poses = found["coords"].astype(np.float64), found["poses"].astype(np.float64)
    intrinsics = found["intrinsics"].astype(np.float64)
    points, off = _triangulated(pixels.transpose(0, 2, 1, 3), poses, intrinsics)
    if off.size and (off <= MEETS).mean() < 0.5:
        raise UserError(
            f"{path}: the pixels of its tracks do not fit its cameras (their rays pass each other by a median of "
            f"{np.nanmedian(off):.2f} pixels); expected layout: {KUBRIC_LAYOUT}"
        )
    known = np.asarray((off <= MEETS).T)
    seen = ~found["occluded"].astype(bool).all(0)
    return WorldTracks(
        points=np.where(known[..., None], points.transpose(1, 0, 2), 0), known=known, visible=seen & known, times=times
    )


def _triangulated(
    pixels: NDArray[np.float64], poses: NDArray[np.float64], intrinsics: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points t n 3 nearest to the rays of pixels v t n 2, and their largest distance to a pixel, t n (NaN: none)."""
    ahead = np.concatenate([pixels, np.ones((*pixels.shape[:-1], 1))], -1)
    rays = np.einsum("vtij,vtnj->vtni", poses[..., :3, :3] @ np.linalg.inv(intrinsics), ahead)
    rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    across = np.eye(3) - rays[..., :, None] * rays[..., None, :]
    total = across.sum(0)
    meet = np.linalg.cond(total) < 1e8
    right = np.einsum("vtnij,vtj->tni", across, poses[..., :3, 3])
    points = np.einsum("tnij,tnj->tni", np.linalg.inv(np.where(meet[..., None, None], total, np.eye(3))), right)
    off = np.linalg.norm(projected(points, poses, intrinsics) - pixels, axis=-1).max(0)
    return points, np.where(meet, off, np.nan)


def projected(
    points: NDArray[np.float64], poses: NDArray[np.float64], intrinsics: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Pixels v t n 2 of points t n 3, seen by cameras v t (world_from_camera 4 4, intrinsics 3 3)."""
    way = points - poses[..., None, :3, 3]
    local = np.einsum("vtij,vtni->vtnj", poses[..., :3, :3], way)
    seen = np.einsum("vtij,vtnj->vtni", intrinsics, local)
    with np.errstate(divide="ignore", invalid="ignore"):
        return seen[..., :2] / seen[..., 2:]


def read_harmony4d(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List every scene, all cameras of it, as ``CATEGORY/SCENE``."""
    files.folder(root, HARMONY_LAYOUT)
    paths = in_order(root.glob("*/*/rectified_tracks_from_smpl.npy"))
    places = {path.parent.relative_to(root).as_posix(): path.parent for path in paths}
    if not places:
        raise files.missing(root / "CATEGORY" / "SCENE" / "rectified_tracks_from_smpl.npy", HARMONY_LAYOUT)
    return [_harmony(name, places[name]) for name in files.chosen(places, only)]


def _harmony(name: str, directory: Path) -> Sequence:
    folders = sorted((path for path in directory.glob("cam*") if path.is_dir()), key=files.number)
    images = [files.listed(folder, "*.jpg", HARMONY_LAYOUT, key=files.number) for folder in folders]
    lenses = [files.file(folder / "pinhole_K.npy", HARMONY_LAYOUT) for folder in folders]
    if not folders:
        raise files.missing(directory / "cam01", HARMONY_LAYOUT)
    # a few scenes have one image more than positions, so the last ones of either are left out
    tracks, poses = (
        directory / "rectified_tracks_from_smpl.npy",
        files.file(directory / "extrinsics.npy", HARMONY_LAYOUT),
    )
    count = min(_harmony_arrays(tracks, len(folders))["trajectory_3d"].shape[0], *(len(paths) for paths in images))
    times = files.frame_times(count, HARMONY_RATE)
    cameras = partial(_harmony_cameras, poses, lenses, count)
    return _rig(
        name,
        [paths[:count] for paths in images],
        times,
        cameras,
        partial(_harmony_tracks, tracks, poses, lenses, times),
    )


def _harmony_arrays(path: Path, views: int) -> Arrays:
    stored = read_npy_dictionary(path, HARMONY_LAYOUT)
    keys = ("trajectory", "trajectory_3d", "visibility", "flow_filter_masks")
    if missing := [key for key in keys if key not in stored]:
        raise UserError(f"{path} has no {', '.join(missing)}; expected layout: {HARMONY_LAYOUT}")
    times, points = (*stored["trajectory_3d"].shape, 0, 0)[:2]
    shapes = {
        "trajectory": (views, times, points, 2),
        "trajectory_3d": (times, points, 3),
        "visibility": (views, times, points),
        "flow_filter_masks": (views, points),
    }
    for key, shape in shapes.items():
        if stored[key].shape != shape:
            raise UserError(f"{path}: {key} is {stored[key].shape}, not {shape}; expected layout: {HARMONY_LAYOUT}")
    return stored


def _harmony_lenses(poses: Path, lenses: list[Path], count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """world_from_camera v t 4 4 and intrinsics v t 3 3 of cameras that stand still."""
    stored = decode.mapped_npy(poses, (len(lenses), 4, 4), "f").astype(np.float64)
    k = np.stack([decode.mapped_npy(path, (3, 3), "f").astype(np.float64) for path in lenses])
    return tuple(each[:, None].repeat(count, 1) for each in (files.inverted(stored), k))  # pyright: ignore[reportReturnType]


def _harmony_cameras(poses: Path, lenses: list[Path], count: int) -> Cameras:
    found, k = _harmony_lenses(poses, lenses, count)
    return files.cameras(found.reshape(-1, 4, 4), k.reshape(-1, 3, 3))


def _harmony_tracks(path: Path, poses: Path, lenses: list[Path], times: tuple[float, ...]) -> WorldTracks:
    """Read positions in the world; a point is seen by views whose pixels of it pass MV-TAP's filter.

    UserError if the positions do not fall onto the stored pixels.
    """
    stored, count = _harmony_arrays(path, len(lenses)), len(times)
    points = stored["trajectory_3d"][:count].astype(np.float64)
    seen = stored["visibility"][:, :count].astype(bool) & stored["flow_filter_masks"].astype(bool)[:, None]
    off = np.linalg.norm(
        projected(points, *_harmony_lenses(poses, lenses, count)) - stored["trajectory"][:, :count].astype(np.float64),
        axis=-1,
    )[seen]
    if off.size and not np.nanmedian(off) <= FITS:
        raise UserError(
            f"{path}: its positions do not fall onto its pixels (median {np.nanmedian(off):.1f} pixels off); expected "
            f"layout: {HARMONY_LAYOUT}"
        )
    known = np.asarray(np.isfinite(points).all(-1).T)
    return WorldTracks(
        points=np.where(known[..., None], points.transpose(1, 0, 2), 0),
        known=known,
        visible=seen.any(0).T & known,
        times=times,
    )


MVTAP_KUBRIC = DataSet(
    name="mvtap_kubric",
    title="MV-TAP's Kubric scenes of several views",
    home="github.com/cvlab-kaist/MV-TAP, data/kubric_train.py; no place to get them is stated",
    licences=KUBRIC_LICENCES,
    layout=KUBRIC_LAYOUT,
    reader=read_mvtap_kubric,
    notes="tracks are triangulated from the views' pixels, which are assumed to count from the corner; 12 frames a "
    "second are nominal",
)
HARMONY4D = DataSet(
    name="harmony4d",
    title="Harmony4D as MV-TAP prepares it, with tracks of fitted bodies",
    home="github.com/cvlab-kaist/MV-TAP, README; jyuntins.github.io/harmony4d",
    licences=(Licence(text="MIT", said_by="its hub card and repository"),),
    layout=HARMONY_LAYOUT,
    reader=read_harmony4d,
    metric=False,
    notes="pixels are assumed to count from the corner; unit and frame rate are not stated: not metric, 30 a second "
    "nominal",
)
