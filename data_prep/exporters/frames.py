"""Layouts of single frames: WAI (MapAnything's) and family A of CUT3R's processed sets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.exporters.views import Settings, require_cameras, require_depth, rows_by_camera
from four_d.data.contract import RawClip
from four_d.data.truth import truth
from four_d.datasets.exr import write_depth_exr
from four_d.datasets.wai import FILE, VERSION


def write_wai(clip: RawClip, folder: Path, _: Settings) -> list[str]:
    """Write a clip as a scene, all cameras' frames in one list. Raises `Unfit` without poses.

    ``time`` and ``camera_id`` of a frame are ours: WAI has neither, and its readers pass over what they do not know.
    """
    poses, intrinsics = require_cameras(clip)
    depth = truth(clip).depth
    several = len(set(clip.info.camera_ids)) > 1
    frames: list[dict[str, object]] = []
    for name in ("images", *(() if depth is None else ("depth",))):
        (folder / name).mkdir()
    for camera, rows in rows_by_camera(clip).items():
        for at, frame in enumerate(rows):
            name = f"camera{camera}_{at:05d}" if several else f"{at:05d}"
            k = intrinsics[frame]
            entry: dict[str, object] = {
                "frame_name": name,
                "file_path": f"images/{name}.png",
                "image": f"images/{name}.png",
                "transform_matrix": poses[frame].tolist(),
                "fl_x": k[0, 0],
                "fl_y": k[1, 1],
                "cx": k[0, 2],
                "cy": k[1, 2],
                "w": clip.info.width,
                "h": clip.info.height,
                "time": clip.info.times[frame],
                "camera_id": camera,
            }
            Image.fromarray(clip.images[frame]).save(folder / "images" / f"{name}.png")
            if depth is not None:
                entry["depth"] = f"depth/{name}.exr"
                write_depth_exr(folder / "depth" / f"{name}.exr", depth[frame].numpy().astype(np.float32))
            frames.append(entry)
    modalities = {"image": {"frame_key": "image", "format": "image"}}
    modalities |= {} if depth is None else {"depth": {"frame_key": "depth", "format": "depth"}}
    content = {
        "scene_name": clip.key,
        "dataset_name": clip.info.source,
        "version": VERSION,
        "shared_intrinsics": False,
        "camera_model": "PINHOLE",
        "camera_convention": "opencv",
        "scale_type": "metric" if clip.info.metric else "unknown",
        "frames": frames,
        "scene_modalities": {},
        "frame_modalities": modalities,
    }
    (folder / FILE).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    return []


def write_cut3r(clip: RawClip, folder: Path, _: Settings) -> list[str]:
    """Write a clip as ``{rgb,depth,cam}``, or a folder of these for each camera of several. Raises `Unfit` without
    poses or depth.
    """
    poses, intrinsics = require_cameras(clip)
    depth, cameras = require_depth(clip), rows_by_camera(clip)
    for camera, rows in cameras.items():
        place = folder / f"camera_{camera}" if len(cameras) > 1 else folder
        for name in ("rgb", "depth", "cam"):
            (place / name).mkdir(parents=True)
        for at, frame in enumerate(rows):
            stem = f"{at:05d}"
            Image.fromarray(clip.images[frame]).save(place / "rgb" / f"{stem}.png")
            np.save(place / "depth" / f"{stem}.npy", depth[frame])
            np.savez(place / "cam" / f"{stem}.npz", pose=poses[frame], intrinsics=intrinsics[frame])
    return []
