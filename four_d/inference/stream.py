"""Streaming inference on a video: final frames go to a sink at once, window by window. A short video is one window."""

from __future__ import annotations

import dataclasses
import math

from four_d.inference import segments
from four_d.inference.request import Request
from four_d.inference.result import Result
from four_d.inference.sinks import Facts, Sink
from four_d.inference.window import Loaded, VideoSource, unit_of
from four_d.video.footage import Stream
from four_d.video.inputs import open_stream
from four_d.windows.sliding import Sliding


def run(model: Loaded, request: Request, sink: Sink) -> Result:
    """Run a model on a video and return the result of `Sink.end`.

    Raises:
        UserError: inputs that the model does not take, or bad input.

    """
    request.check_for(model.abilities)
    cut = request.cut(model.info.frames, model.abilities.frames)
    stream = open_stream(request.video, request.selection, cut.frames)
    _check_memory(model, stream)
    sliding = Sliding(VideoSource(model, request, stream), cut, model.abilities, tracks=request.tracks)
    facts = Facts.of(stream, cut, sliding.plan, unit_of(model, request.known))
    for part in sliding.parts():
        sink.add(part, facts)
    whole, made = sink.whole(facts), sliding.segments()
    prediction, tracks = sliding.followed(whole.prediction)
    whole = dataclasses.replace(whole, prediction=prediction).with_tracks(tracks, request.asked)
    return sink.end(whole.with_segments(made) if made else whole, facts, sliding.seams)


def _check_memory(model: Loaded, stream: Stream) -> None:
    """Raise UserError if this video's Gaussians would not fit into memory; reports the need of very many on stderr."""
    able = model.abilities
    if able.times is not None:
        pictures = able.key_frames * min(stream.cameras, able.key_cameras or stream.cameras)
        segments.check_memory(pictures * math.prod(model.info.image_size), able.times, len(stream) // stream.cameras)
