"""A model on a long video: window by window, what is final written at once, so that memory is bounded by the window."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from four_d.errors import UserError
from four_d.formats.clouds import PointCloud, write_ply
from four_d.formats.depth import write_depth
from four_d.formats.tracks import write_tracks
from four_d.inference import video as videos
from four_d.inference.chain import Chain
from four_d.inference.hints import Known
from four_d.inference.inputs import Frames, Source, gather
from four_d.inference.mask import Mask, write_masks
from four_d.inference.output import arrays, frame_names, write_gaussians, write_pictures, write_poses
from four_d.inference.parts import Part, join_frames
from four_d.inference.result import Result
from four_d.inference.run import LoadedModel, Points
from four_d.inference.seams import Seam
from four_d.inference.segments import Segments
from four_d.inference.video import Selection, Stream
from four_d.inference.windows import Windows, join
from four_d.progress import progress
from four_d.tracking import PointTracks
from four_d.types import Prediction

FORMAT = 1
CLOUD_POINTS = 4_000_000
"""Most points of a long video's cloud."""
SHOWN = 48
"""Frames of a long video that the page shows."""


def opened(frames: Frames, selection: Selection | None, windows: Windows) -> Source | Stream:
    """All frames at once if they fit into a window; else to be read bit by bit, which holds a file's or folder's frames
    only as they are needed, but for several cameras, whose frames are all held.
    """
    path = _one_path(frames)
    if path is not None:
        if len(videos.stream(path, selection)) <= windows.frames:
            return gather(frames, selection)
        found = videos.counted(path, selection)
        return found if len(found) > windows.frames else gather(frames, selection)
    source = gather(frames, selection)
    return source if len(source.video.times) <= windows.frames * source.video.cameras else _of_source(source)


def _one_path(frames: Frames) -> Path | None:
    if isinstance(frames, Sequence) and not isinstance(frames, str) and len(frames) == 1:
        frames = cast(Frames, frames[0])
    return Path(frames) if isinstance(frames, str | Path) else None


def _of_source(source: Source) -> Stream:
    video, floats = source.video, source.floats
    return Stream(
        frames=lambda: iter(video.frames),
        times=video.times,
        total=video.total,
        indices=video.indices,
        cameras=video.cameras,
        floats=floats,
    )


@dataclass(frozen=True, kw_only=True)
class Run:
    """A model, a video of more than one window, and what the user says of it; see `LoadedModel`."""

    model: LoadedModel
    stream: Stream
    windows: Windows
    mask: Mask | None
    points: Points | None
    known: Known | None
    tracks: bool = True
    seams: list[Seam] = field(default_factory=list[Seam])
    """One for each window but the first, as they get done."""

    def __post_init__(self) -> None:
        if self.points is not None and not len(self.points):
            raise UserError("points are an empty list; give at least one (x, y)")

    @property
    def plan(self) -> list[range]:
        """Frames of every window."""
        cameras = self.stream.cameras
        of_times = self.windows.plan(len(self.stream) // cameras)
        return [range(part.start * cameras, part.stop * cameras) for part in of_times]

    @property
    def camera_ids(self) -> tuple[int, ...] | None:
        """As of a result."""
        cameras = self.stream.cameras
        return None if cameras == 1 else tuple(index % cameras for index in range(len(self.stream)))

    def parts(self, chain: Chain) -> Iterator[Part]:
        """Every frame once, in the first window's world; `windows.join`."""
        return join(self._seen(chain), self.seams, chain)

    def _seen(self, chain: Chain) -> Iterator[Part]:
        """Every window in its own world."""
        plan, floats = self.plan, self.stream.floats
        with progress("windows", len(plan), "window") as bar:
            for frames, video in zip(plan, self.stream.windows(plan), strict=True):
                some = None if floats is None else floats[frames.start : frames.stop]
                asked = chain.ask(frames)
                follow = self.tracks and asked != []
                result = self.model.plain.window(
                    Source(video=video, floats=some), self.mask, asked or None, self.known, tracks=follow
                )
                if frames.start == 0 and self.points is not None:
                    result.fit.points_to_model(torch.tensor([point[-2:] for point in self.points]).float())
                yield Part(
                    frames=frames,
                    fit=result.fit,
                    prediction=result.prediction,
                    images=result.images,
                    originals=result.frames,
                    mask=result.mask,
                    tracks=result.tracks,
                )
                bar.advance()

    def segments(self) -> Segments | None:
        """What makes this video's Gaussians. UserError if they would not fit into memory."""
        self.model.check_memory(self.stream)
        return self.model.segments(self.stream, self.stream.floats, self.mask, self.known)

    def chain(self) -> Chain:
        """What follows the user's points through this video."""
        return Chain(self.stream.times.tolist(), self.points)

    def result(self, part: Part) -> Result:
        """Of some frames, without what was followed."""
        ids = self.camera_ids
        return Result(
            prediction=part.prediction,
            images=part.images,
            frames=part.originals,
            times=self.stream.times[part.frames.start : part.frames.stop].tolist(),
            fit=part.fit,
            mask=part.mask,
            camera_ids=None if ids is None else ids[part.frames.start : part.frames.stop],
            unit=self.model.unit,
        )


def collect(run: Run) -> Result:
    """All frames' result, in memory."""
    chain, segments = run.chain(), run.segments()
    results: list[Result] = []
    for part in run.parts(chain):
        results.append(run.result(part))
        if segments is not None:
            segments.add(part)
    whole = _with_tracks(_together(results), chain)
    return whole if segments is None else whole.with_segments(segments.end())


def _together(results: Sequence[Result]) -> Result:
    """Frames of several results one after the other."""
    masks = [result.mask for result in results if result.mask is not None]
    ids = [index for result in results for index in result.camera_ids or ()]
    return Result(
        prediction=join_frames([result.prediction for result in results]),
        images=torch.cat([result.images for result in results]),
        frames=np.concatenate([result.frames for result in results]),
        times=[time for result in results for time in result.times],
        fit=results[0].fit,
        mask=torch.cat(masks) if masks else None,
        camera_ids=tuple(ids) if ids else None,
        unit=results[0].unit,
    )


def _with_tracks(result: Result, chain: Chain) -> Result:
    found = {name: value for name, value in vars(chain.pixel_tracks(result.fit)).items() if value is not None}
    prediction = dataclasses.replace(result.prediction, **found)
    return dataclasses.replace(result, prediction=prediction, tracks=chain.tracks(), queries=chain.asked_for)


def write(run: Run, folder: Path, *, static_points: bool = False) -> Result:
    """As `run.write`, and ``windows.json``; window by window.

    The cloud is thinned to `CLOUD_POINTS` as it grows, and what is unreliable is left out by window.

    Returns:
        The result at up to `SHOWN` frames spread evenly, with what was followed at their times.

    """
    chain, segments, store = run.chain(), run.segments(), _Arrays(folder, len(run.stream))
    shown = sorted(set(np.linspace(0, len(run.stream) - 1, SHOWN).round().astype(int).tolist()))
    kept: list[Result] = []
    clouds: list[PointCloud] = []
    cameras: list[Prediction] = []
    for part in run.parts(chain):
        piece = run.result(part)
        _write_piece(run, piece, part.frames, store, folder)
        cameras.append(Prediction(cameras=part.prediction.cameras))
        cloud = piece.cloud(static=static_points)
        if cloud is not None:
            clouds.append(_thin(cloud, part.frames, len(run.stream)))
        kept += [_pick(run, part, frame) for frame in shown if frame in part.frames]
        if segments is not None:
            segments.add(part)
    whole = _with_tracks(_whole(run, kept[0], join_frames(cameras)), chain)
    _write_rest(whole, store, PointCloud.join(clouds) if clouds else None, folder)
    _write_windows(run, folder / "windows.json")
    found = _at(_together(kept), whole, shown)
    if segments is None:
        return found
    whole = whole.with_segments(segments.end())
    write_gaussians(whole, folder)
    return found.with_segments(whole.gaussians)


def _write_piece(run: Run, piece: Result, frames: range, store: _Arrays, folder: Path) -> None:
    store.add(arrays(piece))
    if piece.prediction.cameras is not None:
        names = frame_names(len(run.stream), run.camera_ids)
        write_pictures(piece, names[frames.start : frames.stop], folder)


def _thin(cloud: PointCloud, frames: range, count: int) -> PointCloud:
    """The frames' share of all points, with frames counted from the video's first."""
    few = cloud.thin(CLOUD_POINTS * len(frames) // count)
    return dataclasses.replace(few, frames=few.frames + np.int32(frames.start))


def _pick(run: Run, part: Part, frame: int) -> Result:
    """One frame; copied, so that it does not hold its window."""
    result = run.result(part.take(range(frame, frame + 1)))
    prediction = join_frames([result.prediction])
    return dataclasses.replace(result, prediction=prediction, images=result.images.clone(), frames=result.frames.copy())


def _whole(run: Run, some: Result, prediction: Prediction) -> Result:
    """Of all frames what is small; pictures are placeholders without memory."""
    count, (height, width) = len(run.stream), some.fit.original
    return Result(
        prediction=prediction,
        images=torch.zeros(1, 1, 1, 1).expand(count, 3, *some.fit.model),
        frames=np.broadcast_to(np.zeros((), np.uint8), (count, height, width, 3)),
        times=run.stream.times.tolist(),
        fit=some.fit,
        camera_ids=run.camera_ids,
        unit=some.unit,
    )


def _write_rest(whole: Result, store: _Arrays, cloud: PointCloud | None, folder: Path) -> None:
    """What needs all windows."""
    if "dynamic" in store:
        write_masks(folder / "mask", store["dynamic"])
    if "depth" in store:
        write_depth(folder / "depth", store["depth"], whole.unit)
    if cloud is not None:
        write_ply(folder / "points.ply", cloud)
    if whole.prediction.cameras is not None:
        write_poses(whole, cloud, folder)
    if (table := whole.track_table) is not None:
        write_tracks(folder / "tracks.npz", table)
    tracks = {name: value for name, value in arrays(whole).items() if name.startswith("pixel_tracks")}
    store.add(tracks)
    store.pack(folder / "prediction.npz")


def _write_windows(run: Run, path: Path) -> None:
    times = run.stream.times
    entries = [
        {
            "frames": [frames.start, frames.stop - 1],
            "times": [float(times[frames.start]), float(times[frames.stop - 1])],
            "seam": None if seam is None else dataclasses.asdict(seam),
        }
        for frames, seam in zip(run.plan, [None, *run.seams], strict=True)
    ]
    note = "each window is seen alone; its seam says how well it fits onto the window before on the frames they share"
    content = {"format": FORMAT, "note": note, "unit": run.model.unit, "window": run.windows.frames}
    path.write_text(json.dumps({**content, "overlap": run.windows.overlap, "windows": entries}, indent=1) + "\n")


def _at(some: Result, whole: Result, frames: Sequence[int]) -> Result:
    """The result of some frames with what was followed through all; points begin in the nearest of these frames."""
    prediction, rows = whole.prediction, list(frames)
    found = {
        name: getattr(prediction, name)[rows]
        for name in ("pixel_tracks", "pixel_tracks_visible", "pixel_tracks_confidence")
        if getattr(prediction, name) is not None
    }
    return dataclasses.replace(
        some,
        prediction=dataclasses.replace(some.prediction, **found),
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
    """Arrays of all frames, on the disk: they grow frame by frame, are read so, and become one NPZ."""

    def __init__(self, folder: Path, frames: int) -> None:
        self._folder, self._frames = folder, frames
        self._maps: dict[str, _Maps] = {}

    def add(self, values: dict[str, NDArray[np.generic]]) -> None:
        """The next frames of some arrays, along the first axis; always the same arrays."""
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

    def pack(self, path: Path) -> None:
        """Write ``path`` as numpy's compressed NPZ and remove the parts."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as packed:
            for name, maps in self._maps.items():
                packed.write(maps.file, f"{name}.npy")
                maps.file.unlink()


class _Maps(Sequence[NDArray[np.float32]]):
    """An array in an NPY file, of which one frame at a time is read."""

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
        found = np.fromfile(self.file, self._dtype, size, offset=offset).reshape(self._shape)
        return cast(NDArray[np.float32], found)
