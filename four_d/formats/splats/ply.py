"""Gaussians as PLY in the layout of 3D Gaussian splatting, which nearly every splat program reads.

Float properties ``x y z nx ny nz f_dc_* f_rest_* opacity scale_* rot_*``: logits of opacity, natural logarithms of
scale, quaternions (w, x, y, z), harmonics above the constant ones channel by channel (all of red, then green, then
blue). Axes are ours. The format has no time: a file holds one state.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from four_d.errors import UserError
from four_d.formats.ply import Columns, header, read_vertices
from four_d.formats.splats.state import COEFFICIENTS, finite, sound, state_at
from four_d.outputs import write_whole
from four_d.types import Gaussians

LOGGER = logging.getLogger(__name__)

OPACITY_MARGIN = 1e-7
"""Least distance of opacities from 0 and 1, whose logits are infinite."""
SMALLEST = 1e-12
"""Scale written for 0, whose logarithm is infinite."""
_POSITION, _NORMAL, _CONSTANT = ("x", "y", "z"), ("nx", "ny", "nz"), ("f_dc_0", "f_dc_1", "f_dc_2")
_SCALE, _ROTATION = ("scale_0", "scale_1", "scale_2"), ("rot_0", "rot_1", "rot_2", "rot_3")
_REPEATED = ("red", "green", "blue", "alpha")
"""Properties that some programs add for point viewers: the constant colour and opacity again."""


def write_ply(path: Path, gaussians: Gaussians, time: float = 0.0) -> None:
    """Write the Gaussians' state at a time in seconds; `write_times` writes all times of a deformable scene.

    Raises:
        UserError: Gaussians that are not sound (`sound`), or a file that cannot be written.

    """
    state = state_at(sound(gaussians), time)
    opacities = state.opacities.double().clamp(OPACITY_MARGIN, 1 - OPACITY_MARGIN)
    higher = state.harmonics[:, 1:].transpose(1, 2).flatten(1)
    columns = [
        *(state.means, torch.zeros_like(state.means), state.harmonics[:, 0], higher),
        *(opacities.logit()[:, None].float(), state.scales.clamp_min(SMALLEST).log(), state.quats),
    ]
    values = torch.cat(columns, dim=-1).numpy().astype("<f4")
    write_whole(path, header(len(values), [(name, "f4") for name in _names(higher.shape[1])]) + values.tobytes())


def _names(higher: int) -> list[str]:
    return [*_POSITION, *_NORMAL, *_CONSTANT, *(f"f_rest_{i}" for i in range(higher)), "opacity", *_SCALE, *_ROTATION]


def read_ply(path: Path) -> Gaussians:
    """Read the Gaussians of a PLY of this layout, of any program, in any encoding.

    Unknown properties are skipped, and Gaussians that are not finite left out (`finite`), both with a note on stderr.
    Without a third scale (2D Gaussian splatting) they are flat.

    Raises:
        UserError: no such file, no PLY (`read_vertices`), another layout, or no Gaussian that is finite.

    """
    return finite(read_all(path), path)


def read_all(path: Path) -> Gaussians:
    """Read as `read_ply`, including Gaussians that are not finite."""
    columns = read_vertices(path)
    if "packed_position" in columns:
        raise UserError(f"{path} is a compressed PLY (of SuperSplat), which is not supported; save it as a plain PLY")
    if "scale_1" in columns and "scale_2" not in columns:
        columns["scale_2"] = np.full(len(columns["scale_1"]), -np.inf)
    missing = [n for n in (*_POSITION, *_CONSTANT, "opacity", *_SCALE, *_ROTATION) if n not in columns]
    if missing:
        raise UserError(f"{path} has no {missing[0]}: it holds no Gaussians; give a PLY of 3D Gaussian splatting")
    count = sum(name.startswith("f_rest_") for name in columns)
    if count not in [3 * c - 3 for c in COEFFICIENTS] or any(f"f_rest_{i}" not in columns for i in range(count)):
        raise UserError(
            f"{path} has {count} f_rest properties where 0, 9, 24 or 45 are known; save it with one of these"
        )
    if further := [name for name in columns if name not in {*_names(count), *_REPEATED}]:
        LOGGER.warning(f"{path}: ignoring {', '.join(further[:5])}{' …' * (len(further) > 5)}")
    # constant and higher harmonics of red, then of green, then of blue
    channels = [[f"f_dc_{c}", *(f"f_rest_{c * count // 3 + i}" for i in range(count // 3))] for c in range(3)]
    return Gaussians(
        means=_stack(columns, _POSITION),
        quats=_stack(columns, _ROTATION),
        scales=_stack(columns, _SCALE).exp(),
        opacities=_stack(columns, ["opacity"])[:, 0].sigmoid(),
        harmonics=torch.stack([_stack(columns, names) for names in channels], dim=-1),
    )


def _stack(columns: Columns, names: Sequence[str]) -> torch.Tensor:
    with np.errstate(over="ignore"):  # values beyond float32 become infinite, and are left out as such
        return torch.stack([torch.from_numpy(columns[name].astype(np.float32)) for name in names], dim=-1)
