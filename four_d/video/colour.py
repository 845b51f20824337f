"""Conversion of decoded video frames to upright sRGB with square pixels: matrix, range, transfer curve, primaries."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, cast

import numpy as np
from jaxtyping import Float, UInt8, UInt16
from numpy.typing import NDArray

from four_d.video.images import turned
from four_d.video.remarks import Remarks

if TYPE_CHECKING:
    import av

# FFmpeg's numbers (ITU-T H.273)
_LINEAR, _PQ, _HLG = 8, 16, 18
_CURVES = {_LINEAR: "linear", _PQ: "PQ", _HLG: "HLG"}
_BT2020, _P3 = 9, 12
_LIMITED, _FULL = 1, 2
_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
"""H.273 number of a YCbCr matrix → number in swscale; any other is taken as BT.601, as FFmpeg does."""
_TO_709 = {
    _BT2020: ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187)),
    _P3: ((1.2249, -0.2247, 0.0), (-0.0420, 1.0419, 0.0), (-0.0197, -0.0786, 1.0979)),
}
"""Matrices from linear RGB of other primaries (white point D65) to BT.709, the primaries of sRGB."""
WHITE_NITS = 203.0
"""Luminance (cd/m²) of diffuse white in PQ (ITU-R BT.2408), which maps to white in sRGB before the shoulder."""
WHITE_HLG = 0.75
"""Signal of diffuse white in HLG (ITU-R BT.2408), which maps to white in sRGB before the shoulder."""
SHOULDER = 0.9
"""Linear value above which tones are compressed to stay below 1."""
_ROWS = 128
"""Number of rows to tone-map at once, to bound memory."""


def picture(frame: av.VideoFrame, stream: av.VideoStream, said: Remarks) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of a frame as a player shows it; reports corrections."""
    curve, primaries = _coded(frame, stream, "color_trc"), _coded(frame, stream, "color_primaries")
    _remark(frame, said)
    width, height = _square(frame, stream, said)
    if curve in _CURVES or primaries in _TO_709:
        name = _CURVES.get(curve, "wide-gamut")
        said.say(f"{name} colours are converted to sRGB")
        shown = to_srgb(_converted(frame, "rgb48le", width, height), curve, primaries)
    else:
        shown = cast(NDArray[np.uint8], _converted(frame, "rgb24", width, height))
    return _upright(shown, frame, said)


def _coded(frame: av.VideoFrame, stream: av.VideoStream, name: str) -> int:
    """Property of the frame or, in versions of PyAV without it, of its stream."""
    return int(getattr(frame, name, None) or getattr(stream.codec_context, name, 0) or 0)


def _converted(frame: av.VideoFrame, kind: str, width: int, height: int) -> NDArray[np.generic]:
    if frame.format.is_rgb or frame.format.has_palette:
        shown = frame.reformat(width=width, height=height, format=kind, interpolation="BICUBIC")
        return cast(NDArray[np.generic], shown.to_ndarray())
    matrix = _MATRICES.get(int(frame.colorspace), 5)
    full = frame.format.name.startswith(("yuvj", "gray", "ya"))
    found = frame.reformat(
        width=width,
        height=height,
        format=kind,
        src_colorspace=matrix,
        # RGB has no matrix, but older versions of PyAV use the source's only if the target's is given too
        dst_colorspace=1 if matrix == 5 else 5,
        interpolation="BILINEAR" if width == frame.width and height == frame.height else "BICUBIC",
        src_color_range=int(frame.color_range) or (_FULL if full else _LIMITED),
        dst_color_range=_FULL,
    )
    return cast(NDArray[np.generic], found.to_ndarray())


def _square(frame: av.VideoFrame, stream: av.VideoStream, said: Remarks) -> tuple[int, int]:
    """Width and height in square pixels; the width is adapted, as in players."""
    shape = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)
    width = round(frame.width * shape)
    if shape <= 0 or width == frame.width or not 0 < width <= 32 * frame.width:
        return frame.width, frame.height
    ratio = f"{shape.numerator}:{shape.denominator}"
    said.say(
        f"{frame.width}×{frame.height} pixels of shape {ratio} are stretched to {width}×{frame.height} square ones"
    )
    return width, frame.height


def _remark(frame: av.VideoFrame, said: Remarks) -> None:
    if frame.interlaced_frame:
        said.say("is interlaced: each frame shows two moments; deinterlace it for clean motion (ffmpeg -vf yadif)")
    if any(component.is_alpha for component in frame.format.components):
        said.say("transparency is dropped")
    if frame.side_data.get("SPHERICAL") is not None:
        said.say("is a 360° video, seen as an ordinary one: cut an ordinary view out of it (ffmpeg -vf v360)")
    if frame.side_data.get("STEREO3D") is not None:
        said.say("is stereoscopic, seen as one camera: give left and right as two videos if both are in each frame")


def _upright(shown: UInt8[np.ndarray, "h w 3"], frame: av.VideoFrame, said: Remarks) -> UInt8[np.ndarray, "r c 3"]:
    """Rotate and mirror by the display matrix, which maps stored (x, y) to shown (ax + cy, bx + dy), y down."""
    marked = frame.side_data.get("DISPLAYMATRIX")
    if marked is None:
        return shown
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(marked), np.int32)[:5])
    swap = abs(b) + abs(c) > abs(a) + abs(d)
    right, down = (c, b) if swap else (a, d)
    if min(abs(b) + abs(c), abs(a) + abs(d)) > 0.02 * (abs(right) + abs(down)):
        said.say("is marked as turned by an odd angle: it is turned by the nearest quarter")
    return turned(shown, swap=swap, left_right=right < 0, up_down=down < 0)


def to_srgb(pixels: UInt16[np.ndarray, "h w 3"], curve: int, primaries: int) -> UInt8[np.ndarray, "h w 3"]:
    """Convert signals of a curve and primaries (numbers of H.273) to sRGB; colours out of its gamut are clipped.

    In HDR, diffuse white becomes almost white and highlights are compressed, so that the image is about as bright as
    an SDR recording.
    """
    table = _linear(curve)
    if curve in (_PQ, _HLG) and primaries not in _TO_709 and primaries != 1:
        primaries = _BT2020
    matrix = np.array(_TO_709.get(primaries, np.eye(3)), np.float32)
    result = np.empty(pixels.shape, np.uint8)
    for start in range(0, len(pixels), _ROWS):
        light = np.maximum(table[pixels[start : start + _ROWS]] @ matrix.T, 0)
        if curve in (_PQ, _HLG):
            light *= _shoulder(light.max(-1, keepdims=True))
        result[start : start + _ROWS] = _encoded()[np.rint(light.clip(0, 1) * 65535).astype(np.uint16)]
    return result


def _shoulder(brightest: NDArray[np.float32]) -> NDArray[np.float32]:
    """Factor for each pixel that keeps its brightest channel below 1."""
    over = np.maximum(brightest - SHOULDER, 0) / (1 - SHOULDER)
    return np.where(over > 0, (SHOULDER + (1 - SHOULDER) * over / (1 + over)) / np.maximum(brightest, SHOULDER), 1)


@cache
def _linear(curve: int) -> Float[np.ndarray, "n"]:
    """Linear light of every 16-bit signal; 1 is diffuse white."""
    signal = np.arange(65536, dtype=np.float64) / 65535
    if curve == _LINEAR:
        light = signal
    elif curve == _PQ:
        m1, m2, c1, c2, c3 = 1305 / 8192, 2523 / 32, 107 / 128, 2413 / 128, 2392 / 128
        root = signal ** (1 / m2)
        light = (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1) * 10_000 / WHITE_NITS
    elif curve == _HLG:
        light = _hlg(signal) / _hlg(np.array(WHITE_HLG))
    else:
        light = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)


def _hlg(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


@cache
def _encoded() -> NDArray[np.uint8]:
    """8-bit sRGB value of every 16-bit linear value."""
    light = np.arange(65536, dtype=np.float64) / 65535
    signal = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(signal * 255).astype(np.uint8)
