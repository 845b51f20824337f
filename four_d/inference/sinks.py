"""Sinks of a model's outputs for a video, window by window: memory, or the files of a folder."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast, overload, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from four_d import fields
from four_d.drawing import Drawing
from four_d.formats.clouds import PointCloud, write_ply
from four_d.formats.tracks import write_tracks
from four_d.inference.output import (
    arrays,
    frame_names,
    write_gaussians,
    write_keypoint_table,
    write_keypoint_videos,
    write_maps,
    write_pictures,
    write_poses,
    write_skeletons,
)
from four_d.inference.result import Result
from four_d.tracking import PointTracks
from four_d.types import Prediction
from four_d.video.footage import Stream
from four_d.windows.align import Seam
from four_d.windows.cut import Cut
from four_d.windows.join import Part

FORMAT = 1
CLOUD_POINTS = 4_000_000
"""Maximum number of points in the cloud of a long video."""
RESERVED_NAMES = frozenset({"colmap", "gaussians", "keypoints"})
"""Folders of other outputs."""
SHOWN = 48
"""Number of frames of a long video that the report page shows."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts of an inference run that are known before the first window."""

    times: list[float]
    camera_ids: tuple[int, ...] | None
    unit: str
    cut: Cut
    plan: list[range]
    """Frames of every window."""

    @staticmethod
    def of(stream: Stream, cut: Cut, plan: list[range], unit: str) -> Facts:
        """Facts of a video and its windows."""
        cameras = stream.cameras
        ids = None if cameras == 1 else tuple(index % cameras for index in range(len(stream)))
        return Facts(times=stream.times.tolist(), camera_ids=ids, unit=unit, cut=cut, plan=plan)


@runtime_checkable
class Sink(Protocol):
    """Receiver of a video's outputs in order."""

    def add(self, part: Part[Result], facts: Facts) -> None:
        """Add the next frames, which are final; a video of one window comes with all of its outputs."""
        ...

    def whole(self, facts: Facts) -> Result:
        """Result of all frames after the last `add`, with at least the small fields: cameras, fits, times."""
        ...

    def end(self, whole: Result, facts: Facts, seams: Sequence[Seam]) -> Result:
        """Finish with the whole result, including tracks and Gaussians; return the result for the caller."""
        ...


class Memory:
    """Sink that keeps all outputs in memory."""

    def __init__(self) -> None:
        self._parts: list[Result] = []

    def add(self, part: Part[Result], facts: Facts) -> None:  # noqa: ARG002 - a `Sink`
        """Implement `Sink`."""
        self._parts.append(part.value)

    def whole(self, facts: Facts) -> Result:  # noqa: ARG002 - a `Sink`
        """Implement `Sink`."""
        return self._parts[0].join(self._parts[1:])

    def end(self, whole: Result, facts: Facts, seams: Sequence[Seam]) -> Result:  # noqa: ARG002 - a `Sink`
        """Return the whole result."""
        return whole


class Folder:
    """Sink that writes ``cameras.json``, ``colmap/``, a folder of every drawn field (``depth/``, ``mask/``),
    ``points.ply``, ``tracks.npz``, Gaussians, keypoints, ``prediction.npz`` and, for several windows, ``windows.json``;
    see `infer`.

    For several windows it keeps only small fields in memory. Their cloud is thinned to `CLOUD_POINTS` as it grows, and
    unreliable points are left out window by window.
    """

    def __init__(self, folder: Path, *, static_points: bool = False, novel_views: bool = True) -> None:
        self._folder, self._static, self._novel_views = folder, static_points, novel_views
        self._store: _Arrays | None = None
        self._only: Result | None = None
        self._shown: list[Result] = []
        self._clouds: list[PointCloud] = []
        self._small: list[Result] = []
        self._masks: list[Tensor] = []
        self._drawn: dict[str, tuple[fields.Leaf, Drawing]] = {}

    def add(self, part: Part[Result], facts: Facts) -> None:
        """Implement `Sink`."""
        count, frames, piece = len(facts.times), part.frames, part.value.take(slice(None))
        self._drawn = drawn_fields(piece.prediction)
        self._store = self._store or _Arrays(self._folder, count)
        self._store.add(arrays(dataclasses.replace(piece, prediction=_by_frame(piece.prediction))))
        if piece.prediction.cameras is not None:
            names = frame_names(count, facts.camera_ids)
            write_pictures(piece, names[frames.start : frames.stop], self._folder)
        if piece.keypoint_names:
            write_skeletons(piece, frame_names(count, facts.camera_ids)[frames.start : frames.stop], self._folder)
        cloud = part.value.cloud(static=self._static)
        if len(facts.plan) == 1:
            self._only = part.value
        else:
            self._shown += [_copied(part.take(range(frame, frame + 1)).value) for frame in _shown(count, frames)]
            self._small.append(_placeholder(piece))
            self._masks += [] if piece.mask is None else [piece.mask]
            cloud = None if cloud is None else _thin(cloud, frames, count)
        self._clouds += [] if cloud is None else [cloud]

    def whole(self, facts: Facts) -> Result:  # noqa: ARG002 - a `Sink`
        """Return the result; for several windows without dense maps and images."""
        if self._only is not None:
            return self._only
        kept = self._small[0].join(self._small[1:])
        images = torch.zeros(1, 1, 1, 1).expand(len(kept.times), 3, *kept.fits.model)
        return dataclasses.replace(kept, images=images, mask=torch.cat(self._masks) if self._masks else None)

    def end(self, whole: Result, facts: Facts, seams: Sequence[Seam]) -> Result:
        """Write the files that need all windows.

        Returns:
            The result; for several windows, up to `SHOWN` evenly spaced frames of it, with tracks at their times.

        """
        store, folder, cloud = self._store, self._folder, PointCloud.join(self._clouds) if self._clouds else None
        assert store is not None
        scaled_by = _shown(len(facts.times), range(len(facts.times)))
        for name, (leaf, drawing) in self._drawn.items():
            if drawing.folder is not None and name in store:
                write_maps(folder / drawing.folder, leaf, drawing, store[name], scaled_by, whole.unit)
        if cloud is not None:
            write_ply(folder / "points.ply", cloud)
        if whole.prediction.cameras is not None:
            write_poses(whole, cloud, store, folder)
        if whole.keypoint_names and "keypoint_pixels" in store:
            write_keypoint_table(whole, store, folder)
            write_keypoint_videos(whole.times, frame_names(len(whole.times), whole.camera_ids), folder)
        if (table := whole.track_table) is not None:
            write_tracks(folder / "tracks.npz", table)
        if whole.gaussians:
            write_gaussians(whole, folder, novel_views=self._novel_views)
        rest = dataclasses.replace(whole, prediction=_rest(whole.prediction))
        store.pack(folder / "prediction.npz", {name: v for name, v in arrays(rest).items() if name not in store})
        if self._only is not None:
            return whole
        _write_windows(facts, seams, folder / "windows.json")
        result = _at(
            self._shown[0].join(self._shown[1:]), whole, list(_shown(len(facts.times), range(len(facts.times))))
        )
        return result.with_segments(whole.gaussians) if whole.gaussians else result


def write(result: Result, folder: Path, *, static_points: bool = False, novel_views: bool = True) -> None:
    """Write a result's files into a folder, as `Folder` does."""
    count = len(result.times)
    whole = range(count)
    facts = Facts(
        times=result.times,
        camera_ids=result.camera_ids,
        unit=result.unit,
        cut=Cut(frames=count, overlap=1),
        plan=[whole],
    )
    sink = Folder(folder, static_points=static_points, novel_views=novel_views)
    sink.add(Part(frames=whole, value=result), facts)
    sink.end(result, facts, [])


def _by_frame(prediction: Prediction) -> Prediction:
    """Fields whose first axis is frames, which are written as they arrive."""
    return fields.apply(prediction, lambda leaf, tensor: tensor if leaf.dim("f", tensor) == 0 else None)


def _rest(prediction: Prediction) -> Prediction:
    """All other fields, without cameras and Gaussians."""
    others = dataclasses.replace(prediction, cameras=None, gaussians=None)
    return fields.apply(others, lambda leaf, tensor: None if _framed(leaf, tensor) else tensor)


def drawn_fields(prediction: Prediction) -> dict[str, tuple[fields.Leaf, Drawing]]:
    """Fields that are drawn (`types.drawn`), by their flat names. ValueError where two files would have one name."""
    found = {leaf.label: (leaf, leaf.drawing) for leaf, _ in fields.leaves(prediction) if leaf.drawing is not None}
    taken: dict[str, str] = dict.fromkeys(RESERVED_NAMES, "another file")
    for name, (_, drawing) in found.items():
        other = taken.setdefault(drawing.folder or "", name)
        if drawing.folder is not None and other != name:
            raise ValueError(f"{name} would be written to {drawing.folder}, as {other} is; give it another folder")
    return found


def _framed(leaf: fields.Leaf, tensor: Tensor) -> bool:
    """True if a field can be written frame by frame."""
    return leaf.dim("f", tensor) == 0 and "n" not in leaf.axes


def _shown(count: int, frames: range) -> list[int]:
    """Frames among ``frames`` that the report page shows, for a video of ``count`` frames."""
    every = sorted(set(np.linspace(0, count - 1, SHOWN).round().astype(int).tolist()))
    return [frame for frame in every if frame in frames]


def _thin(cloud: PointCloud, frames: range, count: int) -> PointCloud:
    """Thin the cloud of ``frames`` to their fraction of all points, and make its frame indices those of the video."""
    few = cloud.thin(CLOUD_POINTS * len(frames) // count)
    return dataclasses.replace(few, frames=few.frames + np.int32(frames.start))


def _copied(one: Result) -> Result:
    """Copy the tensors of one frame, so that they do not keep their window in memory."""
    prediction = fields.apply(fields.without(one.prediction, "q"), lambda _, tensor: tensor.clone())
    return dataclasses.replace(one, prediction=prediction, images=one.images.clone())


def _placeholder(piece: Result) -> Result:
    """Keep the small fields; images become placeholders without memory."""
    nothing = np.zeros((), np.uint8)
    return dataclasses.replace(
        piece,
        prediction=dataclasses.replace(_rest(piece.prediction), cameras=piece.prediction.cameras),
        images=torch.empty(len(piece.times), 3, 0, 0),
        frames=[np.broadcast_to(nothing, (*size, 3)) for size in piece.fits.originals],
        mask=None,
    )


def _write_windows(facts: Facts, seams: Sequence[Seam], path: Path) -> None:
    times = facts.times
    entries = [
        {
            "frames": [frames.start, frames.stop - 1],
            "times": [times[frames.start], times[frames.stop - 1]],
            "seam": None if seam is None else dataclasses.asdict(seam),
        }
        for frames, seam in zip(facts.plan, [None, *seams], strict=True)
    ]
    note = "each window is seen alone; its seam says how well it fits onto the window before on the frames they share"
    content = {"format": FORMAT, "note": note, "unit": facts.unit, "window": facts.cut.frames}
    path.write_text(json.dumps({**content, "overlap": facts.cut.overlap, "windows": entries}, indent=1) + "\n")


def _at(some: Result, whole: Result, frames: Sequence[int]) -> Result:
    """Result of some frames with the tracks of the whole video; queries move to the nearest of these frames."""
    prediction, rows = whole.prediction, list(frames)
    followed = fields.take(dataclasses.replace(prediction, cameras=None, gaussians=None), "f", rows)
    prediction = fields.combine(
        [some.prediction, followed], lambda _, parts: parts[0] if parts[1] is None else parts[1]
    )
    assert prediction is not None
    return dataclasses.replace(
        some,
        prediction=prediction,
        tracks=None if whole.tracks is None else _tracks_at(whole.tracks, torch.tensor(some.times), rows),
        queries=None if whole.queries is None else _queries_at(whole.queries, rows),
    )


def _tracks_at(tracks: PointTracks, times: Tensor, frames: list[int]) -> PointTracks:
    index = (times.unique()[:, None].double() - tracks.times.double()).abs().argmin(1)
    return PointTracks(
        queries=_queries_at(tracks.queries, frames),
        points=tracks.points[:, index],
        visible=tracks.visible[:, index],
        times=tracks.times[index],
        pixels=None if tracks.pixels is None else tracks.pixels[:, frames],
        jitter=tracks.jitter,
    )


def _queries_at(queries: Tensor, frames: list[int]) -> Tensor:
    nearest = (queries[:, :1] - torch.tensor(frames)).abs().argmin(1)
    return torch.cat([nearest[:, None].float(), queries[:, 1:]], dim=-1)


class _Arrays:
    """Arrays of all frames on disk, written and read frame by frame, and packed into one NPZ at the end."""

    def __init__(self, folder: Path, frames: int) -> None:
        self._folder, self._frames = folder, frames
        self._maps: dict[str, _Maps] = {}

    def add(self, values: dict[str, NDArray[np.generic]]) -> None:
        """Append the next frames to the arrays along the first axis; every call must give the same arrays."""
        for name, value in values.items():
            if name not in self._maps:
                file = self._folder / f".{name}.npy"
                self._maps[name] = _Maps(file, value.shape[1:], value.dtype, self._frames)
            with self._maps[name].file.open("ab") as stream:
                stream.write(np.ascontiguousarray(value).tobytes())

    def __contains__(self, name: str) -> bool:
        return name in self._maps

    def __getitem__(self, name: str) -> _Maps:
        return self._maps[name]

    def pack(self, path: Path, more: dict[str, NDArray[np.generic]]) -> None:
        """Write ``path`` as a compressed NPZ with additional arrays, and remove the parts."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as packed:
            for name, maps in self._maps.items():
                packed.write(maps.file, f"{name}.npy")
                maps.file.unlink()
            for name, value in more.items():
                with packed.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, value)


class _Maps(Sequence[NDArray[np.float32]]):
    """Array in an NPY file, read one frame at a time."""

    def __init__(self, file: Path, shape: tuple[int, ...], dtype: np.dtype[np.generic], frames: int) -> None:
        self.file, self._shape, self._dtype, self._frames = file, shape, dtype, frames
        with file.open("wb") as stream:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (frames, *shape)}
            np.lib.format.write_array_header_2_0(stream, header)
            self._start = stream.tell()

    def __len__(self) -> int:
        return self._frames

    @overload
    def __getitem__(self, index: int) -> NDArray[np.float32]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[NDArray[np.float32]]: ...
    def __getitem__(self, index: int | slice) -> NDArray[np.float32] | Sequence[NDArray[np.float32]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._frames))]
        if not 0 <= index < self._frames:
            raise IndexError(index)
        size = int(np.prod(self._shape))
        offset = self._start + index * size * self._dtype.itemsize
        values = np.fromfile(self.file, self._dtype, size, offset=offset).reshape(self._shape)
        return cast(NDArray[np.float32], values)
