"""MPI Sintel, training split, final pass."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from four_d import geometry
from four_d.protocols import decode, files
from four_d.protocols.sequence import Sequence, Task
from four_d.types import Cameras

LAYOUT = "training/{final,depth,camdata_left,flow}/alley_1/frame_0001.{png,dpt,cam,flo} and so on"
FPS = 24.0
ALL = (
    *("alley_1", "alley_2", "ambush_2", "ambush_4", "ambush_5", "ambush_6", "ambush_7", "bamboo_1", "bamboo_2"),
    *("bandage_1", "bandage_2", "cave_2", "cave_4", "market_2", "market_5", "market_6", "mountain_1", "shaman_2"),
    *("shaman_3", "sleeping_1", "sleeping_2", "temple_2", "temple_3"),
)
POSE = (
    *("alley_2", "ambush_4", "ambush_5", "ambush_6", "cave_2", "cave_4", "market_2", "market_5", "market_6"),
    *("shaman_3", "sleeping_1", "sleeping_2", "temple_2", "temple_3"),
)
"""Those whose camera moves enough."""


def read(
    root: Path, only: tuple[str, ...] | None = None, *, depth: tuple[str, ...] = ALL, threshold: float = 0.1
) -> list[Sequence]:
    """All 23 sequences; ``POSE`` count for poses, ``depth`` for depth, those with flow for masks.

    Depth, cameras and flow come in archives of their own: where a whole folder of them is absent, its task is not
    offered. The principal point in .cam is (511.5, 217.5), the picture's middle counted from pixel centres.

    Args:
        root: holds ``training``, or is it.
        only: names to list; None = all.
        depth: names that count for depth.
        threshold: a pixel moves if its flow differs from that of a rigid scene by more (pixels).

    """
    training = root / "training" if (root / "training").is_dir() else root
    files.folder(training / "final", LAYOUT)
    parts = {part for part in ("depth", "camdata_left", "flow") if (training / part).is_dir()}
    return [_sequence(training, name, parts, name in depth, threshold) for name in files.chosen(ALL, only)]


def _sequence(training: Path, name: str, parts: set[str], for_depth: bool, threshold: float) -> Sequence:
    pictures = files.listed(training / "final" / name, "frame_*.png", LAYOUT)
    kinds = {"depth": "dpt", "camdata_left": "cam", "flow": "flo"}
    truth: dict[str, list[Path]] = {}
    for part in parts:
        stems = [path.stem for path in (pictures[:-1] if part == "flow" else pictures)]
        truth[part] = [files.file(training / part / name / f"{stem}.{kinds[part]}", LAYOUT) for stem in stems]
    tasks: list[Task] = []
    if "camdata_left" in parts and name in POSE:
        tasks.append("pose")
    if "depth" in parts and for_depth:
        tasks.extend(("video_depth", "depth"))
    moving = parts == kinds.keys()
    if moving:
        tasks.append("mask")
    return Sequence(
        name=name,
        frames=len(pictures),
        times=files.frame_times(len(pictures), FPS),
        tasks=tuple(tasks),
        images=partial(files.images, pictures),
        cameras=partial(_cameras, truth["camdata_left"]) if "camdata_left" in parts else None,
        depth=partial(files.depth, truth["depth"], decode.depth_dpt) if "depth" in parts else None,
        masks=partial(_masks, truth["depth"], truth["camdata_left"], truth["flow"], threshold) if moving else None,
        mask_frames=len(pictures) - 1 if moving else None,
    )


def _cameras(paths: list[Path]) -> Cameras:
    stored = [decode.camera_cam(path) for path in paths]
    intrinsics = np.stack([k for k, _ in stored])
    intrinsics[:, :2, 2] += 0.5
    poses = np.linalg.inv(np.stack([pose for _, pose in stored])).astype(np.float64)
    return files.cameras(poses, intrinsics)


def _masks(depth: list[Path], cameras: list[Path], flow: list[Path], threshold: float) -> NDArray[np.bool_]:
    """What moves in the world: |flow − flow of the rigid scene| > threshold; the last frame, without flow, is False."""
    frames = [error > threshold for error in _flow_errors(depth, _cameras(cameras), flow)]
    return np.stack([*frames, np.zeros_like(frames[0])])


def _flow_errors(depth: list[Path], cameras: Cameras, flow: list[Path]) -> Iterator[NDArray[np.float64]]:
    for at, path in enumerate(flow):
        z = torch.from_numpy(decode.depth_dpt(depth[at])).double()
        here, there = _camera(cameras, at), _camera(cameras, at + 1)
        height, width = z.shape
        pixels, _ = geometry.project(geometry.unproject(z, here).reshape(-1, 3), there)
        rigid = pixels.reshape(height, width, 2) - geometry.pixel_centres(height, width, z)
        error: Tensor = torch.from_numpy(decode.flow_flo(path)).double() - rigid
        yield error.norm(dim=-1).numpy()


def _camera(cameras: Cameras, at: int) -> Cameras:
    return Cameras(world_from_camera=cameras.world_from_camera[at], intrinsics=cameras.intrinsics[at])
