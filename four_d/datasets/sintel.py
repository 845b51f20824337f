"""MPI Sintel, training split, final pass."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from four_d import fields, geometry
from four_d.datasets import decode, files
from four_d.datasets.facts import DataSet, Licence
from four_d.datasets.sequence import Sequence, Task
from four_d.ordering import in_order
from four_d.types import Cameras

LAYOUT = "training/{final,depth,camdata_left,flow}/alley_1/frame_0001.{png,dpt,cam,flo} and so on"
FPS = 24.0
SEQUENCES = (
    *("alley_1", "alley_2", "ambush_2", "ambush_4", "ambush_5", "ambush_6", "ambush_7", "bamboo_1", "bamboo_2"),
    *("bandage_1", "bandage_2", "cave_2", "cave_4", "market_2", "market_5", "market_6", "mountain_1", "shaman_2"),
    *("shaman_3", "sleeping_1", "sleeping_2", "temple_2", "temple_3"),
)
POSE = (
    *("alley_2", "ambush_4", "ambush_5", "ambush_6", "cave_2", "cave_4", "market_2", "market_5", "market_6"),
    *("shaman_3", "sleeping_1", "sleeping_2", "temple_2", "temple_3"),
)
"""Sequences whose camera moves enough."""


def read_all(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List the sequences that are there."""
    training = _training(root)
    present = [path.name for path in in_order((training / "final").iterdir()) if path.is_dir()]
    return read_sintel(root, tuple(files.chosen(present, only)), among=tuple(present))


def _training(root: Path) -> Path:
    training = root / "training" if (root / "training").is_dir() else root
    files.folder(training / "final", LAYOUT)
    return training


def read_sintel(
    root: Path,
    only: tuple[str, ...] | None = None,
    *,
    depth: tuple[str, ...] = SEQUENCES,
    among: tuple[str, ...] = SEQUENCES,
    threshold: float = 0.1,
) -> list[Sequence]:
    """List all 23 sequences; ``POSE`` count for poses, ``depth`` for depth, those with flow for masks.

    Depth, cameras and flow come in archives of their own: where a whole folder of them is absent, its task is not
    offered. The principal point in .cam is (511.5, 217.5), the image's middle counted from pixel centres.

    Args:
        root: holds ``training``, or is it.
        only: names to list; None = all.
        depth: names that count for depth.
        among: all names that there are.
        threshold: a pixel moves if its flow differs from that of a rigid scene by more (pixels).

    """
    training = _training(root)
    modalities = {modality for modality in ("depth", "camdata_left", "flow") if (training / modality).is_dir()}
    return [_sequence(training, name, modalities, name in depth, threshold) for name in files.chosen(among, only)]


def _sequence(training: Path, name: str, modalities: set[str], for_depth: bool, threshold: float) -> Sequence:
    image_paths = files.listed(training / "final" / name, "frame_*.png", LAYOUT)
    kinds = {"depth": "dpt", "camdata_left": "cam", "flow": "flo"}
    truth: dict[str, list[Path]] = {}
    for modality in modalities:
        stems = [path.stem for path in (image_paths[:-1] if modality == "flow" else image_paths)]
        truth[modality] = [
            files.file(training / modality / name / f"{stem}.{kinds[modality]}", LAYOUT) for stem in stems
        ]
    tasks: list[Task] = []
    if "camdata_left" in modalities and name in POSE:
        tasks.append("pose")
    if "depth" in modalities and for_depth:
        tasks.extend(("video_depth", "depth"))
    moving = modalities == kinds.keys()
    if moving:
        tasks.append("mask")
    return Sequence(
        name=name,
        frames=len(image_paths),
        times=files.frame_times(len(image_paths), FPS),
        tasks=tuple(tasks),
        images=files.image_loader(image_paths),
        cameras=partial(_read_cameras, truth["camdata_left"]) if "camdata_left" in modalities else None,
        depth=files.depth_loader(truth["depth"], decode.depth_dpt) if "depth" in modalities else None,
        masks=partial(_masks, truth["depth"], truth["camdata_left"], truth["flow"], threshold) if moving else None,
        mask_frames=len(image_paths) - 1 if moving else None,
    )


def _read_cameras(paths: list[Path]) -> Cameras:
    stored = [decode.camera_cam(path) for path in paths]
    intrinsics = np.stack([k for k, _ in stored])
    intrinsics[:, :2, 2] += 0.5
    poses = np.linalg.inv(np.stack([pose for _, pose in stored])).astype(np.float64)
    return files.cameras(poses, intrinsics)


def _masks(depth: list[Path], cameras: list[Path], flow: list[Path], threshold: float) -> NDArray[np.bool_]:
    """Masks of pixels that move in the world: |flow − flow of the rigid scene| > threshold; False in the last frame."""
    frames = [error > threshold for error in _flow_errors(depth, _read_cameras(cameras), flow)]
    return np.stack([*frames, np.zeros_like(frames[0])])


def _flow_errors(depth: list[Path], cameras: Cameras, flow: list[Path]) -> Iterator[NDArray[np.float64]]:
    for at, path in enumerate(flow):
        z = torch.from_numpy(decode.depth_dpt(depth[at])).double()
        camera, next_camera = fields.unstack(cameras, at), fields.unstack(cameras, at + 1)
        height, width = z.shape
        pixels, _ = geometry.project(geometry.unproject(z, camera).reshape(-1, 3), next_camera)
        rigid = pixels.reshape(height, width, 2) - geometry.pixel_centres(height, width, z)
        error: Tensor = torch.from_numpy(decode.flow_flo(path)).double() - rigid
        yield error.norm(dim=-1).numpy()


SINTEL = DataSet(
    name="sintel",
    title="MPI Sintel, training split, final pass",
    home="sintel.is.tue.mpg.de: the main archive (final pass, flow) and the depth archive (depth, cameras)",
    licences=(Licence(text="film CC BY 3.0"),),
    layout=LAYOUT,
    reader=read_all,
    notes="dynamics masks where flow, depth and cameras are there; the last frame of each, which has none, is left out",
)
