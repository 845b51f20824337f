"""Binary glTF 2.0 (``.glb``): arrays and their description in one file.

glTF's axes are y up and z towards the viewer, its lengths metres, its colours linear; callers convert.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from four_d.errors import UserError
from four_d.outputs import read_whole, write_whole

POINTS = 0
"""Primitive mode of a point cloud; triangles need none."""
VERTICES, INDICES = 34962, 34963
"""Buffer targets of a mesh's arrays in glTF."""
UNLIT = "KHR_materials_unlit"
_HEADER, _CHUNK = struct.Struct("<4sII"), struct.Struct("<I4s")
_TYPES = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_COMPONENTS = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_CODES = {np.dtype(kind): code for code, kind in _COMPONENTS.items()}

Json = dict[str, Any]


@dataclass
class Builder:
    """Builder of a file from arrays and the glTF objects that refer to them."""

    content: Json = field(default_factory=lambda: {"asset": {"version": "2.0", "generator": "four_d"}})
    body: bytearray = field(default_factory=bytearray)

    def add(self, kind: str, value: Json) -> int:
        """Append an object to a list such as "meshes", and return its index."""
        self.content.setdefault(kind, []).append(value)
        return len(self.content[kind]) - 1

    def array(
        self,
        values: NDArray[np.generic],
        *,
        bounds: bool = False,
        normalised: bool = False,
        target: int | None = VERTICES,
    ) -> int:
        """Add an accessor of n values, or n rows of 2 to 4, and return its index; positions and times need ``bounds``.

        ``target`` is None for arrays outside meshes, such as an animation's times.
        """
        code = _CODES[values.dtype.newbyteorder("<")]
        width = 1 if values.ndim == 1 else values.shape[1]
        self.body.extend(b"\0" * (-len(self.body) % 4))
        byte_range: Json = {"buffer": 0, "byteOffset": len(self.body), "byteLength": values.nbytes}
        view = self.add("bufferViews", byte_range | ({} if target is None else {"target": target}))
        self.body.extend(np.ascontiguousarray(values).tobytes())
        kind = next(name for name, size in _TYPES.items() if size == width)
        accessor: Json = {"bufferView": view, "componentType": code, "count": len(values), "type": kind}
        if bounds:
            rows = values.reshape(-1, width)
            accessor |= {"min": rows.min(axis=0).tolist(), "max": rows.max(axis=0).tolist()}
        if normalised:
            accessor["normalized"] = True
        return self.add("accessors", accessor)

    def scene(self, mesh: int) -> int:
        """Make a node with this mesh the scene, and return its index."""
        node = self.add("nodes", {"mesh": mesh})
        self.content["scene"] = self.add("scenes", {"nodes": [node]})
        return node

    def uses(self, extension: str) -> None:
        """Declare an extension that readers may ignore."""
        self.content.setdefault("extensionsUsed", []).append(extension)

    def write(self, path: Path) -> None:
        """Write the file atomically. UserError if that fails."""
        self.body.extend(b"\0" * (-len(self.body) % 4))
        content = self.content | {"buffers": [{"byteLength": len(self.body)}]}
        text = json.dumps(content, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        head = _HEADER.pack(b"glTF", 2, _HEADER.size + 2 * _CHUNK.size + len(text) + len(self.body))
        chunks = _CHUNK.pack(len(text), b"JSON") + text + _CHUNK.pack(len(self.body), b"BIN\0")
        write_whole(path, head + chunks + bytes(self.body))


@dataclass(frozen=True, kw_only=True)
class Document:
    """Contents of a ``.glb`` file."""

    path: Path
    content: Mapping[str, Any]
    body: bytes

    def array(self, accessor: int) -> NDArray[np.float32] | NDArray[np.uint32]:
        """Read an accessor's values, n or n × width, as float32; normalised integers as the numbers they represent.

        Unsigned integers that are not normalised are uint32. UserError if the values are missing.
        """
        try:
            return self._array(self.content["accessors"][accessor])
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise UserError(
                f"{self.path}: accessor {accessor} is incomplete ({error}); write the file again"
            ) from error

    def _array(self, accessor: Mapping[str, Any]) -> NDArray[np.float32] | NDArray[np.uint32]:
        if "sparse" in accessor or accessor.get("extensions"):
            raise ValueError("it is sparse or packed, which is not supported")
        kind, width = np.dtype(_COMPONENTS[accessor["componentType"]]), _TYPES[accessor["type"]]
        view = self.content["bufferViews"][accessor["bufferView"]]
        if view.get("buffer", 0) or view.get("extensions"):
            raise ValueError("its bytes are packed or in another file, which is not supported")
        start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
        stride = view.get("byteStride", kind.itemsize * width)
        shape, strides = (accessor["count"], width), (stride, kind.itemsize)
        values = np.ndarray(shape, kind, self.body, start, strides)
        values = values[:, 0] if width == 1 else values
        if not accessor.get("normalized") and kind.kind == "u":
            return values.astype(np.uint32)
        if not accessor.get("normalized") or kind.kind == "f":
            return values.astype(np.float32)
        return np.maximum(values / np.float32(np.iinfo(kind).max), -1).astype(np.float32)


def read_glb(path: Path) -> Document:
    """Read a ``.glb`` file. UserError if it is not one, is truncated, or has external arrays."""
    data = read_whole(path)
    try:
        magic, version, length = _HEADER.unpack_from(data)
        if magic != b"glTF" or version != 2 or length > len(data):
            raise ValueError("not binary glTF 2.0, or truncated")
        size, _ = _CHUNK.unpack_from(data, _HEADER.size)
        start = _HEADER.size + _CHUNK.size
        content = json.loads(data[start : start + size])
        if "uri" in content.get("buffers", [{}])[0]:
            raise ValueError("its arrays are in another file")
    except (struct.error, ValueError, AttributeError) as error:
        raise UserError(f"{path} does not read as GLB ({error}); save it as one .glb file") from error
    return Document(path=path, content=content, body=data[start + size + _CHUNK.size : length])


def to_linear(srgb: NDArray[np.floating]) -> NDArray[np.float64]:
    """Convert display values in [0, 1] to linear ones, as glTF's colours are."""
    values = srgb.astype(np.float64)
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def to_srgb(linear: NDArray[np.floating]) -> NDArray[np.float64]:
    """Invert `to_linear`."""
    values = linear.astype(np.float64)
    return np.where(values <= 0.0031308, values * 12.92, 1.055 * np.maximum(values, 0) ** (1 / 2.4) - 0.055)
