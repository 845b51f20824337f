"""Small MOVi scenes as TFDS writes them, rendered exactly: two boxes, one of them tumbling, on a floor under a dome."""

from __future__ import annotations

import io
import itertools
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import roma
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from numpy.typing import NDArray
from PIL import Image

from four_d.datasets.tfrecord import crc32c

Features = Mapping[str, Sequence[bytes] | NDArray[Any]]
FRAMES, SIZE = 6, 64
FOCAL, SENSOR = 35.0, 32.0
DOME = 15.0
HALF = np.array([[0.9, 0.5, 0.6], [0.5, 0.7, 0.4]])
"""Half extents of the boxes, scale included."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Poses of a camera (Blender's axes) and of two boxes, each frame."""

    eye: NDArray[np.float64]
    turn: NDArray[np.float64]
    """f 3 3, world_from_camera, axes right, up, backwards."""
    places: NDArray[np.float64]
    turns: NDArray[np.float64]
    """n f 3 3."""

    def hits(self, frame: int, rays: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Distance along unit rays n 3 from the camera, and what is hit: a box, or −1."""
        eye = self.eye[frame]
        with np.errstate(divide="ignore", invalid="ignore"):
            floor = np.where(rays[:, 2] < 0, -eye[2] / rays[:, 2], np.inf)
        along = rays @ eye
        nearest = np.minimum(floor, -along + np.sqrt(along**2 - eye @ eye + DOME**2))
        found = np.full(len(rays), -1)
        for i, half in enumerate(HALF):
            turn = self.turns[i, frame]
            start, way = (eye - self.places[i, frame]) @ turn, rays @ turn
            near, far = np.sort(np.stack([(-half - start) / way, (half - start) / way]), axis=0)
            enter, leave = near.max(-1), far.min(-1)
            hit = (enter < leave) & (enter > 0) & (enter < nearest)
            nearest, found = np.where(hit, enter, nearest), np.where(hit, i, found)
        return nearest, found

    def rays(self, frame: int, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Unit rays of pixels n 2, corner origin."""
        focal = FOCAL / SENSOR * SIZE
        local = np.column_stack([(pixels - SIZE / 2) / focal * [1, -1], -np.ones(len(pixels))])
        local = local @ self.turn[frame].T
        return local / np.linalg.norm(local, axis=-1, keepdims=True)

    def fractions(self, frame: int, points: NDArray[np.float64], boxes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Coordinates of points n 3 in their boxes, from 0 to 1; 0 of the surroundings."""
        result = np.zeros(points.shape)
        for i, half in enumerate(HALF):
            own = boxes == i
            local = (points[own] - self.places[i, frame]) @ self.turns[i, frame]
            result[own] = local / half / 2 + 0.5
        return result

    def corners(self) -> NDArray[np.float32]:
        """Corners n f 8 3 in Kubric's order: x slowest, z fastest."""
        signs = np.array(list(itertools.product([-1, 1], repeat=3)))
        return np.stack(
            [
                np.stack([(signs * half) @ self.turns[i, f].T + self.places[i, f] for f in range(FRAMES)])
                for i, half in enumerate(HALF)
            ]
        ).astype(np.float32)


@cache
def scene() -> Scene:
    moments = np.linspace(0, 1, FRAMES)
    eye = np.stack([4.5 + 0.8 * moments, -4 + 1.2 * moments, 3.5 + 0.2 * moments], -1)
    back = eye / np.linalg.norm(eye, axis=-1, keepdims=True)
    right = np.cross([0.0, 0, 1], back)
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    turn = np.stack([right, np.cross(back, right), back], -1)
    angles = torch.tensor([[0.0, 0, 0], [0.2, 0.4, 1.0]], dtype=torch.float64)
    spin = torch.from_numpy(np.stack([0 * moments, 1.2 * moments], 0))[..., None]
    turns = roma.rotvec_to_rotmat(angles[:, None] + spin * torch.tensor([0.3, 1.0, 0.5])).numpy()
    places = np.stack(
        [
            np.tile([-0.3, 0.4, 0.6], (FRAMES, 1)),
            np.stack([1.4 - 1.5 * moments, -0.9 + 0.9 * moments, 1 + 0 * moments], -1),
        ]
    )
    return Scene(eye=eye, turn=turn, places=places, turns=turns)


def _pattern(points: NDArray[np.float64]) -> NDArray[np.uint8]:
    waves = np.stack([np.sin(points @ axis * 5) for axis in ([1.0, 0.3, 0.2], [0.1, 1, 0.5], [0.7, -0.4, 1.1])], -1)
    return (127 + 120 * waves * np.sin(points.sum(-1, keepdims=True) * 2.3)).astype(np.uint8)


def corners() -> NDArray[np.float64]:
    """Upper left corners of all pixels, n 2."""
    return np.stack(np.meshgrid(*[np.arange(float(SIZE))] * 2), -1).reshape(-1, 2)


def render(frame: int, sampled: float) -> dict[str, NDArray[Any]]:
    """Image at the pixels' centres; distance, box and its coordinates at ``sampled``, from the pixels' corners."""
    known, shape = scene(), (SIZE, SIZE)
    found: list[NDArray[Any]] = []
    for at in (0.5, sampled):
        rays = known.rays(frame, corners() + at)
        distance, box = known.hits(frame, rays)
        points = known.eye[frame] + rays * distance[:, None]
        inside = known.fractions(frame, points, box)
        found += [_pattern(np.where(box[:, None] < 0, points, 3 * inside + box[:, None])), distance, box, inside]
    image, _, _, _, _, distance, box, inside = found
    return {
        "image": image.reshape(*shape, 3),
        "distance": distance.reshape(shape),
        "box": box.reshape(shape),
        "inside": inside.reshape(*shape, 3),
    }


def png(values: NDArray[np.generic]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(values).save(content, "PNG")
    return content.getvalue()


def png_of_words(values: NDArray[np.uint16]) -> bytes:
    """Encode h w 3 with 16 bits a channel; row i has the filter i mod 5."""
    height, width = values.shape[:2]
    rows = np.zeros((height + 1, 6 * (width + 1)), np.int64)
    rows[1:, 6:] = values.astype(">u2").view(np.uint8).reshape(height, -1)
    stream = bytearray()
    for y in range(height):
        up, left, corner = rows[y, 6:], rows[y + 1, :-6], rows[y, :-6]
        guess = left + up - corner
        order = np.stack([abs(guess - left), abs(guess - up), abs(guess - corner)]).argmin(0)
        paeth = np.choose(order, [left, up, corner])
        filtered = rows[y + 1, 6:] - [0 * up, left, up, (left + up) // 2, paeth][y % 5]
        stream += bytes([y % 5]) + (filtered & 0xFF).astype(np.uint8).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(stream))), (b"IEND", b""))
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@cache
def _message() -> type:
    """tf.train.Example, by Google's own Protocol Buffers."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tf", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    lists = {"BytesList": kinds.TYPE_BYTES, "FloatList": kinds.TYPE_FLOAT, "Int64List": kinds.TYPE_INT64}
    for name, kind in lists.items():
        file.message_type.add(name=name).field.add(name="value", number=1, type=kind, label=kinds.LABEL_REPEATED)
    feature = file.message_type.add(name="Feature")
    for number, (name, field) in enumerate(zip(lists, ("bytes_list", "float_list", "int64_list")), start=1):
        feature.field.add(
            name=field, number=number, type=kinds.TYPE_MESSAGE, type_name=f".tf.{name}", label=kinds.LABEL_OPTIONAL
        )
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    entry.field.add(
        name="value", number=2, type=kinds.TYPE_MESSAGE, type_name=".tf.Feature", label=kinds.LABEL_OPTIONAL
    )
    features.field.add(
        name="feature",
        number=1,
        type=kinds.TYPE_MESSAGE,
        type_name=".tf.Features.FeatureEntry",
        label=kinds.LABEL_REPEATED,
    )
    file.message_type.add(name="Example").field.add(
        name="features", number=1, type=kinds.TYPE_MESSAGE, type_name=".tf.Features", label=kinds.LABEL_OPTIONAL
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tf.Example"))


def example(features: Features) -> bytes:
    """Serialise features by TFDS' rule: integers and booleans as int64, floats as float32."""
    message = _message()()
    for name, values in features.items():
        stored = message.features.feature[name]
        if not isinstance(values, np.ndarray):
            stored.bytes_list.value.extend(values)
        elif values.dtype.kind == "f":
            stored.float_list.value.extend(values.ravel().tolist())
        else:
            stored.int64_list.value.extend(values.astype(int).ravel().tolist())
    return message.SerializeToString()


def features(rendered: int) -> dict[str, Sequence[bytes] | NDArray[Any]]:
    """Features of the scene, of pictures that were rendered ``rendered`` pixels wide; flow is left empty."""
    step = rendered // SIZE
    frames = [render(frame, ((step - 1) // 2 + 0.5) / step) for frame in range(FRAMES)]
    distances = np.stack([each["distance"] for each in frames]).astype(np.float32)
    low, high = distances.min(), distances.max()
    counts = np.round((distances - low) / (high - low) * 65535).astype(np.uint16)
    known = scene()
    turns = roma.quat_xyzw_to_wxyz(roma.rotmat_to_unitquat(torch.from_numpy(known.turn))).numpy()
    return {
        "metadata/video_name": [b"1234"],
        "metadata/width": np.array(SIZE),
        "metadata/height": np.array(SIZE),
        "metadata/num_frames": np.array(FRAMES),
        "metadata/num_instances": np.array(2),
        "metadata/depth_range": np.array([low, high], np.float32),
        "instances/bboxes_3d": known.corners(),
        "instances/bbox_frames/ragged_row_lengths_0": np.array([6, 6]),
        "instances/is_dynamic": np.array([False, True]),
        "camera/focal_length": np.array(FOCAL, np.float32),
        "camera/sensor_width": np.array(SENSOR, np.float32),
        "camera/positions": known.eye.astype(np.float32),
        "camera/quaternions": turns.astype(np.float32),
        "events/collisions/frame": np.zeros(0, int),
        "forward_flow": np.zeros(0, int),
        "video": [png(each["image"]) for each in frames],
        "depth": [png(each) for each in counts],
        "segmentations": [png((each["box"] + 1).astype(np.uint8)) for each in frames],
        "object_coordinates": [png_of_words((each["inside"].clip(0, 1) * 65535).astype(np.uint16)) for each in frames],
    }


def framed(data: bytes) -> bytes:
    """A TFRecord: length, data, and their checksums, turned and shifted."""

    def checksum(part: bytes) -> bytes:
        crc = crc32c(part)
        return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(data))
    return length + checksum(length) + data + checksum(data)


def write(root: Path, name: str = "movi_f", records: int = 2, changed: Features | None = None) -> Path:
    """Write one file of so many equal records, some features ``changed``, and what TFDS says of it."""
    folder = root / name / f"{SIZE}x{SIZE}" / "1.0.0"
    folder.mkdir(parents=True)
    content = {**features(512 if name == "movi_f" else 256), **(changed or {})}
    path = folder / f"{name}-train.tfrecord-00000-of-01024"
    path.write_bytes(framed(example(content)) * records)
    lengths = [str(records), *["9"] * 1023]
    info = {"name": name, "splits": [{"name": "train", "shardLengths": lengths}]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return path
