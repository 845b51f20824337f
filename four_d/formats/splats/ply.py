"""Gaussians as PLY in the layout of 3D Gaussian splatting, which nearly every splat program reads.

Float properties ``x y z nx ny nz f_dc_* f_rest_* opacity scale_* rot_*``: logits of opacity, natural logarithms of
scale, quaternions (w, x, y, z), harmonics above the constant ones channel by channel (all of red, then green, then
blue). Axes are ours. The format has no time: a file holds one state.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from four_d.errors import UserError
from four_d.formats.splats.state import COEFFICIENTS, sound, state_at
from four_d.formats.whole import read_whole, write_whole
from four_d.types import Gaussians

CERTAIN = 1e-7
"""Opacities are kept so far from 0 and 1, whose logits are infinite."""
SMALLEST = 1e-12
"""Scale that stands for 0, whose logarithm is infinite."""
_NUMBERS = ("char", "i1"), ("uchar", "u1"), ("short", "<i2"), ("ushort", "<u2"), ("int", "<i4"), ("uint", "<u4")
_SIZED = ("int8", "i1"), ("uint8", "u1"), ("int16", "<i2"), ("uint16", "<u2"), ("int32", "<i4"), ("uint32", "<u4")
_FLOATS = ("float", "<f4"), ("double", "<f8"), ("float32", "<f4"), ("float64", "<f8")
_KINDS = dict((*_NUMBERS, *_SIZED, *_FLOATS))
_PLACE, _SCALE, _TURN = ("x", "y", "z"), ("scale_0", "scale_1", "scale_2"), ("rot_0", "rot_1", "rot_2", "rot_3")
_CONSTANT = ("f_dc_0", "f_dc_1", "f_dc_2")


def write_ply(path: Path, gaussians: Gaussians, time: float = 0.0) -> None:
    """Write the Gaussians as they are at a time in seconds; `write_times` writes all of a deformable scene's.

    Raises:
        UserError: Gaussians that are not sound (`sound`), or a file that cannot be written.

    """
    fixed = state_at(sound(gaussians), time)
    opacities = fixed.opacities.double().clamp(CERTAIN, 1 - CERTAIN)
    rest = fixed.harmonics[:, 1:].transpose(1, 2).flatten(1)
    columns = [
        *(fixed.means, torch.zeros_like(fixed.means), fixed.harmonics[:, 0], rest),
        *(opacities.logit()[:, None].float(), fixed.scales.clamp_min(SMALLEST).log(), fixed.quats),
    ]
    values = torch.cat(columns, dim=-1).numpy().astype("<f4")
    write_whole(path, _header(len(values), rest.shape[1]).encode("ascii") + values.tobytes())


def _header(count: int, rest: int) -> str:
    names = [*_PLACE, "nx", "ny", "nz", *_CONSTANT, *(f"f_rest_{i}" for i in range(rest)), "opacity", *_SCALE, *_TURN]
    properties = "".join(f"property float {name}\n" for name in names)
    return f"ply\nformat binary_little_endian 1.0\ncomment four_d\nelement vertex {count}\n{properties}end_header\n"


def read_ply(path: Path) -> Gaussians:
    """The Gaussians of a binary little-endian PLY of this layout, whoever wrote it; other properties are passed over.

    Raises:
        UserError: no such file, another layout, or a file that is cut short.

    """
    records = _records(path)
    names = records.dtype.names or ()
    missing = [n for n in (*_PLACE, *_CONSTANT, "opacity", *_SCALE, *_TURN) if n not in names]
    if missing:
        raise UserError(f"{path} has no {missing[0]}: it holds no Gaussians; give a PLY of 3D Gaussian splatting")
    rest = [f"f_rest_{i}" for i in range(sum(n.startswith("f_rest_") for n in names))]
    if len(rest) not in [3 * count - 3 for count in COEFFICIENTS] or any(n not in names for n in rest):
        raise UserError(f"{path} has {len(rest)} f_rest properties; 0, 9, 24 or 45 are known")
    higher = _columns(records, rest).reshape(len(records), 3, len(rest) // 3).transpose(1, 2)
    return Gaussians(
        means=_columns(records, _PLACE),
        quats=_columns(records, _TURN),
        scales=_columns(records, _SCALE).exp(),
        opacities=_columns(records, ["opacity"])[:, 0].sigmoid(),
        harmonics=torch.cat([_columns(records, _CONSTANT)[:, None], higher], dim=1),
    )


def _columns(records: NDArray[Any], names: tuple[str, ...] | list[str]) -> torch.Tensor:
    columns = [torch.from_numpy(records[name].astype(np.float32)) for name in names]
    return torch.stack(columns, dim=-1) if columns else torch.zeros(len(records), 0)


def _records(path: Path) -> NDArray[Any]:
    content = read_whole(path)
    end = content.find(b"end_header\n")
    lines = content[: max(end, 0)].decode("ascii", "replace").splitlines()
    if end < 0 or lines[:1] != ["ply"] or "format binary_little_endian 1.0" not in lines:
        raise UserError(f"{path} is not a binary little-endian PLY; save it as one")
    elements = [line.split() for line in lines if line.startswith("element ")]
    properties = [line.split() for line in lines if line.startswith("property ")]
    known = elements and all(len(p) == 3 and p[1] in _KINDS for p in properties)
    if not known or elements[0][1] != "vertex" or len(elements) > 1 or not elements[0][2].isdigit():
        raise UserError(f"{path} holds more than vertices of numbers; save it as an uncompressed PLY of 3D Gaussians")
    kind = np.dtype([(p[2], _KINDS[p[1]]) for p in properties])
    body, count = content[end + len(b"end_header\n") :], int(elements[0][2])
    if len(body) != count * kind.itemsize:
        raise UserError(f"{path} is cut short: {len(body)} bytes for {count} Gaussians; copy or write it again")
    return np.frombuffer(body, dtype=kind)
