"""Deformable Gaussians as files of other programs: PLY, SPZ, glTF and USD, each writer with its reader."""

from four_d.formats.splats.any import read_gaussians
from four_d.formats.splats.gltf import read_gltf, write_gltf
from four_d.formats.splats.ply import read_ply, write_ply
from four_d.formats.splats.sequence import read_times, write_times
from four_d.formats.splats.spz import read_spz, write_spz
from four_d.formats.splats.state import flip, sound, state_at, take, thin
from four_d.formats.splats.usd import read_usd, write_usd

__all__ = [
    "flip",
    "read_gaussians",
    "read_gltf",
    "read_ply",
    "read_spz",
    "read_times",
    "read_usd",
    "sound",
    "state_at",
    "take",
    "thin",
    "write_gltf",
    "write_ply",
    "write_spz",
    "write_times",
    "write_usd",
]
