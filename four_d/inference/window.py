"""Videos as a model sees them: frames fitted to its input, with hints, and predictions with the final cameras."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from four_d import fields
from four_d.abilities import UNITS, Model
from four_d.checkpoints import ModelInfo
from four_d.constants import move
from four_d.correlation import pick
from four_d.inference import units
from four_d.inference.hints import Known, add
from four_d.inference.keypoints import Boxes, boxes_to_model
from four_d.inference.lens import Correction, correct
from four_d.inference.request import Request
from four_d.inference.result import Result
from four_d.keypoints import encode_names
from four_d.progress import progress
from four_d.rendering.merging import merged
from four_d.tracking import PointTracks
from four_d.types import Cameras, Clip, Prediction, map_tensors
from four_d.video.fit import Fits, fit, resize, resize_masks, sizes_of
from four_d.video.footage import Stream, Video
from four_d.video.mask import as_masks
from four_d.video.remarks import Remarks
from four_d.windows.join import Part
from four_d.windows.segments import times_apart
from four_d.windows.sliding import Predict, predict


@runtime_checkable
class Loaded(Model, Protocol):
    """Interface of a model with facts of its training, such as `LoadedModel`."""

    @property
    def info(self) -> ModelInfo:
        """Facts of the training."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        ...

    def without(self, *outputs: str) -> Loaded:
        """Implement `Model.without`."""
        ...


def unit_of(model: Loaded, known: Known | None) -> str:
    """Unit of length of results, in words: that of given poses, else the model's (`lens.correct`)."""
    posed = known is not None and known.cameras is not None and "poses" in model.abilities.hints
    return UNITS["disparity" if posed else model.info.normalisation]


class VideoSource:
    """Video of a request, read window by window, as a `sliding.Source`."""

    def __init__(self, model: Loaded, request: Request, stream: Stream) -> None:
        """Start on a stream of the request's video, without reading its frames."""
        self._model, self._request, self._stream = model, request, stream
        self._fits: Fits | None = None
        self._boxes: Boxes | None = None
        cameras = None if request.known is None else request.known.cameras
        self._remarks = Remarks("cameras" if cameras is None or not isinstance(cameras, str | Path) else cameras)

    @property
    def times(self) -> list[float]:
        """Seconds of all frames."""
        return self._stream.times.tolist()

    @property
    def moments(self) -> list[range]:
        """Frames of each moment, one of each camera."""
        cameras = self._stream.cameras
        return [range(start, start + cameras) for start in range(0, len(self._stream), cameras)]

    def size(self) -> tuple[int, int]:
        """Rows and columns of the model's input."""
        assert self._fits is not None
        return self._fits.model

    def points(self) -> Float[Tensor, "n 3"] | None:
        """Points of the request in model pixels; UserError for one outside the frames or the model's crop."""
        assert self._fits is not None
        return self._request.queries(self._fits, len(self._stream), self._stream.cameras)

    def windows(self, plan: Sequence[range], *, gaussians: bool) -> Iterator[Predict[Result]]:
        """Read the windows one after the other, with a progress bar."""
        model = self._model if gaussians else self._model.without("gaussians")
        with progress("windows", len(plan), "window") as bar:
            for frames, video in zip(plan, self._stream.windows(plan), strict=True):
                if self._fits is None:
                    self._fits = self._fit(video)
                    boxes = boxes_to_model(self._request.instances, self._fits)
                    if boxes is not None:
                        self._boxes = Boxes(boxes, self._request.instances, self._fits.model)
                yield partial(self._next, model, video, frames)
                bar.advance()

    def again(self, part: Part[Result], moments: Sequence[range]) -> Result:
        """Predict frames of a part again, which may repeat."""
        stream, which = self._stream, [row for moment in moments for row in moment]
        video = Video(
            frames=[part.value.frames[row - part.frames.start] for row in which],
            times=stream.times[which],
            total=stream.total,
            indices=None if stream.indices is None else tuple(stream.indices[row] for row in which),
            cameras=stream.cameras,
            part=(which, len(stream.times)),
            floats=None if stream.floats is None else [stream.floats[row] for row in which],
        )
        return self._predict(self._model.without(*self._model.abilities.queried), video, None, tracks=False)[0]

    def _fit(self, video: Video) -> Fits:
        """Fits of the frames to the model's input."""
        able = self._model.abilities
        return fit(sizes_of(video.frames), self._model.info.image_size, able.multiple, exact=able.image_size)

    def _next(
        self, model: Loaded, video: Video, frames: range, queries: Float[Tensor, "n 3"] | None, *, tracks: bool
    ) -> tuple[Result, PointTracks | None]:
        """Predict the next window, with boxes where the keypoints have gone."""
        boxes = None if self._boxes is None else self._boxes.at(frames)
        result, tracked = self._predict(model, video, queries, tracks=tracks, boxes=boxes)
        pixels = getattr(result.prediction, "keypoint_pixels", None)
        if self._boxes is not None and isinstance(pixels, Tensor):
            self._boxes.add(frames, pixels)
        return result, tracked

    def _predict(
        self,
        model: Loaded,
        video: Video,
        queries: Float[Tensor, "n 3"] | None,
        *,
        tracks: bool,
        boxes: Float[Tensor, "n 2 2"] | None = None,
    ) -> tuple[Result, PointTracks | None]:
        """Result of frames seen at once, in the first frame's coordinates, and the points tracked in model pixels."""
        request, to = self._request, self._fit(video)
        images = resize(video.frames if video.floats is None else video.floats, to)
        # the model takes a window as it took a clip in training
        apart = times_apart(video.times, video.cameras)
        times = torch.tensor(apart if video.whole else apart - apart[0], dtype=torch.float32)[None]
        moving = None if request.mask is None else resize_masks(as_masks(request.mask, video), to)
        clip = Clip(
            images=images[None],
            times=times,
            camera_ids=(torch.arange(len(images)) % video.cameras)[None],
            dynamic=None if moving is None else moving[None],
            dynamic_known=None if moving is None else torch.ones_like(times, dtype=torch.bool),
            query_points=None if queries is None else queries[None],
            keypoint_names=encode_names(request.keypoint_names)[None] if request.keypoints else None,
            keypoint_boxes=None if boxes is None else boxes[None],
        )
        given = None
        if request.known is not None and model.abilities.hints:
            clip, given = add(clip, request.known, model.abilities, video, to, self._remarks)
        shown, unit = units.to_model(clip, model.info.normalisation)
        correction = _Correction(clip, unit, self._remarks)
        shown = map_tensors(shown, lambda tensor: move(tensor, model.device))
        first, tracked = predict(model, shown, correction, tracks=tracks)
        first = merge_layers(first, shown.times, to.model, request.merge)
        result = Result(
            prediction=map_tensors(fields.delivered(fields.unstack(first, 0)), lambda tensor: tensor.cpu()),
            images=images,
            frames=video.frames,
            times=[float(time) for time in video.times],
            fits=to,
            mask=moving,
            given=given,
            unit=unit_of(model, request.known),
            device=model.device,
            camera_ids=None if video.cameras == 1 else tuple(clip.camera_ids[0].tolist()),
            motion=None if tracked is None else correction.motion,
            keypoint_names=request.keypoint_names,
            keypoint_instances=request.keypoint_instances,
            keypoint_edges=request.bones,
        )
        return result, None if tracked is None else map_tensors(tracked, lambda tensor: tensor.cpu())


def merge_layers(
    prediction: Prediction, times: Float[Tensor, "b f"], size: tuple[int, int], tolerance: float
) -> Prediction:
    """Merge layers of a prediction's Gaussians (`rendering.merging`; batch axis of one), and drop what joined others.

    They are of no key frame in particular then. Without cameras or Gaussians of key frames nothing changes.
    """
    gaussians, frames, cameras = prediction.gaussians, prediction.key_frames, prediction.cameras
    if not tolerance or gaussians is None or frames is None or cameras is None:
        return prediction
    keys = Cameras(
        world_from_camera=pick(cameras.world_from_camera, frames), intrinsics=pick(cameras.intrinsics, frames)
    )
    found, left = merged(gaussians, keys, pick(times, frames), size, tolerance)
    return dataclasses.replace(prediction, gaussians=fields.take(found, "n", left[0].nonzero()[:, 0]), key_frames=None)


class _Correction:
    """Correction of a model's passes over a clip to the final cameras (`lens.correct`).

    It also keeps the motion of the first frame's pixels.
    """

    def __init__(self, given: Clip, unit: float, remarks: Remarks) -> None:
        self._given, self._unit, self._remarks = given, unit, remarks
        self._correction: Correction | None = None
        self._motions: list[Tensor] = []

    def __call__(self, prediction: Prediction) -> Prediction:
        self._correction = self._correction or correct(prediction, self._given, self._unit, self._remarks)
        corrected = self._correction(prediction)
        if corrected.motion is not None:
            self._motions.append(corrected.motion[0, 0, 0].float().cpu())
        return corrected

    @property
    def motion(self) -> Float[Tensor, "t h w 3"] | None:
        """Motion of the first frame's pixels to the time of each pass; None without motion."""
        return torch.stack(self._motions) if self._motions else None
