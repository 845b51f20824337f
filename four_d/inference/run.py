"""A model on a video: `load`, call, `infer`."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, overload

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from four_d import checkpoints
from four_d.backbones.spacetime import SpacetimeConfig
from four_d.checkpoints import ModelInfo
from four_d.data.sampling import UNITS
from four_d.errors import UserError
from four_d.formats.folders import new_folder
from four_d.heads import Head
from four_d.inference import units
from four_d.inference.fit import Fit, fit, resize, resize_masks
from four_d.inference.hints import Known, add, check
from four_d.inference.inputs import Frames, Source
from four_d.inference.mask import Mask, as_masks
from four_d.inference.output import write
from four_d.inference.parts import Part
from four_d.inference.result import Result
from four_d.inference.segments import Segments, check_memory
from four_d.inference.video import IMAGE_RATE, Selection, Stream, Video
from four_d.inference.windows import choose
from four_d.model import FourD
from four_d.tracking import CLEARLY, SPAN, Moves, PointTracks, follow, grid, moving
from four_d.types import Clip, Prediction, Segment, map_tensors

Points = Sequence[tuple[float, float] | tuple[int | float, float, float]]
"""(x, y) in original pixels of the first frame, or (frame, x, y) of any frame that is taken, counted from 0; (0, 0) is
the corner of the top-left pixel."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode that takes a `Clip` as in training, or anything that is a video."""

    model: FourD
    info: ModelInfo

    @overload
    def __call__(self, frames: Clip) -> Prediction: ...
    @overload
    def __call__(
        self,
        frames: Frames,
        *,
        selection: Selection | None = None,
        mask: Mask | None = None,
        points: Points | None = None,
        known: Known | None = None,
        window: int | None = None,
        overlap: int | None = None,
        tracks: bool = True,
    ) -> Result: ...
    def __call__(
        self,
        frames: Clip | Frames,
        *,
        selection: Selection | None = None,
        mask: Mask | None = None,
        points: Points | None = None,
        known: Known | None = None,
        window: int | None = None,
        overlap: int | None = None,
        tracks: bool = True,
    ) -> Prediction | Result:
        """A batched `Clip` gives a batched `Prediction`; a video gives a `Result` of its frames.

        A list of videos are those of synchronised cameras (`inputs.gather`). A video is cropped and resized as little
        as the model allows (`fit`). ``selection`` chooses frames of a file or folder (by default at most 24 of each
        camera, spread evenly); arrays and lists are taken whole. ``mask`` says what moves, in
        place of the model's own guess (`mask.as_masks`); the prediction still holds that guess. ``points`` are
        followed through the video: in 3D by a model that predicts motion (`Result.tracks`; without points it follows a
        grid over the first frame), in pixels by one with a track head (`Result.pixel_tracks`).
        Without ``tracks`` nothing is followed, which saves a pass or a decoding for every time but the first.
        ``known`` is what else is known of the video, for a model that takes it.

        More frames (of each camera) than ``window`` are seen in overlapping windows and joined in the world of the
        first; by default 24 or, if more, twice as many as in training, a quarter of which overlap (`windows`). The
        result holds all of them: `infer` writes a long video's without.

        Raises:
            UserError: an input of another kind, shape or range, a file that does not decode, a mask, points or hints
                for a model that has no use for them, a model that requires hints without them, points without tracks.

        """
        if isinstance(frames, Clip):
            if mask is not None or points is not None or known is not None:
                raise UserError(
                    "a clip brings its own mask, points and hints; "
                    "set Clip.dynamic, Clip.query_points, Clip.cameras and Clip.depth"
                )
            with torch.no_grad():
                return self.model(frames)
        from four_d.inference import long

        self.check(mask, points, known, tracks=tracks)
        windows = choose(window, overlap, self.info.frames)
        found = long.opened(frames, selection, windows)
        if isinstance(found, Source):
            return self.at_once(found, mask, points, known, tracks=tracks)
        run = long.Run(model=self, stream=found, windows=windows, mask=mask, points=points, known=known, tracks=tracks)
        return long.collect(run)

    def passes(self, clip: Clip) -> Iterator[Prediction]:
        """One query time of a batched clip after the other; see `FourD.passes`."""
        return self.model.passes(clip)

    def to(self, device: str | torch.device) -> LoadedModel:
        """The same model on a device (it is moved, not copied). UserError if there is no such device."""
        try:
            return LoadedModel(self.model.to(device), self.info)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"no device {str(device)!r} here ({reason}); choose cpu, or cuda where there is a GPU"
            ) from error

    def check(self, mask: Mask | None, points: Points | None, known: Known | None, *, tracks: bool = True) -> None:
        """UserError for what the model has no use for."""
        if points is not None and not tracks:
            raise UserError("points are given to be followed, and tracks are off; leave one of the two out")
        config = self.info.model
        hints = config.backbone.hints
        masks = config.backbone.dynamics is not None or (hints is not None and hints.masks != "off")
        if mask is not None and not masks:
            raise UserError("this model does not ask what moves (backbone.dynamics is off); leave the mask out")
        follows = self.model.moves or any(head.kind == "track" for head in config.heads.values())
        if points is not None and not follows:
            raise UserError("this model follows no points (it has no motion head and no track head); leave them out")
        if known is not None:
            check(known, hints)

    @property
    def unit(self) -> str:
        """What lengths of results are in, in words."""
        return UNITS[self.info.normalisation]

    @property
    def segment(self) -> int | None:
        """Of how many times its Gaussians are made, and to how many they move; None if it makes none."""
        head = self.info.model.gaussian
        return None if head is None else head.frames

    def check_memory(self, video: Video | Stream) -> None:
        """UserError if this video's Gaussians would not fit into memory; says on stderr what very many need."""
        head, backbone = self.info.model.gaussian, self.info.model.backbone
        if head is None:
            return
        stride = backbone.stride if isinstance(backbone, SpacetimeConfig) else 1
        pictures = -(-head.frames // head.every) if head.every else -(-head.frames // stride) * video.cameras
        check_memory(pictures * math.prod(self.info.image_size), head.frames, len(video.times) // video.cameras)

    @property
    def plain(self) -> LoadedModel:
        """The same without Gaussians, for any number of frames."""
        if self.segment is None:
            return self
        return self._only([name for name, head in self.info.model.heads.items() if head.kind != "gaussian"])

    def _only(self, names: Sequence[str]) -> LoadedModel:
        config = self.info.model
        few = dataclasses.replace(config, heads={name: config.heads[name] for name in names})
        return LoadedModel(self.model.only(names), dataclasses.replace(self.info, model=few))

    def segments(
        self, video: Video | Stream, floats: Tensor | None, mask: Mask | None, known: Known | None
    ) -> Segments | None:
        """What makes this video's Gaussians; None if the model makes none."""
        if self.segment is None:
            return None
        model = self._only([name for name, head in self.model.heads.items() if not cast(Head, head).queried])

        def see(source: Source) -> Prediction:
            return model.window(source, mask, None, known, tracks=False).prediction

        return Segments(see, self.segment, video, floats)

    def at_once(
        self, source: Source, mask: Mask | None, points: Points | None, known: Known | None, *, tracks: bool = True
    ) -> Result:
        """A video of one window, with Gaussians of all its times; as a call, of which this is a part."""
        video = source.video
        self.check_memory(video)
        if self.segment in (None, len(video.times) // video.cameras):
            result = self.window(source, mask, points, known, tracks=tracks)
            whole = result.prediction.gaussians
            found = () if whole is None else (Segment(gaussians=whole, start=result.times[0]),)
            return dataclasses.replace(result, gaussians=found)
        result = self.plain.window(source, mask, points, known, tracks=tracks)
        segments = self.segments(video, source.floats, mask, known)
        assert segments is not None
        segments.add(
            Part(
                frames=range(len(video.times)),
                prediction=result.prediction,
                fit=result.fit,
                images=result.images,
                originals=result.frames,
            )
        )
        return result.with_segments(segments.end())

    def window(
        self, source: Source, mask: Mask | None, points: Points | None, known: Known | None, *, tracks: bool = True
    ) -> Result:
        """All of these frames at once, in their own first frame's coordinates; as a call, of which this is a part."""
        video = source.video
        height, width = video.frames.shape[1:3]
        chosen = fit((height, width), self.info.image_size, self.model.patch_size)
        images = resize(video.frames if source.floats is None else source.floats, chosen)
        device = next(self.model.parameters()).device
        # a window is to the model what a clip was in training
        apart = times_apart(video.times, video.cameras)
        since = apart if video.part is None else apart - apart[0]
        times = torch.tensor(since, dtype=torch.float32)[None]
        moving = None if mask is None else resize_masks(as_masks(mask, video), chosen)
        clip = Clip(
            images=images[None],
            times=times,
            camera_ids=(torch.arange(len(images)) % video.cameras)[None],
            dynamic=None if moving is None else moving[None],
            dynamic_known=None if moving is None else torch.ones_like(times, dtype=torch.bool),
            query_points=None if points is None else _queries(points, chosen, len(images)),
        )
        hints = self.info.model.backbone.hints
        if known is not None and hints is not None:
            clip = add(clip, known, hints, video, chosen)
        given = clip
        clip, unit = units.to_model(clip, self.info.normalisation)
        prediction, followed, motion = self._predict(map_tensors(clip, lambda tensor: tensor.to(device)), tracks=tracks)
        return Result(
            prediction=_unbatch(units.from_model(prediction, unit, given)),
            images=images,
            frames=video.frames,
            times=[float(t) for t in video.times],
            fit=chosen,
            mask=moving,
            unit=self.unit,
            tracks=None if followed is None else _to_original(followed, chosen),
            camera_ids=None if video.cameras == 1 else tuple(clip.camera_ids[0].tolist()),
            motion=motion,
            queries=None if clip.query_points is None else _original_queries(clip.query_points[0], chosen),
        )

    def _predict(self, clip: Clip, *, tracks: bool) -> tuple[Prediction, PointTracks | None, Tensor | None]:
        """Of one clip; where the model predicts motion, that to the first time, and with ``tracks`` points followed to
        all times, and the motion t h w 3 of the first frame's pixels to all times.
        """
        if not self.model.heads:
            return Prediction(), None, None
        if not (self.model.moves and tracks):
            return self(clip), None, None
        first = _First(self.model)
        queries = clip.query_points
        height, width = clip.images.shape[-2:]
        found = follow(first, clip, grid(height, width) if queries is None else queries[0])
        assert first.prediction is not None
        return first.prediction, found, torch.stack(first.motions)


class _First:
    """A model's passes, of which the first is kept, and of all of them the motion of the first frame."""

    def __init__(self, model: Moves) -> None:
        self.model = model
        self.prediction: Prediction | None = None
        self.motions: list[Tensor] = []

    def passes(self, clip: Clip) -> Iterator[Prediction]:
        for prediction in self.model.passes(clip):
            self.prediction = self.prediction or prediction
            if prediction.motion is not None:
                self.motions.append(prediction.motion[0, 0, 0].float().cpu())
            yield prediction
            del prediction  # before the next is made


def times_apart(times: Float[np.ndarray, "f"], cameras: int) -> Float[np.ndarray, "f"]:
    """The same seconds, but those of a frame that is repeated are spread over the time until the next one."""
    single = times[::cameras]
    distinct, counts = np.unique(single, return_counts=True)
    if len(distinct) == len(single):
        return times
    gaps = np.diff(distinct, append=distinct[-1] + (np.diff(distinct).mean() if len(distinct) > 1 else 1 / IMAGE_RATE))
    spread = [start + gap * np.arange(count) / count for start, gap, count in zip(distinct, gaps, counts, strict=True)]
    return np.repeat(np.concatenate(spread), cameras)


def _to_original(tracks: PointTracks, to: Fit) -> PointTracks:
    """On the CPU, with queries and pixels in original pixels."""
    tracks = map_tensors(tracks, lambda tensor: tensor.cpu())
    queries = _original_queries(tracks.queries, to)
    pixels = None if tracks.pixels is None else to.points_to_original(tracks.pixels)
    return dataclasses.replace(tracks, queries=queries, pixels=pixels)


def _original_queries(queries: Float[Tensor, "n 3"], to: Fit) -> Float[Tensor, "n 3"]:
    return torch.cat([queries[:, :1], to.points_to_original(queries[:, 1:])], dim=-1)


def load(path: str | Path) -> LoadedModel:
    """The model in an exported folder or a run folder, ready to call; see `checkpoints.read`."""
    found = checkpoints.read(path)
    return LoadedModel(found.model, found.info)


def infer(
    model: LoadedModel,
    video: Path | Sequence[Path],
    out: Path,
    *,
    selection: Selection | None = None,
    mask: Mask | None = None,
    points: Points | None = None,
    known: Known | None = None,
    window: int | None = None,
    overlap: int | None = None,
    tracks: bool = True,
    static_points: bool = False,
    overwrite: bool = False,
    page: Callable[[Result, Path], None] | None = None,
) -> Result:
    """Run a model on a video and write all it says into the folder ``out``, which appears whole or not at all.

    Args:
        model: from `load`.
        video: a file or a folder of images; several are those of synchronised cameras.
        out: is made; an earlier result there is replaced.
        selection: which frames.
        mask: what moves, by the user.
        points: to follow, where the model has a motion or a track head.
        tracks: follow points; a model with a motion head does so without ``points`` too.
        known: what else is known of the video, for a model that takes it.
        static_points: leave what moves out of ``points.ply`` and of the COLMAP projects' points.
        overwrite: replace whatever ``out`` holds.
        window: frames of each camera that the model sees at once, and
        overlap: those that neighbouring windows share; by default as `LoadedModel` has it.
        page: writes further files into the folder it is given, such as ``report.html``.

    Returns:
        What was written; of a video longer than a window, of which only a window is ever held, some of its frames.

    Raises:
        UserError: bad input, or a folder that cannot be written.

    """
    from four_d.inference import long

    model.check(mask, points, known, tracks=tracks)
    windows = choose(window, overlap, model.info.frames)
    found = long.opened(video, selection, windows)
    if isinstance(found, Source):
        seen = model.at_once(found, mask, points, known, tracks=tracks)
    else:
        seen = long.Run(
            model=model, stream=found, windows=windows, mask=mask, points=points, known=known, tracks=tracks
        )
    with new_folder(out, "inference", overwrite=overwrite) as folder:
        if isinstance(seen, Result):
            result = seen
            write(result, folder, static_points=static_points)
        else:
            result = long.write(seen, folder, static_points=static_points)
        if page is not None:
            page(result, folder)
    _tell_if_still(result)
    return result


def _tell_if_still(result: Result) -> None:
    if result.tracks is not None and len(result.tracks.times) > 1 and not moving(result.tracks).any():
        least = max(SPAN, CLEARLY * result.tracks.jitter)
        told = f"nothing moves: no point that was followed spans {least:.0%} of its distance to the first camera"
        print(told, file=sys.stderr)


def _queries(points: Points, to: Fit, frames: int) -> Float[Tensor, "1 n 3"]:
    """As `Clip.query_points`."""
    if not points:
        raise UserError("points are an empty list; give at least one (x, y)")
    found = torch.tensor([(0.0, *point)[-3:] for point in points], dtype=torch.float32)
    for frame, x, y in found.tolist():
        if frame not in range(frames):
            which = "the only frame is 0" if frames == 1 else f"choose 0 to {frames - 1}"
            raise UserError(f"frame {frame:g} of point {x:g},{y:g} is not among the frames taken; {which}")
    return torch.cat([found[:, :1], to.points_to_model(found[:, 1:])], dim=-1)[None]


def _unbatch(prediction: Prediction) -> Prediction:
    """Drop the batch axis of one, on the CPU. Refinements, whose batch axis is the second, are a training matter."""
    rest = {**vars(prediction), "pose_encodings": None, "pixel_track_stages": None, "match_logits": None}
    return map_tensors(Prediction(**rest), lambda tensor: tensor[0].cpu())
