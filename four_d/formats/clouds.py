"""Point clouds: fused from a prediction, and as binary PLY."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from four_d.errors import UserError
from four_d.geometry import invert_pose, transform, world_points
from four_d.types import Cameras, Prediction

EDGE = 0.1
"""Relative bend of inverse depth between neighbouring pixels above which a pixel hangs between two surfaces."""
LEAST_CONFIDENT = 0.2
"""Share of each clip's pixels that is left out, the least confident ones."""

_FIELDS = (
    ("x", "<f4", "float"),
    ("y", "<f4", "float"),
    ("z", "<f4", "float"),
    ("red", "u1", "uchar"),
    ("green", "u1", "uchar"),
    ("blue", "u1", "uchar"),
    ("frame", "<i4", "int"),
    ("confidence", "<f4", "float"),
)
_RECORD = np.dtype([(name, kind) for name, kind, _ in _FIELDS])


@dataclass(frozen=True, kw_only=True)
class PointCloud:
    """n coloured points in world coordinates."""

    points: NDArray[np.float32]
    """n 3"""
    colours: NDArray[np.uint8]
    """n 3, RGB."""
    frames: NDArray[np.int32]
    """n: the frame that saw the point."""
    confidence: NDArray[np.float32]
    """n: the model's own; 1 where it has none."""

    def __len__(self) -> int:
        return len(self.points)

    def take(self, chosen: NDArray[np.intp] | NDArray[np.bool_]) -> PointCloud:
        """The points of an index or mask."""
        return PointCloud(
            points=self.points[chosen],
            colours=self.colours[chosen],
            frames=self.frames[chosen],
            confidence=self.confidence[chosen],
        )

    @staticmethod
    def join(clouds: Sequence[PointCloud]) -> PointCloud:
        """The points of all of them, one or more."""
        return PointCloud(
            points=np.concatenate([cloud.points for cloud in clouds]),
            colours=np.concatenate([cloud.colours for cloud in clouds]),
            frames=np.concatenate([cloud.frames for cloud in clouds]),
            confidence=np.concatenate([cloud.confidence for cloud in clouds]),
        )

    def thin(self, most: int) -> PointCloud:
        """At most ``most`` points, evenly spread over the order they stand in."""
        if len(self) <= most:
            return self
        return self.take(np.linspace(0, len(self) - 1, most).astype(np.intp))


def fuse(images: Float[Tensor, "f 3 h w"], prediction: Prediction) -> PointCloud | None:
    """One cloud of all frames in the world of the first camera; None if the model gives no geometry.

    The points are `geometry.world_points`. Left out are the least confident pixels, pixels that hang between two
    surfaces, and what is behind the camera or not finite.
    """
    maps = point_maps(prediction)
    if maps is None:
        return None
    points, depth, confidence = maps
    keep = reliable(depth, confidence) & points.isfinite().all(-1)
    frames = torch.arange(len(points), device=keep.device)[:, None, None].expand(keep.shape)
    colours = (images.permute(0, 2, 3, 1) * 255).round().clamp(0, 255)
    return PointCloud(
        points=points[keep].float().cpu().numpy(),
        colours=colours[keep].to(torch.uint8).cpu().numpy(),
        frames=frames[keep].to(torch.int32).cpu().numpy(),
        confidence=confidence[keep].float().cpu().numpy(),
    )


def point_maps(prediction: Prediction) -> tuple[Tensor, Tensor, Tensor] | None:
    """World points f h w 3, z-depth f h w and confidence f h w of an unbatched prediction.

    Of a point map without cameras the depth is that before the first one.
    """
    points, cameras = world_points(prediction), prediction.cameras
    if points is None:
        return None
    if prediction.depth is not None and cameras is not None:
        depth, confidence = prediction.depth, prediction.depth_confidence
    else:
        own = points if cameras is None else _in_cameras(points, cameras)
        depth, confidence = own[..., 2], prediction.points_confidence
    return points, depth, torch.ones_like(depth) if confidence is None else confidence


def _in_cameras(points: Float[Tensor, "f h w 3"], cameras: Cameras) -> Float[Tensor, "f h w 3"]:
    """Each frame's points in its own camera."""
    camera_from_world = invert_pose(cameras.world_from_camera)
    return transform(camera_from_world, points.flatten(1, 2)).unflatten(1, points.shape[1:3])


def reliable(depth: Float[Tensor, "f h w"], confidence: Float[Tensor, "f h w"]) -> Bool[Tensor, "f h w"]:
    """Pixels worth a point: in front of the camera, not at a depth edge, not among the least confident of the clip.

    Inverse depth is linear in the pixel on any plane, however slanted; an edge bends it. So the test is on its second
    difference, relative to itself.
    """
    front = depth.isfinite() & (depth > 1e-6)
    inverse = torch.where(front, 1 / depth.clamp_min(1e-6), torch.zeros_like(depth))
    bend = torch.zeros_like(inverse)
    bend[:, 1:-1] = (inverse[:, 2:] - 2 * inverse[:, 1:-1] + inverse[:, :-2]).abs()
    across = (inverse[:, :, 2:] - 2 * inverse[:, :, 1:-1] + inverse[:, :, :-2]).abs()
    bend[:, :, 1:-1] = torch.maximum(bend[:, :, 1:-1], across)
    # of equal confidences (a model without any) none is the least
    sorted_confidence = confidence.flatten().sort().values
    least = sorted_confidence[int(LEAST_CONFIDENT * (sorted_confidence.numel() - 1))]
    return front & (bend <= EDGE * inverse) & (confidence >= least)


def write_ply(path: Path, cloud: PointCloud) -> None:
    """Write a binary little-endian PLY with position, colour, frame and confidence of each point."""
    records = np.empty(len(cloud), dtype=_RECORD)
    for axis, name in enumerate(("x", "y", "z")):
        records[name] = cloud.points[:, axis]
    for channel, name in enumerate(("red", "green", "blue")):
        records[name] = cloud.colours[:, channel]
    records["frame"], records["confidence"] = cloud.frames, cloud.confidence
    with path.open("wb") as file:
        file.write(_header(len(cloud)).encode("ascii"))
        file.write(records.tobytes())


def read_ply(path: Path) -> PointCloud:
    """The inverse of `write_ply`; PLY files of other programs are refused."""
    content = path.read_bytes()
    head, end, body = content.partition(b"end_header\n")
    lines = head.decode("ascii", "replace").splitlines()
    counts = [line.split()[-1] for line in lines if line.startswith("element vertex ")]
    if not end or len(counts) != 1 or not counts[0].isdigit() or head + end != _header(int(counts[0])).encode("ascii"):
        raise UserError(f"{path} is not a point cloud written by four_d; run four-d infer again")
    if len(body) != int(counts[0]) * _RECORD.itemsize:
        raise UserError(f"{path} is cut short: {len(body)} bytes for {counts[0]} points; run four-d infer again")
    records = np.frombuffer(body, dtype=_RECORD)
    return PointCloud(
        points=np.stack([records[name] for name in ("x", "y", "z")], axis=-1),
        colours=np.stack([records[name] for name in ("red", "green", "blue")], axis=-1),
        frames=records["frame"].copy(),
        confidence=records["confidence"].copy(),
    )


def _header(count: int) -> str:
    properties = "".join(f"property {kind} {name}\n" for name, _, kind in _FIELDS)
    return f"ply\nformat binary_little_endian 1.0\ncomment four_d\nelement vertex {count}\n{properties}end_header\n"
