"""Writing of a result's files: cameras, maps, keypoints, Gaussians and images."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from four_d import fields
from four_d.drawing import Drawing, Files, Map, draw_skeleton
from four_d.formats import splats
from four_d.formats.cameras import CameraTable, write_cameras, write_colmap
from four_d.formats.clouds import PointCloud
from four_d.formats.depth import write_depth
from four_d.formats.keypoints import FrameKeypoints, KeypointTable, write_keypoints
from four_d.formats.observations import Observations, observe
from four_d.formats.splats import write_gltf
from four_d.formats.videos import write_video
from four_d.geometry import invert_pose, transform
from four_d.inference.novel_views import write_novel_views
from four_d.inference.result import Result
from four_d.inference.segments import write_segments
from four_d.types import LIKELY, Cameras, Geometry
from four_d.video.fit import Fits

LOGGER = logging.getLogger(__name__)

COLMAP_POINTS = 50_000
SHORTEST = 1e-3
"""Minimum seconds between the frames of a video, where times do not advance."""
RESERVED = frozenset({"intrinsics", "world_from_camera", "intrinsics_original", "times"})
"""Arrays of ``prediction.npz`` that are made of other things than the prediction's field of that name."""


def write_gaussians(result: Result, folder: Path, *, novel_views: bool = True) -> None:
    """Write animated ``gaussians.glb`` (or a folder ``gaussians`` of several segments), ``gaussians.ply`` at the first
    time and, if ``novel_views`` is set, cameras are known and there are several times, ``novel_views.mp4``.
    """
    segments = result.gaussians
    if len(segments) == 1:
        write_gltf(folder / "gaussians.glb", segments[0].gaussians)
    else:
        write_segments(folder / "gaussians", segments)
    splats.write_ply(folder / "gaussians.ply", segments[0].gaussians, result.times[0])
    cameras = result.prediction.cameras
    if cameras is None or not novel_views or len(set(result.times)) == 1:
        return
    if importlib.util.find_spec("av") is None:
        LOGGER.warning("no novel_views.mp4: writing video takes PyAV; pip install 'four_d[video]'")
    else:
        shown = Cameras(world_from_camera=cameras.world_from_camera.float(), intrinsics=cameras.intrinsics.float())
        times, size = torch.tensor(result.times), result.fits.model
        write_novel_views(folder / "novel_views.mp4", segments, shown, times, size, device=result.device)


@runtime_checkable
class Maps(Protocol):
    """Mapping of the names of `arrays` to maps that are read one frame at a time."""

    def __contains__(self, name: str, /) -> bool: ...
    def __getitem__(self, name: str, /) -> NDArray[np.generic] | Sequence[NDArray[np.float32]]: ...


def write_poses(result: Result, cloud: PointCloud | None, maps: Maps, folder: Path) -> None:
    """Write cameras as JSON and as two COLMAP projects, which splatting tools open unchanged with the images."""
    cameras, names = result.cameras, frame_names(len(result.times), result.camera_ids)
    assert cameras is not None
    at_model = dataclasses.replace(cameras, intrinsics=result.fits.to_model(cameras.intrinsics.double()))
    table = CameraTable(
        times=result.times,
        images=names,
        model=at_model,
        model_size=result.fits.model,
        original=cameras,
        original_sizes=result.fits.originals,
        unit=result.unit,
        camera_ids=None if result.camera_ids is None else list(result.camera_ids),
    )
    write_cameras(folder / "cameras.json", table)
    few = None if cloud is None else cloud.thin(COLMAP_POINTS)
    seen = None if few is None else _seen(result, few, maps)
    original = None if seen is None else _in_original(seen, result.fits)
    for name, chosen, sizes, sightings in (
        ("model", table.model, [table.model_size] * len(names), seen),
        ("original", table.original, table.original_sizes, original),
    ):
        write_colmap(folder / "colmap" / name / "sparse" / "0", chosen, sizes, names, few, sightings)


def _seen(result: Result, cloud: PointCloud, maps: Maps) -> Observations:
    """Observations of the cloud in the frames, in model pixels; moving pixels by the user's mask or the model's."""
    cameras = result.prediction.cameras
    assert cameras is not None

    def depth(frame: int) -> Tensor:
        if "depth" in maps:
            return torch.from_numpy(maps["depth"][frame])
        camera_from_world = invert_pose(cameras.world_from_camera[frame].double())
        points = torch.from_numpy(maps["points"][frame]).double()
        return transform(camera_from_world, points.flatten(0, 1))[:, 2].unflatten(0, points.shape[:2])

    def moving(frame: int) -> Tensor:
        return torch.from_numpy(maps["dynamic"][frame]) > LIKELY if result.moving is None else result.moving[frame]

    known = result.moving is not None or "dynamic" in maps
    return observe(cloud, cameras, depth, times=result.times, moving=moving if known else None)


def _in_original(seen: Observations, fits: Fits) -> Observations:
    pixels = fits.points_to_original(torch.from_numpy(seen.pixels), torch.from_numpy(seen.frames))
    return dataclasses.replace(seen, pixels=pixels.numpy())


def write_pictures(result: Result, names: Sequence[str], folder: Path) -> None:
    """Write the images of both COLMAP projects under these names."""
    seen = (result.images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    for project, pictures in (("model", seen), ("original", result.frames)):
        for image, picture in zip(names, pictures, strict=True):
            file = folder / "colmap" / project / "images" / image
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(file, compress_level=3)


def write_skeletons(result: Result, names: Sequence[str], folder: Path) -> None:
    """Write the original frames with keypoints and bones drawn over them, as JPEG, under these names of PNGs."""
    pixels = result.keypoint_pixels
    if pixels is None:
        return
    sure = getattr(result.prediction, "keypoint_visible", None)
    visible = sure > LIKELY if isinstance(sure, Tensor) else torch.ones_like(pixels[..., 0], dtype=torch.bool)
    known = np.ones(pixels.shape[1], bool)
    for name, frame, places, seen in zip(names, result.frames, pixels.numpy(), visible.numpy(), strict=True):
        file = (folder / "keypoints" / name).with_suffix(".jpg")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_skeleton(frame, places, known, seen, result.keypoint_edges)).save(file, quality=90)


def write_keypoint_videos(times: Sequence[float], names: Sequence[str], folder: Path) -> None:
    """Write ``keypoints.mp4`` of the images of `write_skeletons`, at the pace of their times; none of a single one.

    Of several cameras each has its own, ``keypoints/camera0.mp4`` and so on.
    """
    cameras: dict[Path, list[tuple[float, Path]]] = {}
    for time, name in zip(times, names, strict=True):
        picture = (folder / "keypoints" / name).with_suffix(".jpg")
        cameras.setdefault(picture.parent, []).append((time, picture))
    if len(times) == len(cameras):
        return
    if importlib.util.find_spec("av") is None:
        LOGGER.warning("no keypoints.mp4: writing video takes PyAV; pip install 'four_d[video]'")
        return
    for pictures, shown in cameras.items():
        gap = float(np.median(np.diff([time for time, _ in shown])))
        write_video(pictures.with_suffix(".mp4"), (_picture(file) for _, file in shown), 1 / max(gap, SHORTEST))


def _picture(file: Path) -> NDArray[np.uint8]:
    with Image.open(file) as image:
        return np.asarray(image)


def write_keypoint_table(whole: Result, maps: Maps, folder: Path) -> None:
    """Write ``keypoints.json``, from the arrays of all frames (`arrays`)."""

    def of(name: str, frame: int) -> NDArray[np.floating] | None:
        return np.asarray(maps[name][frame]) if name in maps else None

    frames = [
        FrameKeypoints(
            time=time,
            camera=0 if whole.camera_ids is None else whole.camera_ids[frame],
            pixels=np.asarray(maps["keypoint_pixels"][frame]),
            depth=of("keypoint_depth", frame),
            points=of("keypoints", frame),
            visible=of("keypoint_visible", frame),
            confidence=of("keypoint_confidence", frame),
        )
        for frame, time in enumerate(whole.times)
    ]
    table = KeypointTable(
        names=whole.keypoint_names,
        instances=whole.keypoint_instances,
        edges=whole.keypoint_edges,
        unit=whole.unit,
        frames=frames,
    )
    write_keypoints(folder / "keypoints.json", table)


def frame_names(count: int, camera_ids: Sequence[int] | None) -> list[str]:
    """Image file names of the frames: by index; for several cameras, by time index in a folder per camera."""
    if camera_ids is None:
        return [f"{i:06d}.png" for i in range(count)]
    cameras = max(camera_ids) + 1
    return [f"camera{camera}/{i // cameras:06d}.png" for i, camera in enumerate(camera_ids)]


def arrays(result: Result) -> dict[str, NDArray[np.generic]]:
    """Arrays of ``prediction.npz``: all delivered fields but motion and Gaussians, which have files of their own.

    Fields that the model does not give are absent.
    """
    prediction, cameras, original = result.prediction, result.prediction.cameras, result.cameras
    rest = dataclasses.replace(fields.delivered(prediction), cameras=None, gaussians=None, key_frames=None)
    values = fields.arrays(dataclasses.replace(rest, motion=None, motion_visible=None))
    taken = {*values} & RESERVED
    if taken:
        raise ValueError(f"prediction.npz has another {min(taken)}; rename that field of {type(prediction).__name__}")
    if result.pixel_tracks is not None:
        values["pixel_tracks"] = result.pixel_tracks.float().numpy()
    if result.keypoint_pixels is not None:
        values["keypoint_pixels"] = result.keypoint_pixels.float().numpy()
    if original is not None and cameras is not None:
        values["intrinsics"] = cameras.intrinsics.float().numpy()
        # in double precision, so that given cameras are kept exactly
        values["world_from_camera"] = original.world_from_camera.double().numpy()
        values["intrinsics_original"] = original.intrinsics.double().numpy()
    return {**values, "times": np.array(result.times)}


def write_maps(
    folder: Path,
    leaf: fields.Leaf,
    drawing: Drawing,
    maps: Sequence[NDArray[np.float32]],
    scaled_by: Sequence[int],
    unit: str,
) -> None:
    """Write the maps of a field as images of all frames, in the form that its style says.

    Args:
        folder: created.
        leaf: declaration of the field.
        drawing: its drawing.
        maps: values of every frame.
        scaled_by: frames that set the scale of colours.
        unit: unit of lengths, in words.

    """
    if drawing.style.files is Files.COUNTS:
        write_depth(folder, maps, unit if leaf.geometry is Geometry.LENGTH else "its own")
        return
    folder.mkdir()
    scale = drawing.style.scale(np.stack([maps[index] for index in scaled_by]).astype(np.float32))
    for index, frame in enumerate(np.asarray(each, np.float32) for each in maps):
        picture = grey(frame) if drawing.style.files is Files.GREY else drawing.image(frame, scale)
        Image.fromarray(picture).save(folder / f"{index:06d}.png")


def grey(probability: Map) -> NDArray[np.uint8]:
    """Probabilities as 8-bit grey, 255 for 1."""
    return (probability * 255).round().clip(0, 255).astype(np.uint8)
