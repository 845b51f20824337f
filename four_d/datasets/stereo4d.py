"""Stereo4D: films of stereo cameras, with cameras and 3D tracks; its own script makes the perspective videos.

Facts: Stereo4d/stereo4d-code at commit 0fee5dd: README.md, rectify.py, utils.py (`load_dataset_npz`),
track_optimization.py. Poses are world_from_camera of the left eye's rectified video with OpenCV's axes; times are
microseconds; a track has positions at some of the times, NaN at the others.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from four_d.datasets import decode, files
from four_d.datasets.facts import DataSet, Licence
from four_d.datasets.sequence import PerFrame, Sequence, WorldTracks
from four_d.errors import UserError
from four_d.ordering import in_order
from four_d.types import Cameras
from four_d.video.footage import footage

LAYOUT = (
    "npz/VID.npz [timestamps, camera2world, track_lengths, track_indices, track_coordinates] and "
    "processed/VID/VID-left_rectified.mp4, which the set's rectify.py makes of the film"
)
FIELD = 60.0
"""Horizontal field of view in degrees of the videos that rectify.py makes unless it is told otherwise."""
MICROSECONDS = 1e6


def read_stereo4d(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List every clip whose rectified video is there."""
    annotated = {path.stem: path for path in in_order(files.folder(root / "npz", LAYOUT).glob("*.npz"))}
    videos = {name: root / "processed" / name / f"{name}-left_rectified.mp4" for name in annotated}
    there = [name for name, video in videos.items() if video.is_file()]
    if not there:
        raise files.missing(root / "processed" / "VID" / "VID-left_rectified.mp4", LAYOUT)
    return [_clip(name, annotated[name], videos[name]) for name in files.chosen(there, only)]


def _clip(name: str, anno: Path, video: Path) -> Sequence:
    stamps = decode.npz(anno, ["timestamps"])["timestamps"].astype(np.float64).ravel() / MICROSECONDS
    if not len(stamps) or (np.diff(stamps) <= 0).any():
        raise UserError(f"{anno}: timestamps are not in ascending order; download it again")
    times = tuple((stamps - stamps[0]).tolist())
    return Sequence(
        name=name,
        frames=len(times),
        times=times,
        images=PerFrame(_images, [(video, frame) for frame in range(len(times))]),
        cameras=partial(_cameras, anno, video, len(times)),
        listing=(anno,),
        world_tracks=partial(_tracks, anno, times),
    )


def _images(items: list[tuple[Path, int]]) -> NDArray[np.uint8]:
    """Decode frames of a video, in the order that is asked for."""
    video, frames = items[0][0], [frame for _, frame in items]
    wanted = sorted(set(frames))
    found = list(footage(video, silent=True).frames(wanted))
    if len(found) < len(wanted):
        raise UserError(f"{video} has fewer frames than its annotations; make it again")
    place = {frame: at for at, frame in enumerate(wanted)}
    return np.stack([found[place[frame]] for frame in frames])


def _cameras(anno: Path, video: Path, frames: int) -> Cameras:
    """Read the poses; pixels are square, and the principal point is the video's middle."""
    stored = decode.npz(anno, ["camera2world"])["camera2world"].astype(np.float64)
    if stored.shape != (frames, 3, 4):
        raise UserError(f"{anno}: camera2world is {stored.shape}, not {frames} × 3 × 4; download it again")
    poses = np.tile(np.eye(4), (frames, 1, 1))
    poses[:, :3] = stored
    height, width = _images([(video, 0)]).shape[1:3]
    focal = width / 2 / np.tan(np.radians(FIELD) / 2)
    return files.cameras(poses, files.pinhole(focal, focal, width / 2, height / 2, centre_origin=False))


def _tracks(anno: Path, times: tuple[float, ...]) -> WorldTracks:
    """Read tracks, whose positions at several times lie one after the other; they are known where they are seen."""
    names = ["track_lengths", "track_indices", "track_coordinates"]
    stored = decode.npz(anno, names)
    lengths, at = (stored[name].astype(np.int64).ravel() for name in names[:2])
    coordinates = stored["track_coordinates"].astype(np.float64)
    sound = (lengths >= 0).all() and int(lengths.sum()) == len(at) and coordinates.shape == (len(at), 3)
    if not sound or (len(at) and not (at.min() >= 0 and at.max() < len(times))):
        shapes = f"{lengths.sum()} positions by track_lengths, {len(at)} indices, coordinates {coordinates.shape}"
        raise UserError(f"{anno}: its tracks do not fit together ({shapes}); download it again")
    points = np.full((len(lengths), len(times), 3), np.nan)
    points[np.repeat(np.arange(len(lengths)), lengths), at] = coordinates
    known = np.asarray(np.isfinite(points).all(-1))
    return WorldTracks(points=np.where(known[..., None], points, 0), known=known, visible=known.copy(), times=times)


STEREO4D = DataSet(
    name="stereo4d",
    title="Stereo4D, left eye",
    home="stereo4d.github.io; films from the web, made perspective by the set's rectify.py",
    licences=(Licence(text="annotations CC BY 4.0; films: their owners' terms"),),
    layout=LAYOUT,
    reader=read_stereo4d,
    notes="metres by an assumed 63 mm between the eyes; videos of 60 degrees, as rectify.py makes them; no depth",
)
