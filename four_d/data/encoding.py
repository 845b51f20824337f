"""Encoding of a sample's members to bytes and back. Decoders are our own: none can run code embedded in a file."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import math
import re
import zlib
from collections.abc import Callable
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from four_d.data.contract import VERSION, ClipInfo, KeypointInfo, ObjectInfo, RawClip, problems

LOGGER = logging.getLogger(__name__)

Array = NDArray[np.generic]

MAX_BYTES = 2**29
"""Maximum decoded size of an array."""
MAX_PIXELS = 2**26
"""Maximum number of pixels of an image."""

JPEG_QUALITY = 95
_GZIP = 16 + zlib.MAX_WBITS
# Only this form of header is accepted: others can name object dtypes, whose data NumPy would unpickle.
_HEADER = re.compile(
    rb"\{'descr': '([<|][fiub]\d)', 'fortran_order': False, 'shape': \((\d{0,12}(?:, ?\d{1,12})*),?\), \}[ ]*\n"
)


class BadMemberError(ValueError):
    """Error for a member whose bytes violate the layout; the text is the reason."""


COUNTS = 65535
"""Greatest count of a depth PNG."""
_UNITS = [float(f"{digit}e{power}") for power in range(-9, 7) for digit in (1, 2, 5)]
CLIP = "clip.json"
"""Name of the member that every sample has."""


def encode_clip(clip: RawClip, *, lossless: bool = False) -> dict[str, bytes]:
    """Encode every member of a sample: extension → bytes, deterministically.

    ``lossless`` stores the images as PNG instead of JPEG. ValueError names the violation of the layout.
    """
    if violations := problems(clip):
        raise ValueError(f"clip {clip.key}: {violations[0]}")
    if clip.depth is not None and clip.info.depth_unit is None:
        clip = with_unit(clip)
    members = {CLIP: _encode_info(clip.info)}
    for frame, image in enumerate(clip.images):
        name, data = ("png", encode_png(image)) if lossless else ("jpg", encode_jpeg(image))
        members[f"f{frame:03d}.image.{name}"] = data
    if clip.world_from_camera is not None and clip.intrinsics is not None:
        members["cameras.npy"] = encode_npy(pack_cameras(clip.world_from_camera, clip.intrinsics))
    elif clip.intrinsics is not None:
        members["intrinsics.npy"] = encode_npy(pack_intrinsics(clip.intrinsics))
    members |= _encode_maps(clip) | _encode_surface(clip)
    if clip.tracks is not None:
        members["tracks.npy"] = encode_npy(clip.tracks.points)
        members["tracks_visible.npy"] = encode_npy(clip.tracks.visible)
        members["tracks_valid.npy"] = encode_npy(clip.tracks.valid)
    if clip.keypoints is not None:
        members["keypoints.npy"] = encode_npy(clip.keypoints.points)
        members["keypoints_valid.npy"] = encode_npy(clip.keypoints.valid)
        members["keypoints_pixels.npy"] = encode_npy(clip.keypoints.pixels)
        members["keypoints_pixels_valid.npy"] = encode_npy(clip.keypoints.pixels_valid)
        members["keypoints_visible.npy"] = encode_npy(clip.keypoints.visible)
    return members


def _encode_info(info: ClipInfo) -> bytes:
    content = dataclasses.asdict(info)
    for name in ("keypoints", "home", "depth_tolerance", "pixel_tolerance"):
        if content[name] is None:
            del content[name]  # so that clips without any keep their bytes
    return json.dumps(content, separators=(",", ":")).encode()


def _encode_maps(clip: RawClip) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    if clip.depth is not None:
        if not clip.info.depth_unit or not clip.info.depth_unit > 0:
            raise ValueError(f"clip {clip.key}: depth_unit is {clip.info.depth_unit}; give source units per count")
        counts = np.rint(clip.depth / clip.info.depth_unit)
        if counts.min() < 0 or counts.max() > 65535:
            raise ValueError(f"clip {clip.key}: depth does not fit 16 bits in units of {clip.info.depth_unit}")
        for frame, depth in enumerate(counts.astype(np.uint16)):
            members[f"f{frame:03d}.depth.png"] = encode_png(depth)
    if clip.dynamic is not None:
        for frame, mask in enumerate(clip.dynamic):
            members[f"f{frame:03d}.dynamic.png"] = encode_png(mask.astype(np.uint8) * 255)
    return members


def with_unit(clip: RawClip) -> RawClip:
    """Set the `fitting_unit` of a clip's depth; what lies beyond 16 bits of it becomes invalid, which is logged."""
    assert clip.depth is not None
    unit = fitting_unit(clip.depth)
    beyond = clip.depth > unit * COUNTS
    if beyond.any():
        share = beyond.sum() / max((clip.depth > 0).sum(), 1)
        LOGGER.warning(
            f"clip {clip.key}: {share:.1%} of its depth is beyond {unit * COUNTS:.4g} and left out; a unit that "
            "holds it would round the nearest depth by more than 0.5 %"
        )
    depth = np.where(beyond, np.float32(0), clip.depth)
    return dataclasses.replace(clip, depth=depth, info=dataclasses.replace(clip.info, depth_unit=unit))


def fitting_unit(depth: NDArray[np.float32]) -> float:
    """Source units per count that suit depth (0 = invalid), 1, 2 or 5 times a power of ten.

    The smallest that holds the farthest in 16 bits, but none that rounds the nearest by more than 0.5 %.
    """
    valid = depth[depth > 0]
    if not valid.size:
        return 1.0
    nearest, farthest = np.quantile(valid, 0.001), float(valid.max())
    coarsest, wanted = float(nearest) * 0.01, farthest / COUNTS
    fitting = [unit for unit in _UNITS if unit >= wanted]
    return min(fitting[0] if fitting else _UNITS[-1], max(unit for unit in _UNITS if unit <= max(coarsest, _UNITS[0])))


def _encode_surface(clip: RawClip) -> dict[str, bytes]:
    surface = clip.surface
    if surface is None:
        return {}
    members = {
        "triangles.npy.gz": encode_gzip(encode_npy(surface.triangles)),
        "instances.npy.gz": encode_gzip(encode_npy(surface.instances)),
        "vertices.npy.gz": encode_gzip(encode_npy(surface.vertices)),
        "moving.npy.gz": encode_gzip(encode_npy(surface.moving)),
        "moving_vertices.npy": encode_npy(surface.moving_vertices),
    }
    for frame in range(len(surface.faces)):
        members[f"f{frame:03d}.faces.npy.gz"] = encode_gzip(encode_npy(surface.faces[frame]))
        members[f"f{frame:03d}.barycentric.npy.gz"] = encode_gzip(encode_npy(surface.barycentric[frame]))
    return members


def pack_cameras(world_from_camera: NDArray[np.float64], intrinsics: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pack ``f 4 4`` poses and ``f 3 3`` intrinsics into the stored ``f 5 4``. ValueError if intrinsics have skew."""
    return np.concatenate([world_from_camera, pack_intrinsics(intrinsics)[:, None]], axis=1)


def pack_intrinsics(intrinsics: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pack ``f 3 3`` intrinsics into rows fx fy cx cy. ValueError if they have skew."""
    if np.abs(intrinsics[:, 0, 1]).max(initial=0) > 1e-9:
        raise ValueError("intrinsics have skew, which the layout cannot hold; undistort and resample the images")
    return intrinsics[:, [0, 1, 0, 1], [0, 1, 2, 2]]


def unpack_cameras(packed: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Invert `pack_cameras`."""
    return np.ascontiguousarray(packed[:, :4]), unpack_intrinsics(packed[:, 4])


def unpack_intrinsics(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Invert `pack_intrinsics`."""
    intrinsics = np.zeros((len(rows), 3, 3))
    intrinsics[:, [0, 1, 0, 1], [0, 1, 2, 2]] = rows
    intrinsics[:, 2, 2] = 1
    return intrinsics


def encode_jpeg(image: NDArray[np.uint8]) -> bytes:
    """Encode ``h w 3`` as JPEG, quality 95, 4:4:4."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "jpeg", quality=JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def encode_png(image: Array) -> bytes:
    """Encode uint8 ``h w`` or ``h w 3``, or uint16 ``h w``, as PNG."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png", compress_level=3)
    return stream.getvalue()


def decode_image(data: bytes, mode: str, height: int, width: int, *, reduction: int = 1) -> Array:
    """Decode a JPEG or PNG that must have this size and Pillow mode (RGB, L, I;16).

    ``reduction`` (1, 2, 4, 8) of a JPEG averages squares of so many pixels, which is faster; its size is rounded up.
    """
    if not 0 < height * width <= MAX_PIXELS:
        raise BadMemberError(f"has {width} x {height} pixels by clip.json, not 1 to {MAX_PIXELS}")
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if image.size != (width, height) or image.mode != mode:
                raise BadMemberError(f"is {image.mode} {image.size}, not {mode} {(width, height)}")
            if reduction > 1:  # which only JPEGs heed
                image.draft(None, (max(width // reduction, 1), max(height // reduction, 1)))
            return np.asarray(image)
    except BadMemberError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds at damaged bytes
        raise BadMemberError(f"is not an image: {error}") from error


def encode_npy(value: Array) -> bytes:
    """Encode an array in NumPy's own format, version 1, little-endian."""
    stream = io.BytesIO()
    value = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
    np.lib.format.write_array(stream, value, version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def npy_header(data: bytes) -> tuple[np.dtype[np.generic], tuple[int, ...], int]:
    """dtype, shape and header length of an .npy file from its first bytes."""
    length = 10 + int.from_bytes(data[8:10], "little")
    match = _HEADER.fullmatch(data[10:length])
    if data[:8] != b"\x93NUMPY\x01\x00" or match is None:
        raise BadMemberError("is not a plain little-endian .npy array (version 1, C order, numbers only)")
    shape = tuple(int(size) for size in match[2].decode().split(",") if size.strip())
    try:
        return np.dtype(match[1].decode()), shape, length
    except TypeError as error:
        raise BadMemberError(f"is of type {match[1].decode()}, which does not exist") from error


def decode_npy(data: bytes, dtype: str, shape: tuple[int | None, ...]) -> Array:
    """Decode an array, which must have this dtype and shape (None: any size), into its own memory."""
    stored_dtype, sizes, start = npy_header(data)
    matches = len(sizes) == len(shape) and all(expected in (None, actual) for expected, actual in zip(shape, sizes))
    if stored_dtype != np.dtype(dtype) or not matches:
        raise BadMemberError(f"is {stored_dtype} {sizes}, not {dtype} {shape}")
    if len(data) - start != math.prod(sizes) * stored_dtype.itemsize:
        raise BadMemberError(f"has {len(data) - start} bytes of data, which does not make {stored_dtype} {sizes}")
    return np.frombuffer(data, stored_dtype, offset=start).reshape(sizes).copy()


def encode_gzip(data: bytes) -> bytes:
    """Compress at gzip's fastest level, without time stamp or name."""
    compressor = zlib.compressobj(level=1, wbits=_GZIP)
    return compressor.compress(data) + compressor.flush()


def decode_gzip(data: bytes) -> bytes:
    """Decompress an .npy file, which must be complete and no larger than its own header says, nor than `MAX_BYTES`."""
    decompressor = zlib.decompressobj(wbits=_GZIP)
    try:
        head = zlib.decompressobj(wbits=_GZIP).decompress(data, 10 + 2**16)
        dtype, shape, start = npy_header(head)
        size = start + math.prod(shape) * dtype.itemsize
        if size > MAX_BYTES:
            raise BadMemberError(f"decodes to {size} bytes; at most {MAX_BYTES} are read")
        result = decompressor.decompress(data, size + 1)
    except zlib.error as error:
        raise BadMemberError(f"is not valid gzip data: {error}") from error
    if not decompressor.eof:
        raise BadMemberError(f"is truncated, or decodes to more than the {size} bytes that its header says")
    return result


def decode_info(data: bytes) -> ClipInfo:
    """Decode clip.json. BadMemberError for missing or unknown fields and values of the wrong type."""
    try:
        content = cast(object, json.loads(data))
    except (ValueError, RecursionError) as error:
        raise BadMemberError(f"is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise BadMemberError("is not a JSON object")
    fields = cast(dict[str, object], content)
    if fields.get("version") != VERSION:
        raise BadMemberError(f"has layout version {fields.get('version')}; this four_d reads {VERSION}")
    by_name = {field.name: field for field in dataclasses.fields(ClipInfo)}
    required = {name for name, field in by_name.items() if _has_no_default(field)}
    if wrong := sorted(required - fields.keys()) + sorted(fields.keys() - by_name.keys()):
        raise BadMemberError(f"lacks or does not know the field {wrong[0]!r}")
    for name, value in fields.items():
        fields[name] = _read_field(name, value)
    return ClipInfo(**fields)  # pyright: ignore[reportArgumentType]


def _has_no_default(field: dataclasses.Field[object]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _read_field(name: str, value: object) -> object:
    if name in _OPTIONAL and value is None:
        return None
    try:
        return _FIELDS[name](value)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadMemberError(f"field {name!r}: {error}") from error


def _exactly(kind: type) -> Callable[[object], object]:
    def read(value: object) -> object:
        if type(value) is not kind:
            raise TypeError(f"{value!r} is not of type {kind.__name__}")
        return value

    return read


def _integer(value: object) -> int:
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise TypeError(f"{value!r:.60} is not an integer of 64 bits")
    return value


def _side(value: object) -> int:
    if not 0 < _integer(value) <= MAX_PIXELS:
        raise ValueError(f"{value} is not 1 to {MAX_PIXELS} pixels")
    return cast(int, value)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise TypeError(f"{value!r} is not a finite number")
    return float(value)


def _list_of(read: Callable[[object], object]) -> Callable[[object], object]:
    def read_all(value: object) -> object:
        if not isinstance(value, list):
            raise TypeError(f"{value!r} is not a list")
        return [read(item) for item in cast(list[object], value)]

    return read_all


def _object(value: object) -> ObjectInfo:
    if not isinstance(value, dict) or not all(
        isinstance(text, str) for text in cast(dict[str, object], value).values()
    ):
        raise TypeError(f"{value!r} is not an object of name and motion")
    return ObjectInfo(**cast(dict[str, str], value))


def _keypoints(value: object) -> KeypointInfo:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is not an object of names, instances, edges and rigid")
    fields = dict(cast(dict[str, object], value))
    edges = _list_of(_list_of(_integer))(fields.pop("edges", []))
    return KeypointInfo(
        names=cast(list[str], _list_of(_exactly(str))(fields.pop("names", None))),
        instances=cast(list[int], _list_of(_integer)(fields.pop("instances", None))),
        edges=[cast(tuple[int, int], tuple(edge)) for edge in cast(list[list[int]], edges)],
        rigid=cast(list[bool], _list_of(_exactly(bool))(fields.pop("rigid", []))),
        **fields,  # pyright: ignore[reportArgumentType] - there are none, or it is a TypeError
    )


_OPTIONAL = {
    *("surface_times", "track_times", "depth_unit", "depth_tolerance", "pixel_tolerance", "seed", "generator"),
    *("keypoints", "home"),
}
_FIELDS: dict[str, Callable[[object], object]] = {
    "source": _exactly(str),
    "licence": _exactly(str),
    "metric": _exactly(bool),
    "width": _side,
    "height": _side,
    "times": _list_of(_number),
    "camera_ids": _list_of(_integer),
    "surface_times": _list_of(_number),
    "track_times": _list_of(_number),
    "depth_unit": _number,
    "depth_tolerance": _number,
    "pixel_tolerance": _number,
    "objects": _list_of(_object),
    "seed": _exactly(int),
    "generator": _exactly(dict),
    "keypoints": _keypoints,
    "home": _exactly(str),
    "version": _exactly(int),
}
