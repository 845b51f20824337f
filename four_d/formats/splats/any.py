"""Gaussians of whatever format a name says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from four_d.errors import UserError
from four_d.formats.splats.gltf import read_gltf
from four_d.formats.splats.ply import read_ply
from four_d.formats.splats.sequence import read_times
from four_d.formats.splats.spz import read_spz
from four_d.formats.splats.usd import SUFFIXES, read_usd
from four_d.types import Gaussians

_READERS: dict[str, Callable[[Path], Gaussians]] = {
    ".ply": read_ply,
    ".spz": read_spz,
    ".glb": read_gltf,
    **dict.fromkeys(SUFFIXES, read_usd),
}


def read_gaussians(path: Path) -> Gaussians:
    """The Gaussians of a file, by its suffix, or of a folder that `write_times` wrote. UserError as their readers."""
    if path.is_dir():
        return read_times(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path} is of no known kind; give a folder over time or one of {' '.join(_READERS)}")
    return reader(path)
