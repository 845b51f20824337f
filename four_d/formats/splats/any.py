"""Gaussians of any format, chosen by the file's name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from four_d.errors import UserError
from four_d.formats.splats.gltf import read_gltf
from four_d.formats.splats.ply import read_ply
from four_d.formats.splats.sequence import read_times
from four_d.formats.splats.spz import read_spz
from four_d.formats.splats.usd import PACKAGE, SUFFIXES, read_usd
from four_d.types import Gaussians

_READERS: dict[str, Callable[[Path], Gaussians]] = {
    ".ply": read_ply,
    ".spz": read_spz,
    ".glb": read_gltf,
    **dict.fromkeys((*SUFFIXES, PACKAGE), read_usd),
}
_UNSUPPORTED = {
    ".splat": "the 32-byte records of antimatter15's viewer",
    ".ksplat": "GaussianSplats3D's packed format",
    ".sog": "PlayCanvas' packed format",
    ".lcc": "XGRIDS' packed format",
    ".gltf": "glTF with its arrays in other files",
}
"""Formats of Gaussians without a reader."""


def read_gaussians(path: Path) -> Gaussians:
    """Read the Gaussians of a file, by its suffix, or of a folder of `write_times`. UserError as their readers."""
    if not path.exists():
        raise UserError(f"{path} does not exist; give a file of Gaussians, or a folder of one per time or per segment")
    if path.is_dir():
        return read_times(path)
    suffix = path.suffix.lower()
    reader = _READERS.get(suffix)
    if suffix in _UNSUPPORTED:
        remedy = "save it as one .glb" if suffix == ".gltf" else "convert it to PLY, for example with splat-transform"
        raise UserError(f"{path} is {_UNSUPPORTED[suffix]}, which is not supported; {remedy}")
    if reader is None:
        raise UserError(f"{path} has an unknown suffix; give a folder over time or one of {' '.join(_READERS)}")
    return reader(path)
