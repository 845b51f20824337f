"""The files of a result: cameras, depth, masks, points, tracks, Gaussians and pictures."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from four_d.formats import splats
from four_d.formats.cameras import CameraTable, write_cameras, write_colmap
from four_d.formats.clouds import PointCloud, write_ply
from four_d.formats.depth import write_depth
from four_d.formats.splats import write_gltf
from four_d.formats.tracks import write_tracks
from four_d.inference.mask import write_masks
from four_d.inference.novel_views import write_novel_views
from four_d.inference.result import Result
from four_d.inference.segments import write_segments
from four_d.types import Cameras

COLMAP_POINTS = 50_000


def write(result: Result, folder: Path, *, static_points: bool = False) -> None:
    """Write what the model gives: ``cameras.json``, ``colmap/``, ``depth/``, ``mask/``, ``points.ply``,
    ``tracks.npz``, Gaussians, ``prediction.npz``; see `infer`.
    """
    cloud = result.cloud(static=static_points)
    if result.prediction.dynamic is not None:
        write_masks(folder / "mask", result.prediction.dynamic.numpy())
    if result.depth is not None:
        write_depth(folder / "depth", result.depth.numpy(), result.unit)
    if cloud is not None:
        write_ply(folder / "points.ply", cloud)
    if result.prediction.cameras is not None:
        write_poses(result, cloud, folder)
        write_pictures(result, frame_names(len(result.times), result.camera_ids), folder)
    if (table := result.track_table) is not None:
        write_tracks(folder / "tracks.npz", table)
    if result.gaussians:
        write_gaussians(result, folder)
    np.savez_compressed(folder / "prediction.npz", **arrays(result))  # pyright: ignore[reportArgumentType]


def write_gaussians(result: Result, folder: Path) -> None:
    """``gaussians.glb``, which moves, or of several segments a folder ``gaussians`` of them; ``gaussians.ply``, the
    first time's, and a video along a path round the first camera, if it is known.
    """
    segments = result.gaussians
    if len(segments) == 1:
        write_gltf(folder / "gaussians.glb", segments[0].gaussians)
    else:
        write_segments(folder / "gaussians", segments)
    splats.write_ply(folder / "gaussians.ply", segments[0].gaussians, result.times[0])
    cameras = result.prediction.cameras
    if cameras is None:
        return
    if importlib.util.find_spec("av") is None:
        print("no novel_views.mp4: writing video takes PyAV; pip install 'four_d[video]'", file=sys.stderr)
    else:
        shown = Cameras(world_from_camera=cameras.world_from_camera.float(), intrinsics=cameras.intrinsics.float())
        write_novel_views(folder / "novel_views.mp4", segments, shown, torch.tensor(result.times), result.fit.model)


def write_poses(result: Result, cloud: PointCloud | None, folder: Path) -> None:
    """Cameras as JSON, and two COLMAP projects, which splatting tools open as they are with the pictures."""
    cameras, names = result.prediction.cameras, frame_names(len(result.times), result.camera_ids)
    assert cameras is not None
    table = CameraTable(
        times=result.times,
        images=names,
        model=cameras,
        model_size=result.fit.model,
        original=result.fit.original_cameras(cameras),
        original_size=result.fit.original,
        unit=result.unit,
        camera_ids=None if result.camera_ids is None else list(result.camera_ids),
    )
    write_cameras(folder / "cameras.json", table)
    few = None if cloud is None else cloud.thin(COLMAP_POINTS)
    for name, chosen, size in (
        ("model", table.model, table.model_size),
        ("original", table.original, table.original_size),
    ):
        write_colmap(folder / "colmap" / name / "sparse" / "0", chosen, size, names, few)


def write_pictures(result: Result, names: Sequence[str], folder: Path) -> None:
    """The images of both COLMAP projects under these names."""
    seen = (result.images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    for project, pictures in (("model", seen), ("original", result.frames)):
        for image, picture in zip(names, pictures, strict=True):
            file = folder / "colmap" / project / "images" / image
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(file, compress_level=3)


def frame_names(count: int, camera_ids: Sequence[int] | None) -> list[str]:
    """Of the frames' pictures: by number; of several cameras in a folder each, by the number of the time."""
    if camera_ids is None:
        return [f"{i:06d}.png" for i in range(count)]
    cameras = max(camera_ids) + 1
    return [f"camera{camera}/{i // cameras:06d}.png" for i, camera in enumerate(camera_ids)]


def arrays(result: Result) -> dict[str, NDArray[np.generic]]:
    """What ``prediction.npz`` holds; fields that the model does not give are absent."""
    prediction, cameras = result.prediction, result.prediction.cameras
    tensors = {
        "depth": prediction.depth,
        "depth_confidence": prediction.depth_confidence,
        "points": prediction.points,
        "points_confidence": prediction.points_confidence,
        "dynamic": prediction.dynamic,
        "pixel_tracks": result.pixel_tracks,
        "pixel_tracks_visible": prediction.pixel_tracks_visible,
        "pixel_tracks_confidence": prediction.pixel_tracks_confidence,
        "world_from_camera": None if cameras is None else cameras.world_from_camera,
        "intrinsics": None if cameras is None else cameras.intrinsics,
        "intrinsics_original": None if cameras is None else result.fit.to_original(cameras.intrinsics),
    }
    arrays: dict[str, NDArray[np.generic]] = {k: v.float().numpy() for k, v in tensors.items() if v is not None}
    return {**arrays, "times": np.array(result.times)}
