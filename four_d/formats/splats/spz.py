"""Gaussians as SPZ, Niantic's packed format, about a tenth of the PLY; writes version 3, reads 2 and 3.

A gzip stream of a header of 16 bytes and, one after the other for all Gaussians: positions (24-bit fixed point),
opacities (a byte), constant colours (a byte each), logarithms of scale (a byte each), rotations (version 3: the three
smallest parts of the quaternion in 10 bits each and the index of the largest; version 2: x, y and z in a byte each),
higher harmonics (a byte each, in [-1, 1]). Its axes are right, up, back: the scene is converted. Like PLY it has no
time.

Source of the layout: the description and reader at github.com/nianticlabs/spz.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from four_d.errors import UserError
from four_d.formats.splats.state import COEFFICIENTS, flip, sound, state_at
from four_d.outputs import read_whole, write_whole
from four_d.types import Gaussians

MAGIC, VERSION = 0x5053474E, 3
_HEADER = struct.Struct("<IIIBBBB")
_HAS_EXTENSIONS = 2
COLOUR_SCALE = 0.15
"""Factor of constant harmonics c, stored as 255 · (0.15 c + 0.5)."""
MAX_FRACTIONAL_BITS = 20
_MAGNITUDE = 511 * math.sqrt(2)
"""Factor to 9 bits of a quaternion's part that is not the largest, hence at most √½."""

Bytes = NDArray[np.uint8]


def write_spz(path: Path, gaussians: Gaussians, time: float = 0.0) -> None:
    """Write the Gaussians' state at a time in seconds; `write_times` writes all times of a deformable scene.

    Precision: scales 3 %, colours and opacities about 1/255, higher harmonics 1/256 and within ±1, positions one in
    four million of the farthest one.

    Raises:
        UserError: Gaussians that are not sound (`sound`), or a file that cannot be written.

    """
    state = flip(state_at(sound(gaussians), time))
    bits = _fractional_bits(state.means)
    degree = COEFFICIENTS.index(state.harmonics.shape[1])
    parts = [
        _pack_positions(state.means.double().numpy(), bits),
        _bytes(state.opacities * 255),
        _bytes((COLOUR_SCALE * state.harmonics[:, 0] + 0.5) * 255),
        _bytes((state.scales.clamp_min(1e-12).log() + 10) * 16),
        _pack_quaternions(state.quats.double().numpy()),
        _bytes(state.harmonics[:, 1:] * 128 + 128),
    ]
    header = _HEADER.pack(MAGIC, VERSION, len(state.means), degree, bits, 0, 0)
    content = header + b"".join(part.tobytes() for part in parts)
    write_whole(path, gzip.compress(content, mtime=0))


def _fractional_bits(means: torch.Tensor) -> int:
    """Most fractional bits that leave room for the farthest position in 24 bits with sign."""
    farthest = float(means.abs().max()) if len(means) else 0.0
    integer_bits = max(math.ceil(math.log2(farthest + 1e-9) + 1e-6), 23 - MAX_FRACTIONAL_BITS)
    if integer_bits > 23:
        raise UserError(f"a Gaussian is {farthest:.3g} away, farther than SPZ can represent; write PLY, glTF or USD")
    return 23 - integer_bits


def _bytes(values: torch.Tensor) -> Bytes:
    return values.double().round().clamp(0, 255).to(torch.uint8).numpy()


def _pack_positions(positions: NDArray[np.float64], bits: int) -> Bytes:
    fixed = np.rint(positions * 2**bits).clip(-(2**23), 2**23 - 1).astype("<i4")
    return fixed[..., None].view(np.uint8)[..., :3]


def _pack_quaternions(wxyz: NDArray[np.float64]) -> NDArray[np.uint32]:
    quats = np.roll(wxyz, -1, axis=-1)
    largest = np.abs(quats).argmax(axis=-1)
    quats = quats * np.where(np.take_along_axis(quats, largest[:, None], axis=-1) < 0, -1, 1)
    packed = largest.astype(np.uint32)
    for component in range(3):
        value = np.take_along_axis(quats, _smallest_three(largest)[:, component, None], axis=-1)[:, 0]
        magnitude = np.rint(np.abs(value) * _MAGNITUDE).clip(0, 511).astype(np.uint32)
        packed = packed << 10 | (value < 0).astype(np.uint32) << 9 | magnitude
    return packed.astype("<u4")


def _smallest_three(largest: NDArray[np.integer]) -> NDArray[np.intp]:
    """Indices of the three parts of x, y, z, w that are not the largest, ascending."""
    parts = np.arange(3)
    return parts + (parts >= largest[:, None])


def read_spz(path: Path) -> Gaussians:
    """Read the Gaussians of a file of version 2 or 3, in our axes.

    Raises:
        UserError: no such file, another version, harmonics of degree 4, vendors' extensions, or a truncated file.

    """
    content = _unzip(path)
    if len(content) < _HEADER.size or _HEADER.unpack_from(content)[0] != MAGIC:
        raise UserError(f"{path} is not an SPZ file; give one, or a PLY, GLB or USD")
    _, version, count, degree, bits, flags, _ = _HEADER.unpack_from(content)
    if version not in (2, 3) or degree >= len(COEFFICIENTS) or flags & _HAS_EXTENSIONS:
        raise UserError(f"{path} is SPZ {version} of degree {degree}, flags {flags}; save it plainly as version 3")
    higher = COEFFICIENTS[degree] - 1
    widths = [9, 1, 3, 3, 4 if version == 3 else 3, 3 * higher]
    if len(content) != _HEADER.size + count * sum(widths):
        raise UserError(f"{path} is truncated: {len(content)} bytes for {count} Gaussians; copy or write it again")
    ends = np.cumsum([_HEADER.size, *(count * width for width in widths)])
    positions, alphas, colours, scales, turns, higher_bytes = (
        np.frombuffer(content[start:end], np.uint8).reshape(count, width)
        for start, end, width in zip(ends[:-1], ends[1:], widths, strict=True)
    )
    constant = (_floats(colours) / 255 - 0.5) / COLOUR_SCALE
    packed = Gaussians(
        means=torch.from_numpy(_unpack_positions(positions, bits)),
        quats=torch.from_numpy(_unpack_quaternions(turns) if version == 3 else _unpack_bytes(turns)),
        scales=(_floats(scales) / 16 - 10).exp(),
        opacities=_floats(alphas)[:, 0] / 255,
        harmonics=torch.cat([constant[:, None], (_floats(higher_bytes).reshape(count, higher, 3) - 128) / 128], dim=1),
    )
    return flip(packed)


def _unzip(path: Path) -> bytes:
    content = read_whole(path)
    if content.startswith(MAGIC.to_bytes(4, "little")):
        raise UserError(f"{path} is SPZ of version 4 or later; save it as version 3")
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a complete SPZ file ({error}); copy or write it again") from error


def _floats(values: Bytes) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _unpack_positions(values: Bytes, bits: int) -> NDArray[np.float32]:
    parts = values.reshape(len(values), 3, 3).astype(np.int32)
    fixed = parts[..., 0] | parts[..., 1] << 8 | parts[..., 2] << 16
    # extends the sign of 24 bits to 32
    return ((fixed ^ 2**23) - 2**23).astype(np.float32) / np.float32(2**bits)


def _unpack_quaternions(values: Bytes) -> NDArray[np.float32]:
    packed = values.copy().view("<u4")[:, 0]
    largest = (packed >> 30).astype(np.intp)
    quats = np.zeros((len(packed), 4))
    for component in (2, 1, 0):
        magnitude = (packed & 511) / _MAGNITUDE
        at = _smallest_three(largest)[:, component, None]
        np.put_along_axis(quats, at, np.where(packed & 512, -magnitude, magnitude)[:, None], axis=-1)
        packed = packed >> 10
    largest_value = np.sqrt(np.maximum(1 - (quats**2).sum(axis=-1), 0))
    np.put_along_axis(quats, largest[:, None], largest_value[:, None], axis=-1)
    return np.roll(quats, 1, axis=-1).astype(np.float32)


def _unpack_bytes(values: Bytes) -> NDArray[np.float32]:
    """Unpack quaternions of version 2: x, y and z; w follows from them, not negative."""
    parts = values.astype(np.float64) / 127.5 - 1
    real = np.sqrt(np.maximum(1 - (parts**2).sum(axis=-1, keepdims=True), 0))
    return np.concatenate([real, parts], axis=-1).astype(np.float32)
