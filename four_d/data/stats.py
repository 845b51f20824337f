"""`four-d data stats`: statistics of a data set that determine its value for training."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from four_d import geometry
from four_d import surface as surfaces
from four_d.data.check import spread
from four_d.data.contract import RawClip
from four_d.data.shards import open_shards
from four_d.data.truth import Truth, truth
from four_d.progress import progress
from four_d.types import Cameras

DEPTH_RATIO = 3.0
"""Ratio of the 95 % to the 5 % depth quantile from which a frame has both near and far content."""
DYNAMIC_RANGE = (0.03, 0.4)
"""Range of the fraction of moving pixels that is neither too small nor too large."""
ROTATION_DEG = 5.0
"""Rotation from which a camera counts as turning."""
OCCLUDED_FRACTION = 0.02
"""Fraction of the tracked points from which a clip counts as one with occlusion, or with re-appearance."""
CELLS = 8
"""Rows and columns of the mean depth map."""
TRACKS = 256
"""Points tracked per camera, where a surface gives them."""


@dataclass(frozen=True, kw_only=True)
class ClipStats:
    """Statistics of one clip. Lists are empty where the clip lacks their data."""

    key: str
    source: str
    frames: int
    cameras: int
    seconds: float
    fps: float
    """NaN for a single time."""
    depth_ratio: list[float]
    """Per frame: 95 % over 5 % quantile of depth."""
    depth_median: list[float]
    """Per frame, in the source's units."""
    depth_cells: list[NDArray[np.float64]]
    """Per frame with depth: logarithm of each cell's median depth over the frame's, in `CELLS` rows and columns; NaN
    where a cell has none."""
    dynamic_fraction: list[float]
    """Per frame: fraction of moving pixels, of those with truth."""
    invalid_fraction: float
    """Fraction of pixels without depth; NaN for a source without depth."""
    rotation_deg: list[float]
    """Per camera: the largest angle to its first frame."""
    translation: list[float]
    """Per camera: the largest distance from its first place, in the source's units."""
    between_cameras_deg: list[float]
    """Per camera after the first: angle to the first at the first time."""
    fov_deg: list[float]
    """Per camera: horizontal field of view of its first frame."""
    occluded_fraction: float
    """Fraction of tracked points that become occluded inside the image; NaN without tracks."""
    reappearing_fraction: float
    """Fraction of tracked points that reappear after they were occluded or outside; NaN without tracks."""
    brightness: float
    """Mean of the images, in [0, 1]."""
    contrast: float
    """Standard deviation of grey within a frame, mean over frames."""


def clip_stats(clip: RawClip) -> ClipStats:
    """Statistics of a clip that conforms to the layout."""
    known = truth(clip)
    rows = [np.flatnonzero(np.array(clip.info.camera_ids) == camera) for camera in sorted(set(clip.info.camera_ids))]
    times = np.array(clip.info.times)
    steps = np.diff(times[rows[0]])
    grey = clip.images.astype(np.float32).mean(-1) / 255
    poses = [] if known.cameras is None else [known.cameras.world_from_camera[r].double() for r in rows]
    occluded, reappearing = _hidden_fractions(clip, known, rows)
    quantiles = _depth_quantiles(known)
    return ClipStats(
        key=clip.key,
        source=clip.info.source,
        frames=len(times),
        cameras=len(rows),
        seconds=float(np.ptp(times)),
        fps=float(1 / np.median(steps)) if len(steps) else float("nan"),
        depth_ratio=[float(q[2] / q[0]) for q in quantiles],
        depth_median=[float(q[1]) for q in quantiles],
        depth_cells=_depth_cells(known),
        invalid_fraction=float("nan") if known.depth is None else float((known.depth <= 0).float().mean()),
        dynamic_fraction=_dynamic_fractions(known),
        rotation_deg=[max(_angles(pose[:1], pose)) for pose in poses],
        translation=[float((pose[:, :3, 3] - pose[:1, :3, 3]).norm(dim=-1).max()) for pose in poses],
        between_cameras_deg=[_angles(poses[0][:1], pose[:1])[0] for pose in poses[1:]],
        fov_deg=_fields_of_view(known.cameras, rows, clip.info.width),
        occluded_fraction=occluded,
        reappearing_fraction=reappearing,
        brightness=float(grey.mean()),
        contrast=float(grey.std((1, 2)).mean()),
    )


def _angles(a: torch.Tensor, b: torch.Tensor) -> list[float]:
    return torch.rad2deg(geometry.rotation_angle(a[:, :3, :3].mT @ b[:, :3, :3])).tolist()


def _fields_of_view(cameras: Cameras | None, rows: list[NDArray[np.intp]], width: int) -> list[float]:
    if cameras is None:
        return []
    focal = cameras.intrinsics[[int(r[0]) for r in rows], 0, 0]
    return torch.rad2deg(2 * torch.atan(width / 2 / focal)).tolist()


def _depth_quantiles(known: Truth) -> list[NDArray[np.float64]]:
    """5, 50 and 95 % of each frame that has depth."""
    depths = [] if known.depth is None else [frame[frame > 0].numpy() for frame in known.depth]
    return [np.quantile(depth, (0.05, 0.5, 0.95)) for depth in depths if len(depth)]


def _depth_cells(known: Truth) -> list[NDArray[np.float64]]:
    frames = [] if known.depth is None else [frame.numpy() for frame in known.depth]
    return [_cells(frame) for frame in frames if (frame > 0).any()]


def _cells(depth: NDArray[np.float32]) -> NDArray[np.float64]:
    known = np.where(depth > 0, depth, np.nan).astype(np.float64)
    rows, columns = (np.array_split(np.arange(size), CELLS) for size in depth.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # cells without depth
        median = [[np.nanmedian(known[np.ix_(row, column)]) for column in columns] for row in rows]
        return np.log(np.array(median) / np.nanmedian(known))


def view_spread(cells: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Farthest over nearest cell of the mean map of relative depth, and the share of relative depth that it explains.

    The share is 1 − Σ(d − mean)² / Σd² over all cells' logarithms d. Where all cameras take one view (a near floor
    below, walls above), both are high, and a model can learn the map in place of the pictures. NaN without depth.
    """
    if not cells:
        return float("nan"), float("nan")
    frames = np.stack(cells)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        mean = np.nanmean(frames, axis=0)
    total, rest = np.nansum(frames**2), np.nansum((frames - mean) ** 2)
    explained = float(1 - rest / total) if total > 0 else float("nan")
    return float(np.exp(np.nanmax(mean) - np.nanmin(mean))), explained


def _dynamic_fractions(known: Truth) -> list[float]:
    if known.dynamic is None:
        return []
    counted = torch.ones_like(known.dynamic) if known.depth is None else known.depth > 0
    moving = (known.dynamic & counted).sum((1, 2))
    return (moving / counted.sum((1, 2)).clamp_min(1)).tolist()


def _hidden_fractions(clip: RawClip, known: Truth, rows: list[NDArray[np.intp]]) -> tuple[float, float]:
    """Fractions of tracked points that become occluded inside the image, and that reappear."""
    if known.cameras is None:
        return float("nan"), float("nan")
    hidden: list[bool] = []
    reappeared: list[bool] = []
    for frames in rows:
        followed = _tracks_of_camera(clip, known, torch.from_numpy(frames))
        if followed is None:
            return float("nan"), float("nan")
        points, visible = followed  # t n 3, t n
        cameras = Cameras(
            world_from_camera=known.cameras.world_from_camera[torch.from_numpy(frames)],
            intrinsics=known.cameras.intrinsics[torch.from_numpy(frames)],
        )
        pixels, z = geometry.project(points, cameras)
        size = torch.tensor([clip.info.width, clip.info.height])
        inside = (z > 0) & (pixels > 0).all(-1) & (pixels < size).all(-1)
        before, after = _seen_before(visible), _seen_before(visible.flip(0)).flip(0)
        covered = inside & ~visible & before
        hidden += (covered[1:] & covered[:-1]).any(0).tolist()  # twice in a row: one may be an edge's rounding
        unseen = ~visible & before & after
        reappeared += (unseen[1:] & unseen[:-1]).any(0).tolist()
    if not hidden:
        return float("nan"), float("nan")
    return float(np.mean(hidden)), float(np.mean(reappeared))


def _seen_before(visible: torch.Tensor) -> torch.Tensor:
    return visible.int().cumsum(0) > 0


def _tracks_of_camera(clip: RawClip, known: Truth, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Track one camera's points over its frames: a grid of its first frame, or the stored tracks."""
    if clip.tracks is not None and clip.info.track_times is not None:
        times = np.array(clip.info.times)[frames.numpy()]
        at = np.abs(np.subtract.outer(times, clip.info.track_times)).argmin(-1)
        usable = clip.tracks.valid.all(-1)
        points, visible = clip.tracks.points[usable][:, at], clip.tracks.visible[usable][:, at]
        return torch.from_numpy(points).transpose(0, 1), torch.from_numpy(visible).T
    if known.surface is None or known.cameras is None:
        return None
    surface = dataclasses.replace(
        known.surface, faces=known.surface.faces[frames], barycentric=known.surface.barycentric[frames]
    )
    cameras = Cameras(
        world_from_camera=known.cameras.world_from_camera[frames], intrinsics=known.cameras.intrinsics[frames]
    )
    h, w = surface.faces.shape[1:]
    side = max(1, round((h * w / TRACKS) ** 0.5))
    pixels = geometry.pixel_centres(h, w, known.times)[side // 2 :: side, side // 2 :: side].reshape(-1, 2)
    first = torch.zeros(len(pixels), dtype=torch.long)
    tracks = surfaces.tracks(surface, cameras, known.times[frames], first, pixels)
    usable = tracks.valid.all(-1)
    return tracks.points[usable].transpose(0, 1), tracks.visible[usable].T


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Quantiles of a statistic; NaN if nothing was counted."""

    count: int
    low: float
    """5 %"""
    median: float
    high: float
    """95 %"""

    @classmethod
    def of(cls, values: Iterable[float]) -> Distribution:
        """Quantiles of the finite values."""
        numbers = np.array([value for value in values if np.isfinite(value)])
        low, median, high = np.quantile(numbers, (0.05, 0.5, 0.95)) if len(numbers) else (float("nan"),) * 3
        return cls(count=len(numbers), low=float(low), median=float(median), high=float(high))


@dataclass(frozen=True, kw_only=True)
class SourceStats:
    """Amount of data examined of one source."""

    clips: int
    frames: int
    cameras: int
    """Videos: one per clip and camera."""
    seconds: float
    """Length of all videos together."""


@dataclass(frozen=True, kw_only=True)
class DataStats:
    """Statistics of many clips."""

    name: str
    sources: dict[str, SourceStats]
    distributions: dict[str, Distribution]
    shares: dict[str, float]
    """Fractions of frames or clips that meet a condition; NaN where nothing was counted."""
    mean_map: float = float("nan")
    """Farthest over nearest cell of the mean depth map (`view_spread`); NaN without depth."""

    def to_dict(self) -> dict[str, object]:
        """Convert to plain containers for JSON; NaN and infinity become None."""
        plain = dataclasses.asdict(self)
        plain["distributions"] = {
            name: {field: value if math.isfinite(value) else None for field, value in row.items()}
            for name, row in plain["distributions"].items()
        }
        plain["mean_map"] = self.mean_map if math.isfinite(self.mean_map) else None
        plain["shares"] = {name: value if math.isfinite(value) else None for name, value in self.shares.items()}
        return plain

    def table(self) -> str:
        """Table for a terminal."""
        rows = [self.name, f"{'source':<36}{'clips':>8}{'videos':>8}{'frames':>9}{'minutes':>9}"]
        rows += [
            f"{name:<36}{s.clips:>8}{s.cameras:>8}{s.frames:>9}{s.seconds / 60:>9.1f}"
            for name, s in self.sources.items()
        ]
        rows += ["", f"{'figure':<36}{'5 %':>8}{'median':>8}{'95 %':>9}{'count':>9}"]
        rows += [
            f"{name:<36}{d.low:>8.3g}{d.median:>8.3g}{d.high:>9.3g}{d.count:>9}"
            for name, d in self.distributions.items()
            if d.count
        ]
        rows += ["", *(f"{name:<60}{share:>7.1%}" for name, share in self.shares.items() if share == share)]
        if self.mean_map == self.mean_map:
            rows.append(f"{'mean depth map, farthest over nearest cell':<60}{self.mean_map:>7.3g}")
        return "\n".join(rows)


def stats(folder: str | Path, clips: int | None = None, *, shown: bool = True) -> DataStats:
    """Compute statistics of a data set, in a folder or behind an address, or of ``clips`` of its clips, evenly spread.

    UserError as `shards.open_shards`.
    """
    with open_shards(folder, kept=None if clips is None else 1) as reader:
        chosen = spread(len(reader), clips)
        collected: list[ClipStats] = []
        with progress("stats", len(chosen), "clip", shown=shown) as bar:
            for index in chosen:
                collected.append(clip_stats(reader.read(index)))
                bar.advance()
        return summarise(collected, reader.manifest.name)


def summarise(clips: Sequence[ClipStats], name: str = "") -> DataStats:
    """Aggregate the statistics of many clips."""
    mean_map, explained = view_spread([each for c in clips for each in c.depth_cells])
    by_source = {source: [c for c in clips if c.source == source] for source in sorted({c.source for c in clips})}
    return DataStats(
        name=name,
        mean_map=mean_map,
        sources={
            source: SourceStats(
                clips=len(group),
                frames=sum(c.frames for c in group),
                cameras=sum(c.cameras for c in group),
                seconds=sum(c.seconds * c.cameras for c in group),
            )
            for source, group in by_source.items()
        },
        distributions={
            "depth, 95 % over 5 % (frame)": Distribution.of(x for c in clips for x in c.depth_ratio),
            "depth, median (frame)": Distribution.of(x for c in clips for x in c.depth_median),
            "moving pixels (frame)": Distribution.of(x for c in clips for x in c.dynamic_fraction),
            "moving pixels (clip)": Distribution.of(_mean(c.dynamic_fraction) for c in clips),
            "pixels without depth (clip)": Distribution.of(c.invalid_fraction for c in clips),
            "rotation, degrees (camera)": Distribution.of(x for c in clips for x in c.rotation_deg),
            "distance from the start (camera)": Distribution.of(x for c in clips for x in c.translation),
            "between cameras, degrees": Distribution.of(x for c in clips for x in c.between_cameras_deg),
            "field of view, degrees (camera)": Distribution.of(x for c in clips for x in c.fov_deg),
            "frames per second (clip)": Distribution.of(c.fps for c in clips),
            "seconds (clip)": Distribution.of(c.seconds for c in clips),
            "points that become occluded (clip)": Distribution.of(c.occluded_fraction for c in clips),
            "points that reappear (clip)": Distribution.of(c.reappearing_fraction for c in clips),
            "brightness (clip)": Distribution.of(c.brightness for c in clips),
            "contrast (clip)": Distribution.of(c.contrast for c in clips),
        },
        shares={
            f"frames with a depth ratio of at least {DEPTH_RATIO:g}": _mean(
                [x >= DEPTH_RATIO for c in clips for x in c.depth_ratio]
            ),
            f"clips with {DYNAMIC_RANGE[0]:.0%} to {DYNAMIC_RANGE[1]:.0%} moving pixels": _mean(
                [DYNAMIC_RANGE[0] <= _mean(c.dynamic_fraction) <= DYNAMIC_RANGE[1] for c in clips if c.dynamic_fraction]
            ),
            f"clips with a camera that turns by {ROTATION_DEG:g}° or more": _mean(
                [max(c.rotation_deg) >= ROTATION_DEG for c in clips if c.rotation_deg]
            ),
            f"cameras that turn by {ROTATION_DEG:g}° or more": _mean(
                [x >= ROTATION_DEG for c in clips for x in c.rotation_deg]
            ),
            "relative depth that the mean depth map explains": explained,
            "clips with occlusion": _mean([hides(c) for c in clips if c.occluded_fraction == c.occluded_fraction]),
            "clips with occlusion or re-appearance": _mean(
                [hides(c) or reappears(c) for c in clips if c.occluded_fraction == c.occluded_fraction]
            ),
        },
    )


def hides(clip: ClipStats) -> bool:
    """True if enough tracked points become occluded inside the image."""
    return clip.occluded_fraction >= OCCLUDED_FRACTION


def reappears(clip: ClipStats) -> bool:
    """True if enough tracked points reappear after they were unseen."""
    return clip.reappearing_fraction >= OCCLUDED_FRACTION


def _mean(values: Sequence[float] | Sequence[bool]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
