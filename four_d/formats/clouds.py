"""Point clouds: fused from a prediction, and as binary PLY."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from four_d.errors import UserError
from four_d.formats.ply import header, read_vertices
from four_d.geometry import point_maps, reliable
from four_d.types import Prediction

LOGGER = logging.getLogger(__name__)

_RECORD = np.dtype(
    [(name, "<f4") for name in ("x", "y", "z")]
    + [(name, "u1") for name in ("red", "green", "blue")]
    + [("frame", "<i4"), ("confidence", "<f4")]
)


@dataclass(frozen=True, kw_only=True)
class PointCloud:
    """n coloured points in world coordinates."""

    points: NDArray[np.float32]
    """n 3"""
    colours: NDArray[np.uint8]
    """n 3, RGB."""
    frames: NDArray[np.int32]
    """n: frame of the point's pixel."""
    confidence: NDArray[np.float32]
    """n: the model's confidence; 1 where it has none."""

    def __len__(self) -> int:
        return len(self.points)

    def take(self, chosen: NDArray[np.intp] | NDArray[np.bool_]) -> PointCloud:
        """Select points by index or mask."""
        return PointCloud(
            points=self.points[chosen],
            colours=self.colours[chosen],
            frames=self.frames[chosen],
            confidence=self.confidence[chosen],
        )

    @staticmethod
    def join(clouds: Sequence[PointCloud]) -> PointCloud:
        """Concatenate one or more clouds."""
        return PointCloud(
            points=np.concatenate([cloud.points for cloud in clouds]),
            colours=np.concatenate([cloud.colours for cloud in clouds]),
            frames=np.concatenate([cloud.frames for cloud in clouds]),
            confidence=np.concatenate([cloud.confidence for cloud in clouds]),
        )

    def thin(self, most: int) -> PointCloud:
        """Subsample to at most ``most`` points, evenly spaced in their order."""
        if len(self) <= most:
            return self
        return self.take(np.linspace(0, len(self) - 1, most).astype(np.intp))


def fuse(images: Float[Tensor, "f 3 h w"], prediction: Prediction) -> PointCloud | None:
    """Fuse all frames into one cloud in the first camera's world; None if the model gives no geometry.

    The points are `geometry.world_points`, without the least confident pixels, pixels between two surfaces, and points
    that are behind the camera or not finite.
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


def write_ply(path: Path, cloud: PointCloud) -> None:
    """Write a binary little-endian PLY with position, colour, frame and confidence of each point."""
    records = np.empty(len(cloud), dtype=_RECORD)
    for axis, name in enumerate(("x", "y", "z")):
        records[name] = cloud.points[:, axis]
    for channel, name in enumerate(("red", "green", "blue")):
        records[name] = cloud.colours[:, channel]
    records["frame"], records["confidence"] = cloud.frames, cloud.confidence
    columns = [(name, _RECORD[name].str.lstrip("|<")) for name in _RECORD.names or ()]
    path.write_bytes(header(len(cloud), columns) + records.tobytes())


def read_ply(path: Path) -> PointCloud:
    """Read the points of a PLY of any program; `write_ply`'s exactly.

    In other programs' files, points without colour are white; integer colours span their type's range, floats [0, 1];
    all points are of frame 0 with confidence 1. Points that are not finite are left out, with a note on stderr.

    Raises:
        UserError: no such file, no PLY (`read_vertices`), or one of other things than points in space.

    """
    columns = read_vertices(path)
    if missing := [name for name in ("x", "y", "z") if name not in columns]:
        raise UserError(f"{path} has no {missing[0]}: it holds no points; give a PLY of points")
    with np.errstate(over="ignore"):  # values beyond float32 become infinite, and are left out as such
        points = np.stack([columns[name].astype(np.float32) for name in ("x", "y", "z")], axis=-1)
    colours = [_colour(columns.get(name), len(points)) for name in ("red", "green", "blue")]
    cloud = PointCloud(
        points=points,
        colours=np.stack(colours, axis=-1),
        frames=columns.get("frame", np.zeros(len(points))).astype(np.int32),
        confidence=columns.get("confidence", np.ones(len(points))).astype(np.float32),
    )
    good = np.flatnonzero(np.isfinite(points).all(axis=-1))
    if len(good) == len(cloud):
        return cloud
    broken = len(cloud) - len(good)
    LOGGER.warning(f"{path}: {broken:,} of {len(cloud):,} points are not finite and left out")
    return cloud.take(good)


def _colour(values: NDArray[np.generic] | None, count: int) -> NDArray[np.uint8]:
    """Convert one colour channel to uint8."""
    if values is None:
        return np.full(count, 255, np.uint8)
    maximum = 1 if values.dtype.kind == "f" else np.iinfo(values.dtype.str).max
    return (np.nan_to_num(values.astype(np.float64)) * (255 / maximum)).round().clip(0, 255).astype(np.uint8)
