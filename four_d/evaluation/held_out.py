"""Evaluation on held-out clips, compared with image-free predictors.

`run` is ``four-d eval``; `evaluate` takes any model and examples. The videos are fixed (`frame_lists`): each camera of
each clip in turn is one monocular video of ``frames`` frames, evenly spaced and in order, without augmentation.
A sample that cannot be read ends the evaluation: skipping it would give scores that look comparable but are not.
A digest of the exact inputs accompanies the scores: only scores with equal digests are comparable.
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

from four_d import fields
from four_d.abilities import Hint, Model, Normalisation, check_sees_scenes
from four_d.data.crops import CropRule
from four_d.data.motion import with_motion
from four_d.data.sampling import collate, normalise, to_clip, to_example
from four_d.data.shards import ShardReader, open_shards
from four_d.data.views import split
from four_d.devices import Precision, told_when_full, usable
from four_d.errors import UserError
from four_d.evaluation.features import Features
from four_d.evaluation.novel import copy_scores, novel_frames
from four_d.evaluation.pairwise import Pairwise
from four_d.evaluation.result import COPY, Evaluation, LpipsFacts, lpips_note, score_of
from four_d.evaluation.runs import Run, RunInputs, run_scores
from four_d.evaluation.scores import TASKS, Scores, columns, score_batch
from four_d.memory import check_pictures
from four_d.metrics import baselines
from four_d.metrics.catalogue import METRICS, VIDEO
from four_d.metrics.frechet import Extractor, Kind, load_extractor
from four_d.metrics.metric import Metric, Task, check_own
from four_d.metrics.renders import lpips_at
from four_d.progress import progress
from four_d.similarity import LPIPS, LPIPS_WEIGHTS
from four_d.types import Clip, Example, map_tensors
from four_d.windows.cut import Cut

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Settings of ``four-d eval`` on held-out shards."""

    data: str
    """Folder of held-out shards, or the address of one (http, https, s3)."""
    train_data: str | None = None
    """Folder or address of training shards to fit the image-free predictors on; None: only those that need no data."""
    frames: int = 8
    """Number of frames per video, divided among its cameras; a camera with fewer gives all of them."""
    stride: int | None = None
    """Step between a video's frames, which lie in the middle of the clip; None = evenly spaced over the whole clip."""
    cameras: int = 1
    """Number of cameras per video: 1 is monocular, 2 joins each camera with the next one of its clip."""
    size: tuple[int, int] | None = None
    """Rows and columns of the images, cropped around the principal point and resized; None = as stored."""
    clips: int | None = None
    """Number of videos to score, evenly spaced among all; None = all."""
    train_clips: int = 200
    """Number of training videos to fit the image-free predictors on, evenly spaced among all."""
    device: str = "auto"
    """Device of the model (`devices.usable`)."""
    precision: Precision = "fp32"
    """Precision of the model's arithmetic in ``four-d eval`` (`LoadedModel.to`), recorded in the note."""
    tasks: tuple[Task, ...] = TASKS
    """Tasks to score: points take most of the time."""
    motion: bool | None = None
    """Score dense motion from every frame to the time of every frame; None: if ``tasks`` has it and the model a motion
    head."""
    pictures: bool | None = None
    """Score renders for cameras and times that are not among the inputs; None: if ``tasks`` has pictures and the model
    gives Gaussians."""
    lpips_weights: str | None = LPIPS_WEIGHTS
    """File or folder of LPIPS weights to score renders with, if it holds any; None: no LPIPS."""
    fid_network: str | None = None
    """TorchScript file of the network that FID of renders is computed by (`metrics.frechet.FILES`); None: no FID."""
    fvd_network: str | None = None
    """TorchScript file of the network that FVD of renders is computed by; None: no FVD."""
    track_frames: int | None = None
    """Number of frames through which to track points of each camera's first frame in 3D, ``stride`` (or 1) apart, as
    ``four-d infer`` does (`runs`). None: no tracking."""
    window: tuple[int, int] | None = None
    """Frames and stride of the windows in which the model sees the frames of ``track_frames``; None: those of
    ``four-d infer``."""
    normalisation: Normalisation | None = None
    """Unit of length; None: that of the model's training."""
    hints: tuple[Hint, ...] = ()
    """Ground truth to give the model, which must accept it: any of intrinsics, poses, depth, masks."""
    pairwise: bool = False
    """Give the model two frames at a time (`Pairwise`)."""

    def __post_init__(self) -> None:
        if min(self.cameras, self.train_clips, self.clips or 1, self.stride or 1) < 1 or 0 in (self.clips, self.stride):
            raise UserError("cameras, clips, train_clips and stride must be at least 1")
        if self.frames < 2 or self.frames % self.cameras:
            raise UserError(
                f"frames is {self.frames}; choose a multiple of cameras ({self.cameras}) that is at least 2"
            )
        if self.tasks == ("tracks",) and self.track_frames is None:
            raise UserError("tasks is tracks only, and track_frames is not set; choose through how many frames")
        if self.window is not None:
            Cut.strided(self.window)
        if self.track_frames is not None and (self.track_frames < 2 or self.cameras > 1 or self.pairwise):
            raise UserError(
                f"track_frames is {self.track_frames}; points are followed through 2 frames or more of one camera: "
                "leave cameras and pairwise out"
            )


@told_when_full("lower frames or size, set precision=bf16, or device=cpu with more memory")
def run(model: Model, config: EvaluationConfig, metrics: Sequence[Metric] = ()) -> Evaluation:
    """Score a loaded model by ``config``; the image-free predictors are fitted on ``train_data`` first.

    ``metrics`` are the caller's own, as in `evaluate`. UserError for a hint that the model does not take, or a model
    of one object.
    """
    check_sees_scenes(model.abilities)
    _check_hints(model, config.hints)
    device = usable(config.device)
    config = dataclasses.replace(
        config,
        motion="motion" in config.tasks and model.abilities.moves if config.motion is None else config.motion,
        pictures="pictures" in config.tasks and model.abilities.gives_gaussians
        if config.pictures is None
        else config.pictures,
        normalisation=model.abilities.normalisation if config.normalisation is None else config.normalisation,
    )
    scores_pictures = bool(config.pictures) and "pictures" in config.tasks
    extractors = _extractors(config, device, scores_pictures=scores_pictures)
    predictors, fitted_on = baselines.untrained(), "untrained"
    if config.train_data is not None:
        fitting = Videos.open(config.train_data, config, config.train_clips)
        predictors = baselines.fit_baselines(fitting.shown("fitting image-free predictors"))
        fitted_on = f"fitted on {len(fitting.lists)} videos of {fitting.reader.place}"
    videos = Videos.open(config.data, config, config.clips)
    cameras = "1 camera" if config.cameras == 1 else f"{config.cameras} cameras"
    counts = sorted({len(frames) for _, frames in videos.lists})
    frames = f"{counts[0]} frames" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} frames"
    note = f"{videos.reader.place}: {frames} of {cameras} per video; image-free predictors {fitted_on}"
    note += "; the model sees two frames at a time" if config.pairwise else ""
    note += f"; the model is given {', '.join(config.hints)}" if config.hints else ""
    note += model.abilities.arithmetic
    seeing = Pairwise(model=model) if config.pairwise else model
    evaluation = evaluate(
        seeing,
        videos.shown("evaluating"),
        predictors=predictors,
        device=device,
        note=note,
        tasks=config.tasks,
        lpips=lpips_at(config.lpips_weights) if scores_pictures else None,
        extractors=extractors,
        metrics=metrics,
    )
    return (
        _with_tracks(evaluation, model, config, device)
        if config.track_frames and "tracks" in config.tasks
        else evaluation
    )


def _with_tracks(evaluation: Evaluation, model: Model, config: EvaluationConfig, device: torch.device) -> Evaluation:
    """Add the scores of 3D tracking (`runs`) to the model's row."""
    usual = Cut.of(model.abilities.trained_frames or config.frames, model.abilities.frames)
    cut = usual if config.window is None else Cut.strided(config.window)
    inputs = RunInputs(
        normalisation=config.normalisation or "mean_distance",
        hints=config.hints,
        device=device,
    )
    digest, scores = hashlib.sha256(evaluation.digest.encode()), list[Scores]()
    runs = Runs.open(config.data, config)
    with progress("following points", len(runs.lists), "run") as bar:
        for run in runs:
            scores.append(run_scores(model, run, inputs, cut))
            times = (run.clip.times.double() * 1e6).round().long().tolist()
            digest.update(json.dumps([run.key, times, list(run.clip.images.shape[-2:])]).encode())
            bar.advance()
    more = columns(scores)
    rows = evaluation.rows[evaluation.name] | {
        metric: score_of(values, evaluation.keys) for metric, values in more.items()
    }
    return dataclasses.replace(
        evaluation,
        rows={**evaluation.rows, evaluation.name: rows},
        per_video={**evaluation.per_video, evaluation.name: {**evaluation.per_video[evaluation.name], **more}},
        digest=digest.hexdigest()[:12],
        note=f"{evaluation.note}; points followed through {config.track_frames} frames",
    )


def _extractors(config: EvaluationConfig, device: torch.device, *, scores_pictures: bool) -> list[Extractor]:
    """Networks of FID and FVD; UserError where one is given and no pictures are scored."""
    paths: dict[Kind, str | None] = {"fid": config.fid_network, "fvd": config.fvd_network}
    given: dict[Kind, str] = {kind: path for kind, path in paths.items() if path is not None}
    if given and not scores_pictures:
        raise UserError(f"{next(iter(given))}_network is given, and no pictures are scored; leave it out")
    return [load_extractor(kind, path, device) for kind, path in given.items()]


def _check_hints(model: Model, hints: Collection[Hint]) -> None:
    for hint in hints:
        if hint not in model.abilities.hints:
            has = model.abilities.hints_text
            raise UserError(f"hints has {hint}, and this model {has}; leave {hint} out, or take another model")


@dataclass(frozen=True, kw_only=True)
class Videos:
    """Fixed videos of a data set, read one at a time."""

    reader: ShardReader
    lists: tuple[tuple[int, tuple[int, ...]], ...]
    """(sample of the reader, its frames in order) of each video."""
    size: tuple[int, int] | None
    motion: bool = False
    """Query the motion of every frame to all times and give its ground truth, if correspondence is stored."""
    pictures: bool = False
    """Give the targets `novel.novel_frames` as views."""
    normalisation: Normalisation = "mean_distance"
    hints: tuple[Hint, ...] = ()

    @staticmethod
    def open(folder: str | Path, config: EvaluationConfig, count: int | None) -> Videos:
        """Choose ``count`` videos (None: all) of a data set; UserError if no clip has enough cameras and frames."""
        reader = open_shards(folder)
        ids = [sample.camera_ids for sample in reader.samples]
        lists = frame_lists(ids, config.frames, config.cameras, config.stride)
        if not lists:
            raise UserError(
                f"{reader.place} has no clip of {config.cameras} camera(s) with 2 frames; set cameras=1, or other data"
            )
        lists = tuple(evenly(lists, count))
        if config.size is not None:
            check_pictures(max(len(frames) for _, frames in lists), config.size)
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
        """Yield each video as a batch of one."""
        for index, frames in self.lists:
            sample = self.reader.samples[index]
            views = novel_frames(sample.times, frames) if self.pictures else []
            rule = None if self.size is None else CropRule(size=self.size)
            raw = self.reader.read(index, [*frames, *views], rule=rule)
            clip = to_clip(raw, with_surface=self.motion)
            clip = normalise(split(clip, 0, len(views)), self.normalisation)
            clip = _moving(clip) if self.motion else clip
            yield collate([to_example(clip, f"{raw.key}/{raw.info.camera_ids[0]}", self.hints)])

    def shown(self, description: str) -> Iterator[Example]:
        """Iterate with a progress bar."""
        with progress(description, len(self.lists), "video") as bar:
            for example in self:
                yield example
                bar.advance()


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Frame sequences to track points through, one for each of the `Videos` of a data set."""

    reader: ShardReader
    lists: tuple[tuple[int, tuple[int, ...]], ...]
    size: tuple[int, int] | None

    @staticmethod
    def open(folder: str | Path, config: EvaluationConfig) -> Runs:
        """Choose the sequences of a data set; UserError if a camera has fewer frames than ``track_frames``."""
        assert config.track_frames is not None
        reader = open_shards(folder)
        ids = [sample.camera_ids for sample in reader.samples]
        lists = tuple(evenly(frame_lists(ids, config.track_frames, 1, config.stride or 1), config.clips))
        fewest = min(len(frames) for _, frames in lists)
        if fewest < config.track_frames:
            raise UserError(
                f"track_frames is {config.track_frames}, and a video of {reader.place} has {fewest}; take as few"
            )
        return Runs(reader=reader, lists=lists, size=config.size)

    def __iter__(self) -> Iterator[Run]:
        for index, frames in self.lists:
            rule = None if self.size is None else CropRule(size=self.size)
            raw = self.reader.read(index, list(frames), rule=rule)
            yield Run(key=f"{raw.key}/{raw.info.camera_ids[0]}", clip=to_clip(raw, with_surface=True))


def _moving(clip: Clip) -> Clip:
    """Replace a clip's correspondence, if it has any, by dense motion to the times of all its frames."""
    if clip.surface is None and clip.tracks is None:
        return clip
    moved = with_motion(clip, clip.times.unique())
    return dataclasses.replace(moved, surface=None, tracks=None)


def frame_lists(
    camera_ids: Sequence[Sequence[int]], frames: int, cameras: int = 1, stride: int | None = None
) -> list[tuple[int, tuple[int, ...]]]:
    """(sample, frames) of each video: for each camera, ``frames`` evenly spaced frames, first and last included.

    With several ``cameras`` each is joined by the next ones of its sample (cyclically), ordered by camera, with
    ``frames // cameras`` frames each. With a ``stride`` the frames are that far apart, in the middle of the clip. A
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
    """``count`` of the items, evenly spaced from first to last; all if there are no more or ``count`` is None."""
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
    extractors: Sequence[Extractor] = (),
    metrics: Sequence[Metric] = (),
) -> Evaluation:
    """Score a model and image-free ``predictors`` (`baselines.untrained` by default) on the same batched examples.

    Every video has equal weight. The model sees ``inputs`` only and must be in evaluation mode. ``lpips``, a network
    with loaded weights on the CPU, scores renders and is part of the digest; without it ``structure`` takes its place.
    ``extractors`` (`metrics.frechet.load_extractor`) give FID and FVD of all renders together; they are part of the
    digest too. The note says what of LPIPS, FID and FVD was not computed. ``metrics`` are the caller's own, computed
    for every row that allows them.

    Raises:
        UserError: there is no example, a predicted value is not finite (predictor and clip are named), or a metric of
            the caller has no function or the name of another metric.

    """
    models = {name: model, **(baselines.untrained() if predictors is None else predictors)}
    check_own(metrics, METRICS)
    keys: list[str] = []
    results: dict[str, list[Scores]] = {row: [] for row in (*models, COPY)}
    digest, judge = hashlib.sha256(model.abilities.seen_as.encode()), LpipsFacts.of(lpips)
    digest.update(b"" if judge is None else f"lpips {judge.network} {judge.weights}".encode())
    for each in extractors:
        digest.update(f"{each.kind} {each.digest}".encode())
    features = {row: Features(extractors) for row in results}
    for example in examples:
        keys += example.key
        digest.update((_seen(example) + _given(example.inputs)).encode())
        for row, predictor in models.items():
            timed = row == name and (example.targets.motion is not None or example.targets.views is not None)
            results[row] += score_batch(
                predictor,
                example,
                row,
                torch.device(device),
                timed=timed,
                tasks=tasks,
                lpips=lpips,
                metrics=(*VIDEO, *metrics),
                features=features[row],
            )
        results[COPY] += _copied(example, results[name][-len(example.key) :], lpips, features[COPY])
    if not keys:
        raise UserError("there is nothing to evaluate on: no clip came out of the data")
    per_video = {row: by_metric for row, scores in results.items() if (by_metric := columns(scores)) or row != COPY}
    rows = {
        row: {metric: score_of(each, keys) for metric, each in by_metric.items()} | features[row].scores(len(keys))
        for row, by_metric in per_video.items()
    }
    if "render_psnr" in rows[name]:
        note = "; ".join(part for part in (note, lpips_note(judge), features[name].note()) if part)
    return Evaluation(
        name=name,
        rows=rows,
        keys=tuple(keys),
        per_video=per_video,
        digest=digest.hexdigest()[:12],
        note=note,
        lpips=judge,
        metrics={**METRICS, **{metric.name: metric for metric in metrics}},
    )


def _copied(example: Example, scores: Sequence[Scores], lpips: LPIPS | None, features: Features) -> list[Scores]:
    """Scores of the nearest input frames (`copies`), for the videos of a batch whose renders are scored."""
    copied: list[Scores] = [{} for _ in scores]
    for index, each in enumerate(scores):
        if "render_psnr" in each:
            clip = map_tensors(fields.unstack(example.targets, index), lambda tensor: tensor.cpu())
            copied[index].update(copy_scores(clip, lpips, features))
    return copied


def _seen(example: Example) -> str:
    """Identity of a batch: keys, cameras, times in microseconds, image size."""
    inputs = example.inputs
    times = (inputs.times.double() * 1e6).round().long().tolist()
    return json.dumps([example.key, inputs.camera_ids.tolist(), times, list(inputs.images.shape[-2:])])


def _given(inputs: Clip) -> str:
    """Names of the hints among the inputs, separated by spaces."""
    cameras, names = inputs.cameras, []
    if cameras is not None:
        lens = cameras.known if cameras.intrinsics_known is None else cameras.intrinsics_known
        marks = {"intrinsics": lens, "poses": cameras.known}
        names += [name for name, known in marks.items() if known is None or bool(known.any())]
    names += ["depth"] if inputs.depth is not None else []
    names += ["masks"] if inputs.dynamic is not None else []
    return " ".join(names)
