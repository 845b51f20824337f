"""Kubric's own files: scenes of one view (its workers' output) or of several (MV-Kubric), with tracks if there are."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import roma
import torch
from numpy.typing import NDArray
from PIL import Image

from four_d.datasets import decode, files
from four_d.datasets.facts import DataSet, Licence
from four_d.datasets.sequence import Depth, PerFrame, Sequence, WorldTracks
from four_d.errors import UserError
from four_d.ordering import in_order
from four_d.types import Cameras

LAYOUT = (
    "SCENE/view_0/{rgba_00000.png,depth_00000.tiff,metadata.json[,tracks_2d.npz]}[, SCENE/tracks_3d.npz], or a scene "
    "of one view without view_0"
)
KUBRIC_LICENCES = (
    Licence(text="none stated of the rendered sets", said_by="the repository, whose code is Apache-2.0"),
    Licence(text="CC BY-SA 4.0", said_by="the repository of its objects, KuBasic and Google Scanned Objects"),
)
"""From docs/source/X_assets.rst and kubric/scripts/download_GSO.py at commit 0ee21e2; no page states one of MOVi."""
FARTHEST = 1000.0
"""Largest valid depth (m)."""
RATE = 12.0
"""Frames per second where metadata.json has none: MOVi's."""
Json = dict[str, object]


def read_kubric(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List ``root`` if it is a scene, else every folder below that is one."""
    files.folder(root, LAYOUT)
    places = {root.name: root} if _views(root) else {}
    places = places or {path.name: path for path in in_order(root.iterdir()) if path.is_dir() and _views(path)}
    if not places:
        raise files.missing(root / "SCENE" / "view_0" / "metadata.json", LAYOUT)
    return [scene(name, places[name], _views(places[name])) for name in files.chosen(places, only)]


def _views(directory: Path) -> list[Path]:
    """Folders of a scene's views."""
    if (directory / "metadata.json").is_file() and next(directory.glob("rgba_*.png"), None) is not None:
        return [directory]
    return [path.parent for path in in_order(directory.glob("view_*/metadata.json"))]


def scene(name: str, directory: Path, views: list[Path]) -> Sequence:
    """Scene as seen by some of its views, whose folders are given."""
    images = [files.listed(view, "rgba_*.png", LAYOUT, key=files.number) for view in views]
    count = len(images[0])
    for paths in images:
        files.same_length(images[0], paths)
    metadata = [decode.json_object(view / "metadata.json", "render it again") for view in views]
    rate = float(cast(float, _inner(metadata[0], "metadata").get("frame_rate", RATE)))
    size = decode.image_size(images[0][0])
    cameras = [_cameras(view, content, count, size) for view, content in zip(views, metadata)]
    maps = [
        (files.file(path.with_name(f"depth_{path.stem[5:]}.tiff"), LAYOUT), camera.intrinsics[0].numpy())
        for paths, camera in zip(images, cameras)
        for path in paths
    ]
    times = files.frame_times(count, rate)
    tracks = directory / "tracks_3d.npz"
    seen = [view / "tracks_2d.npz" for view in views]
    return Sequence(
        name=name,
        frames=count * len(views),
        times=times * len(views),
        camera_ids=tuple(camera for camera in range(len(views)) for _ in range(count)) if len(views) > 1 else None,
        images=files.image_loader([path for paths in images for path in paths]),
        cameras=partial(_joined, cameras),
        depth=PerFrame(_depths, maps),
        listing=tuple(view / "metadata.json" for view in views),
        world_tracks=partial(_tracks, tracks, seen, times) if tracks.is_file() else None,
    )


def _inner(content: Json, name: str) -> Json:
    value = content.get(name)
    return cast(Json, value) if isinstance(value, dict) else {}


def _cameras(view: Path, content: Json, frames: int, size: tuple[int, int]) -> Cameras:
    """Read a view's cameras: positions and quaternions (w x y z) with Blender's axes, K in image widths and heights."""
    camera = _inner(content, "camera")
    try:
        positions = np.array(camera["positions"], np.float64).reshape(-1, 3)
        turns = np.array(camera["quaternions"], np.float64).reshape(-1, 4)
        if "K" in camera:
            normalised = np.array(camera["K"], np.float64).reshape(3, 3) @ files.OPENGL[:3, :3]
        else:
            focal = float(cast(float, camera["focal_length"])) / float(cast(float, camera["sensor_width"]))
            normalised = np.array([[focal, 0, 0.5], [0, focal * size[1] / size[0], 0.5], [0, 0, 1]])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{view / 'metadata.json'} has no readable camera ({error}); render it again") from error
    if len(positions) != frames or len(turns) != frames:
        raise UserError(f"{view / 'metadata.json'} has {len(positions)} camera positions for {frames} images")
    return files.cameras(poses_of(positions, turns), np.diag([size[1], size[0], 1.0]) @ normalised)


def poses_of(positions: NDArray[np.float64], quaternions: NDArray[np.float64]) -> NDArray[np.float64]:
    """world_from_camera f 4 4 with OpenCV's axes, of Blender's cameras: positions f 3 and quaternions f 4 (w x y z)."""
    turns = torch.from_numpy(quaternions / np.linalg.norm(quaternions, axis=-1, keepdims=True))
    poses = np.tile(np.eye(4), (len(positions), 1, 1))
    poses[:, :3, :3] = roma.unitquat_to_rotmat(roma.quat_wxyz_to_xyzw(turns)).numpy()
    poses[:, :3, 3] = positions
    return poses @ files.OPENGL


def _joined(cameras: list[Cameras]) -> Cameras:
    poses, intrinsics = (
        torch.cat([getattr(each, name) for each in cameras]).numpy() for name in ("world_from_camera", "intrinsics")
    )
    return files.cameras(poses, intrinsics)


def _depths(items: list[tuple[Path, NDArray[np.float64]]]) -> Depth:
    """Read distances to the camera's centre, and convert them to z-depth."""
    values = np.stack([_z_depth(path, k) for path, k in items])
    valid = np.isfinite(values) & (values > 0) & (values < FARTHEST)
    return np.where(valid, values, 0).astype(np.float32), valid


def _distance(path: Path) -> NDArray[np.float64]:
    try:
        with Image.open(path) as opened:
            values = np.array(opened, np.float64)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is not a readable TIFF of floats ({error}); render it again") from error
    if values.ndim != 2:
        raise UserError(f"{path} holds {values.shape}, not one distance a pixel; render it again")
    return values


def _z_depth(path: Path, k: NDArray[np.float64]) -> NDArray[np.float64]:
    distance = _distance(path)
    return distance / stretch(distance.shape[0], distance.shape[1], k)


def stretch(height: int, width: int, k: NDArray[np.float64], at: float = 0.5) -> NDArray[np.float64]:
    """Distance over z-depth of each pixel (h w) of a camera (3 3): the length of its ray at depth 1.

    ``at`` is the place in the pixel, from its corner, that the ray goes through.
    """
    y, x = np.mgrid[:height, :width] + at
    return np.sqrt(((x - k[0, 2]) / k[0, 0]) ** 2 + ((y - k[1, 2]) / k[1, 1]) ** 2 + 1)


def _tracks(path: Path, flat: list[Path], times: tuple[float, ...]) -> WorldTracks:
    """Read tracks_3d, t n 3 in the world; a point is visible if a view's tracks_2d does not call it occluded."""
    points = decode.npz(path, ["tracks_3d"])["tracks_3d"].astype(np.float64)
    if points.ndim != 3 or points.shape[2] != 3 or len(points) != len(times):
        raise UserError(f"{path}: tracks_3d is {points.shape}, not {len(times)} × n × 3; render it again")
    points = points.transpose(1, 0, 2)
    known = np.asarray(np.isfinite(points).all(-1))
    seen = np.zeros(known.shape, bool)
    for view in flat:
        occluded = decode.npz(files.file(view, LAYOUT), ["occlusion"])["occlusion"].astype(bool)
        shaped = occluded if occluded.shape == known.shape else occluded.T
        if shaped.shape != known.shape:
            raise UserError(f"{view}: occlusion is {occluded.shape}, for points {known.shape}")
        seen |= ~shaped
    return WorldTracks(points=np.where(known[..., None], points, 0), known=known, visible=seen & known, times=times)


KUBRIC = DataSet(
    name="kubric",
    title="scenes of Kubric, of one view or of several (MV-Kubric)",
    home="github.com/google-research/kubric; MV-Kubric: github.com/ethz-vlg/mvtracker",
    licences=KUBRIC_LICENCES,
    layout=LAYOUT,
    reader=read_kubric,
    notes="distances to the camera become z-depth; 1000 m and beyond are invalid",
)
