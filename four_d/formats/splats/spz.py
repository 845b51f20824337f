"""Gaussians as SPZ, Niantic's packed format, about a tenth of the PLY: version 3 is written, 2 and 3 are read.

A gzip stream of a header of 16 bytes and, one after the other for all Gaussians: positions (24-bit fixed point),
opacities (a byte), constant colours (a byte each), logarithms of scale (a byte each), rotations (version 3: the three
smallest parts of the quaternion in 10 bits each and which is the largest; version 2: x, y and z in a byte each), higher
harmonics (a byte each, in [-1, 1]). Its axes are right, up, back: they are turned on the way. Like PLY it has no time.

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
from four_d.formats.whole import read_whole, write_whole
from four_d.types import Gaussians

MAGIC, VERSION = 0x5053474E, 3
_HEADER = struct.Struct("<IIIBBBB")
_HAS_EXTENSIONS = 2
COLOUR_SCALE = 0.15
"""Constant harmonics c are stored as 255 · (0.15 c + 0.5)."""
MOST_FRACTIONAL_BITS = 20
_MAGNITUDE = 511 * math.sqrt(2)
"""Of the 9 bits for a part of a quaternion that is not the largest, hence at most √½."""

Bytes = NDArray[np.uint8]


def write_spz(path: Path, gaussians: Gaussians, time: float = 0.0) -> None:
    """Write the Gaussians as they are at a time in seconds; `write_times` writes all of a deformable scene's.

    What is lost: scales are kept to 3 %, colours and opacities to about 1/255, higher harmonics to 1/256 and within ±1,
    positions to one in four million of the farthest one.

    Raises:
        UserError: Gaussians that are not sound (`sound`), or a file that cannot be written.

    """
    fixed = flip(state_at(sound(gaussians), time))
    bits = _fractional_bits(fixed.means)
    degree = COEFFICIENTS.index(fixed.harmonics.shape[1])
    parts = [
        _pack_positions(fixed.means.double().numpy(), bits),
        _bytes(fixed.opacities * 255),
        _bytes((COLOUR_SCALE * fixed.harmonics[:, 0] + 0.5) * 255),
        _bytes((fixed.scales.clamp_min(1e-12).log() + 10) * 16),
        _pack_quaternions(fixed.quats.double().numpy()),
        _bytes(fixed.harmonics[:, 1:] * 128 + 128),
    ]
    header = _HEADER.pack(MAGIC, VERSION, len(fixed.means), degree, bits, 0, 0)
    content = header + b"".join(part.tobytes() for part in parts)
    write_whole(path, gzip.compress(content, mtime=0))


def _fractional_bits(means: torch.Tensor) -> int:
    """As many as leave room for the farthest position in 24 bits with sign."""
    farthest = float(means.abs().max()) if len(means) else 0.0
    whole = max(math.ceil(math.log2(farthest + 1e-9) + 1e-6), 23 - MOST_FRACTIONAL_BITS)
    if whole > 23:
        raise UserError(f"a Gaussian is {farthest:.3g} away, farther than SPZ can say; write PLY, glTF or USD")
    return 23 - whole


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
    for part in range(3):
        value = np.take_along_axis(quats, _others(largest)[:, part, None], axis=-1)[:, 0]
        magnitude = np.rint(np.abs(value) * _MAGNITUDE).clip(0, 511).astype(np.uint32)
        packed = packed << 10 | (value < 0).astype(np.uint32) << 9 | magnitude
    return packed.astype("<u4")


def _others(largest: NDArray[np.integer]) -> NDArray[np.intp]:
    """Which three of the parts x, y, z, w are not the largest, ascending."""
    parts = np.arange(3)
    return parts + (parts >= largest[:, None])


def read_spz(path: Path) -> Gaussians:
    """The Gaussians of a file of version 2 or 3, in our axes.

    Raises:
        UserError: no such file, another version, harmonics of degree 4, vendors' extensions, or a file cut short.

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
        raise UserError(f"{path} is cut short: {len(content)} bytes for {count} Gaussians; copy or write it again")
    ends = np.cumsum([_HEADER.size, *(count * width for width in widths)])
    places, alphas, colours, scales, turns, rest = (
        np.frombuffer(content[start:end], np.uint8).reshape(count, width)
        for start, end, width in zip(ends[:-1], ends[1:], widths, strict=True)
    )
    constant = (_floats(colours) / 255 - 0.5) / COLOUR_SCALE
    packed = Gaussians(
        means=torch.from_numpy(_unpack_positions(places, bits)),
        quats=torch.from_numpy(_unpack_quaternions(turns) if version == 3 else _unpack_bytes(turns)),
        scales=(_floats(scales) / 16 - 10).exp(),
        opacities=_floats(alphas)[:, 0] / 255,
        harmonics=torch.cat([constant[:, None], (_floats(rest).reshape(count, higher, 3) - 128) / 128], dim=1),
    )
    return flip(packed)


def _unzip(path: Path) -> bytes:
    content = read_whole(path)
    if content.startswith(MAGIC.to_bytes(4, "little")):
        raise UserError(f"{path} is SPZ of version 4 or later; save it as version 3")
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a whole SPZ file ({error}); copy or write it again") from error


def _floats(values: Bytes) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _unpack_positions(values: Bytes, bits: int) -> NDArray[np.float32]:
    parts = values.reshape(len(values), 3, 3).astype(np.int32)
    fixed = parts[..., 0] | parts[..., 1] << 8 | parts[..., 2] << 16
    return ((fixed ^ 2**23) - 2**23).astype(np.float32) / np.float32(2**bits)


def _unpack_quaternions(values: Bytes) -> NDArray[np.float32]:
    packed = values.copy().view("<u4")[:, 0]
    largest = (packed >> 30).astype(np.intp)
    quats = np.zeros((len(packed), 4))
    for part in (2, 1, 0):
        magnitude = (packed & 511) / _MAGNITUDE
        at = _others(largest)[:, part, None]
        np.put_along_axis(quats, at, np.where(packed & 512, -magnitude, magnitude)[:, None], axis=-1)
        packed = packed >> 10
    rest = np.sqrt(np.maximum(1 - (quats**2).sum(axis=-1), 0))
    np.put_along_axis(quats, largest[:, None], rest[:, None], axis=-1)
    return np.roll(quats, 1, axis=-1).astype(np.float32)


def _unpack_bytes(values: Bytes) -> NDArray[np.float32]:
    """Quaternions of version 2: x, y and z; w is the rest, not negative."""
    parts = values.astype(np.float64) / 127.5 - 1
    real = np.sqrt(np.maximum(1 - (parts**2).sum(axis=-1, keepdims=True), 0))
    return np.concatenate([real, parts], axis=-1).astype(np.float32)
