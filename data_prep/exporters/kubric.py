"""MV-Kubric's layout: a folder a view with images, distances and cameras, and tracks of the scene.

Facts: ethz-vlg/mvtracker at commit ceea8ad, mvtracker/datasets/kubric_multiview_dataset.py, whose reader compares
tracks with their projection in double precision. It converts distances by the sensor's width and the focal length,
which is exact where pixels are square and the principal point is the image's middle.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import roma
import torch
from numpy.typing import NDArray
from PIL import Image

from data_prep.exporters.views import (
    Settings,
    Unfit,
    ViewTracks,
    moments,
    require_cameras,
    require_depth,
    rows_by_camera,
    view_tracks,
)
from four_d.data.contract import RawClip
from four_d.datasets import files
from four_d.datasets.kubric import RATE, stretch

SENSOR = 32.0
"""Width of the sensor in millimetres, Kubric's own."""
SAME_LENS = 1e-6
"""Relative difference of intrinsics that count as constant."""
TOLD = 0.001
"""Relative error of MVTracker's z-depth above which it is mentioned."""
EVEN = 0.1
"""Share of an interval by which times may differ from even ones, which is all that one frame rate can say."""


def write_kubric(clip: RawClip, folder: Path, settings: Settings) -> list[str]:
    """Write a clip as a scene; returns remarks. Raises `Unfit` for a clip that the layout cannot hold."""
    poses, intrinsics = require_cameras(clip)
    depth, rate = require_depth(clip), _rate(moments(clip))
    rows = list(rows_by_camera(clip).values())
    for row in rows:
        if np.abs(intrinsics[row] - intrinsics[row[0]]).max() > SAME_LENS * intrinsics[row[0]].max():
            raise Unfit("a camera's intrinsics change, and the layout has one matrix a view")
    tracks = view_tracks(clip, depth, settings.tracks)
    np.savez(folder / "tracks_3d.npz", tracks_3d=tracks.points)
    np.savez(folder / "tracks_segmentation_ids.npz", tracks_segmentation_ids=tracks.instances)
    _json(folder / "tracked_objects.json", [each.name for each in clip.info.objects])
    first = [row[0] for row in rows]
    centres, ahead = poses[first, :3, 3], poses[first, :3, 2]
    middle = [float(np.median(part[part > 0])) if (part := depth[frame]).any() else 1.0 for frame in first]
    np.savez(
        folder / "cameras.npz", camera_positions=centres, lookat_positions=centres + np.array(middle)[:, None] * ahead
    )
    for view, row in enumerate(rows):
        place = folder / f"view_{view}"
        place.mkdir()
        _json(place / "metadata.json", _metadata(clip, poses[row], intrinsics[row[0]], rate))
        _json(place / "object_id_to_segmentation_id.json", {str(at): at for at in range(len(clip.info.objects))})
        _write_frames(place, clip.images[row], depth[row], intrinsics[row[0]])
        _write_pixels(place / "tracks_2d.npz", tracks, view)
    remarks = ["tracks that are not known at every moment are left out"] if tracks.dropped else []
    lenses = [intrinsics[row[0]] for row in rows]
    if max(_error(clip, k) for k in lenses) > TOLD:
        remarks.append(
            "MVTracker's conversion of distances, which assumes square pixels and a central principal point, is more "
            f"than {100 * TOLD:g} % off (its tracks and cameras are not)"
        )
    return remarks


def _error(clip: RawClip, intrinsics: NDArray[np.float64]) -> float:
    """Greatest relative error of z-depth by MVTracker's conversion of true distances."""
    width, height = clip.info.width, clip.info.height
    focal = intrinsics[0, 0]
    assumed = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    return float(np.abs(stretch(height, width, intrinsics) / stretch(height, width, assumed) - 1).max())


def _rate(times: list[float]) -> float:
    """Frames per second. Raises `Unfit` for uneven times."""
    if len(times) == 1:
        return RATE
    even = np.linspace(times[0], times[-1], len(times))
    step = even[1] - even[0]
    if np.abs(even - times).max() > EVEN * step:
        raise Unfit("its times are uneven, and the layout has one frame rate")
    return float(1 / step)


def _metadata(
    clip: RawClip, poses: NDArray[np.float64], intrinsics: NDArray[np.float64], rate: float
) -> dict[str, object]:
    """Content of metadata.json: poses with Blender's axes, K in image widths and heights."""
    blender = poses @ files.OPENGL
    turns = roma.quat_xyzw_to_wxyz(roma.rotmat_to_unitquat(torch.from_numpy(blender[:, :3, :3])))
    width, height = clip.info.width, clip.info.height
    k = np.diag([1 / width, 1 / height, 1.0]) @ intrinsics @ files.OPENGL[:3, :3]
    camera = {
        "K": k.tolist(),
        "positions": blender[:, :3, 3].tolist(),
        "quaternions": turns.tolist(),
        "focal_length": float(intrinsics[0, 0] / width * SENSOR),
        "sensor_width": SENSOR,
        "field_of_view": float(2 * np.arctan(width / 2 / intrinsics[0, 0])),
    }
    facts = {"resolution": [width, height], "num_frames": len(poses), "frame_rate": rate}
    return {"camera": camera, "metadata": facts}


def _write_frames(
    place: Path, images: NDArray[np.uint8], depth: NDArray[np.float32], intrinsics: NDArray[np.float64]
) -> None:
    factor = stretch(depth.shape[1], depth.shape[2], intrinsics)
    for at, (image, z) in enumerate(zip(images, depth, strict=True)):
        alpha = np.full(image.shape[:2], 255, np.uint8)
        Image.fromarray(np.dstack([image, alpha])).save(place / f"rgba_{at:05d}.png")
        Image.fromarray((z * factor).astype(np.float32)).save(place / f"depth_{at:05d}.tiff")


def _write_pixels(path: Path, tracks: ViewTracks, view: int) -> None:
    np.savez(path, tracks_2d=tracks.pixels[view], occlusion=~tracks.visible[view])


def _json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
