"""Scores of a model on held-out clips, beside those of predictors that ignore the image.

`run` is ``four-d eval``; `evaluate` takes any model and examples. What is scored is fixed (`frame_lists`): each camera
of each clip in turn is one monocular video of ``frames`` frames evenly spread over it, first one first, unaugmented.
A sample that cannot be read ends the run: skipping it would make a figure that looks comparable and is not.
A digest of exactly what was seen stands beside every figure, so that two figures can be known to be comparable.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from four_d.data.loading import fit
from four_d.data.motion import with_motion
from four_d.data.sampling import Hint, Normalisation, collate, normalise, to_clip, to_example
from four_d.data.shards import ShardReader, load_manifest
from four_d.data.views import split
from four_d.errors import UserError
from four_d.evaluation.abilities import hints_taken, moves, paints, unit_of
from four_d.evaluation.novel import novel_frames
from four_d.evaluation.pairwise import Pairwise
from four_d.evaluation.pictures import lpips_at
from four_d.evaluation.result import Evaluation, LpipsFacts, score_of
from four_d.evaluation.runs import Run, RunSettings, run_scores
from four_d.evaluation.scores import TASKS, Scores, Task, columns, score_batch
from four_d.metrics import baselines
from four_d.metrics.baselines import Model
from four_d.progress import progress
from four_d.similarity import LPIPS, LPIPS_WEIGHTS
from four_d.types import Clip, Example

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What ``four-d eval`` scores on."""

    data: str
    """Folder of held-out shards."""
    train_data: str | None = None
    """Folder of the training shards, on which the image-free predictors are fitted; without it only those that need no
    data stand beside the model."""
    frames: int = 8
    """Frames per video, shared among its cameras; a camera with fewer gives all it has."""
    stride: int | None = None
    """A video's frames are so many frames of its clip apart, in its middle; None = evenly spread over it all."""
    cameras: int = 1
    """Cameras per video: 1 is monocular, 2 joins each camera with the next one of its clip."""
    size: tuple[int, int] | None = None
    """Rows and columns to which images are cropped around the principal point and resized; None = as stored."""
    clips: int | None = None
    """Videos to score, taken evenly from all; None = all."""
    train_clips: int = 200
    """Videos to fit the image-free predictors on, taken evenly from all."""
    device: str = "cpu"
    tasks: tuple[Task, ...] = TASKS
    """What to score: points take most of the time."""
    motion: bool | None = None
    """Whether dense motion from every frame to the time of every frame is asked for and scored; None: if the model has
    a motion head."""
    pictures: bool | None = None
    """Whether pictures from cameras and times that the model does not see are scored; None: if it gives Gaussians."""
    lpips_weights: str | None = LPIPS_WEIGHTS
    """File or folder of LPIPS's weights, by which pictures are scored where it holds any; None: never."""
    track_frames: int | None = None
    """Follow points of each camera's first frame in 3D through so many of its frames, ``stride`` (or 1) apart (`runs`):
    with Gaussians of ``frames`` frames at a time, or with one pass of a motion head. None: not."""
    normalisation: Normalisation | None = None
    """The unit of length; None: that in which the model was trained."""
    hints: tuple[Hint, ...] = ()
    """Truths that the model is given, and must take: any of intrinsics, poses, depth, masks."""
    pairwise: bool = False
    """Show the model two frames at a time (`Pairwise`)."""

    def __post_init__(self) -> None:
        if min(self.cameras, self.train_clips, self.clips or 1, self.stride or 1) < 1 or 0 in (self.clips, self.stride):
            raise UserError("cameras, clips, train_clips and stride must be at least 1")
        if self.frames < 2 or self.frames % self.cameras:
            raise UserError(
                f"frames is {self.frames}; choose a multiple of cameras ({self.cameras}) that is at least 2"
            )
        if self.tasks == ("tracks",) and self.track_frames is None:
            raise UserError("tasks is tracks only, and track_frames is not set; choose through how many frames")
        if self.track_frames is not None and (self.track_frames < 2 or self.cameras > 1 or self.pairwise):
            raise UserError(
                f"track_frames is {self.track_frames}; points are followed through 2 frames or more of one camera: "
                "leave cameras and pairwise out"
            )


def run(model: Model, config: EvaluationConfig) -> Evaluation:
    """Score a loaded model as ``config`` says; the image-free predictors are fitted on ``train_data`` first.

    UserError for a hint that the model does not take.
    """
    _check_hints(model, config.hints)
    device = usable(config.device)
    more = set(config.tasks) != {"tracks"}
    config = dataclasses.replace(
        config,
        motion=more and moves(model) if config.motion is None else config.motion,
        pictures=more and paints(model) if config.pictures is None else config.pictures,
        normalisation=unit_of(model) if config.normalisation is None else config.normalisation,
    )
    predictors, fitted_on = baselines.untrained(), "untrained"
    if config.train_data is not None:
        fitting = Videos.open(Path(config.train_data), config, config.train_clips)
        predictors = baselines.fit(fitting.shown("fitting image-free predictors"))
        fitted_on = f"fitted on {len(fitting.lists)} videos of {config.train_data}"
    videos = Videos.open(Path(config.data), config, config.clips)
    cameras = "1 camera" if config.cameras == 1 else f"{config.cameras} cameras"
    note = f"{config.data}: {config.frames} frames of {cameras} per video; image-free predictors {fitted_on}"
    note += "; the model sees two frames at a time" if config.pairwise else ""
    note += f"; the model is given {', '.join(config.hints)}" if config.hints else ""
    shown = Pairwise(model=model) if config.pairwise else model
    found = evaluate(
        shown,
        videos.shown("evaluating"),
        predictors=predictors,
        device=device,
        note=note,
        tasks=config.tasks,
        lpips=lpips_at(config.lpips_weights) if config.pictures and "pictures" in config.tasks else None,
    )
    return _with_tracks(found, model, config, device) if config.track_frames and "tracks" in config.tasks else found


def _with_tracks(found: Evaluation, model: Model, config: EvaluationConfig, device: torch.device) -> Evaluation:
    """The scores of points followed through runs as further metrics of the model's row."""
    settings = RunSettings(
        frames=config.frames,
        normalisation=config.normalisation or "mean_distance",
        hints=config.hints,
        device=device,
    )
    digest, scores = hashlib.sha256(found.digest.encode()), list[Scores]()
    runs = Runs.open(Path(config.data), config)
    with progress("following points", len(runs.lists), "run") as bar:
        for run in runs:
            scores.append(run_scores(model, run, settings))
            times = (run.clip.times.double() * 1e6).round().long().tolist()
            digest.update(json.dumps([run.key, times, list(run.clip.images.shape[-2:])]).encode())
            bar.advance()
    more = columns(scores)
    rows = found.rows[found.name] | {metric: score_of(values, found.keys) for metric, values in more.items()}
    return dataclasses.replace(
        found,
        rows={**found.rows, found.name: rows},
        per_video={**found.per_video, found.name: {**found.per_video[found.name], **more}},
        digest=digest.hexdigest()[:12],
        note=f"{found.note}; points followed through {config.track_frames} frames",
    )


def _check_hints(model: Model, hints: Collection[Hint]) -> None:
    taken = hints_taken(model)
    for hint in hints:
        if taken is not None and hint not in taken:
            has = f"takes {' and '.join(taken)}" if taken else "takes no hints (backbone.hints is off)"
            raise UserError(f"hints has {hint}, and this model {has}; leave {hint} out, or take another model")


def usable(name: str) -> torch.device:
    """The device of that name; `UserError` where this machine or this build of torch has none."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        found = ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        raise UserError(f"device is {name!r}, which this machine does not have; choose one of {found}") from None
    return device


@dataclass(frozen=True, kw_only=True)
class Videos:
    """The fixed videos of a data set, read one at a time."""

    reader: ShardReader
    lists: tuple[tuple[int, tuple[int, ...]], ...]
    """Sample of the reader and its frames, in order."""
    size: tuple[int, int] | None
    motion: bool = False
    """Ask for the motion of every frame to the times of all, and give its truth, where correspondence is stored."""
    pictures: bool = False
    """Give the truth `novel.novel_frames` as views."""
    normalisation: Normalisation = "mean_distance"
    hints: tuple[Hint, ...] = ()

    @staticmethod
    def open(folder: Path, config: EvaluationConfig, count: int | None) -> Videos:
        """``count`` videos (or all) of a data set; `UserError` where no clip has enough cameras and frames."""
        reader = ShardReader(load_manifest(folder))
        ids = [sample.camera_ids for sample in reader.samples]
        lists = frame_lists(ids, config.frames, config.cameras, config.stride)
        if not lists:
            raise UserError(
                f"{folder} has no clip of {config.cameras} camera(s) with 2 frames; set cameras=1, or other data"
            )
        lists = tuple(evenly(lists, count))
        return Videos(
            reader=reader,
            lists=lists,
            size=config.size,
            motion=bool(config.motion),
            pictures=bool(config.pictures),
            normalisation=config.normalisation or "mean_distance",
            hints=config.hints,
        )

    def __iter__(self) -> Iterator[Example]:
        """Batches of one video."""
        for index, frames in self.lists:
            sample = self.reader.samples[index]
            views = novel_frames(sample.times, frames) if self.pictures else []
            raw = self.reader.read(index, [*frames, *views])
            clip = to_clip(raw, with_surface=self.motion)
            clip = clip if self.size is None else fit(clip, self.size)
            clip = normalise(split(clip, 0, len(views)), self.normalisation)
            clip = _moving(clip) if self.motion else clip
            yield collate([to_example(clip, f"{raw.key}/{raw.info.camera_ids[0]}", self.hints)])

    def shown(self, description: str) -> Iterator[Example]:
        """The same, with a progress bar."""
        with progress(description, len(self.lists), "video") as bar:
            for example in self:
                yield example
                bar.advance()


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The runs of frames through which points are followed: one of each of the same data set's `Videos`."""

    reader: ShardReader
    lists: tuple[tuple[int, tuple[int, ...]], ...]
    size: tuple[int, int] | None

    @staticmethod
    def open(folder: Path, config: EvaluationConfig) -> Runs:
        """UserError where a camera has fewer frames than are asked for."""
        assert config.track_frames is not None
        reader = ShardReader(load_manifest(folder))
        ids = [sample.camera_ids for sample in reader.samples]
        lists = tuple(evenly(frame_lists(ids, config.track_frames, 1, config.stride or 1), config.clips))
        fewest = min(len(frames) for _, frames in lists)
        if fewest < config.track_frames:
            raise UserError(f"track_frames is {config.track_frames}, and a video of {folder} has {fewest}; take as few")
        return Runs(reader=reader, lists=lists, size=config.size)

    def __iter__(self) -> Iterator[Run]:
        for index, frames in self.lists:
            raw = self.reader.read(index, list(frames))
            clip = to_clip(raw, with_surface=True)
            yield Run(
                key=f"{raw.key}/{raw.info.camera_ids[0]}", clip=clip if self.size is None else fit(clip, self.size)
            )


def _moving(clip: Clip) -> Clip:
    """The clip with its motion to the times of all its frames, where it has correspondence, which it loses."""
    if clip.surface is None and clip.tracks is None:
        return clip
    moved = with_motion(clip, clip.times.unique())
    return dataclasses.replace(moved, surface=None, tracks=None)


def frame_lists(
    camera_ids: Sequence[Sequence[int]], frames: int, cameras: int = 1, stride: int | None = None
) -> list[tuple[int, tuple[int, ...]]]:
    """Of each sample, each camera in turn: ``frames`` of its frames evenly spread, its first and last included.

    With several ``cameras`` each is joined by the next ones of its sample (cyclically), camera by camera with
    ``frames // cameras`` frames each. With a ``stride`` they are so many frames apart, in the middle of the clip. A
    camera with fewer frames gives all of them; lists of one frame are left out.
    """
    per_camera = frames // cameras
    lists: list[tuple[int, tuple[int, ...]]] = []
    for sample, ids in enumerate(camera_ids):
        own = {c: [frame for frame, identity in enumerate(ids) if identity == c] for c in sorted(set(ids))}
        names = list(own)
        for place in range(len(names) if len(names) >= cameras else 0):
            group = [names[(place + step) % len(names)] for step in range(cameras)]
            chosen = tuple(frame for camera in group for frame in _spread(own[camera], per_camera, stride))
            lists += [(sample, chosen)] if len(chosen) >= 2 else []
    return lists


def _spread(items: list[int], count: int, stride: int | None) -> list[int]:
    if stride is None:
        return evenly(items, count)
    there = min(count, (len(items) - 1) // stride + 1)
    start = (len(items) - 1 - (there - 1) * stride) // 2
    return items[start::stride][:there]


def evenly(items: Sequence[T], count: int | None) -> list[T]:
    """``count`` of the items, evenly spread from the first to the last; all if there are no more."""
    if count is None or count >= len(items):
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]


def evaluate(
    model: Model,
    examples: Iterable[Example],
    *,
    predictors: Mapping[str, Model] | None = None,
    name: str = "model",
    device: str | torch.device = "cpu",
    note: str = "",
    tasks: Collection[Task] = TASKS,
    lpips: LPIPS | None = None,
) -> Evaluation:
    """Score a model and image-free ``predictors`` (`baselines.untrained` by default) on the same batched examples.

    Every video counts alike. The model sees ``inputs`` only, and must be in evaluation mode. ``lpips``, a network with
    loaded weights on the CPU, scores pictures, and is part of the digest; without it ``structure`` stands in its place.

    Raises:
        UserError: there is no example, or a predicted value is not finite (predictor and clip are named).

    """
    models = {name: model, **(baselines.untrained() if predictors is None else predictors)}
    keys: list[str] = []
    results: dict[str, list[Scores]] = {row: [] for row in models}
    digest, judge = hashlib.sha256(b"pairwise" if isinstance(model, Pairwise) else b""), LpipsFacts.of(lpips)
    digest.update(b"" if judge is None else f"lpips {judge.network} {judge.weights}".encode())
    for example in examples:
        keys += example.key
        digest.update((_seen(example) + _given(example.inputs)).encode())
        for row, predictor in models.items():
            timed = row == name and (example.targets.motion is not None or example.targets.views is not None)
            results[row] += score_batch(
                predictor, example, row, torch.device(device), timed=timed, tasks=tasks, lpips=lpips
            )
    if not keys:
        raise UserError("there is nothing to evaluate on: no clip came out of the data")
    per_video = {row: columns(scores) for row, scores in results.items()}
    return Evaluation(
        name=name,
        rows={
            row: {metric: score_of(values, keys) for metric, values in columns.items()}
            for row, columns in per_video.items()
        },
        keys=tuple(keys),
        per_video=per_video,
        digest=digest.hexdigest()[:12],
        note=note,
        lpips=judge,
    )


def _seen(example: Example) -> str:
    """What identifies a batch: keys, cameras, times in microseconds, image size."""
    inputs = example.inputs
    times = (inputs.times.double() * 1e6).round().long().tolist()
    return json.dumps([example.key, inputs.camera_ids.tolist(), times, list(inputs.images.shape[-2:])])


def _given(inputs: Clip) -> str:
    """Which hints are among the inputs; empty where none is."""
    cameras, found = inputs.cameras, []
    if cameras is not None:
        lens = cameras.known if cameras.intrinsics_known is None else cameras.intrinsics_known
        marks = {"intrinsics": lens, "poses": cameras.known}
        found += [name for name, known in marks.items() if known is None or bool(known.any())]
    found += ["depth"] if inputs.depth is not None else []
    found += ["masks"] if inputs.dynamic is not None else []
    return " ".join(found)
