"""Deformable Gaussians in formats without time: a folder with one file per time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from four_d.errors import UserError
from four_d.formats.splats.ply import read_all as read_all_ply
from four_d.formats.splats.ply import write_ply
from four_d.formats.splats.spz import read_spz, write_spz
from four_d.formats.splats.state import finite, sound, turned
from four_d.outputs import new_folder
from four_d.types import Gaussians

KIND, TIMES = "splats", "times.json"
_WRITERS: dict[str, Callable[[Path, Gaussians, float], None]] = {"ply": write_ply, "spz": write_spz}
_READERS: dict[str, Callable[[Path], Gaussians]] = {"ply": read_all_ply, "spz": read_spz}


def write_times(
    folder: Path, gaussians: Gaussians, kind: Literal["ply", "spz"] = "ply", *, overwrite: bool = False
) -> None:
    """Write one file per offset time, ``0000.ply`` …, and ``times.json`` with the seconds of each, atomically.

    Static Gaussians give one file at 0 s.

    Raises:
        UserError: as the writer of the format, or a folder that holds something else (`new_folder`).

    """
    gaussians = sound(gaussians)
    times = [0.0] if gaussians.offset_times is None else [float(t) for t in gaussians.offset_times]
    names = [f"{index:04d}.{kind}" for index in range(len(times))]
    with new_folder(folder, KIND, overwrite=overwrite) as partial:
        for name, time in zip(names, times, strict=True):
            _WRITERS[kind](partial / name, gaussians, time)
        frames = [{"file": name, "time": time} for name, time in zip(names, times, strict=True)]
        (partial / TIMES).write_text(json.dumps({"format": 1, "frames": frames}, indent=1) + "\n")


def read_times(folder: Path) -> Gaussians:
    """Read `write_times`' folder: the first file's Gaussians with an offset to each file's positions and a turn
    to its rotations.

    Gaussians that are not finite in one of the files are left out of all (`finite`).

    Raises:
        UserError: no ``times.json`` of ours, a missing or damaged file, or files of different counts.

    """
    if not (folder / TIMES).is_file():
        raise UserError(f"{folder} holds no {TIMES}: no Gaussians over time of four_d; give one file of Gaussians")
    try:
        content = json.loads((folder / TIMES).read_text())
        frames = [(str(frame["file"]), float(frame["time"])) for frame in content["frames"]]
        states = [_READERS[name.rsplit(".", 1)[-1]](folder / name) for name, _ in frames]
        first = states[0]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{folder} does not hold Gaussians over time as four_d writes them ({error}); give another folder"
        ) from error
    if any(len(state.means) != len(first.means) for state in states):
        raise UserError(f"files in {folder} hold different counts of Gaussians; write the folder again")
    if len(states) == 1:
        return finite(first, folder)
    moving = dataclasses.replace(
        first,
        offsets=torch.stack([state.means - first.means for state in states]),
        offset_times=torch.tensor([time for _, time in frames]),
        turns=turned(first, [state.quats for state in states]),
    )
    return finite(moving, folder)
